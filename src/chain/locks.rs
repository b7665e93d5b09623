//! Block locks (rule W3). They belong to the image, not to a layer, so they outlive a snapshot's switch.
//!
//! Aligned writes, zeroes and discards share their blocks; a request that must read old bytes first has them alone.
//! Granted in order of arrival, so nobody starves and nothing deadlocks.

use std::ops::Range;

use slab::Slab;

use crate::runtime::sync::Monitor;
use crate::units::VBlock;

#[derive(Clone, Debug)]
struct Entry {
    blocks: Range<VBlock>,
    exclusive: bool,
    ticket: u64,
}

impl Entry {
    fn conflicts(&self, other: &Entry) -> bool {
        (self.exclusive || other.exclusive)
            && self.blocks.start < other.blocks.end
            && other.blocks.start < self.blocks.end
    }
}

#[derive(Debug, Default)]
struct Table {
    entries: Slab<Entry>,
    next_ticket: u64,
    /// Entries, held or waiting, that are exclusive: while there are none, nobody needs to look.
    exclusive: usize,
}

/// The locks of one image.
#[derive(Debug, Default)]
pub struct RangeLocks {
    table: Monitor<Table>,
}

/// A held lock.
#[derive(Debug)]
pub struct RangeLock<'a> {
    locks: &'a RangeLocks,
    key: usize,
}

impl RangeLocks {
    /// Locks `blocks`, alone or shared.
    pub async fn lock(&self, blocks: Range<VBlock>, exclusive: bool) -> RangeLock<'_> {
        let key = self.table.with(|t| {
            let ticket = t.next_ticket;
            t.next_ticket += 1;
            t.exclusive += usize::from(exclusive);
            t.entries.insert(Entry { blocks, exclusive, ticket })
        });
        // Made before the wait: a dropped request leaves the queue.
        let lock = RangeLock { locks: self, key };
        self.table
            .wait(|t| {
                let mine = &t.entries[key];
                let free = t.exclusive == 0
                    || !t.entries.iter().any(|(_, e)| e.ticket < mine.ticket && e.conflicts(mine));
                free.then_some(())
            })
            .await;
        lock
    }
}

impl Drop for RangeLock<'_> {
    fn drop(&mut self) {
        let remove = |t: &mut Table| {
            let entry = t.entries.remove(self.key);
            let contended = t.exclusive > 0;
            t.exclusive -= usize::from(entry.exclusive);
            contended
        };
        if self.locks.table.with(remove) {
            self.locks.table.update(|_| {});
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn blocks(a: u64, b: u64) -> Range<VBlock> {
        VBlock(a)..VBlock(b)
    }

    #[test]
    fn exclusive_waits_for_shared_and_later_shared_waits_for_it() {
        let locks = RangeLocks::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = pin!(locks.lock(blocks(0, 4), false));
        let Poll::Ready(first) = first.as_mut().poll(&mut cx) else { panic!("nobody else") };
        let mut alone = pin!(locks.lock(blocks(3, 5), true));
        assert!(alone.as_mut().poll(&mut cx).is_pending());
        let mut late = pin!(locks.lock(blocks(4, 6), false));
        assert!(late.as_mut().poll(&mut cx).is_pending(), "it must not overtake the exclusive one");
        let mut elsewhere = pin!(locks.lock(blocks(5, 9), false));
        assert!(elsewhere.as_mut().poll(&mut cx).is_ready());
        drop(first);
        let Poll::Ready(alone) = alone.as_mut().poll(&mut cx) else { panic!("its turn") };
        assert!(late.as_mut().poll(&mut cx).is_pending());
        drop(alone);
        assert!(late.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn a_dropped_waiter_leaves_the_queue() {
        let locks = RangeLocks::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut held = pin!(locks.lock(blocks(0, 1), false));
        let Poll::Ready(_held) = held.as_mut().poll(&mut cx) else { panic!("nobody else") };
        {
            let mut alone = pin!(locks.lock(blocks(0, 1), true));
            assert!(alone.as_mut().poll(&mut cx).is_pending());
        }
        let mut again = pin!(locks.lock(blocks(0, 1), false));
        assert!(again.as_mut().poll(&mut cx).is_ready());
    }
}
