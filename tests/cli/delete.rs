//! `delete`

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use cowdisk::format::Joining;
use cowdisk::storage::uring::Uring;
use cowdisk::storage::{File, Lock, OpenHow, Storage};
use cowdisk::units::VBlock;
use tempfile::tempdir;

use crate::image::{BLOCK, Change, End, change, make, patch_superblocks, read_disk, superblock};
use crate::run::{content_of, cowdisk, finish, keys, run};

/// The names of the files in `dir`.
fn names(dir: &Path) -> Vec<String> {
    content_of(dir).into_keys().collect()
}

/// An image with the snapshots s1, s2 and s3, of `blocks` blocks each, and a change since. What the disk and the snapshots
/// show, the disk first.
fn with_snapshots(dir: &Path, blocks: [u64; 3]) -> Vec<Vec<u8>> {
    let head = make(dir, "vm.cow");
    let mut shown = Vec::new();
    for (i, blocks) in (1u8..).zip(blocks) {
        change(&head, &[Change::Write(u64::from(i), blocks, i)], End::Closed);
        shown.push(read_disk(&head));
        run(dir, ["snapshot", &format!("vm.cow@s{i}")]).ok();
    }
    change(&head, &[Change::Write(90, 2, 9), Change::Discard(4, 1)], End::Closed);
    shown.push(read_disk(&head));
    shown.rotate_right(1);
    shown
}

/// The disk, and those of the snapshots that are there, show this.
fn assert_shown(dir: &Path, shown: &[Vec<u8>], there: &[usize]) {
    assert_eq!(read_disk(&dir.join("vm.cow")), shown[0], "the disk");
    for i in there {
        assert_eq!(read_disk(&dir.join(format!("vm@s{i}.cow"))), shown[*i], "s{i}");
    }
    run(dir, ["check", "--data", "--chain", "vm.cow"]).ok();
}

#[test]
fn snapshots_go_one_after_the_other() {
    for blocks in [[60, 8, 30], [8, 60, 30]] {
        let dir = tempdir().unwrap();
        let shown = with_snapshots(dir.path(), blocks);
        assert_eq!(run(dir.path(), ["delete", "vm.cow@s2"]).ok(), "");
        assert_eq!(names(dir.path()), ["vm.cow", "vm@s1.cow", "vm@s3.cow"]);
        assert_shown(dir.path(), &shown, &[1, 3]);
        // A snapshot's file names it too.
        run(dir.path(), ["delete", "vm@s1.cow"]).ok();
        assert_eq!(names(dir.path()), ["vm.cow", "vm@s3.cow"]);
        assert_shown(dir.path(), &shown, &[3]);
        // Of the newest one a layer without a name is left, which goes with the next one.
        run(dir.path(), ["delete", "vm.cow@s3"]).ok();
        assert_eq!(names(dir.path()), ["vm.cow", "vm@~1.cow"]);
        assert_shown(dir.path(), &shown, &[]);
        run(dir.path(), ["snapshot", "vm.cow@s4"]).ok();
        run(dir.path(), ["snapshot", "vm.cow@s5"]).ok();
        run(dir.path(), ["delete", "vm.cow@s4"]).ok();
        assert_eq!(names(dir.path()), ["vm.cow", "vm@s5.cow"]);
        assert_shown(dir.path(), &shown, &[]);
        let mode = fs::metadata(dir.path().join("vm@s5.cow")).unwrap().permissions().mode();
        assert_eq!(mode & 0o222, 0, "a sealed layer has no write bits");
    }
}

