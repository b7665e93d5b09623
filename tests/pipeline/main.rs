//! A real filesystem on a real image without the ublk driver:
//! `cowdisk serve` (NBD) -> nbdfuse -> loop device -> ext4, with a `kill -9` of the daemon in the middle.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "modules of one test program")]

#[expect(dead_code, reason = "shared with the tests of serve")]
#[path = "../serve/bench.rs"]
mod bench;
mod chain;
#[expect(dead_code, reason = "shared with the tests of the NBD server")]
#[path = "../nbd/client.rs"]
mod client;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bench::{Bench, is_clean, tool};
use chain::Stack;

/// How long a test waits for something that must happen before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for `done`, which another process brings about.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const MIB: u64 = 1 << 20;
/// Files that are written and synced, one after the other, until the daemon dies.
const MAX_SYNCED: usize = 100_000;
/// The daemon is killed when this many are there.
const KILL_AT: usize = 150;

/// Content of the synced file number `index`; lengths of all kinds.
fn content(index: usize) -> Vec<u8> {
    (0..index * 977 % 40_000).map(|at| (at * 31 + index) as u8).collect()
}

/// Writes and syncs files until that fails; gives how many were synced.
fn write_synced(dir: &Path, synced: &AtomicUsize) -> usize {
    for index in 0..MAX_SYNCED {
        let write = || -> std::io::Result<()> {
            let mut file = File::create_new(dir.join(format!("synced-{index}")))?;
            file.write_all(&content(index))?;
            file.sync_all()
        };
        if write().is_err() {
            return index;
        }
        synced.store(index + 1, Ordering::Relaxed);
    }
    panic!("the daemon was not killed");
}

fn fio(file: &Path, mode: &str, bench: &Bench) {
    let file = format!("--filename={}", file.display());
    let job =
        ["--name=p", &file, "--size=32M", "--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--direct=1"];
    let verify =
        ["--iodepth=16", "--fsync=256", "--verify=crc32c", "--verify_fatal=1", "--randseed=11", mode];
    tool("fio", "fio", &[&job[..], &verify].concat(), &bench.path(""));
}

#[test]
fn ext4_survives_kill_9_of_the_daemon() {
    chain::require_machine();
    let bench = Bench::new();
    let image = bench.image("vm.cow", 1024 * MIB);
    let dir = bench.path("");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");

    let daemon = bench.serve(["vm.cow"]);
    let mut stack = Stack::new(&daemon.uri, &dir);
    tool("mkfs.ext4", "e2fsprogs", &["-q", "-F", &stack.device.node], &dir);
    let mnt = stack.mount(&dir);
    tool("cp", "coreutils", &["-r", source.to_str().unwrap(), mnt.join("copied").to_str().unwrap()], &dir);
    fio(&mnt.join("fio.dat"), "--do_verify=1", &bench);
    tool("sync", "coreutils", &["-f", mnt.to_str().unwrap()], &dir);
    assert!(bench.status("vm.cow")["requests"]["flush"].as_u64().unwrap() > 0, "no flush reached the daemon");

    let synced = Arc::new(AtomicUsize::new(0));
    let writer = std::thread::spawn({
        let (mnt, synced) = (mnt.clone(), synced.clone());
        move || write_synced(&mnt, &synced)
    });
    wait_until("files are synced", || synced.load(Ordering::Relaxed) >= KILL_AT || writer.is_finished());
    daemon.kill();
    let synced = writer.join().unwrap();
    assert!(synced >= KILL_AT, "only {synced} files were synced before the daemon was killed");
    drop(stack);

    let daemon = bench.serve(["vm.cow"]);
    let mut stack = Stack::new(&daemon.uri, &dir);
    // Replays the filesystem's own journal, as a boot after a crash does, and corrects nothing else.
    tool("e2fsck", "e2fsprogs", &["-p", &stack.device.node], &dir);
    tool("e2fsck", "e2fsprogs", &["-f", "-n", &stack.device.node], &dir);
    let mnt = stack.mount(&dir);
    for index in 0..synced {
        let found = std::fs::read(mnt.join(format!("synced-{index}"))).unwrap_or_default();
        assert!(found == content(index), "file {index} of {synced} was synced and is not what it was");
    }
    tool("diff", "diffutils", &["-r", source.to_str().unwrap(), mnt.join("copied").to_str().unwrap()], &dir);
    fio(&mnt.join("fio.dat"), "--verify_only", &bench);
    stack.unmount();
    tool("e2fsck", "e2fsprogs", &["-f", "-n", &stack.device.node], &dir);
    drop(stack);
    daemon.terminate();
    assert!(is_clean(&image));
    bench.run(["check", "--data", "vm.cow"]).expect(0);
}
