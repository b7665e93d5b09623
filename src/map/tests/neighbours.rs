//! What shrank takes in a neighbour that fits, and no other: at each level of the tree.

use super::ram::now;
use super::runs::Run;
use super::world::World;
use crate::format::{INNER_CAPACITY, LEAF_BODY_BYTES, LEAF_CRC_BYTES, LEAF_EXTENT_BYTES};
use crate::map::Node;
use crate::units::VBlock;

/// Single blocks that a leaf holds.
const LEAF: u64 = (LEAF_BODY_BYTES / (LEAF_EXTENT_BYTES + LEAF_CRC_BYTES)) as u64;

/// Blocks that each leaf maps, with the blocks of the disk that it may map.
fn leaves(world: &World) -> Vec<(std::ops::Range<u64>, Vec<u64>)> {
    let tree = world.tree();
    let (mut all, mut next) = (Vec::new(), 0);
    while let Some((node, range)) = now(tree.leaf(&world.root, VBlock(next))).expect("undamaged") {
        let Node::Leaf(leaf) = &*node else { panic!("no leaf") };
        all.push((range.start.0..range.end.0, leaf.extents.iter().map(|e| e.vblock.0).collect()));
        next = range.end.0;
        if next >= 1 << 40 {
            break;
        }
    }
    all
}

fn sizes(world: &World) -> Vec<u64> {
    leaves(world).iter().map(|l| l.1.len() as u64).collect()
}

/// Adds or removes single blocks until leaf `index` holds `to`, in one batch; gives the nodes written.
fn resize(world: &mut World, index: usize, to: u64) -> u64 {
    let (range, blocks) = leaves(world).swap_remove(index);
    let have = blocks.len() as u64;
    let runs: Vec<Run> = if to < have {
        blocks[to as usize..].iter().map(|&b| (b, 1, None)).collect()
    } else {
        // Between those that are there, which are four apart.
        let free = (range.start / 4 * 4..).step_by(4).map(|b| b + 2).filter(|b| range.contains(b));
        let new: Vec<u64> = free.filter(|b| !blocks.contains(b)).take((to - have) as usize).collect();
        new.into_iter().map(|b| world.data(b, 1)).collect()
    };
    world.batch(&runs).nodes
}

/// Three leaves under a root, three quarters full.
fn three_leaves() -> World {
    let mut world = World::new(false);
    let runs: Vec<Run> = (0..LEAF * 9 / 4).map(|i| world.data(i * 4, 1)).collect();
    world.batch(&runs);
    assert_eq!(sizes(&world).len(), 3);
    world
}

#[test]
fn a_leaf_that_shrank_takes_in_the_one_in_front() {
    let mut world = three_leaves();
    resize(&mut world, 0, LEAF / 2);
    resize(&mut world, 1, 5);
    assert_eq!(sizes(&world), [LEAF / 2 + 5, sizes(&world)[1]]);
}

#[test]
fn a_leaf_that_shrank_takes_in_those_behind_as_far_as_they_fit() {
    let mut world = three_leaves();
    resize(&mut world, 1, LEAF / 3);
    resize(&mut world, 0, 5);
    let third = sizes(&world)[1];
    assert_eq!(sizes(&world), [LEAF / 3 + 5, third]);
    // All that is left fits into one, and the tree loses a level.
    resize(&mut world, 1, 50);
    assert_eq!((sizes(&world), world.root.height), (vec![LEAF / 3 + 55], 1));
}

#[test]
fn neighbours_that_do_not_fit_are_left_alone() {
    let mut world = three_leaves();
    let full = LEAF - 10;
    resize(&mut world, 0, full);
    resize(&mut world, 2, full);
    assert_eq!(resize(&mut world, 1, 20), 2, "the leaf and the root");
    assert_eq!(sizes(&world), [full, 20, full]);
    // One that is more than half full takes nobody in, though the neighbour would fit.
    for index in [0, 2] {
        assert_eq!(resize(&mut world, index, LEAF * 2 / 3), 2);
    }
    assert_eq!(sizes(&world), [LEAF * 2 / 3, 20, LEAF * 2 / 3]);
    // At less than half it does.
    resize(&mut world, 0, LEAF / 3);
    assert_eq!(sizes(&world), [LEAF / 3 + 20, LEAF * 2 / 3]);
}

