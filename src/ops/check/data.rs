//! Verifying data: blocks are gathered, sorted by their place in the file, and read in large pieces, several at a time.

use std::collections::VecDeque;
use std::path::Path;

use super::findings::{Code, Finding, Findings};
use crate::map::{Mapped, PendingMap};
use crate::storage::{File, IoBuf, finish_read, read_up_to};
use crate::units::{BLOCK_SIZE, PBlock, SPAN_BLOCKS, VBlock};

/// Blocks gathered before they are read: 16 MiB of checksums.
const MAX_BLOCKS: usize = 4 << 20;
/// Runs gathered before they are read.
const MAX_RUNS: usize = 512 << 10;
/// Blocks in one read: 1 MiB.
const READ_BLOCKS: usize = 256;
/// Reads in flight.
const READS: usize = 8;

/// Consecutive blocks of disk and file.
#[derive(Clone, Copy, Debug)]
struct Run {
    pblock: PBlock,
    vblock: VBlock,
    blocks: u32,
    /// Index of the first checksum.
    crcs: u32,
}

/// A block that is to be verified.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Block {
    pblock: PBlock,
    vblock: VBlock,
    crc: u32,
}

/// Blocks that are wrong in the same way, neighbours on disk and in the file.
#[derive(Clone, Debug)]
struct Bad {
    code: Code,
    first: Block,
    blocks: u64,
    message: String,
}

/// The check of a layer's data.
pub(super) struct DataCheck<'a, F> {
    file: F,
    path: &'a Path,
    runs: Vec<Run>,
    crcs: Vec<u32>,
    /// Buffers without a read in flight.
    idle: Vec<IoBuf>,
    bad: Option<Bad>,
    /// The map has checksums; otherwise whether blocks can be read is all that can be told.
    checksums: bool,
    verified: u64,
    unverified: u64,
}

/// A read in flight.
struct Flight<F: File> {
    op: F::Op,
    buf: IoBuf,
    blocks: Vec<Block>,
}

