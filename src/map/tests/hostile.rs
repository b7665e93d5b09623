//! Trees whose every checksum is right and whose structure is not.

use std::sync::Arc;

use super::ram::{Ram, now};
use super::world::{LAYER, TAG};
use crate::error::{Error, Kind};
use crate::format::{Child, InnerNode, LeafExtent, LeafNode, Place, TreeRoot};
use crate::map::{Change, NodeCache, NodeSink, Tree, Visit, build};
use crate::units::{PBlock, Seq, VBlock};

#[derive(Default)]
struct Forge {
    file: Ram,
}

/// A node and the lowest block it is said to map.
type Entry = (u64, Child);

impl Forge {
    /// A leaf at `at` with single blocks.
    fn leaf(&self, at: u64, blocks: &[u64]) -> Child {
        let extent = |(i, &b): (usize, &u64)| LeafExtent {
            vblock: VBlock(b),
            blocks: 1,
            place: Place::Data(PBlock(1000 + b)),
            crc_index: i as u32,
        };
        let extents = blocks.iter().enumerate().map(extent).collect();
        let leaf = LeafNode { extents, crcs: vec![7; blocks.len()] };
        let (block, crc) = leaf.encode(LAYER, PBlock(at), 1);
        self.file.put(PBlock(at), block);
        Child { first: VBlock(blocks[0]), pblock: PBlock(at), crc }
    }

    fn inner(&self, at: u64, level: u16, children: &[Entry]) -> Child {
        let children: Vec<Child> =
            children.iter().map(|&(first, child)| Child { first: VBlock(first), ..child }).collect();
        let first = children[0].first;
        let (block, crc) = InnerNode { children }.encode(LAYER, PBlock(at), 1, level);
        self.file.put(PBlock(at), block);
        Child { first, pblock: PBlock(at), crc }
    }

    fn tree(&self) -> Tree<Ram> {
        Tree::new(self.file.clone(), TAG, Arc::new(NodeCache::new(1 << 20)))
    }
}

fn root(child: Child, height: u32) -> TreeRoot {
    TreeRoot { pblock: child.pblock, crc: child.crc, height }
}

fn read(tree: &Tree<Ram>, root: &TreeRoot, range: std::ops::Range<u64>) -> Result<Vec<u64>, Error> {
    let mut found = Vec::new();
    now(tree.extents(root, VBlock(range.start)..VBlock(range.end), |v, blocks, _, _| {
        found.extend(v.0..v.0 + u64::from(blocks));
    }))?;
    assert!(found.is_sorted_by(|a, b| a < b) && found.iter().all(|v| range.contains(v)), "{found:?}");
    Ok(found)
}

/// Nodes, extents and the offsets of bad nodes that a walk meets.
fn walk(tree: &Tree<Ram>, root: &TreeRoot) -> (usize, Vec<u64>, Vec<u64>) {
    let (mut nodes, mut extents, mut bad) = (0, Vec::new(), Vec::new());
    now(tree.walk(root, |visit| match visit {
        Visit::Node { .. } => nodes += 1,
        Visit::Extent { extent, .. } => extents.push(extent.vblock.0),
        Visit::Bad { child, error, .. } => {
            assert_eq!(
                (error.kind(), error.at_offset()),
                (Kind::Corrupt, Some(child.pblock.pos())),
                "{error}"
            );
            bad.push(child.pblock.0);
        }
    }));
    (nodes, extents, bad)
}

struct NoSink;

impl NodeSink for NoSink {
    async fn allocate(&mut self) -> crate::Result<PBlock> {
        Ok(PBlock(5000))
    }
    async fn write(&mut self, _: PBlock, _: &crate::map::Node, _: u16) -> crate::Result<u32> {
        Ok(0)
    }
}

/// Zeroes the whole disk.
fn rebuild(tree: &Tree<Ram>, root: TreeRoot) -> Result<(), Error> {
    let change = Change { vblock: VBlock(0), blocks: 1 << 40, place: Place::Zero, crcs: Vec::new() };
    now(build(tree, root, &[change], VBlock(1 << 40), Seq(9), &mut NoSink)).map(|_| ())
}

fn assert_corrupt<T: std::fmt::Debug>(result: Result<T, Error>, at: u64) {
    let error = result.expect_err("a tree that cannot be");
    assert_eq!((error.kind(), error.at_offset()), (Kind::Corrupt, Some(PBlock(at).pos())), "{error}");
}

/// The second way to a node finds it in the cache, verified for the first.
#[test]
fn one_leaf_under_two_ranges() {
    let forge = Forge::default();
    let shared = forge.leaf(10, &[5, 8]);
    let top = root(forge.inner(20, 1, &[(0, shared), (100, shared)]), 2);
    let tree = forge.tree();
    assert_eq!(read(&tree, &top, 0..50).expect("the first way is right"), [5, 8]);
    assert_corrupt(read(&tree, &top, 0..200), 10);
    assert_corrupt(read(&tree, &top, 100..200), 10);
    assert_eq!(walk(&tree, &top), (2, vec![5, 8], vec![10]));
    assert_corrupt(rebuild(&tree, top), 10);
    // The other way first: nothing is cached that was never right.
    let tree = forge.tree();
    assert_corrupt(read(&tree, &top, 100..200), 10);
    assert_eq!(read(&tree, &top, 0..50).expect("the first way is right"), [5, 8]);
}

