//! The open image.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::base::Base;
use super::layers::{Chain, ChainLayer};
use super::locks::RangeLocks;
use crate::device::{Errno, Geometry};
use crate::error::{Error, Kind, Result};
use crate::format::Superblock;
use crate::layer::{Caches, Head};
#[cfg(feature = "sim")]
use crate::rules::{self, Rule};
use crate::space::{Readers, SpaceOptions};
use crate::storage::Storage;

/// Errors kept for `status`.
const KEPT_ERRORS: usize = 16;

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
    /// Reads and writes whose data was moved without being seen (zero copy).
    pub unseen: AtomicU64,
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

/// The request that an error belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FailedRequest {
    /// `read`, `write`, `flush`, `discard` or `write_zeroes`.
    pub operation: &'static str,
    /// Its first byte on the disk.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// An error that was met, for `status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The request; `None`: work of the image's own.
    pub place: Option<FailedRequest>,
    /// What kind of error it is.
    pub kind: Kind,
    /// What happened, in which file.
    pub message: String,
}

/// An open image: shared by its queues and background tasks.
#[derive(Debug)]
pub struct Image<S: Storage> {
    pub(super) chain: ArcSwap<Chain<S>>,
    /// Those who read, whichever chain they do it in.
    pub(super) readers: Readers,
    pub(super) locks: RangeLocks,
    /// For `status`.
    pub counters: Counters,
    errors: Mutex<VecDeque<Failure>>,
    pub(super) background: super::background::State,
    pub(super) snapshots: super::switch::State<S>,
    /// How the files of further heads grow.
    pub(super) space: SpaceOptions,
}

impl<S: Storage> Image<S> {
    pub(super) fn assemble(
        head: Option<Head<S>>,
        layers: Vec<ChainLayer<S::File>>,
        base: Option<(PathBuf, Base<S::File>)>,
        caches: Caches,
        space: SpaceOptions,
    ) -> Image<S> {
        let readers = head.as_ref().map_or_else(Readers::default, |h| h.space.readers().clone());
        let (base_path, base) = base.unzip();
        let head = head.map(Arc::new);
        let layers = layers.into_iter().map(Arc::new).collect();
        let snapshots = super::switch::State::new(head.clone());
        let chain = Chain { head, sealing: None, layers, base, base_path, caches };
        Image {
            chain: ArcSwap::from_pointee(chain),
            readers,
            locks: RangeLocks::default(),
            counters: Counters::default(),
            errors: Mutex::default(),
            background: super::background::State::default(),
            snapshots,
            space,
        }
    }

    /// The chain as it is now.
    pub fn chain(&self) -> Arc<Chain<S>> {
        self.chain.load_full()
    }

    /// The writable layer as it is now; `None` if the image is open read-only.
    pub fn head(&self) -> Option<Arc<Head<S>>> {
        self.chain.load().head.clone()
    }

    /// The file that the user named, without symbolic links.
    pub fn path(&self) -> PathBuf {
        self.chain.load().path().to_owned()
    }

    /// The superblock in force of the top layer.
    pub fn superblock(&self) -> Superblock {
        let chain = self.chain.load();
        chain.head.as_ref().map_or_else(|| chain.top().sb.clone(), |head| head.superblock())
    }

    /// What a frontend announces.
    pub fn geometry(&self) -> Geometry {
        self.chain.load().geometry()
    }

    /// True if most data can be moved without being seen: that of the head has no checksums.
    pub fn moves_unseen(&self) -> bool {
        self.chain.load().head.as_ref().is_some_and(|head| !head.reader.checksums)
    }

    /// The block locks. They belong to the image, so that a snapshot's switch does not come between a request that has
    /// read old bytes and its write.
    pub(super) fn locks(&self) -> &RangeLocks {
        #[cfg(feature = "sim")]
        if !rules::holds(Rule::LocksSurvive) && self.chain.load().layers.len().is_multiple_of(2) {
            return &self.snapshots.other_locks;
        }
        &self.locks
    }

    /// Bytes that the caches hold: nodes, spans.
    pub fn cache_bytes(&self) -> (u64, u64) {
        let caches = &self.chain.load().caches;
        (caches.nodes.weight(), caches.spans.weight())
    }

    /// The last errors, oldest first.
    pub fn failures(&self) -> Vec<Failure> {
        self.errors.lock().iter().cloned().collect()
    }

    /// The messages of [`Image::failures`].
    pub fn last_errors(&self) -> Vec<String> {
        self.errors.lock().iter().map(|failure| failure.message.clone()).collect()
    }

    /// Remembers an error for `status`, and gives what its sender gets.
    pub(super) fn failed(&self, error: &Error, place: Option<FailedRequest>) -> Errno {
        let mut errors = self.errors.lock();
        if errors.len() == KEPT_ERRORS {
            errors.pop_front();
        }
        errors.push_back(Failure { place, kind: error.kind(), message: error.to_string() });
        Errno(error.kind().errno())
    }

    /// Commits and closes the head cleanly. No request may be running, and no snapshot be under way; the one that was
    /// taken last is sealed first.
    ///
    /// # Errors
    /// The image is as after the death of its process: the next open recovers it.
    pub async fn close(&self) -> Result<()> {
        self.sealed().await?;
        if let Some(head) = self.head() {
            head.close().await?;
        }
        self.snapshots.end();
        Ok(())
    }
}
