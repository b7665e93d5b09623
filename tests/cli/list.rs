//! `list`

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::image::{BLOCK, Change, End, change, make};
use crate::run::{keys, run};

fn file_name(value: &Value) -> String {
    value.as_str().unwrap().rsplit('/').next().unwrap().to_owned()
}

fn listed(dir: &Path, places: &[&str]) -> Value {
    run(dir, ["--json", "list"].iter().chain(places)).json()
}

/// Name, depth, what deleting it would free in blocks, and who uses it, of each snapshot of the disk `head`.
fn snapshots(list: &Value, head: &str) -> Vec<(String, u64, Option<u64>, Vec<String>)> {
    let disks = list["disks"].as_array().unwrap();
    let disk = disks.iter().find(|disk| disk["path"].as_str().is_some_and(|p| p.ends_with(head))).unwrap();
    let one = |s: &Value| {
        let blocks = s["exclusive_bytes"].as_u64().map(|bytes| bytes / BLOCK);
        let users = s["used_by"].as_array().unwrap().iter().map(file_name).collect();
        (s["name"].as_str().unwrap().to_owned(), s["depth"].as_u64().unwrap(), blocks, users)
    };
    disk["snapshots"].as_array().unwrap().iter().map(one).collect()
}

fn entry(
    name: &str,
    depth: u64,
    frees: Option<u64>,
    used_by: &[&str],
) -> (String, u64, Option<u64>, Vec<String>) {
    (name.to_owned(), depth, frees, used_by.iter().map(|s| (*s).to_owned()).collect())
}

/// `vm.cow` with the snapshots s1 (blocks 0 to 9) and s2 (5 to 14), and 12 to 13 and a discarded 0 on top; the fork
/// `fork.cow` of s1.
fn prepare(dir: &Path) {
    let head = make(dir, "vm.cow");
    change(&head, &[Change::Write(0, 10, 1)], End::Closed);
    run(dir, ["snapshot", "vm.cow@s1"]).ok();
    change(&head, &[Change::Write(5, 10, 2)], End::Closed);
    run(dir, ["snapshot", "vm.cow@s2"]).ok();
    change(&head, &[Change::Write(12, 2, 3), Change::Discard(0, 1)], End::Killed);
}

#[test]
fn what_deleting_would_free_is_what_the_layer_above_hides() {
    let dir = tempdir().unwrap();
    prepare(dir.path());
    let list = listed(dir.path(), &["vm.cow"]);
    assert_eq!(keys(&list), ["disks", "problems", "unused"]);
    assert_eq!(keys(&list["disks"][0]), ["disk_id", "head_bytes", "path", "snapshots", "stands_on"]);
    assert_eq!(
        keys(&list["disks"][0]["snapshots"][0]),
        ["created", "depth", "exclusive_bytes", "layer_id", "name", "path", "used_by"]
    );
    let expected = [entry("s2", 2, Some(2), &[]), entry("s1", 1, Some(5), &[])];
    assert_eq!(snapshots(&list, "vm.cow"), expected);
    assert_eq!(list["unused"], Value::Array(vec![]));
    let allocated = fs::metadata(dir.path().join("vm.cow")).unwrap().blocks() * 512;
    assert_eq!(list["disks"][0]["head_bytes"].as_u64(), Some(allocated));
}

#[test]
fn forks_stand_below_their_snapshot_and_use_it() {
    let dir = tempdir().unwrap();
    prepare(dir.path());
    run(dir.path(), ["fork", "vm.cow@s1", "fork.cow"]).ok();
    run(dir.path(), ["snapshot", "fork.cow@f1"]).ok();
    make(dir.path(), "alone.cow");
    fs::write(dir.path().join("notes.txt"), b"no image").unwrap();
    std::os::unix::fs::symlink("vm.cow", dir.path().join("link.cow")).unwrap();
    let list = listed(dir.path(), &["."]);
    let s1 = entry("s1", 1, None, &["fork.cow"]);
    assert_eq!(snapshots(&list, "vm.cow"), [entry("s2", 2, Some(2), &[]), s1.clone()]);
    assert_eq!(snapshots(&list, "fork.cow"), [entry("f1", 2, Some(0), &[])]);
    assert_eq!(list["disks"].as_array().unwrap().len(), 3);
    let tree = run(dir.path(), ["list", "."]);
    let names: Vec<(usize, &str)> = tree
        .ok()
        .lines()
        .map(|line| (line.len() - line.trim_start().len(), line.split_whitespace().next().unwrap()))
        .map(|(indent, name)| (indent, name.rsplit('/').next().unwrap()))
        .collect();
    let expected = [(0, "alone.cow"), (0, "vm.cow"), (2, "@s2"), (2, "@s1"), (4, "fork.cow"), (6, "@f1")];
    assert_eq!(names, expected, "{tree:?}");
    // One image: itself, and what stands on it.
    let paths = |list: &Value| -> Vec<String> {
        list["disks"].as_array().unwrap().iter().map(|disk| file_name(&disk["path"])).collect()
    };
    assert_eq!(paths(&listed(dir.path(), &["vm.cow"])), ["fork.cow", "vm.cow"]);
    assert_eq!(paths(&listed(dir.path(), &["fork.cow"])), ["fork.cow"]);
}

