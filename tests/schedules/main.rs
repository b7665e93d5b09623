//! The small shared cores under a schedule explorer: every lock and every atomic of `cowdisk::sync` is a point at which
//! another thread may go on, and thousands of orders are tried, by chance and with few preemptions (PCT).
//!
//!     cargo test --features shuttle --test schedules -- --nocapture
//!
//! The explorer knows one order of all atomic operations: it finds wrong protocols, not missing barriers. What it finds is
//! printed as a schedule that `shuttle::replay` runs again.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints its counts"
)]

mod commits;
mod file;
mod locks;
mod monitor;
mod pending;
mod readers;
mod space;
mod spans;

use std::panic::{AssertUnwindSafe, catch_unwind};

use cowdisk::rules::{Rule, without};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};

/// Preemptions of a schedule in the second half of the runs.
const PREEMPTIONS: usize = 5;

fn run(scheduler: impl Scheduler + 'static, quiet: bool, test: fn()) -> usize {
    let mut config = Config::new();
    config.silence_warnings = true;
    if quiet {
        config.failure_persistence = FailurePersistence::None;
    }
    Runner::new(scheduler, config).run(test)
}

/// Runs `test` under `schedules` orders of each kind.
fn explore(name: &str, schedules: usize, test: fn()) {
    let random = run(RandomScheduler::new(schedules), false, test);
    let few = run(PctScheduler::new(PREEMPTIONS, schedules), false, test);
    println!("schedules: {name}: {} explored", random + few);
}

/// Without `rule` some schedule fails. All threads of the explorer are one thread to the switch.
fn notices(name: &str, rule: Rule, schedules: usize, test: fn()) {
    let _broken = without(rule);
    let failed = |scheduler: bool| {
        let run = AssertUnwindSafe(|| match scheduler {
            true => run(RandomScheduler::new(schedules), true, test),
            false => run(PctScheduler::new(PREEMPTIONS, schedules), true, test),
        });
        catch_unwind(run).is_err()
    };
    assert!(failed(true) || failed(false), "{name}: no schedule fails without {rule:?}");
    println!("schedules: {name}: noticed without {rule:?}");
}
