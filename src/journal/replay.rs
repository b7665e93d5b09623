//! Reading the journal back (rule O2).

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::format::{
    Area, BootId, ChecksumKind, JOURNAL_HEADER_BYTES, JournalBlock, Place, Record, RecordExtent, Salt,
    Superblock, decode_records,
};
use crate::limits::MAX_UNSETTLED;
use crate::rules::{self, Rule};
use crate::storage::{File, IoBuf, read_up_to};
use crate::units::{BLOCK, BLOCK_SIZE, PBlock, Seq, VBlock};

/// Blocks read at once.
const CHUNK_BLOCKS: u64 = 256;

/// What the ring holds of the current opening.
#[derive(Debug, Default)]
pub struct Scan {
    /// Records above the cut, by number.
    pub records: BTreeMap<Seq, Record>,
    /// The largest `durable_seq` seen, the superblock's included.
    pub durable: Seq,
    /// One above the highest block that any valid record names.
    pub high_water: PBlock,
}

/// Reads the whole ring: records of `layer` in `epoch`, above `cut`.
///
/// # Errors
/// `Corrupt` if a block proves that a newer superblock has existed; `Io` if the ring cannot be read (O3: that is not
/// a mismatch).
pub async fn scan<F: File>(file: &F, ring: Area, sb: &Superblock) -> Result<Scan> {
    let salt = Salt::new(sb.layer, sb.epoch);
    let mut found = Scan { durable: sb.durable, high_water: sb.high_water, ..Scan::default() };
    let buf = IoBuf::zeroed(CHUNK_BLOCKS.min(ring.blocks.max(1)) as usize * BLOCK_SIZE);
    let mut block = [0; BLOCK_SIZE];
    let (mut next, end) = (ring.first.0, ring.first.0 + ring.blocks);
    while next < end {
        let blocks = CHUNK_BLOCKS.min(end - next);
        let part = buf.slice(0..blocks as usize * BLOCK_SIZE);
        let read = read_up_to(file, part, next * BLOCK)
            .await
            .map_err(|e| Error::io("read journal", e).offset(next * BLOCK))?;
        for i in 0..read / BLOCK_SIZE {
            buf.copy_to(i * BLOCK_SIZE, &mut block[..JOURNAL_HEADER_BYTES]);
            // Most of a ring may never have been written: not worth a copy and an error each.
            if block[..JOURNAL_HEADER_BYTES].iter().all(|&b| b == 0) {
                continue;
            }
            buf.copy_to(i * BLOCK_SIZE, &mut block);
            scan_block(&block, PBlock(next + i as u64), sb, salt, &mut found)?;
        }
        next += blocks;
    }
    Ok(found)
}

fn scan_block(block: &[u8], at: PBlock, sb: &Superblock, salt: Salt, found: &mut Scan) -> Result<()> {
    // A block without a valid header was never written, or its first write is torn: nothing in it was flushed.
    let Ok(header) = JournalBlock::decode(block, at) else { return Ok(()) };
    if header.layer != sb.layer {
        return Ok(());
    }
    if (header.epoch, header.generation) > (sb.epoch, sb.generation) {
        let text = format!(
            "superblock: the newest valid one has epoch {} generation {}, but the journal was written under epoch {} \
             generation {}: the newest superblock is damaged",
            sb.epoch, sb.generation, header.epoch, header.generation
        );
        return Err(Error::corrupt(text).offset(at.pos()));
    }
    if header.epoch != sb.epoch {
        return Ok(());
    }
    for record in decode_records(block, salt) {
        if let Some(resize) = record.resize.filter(|r| !r.size.is_multiple_of(u64::from(sb.sector_size))) {
            let text = format!("journal: record {} makes the disk {} bytes", record.seq.0, resize.size);
            return Err(Error::corrupt(text).offset(at.pos()));
        }
        found.durable = found.durable.max(record.durable);
        for extent in &record.extents {
            if let Place::Data(p) = extent.place {
                found.high_water = found.high_water.max(p.plus(u64::from(extent.blocks)));
            }
        }
        if record.seq > sb.cut {
            found.records.insert(record.seq, record);
        }
    }
    Ok(())
}

/// A record that was not applied: its request was never acknowledged, or the power went before a flush covered it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeftOut {
    /// Its number.
    pub seq: Seq,
    /// The blocks it would have changed.
    pub blocks: Vec<std::ops::Range<VBlock>>,
}

