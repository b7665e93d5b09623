//! Journal rings that no writer leaves behind.

use std::path::Path;

use cowdisk::format::{
    Holder, JOURNAL_HEADER_BYTES, JournalBlock, LayerId, Place, RECORD_FIXED_BYTES, RecordExtent, RecordRef,
    Resize, Salt, Superblock, encode_record, testing::reseal,
};
use cowdisk::limits::{MAX_COUNTER, MAX_FILE_BLOCKS};
use cowdisk::units::{BLOCK_SIZE, PBlock, Seq, VBlock};

use crate::case::{CHECKS, Case, Map, Read, WRITERS, Write};
use crate::image::{AREA, BLOCK, make, overwrite, patch_superblocks, superblock};

type Block = Box<[u8; BLOCK_SIZE]>;

/// A record that settles itself: nothing is missing in front of it.
const fn record<'a>(seq: u64, durable: u64, extents: &'a [RecordExtent], crcs: &'a [u32]) -> RecordRef<'a> {
    RecordRef { seq: Seq(seq), durable: Seq(durable), unsettled: &[], extents, crcs, resize: None }
}

const fn zero(vblock: u64, blocks: u32) -> RecordExtent {
    RecordExtent { vblock: VBlock(vblock), place: Place::Zero, blocks }
}

const fn data(vblock: u64, pblock: u64, blocks: u32) -> RecordExtent {
    RecordExtent { vblock: VBlock(vblock), place: Place::Data(PBlock(pblock)), blocks }
}

/// The header that the ring of `sb` has.
fn header(sb: &Superblock) -> JournalBlock {
    JournalBlock { layer: sb.layer, epoch: sb.epoch, generation: sb.generation }
}

