//! Nothing but what was written decodes, whatever the bytes are.

mod damage;
mod journal;
mod nodes;
mod random;
mod superblock;

use proptest::prelude::*;

use super::*;
use crate::error::{Error, Kind};
use crate::limits;
use crate::units::{BLOCK_SIZE, Seq, VBlock};

type Block = Box<[u8; BLOCK_SIZE]>;

const LAYER: LayerId = LayerId(*b"0123456789abcdef");
const DISK: DiskId = DiskId(*b"ABCDEFGHIJKLMNOP");
const GENERATION: u64 = 0x0102_0304_0506;
const ADDRESS: PBlock = PBlock(0x4321);
const WHOLE: std::ops::Range<VBlock> = VBlock(0)..VBlock(1 << 40);

/// Puts the checksum of its kind into a superblock, node or journal header, so that what is behind it is looked at.
fn reseal(block: &mut [u8]) {
    let salt: &[u8] = match &block[..4] {
        b"COWD" => b"cowdisk superblock",
        b"COWN" => b"cowdisk node",
        b"COWJ" => b"cowdisk journal",
        other => panic!("magic {other:?}"),
    };
    let end = if &block[..4] == b"COWJ" { JOURNAL_HEADER_BYTES } else { block.len() };
    let crc = crc32fast::hash(&[salt, &block[8..end]].concat());
    block[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// `block` with `bytes` at `at`, sealed again.
fn patched(block: &Block, at: usize, bytes: &[u8]) -> Block {
    let mut block = block.clone();
    block[at..at + bytes.len()].copy_from_slice(bytes);
    reseal(&mut block[..]);
    block
}

fn assert_refused<T: std::fmt::Debug>(result: crate::Result<T>, kind: Kind, text: &str, at: PBlock) {
    let error = match result {
        Err(error) => error,
        Ok(value) => panic!("{text:?} was to be refused, but it decodes to {value:#?}"),
    };
    assert_eq!((error.kind(), error.at_offset()), (kind, Some(at.pos())), "{error}");
    assert!(error.message().contains(text), "{text:?} is not in {:?}", error.message());
}

/// A head with a parent and a holder.
fn head() -> Superblock {
    let mut sb = Superblock::new_layer(LAYER, DISK, 10 << 30, 512, 1 << 20);
    sb.generation = GENERATION;
    sb.epoch = 77;
    sb.inode = 0x1234_5678_9abc_def0;
    sb.high_water = PBlock(sb.block_area.0 + 1000);
    sb.root = TreeRoot { pblock: PBlock(sb.block_area.0 + 999), crc: 0xdead_beef, height: 2 };
    (sb.cut, sb.durable) = (Seq(4000), Seq(4001));
    sb.parent = Parent::Layer {
        layer: LayerId([7; 16]),
        root_crc: Some(0x1234_5678),
        hints: PathHints { relative: "base@s1.cow".into(), absolute: "/images/base@s1.cow".into() },
    };
    sb.holder = Some(Holder { pid: 4711, host: "host".into(), socket: "/run/cowdisk/a.sock".into() });
    sb
}

/// A sealed layer on a raw base.
fn sealed() -> Superblock {
    let mut sb = head();
    sb.parent = Parent::Foreign {
        format: ForeignFormat::Raw,
        size: 123_456_789,
        mtime_ns: -5,
        sample: [0xa5; 32],
        hints: PathHints { relative: "disk.raw".into(), absolute: String::new() },
    };
    sb.areas.clear();
    sb.holder = None;
    sb.sealed = Some(Sealed { name: "before upgrade".into(), time_ns: 1_700_000_000_000_000_000 });
    sb
}

fn data(vblock: u64, blocks: u32, pblock: u64, crc_index: u32) -> LeafExtent {
    LeafExtent { vblock: VBlock(vblock), blocks, place: Place::Data(PBlock(pblock)), crc_index }
}

fn zero(vblock: u64, blocks: u32, crc_index: u32) -> LeafExtent {
    LeafExtent { vblock: VBlock(vblock), blocks, place: Place::Zero, crc_index }
}

fn leaf() -> LeafNode {
    let extents =
        vec![data(1000, 3, 500, 0), zero(1003, 70_000, 3), data(80_000, 2, 300, 3), zero(90_000, 1, 5)];
    LeafNode { extents, crcs: vec![1, 2, 3, 4, u32::MAX] }
}

fn inner() -> InnerNode {
    let child = |first, pblock, crc| Child { first: VBlock(first), pblock: PBlock(pblock), crc };
    InnerNode { children: vec![child(10, 600, 11), child(2000, 601, 12), child(1 << 39, 602, 13)] }
}

fn encoded(sb: &Superblock) -> Block {
    sb.encode().expect("valid")
}

fn leaf_block() -> Block {
    leaf().encode(LAYER, ADDRESS, GENERATION).0
}

fn inner_block() -> Block {
    inner().encode(LAYER, ADDRESS, GENERATION, 3).0
}

fn salt() -> Salt {
    Salt::new(LAYER, 77)
}

fn record(seq: u64) -> Record {
    Record {
        seq: Seq(seq),
        durable: Seq(seq - 5),
        unsettled: vec![1, 2, 4],
        extents: vec![
            RecordExtent { vblock: VBlock(100), place: Place::Data(PBlock(900)), blocks: 2 },
            RecordExtent { vblock: VBlock(256), place: Place::Zero, blocks: 1_000_000 },
            RecordExtent { vblock: VBlock(7), place: Place::Data(PBlock(902)), blocks: 1 },
        ],
        crcs: vec![21, 22, 23],
        resize: None,
    }
}

fn encode_one(record: &Record, salt: Salt, out: &mut [u8]) -> Option<usize> {
    let Record { seq, durable, unsettled, extents, crcs, resize } = record;
    let (seq, durable, resize) = (*seq, *durable, *resize);
    encode_record(&RecordRef { seq, durable, unsettled, extents, crcs, resize }, salt, out)
}

/// A journal block with these records, and the bytes used.
fn journal(records: &[Record]) -> (Block, usize) {
    let mut block = Box::new([0; BLOCK_SIZE]);
    JournalBlock { layer: LAYER, epoch: 77, generation: GENERATION }.encode(ADDRESS, &mut block);
    let mut used = JOURNAL_HEADER_BYTES;
    for record in records {
        used += encode_one(record, salt(), &mut block[used..]).expect("it fits");
    }
    (block, used)
}
