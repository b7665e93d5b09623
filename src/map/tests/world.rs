//! One layer file with a tree in it, the model of that tree, and what must hold after every build.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ram::{Ram, now};
use super::runs::{Run, Runs, crc_of, join};
use crate::error::Result;
use crate::format::{
    LEAF_BODY_BYTES, LEAF_CRC_BYTES, LEAF_EXTENT_BYTES, LayerId, MAX_EXTENT_BLOCKS, Place, TreeRoot,
};
use crate::map::{Built, Change, LayerTag, Node, NodeCache, NodeSink, Tree, Visit, build, most_nodes};
use crate::units::{PBlock, Seq, VBlock};

pub(super) const LAYER: LayerId = LayerId([3; 16]);
pub(super) const TAG: LayerTag = LayerTag(1);

/// What `walk` meets.
#[derive(Default, Debug)]
pub(super) struct Shape {
    /// Blocks of nodes and of data.
    pub(super) nodes: BTreeSet<u64>,
    pub(super) data: BTreeSet<u64>,
    /// Nodes of each level, leaves first.
    pub(super) levels: Vec<usize>,
    /// Bytes of extents and checksums in the leaves.
    pub(super) leaf_bytes: usize,
    pub(super) runs: Vec<Run>,
    pub(super) bad: Vec<(PBlock, u16, std::ops::Range<u64>, crate::Error)>,
}

pub(super) struct World {
    pub(super) file: Ram,
    pub(super) root: TreeRoot,
    pub(super) model: Runs,
    /// Zeros behind it are not kept.
    pub(super) zeros_to: u64,
    /// Where new data goes; nodes go to the lowest free blocks, so that freed ones are used again at once.
    pub(super) next_data: u64,
    pub(super) cache_bytes: u64,
    builds: u64,
}

struct Sink {
    file: Ram,
    /// Reachable before the build, and given since.
    taken: BTreeSet<u64>,
    next: u64,
    given: BTreeSet<u64>,
    left: usize,
}

impl NodeSink for Sink {
    async fn allocate(&mut self) -> Result<PBlock> {
        if self.left == 0 {
            return Err(crate::Error::new(crate::Kind::NoSpace, "no block left"));
        }
        self.left -= 1;
        while !self.taken.insert(self.next) {
            self.next += 1;
        }
        self.given.insert(self.next);
        Ok(PBlock(self.next))
    }

    async fn write(&mut self, at: PBlock, node: &Node, level: u16) -> Result<u32> {
        assert!(self.given.contains(&at.0), "block {} was not given", at.0);
        let (block, crc) = match node {
            Node::Leaf(leaf) => {
                assert_eq!(level, 0);
                leaf.encode(LAYER, at, 9)
            }
            Node::Inner(inner) => {
                assert!(level > 0);
                inner.encode(LAYER, at, 9, level)
            }
        };
        self.file.put(at, block);
        Ok(crc)
    }
}

impl World {
    pub(super) fn new(keep_zeros: bool) -> World {
        World {
            file: Ram::default(),
            root: TreeRoot::default(),
            model: Runs::default(),
            zeros_to: if keep_zeros { 1 << 40 } else { 0 },
            next_data: 1 << 30,
            cache_bytes: 1 << 20,
            builds: 0,
        }
    }

    /// The tree as another process would read it: with an empty cache.
    pub(super) fn tree(&self) -> Tree<Ram> {
        Tree::new(self.file.clone(), TAG, Arc::new(NodeCache::new(self.cache_bytes)))
    }

    pub(super) fn shape(&self, tree: &Tree<Ram>) -> Shape {
        let mut shape = Shape { levels: vec![0; self.root.height as usize], ..Shape::default() };
        now(tree.walk(&self.root, |visit| shape.visit(visit)));
        shape
    }

    /// New blocks of the layer for `blocks` blocks from `first` on.
    pub(super) fn data(&mut self, first: u64, blocks: u64) -> Run {
        let run = (first, blocks, Some(self.next_data));
        // Now and then a gap, so that not everything joins.
        self.next_data += blocks + u64::from(first.is_multiple_of(3));
        run
    }

    /// Folds the runs into tree and model, and compares them.
    pub(super) fn batch(&mut self, runs: &[Run]) -> Built {
        let tree = self.tree();
        let before = self.shape(&tree);
        assert!(before.bad.is_empty(), "{:?}", before.bad);
        let mut batch = Runs::default();
        runs.iter().for_each(|run| batch.set(*run));
        let changes = batch.changes();
        let built = self.build(&tree, &changes, &before, usize::MAX).expect("there is space");
        let data: u64 = changes.iter().map(|c| c.crcs.len() as u64).sum();
        let ends = 2 * changes.iter().filter(|c| c.place == Place::Zero).count() as u64;
        let disk =
            self.model.all().last().map_or(0, |r| r.0 + r.1).max(changes.last().map_or(0, |c| c.end().0));
        let most = most_nodes(data + ends, before.nodes.len() as u64, self.root.height, disk);
        assert!(built.nodes <= most, "{} nodes, not {most}", built.nodes);
        self.root = built.root;
        for &(first, blocks, data) in &batch.all() {
            match data {
                Some(_) => self.model.set((first, blocks, data)),
                None => {
                    let kept = blocks.min(self.zeros_to.saturating_sub(first));
                    if kept > 0 {
                        self.model.set((first, kept, None));
                    }
                    if kept < blocks {
                        self.model.remove(first + kept, blocks - kept);
                    }
                }
            }
        }
        self.assert_same(&before, &built);
        built
    }

