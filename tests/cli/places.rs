//! Where images may lie, and what else a path may name.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::tempdir;

use crate::image::{Change, End, change, make, superblock};
use crate::run::{content_of, run};

/// Makes, changes, snapshots and checks an image in `dir`.
fn life(dir: &Path) {
    make(dir, "vm.cow");
    change(&dir.join("vm.cow"), &[Change::Write(0, 4, 1)], End::Closed);
    run(dir, ["snapshot", "vm.cow@s1"]).ok();
    change(&dir.join("vm.cow"), &[Change::Write(2, 1, 2)], End::Closed);
    run(dir, ["check", "--data", "--chain", "vm.cow"]).ok();
    let absolute = dir.join("vm.cow@s1");
    assert!(run(Path::new("/"), [Path::new("info"), &absolute]).ok().contains("vm@s1.cow"));
    run(dir, ["map", "vm.cow"]).ok();
}

#[test]
fn blanks_ats_and_depth_in_directories() {
    let dir = tempdir().unwrap();
    let odd = ["with blanks", "user@host", "@", "a'b\"c", "-x", "ü\u{301}", "vm@s1.cow"];
    for name in odd {
        let sub = dir.path().join(name);
        fs::create_dir(&sub).unwrap();
        life(&sub);
    }
    let mut deep = dir.path().to_path_buf();
    // The absolute path of a parent is no hint any more when it is so long; the relative one is.
    while deep.as_os_str().len() < 1400 {
        deep.push("d".repeat(200));
    }
    fs::create_dir_all(&deep).unwrap();
    life(&deep);
}

#[test]
fn names_that_are_not_text() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempdir().unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"v\xffm.cow");
    run(dir.path(), [std::ffi::OsStr::new("create"), odd, "--size".as_ref(), "1M".as_ref()])
        .fails(1, "UTF-8");
    fs::rename(make(dir.path(), "vm.cow"), dir.path().join(odd)).unwrap();
    run(dir.path(), [std::ffi::OsStr::new("info"), odd]).ok();
    run(dir.path(), [std::ffi::OsStr::new("check"), odd]).ok();
    let snapshot = std::ffi::OsStr::from_bytes(b"v\xffm.cow@s1");
    assert_eq!(run(dir.path(), [std::ffi::OsStr::new("snapshot"), snapshot]).code, Some(64));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn the_longest_names() {
    let dir = tempdir().unwrap();
    let name = format!("{}.cow", "n".repeat(251));
    let image = make(dir.path(), &name);
    assert!(image.exists());
    run(dir.path(), ["snapshot", &format!("{name}@s1")]).fails(1, "too long");
    let name = format!("{}.cow", "n".repeat(245));
    make(dir.path(), &name);
    run(dir.path(), ["snapshot", &format!("{name}@s1")]).ok();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    run(dir.path(), ["create", &"n".repeat(256), "--size", "1M"]).fails(1, "name too long");
}

#[test]
fn a_symbolic_link_stands_for_its_file() {
    let dir = tempdir().unwrap();
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    fs::create_dir(&real).unwrap();
    fs::create_dir(&link).unwrap();
    make(&real, "vm.cow");
    symlink("../real/vm.cow", link.join("disk.cow")).unwrap();
    let taken = run(&link, ["snapshot", "disk.cow@s1"]);
    let expected = fs::canonicalize(&real).unwrap().join("vm@s1.cow");
    assert_eq!(taken.ok().trim_end(), expected.to_str().unwrap());
    assert!(fs::symlink_metadata(link.join("disk.cow")).unwrap().is_symlink());
    assert_eq!(fs::read_dir(&link).unwrap().count(), 1);
    run(&link, ["check", "--chain", "disk.cow"]).ok();
    // Creating through a link is creating its file, which is there.
    run(&link, ["create", "disk.cow", "--size", "1M"]).fails(1, "exists");
    symlink("nowhere", link.join("dangling.cow")).unwrap();
    run(&link, ["create", "dangling.cow", "--size", "1M", "--force"]).fails(1, "exists");
    run(&link, ["info", "dangling.cow"]).fails(1, "dangling.cow");
    symlink("loop.cow", link.join("loop.cow")).unwrap();
    run(&link, ["info", "loop.cow"]).fails(1, "loop.cow");
}

