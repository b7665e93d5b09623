//! What a commit covers and waits for (rules C and W4).

use super::*;
use crate::error::Error;
use crate::journal::OnRecord;
use crate::storage::sim::{Fault, FaultKind, Faults, OpKind};

#[test]
fn a_record_that_fails_while_a_checkpoint_runs_gets_the_next_one() {
    let journal = World::new(64, 64).journal;
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
    let journal = World::new(64, 64).journal;
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

#[test]
fn a_commit_of_what_is_durable_writes_nothing() {
    let mut world = World::new(64, 64);
    assert!(now(world.journal.commit(Seq(0))).is_ready());
    world.write();
    world.commit();
    let before = world.disk.ops();
    assert!(now(world.journal.commit(Seq(1))).is_ready());
    assert_eq!((world.disk.ops(), world.disk.in_flight()), (before, 0));
    world.write();
    let mut commit = pin!(world.journal.commit(Seq(2)));
    assert!(now(commit.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 1);
}

/// C1.
#[test]
fn what_is_acknowledged_while_a_sync_runs_takes_the_next_one() {
    let mut world = World::new(64, 64);
    world.write();
    world.write();
    let journal = &world.journal;
    let mut first = pin!(journal.commit(Seq(1)));
    assert!(now(first.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 1);
    let third = journal
        .form(&mut world.lanes, Content::new(&[zeros(1, 1)], &[]), IoVecs::new())
        .expect("there is room");
    journal.written(&mut world.lanes, &third);
    journal.settle(third.seq);
    let mut shared = pin!(journal.commit(Seq(2)));
    let mut late = pin!(journal.commit(Seq(3)));
    assert!(now(shared.as_mut()).is_pending());
    assert!(now(late.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 1, "one at a time");
    world.disk.complete(0);
    assert!(now(first.as_mut()).is_ready());
    assert_eq!(journal.stats().durable, Seq(2));
    assert!(now(shared.as_mut()).is_ready(), "it shares the first sync");
    assert!(now(late.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 1);
    world.disk.complete(0);
    assert!(matches!(now(late.as_mut()), Poll::Ready(Ok(()))));
    assert_eq!(journal.stats().durable, Seq(3));
}

#[test]
fn a_sync_waits_for_lower_numbers() {
    let mut world = World::new(64, 64);
    let (one, two) = (world.form(), world.form());
    world.written(&two);
    world.journal.settle(two.seq);
    let mut commit = pin!(world.journal.commit(Seq(2)));
    assert!(now(commit.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 0);
    world.journal.settle(one.seq);
    assert!(now(commit.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 1);
}

/// The block on disk is between two versions while it is rewritten: a sync then could make neither durable.
#[test]
fn a_sync_waits_for_rewrites_begun_before_it() {
    let mut world = World::new(64, 64);
    for _ in 0..3 {
        world.write();
        let rewrite = world.form();
        let mut commit = pin!(world.journal.commit(world.journal.acked()));
        assert!(now(commit.as_mut()).is_pending());
        assert_eq!(world.disk.in_flight(), 0, "the rewrite has not ended");
        world.journal.written(&mut world.lanes, &rewrite);
        assert!(now(commit.as_mut()).is_pending());
        assert_eq!(world.disk.in_flight(), 1);
        world.journal.settle(rewrite.seq);
        world.disk.complete(0);
        assert!(now(commit.as_mut()).is_ready());
        world.checkpoint(GENERATION + 1);
    }
}

#[test]
fn a_rewrite_during_a_sync_is_waited_for_by_the_next_one_only() {
    let mut world = World::new(64, 64);
    let slow = world.form();
    // In a lane of its own, because the first one is being written.
    let other = world.form();
    world.written(&slow);
    world.journal.settle(slow.seq);
    let mut first = pin!(world.journal.commit(slow.seq));
    assert!(now(first.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 1, "number 2 is not acknowledged and not waited for");
    world.journal.written(&mut world.lanes, &other);
    world.journal.settle(other.seq);
    let mut rewrite = None;
    for _ in 0..2 {
        let formed = world
            .journal
            .form(&mut world.lanes, Content::new(&[zeros(1, 1)], &[]), IoVecs::new())
            .expect("there is room");
        if formed.address == other.address {
            rewrite = Some(formed);
        }
    }
    let rewrite = rewrite.expect("the second lane has nothing that the sync covers");
    world.disk.complete(0);
    assert!(now(first.as_mut()).is_ready());
    let mut next = pin!(world.journal.commit(other.seq));
    assert!(now(next.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 0);
    world.journal.written(&mut world.lanes, &rewrite);
    assert!(now(next.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 1);
}

#[test]
fn a_turn_that_was_given_up_before_its_sync_leaves_its_rewrites_to_the_next_one() {
    let mut world = World::new(64, 64);
    world.write();
    let rewrite = world.form();
    for _ in 0..3 {
        let mut dropped = Box::pin(world.journal.commit(Seq(1)));
        assert!(now(dropped.as_mut()).is_pending());
    }
    assert_eq!(world.disk.in_flight(), 0);
    let mut commit = pin!(world.journal.commit(Seq(1)));
    assert!(now(commit.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 0);
    world.journal.written(&mut world.lanes, &rewrite);
    assert!(now(commit.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 1);
    world.disk.complete(0);
    assert!(now(commit.as_mut()).is_ready());
    assert_eq!(world.durable(), 1);
}

/// The next turn after one that began its sync waits for the rewrites of the phase before only.
#[test]
fn a_sync_that_was_begun_and_dropped_is_none_that_was_given_up() {
    let mut world = World::new(64, 64);
    world.write();
    let mut dropped = Box::pin(world.journal.commit(Seq(1)));
    assert!(now(dropped.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 1);
    drop(dropped);
    let second = world.form();
    world.written(&second);
    world.journal.settle(second.seq);
    let mut commit = pin!(world.journal.commit(Seq(2)));
    assert!(now(commit.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 2, "the turn is free again");
}

#[test]
fn a_failed_sync_poisons() {
    let mut world = World::new(64, 64);
    world.write();
    let fault = Fault { at: 1, kind: FaultKind::Eio, sticky: false, only: Some(OpKind::Sync) };
    world.disk.set_faults(Faults { fail: Some(fault), budget: None });
    let error = world.disk.block_on(world.journal.commit(Seq(1))).expect_err("the sync failed");
    assert_eq!(error.kind(), Kind::Poisoned);
    assert_eq!(world.durable(), 0);
    assert!(world.journal.poisoned().is_some_and(|why| why.contains("fdatasync")));
    world.journal.poison("later");
    assert!(world.journal.poisoned().is_some_and(|why| why.contains("fdatasync")), "the first reason stays");
    assert_eq!(world.form_big(1).expect_err("poisoned"), NotFormed::Poisoned);
    assert_eq!(world.journal.check_alive().expect_err("poisoned").kind(), Kind::Poisoned);
    assert!(matches!(now(world.journal.commit(Seq(1))), Poll::Ready(Err(_))), "not tried again");
    assert!(matches!(now(world.journal.settled(Seq(1))), Poll::Ready(Err(_))));
    assert!(matches!(now(world.journal.room()), Poll::Ready(Ok(()))), "to be told by the next record");
    assert_eq!(now(world.journal.checkpoint_wanted()), Poll::Ready(false));
    assert_eq!(now(world.journal.ring_growth_wanted(8)), Poll::Ready(None));
}

#[test]
fn who_waits_for_a_sync_is_told_of_the_poison() {
    let mut world = World::new(64, 64);
    world.write();
    let _unsettled = world.form();
    let mut commit = pin!(world.journal.commit(Seq(1)));
    assert!(now(commit.as_mut()).is_pending(), "it waits for the rewrite");
    let mut second = pin!(world.journal.commit(Seq(1)));
    assert!(now(second.as_mut()).is_pending());
    world.journal.poison("for a test");
    assert!(matches!(now(commit.as_mut()), Poll::Ready(Err(_))));
    assert!(matches!(now(second.as_mut()), Poll::Ready(Err(_))));
    assert_eq!(world.disk.in_flight(), 0);
}

/// W4: the checkpoint that settles a failed record is what its sync must not wait for.
#[test]
fn a_checkpoints_sync_waits_for_all_but_the_failed() {
    let mut world = World::new(64, 64);
    let (one, two, three) = (world.form(), world.form(), world.form());
    for formed in [&one, &two, &three] {
        world.written(formed);
    }
    world.journal.fail(one.seq);
    world.journal.settle(three.seq);
    let freeze = world.journal.freeze();
    assert_eq!(freeze.cut, Seq(3));
    assert!(now(world.journal.settled(freeze.cut)).is_pending());
    assert!(now(world.journal.settled(Seq(1))).is_ready());
    let mut sync = pin!(world.journal.sync_for_checkpoint(freeze.cut));
    assert!(now(sync.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 0);
    world.journal.settle(two.seq);
    assert!(now(world.journal.settled(freeze.cut)).is_ready());
    assert!(now(sync.as_mut()).is_pending());
    assert_eq!(world.disk.in_flight(), 1);
    world.disk.complete(0);
    assert!(matches!(now(sync.as_mut()), Poll::Ready(Ok(()))));
    assert_eq!(world.durable(), 0, "number 1 is not");
    world.journal.release(freeze.cut, GENERATION + 1);
    assert_eq!((world.durable(), world.journal.evidence()), (3, Seq(3)));
}

#[test]
fn a_checkpoints_sync_does_not_make_a_failed_record_durable() {
    let mut world = World::new(64, 64);
    let one = world.form();
    world.written(&one);
    world.journal.fail(one.seq);
    let mut sync = pin!(world.journal.sync_for_checkpoint(one.seq));
    assert!(now(sync.as_mut()).is_pending());
    world.disk.complete(0);
    assert!(matches!(now(sync.as_mut()), Poll::Ready(Ok(()))));
    assert_eq!(world.durable(), 0);
}

#[test]
fn a_commit_behind_a_failed_record_is_told_of_a_checkpoint_that_broke_off() {
    let mut world = World::new(64, 64);
    let (one, two) = (world.form(), world.form());
    world.written(&one);
    world.written(&two);
    world.journal.fail(one.seq);
    world.journal.settle(two.seq);
    assert!(world.wants_checkpoint());
    // This one had begun before the commit asked: it may not hold what the commit needs.
    world.journal.checkpoint_begins();
    let mut commit = pin!(world.journal.commit(two.seq));
    assert!(now(commit.as_mut()).is_pending());
    assert!(world.wants_checkpoint(), "it asks for one");
    world.journal.checkpoint_broke_off(&Error::new(Kind::NoSpace, "full"));
    assert!(now(commit.as_mut()).is_pending());
    world.journal.checkpoint_begins();
    assert!(now(commit.as_mut()).is_pending());
    world.journal.checkpoint_broke_off(&Error::new(Kind::NoSpace, "still full"));
    let Poll::Ready(Err(error)) = now(commit.as_mut()) else { panic!("it broke off") };
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(error.message().contains("broke off") && error.message().contains("still full"), "{error}");
}

#[test]
fn a_commit_does_not_wait_for_records_that_failed_behind_it() {
    let mut world = World::new(64, 64);
    let formed: Vec<Formed> = (0..4).map(|_| world.form()).collect();
    formed.iter().for_each(|f| world.written(f));
    world.journal.fail(Seq(1));
    world.journal.settle(Seq(2));
    let mut commit = pin!(world.journal.commit(Seq(2)));
    assert!(now(commit.as_mut()).is_pending());
    world.journal.fail(Seq(4));
    world.journal.release(Seq(2), GENERATION + 1);
    assert!(matches!(now(commit.as_mut()), Poll::Ready(Ok(()))));
    assert_eq!(world.durable(), 2);
}

/// Rule R(a): what is durable is evidence only when a record that says so is durable itself.
#[test]
fn evidence_is_what_durable_records_carry() {
    let mut world = World::new(64, 64);
    let evidence = |world: &World| (world.durable(), world.journal.evidence().0);
    world.write();
    world.commit();
    assert_eq!(evidence(&world), (1, 0));
    world.write();
    world.write();
    assert_eq!(evidence(&world), (1, 0));
    world.commit();
    assert_eq!(evidence(&world), (3, 1));
    world.write();
    world.commit();
    assert_eq!(evidence(&world), (4, 3));
    world.checkpoint(GENERATION + 1);
    assert_eq!(evidence(&world), (4, 4));
}

/// N2: that a record is durable is on record when another one says so that is durable itself.
#[test]
fn durable_is_on_record_when_a_durable_record_says_so() {
    let mut world = World::new(64, 64);
    let on_record = |world: &World, seq| match now(world.journal.on_record(Seq(seq))) {
        Poll::Ready(answer) => Some(answer.expect("alive")),
        Poll::Pending => None,
    };
    assert_eq!(on_record(&world, 0), Some(OnRecord::Yes));
    world.write();
    world.commit();
    assert_eq!(on_record(&world, 1), Some(OnRecord::No));
    let carrier = world.form_big(0).expect("there is room");
    assert_eq!(content(&carrier).0.last().map(|r| r.durable), Some(Seq(1)));
    assert_eq!(on_record(&world, 1), None, "it is being written");
    world.written(&carrier);
    world.journal.settle(carrier.seq);
    assert_eq!(on_record(&world, 1), Some(OnRecord::In(Seq(2))));
    world.commit();
    assert_eq!(on_record(&world, 1), Some(OnRecord::Yes));
    // Of what changes nothing nobody needs to know, so this ends.
    assert_eq!(on_record(&world, 2), Some(OnRecord::Yes));
    world.write();
    world.journal.poison("for the test");
    assert!(matches!(now(world.journal.on_record(Seq(3))), Poll::Ready(Err(_))));
}

/// A checkpoint's superblock says it too.
#[test]
fn a_checkpoint_puts_all_on_record() {
    let mut world = World::new(64, 64);
    world.write();
    world.commit();
    world.checkpoint(2);
    assert!(matches!(now(world.journal.on_record(Seq(1))), Poll::Ready(Ok(OnRecord::Yes))));
}
