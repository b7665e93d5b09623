use super::*;

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
fn growth_is_asked_for_and_answered() {
    let space = space(10, 10);
    assert_eq!(space.reserve(4), Reserve::Wait);
    assert_eq!(now(space.growth_wanted()), Some(Some(run(10, MIN_GROWTH))));
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
    let piece = space.start_punch(0).unwrap();
    assert_eq!(piece, run(10, PUNCH_PIECE));
    assert_eq!(space.start_punch(0), None, "one at a time");
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
