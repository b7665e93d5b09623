//! A damaged node is an error with its place, never a wrong answer.

use super::builder::Rng;
use super::ram::now;
use super::runs::Run;
use super::world::World;
use crate::error::Kind;
use crate::map::Visit;
use crate::units::{BLOCK_SIZE, PBlock};

/// A tree of `blocks` scattered extents, some of them zeros.
fn world(blocks: u64, seed: u64) -> World {
    let (mut world, mut rng) = (World::new(true), Rng(seed));
    for _ in 0..3 {
        let mut runs: Vec<Run> = Vec::new();
        for _ in 0..blocks / 3 {
            let first = rng.below(blocks * 4);
            runs.push(if rng.below(5) == 0 { (first, 3, None) } else { world.data(first, 1 + rng.below(3)) });
        }
        world.batch(&runs);
    }
    world
}

/// Each node with the blocks of the disk that it alone says something of.
fn nodes(world: &World) -> Vec<(PBlock, u16)> {
    let mut nodes = Vec::new();
    now(world.tree().walk(&world.root, |visit| {
        if let Visit::Node { child, level } = visit {
            nodes.push((child.pblock, level));
        }
    }));
    nodes
}

/// With the node at `at` damaged: reads are right or errors that name it, and walking finds all but what it maps.
fn assert_found(world: &World, at: PBlock, kind: Kind) {
    let tree = world.tree();
    let error = world.read(&tree, 0..1 << 40).map(|runs| runs.len()).expect_err("damaged");
    assert_eq!((error.kind(), error.at_offset()), (kind, Some(at.pos())), "{error}");
    let shape = world.shape(&tree);
    let [(bad, level, range, error)] = &shape.bad[..] else { panic!("{} bad nodes", shape.bad.len()) };
    assert_eq!((*bad, error.kind(), error.at_offset()), (at, kind, Some(at.pos())), "{error}");
    assert_eq!(u32::from(*level) + 1 == world.root.height, at == world.root.pblock);
    let mut outside = world.model.within(0..range.start);
    outside.extend(world.model.within(range.end..1 << 40));
    assert!(joined(&shape.runs) == joined(&outside), "what lies outside of {range:?}");
    // Every range: the truth or the error, and the truth where the damage is not.
    let end = world.model.all().last().map_or(0, |r| r.0 + r.1);
    let mut errors = 0;
    let step = end / 50 + 1;
    for first in (0..end).step_by(step as usize) {
        let range_read = first..first + step;
        match world.read(&tree, range_read.clone()) {
            Ok(runs) => assert_eq!(runs, world.model.within(range_read)),
            Err(error) => {
                errors += 1;
                assert_eq!((error.kind(), error.at_offset()), (kind, Some(at.pos())), "{error}");
            }
        }
    }
    assert!(errors > 0);
}

/// A damaged range may lie between two runs that were one.
fn joined(runs: &[Run]) -> Vec<Run> {
    let mut out = Vec::new();
    runs.iter().for_each(|run| super::runs::join(&mut out, *run));
    out
}

#[test]
fn each_damaged_node_is_found() {
    let world = world(2500, 31);
    assert_eq!(world.root.height, 2);
    let nodes = nodes(&world);
    assert!(nodes.len() > 8);
    let mut rng = Rng(32);
    for (i, &(at, _)) in nodes.iter().enumerate() {
        let good = world.file.copy(at);
        let mut kinds: Vec<Box<[u8; BLOCK_SIZE]>> = Vec::new();
        // A flipped bit, zeros, the content of another node, the end of the block torn off.
        let mut flipped = good.clone();
        flipped[rng.below(4096) as usize] ^= 1 << rng.below(8);
        kinds.push(flipped);
        kinds.push(Box::new([0; BLOCK_SIZE]));
        kinds.push(world.file.copy(nodes[(i + 1) % nodes.len()].0));
        let mut torn = good.clone();
        torn[512..].fill(0);
        kinds.push(torn);
        for bad in kinds.into_iter().filter(|bad| *bad != good) {
            world.file.put(at, bad);
            assert_found(&world, at, Kind::Corrupt);
        }
        // A file that ends before it, and one that cannot be read.
        world.file.take(at);
        assert_found(&world, at, Kind::Corrupt);
        world.file.put(at, good);
        world.file.fail_reads_of(Some(at));
        assert_found(&world, at, Kind::Io);
        world.file.fail_reads_of(None);
    }
    assert!(world.shape(&world.tree()).bad.is_empty());
}

#[test]
fn each_damaged_inner_node_of_a_higher_tree_is_found() {
    let world = world(60_000, 33);
    assert_eq!(world.root.height, 3);
    let inner: Vec<PBlock> = nodes(&world).into_iter().filter(|n| n.1 > 0).map(|n| n.0).collect();
    assert!(inner.len() > 2);
    for at in inner {
        let mut bad = world.file.copy(at);
        bad[100] ^= 1;
        let good = world.file.copy(at);
        world.file.put(at, bad);
        assert_found(&world, at, Kind::Corrupt);
        world.file.put(at, good);
    }
}

/// An older version of a node in the same place: all of it verifies, but its parent names another checksum.
#[test]
fn a_lost_write_is_found() {
    let mut world = world(2500, 34);
    for (at, _) in nodes(&world) {
        let old = world.file.copy(at);
        // The same block is written again, with other content.
        let mut lost = None;
        for round in 0..200 {
            let run = world.data(round * 13 % 2500, 1);
            world.batch(&[run]);
            if nodes(&world).iter().any(|n| n.0 == at) && world.file.copy(at) != old {
                lost = Some(world.file.copy(at));
                break;
            }
        }
        let Some(new) = lost else { continue };
        world.file.put(at, old);
        let error = world.read(&world.tree(), 0..1 << 40).expect_err("lost write");
        assert_eq!((error.kind(), error.at_offset()), (Kind::Corrupt, Some(at.pos())));
        assert!(error.message().contains("its parent says"), "{error}");
        world.file.put(at, new);
        return;
    }
    panic!("no block was written twice");
}

/// What a build must read and cannot fails the build; nothing of the tree changes.
#[test]
fn a_build_does_not_drop_what_it_cannot_read() {
    let mut world = world(2500, 35);
    let leaf = nodes(&world).into_iter().find(|n| n.1 == 0).expect("a leaf").0;
    let before = world.shape(&world.tree());
    let good = world.file.copy(leaf);
    world.file.take(leaf);
    let mut batch = super::runs::Runs::default();
    batch.set((0, 1 << 20, None));
    let tree = world.tree();
    let error = world.build(&tree, &batch.changes(), &before, usize::MAX).expect_err("a leaf is gone");
    assert_eq!((error.kind(), error.at_offset()), (Kind::Corrupt, Some(leaf.pos())));
    world.file.put(leaf, good);
    assert_eq!(world.shape(&world.tree()).runs, world.model.all());
}
