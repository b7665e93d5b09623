//! Many batches of every kind, each compared with the model.

use proptest::prelude::*;

use super::runs::Run;
use super::world::World;

/// A small generator, so that a failure is repeated by its seed.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// The kinds of batches.
fn some_batch(world: &mut World, rng: &mut Rng, disk: u64) -> Vec<Run> {
    let mut runs = Vec::new();
    match rng.below(9) {
        // Scattered single blocks.
        0 | 1 => {
            for _ in 0..rng.below(600) {
                let first = rng.below(disk);
                runs.push(world.data(first, 1));
            }
        }
        // Scattered small runs, some of them zeros.
        2 => {
            for _ in 0..rng.below(150) {
                let (first, blocks) = (rng.below(disk - 40), 1 + rng.below(40));
                runs.push(if rng.below(3) == 0 { (first, blocks, None) } else { world.data(first, blocks) });
            }
        }
        // One long sequential write.
        3 => {
            let first = rng.below(disk / 2);
            let blocks = 1 + rng.below((disk - first).min(4000));
            runs.push(world.data(first, blocks));
        }
        // A dense region, block by block.
        4 => {
            let first = rng.below(disk - 1000);
            for i in 0..500 {
                runs.push(world.data(first + 2 * i, 1));
            }
        }
        // One or two blocks.
        5 => runs.push((rng.below(disk), 1, None)),
        6 => {
            let first = rng.below(disk - 1);
            runs.push(world.data(first, 2));
        }
        // A long zero range with data in it.
        7 => {
            let first = rng.below(disk / 2);
            runs.push((first, 1 + rng.below(disk - first), None));
            let inside = first + rng.below(disk - first);
            runs.push(world.data(inside, 1));
        }
        // Everything goes; rarely.
        _ => {
            if rng.below(6) == 0 {
                runs.push((0, disk, None));
            }
        }
    }
    runs
}

fn age(seed: u64, keep_zeros: bool, disk: u64, batches: u64) {
    let mut rng = Rng(seed);
    let mut world = World::new(keep_zeros);
    // A cache of a few nodes: most are read again from the file.
    world.cache_bytes = 40 << 10;
    for batch in 0..batches {
        let runs = some_batch(&mut world, &mut rng, disk);
        world.batch(&runs);
        let tree = world.tree();
        for _ in 0..4 {
            let first = rng.below(disk + 100);
            let range = first..first + 1 + rng.below(300);
            let found = world.read(&tree, range.clone()).expect("undamaged");
            assert_eq!(found, world.model.within(range.clone()), "seed {seed}, batch {batch}, {range:?}");
        }
    }
}

#[test]
fn batches_of_every_kind_on_a_layer_with_a_parent() {
    for seed in 1..=6 {
        age(seed, true, 30_000, 50);
    }
}

#[test]
fn batches_of_every_kind_on_a_layer_without_a_parent() {
    for seed in 11..=16 {
        age(seed, false, 30_000, 50);
    }
}

/// Enough leaves for a third level.
#[test]
fn batches_of_every_kind_on_a_big_tree() {
    for keep_zeros in [true, false] {
        let (mut rng, mut world) = (Rng(21), World::new(keep_zeros));
        let disk = 200_000;
        let runs: Vec<Run> = (0..disk / 4).map(|i| world.data(i * 4, 1)).collect();
        world.batch(&runs);
        assert_eq!(world.root.height, 3);
        for _ in 0..6 {
            let runs = some_batch(&mut world, &mut rng, disk);
            world.batch(&runs);
        }
        world.batch(&[(0, disk, None)]);
        world.batch(&[(5, 1, None), (77, 3, Some(5))]);
    }
}

#[test]
fn an_empty_batch_changes_nothing() {
    let mut world = World::new(true);
    assert_eq!(world.batch(&[]).nodes, 0);
    let run = world.data(5, 1);
    world.batch(&[run]);
    let root = world.root;
    let built = world.batch(&[]);
    assert_eq!((built.root, built.nodes, built.freed.len()), (root, 0, 0));
}

