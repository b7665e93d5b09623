//! Snapshots of a disk in use, one after the other.

use std::sync::Arc;
use std::time::Instant;

use crate::bench::Bench;
use crate::load::{BLOCKS, Load, Log};
use crate::memory::{memory, mib, open_files};
use crate::{scale, wait_until};

const MIB: u64 = 1 << 20;
const CONNECTIONS: u64 = 2;
/// Snapshots whose content is judged.
const SAMPLES: u64 = 10;
/// What a daemon takes besides its cache, which is smaller here than it is by default, and besides its layers.
const CACHE: u64 = 8 * MIB;
const MOST: u64 = CACHE + 24 * MIB;
/// What a layer may take of its memory: its superblock, its path and its place in the chain.
const OF_A_LAYER: u64 = 8 << 10;

/// A daemon whose soft limit of open files is far below what its chain will need.
#[test]
fn in_a_row_under_load() {
    let wanted = scale(60);
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let limited = format!("ulimit -Sn {}; exec \"$0\" \"$@\"", 40.min(wanted));
    let daemon = bench.serve_by(&["sh", "-c", &limited], ["vm.cow", "--queues", "2", "--cache-size", "8M"]);
    let log = Arc::new(Log::default());
    let load = Load::start(&daemon, &log, CONNECTIONS, 1);
    let (mut taken, begun) = (Vec::new(), Instant::now());
    for i in 0..wanted {
        let written = log.writes.lock().unwrap().len();
        wait_until("the load goes on", || log.writes.lock().unwrap().len() > written + 20);
        let begin = log.now();
        bench.run(["snapshot", &format!("vm.cow@s{i}")]).expect(0);
        taken.push((begin, log.now()));
    }
    let (took, used) = (begun.elapsed(), memory(daemon.pid()));
    let (layers, files) = (bench.status(&image)["layers"].as_u64().unwrap(), open_files(daemon.pid()));
    assert_eq!(layers, wanted + 1);
    // Each layer is one file, and nothing of what was replaced stays open.
    assert!(files as u64 <= layers + 40, "{files} files for {layers} layers");
    assert!(used.private <= MOST + layers * OF_A_LAYER, "{used:?}");
    let slow = bench.status(&image)["latencies"]["write"]["p999_us"].as_u64().unwrap();
    load.end();
    daemon.terminate();
    for sample in 0..SAMPLES {
        let i = sample * (wanted - 1) / (SAMPLES - 1);
        let name = format!("vm.cow@s{i}");
        let (begin, end) = taken[i as usize];
        log.judge(&name, &bench.content(&name, CONNECTIONS * BLOCKS), begin, end);
    }
    let now = log.now();
    log.judge("the disk", &bench.content("vm.cow", CONNECTIONS * BLOCKS), now, now);
    bench.run(["check", "vm.cow", "--data", "--chain"]).expect(0);
    let writes = log.writes.lock().unwrap().len();
    println!(
        "snapshots: {wanted} in a row during {writes} writes, {:.1} ms each, {SAMPLES} judged; \
         the daemon has {files} files open and takes {:.1} MiB; 0.1 % of the writes took more than {slow} us",
        took.as_secs_f64() * 1e3 / wanted as f64,
        mib(used.private),
    );
}
