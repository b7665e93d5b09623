//! Which values a read of a block may give: what was there when it began, or what was written beside it.
//!
//! Times are ticks of one clock. A value is too old if its write had ended before another write of the block began that
//! had itself ended before the read began. All counters are relaxed read-modify-writes: those order nothing between
//! threads as far as ThreadSanitizer knows, so the test hides no race, and on one variable they still agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::disk::SHARED_BLOCKS;

const NEVER: u64 = u64::MAX;

#[derive(Debug)]
struct Block {
    /// The latest start of a write that has ended.
    covered: AtomicU64,
    /// Writes of zeros under way.
    zeroing: AtomicU64,
    /// The latest end of a write of zeros.
    zeroed: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    clock: AtomicU64,
    blocks: Vec<Block>,
    /// By number of the write: when it ended.
    ended: Vec<AtomicU64>,
}

/// The writes to the shared blocks.
#[derive(Clone, Debug)]
pub(crate) struct History(Arc<Shared>);

impl History {
    /// For writes with numbers below `most`.
    pub(crate) fn new(most: u64) -> History {
        let block = |_| Block {
            covered: AtomicU64::new(0),
            zeroing: AtomicU64::new(0),
            // A new disk is zero.
            zeroed: AtomicU64::new(0),
        };
        History(Arc::new(Shared {
            clock: AtomicU64::new(1),
            blocks: (0..SHARED_BLOCKS).map(block).collect(),
            ended: (0..most).map(|_| AtomicU64::new(NEVER)).collect(),
        }))
    }

    fn now(&self) -> u64 {
        self.0.clock.fetch_add(1, Relaxed)
    }

    fn blocks(&self, first: u64, count: u64) -> &[Block] {
        &self.0.blocks[first as usize..(first + count) as usize]
    }

    /// A write begins; gives the time.
    pub(crate) fn begin(&self, first: u64, count: u64, zeros: bool) -> u64 {
        if zeros {
            for block in self.blocks(first, count) {
                block.zeroing.fetch_add(1, Relaxed);
            }
        }
        self.now()
    }

    /// The write that began at `start` has ended; `number` of a write of data.
    pub(crate) fn end(&self, first: u64, count: u64, start: u64, number: Option<u64>) {
        let end = self.now();
        if let Some(number) = number {
            self.0.ended[number as usize].swap(end, Relaxed);
        }
        for block in self.blocks(first, count) {
            if number.is_none() {
                block.zeroed.fetch_max(end, Relaxed);
                block.zeroing.fetch_sub(1, Relaxed);
            }
            block.covered.fetch_max(start, Relaxed);
        }
    }

    /// What a read of `block` that begins now must not be older than.
    pub(crate) fn before_read(&self, block: u64) -> u64 {
        self.0.blocks[block as usize].covered.fetch_add(0, Relaxed)
    }

    /// A read of `block` that began at `before` gave the write `number`, or zeros.
    pub(crate) fn judge(&self, block: u64, before: u64, number: Option<u64>) {
        let ended = match number {
            Some(number) => self.0.ended[number as usize].fetch_add(0, Relaxed),
            None => {
                let cell = &self.0.blocks[block as usize];
                let running = cell.zeroing.fetch_add(0, Relaxed) > 0;
                let zeroed = cell.zeroed.fetch_add(0, Relaxed);
                if running { NEVER } else { zeroed }
            }
        };
        assert!(
            ended >= before,
            "block {block} reads as {number:?}, which ended at {ended}, and a later one began at {before}"
        );
    }
}
