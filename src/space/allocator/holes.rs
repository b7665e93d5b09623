//! What goes back to the host: holes in the file, and what was allocated ahead of it.

use std::ops::Range;

use super::{BlockRun, SWEEP_LOOKS, Space, State};
use crate::units::PBlock;

/// Punched in one piece: 256 KiB, so that no request waits long behind it.
pub(super) const PUNCH_PIECE: u64 = 64;
/// Holes of at least this length (256 KiB) are filled before the file grows; shorter ones when it may not.
pub(super) const GOOD_HOLE: u64 = 64;

impl Space {
    /// Takes a piece of a free run of at least `shortest` blocks out, to be made a hole. At most one at a time; until
    /// [`Space::punched`] it is not allocatable. Keeps `keep` free blocks unpunched.
    pub fn start_punch(&self, keep: u64, shortest: u64) -> Option<BlockRun> {
        self.state.with(|s| {
            if s.punching.is_some() || s.free.count() <= keep {
                return None;
            }
            let mut next = s.block_area;
            for _ in 0..SWEEP_LOOKS * 16 {
                let run = s.free.next_run(next, shortest.max(PUNCH_PIECE))?;
                if run.end - run.start >= shortest {
                    let blocks = PUNCH_PIECE.min(run.end - run.start);
                    let piece = BlockRun { first: PBlock(run.start), blocks };
                    s.free.remove(run.start..run.start + blocks);
                    s.punching = Some(piece);
                    return Some(piece);
                }
                next = run.end;
            }
            None
        })
    }

    /// Gives up a piece of what the host has allocated ahead of the high-water mark; to be given back, and answered with
    /// [`Space::trimmed`]. The next growth begins with small steps again.
    pub fn start_trim(&self) -> Option<BlockRun> {
        self.state.with(|s| {
            // What checkpoints may need stays.
            let keep = s.top + s.node_reserve;
            if s.trimming || s.growing.is_some() || s.grow_wanted || s.backed <= keep {
                return None;
            }
            let first = keep.max(s.backed.saturating_sub(PUNCH_PIECE));
            let piece = BlockRun { first: PBlock(first), blocks: s.backed - first };
            s.backed = first;
            s.growth_step = s.first_step();
            s.trimming = true;
            Some(piece)
        })
    }

    /// The piece was given back, or could not be.
    pub fn trimmed(&self) {
        self.state.update(|s| s.trimming = false);
    }

    /// The piece is a hole now (or, `false`, it could not be made one); either way it is free again.
    pub fn punched(&self, done: bool) {
        self.state.update(|s| {
            let Some(piece) = s.punching.take() else { return };
            let blocks = piece.first.0..piece.first.0 + piece.blocks;
            if done {
                s.punched.insert(blocks);
            } else {
                s.free.insert(blocks);
            }
        });
    }
}

impl State {
    /// A hole that is to be allocated again: what idle time has made of a scattered file would take a system call for each
    /// block.
    pub(super) fn hole_to_fill(&self) -> Option<Range<u64>> {
        let (mut from, mut first) = (0, None);
        for _ in 0..SWEEP_LOOKS {
            let Some(hole) = self.punched.next_run(from, self.growth_step) else { break };
            if hole.end - hole.start >= GOOD_HOLE.min(self.growth_step) {
                return Some(hole);
            }
            from = hole.end;
            first = first.or(Some(hole));
        }
        // The host may have no space for more.
        first.filter(|_| !self.may_grow() || self.growth_step < self.first_step())
    }
}