#[test]
fn deleting_everything_leaves_no_tree() {
    for keep_zeros in [true, false] {
        let mut world = World::new(keep_zeros);
        let runs: Vec<Run> = (0..60_000).map(|i| world.data(i * 2, 1)).collect();
        world.batch(&runs);
        assert_eq!(world.root.height, 3);
        let built = world.batch(&[(0, 1 << 40, None)]);
        if keep_zeros {
            assert!(built.nodes < 140, "{} nodes for 4 PiB of zeros", built.nodes);
            assert_eq!(world.root.height, 2);
        } else {
            assert_eq!((world.root.height, built.nodes), (0, 0));
        }
        let run = world.data(7, 1);
        world.batch(&[run]);
    }
}

/// As a resize has it: zeros to the end of the address space, of which only those of the disk are kept.
#[test]
fn zeros_behind_the_end_of_the_disk_are_not_kept() {
    let mut world = World::new(true);
    let runs: Vec<Run> = (0..3000).map(|i| world.data(i * 5, 2)).collect();
    world.batch(&runs);
    for (end, zero_from) in [(9_002, 9_002), (20_000, 9_002), (20_000, 7_001), (1, 1), (1 << 40, 1)] {
        world.zeros_to = end;
        world.batch(&[(zero_from, (1 << 40) - zero_from, None)]);
        let run = world.data(end - 1, 1);
        world.batch(&[run]);
    }
}

#[test]
fn zeroing_terabytes_takes_few_nodes() {
    let mut world = World::new(true);
    let tib = 1 << 28;
    let built = world.batch(&[(12_345, tib, None)]);
    assert_eq!((built.nodes, world.root.height), (1, 1));
    // Data into it, and zeros over that.
    let runs: Vec<Run> = (0..300).map(|i| world.data(12_345 + i * 800_000, 3)).collect();
    world.batch(&runs);
    let built = world.batch(&[(20_000, tib - 30_000, None)]);
    assert!(built.nodes <= 3, "{} nodes", built.nodes);
    let built = world.batch(&[(0, 16 * tib, None), (17 * tib, 3000 * tib, None)]);
    assert!(built.nodes < 300, "{} nodes", built.nodes);
    // Without a parent nothing of it is stored.
    let mut world = World::new(false);
    assert_eq!(world.batch(&[(0, 4000 * tib, None)]).nodes, 0);
}

#[test]
fn a_leaf_spans_no_more_than_its_offsets_reach() {
    let mut world = World::new(true);
    let far = 1u64 << 32;
    // Just within reach, just out of reach, and the very last block.
    for at in [0, far - 1, far, far + 1, 2 * far, 3 * far + 5, (1 << 40) - 1] {
        let run = world.data(at, 1);
        world.batch(&[run]);
    }
    let runs: Vec<Run> = (0..200).map(|i| world.data(i * (far - 1) + 17, 2)).collect();
    world.batch(&runs);
    let runs: Vec<Run> = (0..255).map(|i| (i * far + 100, far - 200, None)).collect();
    world.batch(&runs);
    let shape = world.shape(&world.tree());
    assert!(shape.levels[0] >= 127, "{:?}", shape.levels);
}

/// A bound that is never too low is tested with every build; here, that it is not more than the layout asks for.
#[test]
fn the_most_nodes_are_as_few_as_the_layout_allows() {
    // Whatever changes, a new root of each possible level, twice.
    use crate::map::most_nodes;
    let least = 2 * u64::from(crate::limits::MAX_TREE_HEIGHT);
    assert_eq!(most_nodes(0, 0, 0, 0), least);
    // Each level twice for a block; a tree without nodes has one level to be.
    assert_eq!(most_nodes(1, 1000, 3, 0), least + 6);
    assert_eq!(most_nodes(1, 1000, 0, 0), least + 2);
    // No node more than once, however many blocks; new inner nodes for two leaves of each; 100 extents fill a leaf.
    assert_eq!(most_nodes(6400, 128, 3, 0), least + 256 + 2 + 64);
    assert_eq!(most_nodes(u64::MAX, 0, 2, 0), least + u64::MAX / 100);
    // A leaf ends where its offsets do.
    let reach = crate::format::MAX_LEAF_START;
    assert_eq!(most_nodes(0, 0, 1, 5 * reach), least + 10);
}

