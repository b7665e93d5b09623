//! `map`

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::image::{BLOCK, Change, End, change, make};
use crate::run::{keys, run};

/// Start, length (in blocks), state, file name, and the byte that fills the run.
type Run = (u64, u64, String, Option<String>, Option<u8>);

fn runs(dir: &Path, image: &str) -> Vec<Run> {
    listed(dir, &["map", "--json", image])
}

fn listed(dir: &Path, args: &[&str]) -> Vec<Run> {
    let map = run(dir, args).json();
    assert_eq!(keys(&map), ["runs"]);
    let one = |run: &Value| {
        assert_eq!(keys(run), ["layer", "length", "offset", "start", "state"]);
        let file = run["layer"].as_str().map(|l| l.rsplit('/').next().unwrap().to_owned());
        let fill =
            run["offset"].as_u64().map(|at| fs::read(run["layer"].as_str().unwrap()).unwrap()[at as usize]);
        let blocks = |key: &str| run[key].as_u64().unwrap() / BLOCK;
        (blocks("start"), blocks("length"), run["state"].as_str().unwrap().to_owned(), file, fill)
    };
    map["runs"].as_array().unwrap().iter().map(one).collect()
}

fn data(start: u64, length: u64, file: &str, fill: u8) -> Run {
    (start, length, "data".into(), Some(file.into()), Some(fill))
}

fn zero(start: u64, length: u64, file: &str) -> Run {
    (start, length, "zero".into(), Some(file.into()), None)
}

fn hole(start: u64, length: u64) -> Run {
    (start, length, "hole".into(), None, None)
}

#[test]
fn runs_name_the_layer_that_holds_them() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("base.raw"), vec![9; 40 * 4096]).unwrap();
    run(dir.path(), ["create", "vm.cow", "--base", "base.raw", "--base-format", "raw", "--size", "1M"]).ok();
    let head = dir.path().join("vm.cow");
    assert_eq!(runs(dir.path(), "vm.cow"), [data(0, 40, "base.raw", 9), hole(40, 216)]);
    change(&head, &[Change::Write(10, 10, 1), Change::Discard(38, 4)], End::Closed);
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    change(&head, &[Change::Write(15, 1, 2), Change::Write(100, 2, 3)], End::Closed);
    let expected = [
        data(0, 10, "base.raw", 9),
        data(10, 5, "vm@s1.cow", 1),
        data(15, 1, "vm.cow", 2),
        data(16, 4, "vm@s1.cow", 1),
        data(20, 18, "base.raw", 9),
        zero(38, 4, "vm@s1.cow"),
        hole(42, 58),
        data(100, 2, "vm.cow", 3),
        hole(102, 154),
    ];
    assert_eq!(runs(dir.path(), "vm.cow"), expected);
    assert_eq!(runs(dir.path(), "vm.cow@s1")[1], data(10, 10, "vm@s1.cow", 1));
    // What a dead process left in the journal counts.
    change(&head, &[Change::Write(42, 1, 4), Change::Discard(100, 1)], End::Killed);
    let after = runs(dir.path(), "vm.cow");
    assert!(after.contains(&data(42, 1, "vm.cow", 4)), "{after:?}");
    assert!(after.contains(&zero(100, 1, "vm.cow")), "{after:?}");
    let total: u64 = after.iter().map(|r| r.1).sum();
    assert_eq!(total, 256);
    let table = run(dir.path(), ["map", "vm.cow"]);
    assert_eq!(table.ok().lines().count(), after.len() + 1);
}

#[test]
fn nothing_shows_through_behind_the_end_of_a_smaller_parent() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("base.raw"), vec![9; 40 * 4096]).unwrap();
    let small = ["create", "small.cow", "--base", "base.raw", "--base-format", "raw", "--size", "64k"];
    run(dir.path(), small).ok();
    run(dir.path(), ["snapshot", "small.cow@s"]).ok();
    run(dir.path(), ["create", "large.cow", "--base", "small@s.cow", "--size", "1M"]).ok();
    assert_eq!(runs(dir.path(), "large.cow"), [data(0, 16, "base.raw", 9), hole(16, 240)]);
}

