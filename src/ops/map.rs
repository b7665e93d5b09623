//! `map`: where the content of a disk is, run by run, for the whole chain.
//!
//! One pass over the disk, leaf by leaf of each layer's tree: holes cost nothing, whatever their size, and memory is one
//! leaf for each layer.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use crate::chain::{Chain, ChainLayer};
use crate::error::{Error, Kind, Result, printable};
use crate::format::{LayerId, Place, TreeRoot};
use crate::map::{Change, Node, Slot};
use crate::storage::Storage;
use crate::units::{BLOCK, VBlock, blocks_for};

/// What a run reads as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunState {
    /// Bytes of a layer or of the base.
    Data,
    /// Zeros that a layer says are there.
    Zero,
    /// Zeros because nothing was ever written.
    Hole,
}

/// A run of the disk that comes from one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRun<'a> {
    /// First byte of the disk.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// What it reads as.
    pub state: RunState,
    /// The file that says so; `None` for a hole.
    pub layer: Option<&'a Path>,
    /// First byte in that file, of data.
    pub offset: Option<u64>,
}

/// Calls `found` with every run of the disk, in order, neighbours of one kind joined, until it breaks.
///
/// # Errors
/// A tree node that cannot be read, with path and offset.
pub async fn map<'a, S: Storage>(
    chain: &'a Chain<S>,
    found: impl FnMut(MapRun<'a>) -> ControlFlow<()>,
) -> Result<()> {
    map_from(chain, 0, found).await
}

/// As [`map`], from the block on that holds byte `pos`.
///
/// # Errors
/// As [`map`].
pub async fn map_from<'a, S: Storage>(
    chain: &'a Chain<S>,
    pos: u64,
    found: impl FnMut(MapRun<'a>) -> ControlFlow<()>,
) -> Result<()> {
    let size = chain.geometry().size;
    let end = VBlock(blocks_for(size));
    let (mut cursors, reach) = cursors(chain, end);
    let mut joiner = Joiner { size, last: None, found };
    let mut next = VBlock::holding(pos);
    while next < end {
        let (piece, place, _) = top_piece(chain, &mut cursors, next..end, reach).await?;
        next = piece.end;
        if joiner.push(piece, place).is_break() {
            return Ok(());
        }
    }
    let _ = joiner.flush();
    Ok(())
}

/// As [`map`], but only what was changed since the disk was `since`, a snapshot: written, zeroed, discarded, or behind
/// its end. What was written with the bytes that were there counts as changed.
///
/// # Errors
/// As [`map`]; `Usage` if the two have nothing in common.
pub async fn map_since<'a, S: Storage>(
    chain: &'a Chain<S>,
    since: &'a Chain<S>,
    found: impl FnMut(MapRun<'a>) -> ControlFlow<()>,
) -> Result<()> {
    let (own, its_own) = apart(chain, since)?;
    let size = chain.geometry().size;
    let end = VBlock(blocks_for(size));
    let differing = chain.layers[..own].iter().chain(&since.layers[..its_own]);
    // Where one of the two ended for a while, what lies below does not count for both.
    let common = differing.map(|layer| layer.size).chain([since.geometry().size]).min().unwrap_or(size);
    let common = VBlock(common / BLOCK).min(end);
    let mut its: Vec<Cursor<'a, S>> =
        since.layers[..its_own].iter().map(|layer| Cursor::new(layer, common)).collect();
    let (mut all, reach) = cursors(chain, end);
    let mut joiner = Joiner { size, last: None, found };
    let mut next = VBlock(0);
    while next < end {
        let stop = if next < common { common } else { end };
        let (mut piece, place, depth) = top_piece(chain, &mut all, next..stop, reach).await?;
        let mut changed = depth < own || next >= common;
        if !changed {
            for cursor in &mut its {
                let (until, place) = cursor.at(next).await?;
                piece.end = piece.end.min(until);
                changed |= place.is_some();
            }
        }
        next = piece.end;
        if changed && joiner.push(piece, place).is_break() {
            return Ok(());
        }
    }
    let _ = joiner.flush();
    Ok(())
}

