//! One chunk of a join: what the source has is copied into free blocks of the target.

use std::ops::Range;
use std::time::Duration;

use super::Work;
use crate::error::{Error, Kind, Result};
use crate::format::{Joining, Place};
use crate::layer::Editor;
use crate::map::{Change, Node};
use crate::rules::{self, Rule};
use crate::storage::{File, IoBuf, IoVecs, Storage, read_exact, write_all};
use crate::units::{BLOCK_SIZE, PBlock, VBlock};

/// Blocks copied with one read: 1 MiB.
const PIECE_BLOCKS: usize = 256;
/// Extents that a chunk may change.
const MAX_CHANGES: usize = 8192;
/// Blocks of the disk that are looked at together.
const WINDOW: u64 = 1 << 16;

/// Which of two neighbours moves into the other one's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The lower one into the upper one: what that one lacks.
    Up,
    /// The upper one into the lower one: all of it.
    Down,
}

/// What goes into the target's tree with its next superblock.
pub(super) struct Chunk {
    pub(super) changes: Vec<Change>,
    /// All of the source in front of this block is in the target then.
    pub(super) next: VBlock,
    /// Blocks of data copied.
    pub(super) copied: u64,
}

/// Copies the part of a chunk.
pub(super) struct Copier<'a, S: Storage> {
    pub(super) storage: &'a S,
    pub(super) work: &'a Work<'a>,
    pub(super) direction: Direction,
    pub(super) source: &'a Editor<S::File>,
    pub(super) target: &'a mut Editor<S::File>,
    pub(super) chunk: Chunk,
}

/// A run of the source on its way.
struct Run<'a> {
    blocks: Range<VBlock>,
    place: Place,
    crcs: &'a [u32],
}

