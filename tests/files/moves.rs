//! `mv` of an image, of a snapshot, of everything; odd names.

use crate::bench::Bench;
use crate::{assert_disk, assert_goes_on, disk, fill, sh, shown};

#[test]
fn an_image_finds_its_snapshots_wherever_it_goes() {
    let bench = Bench::new();
    disk(&bench, "a/vm.cow");
    sh(&bench.path(""), "mkdir -p b/c");
    // The head alone: the recorded absolute place is still right.
    sh(&bench.path(""), "mv a/vm.cow b/c/disk.cow");
    assert_eq!(shown(&bench, "b/c/disk.cow"), 3);
    assert_eq!(shown(&bench, "b/c/disk.cow@s1"), 1);
    sh(&bench.path(""), "mv b/c/disk.cow a/vm.cow");
    // The whole directory: the relative places are.
    sh(&bench.path(""), "mv a elsewhere");
    assert_disk(&bench, "elsewhere/vm.cow");
    // All of it file by file, into another directory.
    sh(&bench.path(""), "mkdir 'with blanks' && mv elsewhere/* 'with blanks'");
    assert_disk(&bench, "with blanks/vm.cow");
    assert_goes_on(&bench, "with blanks/vm.cow");
}

#[test]
fn a_snapshot_that_was_moved_is_missed_by_name_and_found_where_it_is_said_to_be() {
    let bench = Bench::new();
    disk(&bench, "vm.cow");
    sh(&bench.path(""), "mkdir archive && mv vm@s1.cow archive/");
    let missing = bench.run(["check", "vm.cow", "--chain"]);
    assert_ne!(missing.code, 0, "{missing:?}");
    let refused = bench.run(["--json", "snapshot", "vm.cow@s3"]).expect(1);
    assert!(refused.stderr.contains("\"parent_missing\""), "{refused:?}");
    assert!(refused.stderr.contains("vm@s1.cow") && refused.stderr.contains("COWDISK_PATH="), "{refused:?}");
    let told = bench.cowdisk(["info", "--chain", "vm.cow"]).env("COWDISK_PATH", "archive").output().unwrap();
    assert!(told.status.success() && String::from_utf8_lossy(&told.stdout).contains("archive/vm@s1.cow"));
    sh(&bench.path(""), "mv archive/vm@s1.cow .");
    assert_disk(&bench, "vm.cow");
    // Another file under its name is not it.
    bench.image("other.cow", 16 << 20);
    sh(&bench.path(""), "mv vm@s1.cow aside && cp other.cow vm@s1.cow");
    let refused = bench.run(["--json", "snapshot", "vm.cow@s3"]).expect(1);
    assert!(refused.stderr.contains("\"parent_changed\""), "{refused:?}");
    sh(&bench.path(""), "mv -f aside vm@s1.cow");
    assert_disk(&bench, "vm.cow");
}

/// A file that is open stays what it is, whatever its name; but names are not changed on somebody else's file.
#[test]
fn an_image_that_moves_while_it_is_served_goes_on_and_is_left_alone() {
    let bench = Bench::new();
    disk(&bench, "a/vm.cow");
    let daemon = bench.serve(["a/vm.cow"]);
    sh(&bench.path(""), "mv a b");
    fill(&daemon, 4);
    assert_ne!(bench.run(["snapshot", "b/vm.cow@s3"]).code, 0);
    assert_ne!(bench.run(["rollback", "b/vm.cow@s1"]).code, 0);
    assert_eq!(bench.names("b"), ["vm.cow", "vm@s1.cow", "vm@s2.cow"]);
    sh(&bench.path(""), "mv b a");
    bench.run(["snapshot", "a/vm.cow@s3"]).expect(0);
    // A snapshot may even lose its name for a while.
    sh(&bench.path(""), "mv a/vm@s1.cow a/gone");
    fill(&daemon, 5);
    sh(&bench.path(""), "mv a/gone a/vm@s1.cow");
    daemon.terminate();
    assert_eq!((shown(&bench, "a/vm.cow"), shown(&bench, "a/vm.cow@s3")), (5, 4));
    bench.run(["check", "a/vm.cow", "--data", "--chain"]).expect(0);
}
