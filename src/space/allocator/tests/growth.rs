//! When the file grows, by how much, and where it is made smaller.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use super::*;

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn growth_is_asked_for_when_little_is_left() {
    let space = space(10, 10 + 20 + FIRST_GROWTH / 2 + 60);
    space.set_node_reserve(20);
    assert_eq!(space.reserve(60), Reserve::Run(run(10, 60)));
    assert_eq!(now(space.growth_wanted()), None, "the reserve and half a step are left");
    assert_eq!(space.reserve(1), Reserve::Run(run(70, 1)), "nobody waits for the growth");
    assert!(now(space.growth_wanted()).is_some());
}

#[test]
fn the_reserve_alone_is_not_for_data() {
    let space = space(10, 16);
    space.set_node_reserve(6);
    assert_eq!(space.reserve(1), Reserve::Wait);
    assert_eq!(space.reserve_node(9), Reserve::Run(run(10, 6)));
    assert_eq!(space.reserve_node(1), Reserve::Wait);
}

#[test]
fn who_serves_growth_is_woken_once_for_a_wish_and_once_for_the_end() {
    let space = space(10, 10);
    let count = Arc::new(Count::default());
    let waker = Waker::from(count.clone());
    let mut cx = Context::from_waker(&waker);
    let mut server = Box::pin(space.growth_wanted());
    assert!(server.as_mut().poll(&mut cx).is_pending());
    assert_eq!(space.reserve(1), Reserve::Wait);
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    assert!(server.as_mut().poll(&mut cx).is_ready());
    space.grown(true);
    let mut server = Box::pin(space.growth_wanted());
    assert!(server.as_mut().poll(&mut cx).is_pending());
    space.close();
    assert_eq!(count.0.load(Ordering::SeqCst), 2);
    assert_eq!(now(server), Some(None));
}

#[test]
fn the_file_grows_in_doubled_steps_and_only_above_its_end() {
    let space = space(10, 10);
    let mut end = 10;
    for step in [256, 512, 1024, 2048, 4096, 4096] {
        assert_eq!(space.reserve(10_000), Reserve::Wait);
        assert_eq!(now(space.growth_wanted()), Some(Some(run(end, step))));
        space.grown(true);
        assert_eq!(space.stats().free_blocks, 0, "blocks above the top are not holes");
        assert_eq!(space.reserve(10_000), Reserve::Run(run(end, step)));
        end += step;
        assert_eq!(space.high_water(), PBlock(end));
    }
}

#[test]
fn growth_that_failed_is_tried_from_the_first_step_again() {
    let space = space(10, 10);
    assert_eq!(space.reserve(1), Reserve::Wait);
    while now(space.growth_wanted()).is_some() {
        space.grown(false);
    }
    assert!(space.stats().full);
    assert_eq!(space.reserve(1), Reserve::Wait);
    assert_eq!(now(space.growth_wanted()), Some(Some(run(10, FIRST_GROWTH))));
    space.grown(true);
    assert!(!space.stats().full);
}

#[test]
fn a_hole_that_cannot_be_filled_stays_one() {
    let space = space(10, 10 + MIN_PUNCH);
    assert_eq!(space.reserve(MIN_PUNCH), Reserve::Run(run(10, MIN_PUNCH)));
    free_now(&space, [(10, MIN_PUNCH as u32)]);
    assert_eq!(space.start_punch(0, MIN_PUNCH), Some(run(10, PUNCH_PIECE)));
    space.punched(true);
    let rest = MIN_PUNCH - PUNCH_PIECE;
    assert_eq!(space.reserve(1000), Reserve::Run(run(10 + PUNCH_PIECE, rest)));
    assert_eq!(space.reserve(1), Reserve::Wait);
    for tried in [64, 64, 64, 32] {
        // Steps of 256, 128 and 64 are cut to the hole.
        assert_eq!(now(space.growth_wanted()), Some(Some(run(10, tried))));
        assert_eq!(space.stats().punched_blocks, PUNCH_PIECE - tried, "it is being filled");
        space.grown(false);
        assert_eq!((space.stats().punched_blocks, space.stats().free_blocks), (PUNCH_PIECE, 0));
    }
}

#[test]
fn only_long_runs_are_punched_and_some_blocks_are_kept() {
    let space = space(10, 10_010);
    assert_eq!(space.reserve(10_000), Reserve::Run(run(10, 10_000)));
    // A hundred runs that are too short, then one that is long enough.
    free_now(&space, (0..100).map(|i| (10 + 20 * i, 10)).chain([(3000, 255)]));
    assert_eq!(space.start_punch(0, MIN_PUNCH), None);
    free_now(&space, [(5000, 256)]);
    assert_eq!(space.start_punch(1000 + 255 + 256, MIN_PUNCH), None, "no more is free than is to be kept");
    assert_eq!(space.start_punch(1000 + 255 + 255, MIN_PUNCH), Some(run(5000, PUNCH_PIECE)));
    space.punched(false);
    assert_eq!((space.stats().punched_blocks, space.stats().free_blocks), (0, 1000 + 255 + 256));
}

