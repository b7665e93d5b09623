//! The writable layer of an image.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::below::Below;
use super::reader::{Caches, LayerReader};
use super::zero::Zeroer;
use crate::error::{Error, Result};
use crate::format::{Parent, Superblock, TreeRoot};
use crate::journal::{Freeze, Journal, JournalStats};
use crate::limits;
use crate::map::{LayerTag, PendingMap, Visit};
use crate::runtime::sync::Monitor;
use crate::space::{Bitmap, BlockRun, Space, SpaceStats};
use crate::storage::{File, Storage};
use crate::units::{BLOCK, PBlock, VBlock, blocks_for};

/// The head: its file, journal, maps and space.
#[derive(Debug)]
pub struct Head<S: Storage> {
    pub(super) storage: S,
    /// The file, and what it maps as of the last checkpoint.
    pub reader: Arc<LayerReader<S::File>>,
    /// Numbers, records, commits.
    pub journal: Journal<S::File>,
    /// What changed since the last checkpoint.
    pub pending: PendingMap,
    /// Free blocks.
    pub space: Space,
    pub(super) caches: Caches,
    /// The superblock in force.
    pub(super) sb: Mutex<Superblock>,
    /// How the layer below is: until it is sealed nothing is folded into the tree here.
    pub(super) below: Monitor<Below>,
    /// A checkpoint runs.
    pub(super) checkpointing: Monitor<bool>,
    /// A freeze whose checkpoint could not be finished for want of space.
    pub(super) unfinished: Mutex<Option<Freeze>>,
    /// The root when the layer was opened: what is walked for holes, since what later checkpoints free is told to
    /// the space as it happens.
    pub(super) opened_root: Mutex<TreeRoot>,
    /// Nodes of the tree, as far as known.
    pub(super) nodes: AtomicU64,
}

/// For `status`.
#[derive(Clone, Copy, Debug)]
pub struct HeadStats {
    /// The journal.
    pub journal: JournalStats,
    /// The space.
    pub space: SpaceStats,
    /// Blocks in the pending map.
    pub pending: usize,
}

/// The count of tree nodes before the holes are known.
const UNKNOWN_NODES: u64 = u64::MAX;

impl<S: Storage> Head<S> {
    pub(super) fn assemble(
        storage: S,
        reader: Arc<LayerReader<S::File>>,
        journal: Journal<S::File>,
        space: Space,
        caches: Caches,
        sb: Superblock,
    ) -> Head<S> {
        let nodes = if sb.root.height == 0 { 0 } else { UNKNOWN_NODES };
        Head {
            storage,
            reader,
            journal,
            pending: PendingMap::default(),
            space,
            caches,
            opened_root: Mutex::new(sb.root),
            sb: Mutex::new(sb),
            below: Monitor::new(Below::Sealed),
            checkpointing: Monitor::new(false),
            unfinished: Mutex::new(None),
            nodes: AtomicU64::new(nodes),
        }
    }

    /// Its place in the chain.
    pub fn tag(&self) -> LayerTag {
        self.reader.tag
    }

