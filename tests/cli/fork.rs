//! `fork`

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tempfile::tempdir;

use crate::image::{Change, End, change, make, superblock};
use crate::run::{content_of, run};

#[test]
fn forks_share_what_was_there_and_go_their_own_ways() {
    let dir = tempdir().unwrap();
    let head = make(dir.path(), "vm.cow");
    change(&head, &[Change::Write(3, 1, 1)], End::Closed);
    assert_eq!(run(dir.path(), ["fork", "vm.cow", "a.cow", "b.cow"]).ok(), "a.cow\nb.cow\n");
    let sealed = fs::read(dir.path().join("vm@fork-1.cow")).unwrap();
    let [a, b] = ["a.cow", "b.cow"].map(|name| dir.path().join(name));
    let (vm, first, second) = (superblock(&head), superblock(&a), superblock(&b));
    assert!(vm.disk != first.disk && first.disk != second.disk);
    assert_eq!(first.parent, second.parent);
    change(&a, &[Change::Write(3, 1, 2)], End::Closed);
    change(&b, &[Change::Write(5, 1, 3)], End::Killed);
    for (name, at_3, at_5) in
        [("vm.cow", "vm@fork-1.cow", ""), ("a.cow", "a.cow", ""), ("b.cow", "vm@fork-1.cow", "b.cow")]
    {
        let map = run(dir.path(), ["--json", "map", name]).json();
        let layer = |block: u64| {
            let runs = map["runs"].as_array().unwrap();
            let inside = |run: &&serde_json::Value| {
                let (start, length) = (run["start"].as_u64().unwrap(), run["length"].as_u64().unwrap());
                (start..start + length).contains(&(block * 4096))
            };
            let path = runs.iter().find(inside).unwrap()["layer"].as_str().unwrap_or_default().to_owned();
            path.rsplit('/').next().unwrap().to_owned()
        };
        assert_eq!((layer(3).as_str(), layer(5).as_str()), (at_3, at_5), "{name}: {map}");
    }
    assert_eq!(fs::read(dir.path().join("vm@fork-1.cow")).unwrap(), sealed);
    for name in ["vm.cow", "a.cow"] {
        run(dir.path(), ["check", "--data", "--chain", name]).ok();
    }
}

#[test]
fn a_snapshot_is_taken_only_if_something_has_changed() {
    let dir = tempdir().unwrap();
    let head = make(dir.path(), "vm.cow");
    change(&head, &[Change::Write(3, 1, 1)], End::Closed);
    let fork = |new: &str| run(dir.path(), ["--json", "fork", "vm.cow", new]).json();
    let first = fork("a.cow");
    assert_eq!((&first["snapshot_taken"], first["parent"].as_str()), (&true.into(), Some("vm@fork-1.cow")));
    let second = fork("b.cow");
    assert_eq!((&second["snapshot_taken"], &second["parent"]), (&false.into(), &first["parent"]));
    change(&head, &[Change::Write(3, 1, 2)], End::Killed);
    let third = fork("c.cow");
    assert_eq!(third["parent"].as_str(), Some("vm@fork-2.cow"));
    assert_eq!(fork("d.cow")["parent"], third["parent"]);
    // By name, and by the file of a snapshot; larger, and never smaller than a sector.
    let named = run(dir.path(), ["--json", "fork", "vm.cow@fork-1", "e.cow", "--size", "1G"]).json();
    assert_eq!(
        (&named["parent"], named["forks"][0]["virtual_size"].as_u64()),
        (&first["parent"], Some(1 << 30))
    );
    assert_eq!(run(dir.path(), ["fork", "vm@fork-2.cow", "f.cow"]).ok(), "f.cow\n");
}

#[test]
fn a_fork_costs_next_to_nothing_also_of_what_may_not_be_written() {
    let dir = tempdir().unwrap();
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    let head = make(&images, "golden.cow");
    change(&head, &[Change::Write(3, 1, 1)], End::Closed);
    run(dir.path(), ["snapshot", "images/golden.cow@v1"]).ok();
    fs::set_permissions(&images, fs::Permissions::from_mode(0o555)).unwrap();
    let before = content_of(&images);
    run(dir.path(), ["fork", "images/golden@v1.cow", "a.cow"]).ok();
    run(dir.path(), ["fork", "images/golden.cow@v1", "b.cow"]).ok();
    assert_eq!(content_of(&images), before);
    for name in ["a.cow", "b.cow"] {
        let meta = fs::metadata(dir.path().join(name)).unwrap();
        assert!(meta.blocks() * 512 <= 64 << 10, "{name}: {} bytes", meta.blocks() * 512);
    }
    fs::set_permissions(&images, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_cannot_be_forked_leaves_everything_as_it_was() {
    let dir = tempdir().unwrap();
    let head = make(dir.path(), "vm.cow");
    change(&head, &[Change::Write(0, 1, 1)], End::Closed);
    fs::write(dir.path().join("taken.cow"), b"not ours").unwrap();
    fs::write(dir.path().join("raw.img"), vec![7; 1 << 20]).unwrap();
    let before = content_of(dir.path());
    let cases: &[(&[&str], i32, &str)] = &[
        (&["vm.cow"], 64, "NEW"),
        (&["vm.cow", "taken.cow"], 1, "taken.cow: it exists"),
        (&["vm.cow", "a.cow", "taken.cow"], 1, "taken.cow: it exists"),
        (&["vm.cow@none", "a.cow"], 1, "no snapshot"),
        (&["none.cow", "a.cow"], 1, "none.cow"),
        (&["raw.img", "a.cow"], 1, "raw.img"),
        (&["vm.cow", "a.cow", "--size", "100"], 64, "100"),
    ];
    for (args, code, fragment) in cases {
        run(dir.path(), ["fork"].iter().chain(*args)).fails(*code, fragment);
        assert_eq!(content_of(dir.path()), before, "{args:?}");
    }
    // A snapshot taken for forks that then could not be made stays; the forks do not.
    run(dir.path(), ["fork", "vm.cow", "a.cow", "b@x.cow"]).fails(1, "b@x.cow");
    run(dir.path(), ["fork", "vm.cow", "c.cow", "missing/d.cow"]).fails(1, "missing");
    let names: Vec<_> = content_of(dir.path()).keys().cloned().collect();
    assert_eq!(names.len(), 4, "{names:?}");
}
