//! The allocator: a sweep over free runs, growth at the top, and a reserve for checkpoints.
//!
//! * Next-fit: the sweep goes once around the file, so that a batch finds long runs. Short runs are taken only when
//!   the file may not grow: it may grow to `slack` times the live data.
//! * Checkpoints must always be able to finish: data may not use the last [`Space::set_node_reserve`] blocks.
//! * A block is allocated only inside what `fallocate` has given (`backed`), so no data write extends the file or
//!   runs out of space.

mod holes;

use crate::limits::MAX_REUSED_BLOCKS;
use crate::map::Freed;
use crate::runtime::sync::Monitor;
use crate::units::{PBlock, Seq};

use super::bitmap::Bitmap;
use super::limbo::Limbo;
use super::readers::Readers;

/// Consecutive blocks of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRun {
    /// First block.
    pub first: PBlock,
    /// Number of blocks.
    pub blocks: u64,
}

/// Settings of a [`Space`].
#[derive(Clone, Copy, Debug)]
pub struct SpaceOptions {
    /// The file may grow to this many hundredths of its live data under load.
    pub slack_percent: u64,
    /// Below so many blocks it may grow whatever its live data.
    pub free_growth: u64,
    /// First step of growth in blocks; the following ones are twice as long each, up to 16 MiB.
    pub first_growth: u64,
}

impl Default for SpaceOptions {
    fn default() -> Self {
        SpaceOptions { slack_percent: 200, free_growth: FREE_GROWTH, first_growth: FIRST_GROWTH }
    }
}

/// Answer to a reservation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reserve {
    /// Blocks to write to.
    Run(BlockRun),
    /// None now; the file must grow, or blocks must leave limbo, first.
    Wait,
}

/// A run at least this long is taken by the sweep without looking further.
const GOOD_RUN: u64 = 64;
/// Runs the sweep looks at before it settles for a short one.
const SWEEP_LOOKS: usize = 64;
/// Below this many blocks (64 MiB) the file may grow whatever its live data.
const FREE_GROWTH: u64 = 16384;
/// First step of growth in blocks (1 MiB).
const FIRST_GROWTH: u64 = 256;
/// Longest step (16 MiB).
const MAX_GROWTH: u64 = 4096;

#[derive(Debug)]
struct State {
    options: SpaceOptions,
    block_area: u64,
    /// Blocks from here on were never allocated: the high-water mark.
    top: u64,
    /// The file is allocated on the host up to here.
    backed: u64,
    /// Free blocks below `top`.
    free: Bitmap,
    /// Free blocks that are holes on the host: allocated there again before they are handed out.
    punched: Bitmap,
    punching: Option<BlockRun>,
    /// What was allocated ahead is being given back: until that is done the file does not grow.
    trimming: bool,
    sweep: u64,
    limbo: Limbo,
    /// Until the holes below it are known: the top at open, and what was freed below it since.
    unknown_below: Option<u64>,
    freed_unknown: Vec<Freed>,
    /// Blocks that were freed and cannot have been in use.
    misfreed: Option<BlockRun>,
    node_reserve: u64,
    growth_step: u64,
    grow_wanted: bool,
    /// What is being allocated on the host: a hole below the top, or the next piece of the file.
    growing: Option<BlockRun>,
    /// Zeros are written to it.
    zeroing: bool,
    /// The last try to grow failed.
    full: bool,
    closed: bool,
    evidence: Seq,
}

/// Space of one layer file.
#[derive(Debug)]
pub struct Space {
    state: Monitor<State>,
    readers: Readers,
}

/// What a [`Space`] holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpaceStats {
    /// Blocks below the high-water mark.
    pub file_blocks: u64,
    /// Free blocks that are still allocated on the host.
    pub free_blocks: u64,
    /// Free blocks given back to the host.
    pub punched_blocks: u64,
    /// Blocks that wait for rule R.
    pub limbo_blocks: u64,
    /// True once the holes below the old high-water mark are known.
    pub holes_known: bool,
    /// The host had no space at the last try to grow.
    pub full: bool,
}

impl Space {
    /// For a file whose blocks from `block_area` to `top` may be in use; `backed` blocks are allocated on the host.
    pub fn new(
        block_area: PBlock,
        top: PBlock,
        backed: u64,
        readers: Readers,
        options: SpaceOptions,
    ) -> Space {
        let state = State {
            options,
            block_area: block_area.0,
            top: top.0,
            backed: backed.max(top.0),
            free: Bitmap::default(),
            punched: Bitmap::default(),
            punching: None,
            trimming: false,
            sweep: block_area.0,
            limbo: Limbo::default(),
            unknown_below: (top > block_area).then_some(top.0),
            freed_unknown: Vec::new(),
            misfreed: None,
            node_reserve: 0,
            growth_step: options.first_growth.clamp(1, MAX_GROWTH),
            grow_wanted: false,
            growing: None,
            zeroing: false,
            full: false,
            closed: false,
            evidence: Seq(0),
        };
        Space { state: Monitor::new(state), readers }
    }