/// The first block of the ring with `header` and `records`, sealed for that header.
fn block(header: &JournalBlock, records: &[RecordRef<'_>]) -> Block {
    let mut block = Box::new([0; BLOCK_SIZE]);
    header.encode(PBlock(2), &mut block);
    let mut at = JOURNAL_HEADER_BYTES;
    for record in records {
        let salt = Salt::new(header.layer, header.epoch);
        at += encode_record(record, salt, &mut block[at..]).unwrap();
    }
    block
}

/// An image that was not closed, with this as the first block of its ring.
fn ring(name: &str, first: impl Fn(&Superblock) -> Block + Send + Sync + 'static) -> Case {
    let case = Case::new(format!("journal: {name}"), move |dir: &Path| {
        let path = make(dir, "vm.cow");
        patch_superblocks(&path, |sb| {
            sb.holder = Some(Holder { pid: u32::MAX, host: "x".into(), socket: String::new() });
            sb.epoch = 5;
        });
        overwrite(&path, 2 * BLOCK, &first(&superblock(&path))[..]);
    });
    case.on(&CHECKS, &[3], &["journal_replay"])
}

/// The superblock or the journal lies: nothing but the header can be read, and the place is named.
fn refused(case: Case, says: &[&str]) -> Case {
    let case = case.on(&CHECKS, &[2], says);
    case.on(&WRITERS, &[1], says).on(&[Map, Read], &[1], says)
}

pub(crate) fn cases() -> Vec<Case> {
    [foreign(), numbers(), lengths(), places(), sizes()].into_iter().flatten().collect()
}

/// Blocks of other layers and openings.
fn foreign() -> Vec<Case> {
    let with = |name: &str, change: fn(&mut JournalBlock)| {
        ring(name, move |sb| {
            let mut header = header(sb);
            change(&mut header);
            block(&header, &[record(1, 0, &[zero(0, 1)], &[])])
        })
    };
    let newer = ["the newest superblock is damaged", "epoch", "at offset 8192"];
    vec![
        with("a record as it should be", |_| {}).on(&CHECKS, &[3], &["1 journal records"]),
        with("a record of another layer", |h| h.layer = LayerId([9; 16])).on(
            &CHECKS,
            &[3],
            &["0 journal records"],
        ),
        with("a record of an older epoch", |h| h.epoch -= 1).on(&CHECKS, &[3], &["0 journal records"]),
        refused(with("a record of a newer epoch", |h| h.epoch += 1), &newer),
        refused(with("a record of the last epoch", |h| h.epoch = u64::MAX), &newer),
        refused(with("a record of a newer generation", |h| h.generation += 1), &newer),
        ring("a record sealed for another layer", |sb| {
            let stranger = JournalBlock { layer: LayerId([9; 16]), ..header(sb) };
            let mut theirs = block(&stranger, &[record(1, 0, &[zero(0, 1)], &[])]);
            let ours = block(&header(sb), &[]);
            theirs[..JOURNAL_HEADER_BYTES].copy_from_slice(&ours[..JOURNAL_HEADER_BYTES]);
            theirs
        })
        .on(&CHECKS, &[3], &["0 journal records"]),
        ring("a block of another place", |sb| {
            let mut block = block(&header(sb), &[record(1, 0, &[zero(0, 1)], &[])]);
            block[32] = 3;
            reseal(&mut block[..]);
            block
        })
        .on(&CHECKS, &[3], &["0 journal records"]),
    ]
}

/// Sequence numbers.
fn numbers() -> Vec<Case> {
    let one = |name: &str, seq: u64, durable: u64| {
        ring(name, move |sb| block(&header(sb), &[record(seq, durable, &[zero(0, 1)], &[])]))
    };
    let missing = ["journal: record 1 is missing"];
    vec![
        refused(one("a gap below what was durable", 5, 3), &missing),
        refused(one("the last number, and all below it durable", MAX_COUNTER, MAX_COUNTER - 1), &missing),
        one("a gap above what was durable", 1 << 40, 0).on(&CHECKS, &[3], &["journal_left_out"]),
        one("the last number", MAX_COUNTER, 0).on(&CHECKS, &[3], &["journal_left_out"]).on(
            &WRITERS,
            &[0, 1],
            &[],
        ),
        one("a number that is none", u64::MAX, 0).on(&CHECKS, &[3], &["0 journal records"]),
        one("a number that is not above what was durable", 3, 3).on(&CHECKS, &[3], &["0 journal records"]),
        one("no number", 0, 0).on(&CHECKS, &[3], &["0 journal records"]),
        ring("the same number twice", |sb| {
            let (a, b) = ([zero(0, 1)], [zero(1, 1)]);
            block(&header(sb), &[record(1, 0, &a, &[]), record(1, 0, &b, &[])])
        }),
        ring("unsettled numbers in front of the first", |sb| {
            let extents = [zero(0, 1)];
            let record = RecordRef { unsettled: &[1, 2, 9], ..record(3, 0, &extents, &[]) };
            block(&header(sb), &[record])
        })
        .on(&CHECKS, &[3], &["0 journal records"]),
    ]
}

/// Lengths and counts that are more than there is.
fn lengths() -> Vec<Case> {
    let patched = |name: &str, at: usize, bytes: &'static [u8]| {
        ring(name, move |sb| {
            let mut block = block(&header(sb), &[record(1, 0, &[zero(0, 1)], &[])]);
            let at = JOURNAL_HEADER_BYTES + at;
            block[at..at + bytes.len()].copy_from_slice(bytes);
            reseal(&mut block[..]);
            block
        })
        .on(&CHECKS, &[3], &["0 journal records"])
    };
    // Behind length, checksum, number and durable_seq stand three lists, each after its count.
    let (unsettled, extents, crcs) = (24, 32, RECORD_FIXED_BYTES - 8 + 20);
    vec![
        patched("a record without length", 0, &[0; 4]),
        patched("a record of one byte", 0, &[1, 0, 0, 0]),
        patched("a record longer than its block", 0, &[0, 0x10, 0, 0]),
        patched("a record of 4 GiB", 0, &[0xff; 4]),
        patched("2^64 - 1 unsettled numbers", unsettled, &[0xff; 8]),
        patched("2^40 unsettled numbers", unsettled, &[0, 0, 0, 0, 0, 1, 0, 0]),
        patched("2^64 - 1 extents", extents, &[0xff; 8]),
        patched("2^32 extents", extents, &[0, 0, 0, 0, 1, 0, 0, 0]),
        patched("2^64 - 1 checksums", crcs, &[0xff; 8]),
        patched("2^61 checksums", crcs, &[0, 0, 0, 0, 0, 0, 0, 0x20]),
        patched("an unknown kind of place", 40 + 8 + 7, &[0xf0]),
        patched("a zero extent with an address", 40 + 8, &[1]),
    ]
}

