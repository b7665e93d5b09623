//! Nodes of the extent tree (format-spec.md 4).

use serde::{Deserialize, Serialize};

use super::header::{HEADER_BYTES, Header, Magic, empty_block};
use super::{LayerId, PackedPlace, Place, codec, in_file};
use crate::error::{Error, Result};
use crate::units::{BLOCK_SIZE, PBlock, VBlock};

/// Bytes of a leaf's body that extents and checksums share.
pub const LEAF_BODY_BYTES: usize = BLOCK_SIZE - HEADER_BYTES - 24;
/// Bytes of a stored extent.
pub const LEAF_EXTENT_BYTES: usize = 14;
/// Bytes of a stored block checksum.
pub const LEAF_CRC_BYTES: usize = 4;
/// Children of an inner node: 8 bytes of length, then 20 each.
pub const INNER_CAPACITY: usize = (BLOCK_SIZE - HEADER_BYTES - 8) / 20;
/// Largest data extent of a leaf, in blocks.
pub const MAX_EXTENT_BLOCKS: u32 = u16::MAX as u32;
/// Largest zero extent of a leaf, in blocks: a discard of terabytes is one extent.
pub const MAX_ZERO_BLOCKS: u32 = u32::MAX;
/// Largest distance of an extent's first block from the leaf's base.
pub const MAX_LEAF_START: u64 = u32::MAX as u64;

/// An extent of a leaf: `blocks` blocks from `vblock` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafExtent {
    /// First block of the disk.
    pub vblock: VBlock,
    /// Number of blocks, `1..=`[`MAX_EXTENT_BLOCKS`] of data, `1..=`[`MAX_ZERO_BLOCKS`] of zeros.
    pub blocks: u32,
    /// Where the content is.
    pub place: Place,
    /// Index of the first checksum in [`LeafNode::crcs`] (data extents).
    pub crc_index: u32,
}

#[derive(Serialize, Deserialize)]
struct StoredExtent {
    start: u32,
    /// Of a zero extent the low half; the high half stands in the unused address of its place.
    blocks: u16,
    place: PackedPlace,
}

impl StoredExtent {
    fn pack(e: &LeafExtent, base: VBlock) -> StoredExtent {
        let start = u32::try_from(e.vblock.0 - base.0).expect("bounded by the builder");
        let place = PackedPlace::pack(e.place);
        match e.place {
            Place::Data(_) => StoredExtent {
                start,
                blocks: u16::try_from(e.blocks).expect("bounded by the builder"),
                place,
            },
            Place::Zero => {
                let high = u64::from(e.blocks >> 16);
                StoredExtent { start, blocks: e.blocks as u16, place: PackedPlace(place.0 | high) }
            }
        }
    }

    /// Place and number of blocks.
    fn unpack(&self) -> Option<(Place, u32)> {
        let high = self.place.zero_payload();
        let place = PackedPlace(self.place.0 - high).unpack()?;
        Some((place, (high as u32) << 16 | u32::from(self.blocks)))
    }
}

#[derive(Serialize, Deserialize)]
struct LeafBody {
    base: VBlock,
    extents: Vec<StoredExtent>,
    crcs: Vec<u32>,
}

/// A leaf: extents in ascending order, without overlap. What is between them is hole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeafNode {
    /// The extents.
    pub extents: Vec<LeafExtent>,
    /// One checksum per block of the data extents, in their order.
    pub crcs: Vec<u32>,
}

/// A child of an inner node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Child {
    /// Lowest block that the child may map.
    pub first: VBlock,
    /// The child's place.
    pub pblock: PBlock,
    /// The child's checksum.
    pub crc: u32,
}

/// An inner node: children in ascending order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct InnerNode {
    /// The children.
    pub children: Vec<Child>,
}

impl LeafNode {
    /// The checksums of `extent`, one of this leaf's; none for zeros.
    pub fn crcs_of(&self, extent: &LeafExtent) -> &[u32] {
        match extent.place {
            Place::Data(_) => &self.crcs[extent.crc_index as usize..][..extent.blocks as usize],
            Place::Zero => &[],
        }
    }

    /// The node as a block for `address`, and its checksum.
    ///
    /// # Panics
    /// If it holds more than fits: the tree builder bounds it.
    pub fn encode(&self, layer: LayerId, address: PBlock, generation: u64) -> (Box<[u8; BLOCK_SIZE]>, u32) {
        let base = self.extents.first().map_or(VBlock(0), |e| e.vblock);
        let stored = |e| StoredExtent::pack(e, base);
        let body =
            LeafBody { base, extents: self.extents.iter().map(stored).collect(), crcs: self.crcs.clone() };
        seal(&body, layer, address, generation, 0)
    }

