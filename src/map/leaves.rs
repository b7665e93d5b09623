//! Extents on their way into new leaves: cut where a change begins or ends, joined where they are neighbours in both
//! spaces, and packed.

use std::ops::Range;

use super::pending::Change;
use crate::format::{
    LEAF_BODY_BYTES, LEAF_CRC_BYTES, LEAF_EXTENT_BYTES, LeafExtent, LeafNode, MAX_EXTENT_BLOCKS,
    MAX_LEAF_START, MAX_ZERO_BLOCKS, Place,
};
use crate::units::VBlock;

/// A run of blocks on its way into a leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) vblock: VBlock,
    pub(super) blocks: u64,
    pub(super) place: Place,
    pub(super) crcs: &'a [u32],
}

impl<'a> Piece<'a> {
    pub(super) fn of(leaf: &'a LeafNode, extent: &LeafExtent) -> Piece<'a> {
        let crcs = leaf.crcs_of(extent);
        Piece { vblock: extent.vblock, blocks: u64::from(extent.blocks), place: extent.place, crcs }
    }

    pub(super) fn end(&self) -> VBlock {
        self.vblock.plus(self.blocks)
    }

    /// The blocks `range` of the piece, which they overlap.
    pub(super) fn part(&self, range: Range<VBlock>) -> Option<Piece<'a>> {
        let (from, to) = (range.start.max(self.vblock), range.end.min(self.end()));
        if from >= to {
            return None;
        }
        let skip = from.0 - self.vblock.0;
        let (place, crcs) = match self.place {
            Place::Zero => (Place::Zero, self.crcs),
            Place::Data(p) => {
                (Place::Data(p.plus(skip)), &self.crcs[skip as usize..(to.0 - self.vblock.0) as usize])
            }
        };
        Some(Piece { vblock: from, blocks: to.0 - from.0, place, crcs })
    }

    /// What is in front of `range` and what is behind it.
    pub(super) fn split_off_range(&self, range: Range<VBlock>) -> (Option<Piece<'a>>, Option<Piece<'a>>) {
        (self.part(self.vblock..range.start), self.part(range.end..self.end()))
    }
}

/// The changes not yet merged; the first one perhaps in part.
pub(super) struct Changes<'a> {
    list: &'a [Change],
    /// Blocks of the first change that are done.
    skip: u64,
}

impl<'a> Changes<'a> {
    pub(super) fn new(list: &'a [Change]) -> Changes<'a> {
        Changes { list, skip: 0 }
    }

    pub(super) fn next_block(&self) -> Option<VBlock> {
        self.list.first().map(|c| c.vblock.plus(self.skip))
    }

    /// The next change, as far as it lies below `end`.
    pub(super) fn take_below(&mut self, end: VBlock) -> Option<Piece<'a>> {
        let change = self.list.first()?;
        let whole =
            Piece { vblock: change.vblock, blocks: change.blocks, place: change.place, crcs: &change.crcs };
        let from = whole.vblock.plus(self.skip);
        if from >= end {
            return None;
        }
        let to = whole.end().min(end);
        if to == whole.end() {
            self.list = &self.list[1..];
            self.skip = 0;
        } else {
            self.skip += to.0 - from.0;
        }
        whole.part(from..to)
    }
}

/// Extents of neighbouring leaves under one parent.
#[derive(Default)]
pub(super) struct LeafGroup {
    content: LeafNode,
    /// First blocks of the leaves in the parent.
    pub(super) removed: Vec<VBlock>,
    /// What these leaves may map.
    pub(super) range: Range<VBlock>,
    /// What their parent may map.
    pub(super) parent: Range<VBlock>,
}

/// Bytes of a leaf's extents and checksums.
pub(super) fn leaf_bytes(leaf: &LeafNode) -> usize {
    leaf.extents.len() * LEAF_EXTENT_BYTES + leaf.crcs.len() * LEAF_CRC_BYTES
}

impl LeafGroup {
    /// Begins with a leaf that may map `range`.
    pub(super) fn new(range: Range<VBlock>, parent: Range<VBlock>) -> LeafGroup {
        LeafGroup { range: range.start..range.start, parent, ..LeafGroup::default() }
    }

    /// True if the leaf that may map `range` is the next one under the same parent.
    pub(super) fn continues(&self, range: &Range<VBlock>, parent: &Range<VBlock>) -> bool {
        self.range.end == range.start && self.parent == *parent
    }

    /// Bytes that the leaves needed for the group have left, if they are filled to seven eighths: full ones would
    /// have to be cut at the next change.
    pub(super) fn room(&self) -> usize {
        let bytes = leaf_bytes(&self.content);
        (bytes.div_ceil(LEAF_BODY_BYTES) * LEAF_BODY_BYTES / 8 * 7).saturating_sub(bytes)
    }