#[test]
fn each_leaf_that_a_batch_shrinks_takes_in_neighbours() {
    let mut world = three_leaves();
    resize(&mut world, 1, LEAF / 3);
    let (first, third) = (leaves(&world)[0].1.clone(), leaves(&world)[2].1.clone());
    let added = world.data(third[0] + 2, 1);
    world.batch(&[(first[5], first[first.len() - 1] + 1 - first[5], None), added]);
    // The first two are one now, and that is packed with the next, which changes too.
    let sizes = sizes(&world);
    assert_eq!((sizes.len(), sizes.iter().sum()), (2, 5 + LEAF / 3 + third.len() as u64 + 1));
}

/// A tree of three levels with `blocks` single blocks, four apart.
fn high(blocks: u64) -> World {
    let mut world = World::new(false);
    let runs: Vec<Run> = (0..blocks).map(|i| world.data(i * 4, 1)).collect();
    world.batch(&runs);
    assert_eq!(world.root.height, 3);
    world
}

fn inner_nodes(world: &World) -> usize {
    world.shape(&world.tree()).levels.get(1).copied().unwrap_or_default()
}

/// Removes the blocks of the disk in `range`.
fn remove(world: &mut World, range: std::ops::Range<u64>) -> u64 {
    world.batch(&[(range.start, range.end - range.start, None)]).nodes
}

#[test]
fn an_inner_node_that_shrank_takes_in_the_one_in_front_or_behind() {
    // Two of them, little more than half full.
    let blocks = LEAF * INNER_CAPACITY as u64 * 6 / 5;
    for (from, to) in [(blocks * 11 / 20, blocks * 39 / 40), (blocks / 40, blocks * 9 / 20)] {
        let mut world = high(blocks);
        assert_eq!(inner_nodes(&world), 2);
        remove(&mut world, from * 4..to * 4);
        assert_eq!(world.root.height, 2, "one node is left, and it is the root");
        let run = world.data(from * 4, 1);
        world.batch(&[run]);
    }
}

#[test]
fn inner_neighbours_that_do_not_fit_are_left_alone() {
    // Two of them, nearly full.
    let blocks = LEAF * INNER_CAPACITY as u64 * 19 / 10;
    for (from, to) in [(blocks * 11 / 20, blocks * 39 / 40), (blocks / 40, blocks * 9 / 20)] {
        let mut world = high(blocks);
        assert_eq!(inner_nodes(&world), 2);
        let nodes = remove(&mut world, from * 4..to * 4);
        assert!(nodes <= 4, "{nodes} nodes: two leaves at most, the inner node, the root");
        assert_eq!((inner_nodes(&world), world.root.height), (2, 3));
        // The other one, which stays more than half full, does not take that in, though it would fit.
        let other =
            if from > blocks / 2 { blocks / 20..blocks * 9 / 40 } else { blocks * 31 / 40..blocks * 19 / 20 };
        remove(&mut world, other.start * 4..other.end * 4);
        assert_eq!((inner_nodes(&world), world.root.height), (2, 3));
    }
}

#[test]
fn an_inner_node_with_one_child_is_one_still() {
    let mut world = high(LEAF * INNER_CAPACITY as u64 * 19 / 10);
    let leaves = leaves(&world);
    let (second, last) = (leaves[leaves.len() / 2].1[0], leaves[leaves.len() - 1].1[0]);
    remove(&mut world, second..last);
    let shape = world.shape(&world.tree());
    assert_eq!(shape.levels, [leaves.len() / 2 + 1, 2, 1]);
}

#[test]
fn changes_in_inner_nodes_apart_do_not_touch_the_one_between() {
    let blocks = LEAF * INNER_CAPACITY as u64 * 21 / 10;
    let mut world = high(blocks);
    assert_eq!(inner_nodes(&world), 3);
    let runs = [8, blocks * 4 - 4].map(|b| world.data(b, 1));
    assert_eq!(world.batch(&runs).nodes, 5, "two leaves, two inner nodes, the root");
    assert_eq!(inner_nodes(&world), 3);
    // The first shrinks; it takes in the one between, but not the one that changes too.
    let run = world.data(blocks * 4 - 4, 1);
    let nodes = world.batch(&[(40, blocks * 6 / 5, None), run]).nodes;
    assert!(nodes <= 6, "{nodes} nodes: three leaves at most, two inner nodes, the root");
    assert_eq!(inner_nodes(&world), 2);
}