    /// Verifies and decodes a leaf that may map blocks in `range` only.
    pub fn decode(
        block: &[u8],
        address: PBlock,
        range: std::ops::Range<VBlock>,
    ) -> Result<(LeafNode, Header)> {
        let (header, body) = Header::open(Magic::Node, block, address)?;
        let bad = |what: String| Error::corrupt(format!("tree node: {what}")).offset(address.pos());
        if header.level != 0 {
            return Err(bad(format!("level {} where a leaf belongs", header.level)));
        }
        let stored: LeafBody = codec::decode(body, "tree node").map_err(|e| e.offset(address.pos()))?;
        // A leaf of its own range with an extent in it cannot stand in two places of one tree.
        if stored.extents.first().is_none_or(|e| e.start != 0) {
            return Err(bad("it has no extent at its base".into()));
        }
        let mut node = LeafNode { extents: Vec::with_capacity(stored.extents.len()), crcs: stored.crcs };
        let (mut next, mut crcs) = (range.start.0, 0u32);
        for (i, e) in stored.extents.iter().enumerate() {
            let unpacked = e.unpack().ok_or_else(|| bad(format!("extent {i}: place {:#x}", e.place.0)))?;
            let (place, blocks) = unpacked;
            let first = stored.base.0.checked_add(u64::from(e.start)).filter(|&f| f >= next);
            let end = first.and_then(|f| f.checked_add(u64::from(blocks))).filter(|&end| end <= range.end.0);
            let (Some(first), Some(end), 1..) = (first, end, blocks) else {
                return Err(bad(format!("extent {i}: {} + {blocks} overlaps or is out of range", e.start)));
            };
            node.extents.push(LeafExtent { vblock: VBlock(first), blocks, place, crc_index: crcs });
            if let Place::Data(pblock) = place {
                crcs += blocks;
                if !in_file(pblock, blocks) {
                    return Err(bad(format!("extent {i}: block {} is outside of the block area", pblock.0)));
                }
            }
            next = end;
        }
        if node.crcs.len() != crcs as usize {
            return Err(bad(format!("{} checksums for {crcs} blocks", node.crcs.len())));
        }
        Ok((node, header))
    }
}

impl InnerNode {
    /// The node as a block for `address`, and its checksum. `level` is 1 just above the leaves.
    ///
    /// # Panics
    /// If it holds more than [`INNER_CAPACITY`] children: the tree builder bounds it.
    pub fn encode(
        &self,
        layer: LayerId,
        address: PBlock,
        generation: u64,
        level: u16,
    ) -> (Box<[u8; BLOCK_SIZE]>, u32) {
        seal(self, layer, address, generation, level)
    }

    /// Verifies and decodes an inner node of `level` whose children may map blocks in `range` only.
    pub fn decode(
        block: &[u8],
        address: PBlock,
        level: u16,
        range: std::ops::Range<VBlock>,
    ) -> Result<(InnerNode, Header)> {
        let (header, body) = Header::open(Magic::Node, block, address)?;
        let bad = |what: String| Error::corrupt(format!("tree node: {what}")).offset(address.pos());
        if header.level != level {
            return Err(bad(format!("level {} where level {level} belongs", header.level)));
        }
        let node: InnerNode = codec::decode(body, "tree node").map_err(|e| e.offset(address.pos()))?;
        if node.children.is_empty() {
            return Err(bad("no children".into()));
        }
        let mut low = range.start;
        for (i, child) in node.children.iter().enumerate() {
            if child.first < low || child.first >= range.end {
                return Err(bad(format!(
                    "child {i}: first block {} is out of order or range",
                    child.first.0
                )));
            }
            if !in_file(child.pblock, 1) || child.pblock == address {
                return Err(bad(format!("child {i}: block {} is outside of the block area", child.pblock.0)));
            }
            low = child.first.plus(1);
        }
        Ok((node, header))
    }

    /// The blocks that child `index` may map, given this node's own `end`.
    pub fn range(&self, index: usize, end: VBlock) -> std::ops::Range<VBlock> {
        let first = self.children[index].first;
        first..self.children.get(index + 1).map_or(end, |next| next.first)
    }
}

fn seal<T: Serialize>(
    body: &T,
    layer: LayerId,
    address: PBlock,
    generation: u64,
    level: u16,
) -> (Box<[u8; BLOCK_SIZE]>, u32) {
    let mut block = empty_block();
    let used =
        codec::encode(body, &mut block[HEADER_BYTES..]).expect("the tree builder bounds a node's size");
    let header = Header::new(Magic::Node, layer, address, generation, level);
    let crc = header.seal(Magic::Node, &mut block[..], HEADER_BYTES + used);
    (block, crc)
}
