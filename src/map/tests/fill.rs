//! How well the nodes of an aged tree are filled, how high it is, and how much a change touches.

use std::ops::Range;

use super::builder::Rng;
use super::ram::now;
use super::runs::{Run, Runs};
use super::world::World;

/// The numbers of `range` in a random order.
fn shuffled(range: Range<u64>, rng: &mut Rng) -> Vec<u64> {
    let mut all: Vec<u64> = range.collect();
    for i in (1..all.len()).rev() {
        all.swap(i, rng.below(i as u64 + 1) as usize);
    }
    all
}

fn single_blocks(world: &mut World, blocks: &[u64]) -> Vec<Run> {
    blocks.iter().map(|&b| world.data(b, 1)).collect()
}

fn zeros(blocks: &[u64]) -> Vec<Run> {
    blocks.iter().map(|&b| (b, 1, None)).collect()
}

#[test]
fn a_region_written_randomly_and_then_sequentially_shrinks() {
    let (mut world, blocks) = (World::new(true), 12_000);
    for part in shuffled(0..blocks, &mut Rng(1)).chunks(1000) {
        let runs = single_blocks(&mut world, part);
        world.batch(&runs);
    }
    let random = world.shape(&world.tree());
    for part in 0..4 {
        let run = world.data(part * 3000, 3000);
        world.batch(&[run]);
    }
    let sequential = world.shape(&world.tree());
    assert!(sequential.levels[0] * 3 < random.levels[0], "{:?}, then {:?}", random.levels, sequential.levels);
    assert!(sequential.fill() > 0.85, "{}", sequential.fill());
}

#[test]
fn leaves_of_random_writes_are_well_filled() {
    let (mut world, mut rng) = (World::new(false), Rng(2));
    for batch in 1..=80 {
        let blocks: Vec<u64> = (0..100).map(|_| rng.below(15_000) * 2).collect();
        let runs = single_blocks(&mut world, &blocks);
        world.batch(&runs);
        if batch % 20 == 0 {
            let shape = world.shape(&world.tree());
            assert!(shape.fill() > 0.6, "batch {batch}: {:?} filled {}", shape.levels, shape.fill());
        }
    }
}

/// One block at a time, all over the disk: leaves that empty each for itself join, and levels go.
#[test]
fn a_tree_that_shrinks_in_small_steps_stays_filled_and_loses_levels() {
    let (mut world, mut rng) = (World::new(false), Rng(3));
    let runs: Vec<Run> = (0..60_000).map(|i| world.data(i * 2, 1)).collect();
    world.batch(&runs);
    assert_eq!(world.root.height, 3);
    let order: Vec<u64> = shuffled(0..60_000, &mut rng).into_iter().map(|b| b * 2).collect();
    // Most of it at once, but scattered so that every leaf shrinks; then in small steps.
    world.batch(&zeros(&order[..56_000]));
    let mut heights = vec![world.root.height];
    for part in order[56_000..59_990].chunks(30) {
        world.batch(&zeros(part));
        let shape = world.shape(&world.tree());
        heights.push(world.root.height);
        let wanted = shape.leaf_bytes.div_ceil(4024);
        assert!(shape.levels[0] <= 3 * wanted, "{:?} filled {}", shape.levels, shape.fill());
    }
    assert!(heights.is_sorted_by(|a, b| a >= b), "{heights:?}");
    for left in &order[59_990..59_999] {
        world.batch(&zeros(&[*left]));
    }
    let shape = world.shape(&world.tree());
    assert_eq!((world.root.height, shape.levels), (1, vec![1]), "one extent is left");
}

#[test]
fn leaves_that_are_filled_in_order_are_full_behind_the_end() {
    let mut world = World::new(true);
    for i in 0..150u64 {
        let blocks: Vec<u64> = (0..40).map(|j| (i * 40 + j) * 2).collect();
        let runs = single_blocks(&mut world, &blocks);
        let built = world.batch(&runs);
        assert!(built.nodes <= 5, "append {i} wrote {} nodes", built.nodes);
    }
    let shape = world.shape(&world.tree());
    assert!(shape.fill() > 0.7, "{:?} filled {}", shape.levels, shape.fill());
}

/// A checkpoint of one block costs a path, however big the tree is.
#[test]
fn a_small_change_touches_few_nodes() {
    let (mut world, mut rng) = (World::new(true), Rng(4));
    let runs: Vec<Run> = (0..60_000).map(|i| world.data(i * 2, 1)).collect();
    world.batch(&runs);
    assert_eq!(world.root.height, 3);
    let tree = world.tree();
    let before = world.shape(&tree);
    for _ in 0..50 {
        let block = rng.below(120_000);
        for run in [world.data(block, 1), (block, 1, None), world.data(block, 2), (block, 20, None)] {
            let mut batch = Runs::default();
            batch.set(run);
            let tree = world.tree();
            world.file.take_reads();
            let built = world.build(&tree, &batch.changes(), &before, usize::MAX).expect("there is space");
            let reads = world.file.take_reads();
            assert!(
                built.nodes <= 2 * 3 && reads <= 3 * 3 + 1,
                "{run:?}: {} nodes, {reads} reads",
                built.nodes
            );
        }
    }
}

/// The cache holds a part of the tree, and what it holds is not read again.
#[test]
fn nodes_are_read_once() {
    let mut world = World::new(true);
    let runs: Vec<Run> = (0..20_000).map(|i| world.data(i * 2, 1)).collect();
    world.batch(&runs);
    let tree = world.tree();
    world.file.take_reads();
    let first = world.read(&tree, 0..1000).expect("undamaged");
    assert!((3..=6).contains(&world.file.take_reads()));
    assert_eq!(world.read(&tree, 0..1000).expect("undamaged"), first);
    assert_eq!(world.file.take_reads(), 0);
    now(tree.walk(&world.root, |_| {}));
    assert!(world.file.take_reads() > 60);
}

/// Full leaves, one block of each: every leaf is cut. What is reserved for a checkpoint must suffice.
#[test]
fn a_block_in_each_of_many_full_leaves_takes_no_more_nodes_than_reserved() {
    let mut world = World::new(true);
    let run = world.data(0, 60_000);
    world.batch(&[run]);
    let before = world.shape(&world.tree());
    let every: Vec<u64> = (0..60).map(|i| 500 + i * 1000).collect();
    let runs = single_blocks(&mut world, &every);
    let built = world.batch(&runs);
    assert!(built.nodes > before.nodes.len() as u64, "{} nodes", built.nodes);
}
