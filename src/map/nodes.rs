//! The cache of verified tree nodes: one for all layers of an image, with a byte budget.

use std::ops::Range;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rustc_hash::FxBuildHasher;

use crate::format::{InnerNode, LeafNode};
use crate::units::{PBlock, VBlock};

/// A layer within its open image: index from the bottom of the chain, unique while the image is open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct LayerTag(pub u32);

/// A verified node.
#[derive(Debug)]
pub enum Node {
    /// Level 0.
    Leaf(LeafNode),
    /// Any other level.
    Inner(InnerNode),
}

impl Node {
    /// True if all it maps lies in `range`. It is verified to be in order, so its ends tell.
    pub(super) fn within(&self, range: &Range<VBlock>) -> bool {
        match self {
            Node::Leaf(leaf) => {
                let first = leaf.extents.first().map(|e| e.vblock);
                let end = leaf.extents.last().map(|e| e.vblock.plus(u64::from(e.blocks)));
                first.is_some_and(|first| first >= range.start) && end.is_some_and(|end| end <= range.end)
            }
            Node::Inner(inner) => {
                let (first, last) = (inner.children.first(), inner.children.last());
                first.is_some_and(|c| c.first >= range.start) && last.is_some_and(|c| c.first < range.end)
            }
        }
    }
}

/// Keyed by place and checksum: a block that is written again has another key (rule R). The level keeps a node that
/// was verified for one from passing for another.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    layer: LayerTag,
    pblock: PBlock,
    crc: u32,
    level: u16,
}

#[derive(Clone, Debug)]
struct NodeWeight;

impl Weighter<Key, Arc<Node>> for NodeWeight {
    fn weight(&self, _: &Key, node: &Arc<Node>) -> u64 {
        let content = match &**node {
            Node::Leaf(leaf) => {
                leaf.extents.capacity() * size_of::<crate::format::LeafExtent>() + leaf.crcs.capacity() * 4
            }
            Node::Inner(inner) => inner.children.capacity() * 24,
        };
        content as u64 + 128
    }
}

/// The cache.
#[derive(Debug)]
pub struct NodeCache {
    cache: Cache<Key, Arc<Node>, NodeWeight, FxBuildHasher>,
}

impl NodeCache {
    /// Holds about `budget` bytes.
    pub fn new(budget: u64) -> NodeCache {
        let items = usize::try_from(budget / 4096).unwrap_or(usize::MAX).max(16);
        NodeCache {
            cache: Cache::with(
                items,
                budget,
                NodeWeight,
                FxBuildHasher,
                quick_cache::sync::DefaultLifecycle::default(),
            ),
        }
    }

    pub(super) fn get(&self, layer: LayerTag, pblock: PBlock, crc: u32, level: u16) -> Option<Arc<Node>> {
        self.cache.get(&Key { layer, pblock, crc, level })
    }

    pub(super) fn insert(&self, layer: LayerTag, pblock: PBlock, crc: u32, level: u16, node: Arc<Node>) {
        self.cache.insert(Key { layer, pblock, crc, level }, node);
    }

    /// Bytes held.
    pub fn weight(&self) -> u64 {
        self.cache.weight()
    }
}
