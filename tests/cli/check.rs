//! `check`

use std::fs;
use std::path::{Path, PathBuf};

use cowdisk::format::{BootId, ChecksumKind, LeafExtent, LeafNode, Place};
use cowdisk::units::{PBlock, VBlock};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::image::{
    AREA, BLOCK, Change, End, change, find_block, make, overwrite, patch_superblock, plant, read_disk,
    superblock,
};
use crate::run::{content_of, cowdisk, keys, run};

/// Checks, sees that nothing was written, and gives the exit status and the report.
#[track_caller]
fn check(dir: &Path, args: &[&str]) -> (i32, Value) {
    let before = content_of(dir);
    let ran = run(dir, ["check", "--json"].iter().chain(args));
    assert_eq!(content_of(dir), before, "check wrote something");
    (ran.code.unwrap(), ran.json())
}

/// Exit status, codes of the findings.
#[track_caller]
fn found(dir: &Path, args: &[&str]) -> (i32, Vec<String>) {
    let (code, report) = check(dir, args);
    let findings = report["findings"].as_array().unwrap();
    (code, findings.iter().map(|f| f["code"].as_str().unwrap().to_owned()).collect())
}

fn image() -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "vm.cow");
    change(&path, &[Change::Write(0, 10, 1), Change::Write(100, 4, 2), Change::Discard(50, 9)], End::Closed);
    (dir, path)
}

#[test]
fn a_closed_image_is_clean() {
    let (dir, _) = image();
    let (code, report) = check(dir.path(), &["vm.cow", "--data"]);
    assert_eq!(code, 0);
    assert_eq!(
        keys(&report),
        ["blocks_checked", "blocks_unverified", "findings", "findings_total", "status"]
    );
    assert_eq!((&report["status"], &report["blocks_checked"]), (&"clean".into(), &(2 + 1 + 14).into()));
    assert_eq!(report["blocks_unverified"], 0);
}

#[test]
fn data_without_checksums_is_read_and_not_called_verified() {
    let dir = tempdir().unwrap();
    run(dir.path(), ["create", "vm.cow", "--size", "1M", "--checksums", "none"]).ok();
    let path = dir.path().join("vm.cow");
    change(&path, &[Change::Write(0, 10, 1), Change::Write(100, 4, 2)], End::Closed);
    overwrite(&path, find_block(&path, 1) + 9, b"x");
    let (code, report) = check(dir.path(), &["vm.cow", "--data"]);
    assert_eq!((code, &report["status"]), (0, &"clean".into()));
    assert_eq!((&report["blocks_checked"], &report["blocks_unverified"]), (&(2 + 1).into(), &14.into()));
    let ran = run(dir.path(), ["check", "vm.cow", "--data"]);
    let said = ran.ok();
    assert!(said.contains("14 blocks of data have no checksums"), "{said}");
    // What the file does not have is found all the same.
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(superblock(&path).block_area.pos()).unwrap();
    let (code, codes) = found(dir.path(), &["vm.cow", "--data"]);
    assert_eq!(code, 2, "{codes:?}");
}

/// As after a power loss: the kernel that the data was written under does not run any more.
#[test]
fn records_without_checksums_that_were_not_flushed_do_not_count_under_another_kernel() {
    let dir = tempdir().unwrap();
    run(dir.path(), ["create", "vm.cow", "--size", "1M", "--checksums", "none"]).ok();
    let path = dir.path().join("vm.cow");
    change(&path, &[Change::Write(0, 1, 1), Change::Write(2, 1, 2)], End::Dropped);
    assert_eq!(found(dir.path(), &["vm.cow"]), (3, vec!["journal_replay".into()]));
    let shown = |block: usize| read_disk(&path)[block * 4096 + 5];
    assert_eq!((shown(0), shown(2)), (1, 2));
    patch_superblock(&path, |sb| sb.checksums = ChecksumKind::None { boot: BootId([7; 16]) });
    let (code, report) = check(dir.path(), &["vm.cow"]);
    assert_eq!(code, 3);
    let left_out: Vec<&Value> =
        report["findings"].as_array().unwrap().iter().filter(|f| f["code"] == "journal_left_out").collect();
    assert_eq!(left_out.len(), 2, "{report}");
    assert!(left_out[0]["message"].as_str().unwrap().contains("before the host went down"));
    assert_eq!((shown(0), shown(2)), (0, 0));
}

