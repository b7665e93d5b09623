//! The workloads: every short sequence out of an alphabet, and long random ones on several queues.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use cowdisk::storage::sim::{Executor, Rng, SimDisk, spawn};

use crate::explore::{Counts, Effort, Explorer};
use crate::oracle::History;
use crate::world::{Op, Setup, World, make};

const ALPHABET: [Op; 12] = [
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
];

/// One step of a sequence: an operation, or closing and opening again.
#[derive(Clone, Copy, Debug)]
enum Step {
    Op(Op),
    Reopen,
}

fn steps() -> Vec<Step> {
    ALPHABET.iter().map(|&op| Step::Op(op)).chain([Step::Reopen]).collect()
}

/// Runs the steps one after the other, crashing at every event.
fn run_sequence(steps: &[Step], setup: Setup, seed: u64, effort: Effort) -> Counts {
    let disk = SimDisk::new(seed);
    make(&disk, setup);
    let history = Rc::new(RefCell::new(History::new(setup.sectors, setup.base)));
    let explorer = Explorer::new(&disk, seed, effort, setup, history.clone());
    let executor = Executor::new(&disk, seed);
    let finished = Rc::new(Cell::new(false));
    let (end, steps, on) = (finished.clone(), steps.to_vec(), disk.clone());
    executor.spawn(async move {
        let mut world = World::open(&on, 1, history.clone()).await.unwrap();
        for step in steps {
            match step {
                Step::Op(op) => world.run(0, op).await,
                Step::Reopen => {
                    world.close().await.unwrap();
                    world = World::open(&on, 1, history.clone()).await.unwrap();
                }
            }
        }
        world.run(0, Op::Read { first: 0, sectors: setup.sectors }).await;
        end.set(true);
    });
    explorer.run(&executor, || finished.get());
    disk.set_hook(None);
    explorer.counts()
}

/// Runs random operations from several tasks on several queues.
fn run_random(setup: Setup, seed: u64, tasks: usize, ops: usize, effort: Effort) -> Counts {
    let disk = SimDisk::new(seed);
    make(&disk, setup);
    let history = Rc::new(RefCell::new(History::new(setup.sectors, setup.base)));
    let explorer = Explorer::new(&disk, seed, effort, setup, history.clone());
    let executor = Executor::new(&disk, seed);
    let finished = Rc::new(Cell::new(false));
    let (end, on) = (finished.clone(), disk.clone());
    executor.spawn(async move {
        let mut rng = Rng::new(seed);
        let mut world = Rc::new(World::open(&on, 2, history.clone()).await.unwrap());
        for _round in 0..2 {
            let running: Vec<_> = (0..tasks)
                .map(|task| {
                    let (world, mut rng) = (world.clone(), rng.split());
                    spawn(async move {
                        for _ in 0..ops {
                            let op = random_op(&mut rng, setup);
                            world.run(task, op).await;
                        }
                    })
                })
                .collect();
            for task in running {
                task.await;
            }
            let Ok(done) = Rc::try_unwrap(world) else { panic!("a task still holds the world") };
            done.close().await.unwrap();
            world = Rc::new(World::open(&on, 2, history.clone()).await.unwrap());
        }
        world.run(0, Op::Read { first: 0, sectors: setup.sectors }).await;
        end.set(true);
    });
    explorer.run(&executor, || finished.get());
    disk.set_hook(None);
    explorer.counts()
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
        _ => {
            let (first, sectors) = any(rng);
            Op::Read { first, sectors }
        }
    }
}

fn add(total: &mut Counts, more: Counts) {
    total.events += more.events;
    total.crashes += more.crashes;
}

fn report(name: &str, total: Counts) {
    println!("{name}: {} storage events, {} crash states, no violation", total.events, total.crashes);
    assert!(total.crashes > 100, "the exploration did not run");
}

/// `COWDISK_SEEDS=A..B` explores these seeds of the random workloads instead of the few of a normal run.
fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("COWDISK_SEEDS") else { return default };
    let (a, b) = text.split_once("..").expect("COWDISK_SEEDS is A..B");
    a.parse().expect("A is a number")..b.parse().expect("B is a number")
}

const SMALL: Setup = Setup { sectors: 40, base: 30 };
const EMPTY: Setup = Setup { sectors: 40, base: 0 };

#[test]
fn every_sequence_of_one_and_two_operations() {
    let effort = Effort { variants: 1, every: 1, recrash: false };
    let mut total = Counts::default();
    for (i, &a) in steps().iter().enumerate() {
        for (j, &b) in steps().iter().enumerate() {
            let setup = if (i + j) % 2 == 0 { SMALL } else { EMPTY };
            add(&mut total, run_sequence(&[a, b], setup, (i * 64 + j) as u64, effort));
        }
    }
    report("sequences of two", total);
}

#[test]
fn crashes_in_recovery_are_just_another_crash() {
    let effort = Effort { variants: 1, every: 7, recrash: true };
    let mut total = Counts::default();
    for seed in seeds(0..12) {
        add(&mut total, run_random(SMALL, 1000 + seed, 2, 8, effort));
    }
    report("crashes in recovery", total);
}

#[test]
fn random_requests_on_two_queues() {
    let effort = Effort { variants: 1, every: 5, recrash: false };
    let mut total = Counts::default();
    for seed in seeds(0..40) {
        let setup = if seed % 2 == 0 { SMALL } else { Setup { sectors: 2100, base: 1300 } };
        add(&mut total, run_random(setup, seed, 5, 12, effort));
    }
    report("random requests", total);
}
