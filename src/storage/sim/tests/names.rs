//! Directory operations: visible at once, durable after a sync, each lost alone.

use std::collections::BTreeSet;

use super::*;
use crate::storage::FileKind;
use crate::storage::sim::Crash;

fn path(name: &str) -> &Path {
    Path::new(name)
}

/// The names and first bytes of what a directory holds.
fn view(disk: &SimDisk, dir: &str) -> String {
    let names = disk.list(path(dir)).unwrap();
    let entry = |name: &String| {
        let content = disk.read_file(path(dir).join(name)).unwrap();
        format!("{name}={}", String::from_utf8_lossy(&content))
    };
    names.iter().map(entry).collect::<Vec<_>>().join(" ")
}

fn views(disk: &SimDisk, dir: &str) -> BTreeSet<String> {
    SEEDS.map(|seed| view(&disk.crash(Crash::PowerLoss, seed), dir)).collect()
}

fn set(views: &[&str]) -> BTreeSet<String> {
    views.iter().map(|view| (*view).to_owned()).collect()
}

#[test]
fn an_operation_is_visible_at_once_and_durable_after_the_sync() {
    let disk = SimDisk::new(1);
    disk.put_file("d/old", b"old");
    disk.unlink(path("d/old")).unwrap();
    assert_eq!(view(&disk, "d"), "");
    assert_eq!(views(&disk, "d"), set(&["", "old=old"]));
    disk.sync_dir(path("elsewhere")).unwrap();
    assert_eq!(views(&disk, "d"), set(&["", "old=old"]));
    disk.sync_dir(path("/d/")).unwrap();
    assert_eq!(views(&disk, "d"), set(&[""]));
}

#[test]
fn each_operation_is_lost_alone() {
    let disk = SimDisk::new(1);
    disk.put_file("d/vm", b"H");
    let file = disk.create(path("d/tmp"), 0o600).unwrap();
    file.set_len(0).unwrap();
    disk.link(path("d/vm"), path("d/vm@s1")).unwrap();
    disk.rename(path("d/tmp"), path("d/vm")).unwrap();
    assert_eq!(view(&disk, "d"), "vm= vm@s1=H");
    let expected = set(&[
        "vm=H",
        "tmp= vm=H",
        "vm=H vm@s1=H",
        "tmp= vm=H vm@s1=H",
        // The rename without the link: the old head has no name.
        "vm=",
        "vm= vm@s1=H",
    ]);
    assert_eq!(views(&disk, "d"), expected);
    disk.sync_dir(path("d")).unwrap();
    assert_eq!(views(&disk, "d"), set(&["vm= vm@s1=H"]));
}

#[test]
fn a_rename_between_directories_is_two_operations() {
    let disk = SimDisk::new(1);
    disk.put_file("a/x", b"x");
    disk.rename(path("a/x"), path("b/y")).unwrap();
    let both = |disk: &SimDisk| format!("{};{}", view(disk, "a"), view(disk, "b"));
    let seen: BTreeSet<String> = SEEDS.map(|seed| both(&disk.crash(Crash::PowerLoss, seed))).collect();
    assert_eq!(seen, set(&["x=x;", ";y=x", "x=x;y=x", ";"]));
    disk.sync_dir(path("b")).unwrap();
    let seen: BTreeSet<String> = SEEDS.map(|seed| both(&disk.crash(Crash::PowerLoss, seed))).collect();
    assert_eq!(seen, set(&[";y=x", "x=x;y=x"]));
}

#[test]
fn a_dead_process_leaves_names_as_they_are_and_still_not_durable() {
    let disk = SimDisk::new(1);
    disk.create(path("d/new"), 0o600).unwrap();
    let dead = disk.crash(Crash::ProcessDeath, 1);
    assert_eq!(view(&dead, "d"), "new=");
    assert_eq!(views(&dead, "d"), set(&["", "new="]));
    dead.sync_dir(path("d")).unwrap();
    assert_eq!(views(&dead, "d"), set(&["new="]));
}

#[test]
fn a_name_may_survive_without_the_content_and_the_content_without_the_name() {
    let disk = SimDisk::new(1);
    let file = disk.create(path("d/new"), 0o600).unwrap();
    disk.block_on(write_all(&file, bytes(b'n', 512), 0)).0.unwrap();
    disk.sync_dir(path("d")).unwrap();
    let sizes: BTreeSet<u64> =
        SEEDS.map(|seed| disk.crash(Crash::PowerLoss, seed).meta(path("d/new")).unwrap().len).collect();
    assert_eq!(sizes, BTreeSet::from([0, 512]));
    let other = disk.create(path("d/other"), 0o600).unwrap();
    disk.block_on(write_all(&other, bytes(b'o', 512), 0)).0.unwrap();
    sync(&disk, &other);
    let there: BTreeSet<Option<usize>> = SEEDS
        .map(|seed| disk.crash(Crash::PowerLoss, seed).read_file("d/other").map(|content| content.len()))
        .collect();
    assert_eq!(there, BTreeSet::from([None, Some(512)]));
}

