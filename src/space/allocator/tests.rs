mod growth;
mod sweep;

use super::holes::{GOOD_HOLE, PUNCH_PIECE};
use super::*;

/// Shorter runs are left alone in these tests.
const MIN_PUNCH: u64 = 256;

fn space(top: u64, backed: u64) -> Space {
    Space::new(PBlock(10), PBlock(top), backed, Readers::default(), SpaceOptions::default())
}

fn run(first: u64, blocks: u64) -> BlockRun {
    BlockRun { first: PBlock(first), blocks }
}

fn freed(first: u64, blocks: u32, by: u64) -> Freed {
    Freed { pblock: PBlock(first), blocks, by: Seq(by) }
}

fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

/// Frees runs and lets rule R pass.
fn free_now(space: &Space, freed_runs: impl IntoIterator<Item = (u64, u32)>) {
    let runs: Vec<Freed> = freed_runs.into_iter().map(|(first, blocks)| freed(first, blocks, 1)).collect();
    space.free_later(&runs);
    for _ in 0..2 {
        assert_eq!(space.release(Seq(1)), None);
    }
    assert_eq!(space.stats().limbo_blocks, 0);
}

#[test]
fn nothing_below_the_old_top_is_used_before_the_holes_are_known() {
    let space = space(100, 120);
    assert_eq!(space.reserve(15), Reserve::Run(run(100, 15)));
    space.free_later(&[freed(50, 2, 1)]);
    assert_eq!(space.release(Seq(1)), None);
    assert_eq!(space.release(Seq(1)), None);
    assert_eq!(space.reserve(15), Reserve::Run(run(115, 5)));
    assert_eq!(space.reserve(1), Reserve::Wait);
    let mut used = Bitmap::default();
    used.insert(10..98);
    space.holes_found(&used);
    // The sweep starts at the block area: the run freed meanwhile first, then the hole that the walk found.
    assert_eq!(space.reserve(8), Reserve::Run(run(50, 2)));
    assert_eq!(space.reserve(8), Reserve::Run(run(98, 2)));
}

#[test]
fn what_is_freed_above_the_old_top_is_used_before_the_holes_are_known() {
    let space = space(100, 120);
    assert_eq!(space.reserve(20), Reserve::Run(run(100, 20)));
    free_now(&space, [(99, 1), (100, 1)]);
    assert_eq!(space.reserve(8), Reserve::Run(run(100, 1)), "the first block that was never in doubt");
    assert_eq!(space.reserve(8), Reserve::Wait);
}

#[test]
fn a_reader_and_a_missing_record_hold_blocks_back() {
    let space = space(10, 20);
    assert_eq!(space.limbo_waits_for(), None);
    assert_eq!(space.reserve(10), Reserve::Run(run(10, 10)));
    let reader = space.readers().enter();
    space.free_later(&[freed(10, 2, 7), freed(15, 1, 9)]);
    assert_eq!(space.limbo_waits_for(), Some(Seq(9)));
    for _ in 0..5 {
        assert_eq!(space.release(Seq(8)), None);
    }
    assert_eq!(space.reserve(1), Reserve::Wait, "somebody may still read them");
    drop(reader);
    for _ in 0..5 {
        assert_eq!(space.release(Seq(8)), None);
    }
    assert_eq!(space.reserve(8), Reserve::Run(run(10, 2)));
    assert_eq!(space.reserve(8), Reserve::Wait, "record 9 is not durable");
    assert_eq!(space.limbo_waits_for(), Some(Seq(9)));
}

#[test]
fn the_counts_are_those_of_the_state() {
    let space = space(10, 1010);
    let none = SpaceStats { holes_known: true, ..SpaceStats::default() };
    assert_eq!((space.stats(), space.high_water()), (none, PBlock(10)));
    assert_eq!(space.reserve(600), Reserve::Run(run(10, 600)));
    free_now(&space, [(10, 300), (500, 7)]);
    space.free_later(&[freed(600, 5, 2)]);
    assert!(space.start_punch(0, MIN_PUNCH).is_some());
    space.punched(true);
    let stats =
        SpaceStats { file_blocks: 600, free_blocks: 243, punched_blocks: 64, limbo_blocks: 5, ..none };
    assert_eq!((space.stats(), space.high_water()), (stats, PBlock(610)));
}