/// Extents over what is not theirs. The second record makes the first one durable: it is applied unseen.
fn places() -> Vec<Case> {
    let durable = |name: &str, extents: Vec<RecordExtent>| {
        ring(name, move |sb| {
            let blocks = extents.iter().filter(|e| e.place != Place::Zero).map(|e| e.blocks as usize).sum();
            let crcs = vec![7; blocks];
            block(&header(sb), &[record(1, 0, &extents, &crcs), record(2, 1, &[zero(200, 1)], &[])])
        })
    };
    let bad = |case: Case, says: &'static str| case.on(&CHECKS, &[2], &["vm.cow", says]);
    let unread = |case: Case| case.on(&[Read], &[1], &["vm.cow"]).on(&[Write], &[0, 1], &[]);
    // Nothing behind a record that cannot be one is looked at.
    let ignored = |name: &str, extent: RecordExtent| {
        durable(name, vec![extent]).on(&CHECKS, &[3], &["0 journal records"])
    };
    vec![
        unread(bad(durable("data in the ring", vec![data(0, 2, 1)]), "block_place")),
        unread(bad(durable("data across ring and area", vec![data(0, AREA - 1, 2)]), "block_place")),
        unread(bad(durable("data behind the end of the file", vec![data(0, AREA + 1000, 1)]), "file_short")),
        unread(bad(
            durable("data at the end of the largest file", vec![data(0, MAX_FILE_BLOCKS - 1, 1)]),
            "file_short",
        ))
        .on(&WRITERS, &[1], &["vm.cow", "no space"]),
        ignored("data in a superblock", data(0, 1, 1)),
        ignored("data past the largest file", data(0, MAX_FILE_BLOCKS - 1, 2)),
        ignored("an empty extent", zero(0, 0)),
        ignored("a wrapping extent", zero(u64::MAX, 2)),
        bad(durable("zeros behind the end of the disk", vec![zero(1 << 39, 1 << 31)]), "extent_outside"),
        unread(bad(durable("one block for two", vec![data(0, AREA, 1), data(1, AREA, 1)]), "block")),
        durable("zeros over zeros", vec![zero(0, 9), zero(3, 200), zero(0, 1)]),
    ]
}

/// Sizes that a disk cannot have, or should not get from a stranger without a word.
fn sizes() -> Vec<Case> {
    let resized = |name: &str, size: u64, zero_from: u64| {
        ring(name, move |sb| {
            let resize = Some(Resize { size, zero_from: VBlock(zero_from) });
            block(&header(sb), &[RecordRef { resize, ..record(1, 0, &[], &[]) }])
        })
    };
    let none = "0 journal records";
    let of_4k = |name: &str, size: u64| {
        Case::new(format!("journal: {name}"), move |dir: &Path| {
            let path = make(dir, "vm.cow");
            patch_superblocks(&path, |sb| {
                sb.holder = Some(Holder { pid: u32::MAX, host: "x".into(), socket: String::new() });
                (sb.epoch, sb.sector_size) = (5, 4096);
            });
            let sb = superblock(&path);
            let resize = Some(Resize { size, zero_from: VBlock(1) });
            let block = block(&header(&sb), &[RecordRef { resize, ..record(1, 0, &[], &[]) }]);
            overwrite(&path, 2 * BLOCK, &block[..]);
        })
    };
    vec![
        resized("a disk that shrinks to a block", 4096, 1).on(&CHECKS, &[3], &["1 journal records"]),
        resized("a disk of 4 PiB", 1 << 52, 256).on(&CHECKS, &[3], &["1 journal records"]),
        resized("zeros from the second block on", 1 << 20, 1).on(&CHECKS, &[3], &["1 journal records"]),
        resized("a disk without a sector", 0, 1).on(&CHECKS, &[3], &[none]),
        resized("a disk of 513 bytes", 513, 1).on(&CHECKS, &[3], &[none]),
        resized("a disk above 4 PiB", (1 << 52) + 512, 1).on(&CHECKS, &[3], &[none]),
        resized("a disk of an exabyte", (1 << 60) - 512, 1).on(&CHECKS, &[3], &[none]),
        resized("zeros from the first block on", 1 << 20, 0).on(&CHECKS, &[3], &[none]),
        resized("zeros behind the end", 1 << 20, 257).on(&CHECKS, &[3], &[none]),
        resized("zeros behind every end", 1 << 20, u64::MAX).on(&CHECKS, &[3], &[none]),
        refused(
            of_4k("half a sector of 4 KiB", 8192 + 512),
            &["makes the disk 8704 bytes", "at offset 8192"],
        ),
    ]
}