#[test]
fn things_that_are_no_image() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("empty"), b"").unwrap();
    fs::write(dir.path().join("text"), "hello ".repeat(5000)).unwrap();
    fs::write(dir.path().join("zeros"), vec![0; 20_000]).unwrap();
    assert!(Command::new("mkfifo").arg(dir.path().join("fifo")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let before = content_of(dir.path());
    let cases = [
        ("sub", "a directory"),
        (".", "a directory"),
        ("fifo", "a FIFO"),
        ("socket", "a FIFO, socket or device"),
        ("/dev/null", "a FIFO, socket or device"),
        ("empty", "not a cowdisk layer"),
        ("text", "not a cowdisk layer"),
        ("zeros", "not a cowdisk layer"),
        ("none", "No such file"),
        ("text/vm.cow", "Not a directory"),
    ];
    for (image, fragment) in cases {
        for args in [&["info"][..], &["info", "--files"], &["check"], &["map"], &["bench"], &["bench", "-w"]]
        {
            let ran = run(dir.path(), args.iter().chain([&image]));
            ran.fails(1, fragment);
            assert!(ran.took < Duration::from_secs(2), "{image}: {ran:?}");
        }
        if image != "." {
            run(dir.path(), ["snapshot", &format!("{image}@s")]).fails(1, fragment);
        }
        assert_eq!(content_of(dir.path()), before, "{image}");
    }
    assert!(fs::symlink_metadata(dir.path().join("fifo")).unwrap().file_type().is_fifo());
}

#[test]
fn a_snapshots_file_is_read_and_never_written() {
    let dir = tempdir().unwrap();
    let image = make(dir.path(), "vm.cow");
    change(&image, &[Change::Write(0, 4, 1)], End::Closed);
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    let before = content_of(dir.path());
    run(dir.path(), ["bench", "vm@s1.cow", "-c", "10"]).ok();
    run(dir.path(), ["bench", "vm.cow@s1", "-c", "10"]).ok();
    run(dir.path(), ["check", "--data", "vm@s1.cow"]).ok();
    run(dir.path(), ["bench", "-w", "vm@s1.cow"]).fails(1, "never opened for writing");
    fs::copy(dir.path().join("vm@s1.cow"), dir.path().join("copy.cow")).unwrap();
    run(dir.path(), ["bench", "-w", "copy.cow"]).fails(1, "a sealed layer");
    fs::remove_file(dir.path().join("copy.cow")).unwrap();
    assert_eq!(content_of(dir.path()), before);
}

fn am_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn a_file_of_another_owner_keeps_its_owner() {
    if !am_root() {
        eprintln!("SKIPPED: only root can give files away");
        return;
    }
    let dir = tempdir().unwrap();
    let image = make(dir.path(), "vm.cow");
    chown(&image, Some(1234), Some(4321)).unwrap();
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    for file in ["vm.cow", "vm@s1.cow"] {
        let meta = fs::metadata(dir.path().join(file)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 4321), "{file}");
    }
}

#[test]
fn an_access_list_is_kept() {
    let dir = tempdir().unwrap();
    let image = make(dir.path(), "vm.cow");
    // user::rw-, user:1234:rw-, group::r--, mask::rw-, other::---, as the kernel has it.
    let list = "0200000001000600ffffffff02000600d204000004000400ffffffff10000600ffffffff20000000ffffffff";
    let name = "system.posix_acl_access";
    let script = "import os,sys; os.setxattr(sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]))";
    let set = Command::new("python3").args(["-c", script]).arg(&image).args([name, list]).output();
    if !set.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: no python3, or a file system without access lists");
        return;
    }
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    let script = "import os,sys; print(os.getxattr(sys.argv[1], sys.argv[2]).hex())";
    let got = Command::new("python3").args(["-c", script]).arg(&image).arg(name).output().unwrap();
    assert_eq!(String::from_utf8(got.stdout).unwrap().trim(), list);
}

#[test]
fn a_head_that_is_a_mount_point_is_refused() {
    let dir = tempdir().unwrap();
    let image = make(dir.path(), "vm.cow");
    let mount = dir.path().join("bound file.cow");
    fs::write(&mount, b"").unwrap();
    let bound = Command::new("mount").arg("--bind").args([&image, &mount]).output();
    if !bound.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: this user cannot bind-mount a file");
        return;
    }
    let ran = run(dir.path(), ["snapshot", "bound file.cow@s1"]);
    let disk = superblock(&mount).disk;
    let names = fs::read_dir(dir.path()).unwrap().count();
    let unmounted = Command::new("umount").arg(&mount).status().unwrap();
    ran.fails(1, "mount point");
    assert!(unmounted.success());
    assert_eq!((names, superblock(&image).disk), (2, disk));
}