#[test]
fn several_at_once() {
    let dir = tempdir().unwrap();
    let shown = with_snapshots(dir.path(), [10, 20, 30]);
    let done = run(dir.path(), ["--json", "delete", "vm.cow@s3", "vm.cow@s1"]).json();
    assert_eq!(keys(&done["deleted"][0]), ["freed_bytes", "image", "name"]);
    assert_eq!(done["deleted"][1]["name"], "s1");
    assert_shown(dir.path(), &shown, &[2]);
    assert_eq!(names(dir.path()), ["vm.cow", "vm@s2.cow", "vm@~1.cow"]);
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let dir = tempdir().unwrap();
    with_snapshots(dir.path(), [60, 8, 30]);
    let before = content_of(dir.path());
    let plan = run(dir.path(), ["--json", "delete", "--dry-run", "vm.cow@s1", "vm.cow@s3"]).json();
    let plans = plan["would_delete"].as_array().unwrap();
    let wanted = ["freed_bytes", "image", "into", "moved_bytes", "name", "needed_bytes", "path"];
    assert_eq!(keys(&plans[0]), wanted);
    // The blocks 2 to 9 of s1 are hidden by s2. What the discard of s3's block 4 hides is the head's.
    assert_eq!((&plans[0]["freed_bytes"], &plans[0]["into"]), (&(8 * BLOCK).into(), &"vm@s2.cow".into()));
    assert_eq!(plans[1]["freed_bytes"], BLOCK);
    let text = run(dir.path(), ["delete", "--dry-run", "vm.cow@s1"]);
    assert!(text.ok().starts_with("vm.cow@s1: would move up to "), "{text:?}");
    assert!(text.stdout.ends_with(" free, frees 32.0 KiB\n"), "{text:?}");
    assert_eq!(content_of(dir.path()), before);
}

#[test]
fn what_is_needed_stays() {
    let dir = tempdir().unwrap();
    let shown = with_snapshots(dir.path(), [10, 20, 30]);
    run(dir.path(), ["fork", "vm.cow@s1", "fork.cow"]).ok();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    fs::hard_link(at("vm@s3.cow"), at("sub/backup.cow")).unwrap();
    let before = content_of(dir.path());
    // The image, its status, what is said, what is to be tried.
    let cases: &[(&str, i32, &str, &str)] = &[
        ("vm.cow@none", 1, "it has no snapshot \"none\"", "try: cowdisk list 'vm.cow'"),
        ("vm.cow", 64, "a snapshot is called IMAGE@NAME", ""),
        ("none.cow@s1", 1, "none.cow", ""),
        ("vm.cow@s1", 75, "it is needed by ", "try: cowdisk list "),
        ("vm.cow@s3", 75, "its file has 2 names, the others would change with it: in another directory", ""),
        ("vm.cow@s2", 75, "its file has 2 names", ""),
        ("fork.cow@s1", 1, "it belongs to another disk", ""),
    ];
    for (given, code, fragment, hint) in cases {
        for args in [&["delete"][..], &["delete", "--dry-run"]] {
            let ran = run(dir.path(), args.iter().chain([given]));
            ran.fails(*code, fragment);
            assert!(ran.stderr.contains(hint), "{ran:?}");
        }
        assert_eq!(names(dir.path()), before.keys().cloned().collect::<Vec<_>>(), "{given}");
    }
    assert!(run(dir.path(), ["delete", "vm.cow@s1"]).stderr.contains("fork.cow"));
    run(dir.path(), ["delete", "--rate", "0", "vm.cow@s1"]).fails(64, "nothing would move");
    assert_shown(dir.path(), &shown, &[1, 2, 3]);
    fs::remove_file(at("sub/backup.cow")).unwrap();
    fs::remove_file(at("fork.cow")).unwrap();
    run(dir.path(), ["delete", "vm.cow@s1", "vm.cow@s3"]).ok();
    assert_shown(dir.path(), &shown, &[2]);
}

/// The file `path`, locked as by somebody who reads it.
fn read_by_somebody(path: &Path) -> impl File {
    let how = OpenHow { write: false, direct: false, regular_only: true };
    let file = Uring.open(path, how).unwrap();
    assert!(file.try_lock(Lock::Shared).unwrap());
    file
}

#[test]
fn what_somebody_reads_stays() {
    let dir = tempdir().unwrap();
    let shown = with_snapshots(dir.path(), [10, 20, 30]);
    for file in ["vm@s1.cow", "vm@s2.cow", "vm@s3.cow", "vm.cow"] {
        let reader = read_by_somebody(&dir.path().join(file));
        let ran = run(dir.path(), ["delete", "vm.cow@s1"]);
        ran.fails(75, "in use");
        drop(reader);
        assert_shown(dir.path(), &shown, &[1, 2, 3]);
        let joining = |file: &str| superblock(&dir.path().join(file)).joining;
        assert_eq!(["vm.cow", "vm@s1.cow", "vm@s2.cow", "vm@s3.cow"].map(joining), [None, None, None, None]);
    }
}

