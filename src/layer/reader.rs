//! Reading a layer: the open file, its tree and the root in force.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::Result;
use crate::format::{Place, Superblock, TreeRoot};
use crate::map::{LayerTag, NodeCache, SpanCache, Tree};
use crate::storage::File;
use crate::units::VBlock;

/// The caches of an image, shared by its layers.
#[derive(Clone, Debug)]
pub struct Caches {
    /// Tree nodes.
    pub nodes: Arc<NodeCache>,
    /// Resolved spans.
    pub spans: Arc<SpanCache>,
    budget: u64,
}

impl Caches {
    /// Splits `budget` bytes among them.
    pub fn new(budget: u64) -> Caches {
        let nodes = budget / 4;
        let spans = Arc::new(SpanCache::new(budget - nodes));
        Caches { nodes: Arc::new(NodeCache::new(nodes)), spans, budget }
    }

    /// Empty ones of the same size.
    pub fn another(&self) -> Caches {
        Caches::new(self.budget)
    }
}

/// An open layer, for reading.
#[derive(Debug)]
pub struct LayerReader<F> {
    /// Where it was opened.
    pub path: PathBuf,
    /// The file.
    pub file: F,
    /// Its nodes.
    pub tree: Tree<F>,
    /// Its place in the chain.
    pub tag: LayerTag,
    /// Its map has a checksum of each data block.
    pub checksums: bool,
    root: Mutex<TreeRoot>,
    /// What the layer has in front of this block is in its parent: a join has moved it there.
    moved: AtomicU64,
}

impl<F: File> LayerReader<F> {
    /// For the open `file`, whose superblock is `sb`.
    pub fn new(path: &Path, file: F, tag: LayerTag, sb: &Superblock, caches: &Caches) -> LayerReader<F> {
        let tree = Tree::new(file.clone(), tag, caches.nodes.clone());
        LayerReader {
            path: path.to_path_buf(),
            file,
            tree,
            tag,
            checksums: sb.checksums.protects(),
            root: Mutex::new(sb.root),
            moved: AtomicU64::new(0),
        }
    }

    /// The root in force.
    pub fn root(&self) -> TreeRoot {
        *self.root.lock()
    }

    /// A checkpoint has made a new root.
    pub fn set_root(&self, root: TreeRoot) {
        *self.root.lock() = root;
    }

    /// The block in front of which the parent answers for this layer too.
    pub fn moved(&self) -> VBlock {
        VBlock(self.moved.load(Ordering::Relaxed))
    }

    /// The parent answers for this layer in front of `next`.
    pub fn set_moved(&self, next: VBlock) {
        self.moved.store(next.0, Ordering::Relaxed);
    }

    /// Calls `found` for every extent of the tree in `range`, clipped, in order.
    ///
    /// # Errors
    /// A node that cannot be read or verified, with path and offset.
    pub async fn extents(
        &self,
        range: std::ops::Range<VBlock>,
        found: impl FnMut(VBlock, u32, Place, &[u32]),
    ) -> Result<()> {
        let range = range.start.max(self.moved())..range.end;
        self.tree.extents(&self.root(), range, found).await.map_err(|e| e.at(&self.path))
    }
}
