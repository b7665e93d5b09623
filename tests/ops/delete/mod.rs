//! Deleting snapshots: broken off at every operation, by the death of the process and by power loss, and by failing
//! operations; the same command then goes on.

mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use cowdisk::error::Kind;
use cowdisk::rules::{Rule, without};
use cowdisk::storage::sim::{Crash, Fault, FaultKind, Faults, SimDisk};

use crate::machine::crashes_of;
use world::{Disk, Layer, Shown, deleted};

fn layer(writes: &[(usize, usize, usize, u8)]) -> Layer {
    Layer { size: None, writes: writes.to_vec() }
}

fn sized(size: usize, writes: &[(usize, usize, usize, u8)]) -> Layer {
    Layer { size: Some(size), ..layer(writes) }
}

/// Both directions, over nothing, over another snapshot and over a raw base; neighbours of different sizes; the newest one.
fn disks() -> Vec<Disk> {
    let few = || layer(&[(3, 9, 2, 31), (50, 1, 1, 0)]);
    let many = || layer(&[(0, 40, 1, 21), (50, 20, 2, 22), (70, 3, 1, 0)]);
    let disk = |name, base, layers, delete| Disk {
        name,
        base,
        size: 100,
        plain: false,
        layers,
        shorter: None,
        delete,
    };
    let plain = |name, base, layers, delete| Disk { plain: true, ..disk(name, base, layers, delete) };
    let made_larger = |name, layers| Disk { shorter: Some(60), ..disk(name, Some(90), layers, "s1") };
    vec![
        disk("up", None, vec![few(), many(), few()], "s1"),
        disk("down", None, vec![many(), few(), few()], "s1"),
        disk("up on a base", Some(90), vec![few(), many(), few()], "s1"),
        disk("down on a base", Some(90), vec![many(), few(), few()], "s1"),
        disk("up in the middle", None, vec![layer(&[(20, 60, 3, 11)]), few(), many(), few()], "s2"),
        disk("down in the middle", None, vec![layer(&[(20, 60, 3, 11)]), many(), few(), few()], "s2"),
        plain("up without checksums", Some(90), vec![few(), many(), few()], "s1"),
        plain("down without checksums", None, vec![many(), few(), few()], "s1"),
        disk("the newest", Some(90), vec![many(), few(), layer(&[(5, 20, 3, 41)])], "s2"),
        disk("the only one", None, vec![many(), few()], "s1"),
        disk(
            "up from a shorter one",
            Some(100),
            vec![sized(60, &[(3, 9, 2, 31)]), sized(110, &[(0, 30, 1, 21), (80, 9, 2, 22)]), few()],
            "s1",
        ),
        disk(
            "down into a shorter one",
            Some(100),
            vec![sized(64, &[(0, 60, 1, 21)]), sized(110, &[(3, 9, 2, 31)]), few()],
            "s1",
        ),
        disk(
            "up from a longer one",
            Some(100),
            vec![layer(&[(85, 9, 2, 31)]), sized(80, &[(0, 60, 1, 21)]), sized(100, &[(1, 3, 1, 2)])],
            "s1",
        ),
        disk(
            "down into a longer one",
            Some(100),
            vec![layer(&[(0, 90, 1, 21)]), sized(80, &[(3, 9, 2, 31)]), sized(100, &[(1, 3, 1, 2)])],
            "s1",
        ),
        made_larger("up into one made larger", vec![few(), many(), few()]),
        made_larger("down from one made larger", vec![layer(&[(0, 60, 1, 21)]), few(), few()]),
    ]
}

/// Deletes, and judges what crashes at each end of each operation leave. Gives their number, and how many showed the
/// snapshot still.
fn explore(disk: &Disk, seed: u64, every: usize, again: usize) -> (usize, usize) {
    let machine = SimDisk::new(seed);
    let shown = disk.make(&machine);
    let (states, done) = crashes_of(&machine, seed, deleted(&machine, disk.delete));
    done.unwrap_or_else(|e| panic!("{}, seed {seed}: {e}", disk.name));
    for after in 0..8 {
        let dark = machine.crash(Crash::PowerLoss, after);
        shown.assert_done(&dark, disk.delete, &format!("{}, seed {seed}, done and dark {after}", disk.name));
    }
    shown.assert_done(&machine, disk.delete, disk.name);
    let (mut judged, mut there) = (0, 0);
    for (i, (place, _, state)) in states.iter().enumerate() {
        if !(i + seed as usize).is_multiple_of(every) {
            continue;
        }
        let place = format!("{}, {place}", disk.name);
        there += usize::from(shown.assert_shown(state, disk.delete, i.is_multiple_of(2), &place));
        judged += 1;
        go_on(&shown, state, disk.delete, seed, again, &place);
    }
    (judged, there)
}

/// The same command ends it, itself broken off `again` times, evenly spread.
fn go_on(shown: &Shown, state: &SimDisk, gone: &'static str, seed: u64, again: usize, place: &str) {
    let ended = if again == 0 {
        state.block_on(deleted(state, gone))
    } else {
        let (states, ended) = crashes_of(state, seed, deleted(state, gone));
        let step = states.len().div_ceil(again).max(1);
        for (second, _, state) in states.iter().step_by(step) {
            let place = format!("{place}, then {second}");
            shown.assert_shown(state, gone, false, &place);
            go_on(shown, state, gone, seed, 0, &place);
        }
        ended
    };
    match ended {
        Ok(_) => {}
        Err(e) if e.kind() == Kind::NotFound => {}
        Err(e) => panic!("{place}: {e}"),
    }
    shown.assert_done(state, gone, place);
}

