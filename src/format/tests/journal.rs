//! What a record may hold, and what separates it from its neighbours and from other openings.

use super::*;

/// Puts the checksum of `salt` into the record at the front of `bytes`, whatever it says.
fn reseal_record(bytes: &mut [u8]) {
    let len = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")) as usize;
    let salt = [&b"cowdisk record"[..], &LAYER.0, &77u64.to_le_bytes()].concat();
    let crc = crc32fast::hash(&[&salt, &(len as u64 - 8).to_le_bytes()[..], &bytes[8..len]].concat());
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn decodes(record: &Record) -> bool {
    let (block, _) = journal(std::slice::from_ref(record));
    match &decode_records(&block[..], salt())[..] {
        [] => false,
        [read] => {
            assert_eq!(read, record);
            true
        }
        more => panic!("{} records", more.len()),
    }
}

fn extents(extents: &[(u64, Place, u32)]) -> Record {
    let extents: Vec<RecordExtent> = extents
        .iter()
        .map(|&(vblock, place, blocks)| RecordExtent { vblock: VBlock(vblock), place, blocks })
        .collect();
    let blocks: u32 = extents.iter().filter(|e| e.place != Place::Zero).map(|e| e.blocks).sum();
    Record { extents, crcs: vec![3; blocks as usize], ..record(10) }
}

const fn at(pblock: u64) -> Place {
    Place::Data(PBlock(pblock))
}

#[test]
fn numbers_out_of_range_are_refused() {
    let with = |seq, durable, unsettled: &[u32]| {
        decodes(&Record { seq: Seq(seq), durable: Seq(durable), unsettled: unsettled.to_vec(), ..record(10) })
    };
    assert!(with(1, 0, &[]));
    assert!(!with(0, 0, &[]), "0 is no number");
    assert!(with(10, 9, &[]));
    assert!(!with(10, 10, &[]), "its own number cannot have been durable");
    assert!(!with(10, 11, &[]));
    assert!(with(10, 0, &[1, 9]));
    assert!(!with(10, 0, &[0]), "itself");
    assert!(!with(10, 0, &[1, 10]), "number 0");
    assert!(!with(10, 0, &[11]), "before the first");
    assert!(!with(10, 0, &[2, 2]), "twice");
    assert!(!with(10, 0, &[3, 2]), "descending");
    let many: Vec<u32> = (1..=limits::MAX_UNSETTLED as u32 + 1).collect();
    assert!(with(1000, 0, &many[1..]));
    assert!(!with(1000, 0, &many), "more than a window");
    assert!(with(limits::MAX_COUNTER, limits::MAX_COUNTER - 1, &[u32::MAX]));
    assert!(!with(limits::MAX_COUNTER + 1, 0, &[]), "out of reach");
}

#[test]
fn extents_out_of_range_are_refused() {
    let end = 1 << 40;
    assert!(decodes(&extents(&[(end - 1, at(2), 1)])));
    assert!(!decodes(&extents(&[(end, at(2), 1)])));
    assert!(!decodes(&extents(&[(end - 1, at(2), 2)])));
    assert!(!decodes(&extents(&[(u64::MAX, Place::Zero, 1)])));
    assert!(decodes(&extents(&[(0, Place::Zero, u32::MAX)])));
    assert!(!decodes(&extents(&[(end - 5, Place::Zero, 6)])));
    assert!(!decodes(&extents(&[(0, Place::Zero, 0)])), "no blocks");
    assert!(!decodes(&extents(&[(0, at(100), 0)])), "no blocks");
    assert!(!decodes(&extents(&[(0, at(0), 1)])), "superblock slot A");
    assert!(!decodes(&extents(&[(0, at(1), 1)])), "superblock slot B");
    assert!(decodes(&extents(&[(0, at((1 << 42) - 2), 2)])));
    assert!(!decodes(&extents(&[(0, at((1 << 42) - 2), 3)])));
    // Order and overlap are the writer's affair: the later extent counts.
    assert!(decodes(&extents(&[(9, at(100), 2), (8, Place::Zero, 5), (9, at(50), 1)])));
    assert!(decodes(&extents(&[])));
}

#[test]
fn places_of_unknown_kind_are_refused() {
    let one = extents(&[(8, Place::Zero, 5)]);
    let unsettled = one.unsettled.len() * RECORD_UNSETTLED_BYTES;
    let place = JOURNAL_HEADER_BYTES + 8 + 16 + 8 + unsettled + 8 + 8;
    let (block, _) = journal(std::slice::from_ref(&one));
    assert_eq!(block[place..place + 8], (1u64 << 60).to_le_bytes());
    for bad in [1 << 60 | 1u64, 2 << 60, 15 << 60, u64::MAX, 1 << 42] {
        let mut block = block.clone();
        block[place..place + 8].copy_from_slice(&bad.to_le_bytes());
        reseal_record(&mut block[JOURNAL_HEADER_BYTES..]);
        assert_eq!(decode_records(&block[..], salt()), [], "place {bad:#x}");
    }
}

/// A record that holds nothing but a resize, `from` and `blocks` as they are stored.
fn stored_resize(size: u64, from: u64, blocks: u32) -> Vec<Record> {
    let resize = Some(Resize { size: 512, zero_from: VBlock(1) });
    let one = Record { resize, ..extents(&[(8, Place::Zero, 5)]) };
    let (mut block, _) = journal(std::slice::from_ref(&one));
    let lists = JOURNAL_HEADER_BYTES + 8 + 16 + 8 + one.unsettled.len() * RECORD_UNSETTLED_BYTES;
    let at = lists + 8 + RECORD_EXTENT_BYTES;
    assert_eq!(block[at + 8..at + 16], (2u64 << 60 | 512).to_le_bytes());
    block[at..at + 8].copy_from_slice(&from.to_le_bytes());
    block[at + 8..at + 16].copy_from_slice(&(2u64 << 60 | size).to_le_bytes());
    block[at + 16..at + 20].copy_from_slice(&blocks.to_le_bytes());
    reseal_record(&mut block[JOURNAL_HEADER_BYTES..]);
    decode_records(&block[..], salt())
}

#[test]
fn a_resize_has_a_size_that_a_disk_may_have() {
    for (size, from) in [(512, 1), (4096, 1), (4608, 2), (1 << 52, 1), (1 << 52, 1 << 40)] {
        let read = stored_resize(size, from, 0);
        assert_eq!(read[0].resize, Some(Resize { size, zero_from: VBlock(from) }));
        assert_eq!(read[0].extents.len(), 1);
    }
    let beyond = (1 << 52) + 512;
    for (size, from, blocks) in [
        (0, 1, 0),
        (511, 1, 0),
        (513, 1, 0),
        (beyond, 1, 0),
        ((1 << 60) - 512, 1, 0),
        (4096, 0, 0),
        (4096, 2, 0),
        (4096, u64::MAX, 0),
        (4096, 1, 1),
        (4096, 1, u32::MAX),
    ] {
        assert_eq!(stored_resize(size, from, blocks), [], "{size} from {from}, {blocks} blocks");
    }
}

#[test]
fn a_resize_stands_behind_all_extents() {
    let resize = Some(Resize { size: 512, zero_from: VBlock(1) });
    let one = Record { resize, ..extents(&[(8, Place::Zero, 5)]) };
    let (block, _) = journal(std::slice::from_ref(&one));
    let lists = JOURNAL_HEADER_BYTES + 8 + 16 + 8 + one.unsettled.len() * RECORD_UNSETTLED_BYTES + 8;
    let (first, second) = (lists..lists + RECORD_EXTENT_BYTES, lists + RECORD_EXTENT_BYTES);
    let mut turned = block.clone();
    turned[first.clone()].copy_from_slice(&block[second..second + RECORD_EXTENT_BYTES]);
    turned[second..second + RECORD_EXTENT_BYTES].copy_from_slice(&block[first]);
    reseal_record(&mut turned[JOURNAL_HEADER_BYTES..]);
    assert_eq!(decode_records(&turned[..], salt()), []);
    assert_eq!(decode_records(&block[..], salt()), [one]);
}

#[test]
fn checksums_must_be_as_many_as_blocks() {
    for crcs in [0, 2, 4, 100] {
        assert!(!decodes(&Record { crcs: vec![1; crcs], ..record(10) }), "{crcs} for 3 blocks");
    }
    assert!(decodes(&record(10)));
}

#[test]
fn lengths_and_counts_are_bounded_by_the_block() {
    let (block, used) = journal(&[record(10)]);
    let at = JOURNAL_HEADER_BYTES;
    for len in [0u32, 1, 7, 8, 9, 31, 4040, 4041, 4096, 1 << 20, u32::MAX] {
        let mut block = block.clone();
        block[at..at + 4].copy_from_slice(&len.to_le_bytes());
        if (8..=4040).contains(&len) {
            reseal_record(&mut block[at..]);
        }
        assert_eq!(decode_records(&block[..], salt()), [], "length {len}");
    }
    // Every count of a list replaced by one that is wrong, with a checksum that is right.
    let unsettled = at + 24;
    let extents = unsettled + 8 + 3 * RECORD_UNSETTLED_BYTES;
    let crcs = extents + 8 + 3 * RECORD_EXTENT_BYTES;
    assert_eq!(crcs + 8 + 3 * RECORD_CRC_BYTES, used);
    for list in [unsettled, extents, crcs] {
        assert_eq!(block[list..list + 8], 3u64.to_le_bytes());
        for count in [0u64, 2, 4, 255, 1 << 32, 1 << 61, u64::MAX] {
            let mut block = block.clone();
            block[list..list + 8].copy_from_slice(&count.to_le_bytes());
            reseal_record(&mut block[at..]);
            assert_eq!(decode_records(&block[..], salt()), [], "count {count} at {list}");
        }
    }
    // The re-sealing itself is right: with the true count the record is there.
    let mut same = block.clone();
    reseal_record(&mut same[at..]);
    assert_eq!(same, block);
}

#[test]
fn records_of_another_layer_or_opening_are_not_ours() {
    let (block, _) = journal(&[record(10)]);
    assert_eq!(decode_records(&block[..], Salt::new(LAYER, 77)).len(), 1);
    assert_eq!(decode_records(&block[..], Salt::new(LAYER, 78)), []);
    assert_eq!(decode_records(&block[..], Salt::new(LAYER, 77 << 8)), []);
    assert_eq!(decode_records(&block[..], Salt::new(LayerId([1; 16]), 77)), []);
}

#[test]
fn a_record_fits_or_is_not_written() {
    let len = journal(&[record(10)]).1 - JOURNAL_HEADER_BYTES;
    let mut out = vec![0xee; len + 1];
    assert_eq!(encode_one(&record(10), salt(), &mut out[..len - 1]), None);
    assert!(out.iter().all(|&b| b == 0xee), "nothing is written where it does not fit");
    assert_eq!(encode_one(&record(10), salt(), &mut out), Some(len));
    assert_eq!(out[len], 0xee);
    // Room for the most that a block takes.
    let most = (BLOCK_SIZE - JOURNAL_HEADER_BYTES - RECORD_FIXED_BYTES) / RECORD_EXTENT_BYTES;
    let full = Record { unsettled: vec![], ..extents(&vec![(0, Place::Zero, 1); most]) };
    assert!(decodes(&full));
}

/// J1: a rewrite keeps the old bytes as a prefix, so any mixture of its sectors with the old ones keeps the old records.
#[test]
fn a_torn_rewrite_keeps_the_old_records() {
    let records: Vec<Record> = (0..20).map(|i| record(10 + i)).collect();
    for old in [0, 1, 5, 10] {
        let (before, _) = journal(&records[..old]);
        let (after, _) = journal(&records);
        for mask in 0..256u32 {
            let mut torn = before.clone();
            for sector in (0..8).filter(|s| mask >> s & 1 == 1) {
                torn[sector * 512..][..512].copy_from_slice(&after[sector * 512..][..512]);
            }
            assert!(JournalBlock::decode(&torn[..], ADDRESS).is_ok());
            let read = decode_records(&torn[..], salt());
            assert!(read.len() >= old, "{} records left of {old}, sectors {mask:08b}", read.len());
            assert_eq!(read, records[..read.len()]);
        }
    }
}
