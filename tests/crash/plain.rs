//! The same workloads on a disk whose data has no checksums: what counts after a crash follows from the order of writes,
//! the second barrier of a commit, and whether the machine went down (format-spec.md 6, N).

use crate::explore::{Counts, Effort, in_parallel};
use crate::faults;
use crate::sequences::{
    EMPTY, SMALL, SPANS, churn, resizing, ring_round, run_mix, run_random, run_sequence_on, seeds, share,
    steps,
};

#[test]
fn sequences_without_checksums() {
    let effort = Effort { variants: 1, every: 1, recrash: 0 };
    let counts = Counts::default();
    let n = steps().len();
    let plain = |number: usize| [SMALL, EMPTY][number % 2].plain();
    in_parallel(0..n, || false, |number| run_sequence_on(plain(number), number, 1, effort, &counts));
    in_parallel(0..n * n, || false, |number| run_sequence_on(plain(number), number, 2, effort, &counts));
    let (k, of) = share(64);
    in_parallel(
        0..n.pow(3) / of,
        || false,
        |i| run_sequence_on(plain(i * of + k), i * of + k, 3, effort, &counts),
    );
    counts.report(&format!("sequences without checksums, of three share {k} of {of}"));
}

#[test]
fn random_requests_without_checksums() {
    let effort = Effort { variants: 1, every: 5, recrash: 0 };
    let counts = Counts::default();
    in_parallel(
        seeds(0..24),
        || false,
        |seed| {
            let setup = if seed.is_multiple_of(2) { SMALL } else { SPANS };
            run_random(setup.plain(), 5000 + seed as u64, 5, 12, effort, &counts);
        },
    );
    in_parallel(
        seeds(0..6),
        || false,
        |seed| {
            let (seed, every_16th) = (6000 + seed as u64, Effort { every: 16, ..effort });
            run_mix(resizing, EMPTY.plain(), seed, (4, 12), effort, &counts);
            run_mix(churn, SMALL.plain(), seed, (6, 40), effort, &counts);
            run_mix(ring_round, SPANS.plain(), seed, (4, 60), every_16th, &counts);
        },
    );
    counts.report("random requests without checksums");
}

#[test]
fn crashes_in_recovery_without_checksums() {
    let effort = Effort { variants: 1, every: 7, recrash: 1 };
    let counts = Counts::default();
    in_parallel(
        seeds(0..12),
        || false,
        |seed| run_random(SMALL.plain(), 7000 + seed as u64, 2, 8, effort, &counts),
    );
    counts.report("crashes in recovery without checksums");
}

#[test]
fn operations_fail_and_the_host_is_full_without_checksums() {
    let counts = Counts::default();
    let (k, n) = share(64);
    let (runs, hits) = faults::sweep(faults::SETUP.plain(), k, n, &counts);
    faults::report(&format!("failing operations without checksums, share {k} of {n}"), runs, hits, &counts);
    let runs = faults::fill(faults::SETUP.plain(), k, n, &counts);
    faults::report(&format!("full host without checksums, share {k} of {n}"), runs, 0, &counts);
}
