//! The workloads: every short sequence out of an alphabet, and long random ones on several queues.

use std::cell::Cell;
use std::rc::Rc;

use cowdisk::ops::Present;
use cowdisk::storage::sim::{Executor, Rng, spawn};

use crate::explore::{Counts, Effort, Explorer, in_parallel, mix};
use crate::world::{Op, Setup, World, make};

const ALPHABET: [Op; 15] = [
    Op::Write { first: 0, sectors: 8, fua: false },
    Op::Write { first: 8, sectors: 8, fua: true },
    Op::Write { first: 3, sectors: 2, fua: false },
    Op::Write { first: 5, sectors: 14, fua: false },
    Op::Write { first: 0, sectors: 24, fua: false },
    Op::Discard { first: 0, sectors: 16 },
    Op::Discard { first: 2, sectors: 9 },
    Op::Zero { first: 0, sectors: 16, unmap: true },
    Op::Zero { first: 8, sectors: 8, unmap: false },
    Op::Flush,
    Op::Checkpoint,
    Op::Tick,
    Op::Snapshot,
    Op::Resize { sectors: 56 },
    Op::Resize { sectors: 21 },
];

/// One step of a sequence: an operation, closing and opening again, a snapshot or rollback between those, or a rollback
/// while nobody sends requests.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Op(Op),
    Reopen,
    Snapshot,
    Rollback,
    /// One while the image stays open; at even places of a sequence the present goes.
    LiveRollback,
}

pub fn steps() -> Vec<Step> {
    let between = [Step::Reopen, Step::Snapshot, Step::Rollback, Step::LiveRollback];
    ALPHABET.iter().map(|&op| Step::Op(op)).chain(between).collect()
}

/// The sequence with number `number` of `len` steps.
fn sequence(number: usize, len: u32) -> Vec<Step> {
    let steps = steps();
    (0..len).map(|i| steps[number / steps.len().pow(i) % steps.len()]).collect()
}

/// Runs the steps one after the other, crashing at every event.
pub fn run_sequence(steps: &[Step], setup: Setup, seed: u64, effort: Effort, counts: &Counts) {
    let disk = make(setup);
    let history = setup.history();
    let explorer = Explorer::new(&disk, seed, effort, setup, history.clone(), counts);
    let executor = Executor::new(&disk, seed);
    let finished = Rc::new(Cell::new(false));
    let (end, steps, on) = (finished.clone(), steps.to_vec(), disk.clone());
    executor.spawn(async move {
        let mut world = World::open(&on, 1, history.clone()).await.unwrap();
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Op(op) => world.run(0, op).await,
                Step::Reopen => {
                    world.close().await.unwrap();
                    world = World::open(&on, 1, history.clone()).await.unwrap();
                }
                Step::Snapshot => world = world.snapshot(&on, &format!("s{i}")).await.unwrap(),
                Step::Rollback => world = world.rollback(&on).await.unwrap(),
                Step::LiveRollback => {
                    let present = if i % 2 == 0 { Present::Discard } else { Present::Keep };
                    world.live_rollback(&on, present).await.unwrap();
                }
            }
        }
        world.run(0, Op::Read { first: 0, sectors: world.size() }).await;
        assert_eq!(world.failed.get(), 0, "seed {seed}: requests failed");
        end.set(true);
    });
    explorer.run(&executor, || finished.get());
    disk.set_hook(None);
}

/// Runs random operations from several tasks on two queues, in rounds between which the image is closed and opened,
/// one time in two with a snapshot.
pub fn run_random(setup: Setup, seed: u64, tasks: usize, ops: usize, effort: Effort, counts: &Counts) {
    run_mix(|rng, setup, _| random_op(rng, setup), setup, seed, (tasks, ops), effort, counts);
}

