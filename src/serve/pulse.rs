//! Whether the threads that serve a disk still turn.
//!
//! A task on each of them answers the rounds that somebody else begins. A thread that hangs, or whose loop is stuck in a
//! system call, does not answer; one that waits for a slow disk does.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::runtime::sync::Monitor;

/// The rounds, and the answers of those who take part.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    round: Monitor<u64>,
    /// The last round that each thread has answered; gone with its thread.
    answers: Mutex<Vec<Weak<AtomicU64>>>,
}

impl Pulse {
    /// A task for the thread that is to take part; ends with its runtime.
    pub(super) fn beat(self: &Arc<Pulse>) -> impl Future<Output = ()> + 'static + use<> {
        let pulse = self.clone();
        let mut last = pulse.round.with(|round| *round);
        let answer = Arc::new(AtomicU64::new(last));
        pulse.answers.lock().push(Arc::downgrade(&answer));
        async move {
            loop {
                last = pulse.round.wait(|round| (*round > last).then_some(*round)).await;
                answer.store(last, Ordering::Release);
            }
        }
    }

    /// Asks everybody.
    pub(super) fn begin_round(&self) {
        self.round.update(|round| *round += 1);
    }

    /// True if everybody has answered the last round.
    pub(super) fn all_answered(&self) -> bool {
        let round = self.round.with(|round| *round);
        let mut answers = self.answers.lock();
        answers.retain(|answer| answer.strong_count() > 0);
        answers.iter().filter_map(Weak::upgrade).all(|answer| answer.load(Ordering::Acquire) >= round)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[test]
    fn one_thread_that_hangs_is_noticed() {
        let pulse = Arc::new(Pulse::default());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(pulse.all_answered());
        let mut first = pin!(pulse.beat());
        let mut second = Box::pin(pulse.beat());
        for round in 0..3 {
            assert!(pulse.all_answered(), "round {round}");
            pulse.begin_round();
            assert!(!pulse.all_answered());
            assert!(first.as_mut().poll(&mut cx).is_pending());
            assert!(!pulse.all_answered());
            assert!(second.as_mut().poll(&mut cx).is_pending());
        }
        pulse.begin_round();
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert!(!pulse.all_answered());
        // A thread that has ended is not asked any more.
        drop(second);
        assert!(pulse.all_answered());
    }
}
