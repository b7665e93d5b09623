//! A ring that the fuzzer makes up, sealed, in a layer that was not closed: what replay applies is what rule O2 says.

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use cowdisk::chain::{Access, OpenOptions, open_chain};
use cowdisk::device::Queue;
use cowdisk::format::{
    DiskId, Holder, JOURNAL_HEADER_BYTES, JournalBlock, LayerId, RecordExtent, RecordRef, Salt, Superblock,
    encode_record,
};
use cowdisk::storage::IoBuf;
use cowdisk::storage::sim::SimDisk;
use cowdisk::units::{PBlock, Seq, VBlock};

use crate::image::{IMAGE, Opened, SIZE, open};
use crate::model::{self, Base, Block, Extent, Place, Record, Shown};

const BLOCK: usize = 4096;
const RING: u64 = 64;
/// Blocks of data behind the ring, of known content.
const DATA: u64 = 64;
const LAYER: LayerId = LayerId([7; 16]);
const OTHER: LayerId = LayerId([8; 16]);

/// Numbers near each other, with a few far away.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Number {
    low: u8,
    far: u8,
}

impl Number {
    fn value(self) -> u64 {
        let low = u64::from(self.low % 64);
        match self.far {
            254 => low + 400,
            255 => low + (1 << 40),
            _ => low,
        }
    }
}

#[derive(Arbitrary, Clone, Debug)]
struct AnyExtent {
    vblock: u8,
    /// Often a block of known content.
    place: u16,
    blocks: u8,
    strange: u8,
}

#[derive(Arbitrary, Clone, Debug)]
struct AnyRecord {
    seq: Number,
    /// The number of the record before is one lower.
    follows: bool,
    durable: Number,
    behind: u8,
    unsettled: Vec<u8>,
    extents: Vec<AnyExtent>,
    /// One of its checksums is wrong.
    wrong_crc: Option<u8>,
    flipped: Option<u16>,
    extra_crc: u8,
}

#[derive(Arbitrary, Clone, Debug)]
struct AnyBlock {
    at: u8,
    /// 0..=250 of this layer, epoch and generation.
    origin: u8,
    records: Vec<AnyRecord>,
    tail: u8,
}

#[derive(Arbitrary, Clone, Debug)]
struct Input {
    cut: u8,
    durable: u8,
    torn_slot: Option<bool>,
    blocks: Vec<AnyBlock>,
}

/// What an input came to, for choosing seeds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Came {
    TooShort,
    Refused,
    /// Records applied, and others that were there.
    Opened(usize, usize),
}

fn data_block(at: u64) -> Vec<u8> {
    (0..BLOCK).map(|i| (at as usize * 31 + i % 251) as u8).collect()
}

impl AnyExtent {
    fn extent(&self) -> Extent {
        let area = 2 + RING;
        let mut e = Extent {
            vblock: u64::from(self.vblock % 72),
            blocks: 1 + u32::from(self.blocks % 4),
            place: Place::Data(area + u64::from(self.place) % (DATA + 2)),
        };
        match self.strange {
            0..=40 => e.place = Place::Zero,
            41..=44 => e.blocks = 0,
            45 => e.blocks = u32::MAX,
            46 => (e.place, e.blocks) = (Place::Zero, u32::MAX),
            47 => e.vblock = (1 << 40) - 1,
            48 => e.vblock = 1 << 40,
            49 => e.place = Place::Data(u64::from(self.place % 4)),
            50 => e.place = Place::Data((1 << 42) - 1),
            51 => e.place = Place::Data(u64::from(self.place) << 20),
            52 => (e.place, e.blocks) = (Place::Zero, 1 << 20),
            _ => {}
        }
        // Checksums for more do not fit a block.
        if matches!(e.place, Place::Data(_)) {
            e.blocks = e.blocks.min(64);
        }
        e
    }
}

/// The file that is made up, and what it holds.
struct Made {
    bytes: Vec<u8>,
    base: Base,
    ring: Vec<Block>,
}

impl Made {
    fn crc(&self, at: u64) -> Option<u32> {
        let start = usize::try_from(at).ok()?.checked_mul(BLOCK)?;
        self.bytes.get(start..start.checked_add(BLOCK)?).map(crc32fast::hash)
    }
}

