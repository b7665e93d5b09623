//! `create`

use std::fs;
use std::os::unix::fs::MetadataExt;

use tempfile::tempdir;

use crate::image::{Change, End, change, make, read_disk, superblock};
use crate::run::{content_of, cowdisk, finish, keys, run};

#[test]
fn an_empty_image_has_its_size_and_prints_its_path() {
    let dir = tempdir().unwrap();
    let made = run(dir.path(), ["create", "vm.cow", "--size", "20G"]);
    assert_eq!(made.ok(), "vm.cow\n");
    assert_eq!(superblock(&dir.path().join("vm.cow")).virtual_size, 20 << 30);
    let made = run(dir.path(), ["create", "b.cow", "--size", "1M", "--sector-size", "4096", "--json"]).json();
    assert_eq!(keys(&made), ["disk_id", "layer_id", "path", "virtual_size"]);
    assert_eq!((&made["path"], &made["virtual_size"]), (&"b.cow".into(), &(1 << 20).into()));
    let sb = superblock(&dir.path().join("b.cow"));
    assert_eq!((sb.sector_size, made["disk_id"].as_str()), (4096, Some(sb.disk.to_string().as_str())));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something is left behind");
}

#[test]
fn a_new_file_follows_the_umask_and_is_sparse() {
    let dir = tempdir().unwrap();
    let mut command = std::process::Command::new("sh");
    let script = format!("umask 027; exec '{}' create vm.cow --size 1T", env!("CARGO_BIN_EXE_cowdisk"));
    command.args(["-c", &script]).current_dir(dir.path());
    finish(command).ok();
    let meta = fs::metadata(dir.path().join("vm.cow")).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o640);
    assert!(meta.blocks() * 512 < 64 << 10, "{}", meta.blocks());
}

#[test]
fn a_raw_base_gives_its_size_rounded_up() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("base.raw"), vec![7; 10_000]).unwrap();
    run(dir.path(), ["create", "vm.cow", "--base", "base.raw", "--base-format", "raw"]).ok();
    assert_eq!(superblock(&dir.path().join("vm.cow")).virtual_size, 10_240);
    run(dir.path(), ["create", "big.cow", "--base", "base.raw", "--base-format", "raw", "--size", "1M"]).ok();
    assert_eq!(superblock(&dir.path().join("big.cow")).virtual_size, 1 << 20);
}

#[test]
fn a_cow_base_must_be_sealed_and_no_format_is_guessed() {
    let dir = tempdir().unwrap();
    let head = make(dir.path(), "vm.cow");
    change(&head, &[Change::Write(0, 1, 1)], End::Closed);
    let unsealed = run(dir.path(), ["create", "new.cow", "--base", "vm.cow"]);
    unsealed.fails(1, "not sealed");
    assert!(unsealed.stderr.lines().last().unwrap().starts_with("try: cowdisk "), "{unsealed:?}");
    fs::write(dir.path().join("base.raw"), vec![7; 10_240]).unwrap();
    let raw = run(dir.path(), ["create", "new.cow", "--base", "base.raw"]);
    raw.fails(1, "base.raw: not a cowdisk layer");
    assert!(raw.stderr.contains("--base-format raw"), "{raw:?}");
    // The other way round: bytes that look like a layer are raw bytes if the user says so.
    run(dir.path(), ["create", "raw.cow", "--base", "vm.cow", "--base-format", "raw"]).ok();
    let len = fs::metadata(&head).unwrap().len();
    assert_eq!(superblock(&dir.path().join("raw.cow")).virtual_size, len);
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    run(dir.path(), ["create", "new.cow", "--base", "vm@s1.cow"]).ok();
    assert_eq!(superblock(&dir.path().join("new.cow")).virtual_size, 1 << 20);
    run(dir.path(), ["check", "--chain", "--data", "new.cow"]).ok();
}

