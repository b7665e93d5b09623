//! Many of everything: snapshots in a row under load, forks served at once, layers below a disk.
//!
//! `COWDISK_SCALE=1000` says how many; a normal run has fewer. What is printed is what the README quotes; what is asserted
//! does not depend on how fast the machine is.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "modules of one test program")]

#[expect(dead_code, reason = "shared with the tests of `serve`")]
#[path = "../serve/bench.rs"]
mod bench;
#[expect(dead_code, reason = "shared with the tests of the NBD server")]
#[path = "../nbd/client.rs"]
mod client;
mod depth;
mod forks;
#[path = "../serve/load.rs"]
mod load;
mod memory;
mod snapshots;

use std::time::{Duration, Instant};

/// How long a test waits for something that must happen before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for `done`, which another process brings about.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How many there are to be: `default`, unless `COWDISK_SCALE` says something else.
pub fn scale(default: u64) -> u64 {
    std::env::var("COWDISK_SCALE").map_or(default, |n| n.parse().expect("COWDISK_SCALE is a number"))
}