    /// Adds what a leaf holds.
    pub(super) fn push_leaf(&mut self, leaf: &LeafNode) {
        for extent in &leaf.extents {
            self.push(Piece::of(leaf, extent));
        }
    }

    /// Puts a leaf in front.
    pub(super) fn prepend(&mut self, leaf: &LeafNode, first: VBlock, start: VBlock) {
        let behind = std::mem::take(&mut self.content);
        self.push_leaf(leaf);
        self.push_leaf(&behind);
        self.removed.insert(0, first);
        self.range.start = start;
    }

    /// Adds a piece behind the others, joined with the last one where they are neighbours in both spaces.
    pub(super) fn push(&mut self, mut piece: Piece<'_>) {
        if let Some(last) = self.content.extents.last_mut() {
            let room = u64::from(most(last.place).saturating_sub(last.blocks)).min(piece.blocks);
            let joins = last.vblock.plus(u64::from(last.blocks)) == piece.vblock
                && match (last.place, piece.place) {
                    (Place::Zero, Place::Zero) => true,
                    (Place::Data(a), Place::Data(b)) => a.plus(u64::from(last.blocks)) == b,
                    _ => false,
                };
            if joins && room > 0 {
                last.blocks += room as u32;
                self.content.crcs.extend_from_slice(&piece.crcs[..(room as usize).min(piece.crcs.len())]);
                match piece.part(piece.vblock.plus(room)..piece.end()) {
                    Some(left) => piece = left,
                    None => return,
                }
            }
        }
        while piece.blocks > 0 {
            let blocks = piece.blocks.min(u64::from(most(piece.place)));
            let crc_index = self.content.crcs.len() as u32;
            self.content.extents.push(LeafExtent {
                vblock: piece.vblock,
                blocks: blocks as u32,
                place: piece.place,
                crc_index,
            });
            self.content.crcs.extend_from_slice(&piece.crcs[..(blocks as usize).min(piece.crcs.len())]);
            match piece.part(piece.vblock.plus(blocks)..piece.end()) {
                Some(left) => piece = left,
                None => return,
            }
        }
    }

    /// Leaves that hold everything, about evenly filled.
    pub(super) fn pack(&self) -> Vec<LeafNode> {
        let nodes = leaf_bytes(&self.content).div_ceil(LEAF_BODY_BYTES);
        let leaves = self.pack_into(nodes);
        if leaves.len() <= nodes {
            return leaves;
        }
        // What did not fit at the end of each was a bit too much for the last one: once more, even.
        let even = self.pack_into(leaves.len());
        if even.len() > leaves.len() { leaves } else { even }
    }

    /// Leaves that hold everything, each at most filled so that `nodes` of them would.
    fn pack_into(&self, nodes: usize) -> Vec<LeafNode> {
        // A cut may fall into an extent and costs a new extent header: leave room for one.
        let even = leaf_bytes(&self.content).div_ceil(nodes.max(1));
        let target = (even + LEAF_EXTENT_BYTES + LEAF_CRC_BYTES).min(LEAF_BODY_BYTES);
        let mut leaves = Vec::with_capacity(nodes);
        let mut leaf = LeafNode::default();
        let mut used = 0;
        for extent in &self.content.extents {
            let mut left = Piece::of(&self.content, extent);
            loop {
                let base = leaf.extents.first().map_or(left.vblock, |e| e.vblock);
                let per_block = if left.crcs.is_empty() { 0 } else { LEAF_CRC_BYTES };
                let room = target.saturating_sub(used + LEAF_EXTENT_BYTES);
                let fits = room.checked_div(per_block).map_or(left.blocks, |blocks| blocks as u64);
                let reachable = left.vblock.0 - base.0 <= MAX_LEAF_START
                    && used + LEAF_EXTENT_BYTES + per_block <= target;
                if !reachable || fits == 0 {
                    leaves.push(std::mem::take(&mut leaf));
                    used = 0;
                    continue;
                }
                let take = left.blocks.min(fits);
                let crc_index = leaf.crcs.len() as u32;
                let crcs = &left.crcs[..(take as usize).min(left.crcs.len())];
                leaf.crcs.extend_from_slice(crcs);
                leaf.extents.push(LeafExtent {
                    vblock: left.vblock,
                    blocks: take as u32,
                    place: left.place,
                    crc_index,
                });
                used += LEAF_EXTENT_BYTES + crcs.len() * LEAF_CRC_BYTES;
                match left.part(left.vblock.plus(take)..left.end()) {
                    Some(more) => left = more,
                    None => break,
                }
            }
        }
        if !leaf.extents.is_empty() {
            leaves.push(leaf);
        }
        leaves
    }
}

/// Blocks of the largest extent of a kind.
fn most(place: Place) -> u32 {
    match place {
        Place::Data(_) => MAX_EXTENT_BLOCKS,
        Place::Zero => MAX_ZERO_BLOCKS,
    }
}