#[test]
fn a_snapshot_that_a_rollback_kept_goes_too() {
    let dir = tempdir().unwrap();
    let shown = with_snapshots(dir.path(), [10, 20, 30]);
    run(dir.path(), ["rollback", "vm.cow@s2"]).ok();
    run(dir.path(), ["delete", "vm.cow@s3"]).fails(75, "vm@rollback-1.cow");
    run(dir.path(), ["delete", "vm.cow@rollback-1", "vm.cow@s3"]).ok();
    assert_eq!(names(dir.path()), ["vm.cow", "vm@s1.cow", "vm@s2.cow"]);
    assert_eq!(read_disk(&dir.path().join("vm.cow")), shown[2]);
}

/// The command as another user, who may not do what root may.
fn as_nobody(dir: &Path, args: &[&str]) -> Command {
    let mut command = cowdisk(dir, args);
    command.uid(65534).gid(65534);
    command
}

#[test]
fn who_owns_the_files_may_delete() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("SKIPPED: only root can be somebody else");
        return;
    }
    let dir = tempdir().unwrap();
    let shown = with_snapshots(dir.path(), [60, 8, 30]);
    for path in
        [dir.path().to_path_buf()].into_iter().chain(names(dir.path()).iter().map(|n| dir.path().join(n)))
    {
        chown(path, Some(65534), Some(65534)).unwrap();
    }
    finish(as_nobody(dir.path(), &["delete", "vm.cow@s1", "vm.cow@s3"])).ok();
    assert_shown(dir.path(), &shown, &[2]);
    for file in ["vm@s2.cow", "vm@~1.cow"] {
        assert_eq!(fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o222, 0, "{file}");
    }
}

/// A disk of 100 MiB with the snapshots s1 and s2, of 48 MiB and 56 MiB: three chunks.
fn large(dir: &Path) -> [Vec<u8>; 2] {
    run(dir, ["create", "vm.cow", "--size", "100M"]).ok();
    let head = dir.join("vm.cow");
    let write = |from: u64, mib: u64, fill: u8| {
        let piece = |i: u64| Change::Write((from + i) * 256, 256, fill + i as u8);
        change(&head, &(0..mib).map(piece).collect::<Vec<_>>(), End::Closed);
    };
    write(0, 48, 1);
    run(dir, ["snapshot", "vm.cow@s1"]).ok();
    write(44, 56, 101);
    let then = read_disk(&head);
    run(dir, ["snapshot", "vm.cow@s2"]).ok();
    write(3, 1, 201);
    [read_disk(&head), then]
}

