//! `rollback`

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::tempdir;

use crate::image::{Change, End, change, make, superblock};
use crate::run::{content_of, keys, run};

/// Where the content of the disk's first block is, and what is in the blocks 0 to 2.
fn shown(dir: &std::path::Path, image: &str) -> Vec<(u64, String)> {
    let map = run(dir, ["--json", "map", image]).json();
    let data = |run: &&serde_json::Value| run["state"] == "data";
    let file =
        |run: &serde_json::Value| run["layer"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    map["runs"]
        .as_array()
        .unwrap()
        .iter()
        .filter(data)
        .map(|run| (run["start"].as_u64().unwrap(), file(run)))
        .collect()
}

#[test]
fn a_disk_goes_back_and_forth() {
    let dir = tempdir().unwrap();
    let head = make(dir.path(), "vm.cow");
    fs::set_permissions(&head, fs::Permissions::from_mode(0o640)).unwrap();
    change(&head, &[Change::Write(0, 1, 1)], End::Closed);
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    change(&head, &[Change::Write(2, 1, 2)], End::Killed);
    let disk = superblock(&head).disk;
    let back = run(dir.path(), ["rollback", "vm.cow@s1"]);
    assert_eq!(back.ok(), "vm.cow@rollback-1\n");
    assert!(back.stderr.contains("recovered: 1 journal records applied"), "{back:?}");
    assert_eq!(shown(dir.path(), "vm.cow"), [(0, "vm@s1.cow".to_owned())]);
    assert_eq!(superblock(&head).disk, disk);
    assert_eq!(fs::metadata(&head).unwrap().permissions().mode() & 0o777, 0o640);
    let kept = shown(dir.path(), "vm.cow@rollback-1");
    assert_eq!(kept, [(0, "vm@s1.cow".to_owned()), (8192, "vm@rollback-1.cow".to_owned())]);
    // Nothing has changed since: nothing is kept. A snapshot's file names it too.
    assert_eq!(run(dir.path(), ["rollback", "vm@rollback-1.cow"]).ok(), "");
    assert_eq!(shown(dir.path(), "vm.cow"), kept);
    run(dir.path(), ["check", "--data", "--chain", "vm.cow"]).ok();
}

#[test]
fn what_is_discarded_is_gone() {
    let dir = tempdir().unwrap();
    let head = make(dir.path(), "vm.cow");
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    change(&head, &[Change::Write(2, 1, 2)], End::Closed);
    let done = run(dir.path(), ["--json", "rollback", "--discard", "vm.cow@s1"]).json();
    assert_eq!(keys(&done), ["image", "kept", "layer_id", "name", "virtual_size"]);
    assert!(done["kept"].is_null());
    assert_eq!(done["layer_id"].as_str(), Some(superblock(&head).layer.to_string().as_str()));
    assert_eq!(content_of(dir.path()).keys().collect::<Vec<_>>(), ["vm.cow", "vm@s1.cow"]);
    assert_eq!(shown(dir.path(), "vm.cow"), []);
    change(&head, &[Change::Write(2, 1, 3)], End::Closed);
    let done = run(dir.path(), ["--json", "rollback", "vm.cow@s1"]).json();
    assert_eq!(keys(&done["kept"]), ["layer_id", "name", "path"]);
    assert_eq!(
        (&done["kept"]["name"], &done["kept"]["path"]),
        (&"rollback-1".into(), &"vm@rollback-1.cow".into())
    );
}

#[test]
fn what_cannot_be_rolled_back_stays() {
    let dir = tempdir().unwrap();
    let head = make(dir.path(), "vm.cow");
    change(&head, &[Change::Write(0, 1, 1)], End::Closed);
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    change(&head, &[Change::Write(1, 1, 1)], End::Closed);
    run(dir.path(), ["snapshot", "vm.cow@s2"]).ok();
    change(&head, &[Change::Write(2, 1, 1)], End::Closed);
    let cases: &[(&str, i32, &str)] = &[
        ("vm.cow", 64, "a snapshot is called IMAGE@NAME"),
        ("vm.cow@none", 1, "it has no snapshot \"none\""),
        ("vm.cow@", 1, "it is empty"),
        ("none.cow@s1", 1, "none.cow"),
    ];
    for (given, code, fragment) in cases {
        run(dir.path(), ["rollback", given]).fails(*code, fragment);
        run(dir.path(), ["rollback", "--discard", given]).fails(*code, fragment);
        assert_eq!(shown(dir.path(), "vm.cow").len(), 3, "{given}");
    }
    // A snapshot that stands on something that is not there would be no disk at all.
    fs::rename(dir.path().join("vm@s1.cow"), dir.path().join("elsewhere")).unwrap();
    run(dir.path(), ["rollback", "--discard", "vm.cow@s2"]).fails(1, "vm@s1.cow");
    fs::rename(dir.path().join("elsewhere"), dir.path().join("vm@s1.cow")).unwrap();
    assert_eq!(shown(dir.path(), "vm.cow").len(), 3);
    let names: Vec<_> = content_of(dir.path()).into_keys().collect();
    assert_eq!(names, ["vm.cow", "vm@s1.cow", "vm@s2.cow"]);
}
