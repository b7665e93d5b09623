//! The model of a tree: runs of the disk, however long.

use std::collections::BTreeMap;

use crate::format::Place;
use crate::map::Change;
use crate::units::{PBlock, VBlock};

/// The checksum that a block of the layer has in these tests.
pub(super) fn crc_of(pblock: u64) -> u32 {
    (pblock as u32).wrapping_mul(0x9e37_79b9) ^ 0x5a5a_5a5a
}

/// A run: first block, number of blocks, first block of the layer (`None`: zeros).
pub(super) type Run = (u64, u64, Option<u64>);

/// Start -> (end, first block of the layer).
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Runs {
    map: BTreeMap<u64, (u64, Option<u64>)>,
}

fn skip(data: Option<u64>, blocks: u64) -> Option<u64> {
    data.map(|p| p + blocks)
}

impl Runs {
    /// Makes `[first, first + blocks)` a hole.
    pub(super) fn remove(&mut self, first: u64, blocks: u64) {
        let end = first + blocks;
        let from = self.map.range(..first).next_back().map_or(first, |(&s, _)| s);
        let hit: Vec<u64> = self.map.range(from..end).map(|(&s, _)| s).collect();
        for start in hit {
            let (old_end, data) = self.map[&start];
            if old_end <= first {
                continue;
            }
            self.map.remove(&start);
            if start < first {
                self.map.insert(start, (first, data));
            }
            if end < old_end {
                self.map.insert(end, (old_end, skip(data, end - start)));
            }
        }
    }

    pub(super) fn set(&mut self, (first, blocks, data): Run) {
        self.remove(first, blocks);
        self.map.insert(first, (first + blocks, data));
    }

    /// The runs within `range`, joined where they are neighbours in both spaces.
    pub(super) fn within(&self, range: std::ops::Range<u64>) -> Vec<Run> {
        let from = self.map.range(..=range.start).next_back().map_or(range.start, |(&s, _)| s);
        let mut out = Vec::new();
        for (&start, &(end, data)) in self.map.range(from..range.end) {
            let (first, end) = (start.max(range.start), end.min(range.end));
            if first < end {
                join(&mut out, (first, end - first, skip(data, first - start)));
            }
        }
        out
    }

    pub(super) fn all(&self) -> Vec<Run> {
        self.within(0..u64::MAX)
    }

    /// The changes that make these runs.
    pub(super) fn changes(&self) -> Vec<Change> {
        let change = |(first, blocks, data): Run| Change {
            vblock: VBlock(first),
            blocks,
            place: data.map_or(Place::Zero, |p| Place::Data(PBlock(p))),
            crcs: data.map_or(Vec::new(), |p| (p..p + blocks).map(crc_of).collect()),
        };
        self.all().into_iter().map(change).collect()
    }
}

/// Adds a run behind the others.
pub(super) fn join(out: &mut Vec<Run>, run: Run) {
    if let Some(last) = out.last_mut()
        && last.0 + last.1 == run.0
        && skip(last.2, last.1) == run.2
    {
        last.1 += run.1;
        return;
    }
    out.push(run);
}