/// As [`run_random`], with operations drawn by `draw`: so many tasks that do so many each.
pub fn run_mix(
    draw: fn(&mut Rng, Setup, usize) -> Op,
    setup: Setup,
    seed: u64,
    (tasks, ops): (usize, usize),
    effort: Effort,
    counts: &Counts,
) {
    let disk = make(setup);
    let history = setup.history();
    let explorer = Explorer::new(&disk, seed, effort, setup, history.clone(), counts);
    let executor = Executor::new(&disk, seed);
    let finished = Rc::new(Cell::new(false));
    let (end, on) = (finished.clone(), disk.clone());
    executor.spawn(async move {
        let mut rng = Rng::new(seed);
        let mut world = Rc::new(World::open(&on, 2, history.clone()).await.unwrap());
        for round in 0..2 {
            let running: Vec<_> = (0..tasks)
                .map(|task| {
                    let (world, mut rng) = (world.clone(), rng.split());
                    spawn(async move {
                        for _ in 0..ops {
                            let op = draw(&mut rng, setup, task);
                            world.run(task, op).await;
                        }
                    })
                })
                .collect();
            for task in running {
                task.await;
            }
            let Ok(done) = Rc::try_unwrap(world) else { panic!("a task still holds the world") };
            assert_eq!(done.failed.get(), 0, "seed {seed}: requests failed");
            world = Rc::new(if rng.chance(1, 2) {
                done.snapshot(&on, &format!("s{round}")).await.unwrap()
            } else if rng.chance(1, 2) {
                match seed % 3 {
                    0 => {
                        done.live_rollback(&on, Present::Keep).await.unwrap();
                        done
                    }
                    _ => done.rollback(&on).await.unwrap(),
                }
            } else {
                done.close().await.unwrap();
                World::open(&on, 2, history.clone()).await.unwrap()
            });
        }
        world.run(0, Op::Read { first: 0, sectors: world.size() }).await;
        assert_eq!(world.failed.get(), 0, "seed {seed}: requests failed");
        end.set(true);
    });
    explorer.run(&executor, || finished.get());
    disk.set_hook(None);
}

/// Few blocks, written, read, and folded again and again: what is freed is used at once.
pub fn churn(rng: &mut Rng, _: Setup, _: usize) -> Op {
    let first = 8 * rng.index(3);
    match rng.below(12) {
        0..=3 => Op::Write { first, sectors: 8, fua: rng.chance(1, 2) },
        4..=8 => Op::Read { first, sectors: 8 },
        9 => Op::Checkpoint,
        _ => Op::Tick,
    }
}

/// On the second queue, records of a quarter of a journal block each, so that the ring goes round; on the first one, a
/// small write now and then.
pub fn ring_round(rng: &mut Rng, setup: Setup, task: usize) -> Op {
    if task.is_multiple_of(2) {
        let first = 8 * rng.index(setup.sectors / 8);
        return match rng.below(4) {
            0 => Op::Write { first, sectors: 8, fua: rng.chance(1, 2) },
            _ => Op::Read { first: 0, sectors: setup.sectors },
        };
    }
    let blocks = 140 + rng.index(60);
    let first = rng.index(setup.sectors / 8 - blocks);
    match rng.below(16) {
        0..=14 => Op::Write { first: 8 * first, sectors: 8 * blocks, fua: false },
        _ => Op::Checkpoint,
    }
}

/// A disk that shrinks and grows all the time, under requests at its end.
pub fn resizing(rng: &mut Rng, setup: Setup, _: usize) -> Op {
    let sizes = [setup.sectors / 2 + 1, setup.sectors, setup.sectors + 11];
    let first = setup.sectors / 2 - 4 + rng.index(setup.sectors / 2);
    match rng.below(10) {
        0 | 1 => Op::Resize { sectors: sizes[rng.index(3)] },
        2 => Op::Checkpoint,
        3 => Op::Discard { first, sectors: 1 + rng.index(16) },
        4 | 5 => Op::Write { first, sectors: 1 + rng.index(8), fua: rng.chance(1, 2) },
        6 => Op::Write { first: 0, sectors: 8, fua: false },
        _ => Op::Write { first: first / 8 * 8, sectors: 8, fua: false },
    }
}

