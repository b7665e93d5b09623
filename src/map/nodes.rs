//! The cache of verified tree nodes: one for all layers of an image, with a byte budget.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rustc_hash::FxBuildHasher;

use crate::format::{InnerNode, LeafNode};
use crate::units::PBlock;

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

/// Keyed by place and checksum: a block that is written again has another key (rule R).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    layer: LayerTag,
    pblock: PBlock,
    crc: u32,
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

    pub(super) fn get(&self, layer: LayerTag, pblock: PBlock, crc: u32) -> Option<Arc<Node>> {
        self.cache.get(&Key { layer, pblock, crc })
    }

    pub(super) fn insert(&self, layer: LayerTag, pblock: PBlock, crc: u32, node: Arc<Node>) {
        self.cache.insert(Key { layer, pblock, crc }, node);
    }

    /// Bytes held.
    pub fn weight(&self) -> u64 {
        self.cache.weight()
    }
}