#[test]
fn wrong_arguments_are_refused_and_nothing_is_made() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("base.raw"), vec![7; 4096]).unwrap();
    fs::write(dir.path().join("empty.raw"), b"").unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let before = content_of(dir.path());
    let cases: &[(&[&str], i32, &str)] = &[
        (&["create"], 64, "IMAGE"),
        (&["create", "a.cow"], 64, "a size is needed"),
        (&["create", "a.cow", "--size", "0"], 64, "between 512 bytes and 4 PiB"),
        (&["create", "a.cow", "--size", "511"], 64, "not a multiple of 512"),
        (&["create", "a.cow", "--size", "1x"], 64, "not a size"),
        (&["create", "a.cow", "--size=-1"], 64, "not a size"),
        (&["create", "a.cow", "--size", "9223372036854775808"], 64, "between"),
        (&["create", "a.cow", "--size", "99999999999T"], 64, "too large"),
        (&["create", "a.cow", "--size", "4608", "--sector-size", "4096"], 64, "sector size 4096"),
        (&["create", "a.cow", "--size", "1M", "--sector-size", "1024"], 64, "1024"),
        (&["create", "a.cow", "--size", "1M", "--journal-size", "4k"], 64, "between 256k and 1G"),
        (&["create", "a.cow", "--size", "1M", "--journal-size", "2G"], 64, "between 256k and 1G"),
        (&["create", "a.cow", "--size", "1M", "--journal-size", "262656"], 64, "multiple of 4096"),
        (&["create", "a.cow", "--size", "1M", "--base-format", "raw"], 64, "--base"),
        (&["create", "a.cow", "--size", "1M", "--checksums", "crc32"], 64, "crc32"),
        (&["create", "a.cow", "--base", "base.raw", "--base-format", "qcow2"], 1, "not yet"),
        (&["create", "a.cow", "--base", "empty.raw", "--base-format", "raw"], 64, "between"),
        (&["create", "a.cow", "--base", "none.raw", "--base-format", "raw"], 1, "none.raw"),
        (&["create", "a.cow", "--base", "sub", "--base-format", "raw"], 1, "a directory"),
        (&["create", "a.cow", "--base", "/dev/zero", "--base-format", "raw"], 1, "device"),
        (&["create", "vm@s1.cow", "--size", "1M"], 1, "`@`"),
        (&["create", "sub", "--size", "1M"], 1, "exists"),
        (&["create", "sub", "--size", "1M", "--force"], 1, "not a file"),
        (&["create", "sub/", "--size", "1M"], 1, "not a name"),
        (&["create", "..", "--size", "1M"], 1, "not a name"),
        (&["create", "none/a.cow", "--size", "1M"], 1, "No such file"),
        (&["create", "base.raw", "--size", "1M"], 1, "exists"),
        (&["create", "base.raw/a.cow", "--size", "1M"], 1, "Not a directory"),
        (&["create", "base.raw", "--base", "base.raw", "--base-format", "raw", "--force"], 1, "its own base"),
        (&["nonsense"], 64, "nonsense"),
        (&[], 64, "Usage"),
    ];
    for (args, code, fragment) in cases {
        run(dir.path(), *args).fails(*code, fragment);
        assert_eq!(content_of(dir.path()), before, "{args:?}");
    }
}

#[test]
fn errors_have_codes_in_json() {
    let dir = tempdir().unwrap();
    make(dir.path(), "vm.cow");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["create", "--json", "vm.cow", "--size", "1M"], 1, "exists"),
        (&["create", "--json", "a@b.cow", "--size", "1M"], 1, "bad_name"),
        (&["create", "--json", "a.cow", "--base", "vm.cow"], 1, "unsupported"),
        (&["create", "--json", "a.cow", "--base", "none"], 1, "not_found"),
        (&["--json", "nonsense"], 64, "bad_name"),
        (&["info", "none.cow", "--json"], 1, "not_found"),
    ];
    for (args, status, code) in cases {
        let ran = run(dir.path(), *args);
        assert_eq!((ran.code, ran.error_code().as_str()), (Some(*status), *code), "{ran:?}");
    }
}

#[test]
fn force_replaces_a_file_but_overrides_no_lock() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "vm.cow");
    let old = superblock(&path).disk;
    // Whoever holds the lock of the old file: here a bench that writes until it is told otherwise.
    let mut holder =
        cowdisk(dir.path(), ["bench", "-w", "vm.cow", "-c", "1000000000", "-d", "1"]).spawn().unwrap();
    while superblock_holder(&path).is_none() {
        assert!(holder.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    let busy = run(dir.path(), ["create", "vm.cow", "--size", "1M", "--force"]);
    busy.fails(75, &format!("in use by process {}", holder.id()));
    holder.kill().unwrap();
    holder.wait().unwrap();
    run(dir.path(), ["check", "vm.cow"]);
    assert_eq!(superblock(&path).disk, old);
    run(dir.path(), ["create", "vm.cow", "--size", "2M", "--force"]).ok();
    assert_ne!(superblock(&path).disk, old);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

fn superblock_holder(path: &std::path::Path) -> Option<u32> {
    // Read while it is being written: a torn slot is as good as none.
    let bytes = fs::read(path).ok()?;
    let slots = bytes.chunks(4096).take(2).zip(0..);
    let decoded =
        slots.filter_map(|(b, i)| cowdisk::format::Superblock::decode(b, cowdisk::units::PBlock(i)).ok());
    decoded.max_by_key(|sb| sb.generation)?.holder.map(|h| h.pid)
}

#[test]
fn a_disk_without_checksums_says_so_and_its_snapshots_and_forks_are_the_same() {
    let dir = tempdir().unwrap();
    run(dir.path(), ["create", "vm.cow", "--size", "1M", "--checksums", "none"]).ok();
    let path = dir.path().join("vm.cow");
    change(&path, &[Change::Write(0, 3, 1), Change::Discard(1, 1)], End::Closed);
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    run(dir.path(), ["fork", "vm.cow@s1", "fork.cow"]).ok();
    run(dir.path(), ["rollback", "vm.cow@s1"]).ok();
    // One on it may have them: each layer says what it has.
    run(dir.path(), ["create", "over.cow", "--base", "vm@s1.cow"]).ok();
    for (name, feature) in [
        ("vm.cow", "no_data_checksums"),
        ("vm@s1.cow", "no_data_checksums"),
        ("fork.cow", "no_data_checksums"),
        ("over.cow", "crc32"),
    ] {
        let info = run(dir.path(), ["info", "--json", name]).json();
        assert_eq!(info["features"], serde_json::json!([feature]), "{name}");
    }
    change(&dir.path().join("over.cow"), &[Change::Write(2, 1, 9)], End::Killed);
    let shown = read_disk(&dir.path().join("over.cow"));
    let blocks: Vec<u8> = shown.chunks(4096).take(4).map(|block| block[77]).collect();
    assert_eq!(blocks, [1, 0, 9, 0]);
}
