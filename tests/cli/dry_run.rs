//! `--dry-run`: the refusals of the command, nothing changed, and what it would take.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::{TempDir, tempdir};

use crate::image::{Change, End, change, make};
use crate::run::{Ran, content_of, run};

/// All of a directory that a command could change: content, and inode, mode, owner, size, blocks, links and times.
fn everything(dir: &Path) -> Vec<String> {
    let facts = |entry: fs::DirEntry| {
        let meta = entry.metadata().unwrap();
        let numbers =
            [meta.ino(), meta.mode().into(), meta.uid().into(), meta.size(), meta.blocks(), meta.nlink()];
        format!("{:?} {numbers:?} {} {}", entry.file_name(), meta.mtime_nsec(), meta.ctime_nsec())
    };
    let mut all: Vec<String> = fs::read_dir(dir).unwrap().map(|entry| facts(entry.unwrap())).collect();
    all.sort();
    all.extend(content_of(dir).values().map(|bytes| format!("{:08x}", crc32fast::hash(bytes))));
    all
}

fn allocated(dir: &Path) -> i64 {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512);
    i64::try_from(files.sum::<u64>()).unwrap()
}

/// A disk with a snapshot s1 and changes since, that was closed or not; another one, and a base.
fn place(end: End) -> TempDir {
    let dir = tempdir().unwrap();
    let head = make(dir.path(), "vm.cow");
    change(&head, &[Change::Write(0, 4, 1)], End::Closed);
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    change(&head, &[Change::Write(2, 60, 2), Change::Write(100, 1, 3), Change::Discard(1, 1)], end);
    change(&make(dir.path(), "old.cow"), &[Change::Write(0, 30, 1)], End::Closed);
    fs::write(dir.path().join("base.raw"), vec![7; 100_000]).unwrap();
    dir
}

/// What can be done, and what its dry run says of it.
const DONE: &[(&[&str], &str)] = &[
    (&["snapshot", "vm.cow@s2"], "vm.cow would become vm@s2.cow, and go on as an overlay on it\n"),
    (&["snapshot", "vm.cow@s2", "old.cow@s2"], "old.cow would become old@s2.cow"),
    (&["rollback", "vm.cow@s1"], "the present would be kept as vm.cow@rollback-1 (vm@rollback-1.cow)\n"),
    (&["rollback", "vm.cow@s1", "--discard"], "the present would be lost\n"),
    (&["fork", "vm.cow@s1", "a.cow", "b.cow"], "b.cow (1.0 MiB) would be made on vm@s1.cow\n"),
    (&["fork", "vm.cow", "a.cow", "--size", "2M"], "the snapshot vm@fork-1.cow would be taken\n"),
    (&["create", "new.cow", "--size", "1G"], "new.cow (1.0 GiB) would be made\n"),
    (&["create", "new.cow", "--base", "vm@s1.cow"], "new.cow (1.0 MiB) would be made\n"),
    (&["create", "old.cow", "--base", "base.raw", "--base-format", "raw", "--force"], "old.cow (98.0 KiB)"),
    (&["resize", "vm.cow", "2M"], "would become 2.0 MiB"),
    (&["resize", "vm.cow", "512k", "--shrink"], "would be cut"),
];

#[test]
fn it_says_what_would_happen_and_changes_nothing() {
    for end in [End::Closed, End::Killed] {
        for (args, said) in DONE {
            let dir = place(end);
            let dry = || run(dir.path(), args.iter().chain([&"--dry-run"]));
            let before = everything(dir.path());
            let told = dry();
            assert!(told.ok().contains(said), "{args:?}: {told:?}");
            let json = run(dir.path(), args.iter().chain([&"--dry-run", &"--json"])).json();
            assert_eq!(everything(dir.path()), before, "{args:?}");
            assert_eq!(json["dry_run"], true, "{args:?}: {json}");
            let space = allocated(dir.path());
            run(dir.path(), args.iter()).ok();
            if args[0] == "resize" {
                continue;
            }
            let grown = allocated(dir.path()) - space;
            let bytes = |key: &str| json[key].as_i64().unwrap();
            let (needed, freed) = (bytes("bytes_needed"), bytes("bytes_freed"));
            assert!(grown <= needed - freed, "{args:?}: grown by {grown}, {json}");
            let goes = args.contains(&"--discard") || args.contains(&"--force");
            assert_eq!(freed > 0, goes, "{args:?}: {json}");
        }
    }
}

