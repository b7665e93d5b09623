//! `snapshot`

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tempfile::tempdir;

use crate::image::{Change, End, change, make, superblock};
use crate::run::{content_of, run};

#[test]
fn the_disk_goes_on_and_the_snapshot_stays() {
    let dir = tempdir().unwrap();
    let head = make(dir.path(), "vm.cow");
    fs::set_permissions(&head, fs::Permissions::from_mode(0o620)).unwrap();
    change(&head, &[Change::Write(3, 1, 1)], End::Closed);
    let disk = superblock(&head).disk;
    assert_eq!(run(dir.path(), ["snapshot", "vm.cow@s1"]).ok(), "vm@s1.cow\n");
    let (old, new) = (superblock(&dir.path().join("vm@s1.cow")), superblock(&head));
    assert_eq!((old.disk, new.disk), (disk, disk));
    assert_eq!(old.sealed.unwrap().name, "s1");
    assert_eq!(fs::metadata(&head).unwrap().mode() & 0o777, 0o620);
    assert_eq!(fs::metadata(dir.path().join("vm@s1.cow")).unwrap().mode() & 0o777, 0o400);
    assert_eq!(new.inode, fs::metadata(&head).unwrap().ino());
    let sealed = fs::read(dir.path().join("vm@s1.cow")).unwrap();
    change(&head, &[Change::Write(3, 1, 2)], End::Closed);
    assert_eq!(fs::read(dir.path().join("vm@s1.cow")).unwrap(), sealed);
    run(dir.path(), ["check", "--data", "--chain", "vm.cow"]).ok();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn several_images_at_once_and_one_that_died() {
    let dir = tempdir().unwrap();
    make(dir.path(), "a.cow");
    let b = make(dir.path(), "b.cow");
    change(&b, &[Change::Write(3, 2, 7)], End::Killed);
    let taken = run(dir.path(), ["snapshot", "--json", "a.cow@now", "b.cow@now"]);
    assert!(taken.stderr.contains("recovered"), "{taken:?}");
    let list = taken.json()["snapshots"].as_array().unwrap().clone();
    let paths: Vec<&str> = list.iter().map(|s| s["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["a@now.cow", "b@now.cow"]);
    let map = run(dir.path(), ["map", "b.cow"]).stdout;
    assert!(map.contains("b@now.cow"), "{map}");
}

#[test]
fn names_that_cannot_be_are_refused_and_nothing_is_made() {
    let dir = tempdir().unwrap();
    let head = make(dir.path(), "vm.cow");
    change(&head, &[Change::Write(0, 1, 1)], End::Closed);
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    fs::rename(dir.path().join("vm@s1.cow"), dir.path().join("elsewhere@x.cow")).unwrap();
    fs::write(dir.path().join("vm@taken.cow"), b"not ours").unwrap();
    let before = content_of(dir.path());
    let long = format!("vm.cow@{}", "x".repeat(101));
    let cases: &[(&[&str], i32, &str)] = &[
        (&["vm.cow"], 64, "IMAGE@NAME"),
        (&["vm@s1.cow"], 1, "it is the snapshot of that name"),
        (&[], 64, "IMAGE@NAME"),
        (&["vm.cow@"], 1, "empty"),
        (&["vm.cow@.hidden"], 1, "begins with"),
        (&["vm.cow@-x"], 1, "begins with"),
        (&["vm.cow@a\nb"], 1, "control character"),
        (&[&long], 1, "longer than 100"),
        (&["@s2"], 1, "no image"),
        (&["none.cow@s2"], 1, "none.cow"),
        (&["vm.cow@taken"], 1, "vm@taken.cow: it exists"),
        (&["vm.cow@s1"], 1, "elsewhere@x.cow: it is the snapshot of that name"),
        (&["vm.cow@a", "./vm.cow@b"], 64, "one snapshot"),
        (&["elsewhere@x.cow@s2"], 1, "never opened for writing"),
    ];
    for (args, code, fragment) in cases {
        run(dir.path(), ["snapshot"].iter().chain(*args)).fails(*code, fragment);
        assert_eq!(content_of(dir.path()), before, "{args:?}");
    }
}
