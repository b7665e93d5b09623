//! The real program: `serve`, `stop` and `status` over NBD, with every kind of end.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "modules of one test program")]

mod bench;
#[expect(dead_code, reason = "shared with the tests of the NBD server")]
#[path = "../nbd/client.rs"]
mod client;
mod command;
mod crash;
mod detach;
mod ends;
mod foreign;
mod load;
mod memory;
mod modes;
mod names;
mod resize;
mod rollback;
mod snapshots;
mod space;
mod status;
mod systemd;
mod unseen;

use std::time::{Duration, Instant};

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
