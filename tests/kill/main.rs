//! The real program dies by SIGKILL, again and again, under a random load over NBD, and each time everything that it had
//! acknowledged is there when it is served again, flushed or not.
//!
//! `COWDISK_KILLS` says how often it dies, `COWDISK_SEED` where chance begins. By hand, for an hour:
//!
//! ```sh
//! COWDISK_KILLS=20000 cargo test --release --test kill -- --nocapture
//! ```
//!
//! The same seed gives the same images, loads and delays, but not the same moments: those are the machine's. What a
//! failed run leaves is kept, and named in its output.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "modules of one test program")]

#[expect(dead_code, reason = "shared with the tests of the daemon")]
#[path = "../serve/bench.rs"]
mod bench;
#[expect(dead_code, reason = "shared with the tests of the NBD server")]
#[path = "../nbd/client.rs"]
mod client;
mod counts;
mod life;
mod load;
mod oracle;

use std::time::{Duration, Instant};

use cowdisk::storage::sim::Rng;

use counts::Counts;
use life::Life;

/// How long a test waits for something that must happen before it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Kills of one run, unless the environment says otherwise.
const KILLS: u64 = 300;
/// Kills that an image lives through.
const KILLS_OF_AN_IMAGE: u64 = 25;

/// Waits for `done`, which another process brings about.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn every_acknowledged_write_survives_every_kill() {
    let kills = setting("COWDISK_KILLS").unwrap_or(KILLS);
    let seed = setting("COWDISK_SEED").unwrap_or_else(|| getrandom::u64().unwrap());
    println!("COWDISK_SEED={seed} COWDISK_KILLS={kills}");
    let mut rng = Rng::new(seed);
    let mut counts = Counts::default();
    while counts.kills < kills {
        let mut life = Life::begin(&mut rng, seed, counts.images);
        let end = kills.min(counts.kills + KILLS_OF_AN_IMAGE);
        while counts.kills < end {
            life.round(&mut rng, &mut counts);
        }
        life.end(&mut counts);
    }
    println!("{counts}");
    counts.assert_not_empty(kills);
}