fn superblock(input: &Input, generation: u64) -> Superblock {
    let mut sb = Superblock::new_layer(LAYER, DiskId([9; 16]), SIZE, 512, RING * BLOCK as u64);
    sb.generation = generation;
    sb.epoch = 5;
    sb.inode = 2;
    sb.cut = Seq(u64::from(input.cut % 32));
    sb.durable = Seq(sb.cut.0 + u64::from(input.durable % 4) / 3 * u64::from(input.durable % 16));
    sb.holder = Some(Holder { pid: 1, host: "fuzz".into(), socket: String::new() });
    sb
}

fn record(any: &AnyRecord, before: u64, known: impl Fn(u64) -> Option<u32>) -> Record {
    let seq = if any.follows { before + 1 } else { any.seq.value() };
    let durable = match any.durable.far {
        0..=200 => seq.saturating_sub(1 + u64::from(any.behind)),
        _ => any.durable.value(),
    };
    let mut unsettled: Vec<u32> = any.unsettled.iter().take(300).map(|d| u32::from(*d)).collect();
    if any.behind % 16 != 15 {
        unsettled.sort_unstable();
        unsettled.dedup();
        unsettled.retain(|d| *d > 0 && u64::from(*d) < seq);
    }
    let extents: Vec<Extent> = any.extents.iter().take(8).map(AnyExtent::extent).collect();
    let mut crcs = Vec::new();
    for e in &extents {
        if let Place::Data(first) = e.place {
            crcs.extend((0..u64::from(e.blocks)).map(|i| known(first + i).unwrap_or_default()));
        }
    }
    if let Some(at) = any.wrong_crc.filter(|_| !crcs.is_empty()) {
        let at = usize::from(at) % crcs.len();
        crcs[at] ^= 0x100;
    }
    if any.extra_crc == 77 {
        crcs.push(1);
    }
    Record { seq, durable, unsettled, extents, crcs, whole: true }
}

fn encode(record: &Record, salt: Salt, out: &mut [u8]) -> Option<usize> {
    let place = |p| match p {
        Place::Data(at) => cowdisk::format::Place::Data(PBlock(at)),
        Place::Zero => cowdisk::format::Place::Zero,
    };
    let extents: Vec<RecordExtent> = record
        .extents
        .iter()
        .map(|e| RecordExtent { vblock: VBlock(e.vblock), place: place(e.place), blocks: e.blocks })
        .collect();
    let Record { seq, durable, unsettled, crcs, .. } = record;
    let record = RecordRef {
        seq: Seq(*seq),
        durable: Seq(*durable),
        unsettled,
        extents: &extents,
        crcs,
        resize: None,
    };
    encode_record(&record, salt, out)
}

/// One block of the ring: its bytes, and what a reader must make of them.
fn ring_block(any: &AnyBlock, sb: &Superblock, made: &Made, before: &mut u64) -> (u64, [u8; BLOCK], Block) {
    let at = 2 + u64::from(any.at) % RING;
    let (mut layer, mut epoch, mut generation) = (LAYER, sb.epoch, sb.generation);
    match any.origin {
        251 => layer = OTHER,
        252 => epoch -= 1,
        253 => epoch += 1,
        254 => generation += 1,
        255 => (epoch, generation) = (epoch - 1, generation + 5),
        other => generation -= u64::from(other % 4),
    }
    let mut bytes = [0; BLOCK];
    JournalBlock { layer, epoch, generation }.encode(PBlock(at), &mut bytes);
    let salt = Salt::new(layer, epoch);
    let mut block = Block { ours: layer == LAYER, epoch, generation, records: Vec::new() };
    let mut used = JOURNAL_HEADER_BYTES;
    for any in any.records.iter().take(40) {
        let mut record = record(any, *before, |at| made.crc(at));
        let Some(len) = encode(&record, salt, &mut bytes[used..]) else { break };
        if let Some(bit) = any.flipped {
            let bit = usize::from(bit) % (len * 8);
            bytes[used + bit / 8] ^= 1 << (bit % 8);
            record.whole = false;
        }
        *before = record.seq;
        used += len;
        block.records.push(record);
    }
    bytes[used..].fill(any.tail);
    (at, bytes, block)
}