#[test]
fn growth_is_asked_for_and_answered() {
    let space = space(10, 10);
    assert_eq!(space.reserve(4), Reserve::Wait);
    assert_eq!(now(space.growth_wanted()), Some(Some(run(10, FIRST_GROWTH))));
    assert_eq!(now(space.growth_ended()), None);
    space.grown(true);
    assert_eq!(now(space.growth_ended()), Some(false));
    assert_eq!(space.reserve(4), Reserve::Run(run(10, 4)));
}

#[test]
fn a_full_host_is_tried_in_smaller_and_smaller_steps() {
    let space = space(10, 10);
    assert_eq!(space.reserve(4), Reserve::Wait);
    let mut steps = Vec::new();
    while now(space.growth_ended()).is_none() {
        steps.push(now(space.growth_wanted()).unwrap().unwrap().blocks);
        space.grown(false);
    }
    assert_eq!(steps, [256, 128, 64, 32, 16, 8, 4, 2, 1]);
    assert_eq!(now(space.growth_ended()), Some(true));
}

#[test]
fn data_leaves_the_reserve_to_nodes() {
    let space = space(10, 20);
    space.set_node_reserve(6);
    assert_eq!(space.reserve(100), Reserve::Run(run(10, 4)));
    assert_eq!(space.reserve(1), Reserve::Wait);
    assert_eq!(space.reserve_node(1), Reserve::Run(run(14, 1)));
}

#[test]
fn a_punched_piece_is_not_allocatable_until_it_is_backed_again() {
    let space = space(10, 10 + MIN_PUNCH);
    let Reserve::Run(all) = space.reserve(MIN_PUNCH) else { panic!("room for all") };
    assert_eq!(all, run(10, MIN_PUNCH));
    space.free_later(&[freed(10, MIN_PUNCH as u32, 1)]);
    assert_eq!(space.release(Seq(1)), None);
    assert_eq!(space.release(Seq(1)), None);
    let piece = space.start_punch(0, MIN_PUNCH).unwrap();
    assert_eq!(piece, run(10, PUNCH_PIECE));
    assert_eq!(space.start_punch(0, MIN_PUNCH), None, "one at a time");
    space.punched(true);
    assert_eq!(space.stats().punched_blocks, PUNCH_PIECE);
    let Reserve::Run(next) = space.reserve(1000) else { panic!("the rest is free") };
    assert_eq!(next, run(10 + PUNCH_PIECE, MIN_PUNCH - PUNCH_PIECE));
    assert_eq!(space.reserve(1), Reserve::Wait);
    assert_eq!(now(space.growth_wanted()), Some(Some(run(10, PUNCH_PIECE))), "the hole comes first");
    space.grown(true);
    assert_eq!(space.reserve(1), Reserve::Run(run(10, 1)));
}

#[test]
#[should_panic(expected = "freed twice")]
fn giving_back_twice_is_a_bug() {
    let space = space(10, 20);
    let Reserve::Run(run) = space.reserve(4) else { panic!("there is space") };
    space.give_back(run);
    space.give_back(run);
}

#[test]
fn what_a_damaged_tree_frees_is_named() {
    // Twice, in front of the area, across its end, and behind it.
    for (first, blocks, times) in [(10, 1, 2), (9, 1, 1), (13, 2, 1), (1 << 41, 1, 1)] {
        let space = space(10, 20);
        assert!(matches!(space.reserve(4), Reserve::Run(_)));
        let mut misfreed = None;
        for _ in 0..times {
            assert_eq!(misfreed, None);
            space.free_later(&[freed(first, blocks, 1)]);
            let _ = space.release(Seq(1));
            misfreed = space.release(Seq(1));
        }
        assert_eq!(misfreed, Some(BlockRun { first: PBlock(first), blocks: blocks.into() }));
    }
}
