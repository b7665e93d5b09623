//! Journal blocks and records (format-spec.md 5).
//!
//! A block's header never changes after its first write, and nothing in it depends on the records: a block may be
//! rewritten with more records behind the old bytes, and whatever part of that reaches the disk, the old records
//! stay readable. Each record delimits and verifies itself.

use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize};

use super::header::{HEADER_BYTES, Header, Magic};
use super::{KIND_SHIFT, LayerId, PackedPlace, Place, codec, in_file};
use crate::error::Result;
use crate::limits;
use crate::units::{BLOCK_SIZE, PBlock, SECTOR, Seq, VBlock, blocks_for};

/// Bytes in front of the first record.
pub const JOURNAL_HEADER_BYTES: usize = HEADER_BYTES + 8;
/// Bytes of a record without any list element: length, checksum, two numbers, three list lengths.
pub const RECORD_FIXED_BYTES: usize = 8 + 16 + 3 * 8;
/// Bytes of one extent of a record.
pub const RECORD_EXTENT_BYTES: usize = 20;
/// Bytes of one checksum of a record.
pub const RECORD_CRC_BYTES: usize = 4;
/// Bytes of one unsettled number of a record.
pub const RECORD_UNSETTLED_BYTES: usize = 4;

/// What binds a record to a layer and one opening of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Salt {
    crc: u32,
}

impl Salt {
    /// For records of `layer` in `epoch`.
    pub fn new(layer: LayerId, epoch: u64) -> Salt {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(b"cowdisk record");
        hasher.update(&layer.0);
        hasher.update(&epoch.to_le_bytes());
        Salt { crc: hasher.finalize() }
    }

    pub(super) fn checksum(self, body: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.crc);
        hasher.update(&(body.len() as u64).to_le_bytes());
        hasher.update(body);
        hasher.finalize()
    }
}

/// The header of a journal block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalBlock {
    /// The layer it belongs to.
    pub layer: LayerId,
    /// The opening it was written in.
    pub epoch: u64,
    /// The superblock generation in force when it was first written.
    pub generation: u64,
}

impl JournalBlock {
    /// Writes the header for `address` to the front of `block`.
    pub fn encode(&self, address: PBlock, block: &mut [u8; BLOCK_SIZE]) {
        let front = &mut block[..JOURNAL_HEADER_BYTES];
        front[HEADER_BYTES..].copy_from_slice(&self.epoch.to_le_bytes());
        let header = Header::new(Magic::Journal, self.layer, address, self.generation, 0);
        header.seal(Magic::Journal, front, JOURNAL_HEADER_BYTES);
    }

    /// The header of the block at `address`, or an error if there is none (a block that was never written).
    pub fn decode(block: &[u8], address: PBlock) -> Result<JournalBlock> {
        let front = block.get(..JOURNAL_HEADER_BYTES).unwrap_or_default();
        let (header, body) = Header::open(Magic::Journal, front, address)?;
        let epoch = body.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).unwrap_or_default();
        Ok(JournalBlock { layer: header.layer, epoch, generation: header.generation })
    }
}

/// An extent of a record: blocks of the disk that now are where `place` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordExtent {
    /// First block of the disk.
    pub vblock: VBlock,
    /// Where the content is.
    pub place: Place,
    /// Number of blocks.
    pub blocks: u32,
}

/// Another size of the disk, as the last element of a record's list of extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resize {
    /// Size of the disk in bytes from this record on.
    pub size: u64,
    /// Everything from this block on reads as zeros.
    pub zero_from: VBlock,
}

/// An element of a record's list: an extent, or a resize (kind 2, without blocks).
#[derive(Clone, Copy, Serialize, Deserialize)]
struct StoredExtent {
    vblock: VBlock,
    place: PackedPlace,
    blocks: u32,
}

const KIND_SIZE: u64 = 2;

impl StoredExtent {
    fn extent(e: &RecordExtent) -> StoredExtent {
        StoredExtent { vblock: e.vblock, place: PackedPlace::pack(e.place), blocks: e.blocks }
    }

    fn resize(r: Resize) -> StoredExtent {
        let place = PackedPlace(KIND_SIZE << KIND_SHIFT | r.size);
        StoredExtent { vblock: r.zero_from, place, blocks: 0 }
    }

    /// `None`: it is none, or one that cannot be.
    fn as_resize(&self) -> Option<Resize> {
        let size = self.place.0 & ((1 << KIND_SHIFT) - 1);
        let good = self.place.0 >> KIND_SHIFT == KIND_SIZE
            && self.blocks == 0
            && limits::is_disk_size(size, SECTOR)
            && (1..=blocks_for(size)).contains(&self.vblock.0);
        good.then_some(Resize { size, zero_from: self.vblock })
    }
}

