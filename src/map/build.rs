//! The tree builder: folds sorted changes into a tree, copy-on-write, level by level.
//!
//! Leaves that changes fall into are read, merged and written anew; then the inner nodes above them, up to a new
//! root. Neighbouring changed nodes under one parent are repacked together, so that a region that was written
//! randomly and then sequentially shrinks again; and what shrank takes in a neighbour that fits, so that nodes
//! emptied one by one do not stay. Nothing of the old tree is overwritten.

use std::future::Future;
use std::ops::Range;

use super::leaves::{Changes, LeafGroup, Piece, leaf_bytes};
use super::nodes::Node;
use super::pending::{Change, Freed};
use super::tree::{END, Located, Tree};
use crate::error::{Error, Kind, Result};
use crate::format::{
    Child, INNER_CAPACITY, InnerNode, LEAF_BODY_BYTES, LeafNode, MAX_LEAF_START, Place, TreeRoot,
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

/// The most nodes that a build can write: for changes of `entries` blocks, and ends of zero ranges, in a tree of
/// `nodes` nodes and this height, on a disk of `blocks` blocks.
///
/// A block touches one node of each level. Each of them is written anew and may have been full, so that there are
/// two of it; a block adds 28 bytes at most, the headers of the two extents that it cuts an old one into. Above
/// 16 TiB a leaf also ends where its offsets do.
pub fn most_nodes(entries: u64, nodes: u64, height: u32, blocks: u64) -> u64 {
    let touched = entries.saturating_mul(u64::from(height.max(1))).min(nodes);
    let far = 2 * (blocks / MAX_LEAF_START);
    2 * touched + touched / 64 + entries / 100 + far + 2 * u64::from(MAX_TREE_HEIGHT)
}

/// What one level hands up: in the parent that holds `removed`, these children are replaced.
struct Edit {
    removed: Vec<VBlock>,
    added: Vec<Child>,
    /// Where the range of the removed ones ends.
    end: VBlock,
}

struct Builder<'a, F, S> {
    tree: &'a Tree<F>,
    root: TreeRoot,
    sink: &'a mut S,
    zeros_to: VBlock,
    by: Seq,
    built: Built,
    /// Levels of the new tree below what [`Builder::grow`] adds.
    height: u32,
}

