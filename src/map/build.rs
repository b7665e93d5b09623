//! The tree builder: folds sorted changes into a tree, copy-on-write, level by level.
//!
//! Leaves that changes fall into are read, merged and written anew; then the inner nodes above them, up to a new
//! root. Neighbouring changed nodes under one parent are repacked together, so that a region that was written
//! randomly and then sequentially shrinks again. Nothing of the old tree is overwritten.

use std::future::Future;
use std::ops::Range;

use super::nodes::Node;
use super::pending::{Change, Freed};
use super::tree::{END, Tree};
use crate::error::{Error, Kind, Result};
use crate::format::{
    Child, INNER_CAPACITY, InnerNode, LEAF_BODY_BYTES, LEAF_CRC_BYTES, LEAF_EXTENT_BYTES, LeafExtent,
    LeafNode, MAX_EXTENT_BLOCKS, MAX_LEAF_START, MAX_ZERO_BLOCKS, Place, TreeRoot,
};
use crate::limits::MAX_TREE_HEIGHT;
use crate::storage::File;
use crate::units::{PBlock, Seq, VBlock};

/// Where new nodes go.
pub trait NodeSink {
    /// Gives a free block for a node.
    ///
    /// # Errors
    /// [`Kind::NoSpace`]; nothing is lost then, the checkpoint is tried again later.
    fn allocate(&mut self) -> impl Future<Output = Result<PBlock>>;
    /// Writes `node`, as a node of `level`, to `at`; gives its checksum.
    fn write(&mut self, at: PBlock, node: &Node, level: u16) -> impl Future<Output = Result<u32>>;
}

/// A new tree.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Built {
    /// Its root.
    pub root: TreeRoot,
    /// Data blocks and nodes of the old tree that the new one does not hold.
    pub freed: Vec<Freed>,
    /// Nodes written.
    pub nodes: u64,
    /// Nodes of the old tree that are gone.
    pub removed: u64,
}

/// What one level hands up: in the parent that holds `removed`, these children are replaced.
struct Edit {
    removed: Vec<VBlock>,
    added: Vec<Child>,
}

struct Builder<'a, F, S> {
    tree: &'a Tree<F>,
    root: TreeRoot,
    sink: &'a mut S,
    keep_zeros: bool,
    by: Seq,
    built: Built,
}

/// Folds `changes` (sorted, disjoint) into the tree at `root`. `keep_zeros`: the layer has a parent, so zeros must
/// be stored; without one they are holes. Freed blocks carry `by`.
pub async fn build<F: File, S: NodeSink>(
    tree: &Tree<F>,
    root: TreeRoot,
    changes: &[Change],
    keep_zeros: bool,
    by: Seq,
    sink: &mut S,
) -> Result<Built> {
    if changes.is_empty() {
        return Ok(Built { root, ..Built::default() });
    }
    let mut builder = Builder { tree, root, sink, keep_zeros, by, built: Built::default() };
    let mut edits = builder.leaves(changes).await?;
    for level in 1..u16::try_from(root.height).unwrap_or(u16::MAX) {
        edits = builder.inner(level, edits).await?;
    }
    let top: Vec<Child> = edits.into_iter().flat_map(|e| e.added).collect();
    builder.built.root = builder.grow(top).await?;
    Ok(builder.built)
}

