//! `chain::locks::RangeLocks` (W3): exclusion, order of arrival, nobody waits for ever.

use std::future::poll_fn;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use cowdisk::chain::RangeLocks;
use cowdisk::units::VBlock;
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use crate::explore;

const BLOCKS: u64 = 4;
const ALONE: i32 = -1;

fn blocks(a: u64, b: u64) -> Range<VBlock> {
    VBlock(a)..VBlock(b)
}

/// Who is on each block: the number that share it, or [`ALONE`]. A lock of the test's own, where nobody is scheduled.
#[derive(Debug, Default)]
struct Holders(Mutex<[i32; BLOCKS as usize]>);

impl Holders {
    fn enter(&self, range: Range<u64>, exclusive: bool) {
        for cell in &mut self.0.lock().unwrap()[range.start as usize..range.end as usize] {
            assert!(if exclusive { *cell == 0 } else { *cell >= 0 }, "a block has {cell} holders");
            *cell = if exclusive { ALONE } else { *cell + 1 };
        }
    }

    fn leave(&self, range: Range<u64>, exclusive: bool) {
        for cell in &mut self.0.lock().unwrap()[range.start as usize..range.end as usize] {
            *cell = if exclusive { 0 } else { *cell - 1 };
        }
    }
}

/// Three threads lock ranges of all kinds, one after the other; some give up while they wait.
fn exclusion() {
    let locks = Arc::new(RangeLocks::default());
    let holders = Arc::new(Holders::default());
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (locks, holders) = (locks.clone(), holders.clone());
            thread::spawn(move || {
                for _ in 0..3 {
                    let start = thread_rng().gen_range(0..BLOCKS);
                    let end = thread_rng().gen_range(start + 1..=BLOCKS);
                    let exclusive = thread_rng().gen_bool(0.5);
                    if thread_rng().gen_bool(0.2) {
                        give_up(&locks, start..end, exclusive);
                        continue;
                    }
                    let lock = block_on(locks.lock(blocks(start, end), exclusive));
                    holders.enter(start..end, exclusive);
                    thread::yield_now();
                    holders.leave(start..end, exclusive);
                    drop(lock);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

/// Asks for a lock and does not wait for it.
fn give_up(locks: &RangeLocks, range: Range<u64>, exclusive: bool) {
    block_on(async {
        let mut lock = pin!(locks.lock(blocks(range.start, range.end), exclusive));
        poll_fn(|cx| {
            let _ = lock.as_mut().poll(cx);
            Poll::Ready(())
        })
        .await;
    });
}

/// An exclusive lock that arrived first is granted first, although the later ones share their blocks with the holder.
fn order_of_arrival() {
    let locks = Arc::new(RangeLocks::default());
    let order = Arc::new(Mutex::new(Vec::new()));
    let held = block_on(locks.lock(blocks(0, 2), false));
    let later = block_on(async {
        let mut first = pin!(locks.lock(blocks(1, 3), true));
        poll_fn(|cx| {
            assert!(first.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        let later: Vec<_> = (0..2)
            .map(|_| {
                let (locks, order) = (locks.clone(), order.clone());
                thread::spawn(move || {
                    let lock = block_on(locks.lock(blocks(1, 2), false));
                    order.lock().unwrap().push("later");
                    drop(lock);
                })
            })
            .collect();
        drop(held);
        let lock = first.await;
        order.lock().unwrap().push("first");
        drop(lock);
        later
    });
    later.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!(*order.lock().unwrap(), ["first", "later", "later"]);
}

#[test]
fn locks_exclude_and_are_granted_in_order() {
    explore("range locks, exclusion", 4000, exclusion);
    explore("range locks, order", 2000, order_of_arrival);
}
