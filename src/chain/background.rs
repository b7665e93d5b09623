//! What goes on beside the requests: internal commits, idle checkpoints, space given back.

use std::sync::atomic::{AtomicU64, Ordering};

use super::image::Image;
use crate::error::{Kind, Result};
use crate::layer::{Finish, Head};
use crate::space::SpaceStats;
use crate::storage::Storage;

/// Ticks without a write before the image counts as idle.
const IDLE_TICKS: u64 = 2;
/// Free blocks that a busy image keeps allocated at least: 64 MiB.
const KEEP_FREE: u64 = 16384;
/// Pieces of 256 KiB punched in a tick: 16 MiB when busy, 512 MiB when idle.
const PUNCH_BUSY: usize = 64;
const PUNCH_IDLE: usize = 2048;
/// A free run that is worth a hole: 1 MiB. What is written there later must be allocated on the host again.
const WORTH_A_HOLE: u64 = 256;
/// Ticks without a write before a hole may be of any length, the longer ones first, until no more than a twentieth of the
/// live data is free.
const QUIET_TICKS: u64 = 5;
const SHORTER: [u64; 2] = [16, 1];
/// Share of pending entries to the cache budget at which a checkpoint is wanted: 400,000 entries, some 16 MiB.
const MAX_PENDING: usize = 400_000;

/// What the ticks remember.
#[derive(Debug, Default)]
pub(super) struct State {
    last_acked: AtomicU64,
    idle: AtomicU64,
}

impl<S: Storage> Image<S> {
    /// To be called about once a second, by one task at a time: commits what was acknowledged, so that neither limbo
    /// nor recovery grows without end; folds the journal when the image is idle; gives free space back.
    ///
    /// # Errors
    /// The layer is poisoned, or a checkpoint broke off that a commit needs.
    pub async fn tick(&self) -> Result<()> {
        let Some(head) = self.head() else { return Ok(()) };
        match self.tick_of(&head).await {
            // Another head has its place by now.
            Err(_) if head.journal.has_moved() => Ok(()),
            other => other,
        }
    }

    async fn tick_of(&self, head: &Head<S>) -> Result<()> {
        let sealing = self.retry_seal();
        let acked = head.journal.acked();
        let last = self.background.last_acked.swap(acked.0, Ordering::Relaxed);
        let idle = if last == acked.0 { self.background.idle.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
        self.background.idle.store(idle, Ordering::Relaxed);
        // Nobody was promised that it is on record too: the next requests' records tell it.
        head.make_durable(acked).await?;
        head.release_limbo();
        if head.pending.entries() > MAX_PENDING {
            head.journal.want_checkpoint();
        }
        // No checkpoint can be made before the seal.
        if idle < IDLE_TICKS || sealing {
            let live = live_blocks(head.space.stats());
            head.punch(live.max(KEEP_FREE), WORTH_A_HOLE, PUNCH_BUSY).await;
            return Ok(());
        }
        match head.checkpoint(Finish::Running).await {
            // The requests that need the space are told.
            Err(e) if e.kind() == Kind::NoSpace => {}
            other => other?,
        }
        head.release_limbo();
        head.punch(0, WORTH_A_HOLE, PUNCH_IDLE).await;
        if idle >= QUIET_TICKS {
            head.trim().await;
            let keep = live_blocks(head.space.stats()) / 20;
            for shortest in SHORTER {
                head.punch(keep, shortest, PUNCH_IDLE).await;
            }
        }
        Ok(())
    }

    /// Runs checkpoints as they are wanted, for ever.
    pub async fn run_checkpoints(&self) {
        self.for_each_head(async |head| head.run_checkpoints().await).await;
    }

    /// Grows the file as it is needed, for ever.
    pub async fn run_growth(&self) {
        self.for_each_head(async |head| head.run_growth().await).await;
    }

    /// Grows the journal's reserved part as it is needed, for ever.
    pub async fn run_ring_growth(&self) {
        self.for_each_head(async |head| head.run_ring_growth().await).await;
    }

    /// Finds the free blocks of the file, once.
    ///
    /// # Errors
    /// A tree node cannot be read: the file then grows instead.
    pub async fn find_holes(&self) -> Result<()> {
        match self.head() {
            Some(head) => head.find_holes().await,
            None => Ok(()),
        }
    }
}

fn live_blocks(stats: SpaceStats) -> u64 {
    stats.file_blocks.saturating_sub(stats.free_blocks + stats.punched_blocks)
}