#[test]
fn one_inner_node_under_two_ranges() {
    let forge = Forge::default();
    let shared = forge.inner(20, 1, &[(5, forge.leaf(10, &[5])), (50, forge.leaf(11, &[60]))]);
    for second in [100, 60] {
        let top = root(forge.inner(30, 2, &[(0, shared), (second, shared)]), 3);
        let tree = forge.tree();
        assert_corrupt(read(&tree, &top, 0..200), if second == 100 { 20 } else { 11 });
        let (nodes, extents, bad) = walk(&tree, &top);
        assert!(bad.contains(&20), "{bad:?}");
        assert!(extents.is_sorted_by(|a, b| a < b) && nodes <= 4, "{nodes} nodes, {extents:?}");
        assert_corrupt(rebuild(&tree, top), if second == 100 { 20 } else { 11 });
    }
}

/// A leaf that reaches over the first block of its neighbour.
#[test]
fn a_leaf_beyond_its_range() {
    let forge = Forge::default();
    let (low, high) = (forge.leaf(10, &[5, 120]), forge.leaf(11, &[130]));
    let top = root(forge.inner(20, 1, &[(0, low), (100, high)]), 2);
    let tree = forge.tree();
    assert_corrupt(read(&tree, &top, 0..200), 10);
    assert_eq!(read(&tree, &top, 100..200).expect("its neighbour is right"), [130]);
    assert_eq!(walk(&tree, &top), (2, vec![130], vec![10]));
}

/// The first leaf maps less than its entry says: a lookup there must not find what a walk does not.
#[test]
fn a_first_leaf_below_its_entry() {
    let forge = Forge::default();
    let leaf = forge.leaf(10, &[5, 60]);
    let top = root(forge.inner(20, 1, &[(50, leaf)]), 2);
    let tree = forge.tree();
    assert_corrupt(read(&tree, &top, 0..100), 10);
    assert_corrupt(read(&tree, &top, 60..100), 10);
    assert_eq!(walk(&tree, &top), (1, vec![], vec![10]));
    assert_corrupt(rebuild(&tree, top), 10);
}

/// A node that stands one level lower than it says, after it was read at its own level.
#[test]
fn a_node_at_two_levels() {
    let forge = Forge::default();
    let low = forge.inner(20, 1, &[(0, forge.leaf(10, &[5]))]);
    let other = forge.inner(21, 1, &[(100, low)]);
    let top = root(forge.inner(30, 2, &[(0, low), (100, other)]), 3);
    let tree = forge.tree();
    assert_eq!(read(&tree, &top, 0..50).expect("the first way is right"), [5]);
    assert_corrupt(read(&tree, &top, 0..200), 20);
    assert_eq!(walk(&tree, &top), (4, vec![5], vec![20]));
    assert_corrupt(rebuild(&tree, top), 20);
    // And one level higher: a leaf where an inner node belongs.
    let leaf = forge.leaf(12, &[5]);
    let low = forge.inner(22, 1, &[(0, leaf)]);
    let top = root(forge.inner(31, 2, &[(0, low), (100, leaf)]), 3);
    let tree = forge.tree();
    assert_corrupt(read(&tree, &top, 0..200), 12);
    assert_eq!(walk(&tree, &top), (3, vec![5], vec![12]));
}

#[test]
fn a_root_of_another_height() {
    let forge = Forge::default();
    let leaf = forge.leaf(10, &[5]);
    let inner = forge.inner(20, 1, &[(0, leaf)]);
    for (child, right) in [(leaf, 1), (inner, 2)] {
        for height in 1..=10 {
            let (top, tree) = (root(child, height), forge.tree());
            if height == right {
                assert_eq!(read(&tree, &top, 0..50).expect("right"), [5]);
                assert_eq!(
                    read(&tree, &TreeRoot { crc: !top.crc, ..top }, 0..50).expect_err("checksum").kind(),
                    Kind::Corrupt
                );
            } else {
                assert_corrupt(read(&tree, &top, 0..50), child.pblock.0);
                assert_eq!(walk(&tree, &top), (0, vec![], vec![child.pblock.0]));
                assert_corrupt(rebuild(&tree, top), child.pblock.0);
            }
        }
    }
}

/// Every node of a level is the same one, fifteen times: a walk that followed them all would meet 15^9 leaves.
#[test]
fn a_tree_of_one_node_a_level_is_walked_in_no_time() {
    let forge = Forge::default();
    let mut below = forge.leaf(10, &[0]);
    for level in 1..10u16 {
        let width = 15u64.pow(u32::from(level) - 1);
        let children: Vec<Entry> = (0..15).map(|i| (i * width, below)).collect();
        below = forge.inner(10 + u64::from(level), level, &children);
    }
    let (top, tree) = (root(below, 10), forge.tree());
    let (nodes, extents, bad) = walk(&tree, &top);
    assert_eq!((nodes, extents, bad.len()), (10, vec![0], 9 * 14));
    assert!(read(&tree, &top, 0..1 << 40).is_err());
    assert!(rebuild(&tree, top).is_err());
}