#[test]
fn neighbours_in_both_spaces_become_one_extent() {
    let mut world = World::new(true);
    let extents = |world: &World| {
        let mut extents = Vec::new();
        let all = crate::units::VBlock(0)..crate::units::VBlock(1 << 40);
        let tree = world.tree();
        let found = tree.extents(&world.root, all, |v, blocks, _, _| extents.push((v.0, blocks)));
        super::ram::now(found).expect("undamaged");
        extents
    };
    let gap = world.next_data;
    world.batch(&[(100, 10, None), (300, 10, Some(gap))]);
    world.batch(&[(110, 5, None), (310, 5, Some(gap + 10))]);
    assert_eq!(extents(&world), [(100, 15), (300, 15)]);
    // Neighbours in one space only, or of another kind, do not.
    world.batch(&[(115, 5, Some(gap + 500)), (315, 5, Some(gap + 400)), (330, 5, Some(gap + 405))]);
    assert_eq!(extents(&world), [(100, 15), (115, 5), (300, 15), (315, 5), (330, 5)]);
}

#[test]
fn the_leaf_of_a_block_is_found() {
    let mut world = World::new(true);
    assert!(
        super::ram::now(world.tree().leaf(&world.root, crate::units::VBlock(7))).expect("empty").is_none()
    );
    let runs: Vec<Run> = (0..2000).map(|i| world.data(i * 2, 1)).collect();
    world.batch(&runs);
    for block in [0, 1999, 3998, 1 << 30] {
        let key = crate::units::VBlock(block);
        let leaf = super::ram::now(world.tree().leaf(&world.root, key)).expect("undamaged");
        let (node, range) = leaf.expect("the tree is not empty");
        assert!(range.contains(&key), "{block} in {range:?}");
        assert!(matches!(&*node, crate::map::Node::Leaf(leaf) if !leaf.extents.is_empty()));
    }
}

#[test]
fn long_data_is_cut_into_extents_that_fit() {
    let mut world = World::new(true);
    let runs = [1, 1002, 1003, 65_535, 65_536].map(|blocks| world.data(1_000_000 * blocks, blocks));
    world.batch(&runs);
    let mut world = World::new(true);
    // Appended piece by piece: the pieces join.
    let base = 1 << 35;
    for i in 0..40 {
        world.next_data = (1 << 34) + i * 50;
        let run = (base + i * 50, 50, Some(world.next_data));
        world.batch(&[run]);
    }
    let mut extents = 0;
    super::ram::now(world.tree().extents(
        &world.root,
        crate::units::VBlock(base)..crate::units::VBlock(base + 2000),
        |_, _, _, _| extents += 1,
    ))
    .expect("undamaged");
    assert!(extents <= 4, "{extents} extents for one run of 2000 blocks");
}

#[test]
fn a_full_disk_in_the_middle_of_a_build_harms_nothing() {
    let mut world = World::new(true);
    let runs: Vec<Run> = (0..5000).map(|i| world.data(i * 3, 1)).collect();
    world.batch(&runs);
    let changes: Vec<Run> = (0..4000).map(|i| world.data(i * 5, 2)).collect();
    let mut batch = super::runs::Runs::default();
    changes.iter().for_each(|r| batch.set(*r));
    let tree = world.tree();
    let before = world.shape(&tree);
    let needed = {
        let mut all = 0;
        while world.build(&tree, &batch.changes(), &before, all).is_err() {
            // The old tree is what it was, whatever was written for the new one.
            assert_eq!(world.shape(&world.tree()).runs, world.model.all());
            all += 1;
        }
        all
    };
    assert!(needed > 20, "{needed}");
    assert_eq!(world.batch(&changes).nodes, needed as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Small disks and arbitrary runs: every way in which old and new extents can meet.
    #[test]
    fn arbitrary_runs(
        batches in prop::collection::vec(
            prop::collection::vec((0..200u64, 1..60u64, prop::bool::weighted(0.3)), 1..12), 1..12),
        keep_zeros: bool,
    ) {
        let mut world = World::new(keep_zeros);
        for batch in batches {
            let runs: Vec<Run> = batch
                .into_iter()
                .map(|(first, blocks, zero)| if zero { (first, blocks, None) } else { world.data(first, blocks) })
                .collect();
            world.batch(&runs);
        }
    }
}
