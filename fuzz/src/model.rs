//! Rule O2 (format-spec.md 5 and 8) once more, as plainly as it can be said, for rings that a fuzzer makes up. It knows
//! the values that were encoded, and shares no code with the decoder or with replay.

use std::collections::{BTreeMap, BTreeSet};

/// Blocks of the disk that a record can name, and more.
const MAX_VBLOCK: u64 = 1 << 40;
/// A file has at most so many blocks.
const MAX_PBLOCK: u64 = 1 << 42;
const MAX_UNSETTLED: usize = 256;

/// Where an extent's content is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    Data(u64),
    Zero,
}

#[derive(Clone, Debug)]
pub struct Extent {
    pub vblock: u64,
    pub blocks: u32,
    pub place: Place,
}

#[derive(Clone, Debug)]
pub struct Record {
    pub seq: u64,
    pub durable: u64,
    pub unsettled: Vec<u32>,
    pub extents: Vec<Extent>,
    pub crcs: Vec<u32>,
    /// Its bytes were not damaged.
    pub whole: bool,
}

/// A block of the ring with a header that verifies.
#[derive(Clone, Debug)]
pub struct Block {
    pub ours: bool,
    pub epoch: u64,
    pub generation: u64,
    pub records: Vec<Record>,
}

/// The superblock in force.
#[derive(Clone, Copy, Debug)]
pub struct Base {
    pub epoch: u64,
    pub generation: u64,
    pub cut: u64,
    pub durable: u64,
}

impl Record {
    /// Section 5.2: the ranges.
    fn verifies(&self) -> bool {
        let ascending = self.unsettled.windows(2).all(|w| w[0] < w[1]);
        let distances = self.unsettled.iter().all(|&d| d >= 1 && u64::from(d) < self.seq);
        let extents = self.extents.iter().all(|e| {
            let place = match e.place {
                Place::Data(first) => first >= 2 && first + u64::from(e.blocks) <= MAX_PBLOCK,
                Place::Zero => true,
            };
            place && e.blocks >= 1 && e.vblock + u64::from(e.blocks) <= MAX_VBLOCK
        });
        let data: u64 =
            self.extents.iter().filter(|e| e.place != Place::Zero).map(|e| u64::from(e.blocks)).sum();
        self.whole
            && self.durable < self.seq
            && self.unsettled.len() <= MAX_UNSETTLED
            && ascending
            && distances
            && extents
            && self.crcs.len() as u64 == data
    }

    /// Pairs of the block of the disk, its place, and the checksum that it must have.
    fn data(&self) -> Vec<(u64, u64, u32)> {
        let mut crcs = self.crcs.iter();
        let mut all = Vec::new();
        for e in &self.extents {
            let Place::Data(first) = e.place else { continue };
            for i in 0..u64::from(e.blocks) {
                all.push((e.vblock + i, first + i, *crcs.next().expect("it verifies")));
            }
        }
        all
    }
}

/// The records that must be applied, in order; `None`: the layer must be refused. `crc` gives the checksum of a block
/// of the file, `None` past its end. Of records with the same number, the one further back in the ring counts.
pub fn applied(base: Base, ring: &[Block], crc: impl Fn(u64) -> Option<u32>) -> Option<Vec<Record>> {
    let ours = || ring.iter().filter(|block| block.ours);
    if ours().any(|b| (b.epoch, b.generation) > (base.epoch, base.generation)) {
        return None;
    }
    let mut records: BTreeMap<u64, &Record> = BTreeMap::new();
    let mut durable = base.durable;
    for block in ours().filter(|block| block.epoch == base.epoch) {
        for record in block.records.iter().take_while(|record| record.verifies()) {
            durable = durable.max(record.durable);
            if record.seq > base.cut {
                records.insert(record.seq, record);
            }
        }
    }
    let there = records.range(..=durable).count() as u64;
    if there < durable.saturating_sub(base.cut) {
        return None;
    }
    let mut applied: BTreeSet<u64> = BTreeSet::new();
    for (&seq, record) in &records {
        let listed = record.unsettled.iter().map(|&d| seq - u64::from(d));
        let excused = listed.filter(|n| *n > base.cut && !applied.contains(n)).count() as u64;
        let closed = applied.len() as u64 + excused == seq - base.cut - 1;
        let matches = || record.data().iter().all(|(_, at, sum)| crc(*at) == Some(*sum));
        if seq <= durable || (closed && matches()) {
            applied.insert(seq);
        }
    }
    Some(applied.iter().map(|seq| records[seq].clone()).collect())
}

/// What a block of the disk must show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shown {
    Zero,
    /// The content of this block of the file.
    Block(u64),
    /// An error: its data does not match.
    Error,
}

/// What the first `blocks` blocks of a disk, empty before, show when `records` have been applied.
pub fn content(records: &[Record], blocks: u64, crc: impl Fn(u64) -> Option<u32>) -> Vec<Shown> {
    let mut shown = vec![Shown::Zero; blocks as usize];
    for record in records {
        let mut data = record.data().into_iter();
        for e in &record.extents {
            for vblock in e.vblock..e.vblock + u64::from(e.blocks) {
                let new = match e.place {
                    Place::Zero if vblock >= blocks => break,
                    Place::Zero => Shown::Zero,
                    Place::Data(_) => {
                        let (_, at, sum) = data.next().expect("one for each block");
                        if crc(at) == Some(sum) { Shown::Block(at) } else { Shown::Error }
                    }
                };
                if let Some(cell) = shown.get_mut(vblock as usize) {
                    *cell = new;
                }
            }
        }
    }
    shown
}
