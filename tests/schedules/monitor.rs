//! `runtime::sync::Monitor`: no wake-up is lost. One that is lost leaves every thread waiting, which the explorer reports.

use std::sync::Arc;

use cowdisk::runtime::sync::Monitor;
use shuttle::future::block_on;
use shuttle::thread;

use crate::explore;

const WAITERS: u64 = 3;

/// Each waits for a count of its own, and one hands the turn on: a chain of waits.
fn counts_and_turns() {
    let monitor = Arc::new(Monitor::new(0u64));
    let waiting: Vec<_> = (1..=WAITERS)
        .map(|turn| {
            let monitor = monitor.clone();
            thread::spawn(move || {
                let seen = block_on(monitor.wait(|n| (*n >= turn).then_some(*n)));
                assert!(seen >= turn);
                monitor.update(|n| *n += 1);
            })
        })
        .collect();
    monitor.update(|n| *n += 1);
    waiting.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(monitor.with(|n| *n), WAITERS + 1);
}

/// Changed quietly, told later: what `Space::want_growth` and the range locks do.
fn told_later() {
    let monitor = Arc::new(Monitor::new(false));
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let monitor = monitor.clone();
            thread::spawn(move || block_on(monitor.wait(|set| set.then_some(()))))
        })
        .collect();
    monitor.with(|set| *set = true);
    monitor.update(|_| {});
    waiting.into_iter().for_each(|t| t.join().unwrap());
}

/// A turn that is taken and given back, as the checkpoints' is.
fn one_at_a_time() {
    let busy = Arc::new(Monitor::new(false));
    let inside = Arc::new(Monitor::new(0));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (busy, inside) = (busy.clone(), inside.clone());
            thread::spawn(move || {
                block_on(busy.wait(|busy| (!std::mem::replace(busy, true)).then_some(())));
                assert_eq!(inside.with(|n| std::mem::replace(n, 1)), 0, "two have the turn");
                inside.with(|n| *n = 0);
                busy.update(|busy| *busy = false);
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

#[test]
fn no_wake_up_is_lost() {
    explore("monitor, chain of waits", 3000, counts_and_turns);
    explore("monitor, told later", 3000, told_later);
    explore("monitor, one at a time", 3000, one_at_a_time);
}
