//! Where records go (rules J1 and J2), and what they say.

use super::*;
use crate::limits::MAX_UNSETTLED;
use crate::map::Slot;

#[test]
fn a_queue_packs_its_records_into_one_block() {
    let mut world = World::new(64, 64);
    for n in 1..=20 {
        let formed = world.form();
        assert_eq!((formed.seq, formed.address, formed.slot), (Seq(n), PBlock(2), Slot(0)));
        let (records, generation) = content(&formed);
        assert_eq!((numbers(&records), generation), ((1..=n).collect(), GENERATION));
        assert_eq!(records[0].extents, [zeros(3, 1)]);
        world.written(&formed);
        world.journal.settle(formed.seq);
    }
    assert_eq!(world.journal.stats().used_blocks, 1);
}

#[test]
fn a_block_in_flight_is_left_alone() {
    let mut world = World::new(64, 64);
    let one = world.form();
    let two = world.form();
    assert_eq!((one.address, two.address), (PBlock(2), PBlock(3)));
    assert_eq!(numbers(&content(&two).0), [2]);
    world.written(&two);
    let three = world.form();
    assert_eq!((three.address, numbers(&content(&three).0)), (PBlock(3), vec![2, 3]));
    world.written(&one);
    let four = world.form();
    assert_eq!((four.address, numbers(&content(&four).0)), (PBlock(2), vec![1, 4]));
}

#[test]
fn a_record_lists_the_lower_numbers_that_are_not_settled() {
    let mut world = World::new(64, 64);
    let formed: Vec<Formed> = (0..5).map(|_| world.form()).collect();
    assert_eq!(content(&formed[4]).0[0].unsettled, [1, 2, 3, 4]);
    world.journal.settle(Seq(2));
    world.journal.settle(Seq(4));
    assert_eq!(content(&world.form()).0[0].unsettled, [1, 3, 5]);
    world.journal.fail(Seq(3));
    assert_eq!(content(&world.form()).0[0].unsettled, [1, 2, 4, 6], "failed is not settled");
}

#[test]
fn a_block_is_filled_to_its_last_byte_and_not_further() {
    let mut world = World::new(64, 64);
    // 56 bytes of header and 48 + 20 for each record of one extent.
    let many = (BLOCK_SIZE - crate::format::JOURNAL_HEADER_BYTES) / 68;
    for n in 0..many {
        assert_eq!(world.write(), 2, "record {n}");
    }
    assert_eq!(world.write(), 3);
    // Of two records that fill a block to the byte both fit, with an extent more the second one does not.
    let room = BLOCK_SIZE - crate::format::JOURNAL_HEADER_BYTES - 2 * 48;
    for more in [0, 1] {
        let mut world = World::new(64, 64);
        let extents = vec![zeros(3, 1); room / 20 / 2];
        let rest = (room - extents.len() * 20) / 20;
        for (count, block) in [(extents.len(), 2), (rest + more, 2 + more as u64)] {
            let formed = world.form_big(count).expect("there is room");
            assert_eq!(formed.address.0, block);
            world.written(&formed);
            world.journal.settle(formed.seq);
        }
    }
}

/// J1: a flushed record's block is never rewritten; its next version stands elsewhere.
#[test]
fn flushed_bytes_are_not_overwritten_before_their_copy_is_durable() {
    let mut world = World::new(64, 64);
    assert_eq!((world.write(), world.write()), (2, 2));
    world.commit();
    let moved = world.form();
    assert_eq!((moved.address, numbers(&content(&moved).0)), (PBlock(3), vec![1, 2, 3]));
    world.written(&moved);
    world.journal.settle(moved.seq);
    assert_eq!(world.write(), 4, "block 2 is the only durable copy, and block 3 holds flushed records too");
    assert_eq!(world.write(), 5, "block 3 is older than block 4, but neither is durable");
    world.commit();
    let back = world.form();
    assert_eq!((back.address, numbers(&content(&back).0)), (PBlock(4), (1..=6).collect()));
    world.written(&back);
    world.journal.settle(back.seq);
    world.commit();
    assert_eq!(world.write(), 5, "to and fro with a flush each time");
    world.commit();
    assert_eq!(world.write(), 4);
}

#[test]
fn a_running_sync_covers_what_it_will_have_made_durable() {
    let mut world = World::new(64, 64);
    world.write();
    let mut commit = pin!(world.journal.commit(Seq(1)));
    assert!(now(commit.as_mut()).is_pending());
    let formed =
        world.journal.form(&mut world.lanes, Content::new(&[zeros(1, 1)], &[]), IoVecs::new()).expect("room");
    assert_eq!(formed.address, PBlock(3));
    // It completes while that sync runs, which so does not cover it: the next version goes elsewhere again.
    world.journal.written(&mut world.lanes, &formed);
    world.journal.settle(formed.seq);
    world.disk.complete(0);
    assert!(now(commit.as_mut()).is_ready());
    let third =
        world.journal.form(&mut world.lanes, Content::new(&[zeros(1, 1)], &[]), IoVecs::new()).expect("room");
    assert_eq!(third.address, PBlock(4));
}

/// J2 and K.
#[test]
fn a_freeze_closes_open_blocks_and_changes_the_half() {
    let mut world = World::new(64, 64);
    world.write();
    let in_flight = world.form();
    assert_eq!(in_flight.address, PBlock(2));
    assert!(world.journal.has_records_above(Seq(1)) && !world.journal.has_records_above(Seq(2)));
    let freeze = world.journal.freeze();
    assert_eq!((freeze.cut, freeze.slot), (Seq(2), Slot(0)));
    let next = world.form();
    assert_eq!((next.slot, next.address, numbers(&content(&next).0)), (Slot(1), PBlock(3), vec![3]));
    world.written(&in_flight);
    world.journal.settle(in_flight.seq);
    let third = world.form();
    assert_eq!((third.address, numbers(&content(&third).0)), (PBlock(4), vec![4]), "not in the closed one");
    world.journal.release(freeze.cut, GENERATION + 1);
    world.written(&third);
    let rewrite = world.form();
    assert_eq!(content(&rewrite).1, GENERATION, "a header never changes");
    assert_eq!(content(&world.form()).1, GENERATION + 1);
    assert_eq!(world.journal.freeze().slot, Slot(1));
    assert_eq!(world.form().slot, Slot(0));
}

#[test]
fn no_more_records_are_in_flight_than_one_can_list() {
    let mut world = World::new(1000, 1000);
    for n in 0..MAX_UNSETTLED {
        assert!(now(world.journal.room()).is_ready(), "{n}");
        world.form();
    }
    assert_eq!(world.form_big(1).expect_err("the window is full"), NotFormed::TooMany);
    assert!(now(world.journal.room()).is_pending());
    assert!(!world.wants_checkpoint(), "that would not help");
    world.journal.settle(Seq(77));
    assert!(now(world.journal.room()).is_ready());
    assert_eq!(world.form().seq, Seq(MAX_UNSETTLED as u64 + 1), "no number was given in between");
}
