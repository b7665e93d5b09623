//! Zeros ahead of the allocator.
//!
//! A sync over extents that were never written costs about twice: the host's filesystem must note in its own journal
//! that they are written now. Where syncs are many, writing zeros first, in pieces and beside the requests, costs less.
//! The blocks are free and read as zeros before and after, so that a crash in between changes nothing.

use crate::rules::{self, Rule};
use crate::space::{BlockRun, Space};
use crate::storage::{File, IoBuf, IoVecs, finish_write};
use crate::units::{BLOCK, BLOCK_SIZE};

/// Zeros pay where there is a sync for so many blocks. (A sync saves some 200 us then, a block costs some 8 us.)
const BLOCKS_PER_SYNC: u64 = 16;
/// Blocks zeroed by one write: 256 KiB, so that no request waits long behind it.
const PIECE: u64 = 64;

/// Decides when zeros pay, and writes them.
pub(super) struct Zeroer {
    /// Syncs when the last piece was grown, and its blocks.
    syncs: u64,
    blocks: u64,
    /// A write has failed: no more are tried.
    failed: bool,
}

impl Zeroer {
    /// Begins with a count of `syncs`.
    pub fn new(syncs: u64) -> Zeroer {
        Zeroer { syncs, blocks: 0, failed: false }
    }

    /// Whether `run` should be zeroed, now that there have been `syncs` in all.
    pub fn pays(&mut self, run: BlockRun, syncs: u64) -> bool {
        let since = syncs - self.syncs;
        let often = self.blocks > 0 && since.saturating_mul(BLOCKS_PER_SYNC) >= self.blocks;
        (self.syncs, self.blocks) = (syncs, run.blocks);
        often && !self.failed
    }

    /// Writes zeros to `run`, which is allocated; stops early, content, when the space is closed. False: a write failed
    /// and may still arrive.
    pub async fn zero<F: File>(&mut self, file: &F, space: &Space, run: BlockRun) -> bool {
        if !space.start_zeroing() {
            return true;
        }
        if !rules::holds(Rule::ZeroFirst) {
            space.grown(true);
        }
        let zeros = IoBuf::zeroed(PIECE as usize * BLOCK_SIZE);
        let mut vecs = IoVecs::new();
        for at in (0..run.blocks).step_by(PIECE as usize) {
            if space.is_closed() {
                return true;
            }
            let (pos, len) = (run.first.plus(at).pos(), (run.blocks - at).min(PIECE) * BLOCK);
            vecs.push(zeros.slice(0..len as usize));
            let op = file.write(vecs, pos);
            let (written, back) = finish_write(file, op, len as usize, pos).await;
            if written.is_err() {
                self.failed = true;
                return false;
            }
            vecs = back;
            vecs.clear();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PBlock;

    #[test]
    fn zeros_pay_where_syncs_are_many() {
        let run = |blocks| BlockRun { first: PBlock(100), blocks };
        let mut zeroer = Zeroer::new(7);
        assert!(!zeroer.pays(run(256), 100), "there was no piece before");
        let mut zeroer = Zeroer::new(0);
        assert!(!zeroer.pays(run(256), 7));
        assert!(!zeroer.pays(run(512), 7 + 15), "15 syncs for 256 blocks");
        assert!(zeroer.pays(run(512), 22 + 32), "32 for 512");
        assert!(zeroer.pays(run(1024), 54 + 500));
        assert!(!zeroer.pays(run(1024), 554 + 63));
        zeroer.failed = true;
        assert!(!zeroer.pays(run(1), 10_000), "no write is tried after one that failed");
    }
}
