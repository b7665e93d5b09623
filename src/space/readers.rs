//! Rule R(b): a freed block is not reused before every reader that looked up earlier has finished.
//!
//! Readers count themselves in the current epoch. The epoch moves on only when nobody is left in the one before,
//! so what was freed in epoch `e` is out of every reader's sight at epoch `e + 2`.

use std::sync::Arc;

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The counters; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Readers {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    epoch: AtomicU64,
    active: [AtomicUsize; 2],
}

/// Holds back reuse of every block that was mapped when it was made.
#[derive(Debug)]
pub struct ReadGuard {
    shared: Arc<Shared>,
    slot: usize,
}

impl Readers {
    /// To be taken before a look-up and kept until the bytes have been read.
    pub fn enter(&self) -> ReadGuard {
        loop {
            let epoch = self.shared.epoch.load(Ordering::SeqCst);
            let slot = (epoch % 2) as usize;
            self.shared.active[slot].fetch_add(1, Ordering::SeqCst);
            // If the epoch went on meanwhile, this counter may already have been found empty.
            if self.shared.epoch.load(Ordering::SeqCst) == epoch {
                return ReadGuard { shared: self.shared.clone(), slot };
            }
            self.shared.active[slot].fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The epoch that something freed now belongs to.
    pub fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::SeqCst)
    }

    /// Moves on as far as the readers allow; gives the epoch. What was freed at or before `epoch - 2` is unseen.
    pub fn advance(&self) -> u64 {
        let epoch = self.epoch();
        let before = ((epoch + 1) % 2) as usize;
        if self.shared.active[before].load(Ordering::SeqCst) == 0 {
            // A lost race means that another thread moved it on.
            let _ = self.shared.epoch.compare_exchange(epoch, epoch + 1, Ordering::SeqCst, Ordering::SeqCst);
        }
        self.epoch()
    }
}

impl Drop for ReadGuard {
    fn drop(&mut self) {
        self.shared.active[self.slot].fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_holds_the_epoch_back() {
        let readers = Readers::default();
        let guard = readers.enter();
        let freed_at = readers.epoch();
        for _ in 0..10 {
            readers.advance();
        }
        assert!(readers.epoch() < freed_at + 2, "the reader from before still runs");
        let late = readers.enter();
        drop(guard);
        readers.advance();
        assert!(readers.advance() >= freed_at + 2 || readers.epoch() == freed_at + 2);
        drop(late);
    }
}