    /// The readers that hold back reuse.
    pub fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Up to `want` consecutive blocks for data.
    pub fn reserve(&self, want: u64) -> Reserve {
        let answer = self.state.with(|s| {
            let spare = s.spare();
            let run = (spare > s.node_reserve).then(|| s.take(want.min(spare - s.node_reserve))).flatten();
            let low = s.spare() < s.node_reserve + s.growth_step / 2;
            (run, run.is_none() || low)
        });
        if answer.1 {
            self.want_growth();
        }
        answer.0.map_or(Reserve::Wait, Reserve::Run)
    }

    /// Up to `want` consecutive blocks for tree nodes; may use the reserve.
    pub fn reserve_node(&self, want: u64) -> Reserve {
        let run = self.state.with(|s| s.take(want));
        if run.is_none() {
            self.want_growth();
        }
        run.map_or(Reserve::Wait, Reserve::Run)
    }

    fn want_growth(&self) {
        let new = self.state.with(|s| !std::mem::replace(&mut s.grow_wanted, true));
        if new {
            self.state.update(|_| {});
        }
    }

    /// Takes back blocks that were reserved and never written.
    pub fn give_back(&self, run: BlockRun) {
        self.state.update(|s| s.insert_free(run.first.0, run.blocks));
    }

    /// Keeps `blocks` for the next checkpoint.
    pub fn set_node_reserve(&self, blocks: u64) {
        self.state.with(|s| s.node_reserve = blocks);
    }

    /// Puts freed blocks into limbo.
    pub fn free_later(&self, freed: &[Freed]) {
        if !freed.is_empty() {
            let epoch = self.readers.epoch();
            self.state.with(|s| s.limbo.add(freed, epoch));
        }
    }

    /// Releases what rule R allows, now that `evidence` is the highest durable number on durable record. Gives blocks
    /// that were freed although they were free, or never in use: the tree that named them is damaged.
    #[must_use]
    pub fn release(&self, evidence: Seq) -> Option<BlockRun> {
        let epoch = self.readers.advance();
        // Nobody is woken: who waits, waits for growth.
        self.state.with(|s| {
            s.evidence = s.evidence.max(evidence);
            let evidence = s.evidence;
            let mut limbo = std::mem::take(&mut s.limbo);
            limbo.release(evidence, epoch, |f| s.release(f));
            s.limbo = limbo;
            s.misfreed
        })
    }

    /// The number that must be on durable record before limbo is empty.
    pub fn limbo_waits_for(&self) -> Option<Seq> {
        self.state.with(|s| s.limbo.waits_for())
    }

    /// Waits until the growth that a reservation asked for has ended, or none will come any more; gives whether the host
    /// was full.
    pub async fn growth_ended(&self) -> bool {
        self.state.wait(|s| (s.closed || !s.grow_wanted).then_some(s.full)).await
    }

    /// Blocks below which nothing above is in use: to be stored as the high-water mark.
    pub fn high_water(&self) -> PBlock {
        self.state.with(|s| PBlock(s.top))
    }

    /// For `status` and policies.
    pub fn stats(&self) -> SpaceStats {
        self.state.with(|s| s.stats())
    }

    /// Waits until growth is wanted; gives the blocks of the file to allocate on the host, to be answered with
    /// [`Space::grown`]. `None`: the space is closed.
    pub async fn growth_wanted(&self) -> Option<BlockRun> {
        self.state
            .wait(|s| match s.closed {
                true => Some(None),
                false => (s.grow_wanted && !s.trimming).then(|| Some(s.start_growth())),
            })
            .await
    }

    /// Ends whoever serves growth: nothing is reserved any more.
    pub fn close(&self) {
        self.state.update(|s| s.closed = true);
    }

    /// The growth has been done, or the host has no space for it.
    pub fn grown(&self, done: bool) {
        self.state.update(|s| s.end_growth(done));
    }

    /// The growth has been done, but a write of zeros to it has failed and may still arrive: its blocks rest until the
    /// next open.
    pub fn grown_in_vain(&self) {
        self.state.update(|s| s.abandon_growth());
    }

    /// Zeros are being written to what is grown. False: not any more, the space is closed.
    pub fn start_zeroing(&self) -> bool {
        self.state.with(|s| {
            s.zeroing = !s.closed;
            s.zeroing
        })
    }

    /// Whether growth that is under way is still wanted.
    pub fn is_closed(&self) -> bool {
        self.state.with(|s| s.closed)
    }

    /// Waits until no zeros are in flight. To be called when the space is closed.
    pub async fn zeroing_ended(&self) {
        self.state.wait(|s| (!s.zeroing).then_some(())).await;
    }

    /// The blocks below the old top that the tree does not map are free: `used` is what it maps.
    pub fn holes_found(&self, used: &Bitmap) {
        self.state.update(|s| {
            let Some(top) = s.unknown_below.take() else { return };
            let mut next = s.block_area;
            while next < top {
                let run =
                    used.next_run(next, u64::MAX).map_or(top..top, |r| r.start.min(top)..r.end.min(top));
                s.insert_free(next, run.start - next);
                next = run.end;
            }
            for freed in std::mem::take(&mut s.freed_unknown) {
                s.insert_freed(freed);
            }
        });
    }
}

