//! Which of the records that were found count (rule O2).

use super::*;
use crate::format::{BootId, ChecksumKind, DiskId, Superblock};
use crate::journal::{Later, LeftOut, Replay, Scan, replay};
use crate::limits::MAX_UNSETTLED;
use crate::storage::OpenHow;

/// A record without data: only its number decides.
fn bare(seq: u64, unsettled: &[u64]) -> Record {
    Record {
        seq: Seq(seq),
        durable: Seq(0),
        unsettled: unsettled.iter().map(|n| (seq - n) as u32).collect(),
        extents: vec![zeros(seq, 2)],
        crcs: vec![],
        resize: None,
    }
}

fn scan(durable: u64, records: impl IntoIterator<Item = Record>) -> Scan {
    let records = records.into_iter().map(|r| (r.seq, r)).collect();
    Scan { records, durable: Seq(durable), high_water: PBlock(0) }
}

/// Replays on a disk whose block n is filled with n, where `change` has been made.
fn replay_on(cut: u64, scan: Scan, change: impl FnOnce(&SimDisk)) -> crate::Result<Replay> {
    replay_as(Later::Verify, cut, scan, change)
}

fn replay_as(later: Later, cut: u64, scan: Scan, change: impl FnOnce(&SimDisk)) -> crate::Result<Replay> {
    let disk = SimDisk::new(3);
    let bytes: Vec<u8> = (0..800u64).flat_map(|n| [n as u8; BLOCK_SIZE]).collect();
    disk.put_file("/f", &bytes);
    change(&disk);
    let file = disk.open(Path::new("/f"), OpenHow::default()).expect("it is there");
    disk.block_on(replay(&file, Seq(cut), scan, later))
}

/// Numbers applied, numbers left out.
fn decide(cut: u64, durable: u64, records: Vec<Record>) -> crate::Result<(Vec<u64>, Vec<u64>)> {
    let newest = records.iter().map(|r| r.seq).max().unwrap_or(Seq(cut));
    let replay = replay_on(cut, scan(durable, records), |_| ())?;
    assert_eq!(replay.newest, newest);
    Ok((numbers(&replay.apply), replay.left_out.iter().map(|l| l.seq.0).collect()))
}

#[track_caller]
fn decides(durable: u64, records: Vec<Record>, applied: &[u64], left_out: &[u64]) {
    let decided = decide(10, durable, records).expect("the journal is sound");
    assert_eq!(decided, (applied.to_vec(), left_out.to_vec()));
}

#[test]
fn numbers_in_a_row_are_applied() {
    decides(0, vec![], &[], &[]);
    decides(0, vec![bare(11, &[]), bare(12, &[]), bare(13, &[])], &[11, 12, 13], &[]);
}

#[test]
fn a_record_counts_only_if_it_knew_that_the_missing_ones_were_not_settled() {
    decides(0, vec![bare(12, &[])], &[], &[12]);
    decides(0, vec![bare(12, &[11])], &[12], &[]);
    decides(0, vec![bare(11, &[]), bare(14, &[12])], &[11], &[14]);
    decides(0, vec![bare(11, &[]), bare(14, &[12, 13])], &[11, 14], &[]);
    // What is left out is missing for those behind it.
    decides(0, vec![bare(12, &[]), bare(13, &[11])], &[], &[12, 13]);
    decides(0, vec![bare(12, &[]), bare(13, &[11, 12])], &[13], &[12]);
    // Each decides for itself.
    decides(0, vec![bare(12, &[11]), bare(13, &[]), bare(14, &[11, 13])], &[12, 14], &[13]);
}

#[test]
fn more_missing_records_than_one_can_list_end_it() {
    let window = MAX_UNSETTLED as u64;
    let listing = |seq: u64, missing: u64| bare(seq, &(11..11 + missing).rev().collect::<Vec<u64>>());
    decides(0, vec![listing(11 + window, window)], &[11 + window], &[]);
    decides(0, vec![listing(12 + window, window)], &[], &[12 + window]);
    decides(0, vec![listing(12 + window, window + 1)], &[], &[12 + window]);
    // Nor if they came one by one, and the record lists the first of them.
    let two = vec![bare(12 + window, &[]), listing(13 + window, window)];
    decides(0, two, &[], &[12 + window, 13 + window]);
    // However far the numbers are apart.
    decides(0, vec![bare(1 << 60, &[]), bare((1 << 60) + 1, &[1 << 60])], &[], &[1 << 60, (1 << 60) + 1]);
}

#[test]
fn everything_up_to_the_durable_number_must_be_there() {
    let missing = |durable, records, number: u64| {
        let error = decide(10, durable, records).expect_err("a record is missing");
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.message().contains(&format!("record {number} is missing")), "{error}");
    };
    missing(11, vec![], 11);
    missing(11, vec![bare(12, &[11])], 11);
    missing(12, vec![bare(11, &[])], 12);
    missing(12, vec![bare(11, &[]), bare(13, &[12])], 12);
    missing(14, vec![bare(11, &[]), bare(12, &[]), bare(14, &[13])], 13);
    decides(10, vec![], &[], &[]);
    decides(11, vec![bare(11, &[])], &[11], &[]);
    decides(11, vec![bare(11, &[]), bare(13, &[12])], &[11, 13], &[]);
    decides(12, vec![bare(11, &[]), bare(12, &[])], &[11, 12], &[]);
}