impl<F: File, S: NodeSink> Builder<'_, F, S> {
    /// Level 0: merges the changes with the leaves they fall into.
    async fn leaves(&mut self, changes: &[Change]) -> Result<Vec<Edit>> {
        let mut edits = Vec::new();
        let mut group = LeafGroup::default();
        let mut rest = Changes { list: changes, skip: 0 };
        while let Some(key) = rest.next_block() {
            let at = self.tree.descend(&self.root, 0, key).await?;
            let (old, range, parent) = match &at {
                None => (None, VBlock(0)..END, VBlock(0)..END),
                Some(at) => {
                    let Node::Leaf(leaf) = &*at.node else { unreachable!("level 0 is verified as a leaf") };
                    (Some(leaf), at.range.clone(), at.parent.clone())
                }
            };
            if !group.continues(&range, &parent) {
                self.close_leaves(&mut group, &mut edits).await?;
            }
            group.parent = parent;
            group.end = Some(range.end);
            if let Some(at) = &at {
                group.removed.push(at.child.first);
                self.free_node(at.child.pblock);
            }
            self.merge_leaf(&mut group, old, &mut rest, range.end);
        }
        self.close_leaves(&mut group, &mut edits).await?;
        Ok(edits)
    }

    /// Merges one old leaf with the changes below `end` into the group.
    fn merge_leaf(
        &mut self,
        group: &mut LeafGroup,
        old: Option<&LeafNode>,
        rest: &mut Changes<'_>,
        end: VBlock,
    ) {
        let mut olds = old.map(|leaf| leaf.extents.iter()).unwrap_or_default();
        let mut current = olds.next().map(|e| Piece::of(old, e));
        while let Some(change) = rest.take_below(end) {
            let change_end = change.end();
            // Old pieces in front of the change stay; what it covers is freed.
            while let Some(piece) = current.take_if(|p| p.vblock < change_end) {
                let (front, behind) = piece.split_off_range(change.vblock..change_end);
                if let Some(front) = front {
                    group.push(front);
                }
                if let Place::Data(p) = piece.place {
                    let from = piece.vblock.max(change.vblock);
                    let to = piece.end().min(change_end);
                    if from < to {
                        self.free(p.plus(from.0 - piece.vblock.0), (to.0 - from.0) as u32);
                    }
                }
                current = behind.or_else(|| olds.next().map(|e| Piece::of(old, e)));
            }
            if change.place != Place::Zero || self.keep_zeros {
                group.push(change);
            }
        }
        while let Some(piece) = current.take() {
            group.push(piece);
            current = olds.next().map(|e| Piece::of(old, e));
        }
    }

    async fn close_leaves(&mut self, group: &mut LeafGroup, edits: &mut Vec<Edit>) -> Result<()> {
        let group = std::mem::take(group);
        if group.end.is_none() {
            return Ok(());
        }
        let mut added = Vec::new();
        for leaf in group.pack() {
            let first = leaf.extents.first().map_or(VBlock(0), |e| e.vblock);
            added.push(self.write(first, &Node::Leaf(leaf), 0).await?);
        }
        edits.push(Edit { removed: group.removed, added });
        Ok(())
    }

    /// Level `level` above the leaves: replaces the children that the edits name.
    async fn inner(&mut self, level: u16, edits: Vec<Edit>) -> Result<Vec<Edit>> {
        let mut up: Vec<Edit> = Vec::new();
        let mut group: Option<InnerGroup> = None;
        for edit in edits {
            let key = edit.removed.first().copied().unwrap_or_default();
            if group.as_ref().is_none_or(|g| key >= g.range.end) {
                let at = self.tree.descend(&self.root, level, key).await?;
                let at = at.ok_or_else(|| Error::corrupt("tree node: the tree lost a level"))?;
                let Node::Inner(old) = &*at.node else {
                    return Err(
                        Error::corrupt("tree node: a leaf above a leaf").offset(at.child.pblock.pos())
                    );
                };
                self.free_node(at.child.pblock);
                let joins =
                    group.as_ref().is_some_and(|g| g.range.end == at.range.start && g.parent == at.parent);
                let mut next = if joins { group.take().expect("just looked") } else { InnerGroup::default() };
                if let Some(done) = group.take() {
                    up.push(self.close_inner(done, level).await?);
                }
                next.parent = at.parent.clone();
                next.range = at.range.clone();
                next.removed.push(at.child.first);
                next.children.extend_from_slice(&old.children);
                group = Some(next);
            }
            let group = group.as_mut().expect("set above");
            group.apply(edit);
        }
        if let Some(done) = group {
            up.push(self.close_inner(done, level).await?);
        }
        Ok(up)
    }

    async fn close_inner(&mut self, group: InnerGroup, level: u16) -> Result<Edit> {
        let added = self.write_inner(group.children, level).await?;
        Ok(Edit { removed: group.removed, added })
    }

    /// Packs children into as few nodes as hold them, evenly.
    async fn write_inner(&mut self, children: Vec<Child>, level: u16) -> Result<Vec<Child>> {
        let mut added = Vec::new();
        let nodes = children.len().div_ceil(INNER_CAPACITY);
        for part in even(children.len(), nodes) {
            let node = InnerNode { children: children[part].to_vec() };
            let first = node.children.first().map_or(VBlock(0), |c| c.first);
            added.push(self.write(first, &Node::Inner(node), level).await?);
        }
        Ok(added)
    }

    /// Puts levels above the nodes of the old top level until one root is left.
    async fn grow(&mut self, mut top: Vec<Child>) -> Result<TreeRoot> {
        let mut height = self.root.height.max(1);
        while top.len() > 1 {
            if height >= u32::from(MAX_TREE_HEIGHT) {
                return Err(Error::new(Kind::NoSpace, "the extent tree has reached its greatest height"));
            }
            top = self.write_inner(top, u16::try_from(height).unwrap_or(u16::MAX)).await?;
            height += 1;
        }
        let Some(root) = top.first() else { return Ok(TreeRoot::default()) };
        Ok(TreeRoot { pblock: root.pblock, crc: root.crc, height })
    }

    async fn write(&mut self, first: VBlock, node: &Node, level: u16) -> Result<Child> {
        let pblock = self.sink.allocate().await?;
        let crc = self.sink.write(pblock, node, level).await?;
        self.built.nodes += 1;
        Ok(Child { first, pblock, crc })
    }

    fn free_node(&mut self, pblock: PBlock) {
        self.built.removed += 1;
        self.free(pblock, 1);
    }

    fn free(&mut self, pblock: PBlock, blocks: u32) {
        if let Some(last) = self.built.freed.last_mut()
            && last.pblock.plus(u64::from(last.blocks)) == pblock
            && let Some(sum) = last.blocks.checked_add(blocks)
        {
            last.blocks = sum;
            return;
        }
        self.built.freed.push(Freed { pblock, blocks, by: self.by });
    }
}

