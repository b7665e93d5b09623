//! Bytes <-> values: the structures of `format-spec.md`, pure, without I/O.
//!
//! Decoding is the only door. It checks magic, checksum, version, address, ranges, order and zero padding; past
//! it nobody re-checks, and nobody holds raw bytes.

mod codec;
mod header;
mod ids;
mod joining;
mod node;
mod record;
mod superblock;
#[cfg(feature = "sim")]
pub mod testing;

pub use header::{HEADER_BYTES, Header, Magic};
pub use ids::{BootId, DiskId, LayerId};
pub use joining::Joining;
pub use node::{
    Child, INNER_CAPACITY, InnerNode, LEAF_BODY_BYTES, LEAF_CRC_BYTES, LEAF_EXTENT_BYTES, LeafExtent,
    LeafNode, MAX_EXTENT_BLOCKS, MAX_LEAF_START, MAX_ZERO_BLOCKS,
};
pub use record::{
    JOURNAL_HEADER_BYTES, JournalBlock, RECORD_CRC_BYTES, RECORD_EXTENT_BYTES, RECORD_FIXED_BYTES,
    RECORD_UNSETTLED_BYTES, Record, RecordExtent, RecordRef, Resize, Salt, decode_records, encode_record,
};
pub use superblock::{
    Area, ChecksumKind, FEATURES_COMPAT, FEATURES_INCOMPAT, FEATURES_RO_COMPAT, ForeignFormat, Holder,
    INCOMPAT_NO_CHECKSUMS, Parent, PathHints, Sealed, Superblock, TreeRoot, valid_snapshot_name,
};

use crate::units::PBlock;
use serde::{Deserialize, Serialize};

/// Format version written into every structure.
pub const FORMAT_VERSION: u16 = 1;

/// Where an extent's content is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the blocks of this layer from here on.
    Data(PBlock),
    /// Nowhere: it reads as zeros, whatever the parent holds.
    Zero,
}

/// A [`Place`] as stored: the kind in the top four bits, the pblock below.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct PackedPlace(u64);

const KIND_SHIFT: u32 = 60;
const KIND_DATA: u64 = 0;
const KIND_ZERO: u64 = 1;

impl PackedPlace {
    fn pack(place: Place) -> PackedPlace {
        match place {
            Place::Data(pblock) => PackedPlace(KIND_DATA << KIND_SHIFT | pblock.0),
            Place::Zero => PackedPlace(KIND_ZERO << KIND_SHIFT),
        }
    }
    /// What a leaf's zero extent keeps in the address that it does not need; 0 of any other place.
    fn zero_payload(self) -> u64 {
        if self.0 >> KIND_SHIFT == KIND_ZERO { self.0 & 0xffff } else { 0 }
    }
    /// None: an unknown kind, an address out of range, or a zero extent with an address.
    fn unpack(self) -> Option<Place> {
        let pblock = self.0 & ((1 << KIND_SHIFT) - 1);
        match self.0 >> KIND_SHIFT {
            KIND_DATA if pblock < crate::limits::MAX_FILE_BLOCKS => Some(Place::Data(PBlock(pblock))),
            KIND_ZERO if pblock == 0 => Some(Place::Zero),
            _ => None,
        }
    }
}

/// True if `blocks` blocks from `first` on lie behind the superblock slots and within the largest file.
fn in_file(first: PBlock, blocks: u32) -> bool {
    let end = first.0.checked_add(u64::from(blocks));
    first.0 >= 2 && end.is_some_and(|end| end <= crate::limits::MAX_FILE_BLOCKS)
}

#[cfg(test)]
mod tests;
