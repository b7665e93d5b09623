//! Where freed blocks rest until rule R lets them go.

use std::collections::VecDeque;

use crate::map::Freed;
use crate::rules::{self, Rule};
use crate::units::Seq;

#[derive(Clone, Copy, Debug)]
struct Resting {
    freed: Freed,
    epoch: u64,
}

/// Freed blocks in the order in which they were freed.
#[derive(Debug, Default)]
pub struct Limbo {
    queue: VecDeque<Resting>,
    blocks: u64,
}

impl Limbo {
    /// Adds blocks freed while the readers' epoch was `epoch`.
    pub fn add(&mut self, freed: &[Freed], epoch: u64) {
        for &f in freed {
            self.blocks += u64::from(f.blocks);
            self.queue.push_back(Resting { freed: f, epoch });
        }
    }

    /// Takes out what may be used again: (a) `evidence`, the highest `durable_seq` that itself is durable, has
    /// reached its record, and (b) the readers' `epoch` is two further. Stops at the first that must wait.
    pub fn release(&mut self, evidence: Seq, epoch: u64, mut to: impl FnMut(Freed)) {
        while let Some(front) = self.queue.front() {
            let early = front.freed.by > evidence && rules::holds(Rule::Evidence);
            let seen = front.epoch + 2 > epoch && rules::holds(Rule::Readers);
            if early || seen {
                break;
            }
            self.blocks -= u64::from(front.freed.blocks);
            to(front.freed);
            self.queue.pop_front();
        }
    }

    /// Blocks resting.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The highest record that something here waits for, as far as order tells.
    pub fn waits_for(&self) -> Option<Seq> {
        self.queue.back().map(|r| r.freed.by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PBlock;

    #[test]
    fn both_halves_of_the_rule_hold_a_block_back() {
        let mut limbo = Limbo::default();
        limbo.add(&[Freed { pblock: PBlock(9), blocks: 2, by: Seq(5) }], 7);
        let taken = |limbo: &mut Limbo, evidence, epoch| {
            let mut n = 0;
            limbo.release(Seq(evidence), epoch, |f| n += f.blocks);
            n
        };
        assert_eq!(taken(&mut limbo, 4, 100), 0, "its record is not known durable");
        assert_eq!(taken(&mut limbo, 5, 8), 0, "a reader may still look at it");
        assert_eq!((limbo.blocks(), limbo.waits_for()), (2, Some(Seq(5))));
        assert_eq!(taken(&mut limbo, 5, 9), 2);
        assert_eq!((limbo.blocks(), limbo.waits_for()), (0, None));
    }
}