/// A run of blocks on its way into a leaf.
#[derive(Clone, Copy, Debug)]
struct Piece<'a> {
    vblock: VBlock,
    blocks: u64,
    place: Place,
    crcs: &'a [u32],
}

impl<'a> Piece<'a> {
    fn of(leaf: Option<&'a LeafNode>, extent: &LeafExtent) -> Piece<'a> {
        let crcs = leaf.map_or(&[][..], |leaf| leaf.crcs_of(extent));
        Piece { vblock: extent.vblock, blocks: u64::from(extent.blocks), place: extent.place, crcs }
    }

    fn end(&self) -> VBlock {
        self.vblock.plus(self.blocks)
    }

    /// The blocks `range` of the piece, which they overlap.
    fn part(&self, range: Range<VBlock>) -> Option<Piece<'a>> {
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
    fn split_off_range(&self, range: Range<VBlock>) -> (Option<Piece<'a>>, Option<Piece<'a>>) {
        (self.part(self.vblock..range.start), self.part(range.end..self.end()))
    }
}

/// The changes not yet merged; the first one perhaps in part.
struct Changes<'a> {
    list: &'a [Change],
    /// Blocks of the first change that are done.
    skip: u64,
}

impl<'a> Changes<'a> {
    fn next_block(&self) -> Option<VBlock> {
        self.list.first().map(|c| c.vblock.plus(self.skip))
    }