/// A record to be written; borrows, so that forming one allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    /// Its number.
    pub seq: Seq,
    /// Known durable when it was formed.
    pub durable: Seq,
    /// Lower numbers that were not settled when it was formed, as distances from `seq`, strictly ascending.
    pub unsettled: &'a [u32],
    /// What it maps.
    pub extents: &'a [RecordExtent],
    /// One checksum per block of its data extents, in their order.
    pub crcs: &'a [u32],
    /// The size that the disk has from now on, if it changes; it applies behind the extents.
    pub resize: Option<Resize>,
}

/// A record read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its number.
    pub seq: Seq,
    /// Known durable when it was formed.
    pub durable: Seq,
    /// As in [`RecordRef`].
    pub unsettled: Vec<u32>,
    /// As in [`RecordRef`].
    pub extents: Vec<RecordExtent>,
    /// As in [`RecordRef`].
    pub crcs: Vec<u32>,
    /// As in [`RecordRef`].
    pub resize: Option<Resize>,
}

/// The extents, and behind them the resize.
struct Elements<'a>(&'a [RecordExtent], Option<Resize>);

impl Serialize for Elements<'_> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        let Elements(extents, resize) = self;
        let mut list = s.serialize_seq(Some(extents.len() + usize::from(resize.is_some())))?;
        for extent in *extents {
            list.serialize_element(&StoredExtent::extent(extent))?;
        }
        if let Some(resize) = *resize {
            list.serialize_element(&StoredExtent::resize(resize))?;
        }
        list.end()
    }
}

#[derive(Serialize)]
struct BodyRef<'a>(Seq, Seq, &'a [u32], Elements<'a>, &'a [u32]);

#[derive(Deserialize)]
struct Body(Seq, Seq, Vec<u32>, Vec<StoredExtent>, Vec<u32>);

impl RecordRef<'_> {
    /// Bytes it takes in a journal block.
    pub fn encoded_len(&self) -> usize {
        RECORD_FIXED_BYTES
            + self.unsettled.len() * RECORD_UNSETTLED_BYTES
            + (self.extents.len() + usize::from(self.resize.is_some())) * RECORD_EXTENT_BYTES
            + self.crcs.len() * RECORD_CRC_BYTES
    }
}

/// Writes `record` to the front of `out`; gives the bytes used. `None`: it does not fit.
pub fn encode_record(record: &RecordRef<'_>, salt: Salt, out: &mut [u8]) -> Option<usize> {
    let len = record.encoded_len();
    let out = out.get_mut(..len)?;
    let elements = Elements(record.extents, record.resize);
    let body = BodyRef(record.seq, record.durable, record.unsettled, elements, record.crcs);
    let used = codec::encode(&body, &mut out[8..])?;
    debug_assert_eq!(used + 8, len);
    let crc = salt.checksum(&out[8..]);
    out[..4].copy_from_slice(&u32::try_from(len).ok()?.to_le_bytes());
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    Some(len)
}

/// The valid records of a journal block, from its first one to the first that does not verify.
pub fn decode_records(block: &[u8], salt: Salt) -> Vec<Record> {
    let mut records = Vec::new();
    let mut rest = block.get(JOURNAL_HEADER_BYTES..).unwrap_or_default();
    while let Some((record, len)) = decode_one(rest, salt) {
        records.push(record);
        rest = rest.get(len..).unwrap_or_default();
    }
    records
}

fn decode_one(bytes: &[u8], salt: Salt) -> Option<(Record, usize)> {
    let len = u32::from_le_bytes(*bytes.first_chunk::<4>()?) as usize;
    let crc = u32::from_le_bytes(*bytes.get(4..)?.first_chunk::<4>()?);
    let body = bytes.get(8..len)?;
    if salt.checksum(body) != crc {
        return None;
    }
    let Body(seq, durable, unsettled, mut stored, crcs) = codec::decode(body, "journal record").ok()?;
    let resize = stored.last().and_then(StoredExtent::as_resize);
    if resize.is_some() {
        stored.pop();
    }
    let mut extents = Vec::with_capacity(stored.len());
    let mut data_blocks = 0u64;
    for e in &stored {
        let place = e.place.unpack()?;
        let end = e.vblock.0.checked_add(u64::from(e.blocks))?;
        if e.blocks == 0 || end > limits::MAX_DISK_BYTES / BLOCK_SIZE as u64 {
            return None;
        }
        if let Place::Data(pblock) = place {
            data_blocks += u64::from(e.blocks);
            if !in_file(pblock, e.blocks) {
                return None;
            }
        }
        extents.push(RecordExtent { vblock: e.vblock, place, blocks: e.blocks });
    }
    if crcs.len() as u64 != data_blocks
        || durable >= seq
        || seq.0 > limits::MAX_COUNTER
        || unsettled.len() > limits::MAX_UNSETTLED
        || !unsettled.is_sorted_by(|a, b| a < b)
        || unsettled.first().is_some_and(|&d| d == 0)
        || unsettled.last().is_some_and(|&d| u64::from(d) >= seq.0)
    {
        return None;
    }
    Some((Record { seq, durable, unsettled, extents, crcs, resize }, len))
}