#[test]
fn a_delete_broken_off_anywhere_shows_all_else_as_it_was() {
    let (mut states, mut there) = (0, 0);
    for disk in disks() {
        for seed in 0..2 {
            let (judged, still) = explore(&disk, seed, 7, 0);
            (states, there) = (states + judged, there + still);
        }
    }
    println!("delete: {states} crash states, {there} of them with the snapshot");
    assert!(there > 0 && there < states);
}

#[test]
fn a_delete_is_broken_off_again_and_again() {
    let mut states = 0;
    for (seed, disk) in disks().iter().enumerate() {
        states += explore(disk, 7 + seed as u64, 97, 8).0;
    }
    println!("delete: {states} crash states, 8 crashes of what goes on from each");
}

#[test]
fn a_delete_with_a_failing_operation_harms_nothing() {
    let mut runs = 0;
    for (i, disk) in disks().into_iter().enumerate() {
        for (j, kind) in [FaultKind::Eio, FaultKind::Enospc].into_iter().enumerate() {
            // Each operation fails, with one error or the other one, in neighbouring cases of the list.
            for nth in (1 + (i + j) as u64 % 2..).step_by(2) {
                let machine = SimDisk::new(7);
                let shown = disk.make(&machine);
                let fail = Some(Fault { at: nth, kind, sticky: false, only: None });
                machine.set_faults(Faults { fail, budget: None });
                let ended = machine.block_on(deleted(&machine, disk.delete));
                let hits = machine.fault_hits();
                machine.set_faults(Faults::default());
                if hits == 0 {
                    ended.unwrap();
                    break;
                }
                let place = format!("{}, {kind:?} of operation {nth}", disk.name);
                // The next process finds what this one has left, durable or not.
                let state = machine.crash(Crash::ProcessDeath, nth);
                shown.assert_shown(&state, disk.delete, false, &place);
                go_on(&shown, &state, disk.delete, nth, 0, &place);
                runs += 1;
            }
        }
    }
    println!("delete: {runs} runs with a failed operation");
}

/// Deletes what a disk in another directory stands on, which nobody can know of. At each crash that one shows what it
/// showed, or says that its parent is not what it was. Gives how often it did which.
fn elsewhere(disk: &Disk, seed: u64) -> (usize, usize) {
    let machine = SimDisk::new(seed);
    let shown = disk.make(&machine);
    let then = disk.fork(&machine);
    let (states, done) = crashes_of(&machine, seed, deleted(&machine, disk.delete));
    done.unwrap();
    let (mut exact, mut refused) = (0, 0);
    for (place, _, state) in states {
        match shown.of_fork(&state) {
            Ok(content) => {
                assert_eq!(content, then, "{}, {place}", disk.name);
                exact += 1;
            }
            Err(e) => {
                let kinds = [Kind::ParentChanged, Kind::Unsupported, Kind::ParentMissing];
                assert!(kinds.contains(&e.kind()), "{}, {place}: {e}", disk.name);
                refused += 1;
            }
        }
    }
    (exact, refused)
}

#[test]
fn a_disk_elsewhere_shows_what_it_did_or_is_refused() {
    for (seed, disk) in disks().iter().take(4).enumerate() {
        let (exact, refused) = elsewhere(disk, seed as u64);
        println!(
            "delete: {}: a fork out of reach is exact {exact} times, refused {refused} times",
            disk.name
        );
        assert!(exact > 0 && refused > 0);
    }
}

/// What a host may have left: a fifth of what moves.
const SPARE: u64 = 120 * 4096;

#[test]
fn a_delete_needs_little_space() {
    let (less, more) = (layer(&[(0, 600, 1, 21)]), layer(&[(700, 700, 1, 31)]));
    for (what, lower, upper) in [("up", &less, &more), ("down", &more, &less)] {
        let layers = vec![lower.clone(), upper.clone(), layer(&[(2, 2, 1, 41)])];
        let disk =
            Disk { name: what, base: None, size: 1500, plain: false, layers, shorter: None, delete: "s1" };
        let machine = SimDisk::new(3);
        let shown = disk.make(&machine);
        let budget = Some(machine.allocated() + SPARE);
        machine.set_faults(Faults { fail: None, budget });
        let ended = machine.block_on(deleted(&machine, "s1"));
        machine.set_faults(Faults::default());
        ended.unwrap_or_else(|e| panic!("{what}: {e}"));
        shown.assert_done(&machine, "s1", what);
    }
}

/// The search for what goes wrong without `rule`.
fn without_rule(rule: Rule) {
    for (seed, disk) in disks().iter().enumerate() {
        let seed = seed as u64;
        match rule {
            Rule::Condemned => _ = elsewhere(disk, seed),
            _ => _ = explore(disk, seed, 3, 0),
        }
    }
}

#[test]
fn every_rule_of_joins_that_is_missing_is_found() {
    let mut missed = Vec::new();
    for rule in Rule::OF_JOINS {
        let broken = catch_unwind(AssertUnwindSafe(|| {
            let _without = without(rule);
            without_rule(rule);
        }));
        match broken {
            Ok(()) => missed.push(rule),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                println!("delete: without {rule:?}: {text:.200}");
            }
        }
    }
    assert!(missed.is_empty(), "nothing notices that these rules are missing: {missed:?}");
}
