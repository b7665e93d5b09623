//! The ublk server on the simulated driver: what it says to the driver, what it makes of the answers, and what its users
//! see of it, its ends and its deaths. Everything follows from seeds.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "modules of one test program")]

mod admin;
mod deaths;
mod driver;
mod engine;
mod features;
mod kills;
mod life;
mod model;
mod mutants;
mod params;
mod raw;
mod requests;

use cowdisk::ublk::sim::Profile;

/// Kernels on both sides of what changed how a server must speak.
pub const KERNELS: [(u16, u16); 7] = [(6, 0), (6, 1), (6, 4), (6, 12), (6, 16), (7, 0), (7, 3)];

/// The drivers of [`KERNELS`].
pub fn profiles() -> impl Iterator<Item = Profile> {
    KERNELS.into_iter().map(|(major, minor)| Profile::of(major, minor))
}

/// A setting of the environment, for longer runs.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}
