//! `space::Space`: no block is handed out twice, handed out while it is a hole, or lost, whoever reserves, gives back,
//! frees, grows and punches at once; and who waits for growth is woken.

use std::sync::{Arc, Mutex};

use cowdisk::map::Freed;
use cowdisk::space::{BlockRun, Readers, Reserve, Space, SpaceOptions};
use cowdisk::units::{PBlock, Seq};
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use crate::explore;

const AREA: u64 = 10;
/// Enough for one punch, and too little for all.
const BACKED: u64 = 300;
const USERS: usize = 2;
const ROUNDS: usize = 3;

/// What a block of the file is, apart from free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Block {
    Free,
    Owned,
    /// Given back to the host, or being so.
    Hole,
    /// Behind what is allocated on the host.
    Beyond,
}

/// The file as those see it who use the space. Its lock is no point at which anybody else is scheduled.
struct World {
    space: Space,
    blocks: Mutex<Vec<Block>>,
}

impl World {
    fn new() -> World {
        let options = SpaceOptions { slack_percent: 150, free_growth: 64, ..SpaceOptions::default() };
        let area = PBlock(AREA);
        let blocks = (0..1 << 14).map(|b| if b < AREA + BACKED { Block::Free } else { Block::Beyond });
        World {
            space: Space::new(area, area, AREA + BACKED, Readers::default(), options),
            blocks: Mutex::new(blocks.collect()),
        }
    }

    fn turn(&self, run: BlockRun, from: Block, to: Block) {
        for at in run.first.0..run.first.0 + run.blocks {
            let block = &mut self.blocks.lock().unwrap()[at as usize];
            assert_eq!(*block, from, "block {at} on its way to {to:?}");
            *block = to;
        }
    }

    fn reserve(&self, want: u64) -> Option<BlockRun> {
        for _ in 0..8 {
            if let Reserve::Run(run) = self.space.reserve(want) {
                self.turn(run, Block::Free, Block::Owned);
                return Some(run);
            }
            // Somebody answers, or all wait and the explorer says so.
            if block_on(self.space.growth_ended()) {
                return None;
            }
        }
        None
    }

    fn give_up(&self, run: BlockRun) {
        // Free from here on for everybody, since the space may hand it out before it returns.
        self.turn(run, Block::Owned, Block::Free);
        if thread_rng().gen_bool(0.5) {
            return self.space.give_back(run);
        }
        let blocks = u32::try_from(run.blocks).unwrap();
        self.space.free_later(&[Freed { pblock: run.first, blocks, by: Seq(1) }]);
        self.release();
    }

    fn release(&self) {
        assert_eq!(self.space.release(Seq(1)), None, "a block was freed twice");
    }

    fn use_blocks(&self) -> u64 {
        let mut kept = 0;
        for _ in 0..ROUNDS {
            let guard = self.space.readers().enter();
            let want = thread_rng().gen_range(1..=200);
            let run = self.reserve(want);
            drop(guard);
            let Some(run) = run else { continue };
            thread::yield_now();
            let keep = thread_rng().gen_range(0..=run.blocks);
            kept += keep;
            let rest = BlockRun { first: run.first.plus(keep), blocks: run.blocks - keep };
            if rest.blocks > 0 {
                self.give_up(rest);
            }
        }
        kept
    }

    /// As `Head::run_growth`, on a host that is full now and then.
    fn grow(&self) {
        while let Some(run) = block_on(self.space.growth_wanted()) {
            let done = thread_rng().gen_bool(0.8);
            let was = self.blocks.lock().unwrap()[run.first.0 as usize];
            assert!(matches!(was, Block::Hole | Block::Beyond), "growth over a block that is {was:?}");
            if done {
                self.turn(run, was, Block::Free);
            }
            thread::yield_now();
            self.space.grown(done);
        }
    }

    /// As `Head::punch`.
    fn punch(&self) {
        for _ in 0..3 {
            thread::yield_now();
            let Some(piece) = self.space.start_punch(0, 256) else { continue };
            self.turn(piece, Block::Free, Block::Hole);
            thread::yield_now();
            let done = thread_rng().gen_bool(0.8);
            if !done {
                self.turn(piece, Block::Hole, Block::Free);
            }
            self.space.punched(done);
        }
    }
}

fn everybody_at_once() {
    let world = Arc::new(World::new());
    let spawn = |work: fn(&World)| {
        let world = world.clone();
        thread::spawn(move || work(&world))
    };
    // A long free run below the top, for the punches.
    if thread_rng().gen_bool(0.7) {
        let run = world.reserve(BACKED).unwrap();
        world.turn(run, Block::Owned, Block::Free);
        world.space.give_back(run);
    }
    let (growth, punches) = (spawn(World::grow), spawn(World::punch));
    let users: Vec<_> = (0..USERS)
        .map(|_| {
            let world = world.clone();
            thread::spawn(move || world.use_blocks())
        })
        .collect();
    let kept: u64 = users.into_iter().map(|t| t.join().unwrap()).sum();
    punches.join().unwrap();
    world.space.close();
    growth.join().unwrap();
    (0..3).for_each(|_| world.release());
    let stats = world.space.stats();
    let used = stats.file_blocks - stats.free_blocks - stats.punched_blocks;
    assert_eq!((stats.limbo_blocks, used), (0, kept), "blocks were lost: {stats:?}");
    let owned = world.blocks.lock().unwrap().iter().filter(|b| **b == Block::Owned).count();
    assert_eq!(owned as u64, kept);
}

#[test]
fn no_block_is_handed_out_twice_or_lost() {
    explore("space", 3000, everybody_at_once);
}