fn make(input: &Input) -> Made {
    let newest = superblock(input, 41);
    let area = (2 + RING) as usize * BLOCK;
    let mut bytes = vec![0; area];
    bytes.extend((2 + RING..2 + RING + DATA).flat_map(data_block));
    let base = Base { epoch: newest.epoch, generation: 41, cut: newest.cut.0, durable: newest.durable.0 };
    let mut made = Made { bytes, base, ring: Vec::new() };
    for sb in [superblock(input, 40), newest.clone()] {
        let block = sb.encode().expect("it is in order");
        let start = (sb.generation % 2) as usize * BLOCK;
        made.bytes[start..start + BLOCK].copy_from_slice(&block[..]);
    }
    if input.torn_slot.is_some() {
        made.bytes[100] ^= 1;
    }
    let mut before = base.cut;
    // Extents of a record may lie in the ring and see it as it is in the end: place first, then form.
    let mut placed = std::collections::BTreeMap::new();
    for any in input.blocks.iter().take(24) {
        let (at, bytes, block) = ring_block(any, &newest, &made, &mut before);
        placed.insert(at, (bytes, block));
    }
    for (at, (bytes, block)) in placed {
        let start = at as usize * BLOCK;
        made.bytes[start..start + BLOCK].copy_from_slice(&bytes);
        made.ring.push(block);
    }
    made
}

async fn compare(queue: &impl Queue, made: &Made, shown: &[Shown], how: &str) {
    let buf = IoBuf::zeroed(BLOCK);
    for (vblock, shown) in shown.iter().enumerate() {
        let read = queue.read((vblock * BLOCK) as u64, buf.clone()).await.ok().map(|()| buf.to_vec());
        let right = match *shown {
            Shown::Zero => Some(vec![0; BLOCK]),
            Shown::Block(at) => Some(made.bytes[at as usize * BLOCK..][..BLOCK].to_vec()),
            Shown::Error => None,
        };
        assert!(read == right, "{how}: block {vblock} must show {shown:?}");
    }
}

/// Opens the made-up layer for reading and for writing, and compares.
pub fn run(bytes: &[u8]) -> Came {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) else { return Came::TooShort };
    let made = make(&input);
    let expected = model::applied(made.base, &made.ring, |at| made.crc(at));
    let disk = SimDisk::new(1);
    disk.put_file(IMAGE, &made.bytes);
    let reading = OpenOptions { cache_bytes: 1 << 20, ..OpenOptions::new(Access::Read { lock: true }) };
    let shown =
        expected.as_ref().map(|records| model::content(records, SIZE / BLOCK as u64, |at| made.crc(at)));
    disk.block_on(async {
        match (open_chain(&disk, Path::new(IMAGE), &reading).await, &shown) {
            (Ok((image, report)), Some(shown)) => {
                assert_eq!(report.recovery.applied, expected.as_ref().map_or(0, Vec::len), "applied");
                let queue = cowdisk::chain::ImageQueue::new(std::sync::Arc::new(image));
                compare(&*queue, &made, shown, "open for reading").await;
            }
            (Err(_), None) => {}
            (Ok(_), None) => panic!("opened, but a record that was durable is missing"),
            (Err(e), Some(_)) => panic!("refused: {e}"),
        }
    });
    let on = disk.clone();
    disk.block_on(async move {
        // A record of a made-up place may leave no room above it.
        let Ok(Opened { image, queue }) = open(&on).await else { return };
        let shown = shown.expect("opened for writing, but not for reading");
        compare(&*queue, &made, &shown, "open for writing").await;
        let _ = queue.write(4096, IoBuf::from_slice(&[1; 4096]), true).await;
        queue.close();
        let _ = image.close().await;
    });
    let there = input.blocks.iter().map(|b| b.records.len()).sum::<usize>();
    expected.map_or(Came::Refused, |records| Came::Opened(records.len(), there.saturating_sub(records.len())))
}
