//! Waiting for a condition that another task of the same thread brings about.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Wakes the one task that waits for a condition. Neither waiting nor notifying allocates.
///
/// The condition itself lives with its owner; whoever changes it calls [`Signal::notify`].
#[derive(Debug, Default)]
pub struct Signal {
    waiter: RefCell<Option<Waker>>,
}

impl Signal {
    /// A signal that nobody waits for.
    pub fn new() -> Signal {
        Signal::default()
    }

    /// Lets the waiting task, if there is one, look at its condition again.
    pub fn notify(&self) {
        let waiter = self.waiter.borrow_mut().take();
        if let Some(waker) = waiter {
            waker.wake();
        }
    }

    /// Waits until `ready` gives a value; it is asked at once and after each [`Signal::notify`]. A second
    /// waiter at the same time would take the first one's place: there must be only one.
    pub async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| match ready() {
            Some(value) => Poll::Ready(value),
            None => {
                self.waiter.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{RingOptions, Runtime, spawn};
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn a_waiter_sees_the_change_it_waits_for() {
        Runtime::new(RingOptions { entries: 8 }).unwrap().block_on(async {
            let shared = Rc::new((Cell::new(0), Signal::new()));
            let theirs = shared.clone();
            spawn(async move {
                for value in 1..=3 {
                    theirs.0.set(value);
                    theirs.1.notify();
                }
            });
            let seen = shared.1.until(|| Some(shared.0.get()).filter(|&v| v >= 3)).await;
            assert_eq!(seen, 3);
        });
    }
}
