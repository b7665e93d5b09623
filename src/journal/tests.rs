//! What once went wrong between commits, checkpoints and failed records.

use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::{Journal, JournalStart};
use crate::format::LayerId;
use crate::storage::Storage;
use crate::storage::sim::{SimDisk, SimFile};
use crate::units::{PBlock, Seq};

fn journal() -> Journal<SimFile> {
    let start = JournalStart {
        layer: LayerId([7; 16]),
        epoch: 1,
        generation: 1,
        cut: Seq(0),
        ring: PBlock(2)..PBlock(66),
        reserved: 64,
    };
    Journal::new(SimDisk::new(1).create(Path::new("/ring"), 0o600).unwrap(), start)
}

fn now<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_record_that_fails_while_a_checkpoint_runs_gets_the_next_one() {
    let journal = journal();
    journal.fail(Seq(1));
    assert_eq!(now(journal.checkpoint_wanted()), Poll::Ready(true));
    journal.freeze();
    // Behind the cut, and its wish comes before the checkpoint's end.
    journal.fail(Seq(2));
    journal.release(Seq(1), 2);
    assert_eq!(now(journal.checkpoint_wanted()), Poll::Ready(true));
    journal.freeze();
    journal.release(Seq(2), 3);
    assert!(now(journal.checkpoint_wanted()).is_pending(), "nothing is left to settle");
}

#[test]
fn a_commit_waits_for_a_failed_record_above_its_own() {
    let journal = journal();
    journal.settle(Seq(1));
    journal.fail(Seq(2));
    journal.settle(Seq(3));
    // Its sync would cover all that is acknowledged, and so the failed record too. It went round without ever waiting.
    let mut commit = pin!(journal.commit(Seq(1)));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(commit.as_mut().poll(&mut cx).is_pending());
    assert_eq!(now(journal.checkpoint_wanted()), Poll::Ready(true));
    journal.release(Seq(3), 2);
    assert!(matches!(commit.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
}