    /// The storage it is in.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// The caches it shares.
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.reader.path
    }

    /// A copy of the superblock in force.
    pub fn superblock(&self) -> Superblock {
        self.sb.lock().clone()
    }

    /// For `status`.
    pub fn stats(&self) -> HeadStats {
        HeadStats {
            journal: self.journal.stats(),
            space: self.space.stats(),
            pending: self.pending.entries(),
        }
    }

    /// Up to where holes must be told from zeros on a disk of `size` bytes: nowhere, if there is nothing below.
    pub(super) fn zeros_to(&self, size: u64) -> VBlock {
        match self.sb.lock().parent {
            Parent::None => VBlock(0),
            _ => VBlock(blocks_for(size)),
        }
    }

    /// Blocks that the next checkpoint may need for nodes. Each pending block touches at most one leaf, which may be
    /// written anew, and adds at most 18 bytes to it; inner nodes are a fiftieth of that, and a path.
    pub(super) fn update_node_reserve(&self) {
        let entries = self.pending.entries() as u64;
        let touched = entries.min(self.nodes.load(Ordering::Relaxed));
        let nodes = touched + entries / 64;
        self.space.set_node_reserve(nodes + nodes / 50 + 2 * u64::from(limits::MAX_TREE_HEIGHT));
    }

    /// Serves growth of the file until the layer is closed; a background task, not to be dropped before that. Where the
    /// last piece was used up with many syncs the next one is zeroed first.
    pub async fn run_growth(&self) {
        self.serve_growth(Some(Zeroer::new(self.journal.syncs()))).await;
    }

    /// Serves growth of the file; zeros only with a `zeroer`, and may then not be dropped, since a write may be in flight.
    pub(super) async fn serve_growth(&self, mut zeroer: Option<Zeroer>) {
        while let Some(run) = self.space.growth_wanted().await {
            let zeroer =
                zeroer.as_mut().and_then(|zeroer| zeroer.pays(run, self.journal.syncs()).then_some(zeroer));
            if !self.allocate(run).await {
                self.space.grown(false);
                continue;
            }
            let zeroed = match zeroer {
                Some(zeroer) => zeroer.zero(&self.reader.file, &self.space, run).await,
                None => true,
            };
            if zeroed {
                self.space.grown(true);
            } else {
                self.space.grown_in_vain();
            }
        }
    }

    /// Serves growth of the journal ring until the layer is closed; a background task.
    pub async fn run_ring_growth(&self) {
        let piece = blocks_for(limits::JOURNAL_RESERVE_BYTES);
        while let Some(blocks) = self.journal.ring_growth_wanted(piece).await {
            let run = BlockRun { first: blocks.start, blocks: blocks.end.0 - blocks.start.0 };
            let done = self.allocate(run).await;
            self.journal.ring_grown(done.then_some(blocks.end));
        }
    }

    /// Allocates blocks on the host; `false` where it has no space.
    async fn allocate(&self, run: BlockRun) -> bool {
        allocate(&self.reader.file, run).await
    }

    /// Finds the holes below the high-water mark of the open by reading the tree, once. Until then nothing there is
    /// allocated, which also pins the tree that is walked.
    ///
    /// # Errors
    /// A node that cannot be read: then the holes stay unknown, and the file grows instead.
    pub async fn find_holes(&self) -> Result<()> {
        if self.space.stats().holes_known {
            return Ok(());
        }
        let root = *self.opened_root.lock();
        // The checkpoint of the open has put its nodes above the top that there was before.
        let mut used = UsedBlocks::new(self.superblock().block_area..self.space.high_water());
        let (mut nodes, mut bad) = (0u64, None);
        self.reader
            .tree
            .walk(&root, |visit| match visit {
                Visit::Node { child, .. } => {
                    nodes += 1;
                    used.add(child.pblock, 1);
                }
                Visit::Extent { extent, .. } => {
                    if let crate::format::Place::Data(p) = extent.place {
                        used.add(p, u64::from(extent.blocks));
                    }
                }
                Visit::Bad { error, .. } => bad = Some(error),
            })
            .await;
        if let Some(error) = bad.or(used.wrong) {
            return Err(error.at(self.path()));
        }
        // Checkpoints that ran meanwhile changed the count by little.
        let _ = self.nodes.compare_exchange(UNKNOWN_NODES, nodes, Ordering::Relaxed, Ordering::Relaxed);
        self.space.holes_found(&used.blocks);
        Ok(())
    }

    /// Lets everything in limbo go that rule R allows now.
    pub fn release_limbo(&self) {
        if let Some(BlockRun { first, blocks }) = self.space.release(self.journal.evidence()) {
            self.journal.poison(&format!(
                "the tree is damaged: the {blocks} blocks at offset {} were freed and cannot have been in use",
                first.pos()
            ));
        }
    }

    /// Gives free runs of at least `shortest` blocks back to the host, down to `keep` free blocks, at most `pieces` pieces.
    pub async fn punch(&self, keep: u64, shortest: u64, pieces: usize) {
        for _ in 0..pieces {
            if self.journal.poisoned().is_some() {
                return;
            }
            let Some(piece) = self.space.start_punch(keep, shortest) else { return };
            let punched = self.reader.file.punch(piece.first.pos(), piece.blocks * BLOCK).await.result;
            self.space.punched(punched.is_ok());
            if punched.is_err() {
                return;
            }
        }
    }

    /// Gives back what was allocated ahead, for a layer that nobody writes to.
    pub async fn trim(&self) {
        while self.journal.poisoned().is_none()
            && let Some(piece) = self.space.start_trim()
        {
            // It is as well if the host keeps it.
            let _ = self.reader.file.punch(piece.first.pos(), piece.blocks * BLOCK).await.result;
            self.space.trimmed();
        }
    }

    pub(super) fn add_nodes(&self, written: u64, removed: u64) {
        let known = self.nodes.load(Ordering::Relaxed);
        if known != UNKNOWN_NODES {
            self.nodes.store((known + written).saturating_sub(removed), Ordering::Relaxed);
        }
    }
}

/// The blocks that a tree leads to. A file that somebody else has written may use one of them twice.
pub(super) struct UsedBlocks {
    /// Where they may lie.
    area: std::ops::Range<PBlock>,
    pub(super) blocks: Bitmap,
    pub(super) wrong: Option<Error>,
}

impl UsedBlocks {
    pub(super) fn new(area: std::ops::Range<PBlock>) -> UsedBlocks {
        UsedBlocks { area, blocks: Bitmap::default(), wrong: None }
    }

    pub(super) fn add(&mut self, first: PBlock, blocks: u64) {
        let end = first.plus(blocks);
        let what = if first < self.area.start || end > self.area.end {
            "outside of the area in use"
        } else {
            // What is not used again needs no memory.
            let end = end.0.min(limits::MAX_REUSED_BLOCKS);
            if self.blocks.insert(first.0..end) == end.saturating_sub(first.0) {
                return;
            }
            "used twice"
        };
        let text = format!("blocks {}..{} are {what}", first.0, end.0);
        self.wrong.get_or_insert_with(|| Error::corrupt(text).offset(first.pos()));
    }
}

/// Allocates blocks of `file` on the host. A filesystem that cannot is taken at its word later.
pub(super) async fn allocate<F: File>(file: &F, run: BlockRun) -> bool {
    let (pos, len) = (run.first.pos(), run.blocks * BLOCK);
    match file.allocate(pos, len).await.result {
        Ok(_) => true,
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
            file.meta().is_ok_and(|m| m.len >= pos + len || file.set_len(pos + len).is_ok())
        }
        Err(_) => false,
    }
}

/// The first piece of the ring that an open reserves.
pub(super) fn first_ring_piece(sb: &Superblock) -> Option<BlockRun> {
    let ring = sb.ring()?;
    let blocks = ring.blocks.min(blocks_for(limits::JOURNAL_RESERVE_BYTES));
    Some(BlockRun { first: ring.first, blocks })
}

/// The error for a layer without room for its journal.
pub(super) fn no_ring_space(path: &Path, at: PBlock) -> Error {
    Error::new(crate::Kind::NoSpace, "the host has no space for the journal").at(path).offset(at.pos())
}