#[test]
fn what_no_disk_needs_can_be_removed() {
    let dir = tempdir().unwrap();
    prepare(dir.path());
    assert_eq!(run(dir.path(), ["list", "--unused", "."]).ok(), "");
    run(dir.path(), ["rollback", "vm.cow@s1"]).ok();
    // The kept one is a snapshot like others, and so is the one below it: no disk needs them.
    let list = listed(dir.path(), &["."]);
    let kept = fs::metadata(dir.path().join("vm@rollback-1.cow")).unwrap().blocks() * 512 / BLOCK;
    let expected =
        [entry("rollback-1", 3, Some(kept), &[]), entry("s2", 2, Some(2), &[]), entry("s1", 1, None, &[])];
    assert_eq!(snapshots(&list, "vm.cow"), expected);
    let unused = run(dir.path(), ["list", "--unused", "-0", "."]);
    let paths: Vec<&str> = unused.ok().split_terminator('\0').collect();
    let names: Vec<&str> = paths.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["vm@rollback-1.cow", "vm@s2.cow"]);
    paths.iter().for_each(|path| fs::remove_file(path).unwrap());
    run(dir.path(), ["check", "--data", "--chain", "vm.cow"]).ok();
    assert_eq!(run(dir.path(), ["list", "--unused", "."]).ok(), "");
}

/// A backup by hard links: the name that comes first in the directory is not the one that the disk's chain names.
#[test]
fn a_layer_with_two_names_is_one_layer_and_needed() {
    let dir = tempdir().unwrap();
    prepare(dir.path());
    fs::hard_link(dir.path().join("vm@s1.cow"), dir.path().join("backup.cow")).unwrap();
    assert_eq!(run(dir.path(), ["list", "--unused", "."]).ok(), "");
    let list = listed(dir.path(), &["."]);
    assert_eq!(snapshots(&list, "vm.cow"), [entry("s2", 2, Some(2), &[]), entry("s1", 1, Some(5), &[])]);
}

#[test]
fn nothing_counts_as_unused_while_a_chain_is_broken() {
    let dir = tempdir().unwrap();
    prepare(dir.path());
    fs::rename(dir.path().join("vm@s2.cow"), dir.path().join("..s2")).unwrap();
    // s1 is needed by what is needed by the disk.
    run(dir.path(), ["list", "--unused", "."]).fails(1, "what is unused cannot be told");
    let list = run(dir.path(), ["--json", "list", "."]);
    assert_eq!(list.code, Some(1), "{list:?}");
    let list = list.json();
    assert!(list["unused"].is_null());
    assert!(list["problems"][0].as_str().unwrap().contains("vm@s2.cow"), "{list}");
    fs::rename(dir.path().join("..s2"), dir.path().join("vm@s2.cow")).unwrap();
    // A damaged layer may be what needs the others.
    fs::set_permissions(dir.path().join("vm@s2.cow"), fs::Permissions::from_mode(0o644)).unwrap();
    for slot in 0..2 {
        crate::image::overwrite(&dir.path().join("vm@s2.cow"), slot * BLOCK + 100, &[0xff]);
    }
    run(dir.path(), ["list", "--unused", "."]).fails(1, "what is unused cannot be told");
}

#[test]
fn places_that_cannot_be_listed_are_named() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), b"no image").unwrap();
    run(dir.path(), ["list"]).fails(64, "IMAGE|DIR");
    run(dir.path(), ["list", "none"]).fails(1, "none");
    run(dir.path(), ["list", "notes.txt"]).fails(1, "not a cowdisk layer");
    assert_eq!(run(dir.path(), ["list", "."]).ok(), "");
}