/// Folds `changes` (sorted, disjoint) into the tree at `root`. Zeros are stored in front of `zeros_to`: the end of the
/// disk if the layer has a parent; without one they are holes, and it is 0. Freed blocks carry `by`.
pub async fn build<F: File, S: NodeSink>(
    tree: &Tree<F>,
    root: TreeRoot,
    changes: &[Change],
    zeros_to: VBlock,
    by: Seq,
    sink: &mut S,
) -> Result<Built> {
    if changes.is_empty() {
        return Ok(Built { root, ..Built::default() });
    }
    let mut builder =
        Builder { tree, root, sink, zeros_to, by, built: Built::default(), height: root.height.max(1) };
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
        let mut rest = Changes::new(changes);
        let mut open: Option<LeafGroup> = None;
        while let Some(key) = rest.next_block() {
            let at = self.tree.descend(&self.root, 0, key).await?;
            let (range, parent) = match &at {
                None => (VBlock(0)..END, VBlock(0)..END),
                Some(at) => (at.range.clone(), at.parent.clone()),
            };
            if let Some(group) = open.as_mut().filter(|g| !g.continues(&range, &parent)) {
                self.widen_leaves(group, &edits, range.start).await?;
            }
            if let Some(done) = open.take_if(|g| !g.continues(&range, &parent)) {
                edits.push(self.close_leaves(done).await?);
            }
            let group = open.get_or_insert_with(|| LeafGroup::new(range.clone(), parent));
            if let Some(at) = &at {
                group.removed.push(at.child.first);
                self.free_node(at.child.pblock);
            }
            group.range.end = range.end;
            self.merge_leaf(group, at.as_ref().map(leaf_of).transpose()?, &mut rest);
        }
        if let Some(mut group) = open {
            self.widen_leaves(&mut group, &edits, END).await?;
            edits.push(self.close_leaves(group).await?);
        }
        Ok(edits)
    }

    /// Merges one old leaf with the changes in its range into the group.
    fn merge_leaf(&mut self, group: &mut LeafGroup, old: Option<&LeafNode>, rest: &mut Changes<'_>) {
        let end = group.range.end;
        let mut olds = old.into_iter().flat_map(|leaf| leaf.extents.iter().map(move |e| Piece::of(leaf, e)));
        let mut current = olds.next();
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
                current = behind.or_else(|| olds.next());
            }
            let kept = match change.place {
                Place::Data(_) => Some(change),
                Place::Zero => change.part(VBlock(0)..self.zeros_to),
            };
            if let Some(kept) = kept {
                group.push(kept);
            }
        }
        current.into_iter().chain(olds).for_each(|piece| group.push(piece));
    }

    /// Takes in unchanged neighbours under the same parent that fit into the room a shrunken group has: first the one
    /// in front, if `closed` does not name it, then those behind up to `until`, the next changed leaf.
    async fn widen_leaves(&mut self, group: &mut LeafGroup, closed: &[Edit], until: VBlock) -> Result<()> {
        let floor = closed.last().map_or(VBlock(0), |e| e.end).max(group.parent.start);
        if group.room() >= LEAF_BODY_BYTES / 2 && group.range.start > floor {
            let at = self.neighbour(0, VBlock(group.range.start.0 - 1)).await?;
            let leaf = leaf_of(&at)?;
            if leaf_bytes(leaf) <= group.room() {
                self.free_node(at.child.pblock);
                group.prepend(leaf, at.child.first, at.range.start);
            }
        }
        let until = until.min(group.parent.end);
        while group.room() >= LEAF_BODY_BYTES / 2 && group.range.end < until {
            let at = self.neighbour(0, group.range.end).await?;
            let leaf = leaf_of(&at)?;
            if leaf_bytes(leaf) > group.room() {
                break;
            }
            self.free_node(at.child.pblock);
            group.removed.push(at.child.first);
            group.push_leaf(leaf);
            group.range.end = at.range.end;
        }
        Ok(())
    }

    async fn neighbour(&self, level: u16, key: VBlock) -> Result<Located> {
        let at = self.tree.descend(&self.root, level, key).await?;
        at.ok_or_else(|| Error::corrupt("tree node: the tree lost a level"))
    }

    async fn close_leaves(&mut self, group: LeafGroup) -> Result<Edit> {
        let mut added = Vec::new();
        for leaf in group.pack() {
            let first = leaf.extents.first().map_or(VBlock(0), |e| e.vblock);
            added.push(self.write(first, &Node::Leaf(leaf), 0).await?);
        }
        Ok(Edit { removed: group.removed, added, end: group.range.end })
    }

    /// Level `level` above the leaves: replaces the children that the edits name.
    async fn inner(&mut self, level: u16, edits: Vec<Edit>) -> Result<Vec<Edit>> {
        let mut up: Vec<Edit> = Vec::new();
        let mut open: Option<InnerGroup> = None;
        for edit in edits {
            let key = edit.removed.first().copied().unwrap_or_default();
            if open.as_ref().is_none_or(|g| key >= g.range.end) {
                let at = self.neighbour(level, key).await?;
                if let Some(group) = open.as_mut().filter(|g| !g.continues(&at)) {
                    self.widen_inner(group, level, &up, at.range.start).await?;
                }
                if let Some(done) = open.take_if(|g| !g.continues(&at)) {
                    up.push(self.close_inner(done, level).await?);
                }
                self.free_node(at.child.pblock);
                open.get_or_insert_with(|| InnerGroup::new(&at)).push(&at)?;
            }
            if let Some(group) = &mut open {
                group.apply(edit);
            }
        }
        if let Some(mut group) = open {
            self.widen_inner(&mut group, level, &up, END).await?;
            up.push(self.close_inner(group, level).await?);
        }
        Ok(up)
    }

    /// As [`Builder::widen_leaves`].
    async fn widen_inner(
        &mut self,
        group: &mut InnerGroup,
        level: u16,
        closed: &[Edit],
        until: VBlock,
    ) -> Result<()> {
        let floor = closed.last().map_or(VBlock(0), |e| e.end).max(group.parent.start);
        if group.room() >= INNER_CAPACITY / 2 && group.range.start > floor {
            let at = self.neighbour(level, VBlock(group.range.start.0 - 1)).await?;
            if inner_of(&at)?.children.len() <= group.room() {
                self.free_node(at.child.pblock);
                group.prepend(&at)?;
            }
        }
        let until = until.min(group.parent.end);
        while group.room() >= INNER_CAPACITY / 2 && group.range.end < until {
            let at = self.neighbour(level, group.range.end).await?;
            if inner_of(&at)?.children.len() > group.room() {
                break;
            }
            self.free_node(at.child.pblock);
            group.push(&at)?;
        }
        Ok(())
    }

    async fn close_inner(&mut self, group: InnerGroup, level: u16) -> Result<Edit> {
        let InnerGroup { children, removed, range, .. } = group;
        // A root needs two children: a tree that shrank loses a level each time.
        let is_root = u32::from(level) + 1 == self.root.height;
        let added = if is_root && children.len() == 1 {
            self.height -= 1;
            children
        } else {
            self.write_inner(children, level).await?
        };
        Ok(Edit { removed, added, end: range.end })
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
        while top.len() > 1 {
            if self.height >= u32::from(MAX_TREE_HEIGHT) {
                return Err(Error::new(Kind::NoSpace, "the extent tree has reached its greatest height"));
            }
            top = self.write_inner(top, u16::try_from(self.height).unwrap_or(u16::MAX)).await?;
            self.height += 1;
        }
        let Some(root) = top.first() else { return Ok(TreeRoot::default()) };
        Ok(TreeRoot { pblock: root.pblock, crc: root.crc, height: self.height })
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

/// Children of neighbouring inner nodes under one parent.
struct InnerGroup {
    children: Vec<Child>,
    removed: Vec<VBlock>,
    range: Range<VBlock>,
    parent: Range<VBlock>,
}

impl InnerGroup {
    /// Begins with the node at `at`, which is to be pushed next.
    fn new(at: &Located) -> InnerGroup {
        let start = at.range.start;
        InnerGroup {
            children: Vec::new(),
            removed: Vec::new(),
            range: start..start,
            parent: at.parent.clone(),
        }
    }

    fn continues(&self, at: &Located) -> bool {
        self.range.end == at.range.start && self.parent == at.parent
    }

    /// Children that the nodes needed for the group have room for; see [`LeafGroup::room`].
    fn room(&self) -> usize {
        let children = self.children.len();
        (children.div_ceil(INNER_CAPACITY) * INNER_CAPACITY / 8 * 7).saturating_sub(children)
    }

    fn push(&mut self, at: &Located) -> Result<()> {
        self.children.extend_from_slice(&inner_of(at)?.children);
        self.removed.push(at.child.first);
        self.range.end = at.range.end;
        Ok(())
    }

    fn prepend(&mut self, at: &Located) -> Result<()> {
        self.children.splice(0..0, inner_of(at)?.children.iter().copied());
        self.removed.insert(0, at.child.first);
        self.range.start = at.range.start;
        Ok(())
    }

    fn apply(&mut self, edit: Edit) {
        let Some(first) = edit.removed.first() else { return };
        let at = self.children.partition_point(|c| c.first < *first);
        let removed = edit.removed.len();
        self.children.splice(at..(at + removed).min(self.children.len()), edit.added);
    }
}

fn leaf_of(at: &Located) -> Result<&LeafNode> {
    match &*at.node {
        Node::Leaf(leaf) => Ok(leaf),
        Node::Inner(_) => {
            Err(Error::corrupt("tree node: no leaf where one belongs").offset(at.child.pblock.pos()))
        }
    }
}

fn inner_of(at: &Located) -> Result<&InnerNode> {
    match &*at.node {
        Node::Inner(inner) => Ok(inner),
        Node::Leaf(_) => Err(Error::corrupt("tree node: a leaf above a leaf").offset(at.child.pblock.pos())),
    }
}

/// Splits `len` things into `parts` ranges of nearly equal length.
fn even(len: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    (0..parts).map(move |i| len * i / parts..len * (i + 1) / parts)
}