pub fn random_op(rng: &mut Rng, setup: Setup) -> Op {
    let any = |rng: &mut Rng| {
        let first = rng.index(setup.sectors - 1);
        (first, 1 + rng.index((setup.sectors - first).min(40)))
    };
    let blocks = |rng: &mut Rng| {
        let first = rng.index(setup.sectors / 8);
        (first * 8, 8 * (1 + rng.index((setup.sectors / 8 - first).min(4))))
    };
    match rng.below(20) {
        0..=7 => {
            let (first, sectors) = blocks(rng);
            Op::Write { first, sectors, fua: rng.chance(1, 6) }
        }
        8..=10 => {
            let (first, sectors) = any(rng);
            Op::Write { first, sectors, fua: rng.chance(1, 6) }
        }
        11 | 12 => {
            let (first, sectors) = if rng.chance(1, 2) { any(rng) } else { blocks(rng) };
            Op::Discard { first, sectors }
        }
        13 => {
            let (first, sectors) = any(rng);
            Op::Zero { first, sectors, unmap: rng.chance(1, 2) }
        }
        14 | 15 => Op::Flush,
        16 => Op::Checkpoint,
        17 => Op::Tick,
        18 if rng.chance(1, 4) => Op::Snapshot,
        18 if rng.chance(1, 2) => Op::Resize { sectors: setup.sectors / 2 + rng.index(setup.sectors) },
        _ => {
            let (first, sectors) = any(rng);
            Op::Read { first, sectors }
        }
    }
}

/// `COWDISK_SEEDS=A..B` explores these seeds of the random workloads instead of the few of a normal run.
pub fn seeds(default: std::ops::Range<usize>) -> std::ops::Range<usize> {
    let Ok(text) = std::env::var("COWDISK_SEEDS") else { return default };
    let (a, b) = text.split_once("..").expect("COWDISK_SEEDS is A..B");
    a.parse().expect("A is a number")..b.parse().expect("B is a number")
}

/// `COWDISK_SHARE=K/N`: the K-th of N shares of what is too much for each run. The default goes round with the days.
pub fn share(default: usize) -> (usize, usize) {
    let Ok(text) = std::env::var("COWDISK_SHARE") else {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        return ((now.as_secs() / 86400) as usize % default, default);
    };
    let (k, n) = text.split_once('/').expect("COWDISK_SHARE is K/N");
    (k.parse().expect("K is a number"), n.parse().expect("N is a number"))
}

/// How many distinct images the long run wants (`COWDISK_STATES`).
fn wanted() -> u64 {
    std::env::var("COWDISK_STATES").map_or(1_000_000, |n| n.parse().expect("COWDISK_STATES is a number"))
}

pub const SMALL: Setup = Setup::new(40, 30);
pub const EMPTY: Setup = Setup::new(40, 0);
pub const SPANS: Setup = Setup::new(2100, 1300);

fn run_sequence_number(number: usize, len: u32, effort: Effort, counts: &Counts) {
    run_sequence_on([SMALL, EMPTY][number % 2], number, len, effort, counts);
}

/// The sequence with number `number` of `len` steps.
pub fn run_sequence_on(setup: Setup, number: usize, len: u32, effort: Effort, counts: &Counts) {
    let steps = sequence(number, len);
    let seed = mix(u64::from(len), number as u64) >> 32;
    run_sequence(&steps, setup, seed, effort, counts);
}

/// Every combination of kinds of workloads comes up within a few seeds.
fn run_random_number(seed: usize, counts: &Counts) {
    match seed % 16 {
        3 => {
            return run_mix(
                churn,
                SMALL,
                seed as u64,
                (6, 40),
                Effort { variants: 1, every: 2, recrash: 0 },
                counts,
            );
        }
        5 => {
            let effort = Effort { variants: 1, every: 2, recrash: 0 };
            return run_mix(resizing, [SMALL, EMPTY][seed / 16 % 2], seed as u64, (4, 12), effort, counts);
        }
        7 => {
            let effort = Effort { variants: 1, every: 16, recrash: 0 };
            return run_mix(ring_round, SPANS, seed as u64, (4, 60), effort, counts);
        }
        _ => {}
    }
    let setup = if seed % 16 == 11 { SPANS } else { [SMALL, EMPTY][seed % 2] };
    let setup = if seed % 4 == 2 { setup.plain() } else { setup };
    let (tasks, ops) = [(5, 12), (2, 8), (3, 24)][seed % 3];
    let recrash = if seed.is_multiple_of(5) { 8 } else { 0 };
    let every = if setup.sectors > 100 { 5 } else { 1 };
    run_random(setup, seed as u64, tasks, ops, Effort { variants: 1, every, recrash }, counts);
}

