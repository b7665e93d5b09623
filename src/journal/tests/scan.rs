//! What of the ring counts (rule O2).

use super::*;
use crate::format::{Area, DiskId, RecordRef, Superblock, encode_record};
use crate::journal::{Scan, scan};
use crate::storage::OpenHow;

/// Blocks of the ring, more than are read at once.
const RING: u64 = 600;

fn superblock() -> Superblock {
    let mut sb = Superblock::new_layer(LAYER, DiskId([1; 16]), 1 << 40, 512, RING * BLOCK_SIZE as u64);
    (sb.epoch, sb.generation) = (EPOCH, GENERATION);
    (sb.cut, sb.durable, sb.high_water) = (Seq(10), Seq(12), PBlock(5000));
    sb
}

fn data(seq: u64, durable: u64, pblock: u64, blocks: u32) -> Record {
    let extent = RecordExtent { vblock: VBlock(50), place: Place::Data(PBlock(pblock)), blocks };
    let crcs = vec![0; blocks as usize];
    Record {
        seq: Seq(seq),
        durable: Seq(durable),
        unsettled: vec![],
        extents: vec![zeros(9, 7), extent],
        crcs,
        resize: None,
    }
}

struct Ring {
    bytes: Vec<u8>,
}

impl Ring {
    fn new() -> Ring {
        Ring { bytes: vec![0; (2 + RING as usize) * BLOCK_SIZE] }
    }

