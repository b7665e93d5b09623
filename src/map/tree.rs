//! Reading the extent tree of one layer: nodes are paged in through the cache and verified on the way.

use std::ops::Range;
use std::sync::Arc;

use super::nodes::{LayerTag, Node, NodeCache};
use crate::error::{Error, Result};
use crate::format::{Child, InnerNode, LeafExtent, LeafNode, Place, TreeRoot};
use crate::limits::{MAX_DISK_BYTES, MAX_TREE_HEIGHT};
use crate::storage::{File, IoBuf, read_exact};
use crate::units::{BLOCK, BLOCK_SIZE, VBlock};

/// Blocks above every disk.
pub(super) const END: VBlock = VBlock(MAX_DISK_BYTES / BLOCK);

/// Access to the nodes of one layer file.
#[derive(Clone, Debug)]
pub struct Tree<F> {
    file: F,
    layer: LayerTag,
    cache: Arc<NodeCache>,
}

/// A node with the blocks it may map.
#[derive(Clone, Debug)]
pub(super) struct Located {
    pub(super) node: Arc<Node>,
    /// Its entry in the parent: first block, place and checksum.
    pub(super) child: Child,
    pub(super) range: Range<VBlock>,
    /// Where the parent's own range ends.
    pub(super) parent: Range<VBlock>,
}

impl<F: File> Tree<F> {
    /// For the nodes of `file`, which is layer `layer` of its image.
    pub fn new(file: F, layer: LayerTag, cache: Arc<NodeCache>) -> Tree<F> {
        Tree { file, layer, cache }
    }

    /// Reads and verifies one node.
    async fn node(&self, child: Child, level: u16, range: Range<VBlock>) -> Result<Arc<Node>> {
        let at = child.pblock;
        if let Some(node) = self.cache.get(self.layer, at, child.crc, level) {
            // It was verified for the range of the first way to it; a forged tree may have a second one.
            if !node.within(&range) {
                return Err(Error::corrupt("tree node: it maps blocks outside of its range").offset(at.pos()));
            }
            return Ok(node);
        }
        let buf = IoBuf::zeroed(BLOCK_SIZE);
        match read_exact(&self.file, buf.clone(), at.pos()).await {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(Error::corrupt("tree node: the file ends before it").offset(at.pos()));
            }
            Err(e) => return Err(Error::io("read tree node", e).offset(at.pos())),
        }
        let block = buf.to_vec();
        let (node, header) = match level {
            0 => LeafNode::decode(&block, at, range).map(|(n, h)| (Node::Leaf(n), h))?,
            _ => InnerNode::decode(&block, at, level, range).map(|(n, h)| (Node::Inner(n), h))?,
        };
        if header.crc() != child.crc {
            let text = format!("tree node: checksum {:08x}, its parent says {:08x}", header.crc(), child.crc);
            return Err(Error::corrupt(text).offset(at.pos()));
        }
        let node = Arc::new(node);
        self.cache.insert(self.layer, at, child.crc, level, node.clone());
        Ok(node)
    }

    /// The node of `level` on the path to `key`. `None`: the tree is empty.
    pub(super) async fn descend(&self, root: &TreeRoot, level: u16, key: VBlock) -> Result<Option<Located>> {
        if root.height == 0 {
            return Ok(None);
        }
        let top = u16::try_from(root.height - 1).unwrap_or(u16::from(MAX_TREE_HEIGHT));
        debug_assert!(level <= top);
        let mut at = Child { first: VBlock(0), pblock: root.pblock, crc: root.crc };
        let mut range = VBlock(0)..END;
        let mut parent = range.clone();
        for current in (level..=top).rev() {
            let node = self.node(at, current, at.first..range.end).await?;
            if current == level {
                return Ok(Some(Located { node, child: at, range, parent }));
            }
            let Node::Inner(inner) = &*node else {
                return Err(Error::corrupt("tree node: a leaf above a leaf").offset(at.pblock.pos()));
            };
            let index = inner.children.partition_point(|c| c.first <= key).saturating_sub(1);
            let mut below = inner.range(index, range.end);
            if index == 0 {
                below.start = range.start;
            }
            parent = range;
            (at, range) = (inner.children[index], below);
        }
        unreachable!("the loop ends at `level`")
    }

    /// Calls `found` for every extent in `range`, clipped to it, in order, with the checksums of data.
    pub async fn extents(
        &self,
        root: &TreeRoot,
        range: Range<VBlock>,
        mut found: impl FnMut(VBlock, u32, Place, &[u32]),
    ) -> Result<()> {
        let mut next = range.start;
        while next < range.end {
            let Some(at) = self.descend(root, 0, next).await? else { return Ok(()) };
            let Node::Leaf(leaf) = &*at.node else { unreachable!("level 0 is verified as a leaf") };
            let from = leaf.extents.partition_point(|e| e.vblock.plus(u64::from(e.blocks)) <= next);
            for extent in &leaf.extents[from..] {
                if extent.vblock >= range.end {
                    return Ok(());
                }
                let (vblock, blocks, place, crcs) = clip(leaf, extent, &range);
                found(vblock, blocks, place, crcs);
            }
            next = at.range.end;
        }
        Ok(())
    }

    /// The leaf that may map `key`, and the blocks that it may map. `None`: the tree is empty.
    pub async fn leaf(&self, root: &TreeRoot, key: VBlock) -> Result<Option<(Arc<Node>, Range<VBlock>)>> {
        Ok(self.descend(root, 0, key).await?.map(|at| (at.node, at.range)))
    }

    /// Visits every node, parents before children and in key order, and every extent. What cannot be read is
    /// visited as bad and left out. Memory is bounded by the height.
    pub async fn walk(&self, root: &TreeRoot, mut visit: impl FnMut(Visit<'_>)) {
        let mut walker = self.walker(root);
        while let Some(step) = walker.next().await {
            match step {
                Step::Bad { child, level, range, error } => visit(Visit::Bad { child, level, range, error }),
                Step::Node { child, level, node } => {
                    visit(Visit::Node { child, level });
                    let Node::Leaf(leaf) = &*node else { continue };
                    for extent in &leaf.extents {
                        visit(Visit::Extent { extent, crcs: leaf.crcs_of(extent) });
                    }
                }
            }
        }
    }

    /// As [`Tree::walk`], node by node, for callers that wait in between.
    pub fn walker(&self, root: &TreeRoot) -> Walker<'_, F> {
        let mut stack = Vec::new();
        if let Some(top) = root.height.checked_sub(1) {
            let top = u16::try_from(top).unwrap_or(u16::from(MAX_TREE_HEIGHT));
            stack.push((Child { first: VBlock(0), pblock: root.pblock, crc: root.crc }, top, VBlock(0)..END));
        }
        Walker { tree: self, stack }
    }
}