#[test]
fn every_sequence_of_one_and_two_operations() {
    let effort = Effort { variants: 1, every: 1, recrash: 0 };
    let counts = Counts::default();
    let n = steps().len();
    in_parallel(0..n, || false, |number| run_sequence_number(number, 1, effort, &counts));
    in_parallel(0..n * n, || false, |number| run_sequence_number(number, 2, effort, &counts));
    counts.report("sequences of one and two");
}

#[test]
fn a_share_of_the_sequences_of_three_operations() {
    let effort = Effort { variants: 1, every: 2, recrash: 0 };
    let counts = Counts::default();
    let (k, n) = share(16);
    let all = steps().len().pow(3);
    in_parallel(
        0..all.div_ceil(n),
        || false,
        |i| {
            if i * n + k < all {
                run_sequence_number(i * n + k, 3, effort, &counts);
            }
        },
    );
    counts.report(&format!("sequences of three, share {k} of {n}"));
}

#[test]
fn crashes_in_recovery_are_just_another_crash() {
    let effort = Effort { variants: 1, every: 7, recrash: 1 };
    let counts = Counts::default();
    in_parallel(seeds(0..12), || false, |seed| run_random(SMALL, 1000 + seed as u64, 2, 8, effort, &counts));
    counts.report("crashes in recovery");
}

#[test]
fn disks_that_shrink_and_grow_under_requests() {
    let effort = Effort { variants: 1, every: 3, recrash: 9 };
    let counts = Counts::default();
    in_parallel(
        seeds(0..24),
        || false,
        |seed| {
            let setup = [SMALL, EMPTY][seed % 2];
            run_mix(resizing, setup, 3000 + seed as u64, (4, 12), effort, &counts);
        },
    );
    counts.report("resizes");
}

#[test]
fn random_requests_on_two_queues() {
    let effort = Effort { variants: 1, every: 5, recrash: 0 };
    let counts = Counts::default();
    in_parallel(
        seeds(0..40),
        || false,
        |seed| {
            let setup = if seed.is_multiple_of(2) { SMALL } else { SPANS };
            run_random(setup, seed as u64, 5, 12, effort, &counts);
        },
    );
    counts.report("random requests");
}

/// Sequences of four operations that a long run goes through with each seed of random requests.
const LONGER: usize = 16;

/// A share of the sequences of four, in an order that mixes them; behind their end of those of five.
fn run_longer_sequences(seed: usize, effort: Effort, counts: &Counts) {
    let all = steps().len().pow(4);
    for index in seed.saturating_mul(LONGER)..seed.saturating_add(1).saturating_mul(LONGER) {
        let len = if index < all { 4 } else { 5 };
        // A stride without a common factor: each number comes once.
        let number = index.wrapping_mul(7919) % steps().len().pow(len);
        run_sequence_number(number, len, effort, counts);
    }
}

/// The long run: all sequences of up to three operations, then random requests and sequences of four, until there are as
/// many distinct images as `COWDISK_STATES` asks for. To be run in release.
#[test]
#[ignore = "takes minutes; run by the command in the README"]
fn crash_states_by_the_million() {
    let effort = Effort { variants: 1, every: 1, recrash: 0 };
    let (counts, wanted, begun) = (Counts::default(), wanted(), std::time::Instant::now());
    for len in 1..=3 {
        let all = steps().len().pow(len);
        in_parallel(0..all, || false, |number| run_sequence_number(number, len, effort, &counts));
    }
    counts.report("all sequences of up to three");
    let enough = || counts.distinct() >= wanted;
    in_parallel(seeds(0..usize::MAX), enough, |seed| {
        run_random_number(seed, &counts);
        run_longer_sequences(seed, effort, &counts);
    });
    let rate = counts.distinct() as f64 * 3600.0 / begun.elapsed().as_secs_f64() / 1e6;
    counts.report("sequences and random requests");
    println!("crash states: {rate:.1} million distinct images an hour");
    assert!(enough(), "the seeds ended at {} distinct images", counts.distinct());
}