#[test]
fn what_was_grown_in_vain_is_never_handed_out() {
    let space = space(10, 14);
    assert_eq!(space.reserve_node(1), Reserve::Run(run(10, 1)));
    assert_eq!(space.reserve(10_000), Reserve::Run(run(11, 3)));
    space.give_back(run(12, 2));
    assert_eq!(now(space.growth_wanted()), Some(Some(run(14, FIRST_GROWTH))));
    assert!(space.start_zeroing());
    space.grown_in_vain();
    assert_eq!(space.high_water(), PBlock(14 + FIRST_GROWTH), "a write there may still arrive");
    let next = run(14 + FIRST_GROWTH, FIRST_GROWTH);
    assert_eq!(now(space.growth_wanted()), Some(Some(next)), "the wish goes on");
    space.grown(true);
    assert_eq!(space.reserve(2), Reserve::Run(run(12, 2)));
    assert_eq!(space.reserve(10_000), Reserve::Run(next));
}

#[test]
fn a_hole_filled_in_vain_is_neither_free_nor_a_hole() {
    let space = space(10, 10);
    assert_eq!(space.reserve(1), Reserve::Wait);
    assert!(now(space.growth_wanted()).is_some());
    space.grown(true);
    assert_eq!(space.reserve(10_000), Reserve::Run(run(10, FIRST_GROWTH)));
    space.give_back(run(10, FIRST_GROWTH));
    let hole = space.start_punch(0, MIN_PUNCH).unwrap();
    space.punched(true);
    let all = FIRST_GROWTH - hole.blocks;
    assert_eq!(space.reserve(10_000), Reserve::Run(run(10 + hole.blocks, all)));
    assert_eq!(now(space.growth_wanted()), Some(Some(hole)));
    space.grown_in_vain();
    let stats = space.stats();
    assert_eq!((stats.free_blocks, stats.punched_blocks), (0, 0));
    assert_eq!(space.high_water(), PBlock(10 + FIRST_GROWTH));
}

#[test]
fn a_closed_space_waits_for_the_zeros_in_flight() {
    let space = space(10, 10);
    assert_eq!(space.reserve(1), Reserve::Wait);
    assert!(now(space.growth_wanted()).is_some());
    assert!(space.start_zeroing());
    space.close();
    assert!(space.is_closed());
    assert_eq!(now(space.zeroing_ended()), None);
    space.grown(true);
    assert_eq!(now(space.zeroing_ended()), Some(()));
    assert!(!space.start_zeroing(), "none begins any more");
    assert_eq!(now(space.zeroing_ended()), Some(()));
}

#[test]
fn what_was_allocated_ahead_is_given_back_in_pieces_and_nothing_grows_meanwhile() {
    let end = 10_010;
    let space = space(10, end);
    assert_eq!(space.reserve(3), Reserve::Run(run(10, 3)));
    let first = end - PUNCH_PIECE;
    assert_eq!(space.start_trim(), Some(run(first, PUNCH_PIECE)));
    assert_eq!(space.start_trim(), None, "one at a time");
    assert_eq!(space.reserve(end), Reserve::Run(run(13, first - 13)), "what is there can be used");
    assert_eq!(space.reserve(8), Reserve::Wait);
    assert_eq!(now(space.growth_wanted()), None, "the piece could be allocated and then taken away");
    space.trimmed();
    assert_eq!(now(space.growth_wanted()), Some(Some(run(first, FIRST_GROWTH))));
    assert_eq!(space.start_trim(), None, "it grows");
    space.grown(true);
    assert_eq!(space.reserve(8), Reserve::Run(run(first, 8)));
}

#[test]
fn short_holes_are_filled_when_the_file_may_not_grow() {
    let space = space(10, 10 + 4 * GOOD_HOLE);
    assert_eq!(space.reserve(4 * GOOD_HOLE), Reserve::Run(run(10, 4 * GOOD_HOLE)));
    free_now(&space, [(12, 1), (100, GOOD_HOLE as u32), (14, 2)]);
    let mut made = Vec::new();
    while let Some(piece) = space.start_punch(0, 1) {
        made.push(piece);
        space.punched(true);
    }
    assert_eq!(made, [run(12, 1), run(14, 2), run(100, GOOD_HOLE)]);
    assert_eq!(space.reserve(1), Reserve::Wait);
    assert_eq!(now(space.growth_wanted()), Some(Some(run(100, GOOD_HOLE))), "the long one first");
    space.grown(true);
    assert_eq!(space.reserve(GOOD_HOLE), Reserve::Run(run(100, GOOD_HOLE)));
    assert_eq!(space.reserve(1), Reserve::Wait);
    // A small file may grow whatever it holds.
    let Some(Some(growth)) = now(space.growth_wanted()) else { panic!("it was wanted") };
    assert_eq!(growth.first.0, 10 + 4 * GOOD_HOLE);
}