#[test]
fn an_unlinked_file_lives_while_it_is_open_and_may_come_back() {
    let disk = SimDisk::new(1);
    disk.put_file("f", b"before");
    let file = open(&disk, "f");
    disk.unlink(path("f")).unwrap();
    assert_eq!(file.meta().unwrap().links, 0);
    write(&disk, &file, 0, b'x', 1);
    assert_eq!(read(&disk, &file, 0, 6), b"xefore");
    sync(&disk, &file);
    assert_eq!(views(&disk, "/"), set(&["", "f=xefore"]));
    let dead = disk.crash(Crash::ProcessDeath, 3);
    assert_eq!(views(&dead, "/"), set(&["", "f=xefore"]));
    disk.sync_dir(path(".")).unwrap();
    assert_eq!(read(&disk, &file, 0, 6), b"xefore");
    assert_eq!(views(&disk, "/"), set(&[""]));
}

#[test]
fn errors_are_those_of_linux() {
    let disk = SimDisk::new(1);
    disk.put_file("d/f", b"");
    disk.put_file("g", b"");
    disk.put_special("fifo", FileKind::Other);
    disk.symlink("loop", "loop");
    disk.symlink("link", "d/f");
    let regular = OpenHow { regular_only: true, ..OpenHow::default() };
    let open = |name, how| disk.open(path(name), how).err().and_then(|error| error.raw_os_error());
    assert_eq!(open("none", OpenHow::default()), Some(libc::ENOENT));
    assert_eq!(open("d", OpenHow::default()), Some(libc::EISDIR));
    assert_eq!(open("g/f", OpenHow::default()), Some(libc::ENOTDIR));
    assert_eq!(open("loop", OpenHow::default()), Some(libc::ELOOP));
    assert_eq!(open("link", regular), Some(libc::ELOOP));
    assert!(disk.open(path("fifo"), regular).is_err() && disk.open(path("d"), regular).is_err());
    assert!(disk.open(path("link"), OpenHow::default()).is_ok() && disk.open(path("d/f"), regular).is_ok());
    let code = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(code(disk.create(path("link"), 0).map(drop)), Some(libc::EEXIST));
    assert_eq!(code(disk.create(path(&"n".repeat(256)), 0).map(drop)), Some(libc::ENAMETOOLONG));
    assert_eq!(code(disk.link(path("g"), path("d/f"))), Some(libc::EEXIST));
    assert_eq!(code(disk.rename(path("none"), path("x"))), Some(libc::ENOENT));
    assert_eq!(code(disk.rename(path("g"), path("d"))), Some(libc::EISDIR));
    assert_eq!(code(disk.unlink(path("none"))), Some(libc::ENOENT));
    assert_eq!(code(disk.canonical(path("d/none")).map(drop)), Some(libc::ENOENT));
    assert_eq!(code(disk.list(path("g")).map(drop)), Some(libc::ENOTDIR));
}

#[test]
fn symbolic_links_are_followed_where_linux_does() {
    let disk = SimDisk::new(1);
    disk.put_file("real/f", b"f");
    disk.symlink("dir", "real");
    disk.symlink("real/up", "../top");
    disk.symlink("top", "/real/f");
    let canonical = |name: &str| disk.canonical(path(name)).unwrap().to_string_lossy().into_owned();
    assert_eq!(canonical("dir/f"), "/real/f");
    assert_eq!(canonical("dir/up"), "/real/f");
    assert_eq!(canonical("dir/.."), "/");
    disk.rename(path("dir/f"), path("dir/g")).unwrap();
    assert_eq!(disk.list(path("/dir")).unwrap(), ["g", "up"]);
    assert_eq!(disk.list(path("")).unwrap(), ["dir", "real", "top"]);
    disk.unlink(path("top")).unwrap();
    assert_eq!(disk.read_file("real/g").unwrap(), b"f");
}

#[test]
fn a_block_device_keeps_the_content_of_the_file_it_replaces() {
    let disk = SimDisk::new(1);
    disk.put_file("dev", b"raw");
    disk.put_special("dev", FileKind::BlockDevice);
    let file = disk.open(path("dev"), OpenHow::default()).unwrap();
    let meta = file.meta().unwrap();
    assert_eq!((meta.kind, meta.len), (FileKind::BlockDevice, 3));
    assert!(disk.open(path("dev"), OpenHow { regular_only: true, ..OpenHow::default() }).is_err());
    disk.put_special("empty", FileKind::Directory);
    assert_eq!(disk.list(path("empty")).unwrap(), [""; 0]);
    assert_eq!(disk.meta(path("empty")).unwrap().kind, FileKind::Directory);
}

#[test]
fn hard_links_are_one_file() {
    let disk = SimDisk::new(1);
    disk.put_file("a", b"1");
    disk.link(path("a"), path("b")).unwrap();
    write(&disk, &open(&disk, "b"), 0, b'2', 1);
    assert_eq!(disk.read_file("a").unwrap(), b"2");
    // rename(2): two names of one file stay as they are.
    disk.rename(path("a"), path("b")).unwrap();
    assert_eq!(disk.meta(path("a")).unwrap().links, 2);
    disk.unlink(path("a")).unwrap();
    assert_eq!(disk.meta(path("b")).unwrap().links, 1);
}
