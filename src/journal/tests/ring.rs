//! The blocks of the ring: taken, released by checkpoints, allocated on the host piece by piece.

use super::*;
use crate::error::Error;
use crate::journal::JournalStats;

#[test]
fn half_a_ring_asks_for_a_checkpoint_once() {
    let mut world = World::new(8, 8);
    for n in 0..3 {
        assert_eq!(world.write_big(), 2 + n);
        assert!(!world.wants_checkpoint(), "{n}");
    }
    world.write_big();
    assert!(world.wants_checkpoint());
    // A record in an open block takes none of the ring.
    world.write();
    assert!(!world.wants_checkpoint());
    let stats = JournalStats {
        ring_blocks: 8,
        used_blocks: 4,
        newest: Seq(5),
        durable: Seq(0),
        evidence: Seq(0),
        acked: Seq(5),
    };
    assert_eq!(world.journal.stats(), stats);
}

#[test]
fn a_full_ring_waits_for_a_checkpoint_and_goes_round() {
    let mut world = World::new(4, 4);
    (0..4).for_each(|n| assert_eq!(world.write_big(), 2 + n));
    assert!(world.wants_checkpoint());
    assert_eq!(world.form_big(150).expect_err("no block"), NotFormed::RingFull);
    assert_eq!(world.journal.stats().newest, Seq(4), "no number without a place");
    let mut room = Box::pin(world.journal.room());
    assert!(now(room.as_mut()).is_pending());
    assert_eq!(now(world.journal.checkpoint_wanted()), Poll::Ready(true));
    let freeze = world.journal.freeze();
    assert_eq!(world.journal.stats().used_blocks, 4);
    assert!(now(room.as_mut()).is_pending(), "frozen blocks are still needed");
    world.journal.release(freeze.cut, GENERATION + 1);
    assert!(matches!(now(room), Poll::Ready(Ok(()))));
    assert_eq!(world.journal.stats().used_blocks, 0);
    assert!(!world.wants_checkpoint());
    (0..3).for_each(|n| assert_eq!(world.write_big(), 2 + n));
}

#[test]
fn what_was_used_since_the_freeze_counts_for_the_next_checkpoint() {
    let mut world = World::new(4, 4);
    world.write_big();
    let freeze = world.journal.freeze();
    (0..2).for_each(|_| assert!(world.write_big() > 2));
    assert!(world.wants_checkpoint());
    world.journal.release(freeze.cut, GENERATION + 1);
    assert!(world.wants_checkpoint(), "half of the ring is used already");
    assert_eq!(world.journal.stats().used_blocks, 2);
}

#[test]
fn a_full_ring_tells_why_its_checkpoint_broke_off() {
    let mut world = World::new(4, 4);
    (0..4).for_each(|_| assert!(world.write_big() >= 2));
    world.journal.checkpoint_begins();
    let mut room = Box::pin(world.journal.room());
    assert!(now(room.as_mut()).is_pending());
    world.journal.checkpoint_broke_off(&Error::new(Kind::NoSpace, "full"));
    assert!(now(room.as_mut()).is_pending(), "that one had begun before");
    world.journal.checkpoint_begins();
    world.journal.checkpoint_broke_off(&Error::new(Kind::NoSpace, "full"));
    let Poll::Ready(Err(error)) = now(room) else { panic!("it broke off") };
    assert_eq!(error.kind(), Kind::NoSpace);
}

#[test]
fn the_ring_grows_ahead_of_its_use() {
    let mut world = World::new(20, 4);
    assert!(now(world.journal.ring_growth_wanted(8)).is_pending(), "half a piece is free");
    world.write_big();
    assert_eq!(now(world.journal.ring_growth_wanted(8)), Poll::Ready(Some(PBlock(6)..PBlock(14))));
    world.journal.ring_grown(Some(PBlock(14)));
    assert!(now(world.journal.ring_growth_wanted(8)).is_pending());
    for n in 1..9 {
        assert_eq!(world.write_big(), 2 + n);
    }
    assert_eq!(now(world.journal.ring_growth_wanted(8)), Poll::Ready(Some(PBlock(14)..PBlock(22))));
    assert_eq!(
        now(world.journal.ring_growth_wanted(9)),
        Poll::Ready(Some(PBlock(14)..PBlock(22))),
        "its end"
    );
    world.journal.ring_grown(Some(PBlock(22)));
    for n in 9..20 {
        assert_eq!(world.write_big(), 2 + n);
    }
    assert!(now(world.journal.ring_growth_wanted(8)).is_pending(), "there is no more of it");
    assert!(world.form_big(150).is_err());
}

#[test]
fn more_is_reserved_than_there_is_of_a_small_ring() {
    let mut world = World::new(4, 100);
    (0..4).for_each(|n| assert_eq!(world.write_big(), 2 + n));
    assert_eq!(world.form_big(150).expect_err("no block"), NotFormed::RingFull);
}

/// Until the ring has grown a writer waits for that, and asks for no checkpoint.
#[test]
fn an_empty_part_of_the_ring_is_waited_for_without_a_checkpoint() {
    let mut world = World::new(20, 2);
    (0..2).for_each(|n| assert_eq!(world.write_big(), 2 + n));
    let mut room = Box::pin(world.journal.room());
    assert!(now(room.as_mut()).is_pending());
    assert!(now(world.journal.checkpoint_wanted()).is_pending());
    // One that breaks off is no reason either.
    world.journal.checkpoint_begins();
    world.journal.checkpoint_broke_off(&Error::new(Kind::NoSpace, "full"));
    assert!(now(room.as_mut()).is_pending());
    world.journal.ring_grown(Some(PBlock(5)));
    assert!(now(room).is_ready());
}

#[test]
fn on_a_full_host_what_there_is_of_the_ring_must_do() {
    let mut world = World::new(20, 6);
    (0..2).for_each(|n| assert_eq!(world.write_big(), 2 + n));
    world.journal.ring_grown(None);
    assert!(!world.wants_checkpoint(), "two of six");
    assert!(now(world.journal.ring_growth_wanted(100)).is_pending(), "not asked for again");
    world.write_big();
    assert!(world.wants_checkpoint(), "three of six");
    (3..6).for_each(|n| assert_eq!(world.write_big(), 2 + n));
    world.wants_checkpoint();
    assert!(now(world.journal.room()).is_pending());
    assert!(world.wants_checkpoint(), "it is stuck");
    // With half of it in use at once the wish comes with the news.
    let mut world = World::new(20, 6);
    (0..3).for_each(|n| assert_eq!(world.write_big(), 2 + n));
    assert!(!world.wants_checkpoint());
    world.journal.ring_grown(None);
    assert!(world.wants_checkpoint());
}

#[test]
fn a_checkpoint_that_is_wanted_is_wanted_once() {
    let world = World::new(8, 8);
    assert!(!world.wants_checkpoint());
    world.journal.want_checkpoint();
    assert!(world.wants_checkpoint());
    assert!(!world.wants_checkpoint());
}