/// A walk under way.
#[derive(Debug)]
pub struct Walker<'a, F> {
    tree: &'a Tree<F>,
    /// Nodes to visit, the next one last, with their level and the blocks they may map.
    stack: Vec<(Child, u16, Range<VBlock>)>,
}

/// A node that a [`Walker`] comes to.
#[derive(Debug)]
pub enum Step {
    /// A verified node.
    Node {
        /// Its place and checksum.
        child: Child,
        /// 0 for a leaf.
        level: u16,
        /// The node.
        node: Arc<Node>,
    },
    /// A node that cannot be read; see [`Visit::Bad`].
    Bad {
        /// Its place.
        child: Child,
        /// 0 for a leaf.
        level: u16,
        /// The blocks of the disk whose mapping is lost with it.
        range: Range<VBlock>,
        /// Why.
        error: Error,
    },
}

impl<F: File> Walker<'_, F> {
    /// The next node, or `None` at the end.
    pub async fn next(&mut self) -> Option<Step> {
        let (child, level, range) = self.stack.pop()?;
        let node = match self.tree.node(child, level, range.clone()).await {
            Ok(node) => node,
            Err(error) => return Some(Step::Bad { child, level, range, error }),
        };
        if let Node::Inner(inner) = &*node {
            let below = (0..inner.children.len()).rev();
            self.stack.extend(below.map(|i| (inner.children[i], level - 1, inner.range(i, range.end))));
        }
        Some(Step::Node { child, level, node })
    }
}

/// What [`Tree::walk`] meets.
#[derive(Debug)]
pub enum Visit<'a> {
    /// A node of `level` above the leaves.
    Node {
        /// Its place and checksum.
        child: Child,
        /// 0 for a leaf.
        level: u16,
    },
    /// An extent with the checksums of its data.
    Extent {
        /// The extent.
        extent: &'a LeafExtent,
        /// One per block of data.
        crcs: &'a [u32],
    },
    /// A node that cannot be read.
    Bad {
        /// Its place.
        child: Child,
        /// 0 for a leaf.
        level: u16,
        /// The blocks of the disk whose mapping is lost with it.
        range: Range<VBlock>,
        /// Why.
        error: Error,
    },
}

fn clip<'a>(
    leaf: &'a LeafNode,
    extent: &LeafExtent,
    range: &Range<VBlock>,
) -> (VBlock, u32, Place, &'a [u32]) {
    let end = extent.vblock.plus(u64::from(extent.blocks)).min(range.end);
    let first = extent.vblock.max(range.start);
    let skip = (first.0 - extent.vblock.0) as usize;
    let blocks = (end.0 - first.0) as u32;
    match extent.place {
        Place::Zero => (first, blocks, Place::Zero, &[]),
        Place::Data(p) => {
            let crcs = &leaf.crcs_of(extent)[skip..skip + blocks as usize];
            (first, blocks, Place::Data(p.plus(skip as u64)), crcs)
        }
    }
}
