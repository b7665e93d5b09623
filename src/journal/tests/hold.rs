//! The hold at a snapshot's switch.

use std::task::Poll;

use super::{World, now};
use crate::journal::NotFormed;
use crate::units::Seq;

#[test]
fn no_number_is_given_while_it_lasts() {
    let mut world = World::new(8, 8);
    world.journal.hold();
    assert_eq!(world.form_big(1).err(), Some(NotFormed::Held));
    assert!(now(world.journal.room()).is_pending(), "there is room, but not now");
    world.journal.release_hold();
    assert!(matches!(now(world.journal.room()), Poll::Ready(Ok(()))));
    assert!(!world.journal.has_moved());
    assert_eq!(world.form().seq, Seq(1));
}

#[test]
fn what_has_a_number_is_waited_for() {
    let mut world = World::new(8, 8);
    let first = world.form();
    world.journal.hold();
    assert!(now(world.journal.in_flight_settled()).is_pending());
    world.written(&first);
    assert!(now(world.journal.in_flight_settled()).is_pending());
    world.journal.settle(first.seq);
    assert!(matches!(now(world.journal.in_flight_settled()), Poll::Ready(Ok(false))));
}

#[test]
fn a_failed_record_is_told_of_and_not_waited_for() {
    let mut world = World::new(8, 8);
    let (first, second) = (world.form(), world.form());
    world.journal.hold();
    world.written(&first);
    world.journal.fail(first.seq);
    assert!(now(world.journal.in_flight_settled()).is_pending(), "the second one is under way");
    world.written(&second);
    world.journal.settle(second.seq);
    assert!(matches!(now(world.journal.in_flight_settled()), Poll::Ready(Ok(true))));
    world.journal.poison("for the test");
    assert!(matches!(now(world.journal.in_flight_settled()), Poll::Ready(Err(_))));
}

#[test]
fn what_was_held_moves_on() {
    let mut world = World::new(8, 8);
    world.write();
    world.journal.hold();
    world.commit();
    world.journal.moved();
    assert!(world.journal.has_moved());
    assert_eq!(world.form_big(1).err(), Some(NotFormed::Moved));
    assert!(matches!(now(world.journal.room()), Poll::Ready(Ok(()))), "nobody waits for room here");
    world.journal.release_hold();
    assert_eq!(world.form_big(1).err(), Some(NotFormed::Moved), "it is for ever");
    // The seal ends the journal. Who still asks for what was acknowledged here is right.
    world.journal.poison("the layer is sealed");
    assert_eq!(world.form_big(1).err(), Some(NotFormed::Moved));
    assert!(matches!(now(world.journal.commit(Seq(1))), Poll::Ready(Ok(()))));
    assert!(matches!(now(world.journal.commit(Seq(2))), Poll::Ready(Err(_))));
}

#[test]
fn who_waits_for_room_learns_that_it_is_elsewhere() {
    let mut world = World::new(1, 1);
    world.write_big();
    assert_eq!(world.form_big(150).err(), Some(NotFormed::RingFull));
    let mut room = Box::pin(world.journal.room());
    assert!(now(room.as_mut()).is_pending());
    world.journal.hold();
    assert!(now(room.as_mut()).is_pending());
    world.journal.moved();
    assert!(matches!(now(room.as_mut()), Poll::Ready(Ok(()))));
}

/// The last commit before the switch may need one (N2).
#[test]
fn a_record_that_changes_nothing_is_not_held_back() {
    let mut world = World::new(1, 1);
    world.journal.hold();
    assert_eq!(world.form_big(0).expect("it shows nothing").seq, Seq(1));
    assert!(matches!(now(world.journal.room_for(true)), Poll::Pending), "the only block is taken");
    let freeze = world.journal.freeze();
    world.journal.checkpoint_begins();
    world.journal.release(freeze.cut, 2);
    assert!(matches!(now(world.journal.room_for(true)), Poll::Ready(Ok(()))));
    assert!(now(world.journal.room()).is_pending());
}