    /// A build that may take `left` blocks.
    pub(super) fn build(
        &mut self,
        tree: &Tree<Ram>,
        changes: &[Change],
        before: &Shape,
        left: usize,
    ) -> Result<Built> {
        self.builds += 1;
        let taken: BTreeSet<u64> = before.nodes.union(&before.data).copied().collect();
        let mut sink = Sink { file: self.file.clone(), taken, next: 100, given: BTreeSet::new(), left };
        let by = Seq(1000 + self.builds);
        let built = now(build(tree, self.root, changes, VBlock(self.zeros_to), by, &mut sink))?;
        assert!(built.freed.iter().all(|f| f.by == by && f.blocks > 0));
        assert_eq!(built.nodes, sink.given.len() as u64, "every block that was taken is written once");
        Ok(built)
    }

    fn assert_same(&self, before: &Shape, built: &Built) {
        let tree = self.tree();
        let after = self.shape(&tree);
        assert!(after.bad.is_empty(), "{:?}", after.bad);
        assert_eq!(after.runs, self.model.all(), "all extents, by walk");
        assert_eq!(self.read(&tree, 0..1 << 40).expect("undamaged"), self.model.all(), "all extents");
        // Freed is exactly what was reachable and is not any more; only new nodes and new data came.
        let reach = |s: &Shape| -> BTreeSet<u64> { s.nodes.union(&s.data).copied().collect() };
        let gone: BTreeSet<u64> = reach(before).difference(&reach(&after)).copied().collect();
        let mut freed = BTreeSet::new();
        for f in &built.freed {
            for p in f.pblock.0..f.pblock.0 + u64::from(f.blocks) {
                assert!(freed.insert(p), "block {p} is freed twice");
            }
        }
        assert_eq!(freed, gone, "freed blocks");
        assert_eq!(
            after.nodes.difference(&before.nodes).count() as u64,
            built.nodes,
            "new nodes are all in use"
        );
        assert_eq!(
            before.nodes.difference(&after.nodes).count() as u64,
            built.removed,
            "nodes that are gone"
        );
        if self.root.height == 0 {
            assert_eq!(self.root, TreeRoot::default());
        }
    }

    /// What `extents` says of a range, joined.
    pub(super) fn read(&self, tree: &Tree<Ram>, range: std::ops::Range<u64>) -> Result<Vec<Run>> {
        let mut out = Vec::new();
        let mut next = range.start;
        now(tree.extents(
            &self.root,
            VBlock(range.start)..VBlock(range.end),
            |vblock, blocks, place, crcs| {
                assert!(blocks > 0 && vblock.0 >= next && vblock.0 + u64::from(blocks) <= range.end);
                next = vblock.0 + u64::from(blocks);
                join(&mut out, checked_run(vblock, blocks, place, crcs));
            },
        ))?;
        Ok(out)
    }
}

fn checked_run(vblock: VBlock, blocks: u32, place: Place, crcs: &[u32]) -> Run {
    let data = match place {
        Place::Zero => {
            assert!(crcs.is_empty());
            None
        }
        Place::Data(p) => {
            assert!(
                crcs.iter().copied().eq((p.0..p.0 + u64::from(blocks)).map(crc_of)),
                "checksums of {p:?}"
            );
            Some(p.0)
        }
    };
    (vblock.0, blocks.into(), data)
}

impl Shape {
    fn visit(&mut self, visit: Visit<'_>) {
        match visit {
            Visit::Node { child, level } => {
                assert!(self.nodes.insert(child.pblock.0), "node {:?} stands twice", child.pblock);
                self.levels[usize::from(level)] += 1;
            }
            Visit::Extent { extent, crcs } => {
                if let Place::Data(p) = extent.place {
                    assert!(extent.blocks <= MAX_EXTENT_BLOCKS);
                    for p in p.0..p.0 + u64::from(extent.blocks) {
                        assert!(self.data.insert(p), "data block {p} is mapped twice");
                    }
                }
                self.leaf_bytes += LEAF_EXTENT_BYTES + crcs.len() * LEAF_CRC_BYTES;
                join(&mut self.runs, checked_run(extent.vblock, extent.blocks, extent.place, crcs));
            }
            Visit::Bad { child, level, range, error } => {
                self.bad.push((child.pblock, level, range.start.0..range.end.0, error));
            }
        }
    }

    /// Bytes in use per byte of the leaves.
    pub(super) fn fill(&self) -> f64 {
        self.leaf_bytes as f64 / (self.levels.first().copied().unwrap_or(0).max(1) * LEAF_BODY_BYTES) as f64
    }
}