impl State {
    fn stats(&self) -> SpaceStats {
        SpaceStats {
            file_blocks: self.top - self.block_area,
            free_blocks: self.free.count(),
            punched_blocks: self.punched.count(),
            limbo_blocks: self.limbo.blocks(),
            holes_known: self.unknown_below.is_none(),
            full: self.full,
        }
    }

    /// Blocks that could be handed out now without growth.
    fn spare(&self) -> u64 {
        self.free.count() + (self.backed - self.top)
    }

    fn live(&self) -> u64 {
        let free = self.free.count() + self.punched.count() + self.limbo.blocks();
        (self.top - self.block_area).saturating_sub(free)
    }

    /// May the top move, instead of short runs being filled?
    fn may_grow(&self) -> bool {
        let file = self.top - self.block_area;
        file < self.options.free_growth || file < self.live().saturating_mul(self.options.slack_percent) / 100
    }

    fn take(&mut self, want: u64) -> Option<BlockRun> {
        let want = want.max(1);
        let good = GOOD_RUN.min(want);
        let mut best: Option<(u64, u64)> = None;
        if self.free.count() > 0 {
            let mut from = self.sweep;
            for _ in 0..SWEEP_LOOKS {
                let run = match self.free.next_run(from, want) {
                    Some(run) => run,
                    None if from > self.block_area => {
                        from = self.block_area;
                        continue;
                    }
                    None => break,
                };
                let len = run.end - run.start;
                if best.is_none_or(|(_, most)| len > most) {
                    best = Some((run.start, len));
                }
                if len >= good {
                    break;
                }
                from = run.end;
            }
        }
        match best {
            Some((start, len)) if len >= good || !self.may_grow() || self.top == self.backed => {
                self.free.remove(start..start + len);
                self.sweep = start + len;
                Some(BlockRun { first: PBlock(start), blocks: len })
            }
            _ => self.take_top(want),
        }
    }

    fn take_top(&mut self, want: u64) -> Option<BlockRun> {
        let blocks = want.min(self.backed - self.top);
        let first = PBlock(self.top);
        self.top += blocks;
        (blocks > 0).then_some(BlockRun { first, blocks })
    }

    fn first_step(&self) -> u64 {
        self.options.first_growth.clamp(1, MAX_GROWTH)
    }

    fn start_growth(&mut self) -> BlockRun {
        let run = match self.hole_to_fill() {
            Some(hole) => {
                self.punched.remove(hole.clone());
                BlockRun { first: PBlock(hole.start), blocks: hole.end - hole.start }
            }
            None => BlockRun { first: PBlock(self.backed), blocks: self.growth_step },
        };
        self.growing = Some(run);
        run
    }

    fn abandon_growth(&mut self) {
        self.zeroing = false;
        let Some(run) = self.growing.take() else { return };
        if run.first.0 >= self.backed {
            self.insert_free(self.top, self.backed - self.top);
            self.top = run.first.0 + run.blocks;
            self.backed = self.top;
        }
        // Still wanted.
    }

    fn end_growth(&mut self, done: bool) {
        self.zeroing = false;
        let Some(run) = self.growing.take() else { return };
        let refill = run.first.0 < self.backed;
        match (done, refill) {
            (true, true) => self.insert_free(run.first.0, run.blocks),
            (true, false) => self.backed = run.first.0 + run.blocks,
            (false, true) => {
                self.punched.insert(run.first.0..run.first.0 + run.blocks);
            }
            (false, false) => {}
        }
        if done {
            self.growth_step = (self.growth_step * 2).min(MAX_GROWTH);
            self.full = false;
        } else if self.growth_step > 1 {
            // Smaller steps, until the host's last block is used.
            self.growth_step /= 2;
            return;
        } else {
            self.growth_step = self.first_step();
            self.full = true;
        }
        self.grow_wanted = false;
    }

    fn release(&mut self, freed: Freed) {
        match self.unknown_below {
            Some(below) if freed.pblock.0 < below => self.freed_unknown.push(freed),
            _ => self.insert_freed(freed),
        }
    }

    /// Takes back what the map named. That may come from a file which somebody else has written.
    fn insert_freed(&mut self, freed: Freed) {
        let run = BlockRun { first: freed.pblock, blocks: u64::from(freed.blocks) };
        let inside = run.first.0 >= self.block_area && run.first.0 + run.blocks <= self.top;
        if !inside || !self.try_insert(run.first.0, run.blocks) {
            self.misfreed.get_or_insert(run);
        }
    }

    /// Takes back what was reserved here.
    fn insert_free(&mut self, first: u64, blocks: u64) {
        assert!(self.try_insert(first, blocks), "a block of the layer was freed twice: {first} + {blocks}");
    }

    /// False if some of the blocks are free already.
    fn try_insert(&mut self, first: u64, blocks: u64) -> bool {
        let end = (first + blocks).min(MAX_REUSED_BLOCKS);
        self.free.insert(first..end) == end.saturating_sub(first)
    }
}

#[cfg(test)]
mod tests;