#[test]
fn a_dead_daemons_journal_is_harmless() {
    let (dir, path) = image();
    change(&path, &[Change::Write(5, 2, 3), Change::Write(200, 1, 4)], End::Killed);
    let (code, report) = check(dir.path(), &["vm.cow", "--data"]);
    assert_eq!((code, &report["status"]), (3, &"harmless".into()));
    assert_eq!(report["findings"][0]["code"], "journal_replay");
    assert_eq!(report["findings"][0]["repairable"], true);
    // Of the fourteen blocks two are replaced, and three are new.
    assert_eq!(report["blocks_checked"], 2 + 1 + 12 + 3);
    // Data that is not there makes the record one that never was acknowledged.
    overwrite(&path, find_block(&path, 4) + 7, b"x");
    let (code, report) = check(dir.path(), &["vm.cow"]);
    let left_out = &report["findings"][1];
    assert_eq!((code, &left_out["code"]), (3, &"journal_left_out".into()));
    assert_eq!((&left_out["vblock"], &left_out["length"]), (&200.into(), &4096.into()));
}

#[test]
fn damaged_data_is_found_by_reading_it() {
    let (dir, path) = image();
    let at = find_block(&path, 1) + 3 * BLOCK;
    overwrite(&path, at + 100, b"x");
    overwrite(&path, at + BLOCK + 9, b"x");
    assert_eq!(found(dir.path(), &["vm.cow"]), (0, vec![]));
    let (code, report) = check(dir.path(), &["--data", "vm.cow"]);
    assert_eq!((code, report["findings"].as_array().unwrap().len()), (2, 1));
    let finding = &report["findings"][0];
    let expected =
        ["code", "files", "layer", "length", "message", "offset", "repairable", "snapshots", "vblock"];
    assert_eq!(keys(finding), expected);
    assert_eq!((&finding["code"], &finding["offset"]), (&"data_checksum".into(), &at.into()));
    assert_eq!((&finding["vblock"], &finding["length"]), (&3.into(), &8192.into()));
    let text = run(dir.path(), ["check", "--data", "vm.cow"]);
    assert!(text.stdout.contains("corrupt: ") && text.stdout.contains("[data_checksum]"), "{text:?}");
}

#[test]
fn a_damaged_node_is_a_finding_with_the_range_that_it_loses() {
    let (dir, path) = image();
    let root = superblock(&path).root;
    overwrite(&path, root.pblock.pos() + 1000, b"x");
    let (code, report) = check(dir.path(), &["vm.cow", "--data"]);
    assert_eq!(code, 2);
    let finding = &report["findings"][0];
    assert_eq!((&finding["code"], &finding["offset"]), (&"tree_node".into(), &root.pblock.pos().into()));
    assert_eq!((&finding["vblock"], &finding["length"]), (&0.into(), &(1 << 20).into()));
}

#[test]
fn superblock_slots() {
    let (dir, path) = image();
    let newest = superblock(&path).generation;
    overwrite(&path, (newest + 1) % 2 * BLOCK + 200, b"xyz");
    assert_eq!(found(dir.path(), &["vm.cow"]), (3, vec!["superblock_slot".into()]));
    overwrite(&path, newest % 2 * BLOCK + 200, b"xyz");
    assert_eq!(found(dir.path(), &["vm.cow"]), (2, vec!["superblock".into()]));
    overwrite(&path, 0, &[0; 8192]);
    run(dir.path(), ["check", "vm.cow"]).fails(1, "not a cowdisk layer");
}

#[test]
fn a_damaged_newest_superblock_has_a_twin() {
    let (dir, path) = image();
    change(&path, &[Change::Write(5, 2, 3)], End::Killed);
    let newest = superblock(&path).generation;
    overwrite(&path, newest % 2 * BLOCK + 200, b"xyz");
    let (code, findings) = found(dir.path(), &["vm.cow"]);
    assert_eq!((code, findings[0].as_str()), (3, "superblock_slot"));
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    assert_eq!(found(dir.path(), &["vm.cow", "--chain", "--data"]), (0, vec![]));
}

