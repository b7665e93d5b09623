//! The open image.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::base::Base;
use super::locks::RangeLocks;
use crate::device::{Errno, Geometry};
use crate::error::{Error, Result};
use crate::format::Superblock;
use crate::layer::{Caches, Head, LayerReader};
use crate::map::{LayerTag, PendingMap};
use crate::space::Readers;
use crate::storage::Storage;
use crate::units::BLOCK_SIZE;

/// Errors kept for `status`.
const KEPT_ERRORS: usize = 16;

/// A layer in an open chain.
#[derive(Debug)]
pub struct ChainLayer<F> {
    /// Its file and tree.
    pub reader: Arc<LayerReader<F>>,
    /// Its superblock when it was opened.
    pub sb: Superblock,
    /// Size of the disk that it holds, in bytes.
    pub size: u64,
    /// What its journal holds on top of its tree, if it is open read-only and was not closed.
    pub pending: Option<PendingMap>,
}

/// Requests of one kind.
#[derive(Debug, Default)]
pub struct OpCounts {
    /// Requests.
    pub requests: AtomicU64,
    /// Bytes.
    pub bytes: AtomicU64,
    /// Requests that failed.
    pub errors: AtomicU64,
}

/// Requests by kind.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads.
    pub read: OpCounts,
    /// Writes.
    pub write: OpCounts,
    /// Flushes.
    pub flush: OpCounts,
    /// Discards.
    pub discard: OpCounts,
    /// Write-zeroes.
    pub zero: OpCounts,
}

impl OpCounts {
    pub(super) fn count<T>(&self, bytes: u64, result: &Result<T>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if result.is_err() {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An open image: shared by its queues and background tasks.
#[derive(Debug)]
pub struct Image<S: Storage> {
    /// The writable layer; `None` if the image is open read-only.
    pub head: Option<Head<S>>,
    /// All layers, the head first, each parent behind its child; a [`LayerTag`] is an index.
    pub layers: Vec<ChainLayer<S::File>>,
    /// The foreign base.
    pub base: Option<Base<S::File>>,
    /// Where the base is.
    pub base_path: Option<PathBuf>,
    pub(super) caches: Caches,
    pub(super) locks: RangeLocks,
    pub(super) readers: Readers,
    pub(super) nothing_pending: PendingMap,
    /// For `status`.
    pub counters: Counters,
    pub(super) errors: Mutex<VecDeque<String>>,
    pub(super) background: super::background::State,
}

impl<S: Storage> Image<S> {
    pub(super) fn assemble(
        head: Option<Head<S>>,
        layers: Vec<ChainLayer<S::File>>,
        base: Option<(PathBuf, Base<S::File>)>,
        caches: Caches,
    ) -> Image<S> {
        let readers = head.as_ref().map_or_else(Readers::default, |h| h.space.readers().clone());
        let (base_path, base) = base.unzip();
        Image {
            head,
            layers,
            base,
            base_path,
            caches,
            locks: RangeLocks::default(),
            readers,
            nothing_pending: PendingMap::default(),
            counters: Counters::default(),
            errors: Mutex::default(),
            background: super::background::State::default(),
        }
    }

    /// The file that the user named, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.layers[0].reader.path
    }

    /// The superblock in force of the top layer.
    pub fn superblock(&self) -> Superblock {
        self.head.as_ref().map_or_else(|| self.layers[0].sb.clone(), Head::superblock)
    }

    /// What a frontend announces.
    pub fn geometry(&self) -> Geometry {
        let sb = &self.layers[0].sb;
        Geometry {
            size: sb.virtual_size,
            sector_size: sb.sector_size,
            read_only: self.head.is_none(),
            block_size: BLOCK_SIZE as u32,
        }
    }

    pub(super) fn pending(&self) -> &PendingMap {
        self.head.as_ref().map_or(&self.nothing_pending, |h| &h.pending)
    }

    pub(super) fn head_tag(&self) -> LayerTag {
        self.layers[0].reader.tag
    }

    /// Bytes that the caches hold: nodes, spans.
    pub fn cache_bytes(&self) -> (u64, u64) {
        (self.caches.nodes.weight(), self.caches.spans.weight())
    }

    /// The last errors that requests met, oldest first.
    pub fn last_errors(&self) -> Vec<String> {
        self.errors.lock().iter().cloned().collect()
    }

    /// Remembers an error for `status`, and gives what its sender gets.
    pub(super) fn failed(&self, error: &Error) -> Errno {
        let mut errors = self.errors.lock();
        if errors.len() == KEPT_ERRORS {
            errors.pop_front();
        }
        errors.push_back(error.to_string());
        Errno(error.kind().errno())
    }

    /// Commits and closes the head cleanly. No request may be running.
    ///
    /// # Errors
    /// The image is as after the death of its process: the next open recovers it.
    pub async fn close(&self) -> Result<()> {
        match &self.head {
            Some(head) => head.close().await,
            None => Ok(()),
        }
    }
}