/// Starts a slow delete of s1, sends it `signal` when it has moved something, and waits for its end.
fn break_off(dir: &Path, signal: &str) -> Output {
    let mut command = cowdisk(dir, ["delete", "--rate", "20M", "vm.cow@s1"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    let mut part = None;
    let moved =
        |part: &Option<Joining>| matches!(part, Some(Joining::TakesLower { next, .. }) if *next > VBlock(0));
    while !moved(&part) && start.elapsed() < Duration::from_secs(60) {
        std::thread::yield_now();
        part = superblock(&dir.join("vm@s2.cow")).joining;
    }
    let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
    let ended = child.wait_with_output().unwrap();
    assert!(moved(&part), "it does not begin: {part:?}, {ended:?}");
    assert!(sent.unwrap().success());
    ended
}

#[test]
fn broken_off_it_goes_on_where_it_stopped() {
    for signal in ["KILL", "INT"] {
        let dir = tempdir().unwrap();
        let [now, then] = large(dir.path());
        let ended = break_off(dir.path(), signal);
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        if signal == "INT" {
            assert_eq!(ended.status.code(), Some(75), "{said}");
            assert!(said.contains("stopped") && said.contains("try: cowdisk delete 'vm.cow@s1'"), "{said}");
        }
        // Everything is there but the snapshot that goes, and everything else can be done.
        assert_eq!(read_disk(&dir.path().join("vm.cow")), now);
        assert_eq!(read_disk(&dir.path().join("vm@s2.cow")), then);
        let check = run(dir.path(), ["check", "--data", "--chain", "vm.cow"]);
        assert_eq!(check.code, Some(3), "{check:?}");
        assert!(check.stdout.contains("join_unfinished"), "{check:?}");
        assert!(run(dir.path(), ["list", "vm.cow"]).ok().contains("@s1"));
        assert!(run(dir.path(), ["list", "vm.cow"]).stdout.contains("being deleted"));
        run(dir.path(), ["bench", "-c", "1", "vm.cow@s1"]).fails(1, "it is being deleted");
        run(dir.path(), ["fork", "vm.cow@s2", "fork.cow"]).fails(75, "try: cowdisk delete");
        run(dir.path(), ["rollback", "vm.cow@s2"]).fails(75, "try: cowdisk delete");
        run(dir.path(), ["snapshot", "vm.cow@s3"]).ok();
        let target = superblock(&dir.path().join("vm@s2.cow")).joining;
        run(dir.path(), ["delete", "vm.cow@s1"]).ok();
        assert!(matches!(target, Some(Joining::TakesLower { .. })));
        assert_eq!(names(dir.path()), ["vm.cow", "vm@s2.cow", "vm@s3.cow"]);
        run(dir.path(), ["check", "--data", "--chain", "vm.cow"]).ok();
        assert_eq!(read_disk(&dir.path().join("vm.cow")), now);
        assert_eq!(read_disk(&dir.path().join("vm@s2.cow")), then);
    }
}

#[test]
fn notes_of_joins_that_somebody_forged() {
    let dir = tempdir().unwrap();
    let shown = with_snapshots(dir.path(), [10, 20, 30]);
    let at = |name: &str| dir.path().join(name);
    fs::write(at("precious"), b"not a layer").unwrap();
    let (s1, s2) = (superblock(&at("vm@s1.cow")), superblock(&at("vm@s2.cow")));
    let saved: Vec<_> =
        ["vm.cow", "vm@s1.cow", "vm@s2.cow", "vm@s3.cow"].map(|n| (n, fs::read(at(n)).unwrap())).into();
    let above = |file: &str| Joining::Above {
        result: s2.layer,
        lower: s1.layer,
        file: file.to_owned(),
        name: "s1".to_owned(),
    };
    // Whose note it is; whether the disk can be shown.
    let forged = [
        ("vm.cow", above("precious"), true),
        ("vm.cow", above("vm@s1.cow"), true),
        ("vm.cow", Joining::TakesLower { source: s1.layer, next: Joining::ALL }, true),
        ("vm@s2.cow", Joining::TakesLower { source: s1.layer, next: VBlock(7) }, true),
        ("vm@s1.cow", Joining::TakesUpper { source: s1.layer, next: VBlock(7) }, false),
        ("vm@s1.cow", Joining::GoesUp, false),
        ("vm@s1.cow", Joining::GoesDown, true),
    ];
    for (name, joining, shows) in forged {
        patch_superblocks(&at(name), |sb| sb.joining = Some(joining.clone()));
        for args in
            [&["info", "--chain", "vm.cow"][..], &["check", "--data", "--chain", "vm.cow"], &["list", "."]]
        {
            let ran = run(dir.path(), args);
            assert!(ran.code.is_some_and(|code| code < 4), "{joining:?}: {ran:?}");
        }
        if shows {
            assert_eq!(read_disk(&at("vm.cow")), shown[0], "{joining:?}");
        }
        let ran = run(dir.path(), ["delete", "vm.cow@s1"]);
        assert!(ran.code.is_some_and(|code| code <= 1 || code == 75), "{joining:?}: {ran:?}");
        assert_eq!(fs::read(at("precious")).unwrap(), b"not a layer");
        for (name, bytes) in &saved {
            let _ = fs::remove_file(at(name));
            fs::write(at(name), bytes).unwrap();
            let inode = fs::metadata(at(name)).unwrap().ino();
            patch_superblocks(&at(name), |sb| sb.inode = inode);
        }
    }
    // What the format does not allow is no superblock.
    for file in ["", ".", "..", "../x", "a/b"] {
        patch_superblocks(&at("vm.cow"), |sb| sb.joining = Some(above(file)));
        run(dir.path(), ["info", "vm.cow"]).fails(1, "the file of a join");
        fs::write(at("vm.cow"), &saved[0].1).unwrap();
    }
}