impl<S: Storage> Copier<'_, S> {
    /// Copies what the source has from `from` on, until the chunk is full.
    pub(super) async fn fill(mut self, from: VBlock) -> Result<Chunk> {
        let end = self.end();
        let mut at = from;
        while at < end {
            let leaf = self.source.tree.leaf(&self.source.sb.root, at).await;
            let Some((node, range)) = leaf.map_err(|e| e.at(&self.source.path))? else { break };
            let Node::Leaf(leaf) = &*node else { unreachable!("level 0 is verified as a leaf") };
            for extent in leaf.extents.iter().filter(|e| e.vblock < end) {
                let blocks = extent.vblock..extent.vblock.plus(u64::from(extent.blocks)).min(end);
                let run = Run { blocks, place: extent.place, crcs: leaf.crcs_of(extent) };
                if !self.run(&run, at).await? {
                    return Ok(self.chunk);
                }
            }
            at = range.end;
        }
        if self.direction == Direction::Up && rules::holds(Rule::JoinEnd) {
            // Behind the end of a smaller parent zeros are read, whatever lies below it.
            let blocks = end..VBlock(self.target.sb.virtual_blocks());
            if blocks.start < blocks.end
                && !self.run(&Run { blocks, place: Place::Zero, crcs: &[] }, from).await?
            {
                return Ok(self.chunk);
            }
        }
        self.chunk.next = Joining::ALL;
        Ok(self.chunk)
    }

    /// Where the part of the source ends that can be seen.
    fn end(&self) -> VBlock {
        let (source, target) = (&self.source.sb, &self.target.sb);
        VBlock(match self.direction {
            Direction::Up => source.virtual_blocks().min(target.virtual_blocks()),
            Direction::Down => source.virtual_blocks(),
        })
    }

    /// Copies `run` from `from` on. `false`: the chunk is full.
    async fn run(&mut self, run: &Run<'_>, from: VBlock) -> Result<bool> {
        let mut at = run.blocks.start.max(from);
        while at < run.blocks.end {
            let window = at..at.plus(WINDOW).min(run.blocks.end);
            for gap in self.gaps(window.clone()).await? {
                if !self.gap(run, gap).await? {
                    return Ok(false);
                }
            }
            at = window.end;
        }
        Ok(true)
    }

    /// The blocks of `window` that the source gives.
    async fn gaps(&self, window: Range<VBlock>) -> Result<Vec<Range<VBlock>>> {
        if self.direction == Direction::Down {
            return Ok(vec![window]);
        }
        let (mut gaps, mut next) = (Vec::new(), window.start);
        let found = |vblock: VBlock, blocks: u32, _: Place, _: &[u32]| {
            if next < vblock {
                gaps.push(next..vblock);
            }
            next = vblock.plus(u64::from(blocks));
        };
        let root = self.target.sb.root;
        self.target.tree.extents(&root, window.clone(), found).await.map_err(|e| e.at(&self.target.path))?;
        if next < window.end {
            gaps.push(next..window.end);
        }
        Ok(gaps)
    }

    /// Copies the part `gap` of a run. `false`: the chunk is full, at its `next`.
    async fn gap(&mut self, run: &Run<'_>, gap: Range<VBlock>) -> Result<bool> {
        let mut at = gap.start;
        while at < gap.end {
            let room = self.work.chunk_blocks.saturating_sub(self.chunk.copied);
            if room == 0 || self.chunk.changes.len() >= MAX_CHANGES {
                self.chunk.next = at;
                return Ok(false);
            }
            let blocks = gap.end.0 - at.0;
            let Place::Data(first) = run.place else {
                let change = Change { vblock: at, blocks, place: Place::Zero, crcs: Vec::new() };
                self.chunk.changes.push(change);
                return Ok(true);
            };
            let blocks = blocks.min(room).min(PIECE_BLOCKS as u64);
            let skip = at.0 - run.blocks.start.0;
            let crcs = &run.crcs[skip as usize..(skip + blocks) as usize];
            self.piece(at, first.plus(skip), crcs).await?;
            at = at.plus(blocks);
        }
        Ok(true)
    }

    /// Copies a few blocks, each verified.
    async fn piece(&mut self, vblock: VBlock, from: PBlock, crcs: &[u32]) -> Result<()> {
        (self.work.go_on)(&self.source.path)?;
        let buf = IoBuf::zeroed(crcs.len() * BLOCK_SIZE);
        read_exact(&self.source.file, buf.clone(), from.pos()).await.map_err(|e| self.unreadable(from, e))?;
        let crcs = self.checksums(&buf, from, crcs)?;
        let mut done = 0;
        while done < crcs.len() {
            let run = self.target.allocate((crcs.len() - done) as u64).await?;
            let blocks = run.blocks as usize;
            let part = buf.slice(done * BLOCK_SIZE..(done + blocks) * BLOCK_SIZE);
            let (written, _) = write_all(&self.target.file, IoVecs::one(part), run.first.pos()).await;
            written.map_err(|e| Error::io("write data", e).at(&self.target.path).offset(run.first.pos()))?;
            self.chunk.changes.push(Change {
                vblock: vblock.plus(done as u64),
                blocks: run.blocks,
                place: Place::Data(run.first),
                crcs: crcs[done..done + blocks].to_vec(),
            });
            done += blocks;
        }
        self.chunk.copied += crcs.len() as u64;
        (self.work.moved)(buf.len() as u64);
        if let Some(rate) = self.work.rate {
            self.storage.pause(Duration::from_secs_f64(buf.len() as f64 / rate.max(1) as f64)).await;
        }
        Ok(())
    }

    /// The checksums of the blocks `buf`, which lie at `from`, for the target; `crcs` are those that the source has.
    fn checksums(&self, buf: &IoBuf, from: PBlock, crcs: &[u32]) -> Result<Vec<u32>> {
        let mut found: Vec<u32> =
            (0..crcs.len()).map(|i| buf.slice(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE).crc32(0)).collect();
        let wrong = found.iter().zip(crcs).position(|(found, crc)| found != crc);
        if let Some(i) = wrong.filter(|_| self.source.sb.checksums.protects()) {
            let text = "a data block does not match its checksum";
            return Err(self.damaged(from.plus(i as u64), Error::corrupt(text)));
        }
        if !self.target.sb.checksums.protects() {
            found.fill(0);
        }
        Ok(found)
    }

    fn unreadable(&self, at: PBlock, error: std::io::Error) -> Error {
        let error = match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::corrupt("the file ends within its data"),
            _ => Error::io("read data", error),
        };
        self.damaged(at, error)
    }

    fn damaged(&self, at: PBlock, error: Error) -> Error {
        let hint = format!("cowdisk check --data '{}'", self.source.path.display());
        error.at(&self.source.path).offset(at.pos()).hint(hint)
    }
}

/// Gives the source's blocks in front of `next` back to the host, which the target has now.
pub(super) async fn punch<F: File>(source: &Editor<F>, blocks: Range<VBlock>) -> Result<()> {
    let mut at = blocks.start;
    while at < blocks.end {
        let leaf = source.tree.leaf(&source.sb.root, at).await.map_err(|e| e.at(&source.path))?;
        let Some((node, range)) = leaf else { return Ok(()) };
        let Node::Leaf(leaf) = &*node else { unreachable!("level 0 is verified as a leaf") };
        let mut run: Option<Range<u64>> = None;
        for extent in &leaf.extents {
            let (first, end) = (extent.vblock, extent.vblock.plus(u64::from(extent.blocks)));
            let (from, to) = (first.max(at), end.min(blocks.end));
            let Place::Data(p) = extent.place else { continue };
            if from >= to {
                continue;
            }
            let here = p.0 + (from.0 - first.0)..p.0 + (to.0 - first.0);
            match &mut run {
                Some(run) if run.end == here.start => run.end = here.end,
                run => {
                    if let Some(whole) = run.replace(here) {
                        source.punch(whole.start, whole.end - whole.start).await;
                    }
                }
            }
        }
        if let Some(whole) = run {
            source.punch(whole.start, whole.end - whole.start).await;
        }
        at = range.end;
    }
    Ok(())
}

/// The error for a join that was told to stop.
pub fn stopped(path: &std::path::Path) -> Error {
    Error::new(Kind::InUse, "stopped: what is done stays done, and the same command goes on from here")
        .at(path)
}
