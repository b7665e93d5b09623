//! Images that strangers made, against the real program: no panic, no hang, bounded memory, no file opened that must not
//! be, and an error that names what is wrong and where. Checksums are right everywhere, or nothing behind them would be
//! reached.
//!
//! One table: a case says how its files are made, and what each command says of them. `COWDISK_CASE` picks cases whose
//! names contain it; `COWDISK_SHOW=1` prints what every command said.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attack;
mod bases;
mod case;
mod chains;
mod damage;
#[expect(dead_code, reason = "shared with the tests of the command")]
#[path = "../cli/image.rs"]
mod image;
mod journals;
mod nodes;
#[expect(dead_code, reason = "shared with the tests of the command")]
#[path = "../cli/run.rs"]
mod run;
mod superblocks;
mod truncations;

use std::sync::atomic::{AtomicUsize, Ordering};

use case::Case;

/// Every case that the table has.
fn table() -> Vec<Case> {
    let parts = [superblocks::cases(), journals::cases(), nodes::cases(), bases::cases(), chains::cases()];
    let only = std::env::var("COWDISK_CASE").unwrap_or_default();
    parts.into_iter().flatten().filter(|case| case.name.contains(&only)).collect()
}

#[test]
fn every_hostile_image_is_survived_and_named() {
    let table = table();
    let (next, runs) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            while let Some(case) = table.get(next.fetch_add(1, Ordering::Relaxed)) {
                runs.fetch_add(case::judge(case, &mut failed), Ordering::Relaxed);
            }
            failed
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    println!("hostile images: {} cases, {} runs of the program", table.len(), runs.load(Ordering::Relaxed));
    assert!(failed.is_empty(), "{} failures:\n{}", failed.len(), failed.join("\n"));
}