    /// A journal block at `at`, counted from the beginning of the ring.
    fn put(&mut self, at: u64, layer: LayerId, epoch: u64, generation: u64, records: &[Record]) {
        let mut block = Box::new([0; BLOCK_SIZE]);
        JournalBlock { layer, epoch, generation }.encode(PBlock(2 + at), &mut block);
        let mut used = crate::format::JOURNAL_HEADER_BYTES;
        for r in records {
            let (unsettled, extents, crcs) = (&r.unsettled[..], &r.extents[..], &r.crcs[..]);
            let record =
                RecordRef { seq: r.seq, durable: r.durable, unsettled, extents, crcs, resize: r.resize };
            used += encode_record(&record, Salt::new(layer, epoch), &mut block[used..]).expect("it fits");
        }
        self.bytes[(2 + at as usize) * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(&block[..]);
    }

    fn scan_of(&self, len: usize, unreadable: Option<u64>) -> crate::Result<Scan> {
        let disk = SimDisk::new(3);
        disk.put_file("/f", &self.bytes[..len]);
        if let Some(block) = unreadable {
            disk.make_unreadable("/f", (2 + block) * BLOCK_SIZE as u64);
        }
        let file = disk.open(Path::new("/f"), OpenHow::default()).expect("it is there");
        let sb = superblock();
        let ring = sb.ring().expect("a head has one");
        assert_eq!(ring, Area { first: PBlock(2), blocks: RING });
        disk.block_on(scan(&file, ring, &sb))
    }

    fn scan(&self) -> crate::Result<Scan> {
        self.scan_of(self.bytes.len(), None)
    }
}

fn found(scan: &Scan) -> Vec<u64> {
    scan.records.keys().map(|s| s.0).collect()
}

#[test]
fn an_empty_ring_adds_nothing_to_the_superblock() {
    let scan = Ring::new().scan().expect("readable");
    assert_eq!((found(&scan), scan.durable, scan.high_water), (vec![], Seq(12), PBlock(5000)));
}

#[test]
fn every_block_of_the_ring_is_read() {
    let mut ring = Ring::new();
    let places = [0, 1, 255, 256, 257, 511, 512, 599];
    for (i, at) in places.into_iter().enumerate() {
        ring.put(at, LAYER, EPOCH, GENERATION, &[data(100 + i as u64, 0, 4000, 3)]);
    }
    let scan = ring.scan().expect("readable");
    assert_eq!(found(&scan), (100..108).collect::<Vec<u64>>());
    assert_eq!(scan.records[&Seq(103)], data(103, 0, 4000, 3));
    assert_eq!((scan.durable, scan.high_water), (Seq(12), PBlock(5000)));
    // A file may end within the ring, and within a block of it.
    for (blocks, bytes, count) in
        [(2 + 257, 0, 4), (2 + 257, 4000, 4), (2 + 256, 0, 3), (2 + 258, 0, 5), (1, 0, 0)]
    {
        let scan = ring.scan_of(blocks * BLOCK_SIZE + bytes, None).expect("readable");
        assert_eq!(found(&scan).len(), count, "{blocks} blocks and {bytes} bytes");
    }
}

#[test]
fn records_below_the_cut_still_tell_what_is_durable_and_in_use() {
    let mut ring = Ring::new();
    ring.put(3, LAYER, EPOCH, GENERATION, &[data(10, 7, 8000, 5), data(11, 9, 7000, 5)]);
    ring.put(4, LAYER, EPOCH, GENERATION - 1, &[data(20, 15, 4000, 1), data(21, 13, 4000, 1)]);
    let scan = ring.scan().expect("readable");
    assert_eq!(found(&scan), [11, 20, 21]);
    assert_eq!((scan.durable, scan.high_water), (Seq(15), PBlock(8005)));
}

#[test]
fn blocks_of_other_layers_and_openings_are_passed_over() {
    let mut ring = Ring::new();
    ring.put(0, LayerId([8; 16]), EPOCH + 1, GENERATION + 1, &[data(30, 29, 9000, 1)]);
    ring.put(1, LAYER, EPOCH - 1, GENERATION + 1, &[data(31, 30, 9000, 1)]);
    // A torn first write, and garbage.
    ring.put(2, LAYER, EPOCH, GENERATION, &[data(32, 31, 9000, 1)]);
    ring.bytes[4 * BLOCK_SIZE + 20] ^= 1;
    ring.bytes[5 * BLOCK_SIZE..6 * BLOCK_SIZE].fill(0xaa);
    ring.put(4, LAYER, EPOCH, GENERATION, &[data(33, 11, 4000, 1)]);
    let scan = ring.scan().expect("readable");
    assert_eq!(found(&scan), [33]);
    assert_eq!((scan.durable, scan.high_water), (Seq(12), PBlock(5000)));
}

/// Never fall back in silence.
#[test]
fn a_block_that_is_newer_than_the_superblock_proves_it_damaged() {
    for (epoch, generation) in [(EPOCH, GENERATION + 1), (EPOCH + 1, GENERATION - 1), (EPOCH + 1, GENERATION)]
    {
        let mut ring = Ring::new();
        ring.put(300, LAYER, epoch, generation, &[]);
        let error = ring.scan().expect_err("the superblock is not the newest");
        assert_eq!((error.kind(), error.at_offset()), (Kind::Corrupt, Some(302 * BLOCK_SIZE as u64)));
    }
}

#[test]
fn what_lies_behind_the_ring_is_not_read() {
    let mut ring = Ring::new();
    ring.bytes.resize((2 + RING as usize + 1000) * BLOCK_SIZE, 0);
    ring.put(RING - 1, LAYER, EPOCH, GENERATION, &[data(20, 15, 4000, 1)]);
    (RING..RING + 1000).for_each(|at| ring.put(at, LAYER, EPOCH, GENERATION, &[data(21, 16, 4000, 1)]));
    assert_eq!(found(&ring.scan().expect("readable")), [20]);
}

/// O3.
#[test]
fn a_ring_that_cannot_be_read_is_an_error() {
    let mut ring = Ring::new();
    ring.put(0, LAYER, EPOCH, GENERATION, &[data(20, 15, 4000, 1)]);
    let error = ring.scan_of(ring.bytes.len(), Some(300)).expect_err("unreadable");
    assert_eq!((error.kind(), error.at_offset()), (Kind::Io, Some((2 + 256) * BLOCK_SIZE as u64)));
}