impl<'a, F: File> DataCheck<'a, F> {
    pub(super) fn new(file: F, path: &'a Path, checksums: bool) -> DataCheck<'a, F> {
        let (runs, crcs, idle) = (Vec::new(), Vec::new(), Vec::new());
        DataCheck { file, path, runs, crcs, idle, bad: None, checksums, verified: 0, unverified: 0 }
    }

    /// Adds blocks that follow each other on disk and in the file.
    pub(super) async fn push(
        &mut self,
        vblock: VBlock,
        pblock: PBlock,
        crcs: &[u32],
        findings: &mut Findings,
    ) {
        if self.crcs.len() + crcs.len() > MAX_BLOCKS || self.runs.len() >= MAX_RUNS {
            self.verify(findings).await;
        }
        let run = Run { pblock, vblock, blocks: crcs.len() as u32, crcs: self.crcs.len() as u32 };
        self.runs.push(run);
        self.crcs.extend_from_slice(crcs);
    }

    /// Adds those of the blocks that the journal does not replace: the others may have been reused (rule R).
    pub(super) async fn push_uncovered(
        &mut self,
        vblock: VBlock,
        pblock: PBlock,
        crcs: &[u32],
        pending: &PendingMap,
        findings: &mut Findings,
    ) {
        let mut mapped = [Mapped::Absent; SPAN_BLOCKS as usize];
        let mut done = 0;
        while done < crcs.len() {
            let first = vblock.plus(done as u64);
            let count = (SPAN_BLOCKS as usize - usize::from(first.in_span())).min(crcs.len() - done);
            let mapped = &mut mapped[..count];
            pending.lookup(first, mapped);
            for (i, _) in mapped.iter().enumerate().filter(|(_, m)| **m == Mapped::Absent) {
                let at = (done + i) as u64;
                self.push(vblock.plus(at), pblock.plus(at), &crcs[done + i..=done + i], findings).await;
            }
            done += count;
        }
    }

    /// Reads what is left; gives the number of blocks read and verified, and of those read that have no checksum.
    pub(super) async fn finish(mut self, findings: &mut Findings) -> (u64, u64) {
        self.verify(findings).await;
        (self.verified, self.unverified)
    }

    /// Reads and verifies everything gathered.
    async fn verify(&mut self, findings: &mut Findings) {
        let (mut runs, mut crcs) = (std::mem::take(&mut self.runs), std::mem::take(&mut self.crcs));
        runs.sort_unstable_by_key(|r| r.pblock);
        let blocks = runs.iter().flat_map(|run| {
            let crcs = &crcs[run.crcs as usize..][..run.blocks as usize];
            crcs.iter().zip(0..).map(|(&crc, i)| Block {
                pblock: run.pblock.plus(i),
                vblock: run.vblock.plus(i),
                crc,
            })
        });
        let mut flying: VecDeque<Flight<F>> = VecDeque::with_capacity(READS);
        let mut piece: Vec<Block> = Vec::with_capacity(READ_BLOCKS);
        for block in blocks {
            let joins = piece.last().is_none_or(|last| last.pblock.plus(1) == block.pblock);
            if !joins || piece.len() == READ_BLOCKS {
                let full = std::mem::replace(&mut piece, Vec::with_capacity(READ_BLOCKS));
                self.start(full, &mut flying, findings).await;
            }
            piece.push(block);
        }
        if !piece.is_empty() {
            self.start(piece, &mut flying, findings).await;
        }
        while let Some(flight) = flying.pop_front() {
            self.end(flight, findings).await;
        }
        self.report(findings);
        runs.clear();
        crcs.clear();
        (self.runs, self.crcs) = (runs, crcs);
    }

    async fn start(&mut self, blocks: Vec<Block>, flying: &mut VecDeque<Flight<F>>, findings: &mut Findings) {
        if flying.len() == READS
            && let Some(oldest) = flying.pop_front()
        {
            self.end(oldest, findings).await;
        }
        let buf = self.idle.pop().unwrap_or_else(|| IoBuf::zeroed(READ_BLOCKS * BLOCK_SIZE));
        let part = buf.slice(0..blocks.len() * BLOCK_SIZE);
        let op = self.file.read(part, blocks[0].pblock.pos());
        flying.push_back(Flight { op, buf, blocks });
    }

    /// Waits for a read and verifies its blocks.
    async fn end(&mut self, flight: Flight<F>, findings: &mut Findings) {
        let Flight { op, buf, blocks } = flight;
        let part = buf.slice(0..blocks.len() * BLOCK_SIZE);
        let read = finish_read(&self.file, op, part, blocks[0].pblock.pos()).await;
        match read {
            Ok(n) if n == blocks.len() * BLOCK_SIZE => {
                for (i, block) in blocks.iter().enumerate() {
                    let sum = buf.slice(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE).crc32(0);
                    self.compare(*block, sum, findings);
                }
            }
            _ => self.one_by_one(&blocks, &buf, findings).await,
        }
        self.idle.push(buf);
    }

    /// A read failed: which of its blocks is it?
    async fn one_by_one(&mut self, blocks: &[Block], buf: &IoBuf, findings: &mut Findings) {
        let part = buf.slice(0..BLOCK_SIZE);
        for block in blocks {
            match read_up_to(&self.file, part.clone(), block.pblock.pos()).await {
                Ok(BLOCK_SIZE) => self.compare(*block, part.crc32(0), findings),
                Ok(_) => {
                    self.wrong(Code::FileShort, *block, "the file ends within its data".into(), findings)
                }
                Err(e) => self.wrong(Code::DataUnreadable, *block, format!("read data: {e}"), findings),
            }
        }
    }

    fn compare(&mut self, block: Block, sum: u32, findings: &mut Findings) {
        if !self.checksums {
            self.unverified += 1;
            return;
        }
        self.verified += 1;
        if sum != block.crc {
            let text = format!("data block checksum is {sum:08x}, the map says {:08x}", block.crc);
            self.wrong(Code::DataChecksum, block, text, findings);
        }
    }

    /// Notes a wrong block; neighbours become one finding.
    fn wrong(&mut self, code: Code, block: Block, message: String, findings: &mut Findings) {
        if let Some(bad) = &mut self.bad
            && bad.code == code
            && bad.first.pblock.plus(bad.blocks) == block.pblock
            && bad.first.vblock.plus(bad.blocks) == block.vblock
        {
            bad.blocks += 1;
            return;
        }
        self.report(findings);
        self.bad = Some(Bad { code, first: block, blocks: 1, message });
    }

    fn report(&mut self, findings: &mut Findings) {
        let Some(Bad { code, first, blocks, message }) = self.bad.take() else { return };
        let message = if blocks > 1 { format!("{message} (first of {blocks} blocks)") } else { message };
        let range = first.vblock..first.vblock.plus(blocks);
        findings.add(Finding::new(code, self.path, message).block(first.pblock).affects(range));
    }
}
