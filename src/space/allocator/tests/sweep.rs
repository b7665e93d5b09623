//! Which free run a reservation gets, and when the file grows instead.

use super::*;

/// A file of `used` blocks from 10 on, all in use, with as many again behind them on the host.
fn full(used: u64, options: SpaceOptions) -> Space {
    let space = Space::new(PBlock(10), PBlock(10), 10 + 2 * used, Readers::default(), options);
    assert_eq!(space.reserve(used), Reserve::Run(run(10, used)));
    space
}

/// It may not grow, however little of it is in use.
const CRAMPED: SpaceOptions = SpaceOptions { slack_percent: 0, free_growth: 0, first_growth: FIRST_GROWTH };
/// It may grow, however much of it is free.
const ROOMY: SpaceOptions =
    SpaceOptions { slack_percent: 0, free_growth: u64::MAX, first_growth: FIRST_GROWTH };

#[test]
fn the_sweep_goes_round_and_does_not_come_back_early() {
    let space = full(1000, CRAMPED);
    free_now(&space, [(100, 8), (200, 8), (300, 8)]);
    assert_eq!(space.reserve(8), Reserve::Run(run(100, 8)));
    free_now(&space, [(50, 8), (100, 4)]);
    assert_eq!(space.reserve(4), Reserve::Run(run(200, 4)), "not the one just freed behind the sweep");
    assert_eq!(space.reserve(4), Reserve::Run(run(204, 4)));
    assert_eq!(space.reserve(8), Reserve::Run(run(300, 8)));
    assert_eq!(space.reserve(8), Reserve::Run(run(50, 8)), "from the beginning again");
    assert_eq!(space.reserve(4), Reserve::Run(run(100, 4)));
}

#[test]
fn a_good_run_is_taken_at_once_and_else_the_longest() {
    let space = full(1000, CRAMPED);
    free_now(&space, [(20, 3), (100, 70), (300, 90)]);
    assert_eq!(space.reserve(100), Reserve::Run(run(100, 70)), "64 blocks are good enough");
    free_now(&space, [(100, 5), (200, 7), (210, 7)]);
    assert_eq!(space.reserve(300), Reserve::Run(run(300, 90)));
    // From the sweep on: 20, 100, 200, 210.
    assert_eq!(space.reserve(9), Reserve::Run(run(200, 7)), "the first of the longest");
    assert_eq!(space.reserve(9), Reserve::Run(run(210, 7)));
    assert_eq!(space.reserve(9), Reserve::Run(run(100, 5)));
    assert_eq!(space.reserve(9), Reserve::Run(run(20, 3)));
}

#[test]
fn short_runs_wait_while_the_file_may_grow() {
    let space = full(1000, ROOMY);
    free_now(&space, [(100, 8), (200, 64)]);
    assert_eq!(space.reserve(9), Reserve::Run(run(200, 9)), "as long as it is asked for");
    assert_eq!(space.reserve(65), Reserve::Run(run(1010, 65)), "the top rather than a short run");
    assert_eq!(space.reserve(935), Reserve::Run(run(1075, 935)));
    // Nothing is left at the top: short runs are better than waiting.
    assert_eq!(space.reserve(64), Reserve::Run(run(209, 55)));
    assert_eq!(space.reserve(64), Reserve::Run(run(100, 8)));
    assert_eq!(space.reserve(64), Reserve::Wait);
}

#[test]
fn a_small_file_may_grow_whatever_is_free() {
    for (free_growth, grows) in [(100, false), (101, true)] {
        let space = full(100, SpaceOptions { slack_percent: 0, free_growth, first_growth: FIRST_GROWTH });
        free_now(&space, [(20, 4)]);
        let expected = if grows { run(110, 8) } else { run(20, 4) };
        assert_eq!(space.reserve(8), Reserve::Run(expected), "{free_growth}");
    }
}

/// Neither free blocks are live, nor punched ones, nor those in limbo.
#[test]
fn a_big_file_may_grow_to_twice_its_live_data() {
    for (in_limbo, grows) in [(199, true), (200, false)] {
        let space =
            full(1000, SpaceOptions { slack_percent: 200, free_growth: 0, first_growth: FIRST_GROWTH });
        free_now(&space, [(10, 256)]);
        assert_eq!(space.start_punch(0, MIN_PUNCH), Some(run(10, PUNCH_PIECE)));
        space.punched(true);
        assert_eq!(space.reserve(192), Reserve::Run(run(74, 192)));
        // 64 blocks are punched, 236 free in short runs: with 200 in limbo 500 of 1000 are live.
        free_now(&space, (0..8).map(|i| (300 + 40 * i, 29)).chain([(700, 4)]));
        space.free_later(&[freed(800, in_limbo, 2)]);
        let expected = if grows { run(1010, 100) } else { run(300, 29) };
        assert_eq!(space.reserve(100), Reserve::Run(expected), "{in_limbo}");
    }
}
