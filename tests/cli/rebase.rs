//! `rebase`

use std::fs;
use std::time::{Duration, SystemTime};

use tempfile::tempdir;

use crate::image::{Change, End, change, read_disk};
use crate::run::{content_of, keys, run};

/// A disk on a raw base, with a snapshot; the base has moved since.
fn on_moved_raw(dir: &std::path::Path) -> Vec<u8> {
    fs::write(dir.join("base.raw"), vec![7; 1 << 20]).unwrap();
    run(dir, ["create", "vm.cow", "--base", "base.raw", "--base-format", "raw"]).ok();
    let head = dir.join("vm.cow");
    change(&head, &[Change::Write(1, 2, 1)], End::Closed);
    run(dir, ["snapshot", "vm.cow@s1"]).ok();
    change(&head, &[Change::Write(5, 2, 2)], End::Closed);
    let shown = read_disk(&head);
    fs::create_dir(dir.join("golden")).unwrap();
    fs::rename(dir.join("base.raw"), dir.join("golden/debian.raw")).unwrap();
    shown
}

#[test]
fn a_raw_base_that_moved() {
    let dir = tempdir().unwrap();
    let shown = on_moved_raw(dir.path());
    let moved = run(dir.path(), ["check", "--chain", "vm.cow"]);
    assert!(moved.stdout.contains("parent_missing"), "{moved:?}");
    // A copy has another time stamp. It has been tried to serve the disk, which has left it open.
    run(dir.path(), ["bench", "-w", "-c", "1", "vm.cow"]).fails(1, "try: cowdisk rebase ");
    let copy = dir.path().join("golden/debian.raw");
    fs::File::options()
        .write(true)
        .open(&copy)
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
        .unwrap();
    let before = content_of(dir.path());
    let would = run(dir.path(), ["rebase", "--dry-run", "vm.cow", "--base", "golden/debian.raw"]);
    assert_eq!(would.ok(), "vm@s1.cow: would stand on golden/debian.raw\n");
    assert_eq!(content_of(dir.path()), before);
    assert_eq!(run(dir.path(), ["rebase", "vm.cow", "--base", "golden/debian.raw"]).ok(), "");
    change(&dir.path().join("vm.cow"), &[], End::Closed);
    assert_eq!(read_disk(&dir.path().join("vm.cow")), shown);
    run(dir.path(), ["check", "--data", "--chain", "vm.cow"]).ok();
}

#[test]
fn another_base_is_taken_by_force_only() {
    let dir = tempdir().unwrap();
    let shown = on_moved_raw(dir.path());
    fs::write(dir.path().join("other.raw"), vec![8; 1 << 20]).unwrap();
    fs::write(dir.path().join("short.raw"), vec![7; 4096]).unwrap();
    let before = content_of(dir.path());
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--base", "other.raw"], 1, "its content differs"),
        (&["--base", "short.raw"], 1, "size 4096 instead of 1048576"),
        (&["--base", "none.raw"], 1, "none.raw"),
        (&["--base", "golden"], 1, "a directory"),
        (&["--base", "vm@s1.cow", "--base-format", "cow"], 1, "a base of another format"),
        (&["--base", "other.raw", "--base-format", "qcow2"], 1, "not supported"),
        (&[], 64, "--base"),
    ];
    for (args, code, fragment) in cases {
        run(dir.path(), ["rebase", "vm.cow"].iter().chain(*args)).fails(*code, fragment);
        assert_eq!(content_of(dir.path()), before, "{args:?}");
    }
    let done = run(dir.path(), ["--json", "rebase", "vm.cow", "--base", "other.raw", "--force"]).json();
    assert_eq!(keys(&done), ["base", "dry_run", "forced", "image", "layer"]);
    assert_eq!((&done["forced"], &done["layer"]), (&true.into(), &"vm@s1.cow".into()));
    let expected: Vec<u8> = shown.iter().map(|b| if *b == 7 { 8 } else { *b }).collect();
    assert_eq!(read_disk(&dir.path().join("vm.cow")), expected);
}

#[test]
fn a_layer_that_moved() {
    let dir = tempdir().unwrap();
    run(dir.path(), ["create", "golden.cow", "--size", "1M", "--journal-size", "256k"]).ok();
    change(&dir.path().join("golden.cow"), &[Change::Write(0, 3, 3)], End::Closed);
    run(dir.path(), ["snapshot", "golden.cow@v1"]).ok();
    run(dir.path(), ["fork", "golden.cow@v1", "vm.cow"]).ok();
    change(&dir.path().join("vm.cow"), &[Change::Write(1, 1, 4)], End::Closed);
    let shown = read_disk(&dir.path().join("vm.cow"));
    change(&dir.path().join("golden.cow"), &[Change::Write(0, 1, 5)], End::Closed);
    run(dir.path(), ["snapshot", "golden.cow@v2"]).ok();
    fs::create_dir(dir.path().join("far")).unwrap();
    fs::rename(dir.path().join("golden@v1.cow"), dir.path().join("far/v1.cow")).unwrap();
    run(dir.path(), ["rebase", "vm.cow", "--base", "golden@v2.cow"]).fails(1, "it is layer ");
    run(dir.path(), ["rebase", "vm.cow", "--base", "golden.cow"]).fails(1, "not sealed");
    run(dir.path(), ["rebase", "vm.cow", "--base", "vm.cow", "--force"]).fails(1, "not sealed");
    run(dir.path(), ["rebase", "vm.cow", "--base", "far/v1.cow"]).ok();
    assert_eq!(read_disk(&dir.path().join("vm.cow")), shown);
    run(dir.path(), ["check", "--data", "--chain", "vm.cow"]).ok();
    run(dir.path(), ["create", "alone.cow", "--size", "1M"]).ok();
    run(dir.path(), ["rebase", "alone.cow", "--base", "far/v1.cow"]).fails(64, "it stands on nothing");
}
