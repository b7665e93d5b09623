//! Images are files: what people do to files, done to images, through the program.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "modules of one test program")]

#[expect(dead_code, reason = "shared with the tests of `serve`")]
#[path = "../serve/bench.rs"]
mod bench;
#[path = "../nbd/client.rs"]
mod client;
mod copies;
mod hosts;
mod links;
mod moves;
mod owners;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bench::{Bench, Daemon};
use client::write;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// How long a test waits for something that must happen before it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `done`, which another process brings about.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a command of the system in `dir`. One that is missing fails the test.
#[track_caller]
pub fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).current_dir(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// What needs root says so: run as another user it fails.
#[track_caller]
pub fn need_root() {
    assert!(sh(Path::new("/"), "id -u") == "0\n", "this test needs root: run it as root, in a container say");
}

/// Writes `fill` to the first block, by a client that has gone when this returns.
pub fn fill(daemon: &Daemon, fill: u8) {
    let mut client = daemon.connect();
    assert_eq!(client.call(&write(0, 0, &[fill; BLOCK as usize], 1)), 0);
    client.disconnect();
}

/// What the first block of an image or snapshot is filled with.
#[track_caller]
pub fn shown(bench: &Bench, target: &str) -> u8 {
    let bytes = bench.content(target, 1);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{target}");
    bytes[0]
}

/// A disk of three layers: s1 shows 1, s2 shows 2, and the disk 3.
pub fn disk(bench: &Bench, image: &str) {
    bench.image(image, 16 * MIB);
    let daemon = bench.serve([image]);
    fill(&daemon, 1);
    bench.run(["snapshot", &format!("{image}@s1")]).expect(0);
    fill(&daemon, 2);
    bench.run(["snapshot", &format!("{image}@s2")]).expect(0);
    fill(&daemon, 3);
    daemon.terminate();
}

/// All of [`disk`] is there and whole.
#[track_caller]
pub fn assert_disk(bench: &Bench, image: &str) {
    assert_eq!(shown(bench, image), 3, "{image}");
    assert_eq!(shown(bench, &format!("{image}@s1")), 1, "{image}");
    assert_eq!(shown(bench, &format!("{image}@s2")), 2, "{image}");
    bench.run(["check", image, "--data", "--chain"]).expect(0);
}

/// It takes writes and snapshots like any other.
#[track_caller]
pub fn assert_goes_on(bench: &Bench, image: &str) {
    let daemon = bench.serve([image]);
    fill(&daemon, 9);
    bench.run(["snapshot", &format!("{image}@later")]).expect(0);
    daemon.terminate();
    assert_eq!(shown(bench, &format!("{image}@later")), 9);
    bench.run(["check", image, "--data", "--chain"]).expect(0);
}