#[test]
fn a_dry_run_and_the_real_one_name_the_same() {
    let dir = place(End::Killed);
    let twice = |args: &[&str]| {
        let dry = run(dir.path(), args.iter().chain([&"--json", &"--dry-run"])).json();
        (dry, run(dir.path(), args.iter().chain([&"--json"])).json())
    };
    let (dry, real) = twice(&["snapshot", "vm.cow@s2"]);
    assert_eq!(dry["snapshots"][0]["path"], real["snapshots"][0]["path"]);
    let (dry, real) = twice(&["fork", "vm.cow", "a.cow"]);
    for key in ["parent", "snapshot_taken"] {
        assert_eq!(dry[key], real[key], "{dry} {real}");
    }
    assert_eq!((&dry["snapshot_taken"], &dry["parent"]), (&false.into(), &"vm@s2.cow".into()));
    // Nothing has changed since: nothing is kept.
    let (dry, real) = twice(&["rollback", "vm.cow@s1"]);
    assert_eq!((&dry["kept"], &real["kept"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    change(&dir.path().join("vm.cow"), &[Change::Write(9, 1, 9)], End::Killed);
    let (dry, real) = twice(&["rollback", "vm.cow@s2"]);
    for key in ["name", "path"] {
        assert_eq!(dry["kept"][key], real["kept"][key]);
    }
    assert_eq!((&dry["virtual_size"], &dry["kept"]["name"]), (&real["virtual_size"], &"rollback-1".into()));
    let (dry, real) = twice(&["create", "n.cow", "--base", "vm@s1.cow"]);
    for key in ["path", "virtual_size"] {
        assert_eq!(dry[key], real[key]);
    }
}

#[test]
fn it_refuses_what_the_command_refuses() {
    let dir = place(End::Closed);
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("text"), "no image").unwrap();
    fs::write(dir.path().join("broken.cow"), vec![0; 20_000]).unwrap();
    let cases: &[&[&str]] = &[
        &["snapshot", "vm.cow@s1"],
        &["snapshot", "vm.cow"],
        &["snapshot", "vm.cow@a/b"],
        &["snapshot", "none.cow@s"],
        &["snapshot", "sub@s"],
        &["snapshot", "broken.cow@s"],
        &["snapshot", "vm.cow@x", "vm.cow@y"],
        &["snapshot", "old.cow@s", "vm.cow@s1"],
        &["rollback", "vm.cow@none"],
        &["rollback", "vm.cow"],
        &["rollback", "none.cow@s1"],
        &["rollback", "text@s1"],
        &["fork", "vm.cow@none", "a.cow"],
        &["fork", "vm.cow", "old.cow"],
        &["fork", "vm.cow@s1", "a.cow", "a.cow"],
        &["fork", "vm.cow@s1", "none/a.cow"],
        &["fork", "vm.cow@s1", "a@b.cow"],
        &["fork", "vm.cow@s1", "a.cow", "--size", "1"],
        &["create", "old.cow", "--size", "1M"],
        &["create", "new.cow"],
        &["create", "new.cow", "--size", "1M", "--journal-size", "1k"],
        &["create", "new.cow", "--base", "vm.cow"],
        &["create", "new.cow", "--base", "base.raw"],
        &["create", "new.cow", "--base", "none.raw", "--base-format", "raw"],
        &["create", "sub", "--size", "1M", "--force"],
    ];
    for args in cases {
        // The command itself may have recovered an image, or opened and closed it.
        let before = everything(dir.path());
        let dry = run(dir.path(), args.iter().chain([&"--dry-run"]));
        assert_eq!(everything(dir.path()), before, "{args:?}");
        let real = run(dir.path(), args.iter());
        let told = |ran: &Ran| (ran.code, ran.stderr.clone(), ran.stdout.clone());
        assert_ne!(real.code, Some(0), "{args:?}");
        assert_eq!(told(&dry), told(&real), "{args:?}");
    }
}

#[test]
fn a_parent_that_is_gone_is_missed() {
    let dir = place(End::Closed);
    fs::rename(dir.path().join("vm@s1.cow"), dir.path().join("elsewhere")).unwrap();
    for args in [["snapshot", "vm.cow@s2"], ["rollback", "vm.cow@s1"]] {
        run(dir.path(), args.iter().chain([&"--dry-run"])).fails(1, "vm");
    }
}