/// Bytes of data in the layer below layer `index` of the chain that this one hides: it maps them itself, or ends before
/// them.
///
/// # Errors
/// As [`map`].
pub(super) async fn hidden<S: Storage>(chain: &Chain<S>, index: usize) -> Result<u64> {
    let end = |layer: &ChainLayer<S::File>| VBlock(blocks_for(layer.size));
    let (upper, lower) = (&chain.layers[index], &chain.layers[index + 1]);
    let (stop, all) = (end(upper), end(lower));
    let mut top: Cursor<'_, S> = Cursor::new(upper, stop);
    let mut below: Cursor<'_, S> = Cursor::new(lower, all);
    let (mut next, mut blocks) = (VBlock(0), 0);
    while next < all {
        let (mut until, place) = below.at(next).await?;
        until = until.min(all);
        if let Some(Place::Data(_)) = place {
            let (covered_until, cover) = top.at(next).await?;
            if next < stop {
                until = until.min(covered_until).min(stop);
            }
            if next >= stop || cover.is_some() {
                blocks += until.0 - next.0;
            }
        }
        next = until;
    }
    Ok(blocks * BLOCK)
}

/// How many layers each of the two chains has above those that both have.
fn apart<S: Storage>(chain: &Chain<S>, since: &Chain<S>) -> Result<(usize, usize)> {
    let ids: HashMap<LayerId, usize> = (0..).zip(&since.layers).map(|(i, l)| (l.sb.layer, i)).collect();
    for (own, layer) in chain.layers.iter().enumerate() {
        if let Some(its_own) = ids.get(&layer.sb.layer) {
            return Ok((own, *its_own));
        }
    }
    if chain.base_path.is_some() && chain.base_path == since.base_path {
        return Ok((chain.layers.len(), since.layers.len()));
    }
    let text = format!("it has nothing in common with {}", printable(&since.path().to_string_lossy()));
    Err(Error::new(Kind::Usage, text).at(chain.path()))
}

/// Where a piece of the disk is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    Hole,
    Zero(&'a Path),
    /// The file and the first byte in it.
    Data(&'a Path, u64),
}

/// The piece that begins at `within.start`: from the topmost layer that maps it, or the base. Gives also how many layers
/// are above it.
async fn top_piece<'a, S: Storage>(
    chain: &'a Chain<S>,
    cursors: &mut [Cursor<'a, S>],
    within: Range<VBlock>,
    reach: VBlock,
) -> Result<(Range<VBlock>, Piece<'a>, usize)> {
    let mut rest = within;
    let layers = cursors.len();
    for (depth, cursor) in cursors.iter_mut().enumerate() {
        let (until, place) = cursor.at(rest.start).await?;
        rest.end = rest.end.min(until);
        let path = cursor.layer.reader.path.as_path();
        match place {
            None => {}
            Some(Place::Zero) => return Ok((rest, Piece::Zero(path), depth)),
            Some(Place::Data(p)) => return Ok((rest, Piece::Data(path, p.pos()), depth)),
        }
    }
    let base_end = chain.base.as_ref().map_or(0, |b| blocks_for(b.size)).min(reach.0);
    match &chain.base_path {
        Some(path) if rest.start.0 < base_end => {
            rest.end = rest.end.min(VBlock(base_end));
            let start = rest.start.pos();
            Ok((rest, Piece::Data(path, start), layers))
        }
        _ => Ok((rest, Piece::Hole, layers)),
    }
}

/// A cursor for each layer, and how far the base can be seen through all of them.
fn cursors<'a, S: Storage>(chain: &'a Chain<S>, end: VBlock) -> (Vec<Cursor<'a, S>>, VBlock) {
    let mut reach = end;
    let cursor = |layer: &'a Arc<ChainLayer<S::File>>| {
        // Behind the end of a smaller parent there is nothing, whatever lies below it.
        reach = reach.min(VBlock(blocks_for(layer.size)));
        Cursor::new(layer, reach)
    };
    let cursors = chain.layers.iter().map(cursor).collect();
    (cursors, reach)
}

/// What one layer maps, for questions in ascending order.
struct Cursor<'a, S: Storage> {
    layer: &'a ChainLayer<S::File>,
    root: TreeRoot,
    /// Behind it the layer has no say.
    end: VBlock,
    /// What the journal holds on top of the tree, in order, and how far it has been gone through.
    changes: Vec<Change>,
    passed: usize,
    /// The leaf for the blocks of the range.
    leaf: Option<(Arc<Node>, Range<VBlock>)>,
}