/// What replay decided.
#[derive(Debug, Default)]
pub struct Replay {
    /// Records to apply, in order.
    pub apply: Vec<Record>,
    /// Records that are left out.
    pub left_out: Vec<LeftOut>,
    /// The newest number seen.
    pub newest: Seq,
}

/// What the data of a record is worth of which it is not known that it was durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Later {
    /// Its checksums tell.
    Verify,
    /// It was there before the record (DataFirst), and the kernel that has it runs.
    Keep,
    /// Nobody knows.
    Drop,
}

impl Later {
    /// For the layer `sb` in a file with this inode number, under this kernel (SameBoot). A copy was read while nobody
    /// knows what was being written.
    pub fn of(sb: &Superblock, inode: u64, boot: BootId) -> Later {
        match sb.checksums {
            ChecksumKind::Crc32 => Later::Verify,
            ChecksumKind::None { boot: then } if then.is(boot) && sb.inode == inode => Later::Keep,
            ChecksumKind::None { .. } if rules::holds(Rule::SameBoot) => Later::Drop,
            ChecksumKind::None { .. } => Later::Keep,
        }
    }
}

/// Decides which records count. Those up to `durable` must all be there and are taken as they are; a later one is
/// taken if its data is there, as `later` tells, and every lower number that it does not list as unsettled is taken.
pub async fn replay<F: File>(file: &F, cut: Seq, scan: Scan, later: Later) -> Result<Replay> {
    let mut result = Replay { newest: cut, ..Replay::default() };
    // Numbers above the cut that are not applied; past MAX_UNSETTLED of them no record can list them all.
    let mut missing: Vec<Seq> = Vec::new();
    let mut next = cut.next();
    for (seq, record) in scan.records {
        if next <= scan.durable && seq > next && rules::holds(Rule::DurableThere) {
            return Err(Error::corrupt(format!(
                "journal: record {} is missing, although all up to {} were durable",
                next.0, scan.durable.0
            )));
        }
        let gap = (seq.0 - next.0).min(MAX_UNSETTLED as u64 + 1);
        missing.extend((0..gap).map(|i| Seq(next.0 + i)));
        next = seq.next();
        result.newest = seq;
        let good = seq <= scan.durable
            || allows(&record, &missing)
                && match later {
                    Later::Verify => data_matches(file, &record).await?,
                    Later::Keep => true,
                    Later::Drop => false,
                };
        if good {
            result.apply.push(record);
        } else {
            missing.push(seq);
            let blocks =
                record.extents.iter().map(|e| e.vblock..e.vblock.plus(u64::from(e.blocks))).collect();
            result.left_out.push(LeftOut { seq, blocks });
        }
        missing.truncate(MAX_UNSETTLED + 1);
    }
    if next <= scan.durable && rules::holds(Rule::DurableThere) {
        return Err(Error::corrupt(format!(
            "journal: record {} is missing, although all up to {} were durable",
            next.0, scan.durable.0
        )));
    }
    Ok(result)
}

/// True if the record lists every missing lower number as not settled when it was formed.
fn allows(record: &Record, missing: &[Seq]) -> bool {
    !rules::holds(Rule::LowerNumbers)
        || missing.len() <= MAX_UNSETTLED
            && missing.iter().all(|m| record.unsettled.iter().any(|d| record.seq.0 - u64::from(*d) == m.0))
}

/// True if all data of the record is there. O3: an error that is not "past the end" is no mismatch.
async fn data_matches<F: File>(file: &F, record: &Record) -> Result<bool> {
    let mut crcs = record.crcs.iter();
    for extent in &record.extents {
        let RecordExtent { place: Place::Data(pblock), blocks, .. } = *extent else { continue };
        let mut done = 0;
        while done < u64::from(blocks) {
            let part = CHUNK_BLOCKS.min(u64::from(blocks) - done);
            let buf = IoBuf::zeroed(part as usize * BLOCK_SIZE);
            let pos = pblock.plus(done).pos();
            let read = match read_up_to(file, buf.clone(), pos).await {
                Err(e) if rules::holds(Rule::ReadErrors) => {
                    return Err(Error::io("read data of a journal record", e).offset(pos));
                }
                read => read.unwrap_or(0),
            };
            if read < buf.len() {
                return Ok(!rules::holds(Rule::DataMatches));
            }
            for i in 0..part as usize {
                let block = buf.slice(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE);
                if crcs.next() != Some(&block.crc32(0)) && rules::holds(Rule::DataMatches) {
                    return Ok(false);
                }
            }
            done += part;
        }
    }
    Ok(true)
}
