//! Mutate to trust: with any one rule of the protocol taken away, the exploration must find a violation.
//!
//! `COWDISK_RULE=Numbers` takes away that rule alone.
//!
//! The seeds are tried in order until one shows it; which one it was is printed. A rule whose absence no workload
//! notices would mean that the tests above prove nothing about it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cowdisk::rules::{Rule, without};
use cowdisk::storage::sim::{FaultKind, OpKind};

use crate::explore::{Counts, Effort, in_parallel};
use crate::faults;
use crate::sequences::{self, SMALL, SPANS};

/// Seeds after which a rule counts as not noticed.
const SEEDS: u64 = 4000;

thread_local! {
    /// The panics of a mutated engine are what is looked for: not worth a message each.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

fn hush() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !EXPECTED.get() {
                loud(info);
            }
        }));
    });
}

/// Runs `work` without `rule`; the violation it ends with.
fn violation(rule: Option<Rule>, work: impl FnOnce()) -> Option<String> {
    let _without = rule.map(without);
    EXPECTED.set(true);
    let end = catch_unwind(AssertUnwindSafe(work));
    EXPECTED.set(false);
    let panic = end.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default())
}

/// Where the search begins: for some rules it takes long, and this seed is known to end it.
fn first_seed(rule: Rule) -> u64 {
    match rule {
        Rule::Reserve => 64,
        Rule::CloseBlocks => 36,
        Rule::Evidence => 161,
        Rule::KeepFrozen => 537,
        Rule::SizeOfCut => 69,
        _ => 0,
    }
}

/// The workload in which the rule matters.
fn explore(rule: Rule, seed: u64, counts: &Counts) {
    let effort = Effort { variants: 1, every: 1, recrash: 0 };
    let in_recovery = Effort { recrash: 1, every: 3, ..effort };
    let random = |tasks, ops, effort| sequences::run_random(SMALL, seed, tasks, ops, effort, counts);
    // The write that fails: one of the first few dozen.
    let fault = |kind, only| {
        let at = 1 + seed % 40;
        faults::run(faults::SETUP, seed, faults::fault(at, kind, false, Some(only)), 1, counts);
    };
    match rule {
        Rule::Reserve => faults::run_on_full_host(seed, seed % 300, 1, counts),
        Rule::Unsettled if seed.is_multiple_of(2) => fault(FaultKind::Late, OpKind::Write),
        Rule::Unsettled | Rule::JournalPoison => fault(FaultKind::Eio, OpKind::Write),
        Rule::SyncPoison => fault(FaultKind::Eio, OpKind::Sync),
        Rule::KeepFrozen => fault(FaultKind::Eio, OpKind::Read),
        Rule::SyncFirst | Rule::SyncParent | Rule::AboveRecords => random(2, 8, in_recovery),
        Rule::ReadErrors => faults::run_with_unreadable_data(seed, counts),
        Rule::DurableThere => faults::run_with_lost_record(seed, counts),
        Rule::DataFirst | Rule::TwoBarriers | Rule::SameBoot => {
            sequences::run_random(SMALL.plain(), seed, 5, 12, Effort { every: 2, ..effort }, counts);
        }
        Rule::DirectorySync => {
            sequences::run_sequence(&[sequences::Step::Snapshot], SMALL, seed, effort, counts);
        }
        Rule::CloseBlocks => {
            let effort = Effort { every: 64, ..effort };
            sequences::run_mix(sequences::ring_round, SPANS, seed, (4, 80), effort, counts);
        }
        Rule::ZeroBehind | Rule::ZeroRest | Rule::LookAgain | Rule::DurableResize | Rule::SizeOfCut => {
            sequences::run_mix(sequences::resizing, SMALL, seed, (4, 12), effort, counts);
        }
        Rule::Readers | Rule::CacheFill => {
            let effort = Effort { every: 8, ..effort };
            sequences::run_mix(sequences::churn, SMALL, seed, (6, 40), effort, counts);
        }
        _ => random(5, 12, Effort { every: 2, ..effort }),
    }
}

#[test]
fn every_rule_that_is_missing_is_found() {
    hush();
    let only = std::env::var("COWDISK_RULE").ok();
    let missed = std::sync::Mutex::new(Vec::new());
    in_parallel(
        0..Rule::ALL.len(),
        || false,
        |index| {
            let (rule, counts) = (Rule::ALL[index], Counts::default());
            if only.as_ref().is_some_and(|only| *only != format!("{rule:?}")) {
                return;
            }
            let found = (first_seed(rule)..SEEDS).find_map(|seed| {
                // That a record was durable is known from a later one. Where there is none its loss cannot be noticed.
                if rule == Rule::DurableThere && violation(None, || explore(rule, seed, &counts)).is_some() {
                    return None;
                }
                violation(Some(rule), || explore(rule, seed, &counts)).map(|why| (seed, why))
            });
            match found {
                Some((seed, why)) => {
                    // The workload is not to blame: with the rule in force the same seed is clean.
                    let innocent = violation(None, || explore(rule, seed, &counts));
                    assert_eq!(innocent, None, "{rule:?}: seed {seed} fails with the rule in force");
                    println!(
                        "mutations: without {rule:?}: seed {seed}, {} crash images: {why:.200}",
                        counts.distinct()
                    );
                }
                None => missed.lock().unwrap().push(rule),
            }
        },
    );
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "nothing notices that these rules are missing: {missed:?}");
    if only.is_none() {
        println!("mutations: {} rules, all found", Rule::ALL.len());
    }
}
