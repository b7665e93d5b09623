//! `resize`

use std::fs;
use std::path::Path;

use tempfile::tempdir;

use crate::image::{BLOCK, Change, End, change, make, read_disk, superblock};
use crate::run::{content_of, keys, run};

/// Not a whole number of blocks.
const ODD: u64 = 10 * BLOCK + 1536;

/// A disk whose base is larger than it is, and goes on within its last block.
fn small_on_large(dir: &Path) {
    fs::write(dir.join("base.raw"), vec![9; 40 * BLOCK as usize]).unwrap();
    let size = ODD.to_string();
    run(dir, ["create", "vm.cow", "--base", "base.raw", "--base-format", "raw", "--size", &size]).ok();
}

/// The disk holds `fill` up to byte `end`, zeros behind it, and `size` bytes.
#[track_caller]
fn assert_filled(path: &Path, fill: u8, end: u64, size: u64) {
    let bytes = read_disk(path);
    assert_eq!(bytes.len() as u64, size);
    let wrong = bytes.iter().enumerate().find(|(i, b)| **b != if (*i as u64) < end { fill } else { 0 });
    assert_eq!(wrong, None, "{fill} up to {end}");
}

#[test]
fn what_is_new_is_zeros_whatever_lies_below() {
    let dir = tempdir().unwrap();
    let vm = dir.path().join("vm.cow");
    small_on_large(dir.path());
    assert_filled(&vm, 9, ODD, ODD);
    let said = run(dir.path(), ["resize", "vm.cow", "1M"]);
    assert_eq!(said.ok(), "41.5 KiB (42496 bytes) -> 1.0 MiB (1048576 bytes)\n");
    assert_filled(&vm, 9, ODD, 1 << 20);
    assert_eq!(superblock(&vm).virtual_size, 1 << 20);
    // And again, from where it was written.
    change(&vm, &[Change::Write(0, 256, 7)], End::Closed);
    let cut = run(dir.path(), ["resize", "--json", "vm.cow", &(ODD + 512).to_string(), "--shrink"]).json();
    assert_eq!(
        keys(&cut),
        ["cut_bytes", "cut_data_bytes", "dry_run", "note", "old_size", "path", "virtual_size"]
    );
    let lost = (1u64 << 20) - ODD - 512;
    assert_eq!((cut["cut_bytes"].as_u64(), cut["cut_data_bytes"].as_u64()), (Some(lost), Some(lost)));
    assert_filled(&vm, 7, ODD + 512, ODD + 512);
    run(dir.path(), ["check", "--data", "--chain", "vm.cow"]).ok();
    run(dir.path(), ["resize", "vm.cow", "+1M"]).ok();
    assert_filled(&vm, 7, ODD + 512, ODD + 512 + (1 << 20));
    run(dir.path(), ["check", "--data", "--chain", "vm.cow"]).ok();
    let info = run(dir.path(), ["info", "--json", "vm.cow"]).json();
    assert_eq!(info["virtual_size"].as_u64(), Some(ODD + 512 + (1 << 20)));
    let map = run(dir.path(), ["map", "--json", "vm.cow"]).json();
    let last = map["runs"].as_array().unwrap().last().unwrap();
    assert_eq!(last["start"].as_u64().unwrap() + last["length"].as_u64().unwrap(), ODD + 512 + (1 << 20));
}

#[test]
fn shrinking_must_be_asked_for_and_says_what_goes() {
    let dir = tempdir().unwrap();
    let vm = make(dir.path(), "vm.cow");
    change(&vm, &[Change::Write(10, 20, 1), Change::Write(200, 3, 2)], End::Closed);
    let before = read_disk(&vm);
    let refused = run(dir.path(), ["resize", "vm.cow", "64k"]);
    refused.fails(64, "its last 983040 bytes, of which 69632 hold data");
    assert!(refused.stderr.contains("\ntry: cowdisk resize '"), "{refused:?}");
    assert!(refused.stderr.ends_with("vm.cow' 65536 --shrink\n"), "{refused:?}");
    assert_eq!(read_disk(&vm), before);
    let whole = content_of(dir.path());
    let dry = run(dir.path(), ["resize", "vm.cow", "64k", "--dry-run"]);
    assert!(dry.ok().contains("would become 64.0 KiB (65536 bytes)"), "{dry:?}");
    assert!(dry.ok().contains("960.0 KiB would be cut, of which 68.0 KiB held data"), "{dry:?}");
    assert!(run(dir.path(), ["resize", "vm.cow", "+1G", "--dry-run"]).ok().contains("1.0 GiB"));
    assert_eq!(content_of(dir.path()), whole);
    let done = run(dir.path(), ["resize", "vm.cow", "64k", "--shrink"]);
    assert!(done.ok().ends_with("960.0 KiB cut, of which 68.0 KiB held data\n"), "{done:?}");
    assert_eq!(read_disk(&vm), before[..65536]);
    run(dir.path(), ["resize", "vm.cow", "1M"]).ok();
    let after = read_disk(&vm);
    assert_eq!(after[..65536], before[..65536]);
    assert!(after[65536..].iter().all(|&b| b == 0));
}

