//! The chain as it is between two snapshots: what a request works with from its first look-up to its last byte.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::base::Base;
use crate::device::Geometry;
use crate::error::{Error, Kind, Result};
use crate::format::Superblock;
use crate::layer::{Caches, Head, LayerReader};
use crate::map::{LayerTag, PendingMap};
use crate::storage::Storage;
use crate::units::{BLOCK_SIZE, Seq};

/// The tag of the top layer of a chain that is opened. Each parent has the next lower one, each later head the next
/// higher one, so that tags descend along a chain whatever happens to it.
pub(super) const TOP: LayerTag = LayerTag(1 << 16);

/// A layer in an open chain.
#[derive(Debug)]
pub struct ChainLayer<F> {
    /// Its file and tree.
    pub reader: Arc<LayerReader<F>>,
    /// Its superblock when it was opened, or became what it is.
    pub sb: Superblock,
    /// Size of the disk that it holds, in bytes; of the head also before its superblock says so.
    pub size: u64,
    /// What its journal holds on top of its tree, if it is open read-only and was not closed.
    pub pending: Option<PendingMap>,
}

/// A chain; immutable. A snapshot puts another one in its place; a clone shares everything with it.
#[derive(Clone, Debug)]
pub struct Chain<S: Storage> {
    /// The writable layer; `None` if the image is open read-only.
    pub head: Option<Arc<Head<S>>>,
    /// The head of before, as long as its snapshot is not sealed: what its pending map holds is not in its tree.
    pub sealing: Option<Arc<Head<S>>>,
    /// All layers, the head first, each parent behind its child.
    pub layers: Vec<Arc<ChainLayer<S::File>>>,
    /// The foreign base.
    pub base: Option<Base<S::File>>,
    /// Where the base is.
    pub base_path: Option<PathBuf>,
    pub(super) caches: Caches,
}

impl<S: Storage> Chain<S> {
    /// The top layer.
    pub fn top(&self) -> &ChainLayer<S::File> {
        &self.layers[0]
    }

    /// The layer with this tag, if the chain has it.
    pub(super) fn layer(&self, tag: LayerTag) -> Option<&ChainLayer<S::File>> {
        let top = self.top().reader.tag.0;
        let index = top.checked_sub(tag.0)? as usize;
        // Where no layer has gone from the middle of the chain, the difference is the index.
        let layer = self.layers.get(index).filter(|layer| layer.reader.tag == tag);
        layer
            .or_else(|| {
                let at = self.layers.binary_search_by(|layer| tag.cmp(&layer.reader.tag)).ok()?;
                Some(&self.layers[at])
            })
            .map(|layer| &**layer)
    }

    /// The head.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn writable(&self) -> Result<&Head<S>> {
        let read_only = || Error::new(Kind::Permission, "the image is open read-only").at(self.path());
        self.head.as_deref().ok_or_else(read_only)
    }

    /// The file that the user named, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.top().reader.path
    }

    /// The layer below the head, if it is sealed and shows the same disk: nothing was changed since it was made.
    pub fn unchanged_since(&self) -> Option<&ChainLayer<S::File>> {
        let head = self.head.as_ref()?;
        let below = self.layers.get(1).filter(|below| below.size == self.top().size)?;
        let (sb, journal) = (head.superblock(), head.journal.stats());
        let empty = sb.root.height == 0 && sb.cut == Seq(0) && journal.newest == Seq(0);
        (empty && self.sealing.is_none()).then_some(&**below)
    }

    /// What a frontend announces.
    pub fn geometry(&self) -> Geometry {
        let top = self.top();
        Geometry {
            size: top.size,
            sector_size: top.sb.sector_size,
            read_only: self.head.is_none(),
            block_size: BLOCK_SIZE as u32,
        }
    }

    /// The layers, with `layer` in place of the one with its tag.
    pub(super) fn with_layer(&self, layer: ChainLayer<S::File>) -> Vec<Arc<ChainLayer<S::File>>> {
        let mut layers = self.layers.clone();
        if let Some(at) = layers.iter().position(|old| old.reader.tag == layer.reader.tag) {
            layers[at] = Arc::new(layer);
        }
        layers
    }
}
