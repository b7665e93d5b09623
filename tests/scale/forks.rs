//! Forks of one golden image, all served at once.

use std::time::Instant;

use crate::bench::{Bench, Daemon};
use crate::client::write;
use crate::memory::{Memory, memory, mib};
use crate::scale;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// What each may take for itself, once it was written to and read from.
const EACH: u64 = 4 * MIB;

fn filled(fill: u8) -> Vec<u8> {
    vec![fill; BLOCK as usize]
}

/// A fork's number, in its block.
fn number(i: usize) -> Vec<u8> {
    (i as u64).to_le_bytes().repeat(BLOCK as usize / 8)
}

#[test]
fn of_one_image_served_at_once() {
    let wanted = usize::try_from(scale(40)).unwrap();
    let bench = Bench::new();
    bench.image("golden.cow", 64 * MIB);
    let daemon = bench.serve(["golden.cow"]);
    let mut client = daemon.connect();
    for i in 0..512 {
        assert_eq!(client.call(&write(0, i * 32 * BLOCK, &filled(1), i)), 0);
    }
    client.disconnect();
    daemon.terminate();
    let names: Vec<String> = (0..wanted).map(|i| format!("job-{i}.cow")).collect();
    let begun = Instant::now();
    let made = ["fork".to_owned(), "golden.cow".to_owned()].into_iter().chain(names.iter().cloned());
    bench.run(made).expect(0);
    let forked = begun.elapsed();
    let begun = Instant::now();
    let daemons: Vec<Daemon> = names.iter().map(|name| bench.serve([name])).collect();
    let started = begun.elapsed();
    let idle = median(&daemons);
    for (i, daemon) in daemons.iter().enumerate() {
        let mut client = daemon.connect();
        assert_eq!(client.call(&write(0, 7 * BLOCK, &number(i), 1)), 0);
        assert_eq!(client.read(64 * BLOCK, BLOCK as u32), filled(1));
        client.disconnect();
    }
    let used = median(&daemons);
    // All of them at once are still what each of them made of the one image.
    for (i, daemon) in daemons.iter().enumerate() {
        let mut client = daemon.connect();
        assert_eq!(client.read(7 * BLOCK, BLOCK as u32), number(i));
        assert_eq!(client.read(0, BLOCK as u32), filled(1));
        client.disconnect();
    }
    println!(
        "forks: {wanted} of one image, {:.1} ms each to make and {:.0} ms to serve; private memory {:.1} MiB idle, \
         {:.1} MiB used (Pss {:.1} MiB)",
        forked.as_secs_f64() * 1e3 / wanted as f64,
        started.as_secs_f64() * 1e3 / wanted as f64,
        mib(idle.private),
        mib(used.private),
        mib(used.pss),
    );
    assert!(used.private <= EACH, "{used:?}");
    daemons.into_iter().for_each(|daemon| drop(daemon.terminate()));
    bench.run(["check", "job-0.cow", "--data", "--chain"]).expect(0);
}

fn median(daemons: &[Daemon]) -> Memory {
    let mut all: Vec<Memory> = daemons.iter().map(|daemon| memory(daemon.pid())).collect();
    all.sort();
    all[all.len() / 2]
}