#[test]
fn a_large_empty_disk_is_one_run_at_once() {
    let dir = tempdir().unwrap();
    run(dir.path(), ["create", "vm.cow", "--size", "4096T"]).ok();
    change(&dir.path().join("vm.cow"), &[Change::Write(1 << 39, 1, 5)], End::Closed);
    let expected = [hole(0, 1 << 39), data(1 << 39, 1, "vm.cow", 5), hole((1 << 39) + 1, (1 << 39) - 1)];
    assert_eq!(runs(dir.path(), "vm.cow"), expected);
    make(dir.path(), "a.cow");
}

/// The blocks in the runs changed since `name`.
fn changed(dir: &Path, image: &str, name: &str) -> BTreeSet<u64> {
    let runs = listed(dir, &["map", "--json", image, "--since", name]);
    runs.iter().flat_map(|(start, length, ..)| *start..start + length).collect()
}

#[test]
fn what_was_changed_since_a_snapshot_is_exact() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("base.raw"), vec![9; 40 * 4096]).unwrap();
    run(dir.path(), ["create", "vm.cow", "--base", "base.raw", "--base-format", "raw", "--size", "1M"]).ok();
    let head = dir.path().join("vm.cow");
    // Blocks, by the snapshot before which they were changed; the last ones are in the journal only.
    let rounds: [&[(u64, u64, bool)]; 4] = [
        &[(0, 4, true), (50, 10, true)],
        &[(2, 5, true), (52, 2, false), (200, 1, true)],
        &[],
        &[(0, 1, false), (6, 3, true), (255, 1, true)],
    ];
    let blocks = |round: usize| rounds[round].iter().flat_map(|(first, n, _)| *first..first + n);
    for (round, changes) in rounds.iter().enumerate() {
        let one = |&(first, n, write): &(u64, u64, bool)| match write {
            true => Change::Write(first, n, round as u8 + 1),
            false => Change::Discard(first, n),
        };
        let changes: Vec<_> = changes.iter().map(one).collect();
        change(&head, &changes, if round == 3 { End::Killed } else { End::Closed });
        if round < 3 {
            run(dir.path(), ["snapshot", &format!("vm.cow@s{round}")]).ok();
        }
    }
    for since in 0..3 {
        let expected: BTreeSet<u64> = (since + 1..4).flat_map(blocks).collect();
        assert_eq!(changed(dir.path(), "vm.cow", &format!("s{since}")), expected, "since s{since}");
    }
    assert_eq!(changed(dir.path(), "vm@s2.cow", "s0"), blocks(1).collect());
    assert_eq!(changed(dir.path(), "vm.cow@s1", "s1"), BTreeSet::new());
    // Seen from the past the same differs; and after a rollback, on both sides of the fork in the road.
    run(dir.path(), ["rollback", "vm.cow@s0"]).ok();
    change(&head, &[Change::Write(100, 2, 7)], End::Closed);
    let both: BTreeSet<u64> = (1..4).flat_map(blocks).chain(100..102).collect();
    assert_eq!(changed(dir.path(), "vm.cow", "rollback-1"), both);
    assert_eq!(changed(dir.path(), "vm.cow", "s0"), (100..102).collect());
}

#[test]
fn what_a_disk_grew_by_has_changed() {
    let dir = tempdir().unwrap();
    let head = make(dir.path(), "vm.cow");
    change(&head, &[Change::Write(3, 1, 1)], End::Closed);
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    run(dir.path(), ["fork", "vm.cow@s1", "large.cow", "--size", "2M"]).ok();
    change(&dir.path().join("large.cow"), &[Change::Write(300, 1, 2)], End::Closed);
    let expected = [hole(256, 44), data(300, 1, "large.cow", 2), hole(301, 211)];
    assert_eq!(listed(dir.path(), &["map", "--json", "large.cow", "--since", "s1"]), expected);
}

#[test]
fn what_has_nothing_in_common_cannot_be_compared() {
    let dir = tempdir().unwrap();
    make(dir.path(), "vm.cow");
    run(dir.path(), ["map", "vm.cow", "--since", "none"]).fails(1, "it has no snapshot \"none\"");
    run(dir.path(), ["map", "vm.cow", "--since", "a/b"]).fails(1, "snapshot name \"a/b\"");
}