    /// The next change, as far as it lies below `end`.
    fn take_below(&mut self, end: VBlock) -> Option<Piece<'a>> {
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

/// Extents of neighbouring changed leaves under one parent.
#[derive(Default)]
struct LeafGroup {
    extents: Vec<LeafExtent>,
    crcs: Vec<u32>,
    removed: Vec<VBlock>,
    parent: Range<VBlock>,
    end: Option<VBlock>,
}

impl LeafGroup {
    fn continues(&self, range: &Range<VBlock>, parent: &Range<VBlock>) -> bool {
        self.end == Some(range.start) && self.parent == *parent
    }

    /// Adds a piece behind the others, joined with the last one where they are neighbours in both spaces.
    fn push(&mut self, mut piece: Piece<'_>) {
        if let Some(last) = self.extents.last_mut() {
            let room = u64::from(most(last.place).saturating_sub(last.blocks)).min(piece.blocks);
            let joins = last.vblock.plus(u64::from(last.blocks)) == piece.vblock
                && match (last.place, piece.place) {
                    (Place::Zero, Place::Zero) => true,
                    (Place::Data(a), Place::Data(b)) => a.plus(u64::from(last.blocks)) == b,
                    _ => false,
                };
            if joins && room > 0 {
                last.blocks += room as u32;
                self.crcs.extend_from_slice(&piece.crcs[..(room as usize).min(piece.crcs.len())]);
                match piece.part(piece.vblock.plus(room)..piece.end()) {
                    Some(left) => piece = left,
                    None => return,
                }
            }
        }
        while piece.blocks > 0 {
            let blocks = piece.blocks.min(u64::from(most(piece.place)));
            let crc_index = self.crcs.len() as u32;
            self.extents.push(LeafExtent {
                vblock: piece.vblock,
                blocks: blocks as u32,
                place: piece.place,
                crc_index,
            });
            self.crcs.extend_from_slice(&piece.crcs[..(blocks as usize).min(piece.crcs.len())]);
            match piece.part(piece.vblock.plus(blocks)..piece.end()) {
                Some(left) => piece = left,
                None => return,
            }
        }
    }

    /// Leaves that hold everything, about evenly filled.
    fn pack(&self) -> Vec<LeafNode> {
        let total = self.extents.len() * LEAF_EXTENT_BYTES + self.crcs.len() * LEAF_CRC_BYTES;
        let nodes = total.div_ceil(LEAF_BODY_BYTES).max(1);
        // A cut may fall into an extent and costs a new extent header: leave room for one.
        let target = (total.div_ceil(nodes) + LEAF_EXTENT_BYTES).min(LEAF_BODY_BYTES);
        let mut leaves = Vec::with_capacity(nodes);
        let mut leaf = LeafNode::default();
        let mut used = 0;
        for extent in &self.extents {
            let mut left = Piece {
                vblock: extent.vblock,
                blocks: u64::from(extent.blocks),
                place: extent.place,
                crcs: match extent.place {
                    Place::Data(_) => &self.crcs[extent.crc_index as usize..][..extent.blocks as usize],
                    Place::Zero => &[],
                },
            };
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

/// Children of neighbouring changed inner nodes under one parent.
#[derive(Default)]
struct InnerGroup {
    children: Vec<Child>,
    removed: Vec<VBlock>,
    range: Range<VBlock>,
    parent: Range<VBlock>,
}

impl InnerGroup {
    fn apply(&mut self, edit: Edit) {
        let Some(first) = edit.removed.first() else { return };
        let at = self.children.partition_point(|c| c.first < *first);
        let removed = edit.removed.len();
        self.children.splice(at..(at + removed).min(self.children.len()), edit.added);
    }
}

/// Blocks of the largest extent of a kind.
fn most(place: Place) -> u32 {
    match place {
        Place::Data(_) => MAX_EXTENT_BLOCKS,
        Place::Zero => MAX_ZERO_BLOCKS,
    }
}

/// Splits `len` things into `parts` ranges of nearly equal length.
fn even(len: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    (0..parts).map(move |i| len * i / parts..len * (i + 1) / parts)
}