impl<'a, S: Storage> Cursor<'a, S> {
    fn new(layer: &'a ChainLayer<S::File>, end: VBlock) -> Cursor<'a, S> {
        let changes = layer.pending.as_ref().map_or_else(Vec::new, |p| p.frozen_changes(Slot(0)));
        Cursor { layer, root: layer.reader.root(), end, changes, passed: 0, leaf: None }
    }

    /// What the layer says of `block`, and up to which block it says the same.
    async fn at(&mut self, block: VBlock) -> Result<(VBlock, Option<Place>)> {
        if block >= self.end {
            return Ok((VBlock(u64::MAX), None));
        }
        let (until, place) = self.in_journal(block);
        if place.is_some() {
            return Ok((until.min(self.end), place));
        }
        let (tree_until, place) = self.in_tree(block).await?;
        Ok((until.min(tree_until).min(self.end), place))
    }

    fn in_journal(&mut self, block: VBlock) -> (VBlock, Option<Place>) {
        let behind = |c: &Change| c.vblock.plus(c.blocks) <= block;
        while self.changes.get(self.passed).is_some_and(behind) {
            self.passed += 1;
        }
        match self.changes.get(self.passed) {
            None => (self.end, None),
            Some(c) if c.vblock > block => (c.vblock, None),
            Some(c) => (c.vblock.plus(c.blocks), Some(skipped(c.place, block.0 - c.vblock.0))),
        }
    }

    async fn in_tree(&mut self, block: VBlock) -> Result<(VBlock, Option<Place>)> {
        let moved = self.layer.reader.moved();
        if block < moved {
            return Ok((moved, None));
        }
        if self.leaf.as_ref().is_none_or(|(_, range)| !range.contains(&block)) {
            let leaf = self.layer.reader.tree.leaf(&self.root, block).await;
            self.leaf = leaf.map_err(|e| e.at(&self.layer.reader.path))?;
        }
        let Some((node, range)) = &self.leaf else { return Ok((self.end, None)) };
        let Node::Leaf(leaf) = &**node else { unreachable!("level 0 is verified as a leaf") };
        let index = leaf.extents.partition_point(|e| e.vblock.plus(u64::from(e.blocks)) <= block);
        Ok(match leaf.extents.get(index) {
            None => (range.end, None),
            Some(e) if e.vblock > block => (e.vblock, None),
            Some(e) => (e.vblock.plus(u64::from(e.blocks)), Some(skipped(e.place, block.0 - e.vblock.0))),
        })
    }
}

/// The place of a block that is `blocks` behind the one that is at `place`.
fn skipped(place: Place, blocks: u64) -> Place {
    match place {
        Place::Zero => Place::Zero,
        Place::Data(p) => Place::Data(p.plus(blocks)),
    }
}

/// Joins neighbours and hands them on.
struct Joiner<'a, F> {
    size: u64,
    last: Option<(Range<VBlock>, Piece<'a>)>,
    found: F,
}

impl<'a, F: FnMut(MapRun<'a>) -> ControlFlow<()>> Joiner<'a, F> {
    fn push(&mut self, piece: Range<VBlock>, place: Piece<'a>) -> ControlFlow<()> {
        if let Some((range, last)) = &mut self.last
            && range.end == piece.start
            && follows(range, *last, place)
        {
            range.end = piece.end;
            return ControlFlow::Continue(());
        }
        let flow = self.flush();
        self.last = Some((piece, place));
        flow
    }

    fn flush(&mut self) -> ControlFlow<()> {
        let Some((range, place)) = self.last.take() else { return ControlFlow::Continue(()) };
        let start = range.start.pos();
        let length = range.end.pos().min(self.size) - start;
        let (state, layer, offset) = match place {
            Piece::Hole => (RunState::Hole, None, None),
            Piece::Zero(path) => (RunState::Zero, Some(path), None),
            Piece::Data(path, offset) => (RunState::Data, Some(path), Some(offset)),
        };
        (self.found)(MapRun { start, length, state, layer, offset })
    }
}

/// True if `next`, which begins where `range` ends, goes on with what `last` is.
fn follows(range: &Range<VBlock>, last: Piece<'_>, next: Piece<'_>) -> bool {
    match (last, next) {
        (Piece::Data(a, at), Piece::Data(b, then)) => {
            a == b && at + (range.end.0 - range.start.0) * BLOCK == then
        }
        (last, next) => last == next,
    }
}