#[test]
fn snapshots_and_forks_keep_their_size() {
    let dir = tempdir().unwrap();
    let vm = make(dir.path(), "vm.cow");
    change(&vm, &[Change::Write(0, 256, 5)], End::Killed);
    run(dir.path(), ["snapshot", "vm.cow@large"]).ok();
    let small = 20 * BLOCK + 512;
    run(dir.path(), ["resize", "vm.cow", &small.to_string(), "--shrink"]).ok();
    run(dir.path(), ["snapshot", "vm.cow@small"]).ok();
    run(dir.path(), ["resize", "vm.cow", "2M"]).ok();
    run(dir.path(), ["fork", "vm.cow@small", "same.cow"]).ok();
    run(dir.path(), ["fork", "vm.cow@small", "more.cow", "--size", "1M"]).ok();
    run(dir.path(), ["fork", "vm.cow@large", "less.cow", "--size", "16k"]).ok();
    let path = |name: &str| dir.path().join(name);
    assert_filled(&path("vm@large.cow"), 5, 1 << 20, 1 << 20);
    assert_filled(&path("vm@small.cow"), 5, small, small);
    assert_filled(&vm, 5, small, 2 << 20);
    assert_filled(&path("same.cow"), 5, small, small);
    assert_filled(&path("more.cow"), 5, small, 1 << 20);
    assert_filled(&path("less.cow"), 5, 16384, 16384);
    run(dir.path(), ["resize", "less.cow", "1M"]).ok();
    assert_filled(&path("less.cow"), 5, 16384, 1 << 20);
    for name in ["vm.cow", "same.cow", "more.cow", "less.cow"] {
        run(dir.path(), ["check", "--data", "--chain", name]).ok();
    }
}

/// What a layer's last block holds behind the end of its disk is nobody's.
#[test]
fn a_larger_disk_on_a_smaller_one_shows_nothing_of_what_lies_deeper() {
    let dir = tempdir().unwrap();
    small_on_large(dir.path());
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    run(dir.path(), ["fork", "vm.cow@s1", "fork.cow", "--size", "1M"]).ok();
    run(dir.path(), ["create", "made.cow", "--base", "vm@s1.cow", "--size", &(ODD + 512).to_string()]).ok();
    run(dir.path(), ["resize", "made.cow", "+8k"]).ok();
    assert_filled(&dir.path().join("fork.cow"), 9, ODD, 1 << 20);
    assert_filled(&dir.path().join("made.cow"), 9, ODD, ODD + 512 + 8192);
    for name in ["fork.cow", "made.cow"] {
        run(dir.path(), ["check", "--data", "--chain", name]).ok();
    }
}

#[test]
fn an_image_that_was_not_closed_is_recovered_first() {
    let dir = tempdir().unwrap();
    let vm = make(dir.path(), "vm.cow");
    change(&vm, &[Change::Write(3, 4, 6)], End::Killed);
    let resized = run(dir.path(), ["resize", "vm.cow", "+4k"]);
    assert!(resized.ok().contains("1.0 MiB (1052672 bytes)"), "{resized:?}");
    assert!(resized.stderr.contains("recovered: 1 journal records applied"), "{resized:?}");
    let bytes = read_disk(&vm);
    assert!(bytes[3 * 4096..7 * 4096].iter().all(|&b| b == 6));
    run(dir.path(), ["check", "--data", "vm.cow"]).ok();
}

#[test]
fn sizes_that_cannot_be_leave_everything_as_it_was() {
    let dir = tempdir().unwrap();
    make(dir.path(), "vm.cow");
    run(dir.path(), ["create", "big.cow", "--size", "1M", "--sector-size", "4096"]).ok();
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    fs::write(dir.path().join("raw.img"), vec![7; 1 << 20]).unwrap();
    let before = content_of(dir.path());
    let cases: &[(&[&str], i32, &str)] = &[
        (&["vm.cow"], 64, "SIZE"),
        (&["vm.cow", "0"], 64, "multiple of 512"),
        (&["vm.cow", "511"], 64, "multiple of 512"),
        (&["vm.cow", "1.5G"], 64, "not a size"),
        (&["vm.cow", "+"], 64, "not a size"),
        (&["vm.cow", "+-1"], 64, "not a size"),
        (&["vm.cow", "5P"], 64, "4 PiB"),
        (&["vm.cow", "+4P"], 64, "4 PiB"),
        (&["big.cow", "1049088"], 64, "multiple of 4096"),
        (&["vm.cow@s1", "2M"], 64, "keeps the size"),
        (&["vm@s1.cow", "2M"], 1, "never opened for writing"),
        (&["none.cow", "2M"], 1, "none.cow"),
        (&["raw.img", "2M"], 1, "raw.img"),
    ];
    for (args, code, fragment) in cases {
        run(dir.path(), ["resize"].iter().chain(*args)).fails(*code, fragment);
    }
    // Opening an image writes its superblock: all but that.
    let content = |all: &std::collections::BTreeMap<String, Vec<u8>>| -> Vec<Vec<u8>> {
        all.values().map(|bytes| bytes[8192..].to_vec()).collect()
    };
    assert_eq!(content(&content_of(dir.path())), content(&before));
    for name in ["vm.cow", "big.cow"] {
        assert_eq!(superblock(&dir.path().join(name)).virtual_size, 1 << 20);
    }
}