#[test]
fn an_older_superblock_is_no_torn_one() {
    let (dir, path) = image();
    let older = fs::read(&path).unwrap()[..8192].to_vec();
    // Open for writing: the ring then holds blocks of a higher epoch.
    change(&path, &[Change::Write(5, 2, 3)], End::Killed);
    let newest = superblock(&path).generation;
    overwrite(&path, 0, &older);
    overwrite(&path, newest % 2 * BLOCK + 200, b"xyz");
    assert_eq!(found(dir.path(), &["vm.cow"]).0, 2);
    run(dir.path(), ["snapshot", "vm.cow@s1"]).fails(1, "the newest superblock is damaged");
}

#[test]
fn parents_are_checked_if_asked() {
    let (dir, path) = image();
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    change(&path, &[Change::Write(7, 1, 5)], End::Closed);
    let sealed = dir.path().join("vm@s1.cow");
    fs::set_permissions(&sealed, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    overwrite(&sealed, find_block(&sealed, 2), b"x");
    assert_eq!(found(dir.path(), &["vm.cow", "--data"]), (0, vec![]));
    assert_eq!(found(dir.path(), &["vm.cow", "--chain"]), (0, vec![]));
    let (code, report) = check(dir.path(), &["vm.cow", "--chain", "--data"]);
    assert_eq!((code, &report["findings"][0]["snapshots"]), (2, &Value::from(vec!["s1"])));
    patch_superblock(&sealed, |sb| sb.root.crc ^= 1);
    assert_eq!(found(dir.path(), &["vm.cow", "--chain"]), (2, vec!["parent_changed".into()]));
    fs::remove_file(&sealed).unwrap();
    assert_eq!(found(dir.path(), &["vm.cow"]), (0, vec![]));
    assert_eq!(found(dir.path(), &["vm.cow", "--chain"]), (1, vec!["parent_missing".into()]));
}

#[test]
fn a_base_that_changed_is_found() {
    let dir = tempdir().unwrap();
    let base = dir.path().join("base.raw");
    fs::write(&base, vec![9; 8192]).unwrap();
    run(dir.path(), ["create", "vm.cow", "--base", "base.raw", "--base-format", "raw"]).ok();
    assert_eq!(found(dir.path(), &["vm.cow", "--chain"]), (0, vec![]));
    let mtime = fs::metadata(&base).unwrap().modified().unwrap();
    for content in [vec![9; 4096], vec![8; 8192]] {
        fs::write(&base, content).unwrap();
        // Size or content tell it, also where the time does not.
        fs::File::options().write(true).open(&base).unwrap().set_modified(mtime).unwrap();
        assert_eq!(found(dir.path(), &["vm.cow", "--chain"]), (2, vec!["parent_changed".into()]));
        run(dir.path(), ["map", "vm.cow"]).fails(1, "not what it was");
    }
}

#[test]
fn leftovers_are_harmless() {
    let (dir, path) = image();
    fs::write(dir.path().join(".vm.cow.cowdisk-0123abcd"), b"").unwrap();
    fs::hard_link(&path, dir.path().join("vm@broken.cow")).unwrap();
    assert_eq!(found(dir.path(), &["vm.cow"]), (3, vec!["leftover_name".into(), "leftover_file".into()]));
    run(dir.path(), ["snapshot", "vm.cow@s1"]).ok();
    assert!(!dir.path().join("vm@broken.cow").exists());
}

#[test]
fn an_image_in_use_is_refused_and_readers_do_not_matter() {
    let (dir, _) = image();
    let mut reader = cowdisk(dir.path(), ["bench", "vm.cow", "-c", "1000000000", "-d", "1"]).spawn().unwrap();
    assert_eq!(found(dir.path(), &["vm.cow"]), (0, vec![]));
    reader.kill().unwrap();
    reader.wait().unwrap();
    let mut writer =
        cowdisk(dir.path(), ["bench", "-w", "vm.cow", "-c", "1000000000", "-d", "1"]).spawn().unwrap();
    let pid = writer.id().to_string();
    while !run(dir.path(), ["info", "vm.cow"]).stdout.contains(&format!("in use by process {pid}")) {
        assert!(writer.try_wait().unwrap().is_none());
    }
    for args in
        [&["check", "vm.cow"][..], &["map", "vm.cow"], &["bench", "vm.cow"], &["snapshot", "vm.cow@s"]]
    {
        run(dir.path(), args).fails(75, &format!("in use by process {pid} on host"));
    }
    let info = run(dir.path(), ["info", "--json", "vm.cow"]).json();
    assert_eq!((&info["in_use_by"]["pid"], &info["clean"]), (&writer.id().into(), &false.into()));
    writer.kill().unwrap();
    writer.wait().unwrap();
    // The dead process's last write may land while this runs: that is waited for, so the files may change meanwhile.
    assert_eq!(run(dir.path(), ["check", "vm.cow", "--data"]).code, Some(3));
}

fn extent(vblock: u64, blocks: u32, pblock: Option<u64>) -> LeafExtent {
    let place = pblock.map_or(Place::Zero, |p| Place::Data(PBlock(p)));
    LeafExtent { vblock: VBlock(vblock), blocks, place, crc_index: 0 }
}

#[test]
fn extents_that_cannot_be_are_found() {
    let cases: &[(&str, &[LeafExtent], &[&str])] = &[
        ("good", &[extent(0, 2, Some(AREA)), extent(9, 1, None)], &[]),
        ("in the journal", &[extent(0, 1, Some(AREA - 1))], &["block_place"]),
        ("in the superblock", &[extent(0, 1, Some(0))], &["tree_node"]),
        ("above the high-water mark", &[extent(0, 1, Some(AREA + 100))], &["block_place"]),
        ("wrapping", &[extent(0, 2, Some((1 << 60) - 1))], &["tree_node"]),
        ("far away", &[extent(0, 1, Some((1 << 42) - 1))], &["block_place"]),
        ("twice", &[extent(0, 2, Some(AREA)), extent(4, 2, Some(AREA + 1))], &["block_shared"]),
        ("the node itself", &[extent(0, 1, Some(AREA + 50))], &["block_shared"]),
        ("behind the disk", &[extent(255, 2, Some(AREA))], &["extent_outside"]),
        ("zeros behind the disk", &[extent(256, 1, None)], &["extent_outside"]),
        ("overlapping", &[extent(0, 2, Some(AREA)), extent(1, 1, Some(AREA + 4))], &["tree_node"]),
        ("unsorted", &[extent(1, 1, Some(AREA)), extent(1, 1, None)], &["tree_node"]),
        ("empty", &[extent(0, 0, Some(AREA))], &["tree_node"]),
    ];
    for (name, extents, codes) in cases {
        let dir = tempdir().unwrap();
        let path = make(dir.path(), "vm.cow");
        let blocks: u32 = extents.iter().filter(|e| e.place != Place::Zero).map(|e| e.blocks).sum();
        let leaf = LeafNode { extents: extents.to_vec(), crcs: vec![0; blocks as usize] };
        patch_superblock(&path, |sb| sb.high_water = PBlock(AREA + 60));
        fs::File::options().write(true).open(&path).unwrap().set_len((AREA + 60) * BLOCK).unwrap();
        plant(&path, AREA + 50, &leaf);
        let (code, found) = found(dir.path(), &["vm.cow"]);
        assert_eq!(found, *codes, "{name}");
        assert_eq!(code, if codes.is_empty() { 0 } else { 2 }, "{name}");
    }
}

#[test]
fn a_file_that_is_too_short_is_found() {
    let (dir, path) = image();
    let root = superblock(&path).root.pblock;
    let data = find_block(&path, 2);
    let len = fs::metadata(&path).unwrap().len();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let cut = data.min(root.pos());
    file.set_len(cut).unwrap();
    let (code, codes) = found(dir.path(), &["vm.cow", "--data"]);
    assert_eq!(code, 2);
    assert!(codes.iter().all(|c| c == "file_short" || c == "tree_node"), "{codes:?}");
    assert!(cut < len);
}