fn crc(block: u64) -> u32 {
    crc32fast::hash(&[block as u8; BLOCK_SIZE])
}

/// A record of data extents, each first block and number of blocks.
fn data(seq: u64, places: &[(u64, u32)]) -> Record {
    let extent =
        |&(p, blocks): &(u64, u32)| RecordExtent { vblock: VBlock(p), place: Place::Data(PBlock(p)), blocks };
    let mut extents: Vec<RecordExtent> = places.iter().map(extent).collect();
    extents.insert(1.min(extents.len()), zeros(5000, 9));
    let crcs = places.iter().flat_map(|&(p, n)| p..p + u64::from(n)).map(crc).collect();
    Record { extents, crcs, ..bare(seq, &[]) }
}

#[test]
fn a_record_whose_data_is_there_is_applied() {
    let replay = replay_on(10, scan(0, [data(11, &[(20, 3), (100, 700)])]), |_| ()).expect("readable");
    assert_eq!(replay.apply, [data(11, &[(20, 3), (100, 700)])]);
    assert_eq!(replay.left_out, []);
}

#[test]
fn a_record_with_one_wrong_block_is_left_out() {
    for block in [20, 22, 100, 355, 356, 611, 612, 799] {
        let flip = |disk: &SimDisk| disk.flip_bit("/f", block * BLOCK_SIZE as u64 * 8 + 77);
        let record = data(11, &[(20, 3), (100, 700)]);
        let replay = replay_on(10, scan(0, [record.clone(), bare(12, &[])]), flip).expect("readable");
        assert!(replay.apply.is_empty(), "block {block}");
        let blocks = [20..23, 5000..5009, 100..800].map(|r| VBlock(r.start)..VBlock(r.end)).to_vec();
        let left_out = [
            LeftOut { seq: Seq(11), blocks },
            LeftOut { seq: Seq(12), blocks: vec![VBlock(12)..VBlock(14)] },
        ];
        assert_eq!(replay.left_out, left_out);
        // Of a durable record it is damage, which whoever reads the block will find.
        let replay = replay_on(10, scan(11, [record]), flip).expect("readable");
        assert_eq!(numbers(&replay.apply), [11]);
    }
}

/// O3: the end of the file is a mismatch, an error is not.
#[test]
fn data_behind_the_end_is_not_there_and_data_that_cannot_be_read_is_an_error() {
    // Zeros behind the end too, as of block 1024.
    for (first, blocks) in [(799, 2), (800, 1), (1024, 1), (5000, 300)] {
        let replay = replay_on(10, scan(0, [data(11, &[(first, blocks)])]), |_| ()).expect("readable");
        assert_eq!((replay.apply.len(), replay.left_out.len()), (0, 1), "{first} + {blocks}");
    }
    let spoil = |disk: &SimDisk| disk.make_unreadable("/f", 400 * BLOCK_SIZE as u64);
    let error = replay_on(10, scan(0, [data(11, &[(100, 700)])]), spoil).expect_err("unreadable");
    assert_eq!((error.kind(), error.at_offset()), (Kind::Io, Some(356 * BLOCK_SIZE as u64)));
}

/// N3: without checksums what is not known to have been durable counts whole, or not at all.
#[test]
fn data_without_checksums_is_there_if_the_kernel_still_runs() {
    let records = || scan(11, [data(11, &[(20, 1)]), data(12, &[(30, 1)]), data(14, &[(40, 1)])]);
    let flip = |disk: &SimDisk| disk.flip_bit("/f", 30 * BLOCK_SIZE as u64 * 8);
    let replay = replay_as(Later::Keep, 10, records(), flip).expect("readable");
    // 14 does not list 13, which is missing.
    assert_eq!((numbers(&replay.apply), replay.left_out.len()), (vec![11, 12], 1));
    let replay = replay_as(Later::Drop, 10, records(), |_| ()).expect("readable");
    assert_eq!((numbers(&replay.apply), replay.left_out.len(), replay.newest), (vec![11], 2, Seq(14)));
    let missing = replay_as(Later::Drop, 10, scan(11, [data(12, &[(30, 1)])]), |_| ());
    assert_eq!(missing.expect_err("11 was durable").kind(), Kind::Corrupt);
}

#[test]
fn which_boot_and_which_file_decide_over_data_without_checksums() {
    let (here, other) = (BootId([1; 16]), BootId([2; 16]));
    let mut sb = Superblock::new_layer(LAYER, DiskId([9; 16]), 1 << 20, 512, 1 << 18);
    sb.inode = 77;
    assert_eq!(Later::of(&sb, 77, here), Later::Verify);
    sb.without_checksums();
    assert_eq!(Later::of(&sb, 77, BootId::default()), Later::Drop, "both are unknown");
    sb.checksums = ChecksumKind::None { boot: here };
    assert_eq!(Later::of(&sb, 77, here), Later::Keep);
    assert_eq!(Later::of(&sb, 77, other), Later::Drop);
    assert_eq!(Later::of(&sb, 78, here), Later::Drop, "a copy");
}
