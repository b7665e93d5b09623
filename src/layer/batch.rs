//! Writing a batch (rule W): whatever a queue has ready becomes one record, its data one vectored write per run of
//! free blocks, its journal block written in parallel.

use std::cell::RefCell;

use smallvec::SmallVec;

use super::checkpoint::Flying;
use super::head::Head;
use crate::error::{Error, Kind, Result};
use crate::format::{Place, RECORD_CRC_BYTES, RECORD_EXTENT_BYTES, RecordExtent, Resize};
use crate::journal::{Content, Formed, Lanes, NotFormed};
use crate::limits::{MAX_BATCH_BLOCKS, MAX_BATCH_REQUESTS, MAX_RECORD_BYTES};
use crate::map::Freed;
use crate::rules::{self, Rule};
use crate::space::{BlockRun, Reserve};
use crate::storage::{File, IoBuf, IoVecs, Storage, finish_write};
use crate::units::{BLOCK_SIZE, PBlock, Seq, VBlock};

/// Blocks reserved at a time for one queue.
const QUEUE_RUN: u64 = 256;

/// Blocks of one record when every block needs an extent of its own.
const PART_BLOCKS: usize = 100;

/// One change of a batch.
#[derive(Clone, Debug)]
pub enum WriteItem {
    /// New content: whole blocks.
    Data(VBlock, IoBuf),
    /// Zeros.
    Zero(VBlock, u32),
    /// Another size of the disk.
    Resize(Resize),
    /// No change: the record tells what is durable (R).
    Evidence,
}

impl WriteItem {
    /// Blocks of data to be written.
    pub fn data_blocks(&self) -> usize {
        match self {
            WriteItem::Data(_, buf) => buf.len() / BLOCK_SIZE,
            WriteItem::Zero(..) | WriteItem::Resize(_) | WriteItem::Evidence => 0,
        }
    }

    /// A part of the data, in blocks; anything else is one part.
    fn part(&self, blocks: std::ops::Range<usize>) -> WriteItem {
        match self {
            WriteItem::Data(vblock, buf) => WriteItem::Data(
                vblock.plus(blocks.start as u64),
                buf.slice(blocks.start * BLOCK_SIZE..blocks.end * BLOCK_SIZE),
            ),
            whole => whole.clone(),
        }
    }
}

/// What a queue owns of the layer: its open journal blocks and its reserved run. Stays on its thread.
#[derive(Debug, Default)]
pub struct QueueSpace {
    lanes: RefCell<Lanes>,
    run: RefCell<Option<BlockRun>>,
}

/// A batch being built and written; reused, so that a steady state allocates nothing.
#[derive(Debug, Default)]
pub struct Batch {
    items: Vec<WriteItem>,
    blocks: usize,
    runs: Vec<BlockRun>,
    extents: Vec<RecordExtent>,
    crcs: Vec<u32>,
    resize: Option<Resize>,
    writes: Vec<(PBlock, IoVecs)>,
    spare: Vec<IoVecs>,
    freed: Vec<Freed>,
}

impl Batch {
    /// Adds `item` if the batch has room for it. The first one always fits. A resize is the last one of its batch.
    pub fn push(&mut self, item: WriteItem) -> std::result::Result<(), WriteItem> {
        let blocks = self.blocks + item.data_blocks();
        // Each item may be cut by the end of a reserved run, and each run adds an extent at most.
        let record = (self.items.len() + 1 + blocks / 8) * RECORD_EXTENT_BYTES + blocks * RECORD_CRC_BYTES;
        let full =
            blocks > MAX_BATCH_BLOCKS || record > MAX_RECORD_BYTES || self.items.len() >= MAX_BATCH_REQUESTS;
        if full && !self.items.is_empty() {
            return Err(item);
        }
        self.blocks = blocks;
        self.items.push(item);
        Ok(())
    }

    /// True without items.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes of extents and checksums at most: each item and each run may begin an extent.
    fn record_bytes(&self) -> usize {
        (self.items.len() + self.runs.len()) * RECORD_EXTENT_BYTES + self.blocks * RECORD_CRC_BYTES
    }

    fn clear(&mut self) {
        self.items.clear();
        self.blocks = 0;
        self.clear_places();
    }

    fn clear_places(&mut self) {
        self.runs.clear();
        self.extents.clear();
        self.crcs.clear();
        self.resize = None;
        self.freed.clear();
    }

    /// Gives every data block a place in the reserved runs, and computes the checksums; without `checksums` they are 0.
    fn place(&mut self, checksums: bool) {
        let Batch { items, runs, extents, crcs, resize, writes, spare, .. } = self;
        let mut runs = runs.iter().copied();
        let mut run = BlockRun { first: PBlock(0), blocks: 0 };
        for item in items {
            let (mut vblock, buf) = match item {
                WriteItem::Zero(vblock, blocks) => {
                    extents.push(RecordExtent { vblock: *vblock, place: Place::Zero, blocks: *blocks });
                    continue;
                }
                WriteItem::Resize(to) => {
                    *resize = Some(*to);
                    continue;
                }
                WriteItem::Evidence => continue,
                WriteItem::Data(vblock, buf) => (*vblock, buf),
            };
            let mut at = 0;
            // An entry of a buffer table goes into no operation with others.
            let alone = |(_, vecs): &(PBlock, IoVecs)| vecs.entry() != buf.entry() || buf.entry().is_some();
            let mut begin = writes.last().is_some_and(alone);
            while at < buf.len() {
                let over = run.blocks == 0;
                if over {
                    run = runs.next().expect("as many blocks were reserved as are written");
                }
                if std::mem::take(&mut begin) || over {
                    let mut vecs = spare.pop().unwrap_or_default();
                    vecs.clear();
                    writes.push((run.first, vecs));
                }
                let blocks = run.blocks.min(((buf.len() - at) / BLOCK_SIZE) as u64);
                let bytes = blocks as usize * BLOCK_SIZE;
                extents.push(RecordExtent { vblock, place: Place::Data(run.first), blocks: blocks as u32 });
                crcs.extend((0..blocks as usize).map(|i| match checksums {
                    true => buf.slice(at + i * BLOCK_SIZE..at + (i + 1) * BLOCK_SIZE).crc32(0),
                    false => 0,
                }));
                if let Some((_, vecs)) = writes.last_mut() {
                    vecs.push(buf.slice(at..at + bytes));
                }
                run = BlockRun { first: run.first.plus(blocks), blocks: run.blocks - blocks };
                vblock = vblock.plus(blocks);
                at += bytes;
            }
        }
    }
}

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// It is written and visible, under this number.
    At(Seq),
    /// A snapshot has put another head in this one's place. The batch is to be written there, whole: what this head may
    /// have of it was not acknowledged.
    Moved,
}

/// Writes of a batch without an allocation; one for each run of blocks, or for each request whose data nobody sees.
const WRITES: usize = 8;

/// The writes of a batch's data.
type FlyingData<S> = SmallVec<[Flying<S>; WRITES]>;

/// Waits for all of them.
async fn finish_data<F: File>(
    file: &F,
    batch: &mut Batch,
    flying: SmallVec<[(PBlock, usize, F::Op); WRITES]>,
) -> Result<()> {
    let mut result = Ok(());
    for (pblock, len, op) in flying {
        let (written, mut vecs) = finish_write(file, op, len, pblock.pos()).await;
        // The requests' buffers are theirs again from here on.
        vecs.clear();
        batch.spare.push(vecs);
        if let Err(e) = written {
            result = Err(Error::io("write data", e).offset(pblock.pos()));
        }
    }
    result
}

/// What became of a record.
enum Recorded {
    At(Seq),
    Moved,
    /// Its free runs are too many for one record; nothing was done.
    TooManyRuns,
}

impl<S: Storage> Head<S> {
    /// Writes the batch and makes it visible, and empties it unless it has to be written elsewhere. The caller holds the
    /// locks of W3 over the call.
    ///
    /// # Errors
    /// `NoSpace`, with nothing changed; `Io` if the data could not be written (the blocks then read as before, or, after
    /// a crash, perhaps as written); `Poisoned`.
    pub async fn write(&self, queue: &QueueSpace, batch: &mut Batch) -> Result<Written> {
        let written = match self.write_record(queue, batch).await {
            Ok(Recorded::At(seq)) => Ok(Written::At(seq)),
            Ok(Recorded::Moved) => Ok(Written::Moved),
            Ok(Recorded::TooManyRuns) => self.write_in_parts(queue, &batch.items).await,
            Err(e) => Err(e),
        };
        if let Ok(Written::Moved) = written {
            batch.clear_places();
        } else {
            batch.clear();
        }
        written
    }

    /// For free space in crumbs: one record for each item, or for each [`PART_BLOCKS`] of it.
    async fn write_in_parts(&self, queue: &QueueSpace, items: &[WriteItem]) -> Result<Written> {
        let mut newest = self.journal.acked();
        for item in items {
            let blocks = item.data_blocks().max(1);
            for at in (0..blocks).step_by(PART_BLOCKS) {
                match self.write_part(queue, item.part(at..(at + PART_BLOCKS).min(blocks))).await? {
                    Recorded::At(seq) => newest = newest.max(seq),
                    Recorded::Moved => return Ok(Written::Moved),
                    Recorded::TooManyRuns => unreachable!("parts always fit a record"),
                }
            }
        }
        Ok(Written::At(newest))
    }

    async fn write_part(&self, queue: &QueueSpace, item: WriteItem) -> Result<Recorded> {
        let mut batch = Batch::default();
        batch.push(item).expect("the first item always fits");
        self.write_record(queue, &mut batch).await
    }

    async fn write_record(&self, queue: &QueueSpace, batch: &mut Batch) -> Result<Recorded> {
        if let Err(e) = self.reserve(queue, batch).await {
            #[cfg(feature = "sim")]
            if !rules::holds(Rule::Reserve) {
                self.journal.waste_number();
            }
            return if self.journal.has_moved() { Ok(Recorded::Moved) } else { Err(e) };
        }
        if batch.record_bytes() > MAX_RECORD_BYTES {
            batch.runs.drain(..).for_each(|run| self.space.give_back(run));
            return Ok(Recorded::TooManyRuns);
        }
        batch.place(self.reader.checksums);
        if !self.reader.checksums && rules::holds(Rule::DataFirst) {
            // Nothing else would tell after a crash whether the data of the record is there. If it could not be written,
            // its blocks rest until the next open, since the write may still arrive.
            let flying = self.start_data(batch);
            finish_data(&self.reader.file, batch, flying).await.map_err(|e| e.at(self.path()))?;
        }
        let vecs = batch.spare.pop().unwrap_or_default();
        let formed = match self.form(queue, batch, vecs).await {
            Ok(Some(formed)) => formed,
            unformed => {
                // Nothing was written: W1 gives a number only when everything else is at hand.
                batch.runs.drain(..).for_each(|run| self.space.give_back(run));
                batch.spare.extend(batch.writes.drain(..).map(|(_, vecs)| vecs));
                return unformed.map(|_| Recorded::Moved);
            }
        };
        let data = self.move_bytes(queue, batch, formed).await;
        let (seq, slot) = data.0;
        #[cfg(feature = "sim")]
        let slot = if rules::holds(Rule::FreezeByNumber) { slot } else { self.journal.slot_now() };
        if let Err(e) = data.1 {
            return Err(e.at(self.path()));
        }
        let mut crcs = &batch.crcs[..];
        for extent in &batch.extents {
            match extent.place {
                Place::Data(pblock) => {
                    let (these, rest) = crcs.split_at(extent.blocks as usize);
                    self.pending.install_data(slot, seq, extent.vblock, pblock, these, &mut batch.freed);
                    crcs = rest;
                }
                Place::Zero => {
                    let blocks = extent.vblock..extent.vblock.plus(u64::from(extent.blocks));
                    self.pending.install_zero(slot, seq, blocks, &mut batch.freed);
                }
            }
        }
        if let Some(resize) = batch.resize {
            self.pending.install_resize(slot, seq, resize, &mut batch.freed);
        }
        self.space.free_later(&batch.freed);
        self.journal.settle(seq);
        Ok(Recorded::At(seq))
    }

    /// W1: the blocks for all data, out of the queue's run and new ones.
    async fn reserve(&self, queue: &QueueSpace, batch: &mut Batch) -> Result<()> {
        let mut need = batch.blocks as u64;
        while need > 0 {
            let own = queue.run.borrow_mut().take();
            let run = match own {
                Some(run) => run,
                None => match self.reserve_run(need.max(QUEUE_RUN)).await {
                    Ok(run) => run,
                    Err(e) => {
                        batch.runs.drain(..).for_each(|run| self.space.give_back(run));
                        return Err(e);
                    }
                },
            };
            let take = run.blocks.min(need);
            batch.runs.push(BlockRun { first: run.first, blocks: take });
            need -= take;
            if take < run.blocks {
                let rest = BlockRun { first: run.first.plus(take), blocks: run.blocks - take };
                // Another batch of this queue may have fetched a run meanwhile.
                if let Some(second) = queue.run.borrow_mut().replace(rest) {
                    self.space.give_back(second);
                }
            }
        }
        Ok(())
    }

    /// A run of free blocks. Before ENOSPC is the answer, limbo is drained: a checkpoint lets everything go that no
    /// reader holds.
    async fn reserve_run(&self, want: u64) -> Result<BlockRun> {
        self.update_node_reserve();
        let mut drained = 0;
        loop {
            if let Reserve::Run(run) = self.space.reserve(want) {
                return Ok(run);
            }
            self.journal.check_alive().map_err(|e| e.at(self.path()))?;
            let full = self.space.growth_ended().await;
            if !full {
                continue;
            }
            if let Reserve::Run(run) = self.space.reserve(want) {
                return Ok(run);
            }
            if drained == 2 {
                return Err(Error::new(Kind::NoSpace, "the host has no space left").at(self.path()));
            }
            drained += 1;
            self.drain_limbo().await?;
        }
    }

    /// Puts the record into the journal, waiting for room. `None`: it belongs to another head.
    async fn form(&self, queue: &QueueSpace, batch: &Batch, mut vecs: IoVecs) -> Result<Option<Formed>> {
        let content = Content { extents: &batch.extents, crcs: &batch.crcs, resize: batch.resize };
        loop {
            match self.journal.form(&mut queue.lanes.borrow_mut(), content, vecs) {
                Ok(formed) => return Ok(Some(formed)),
                Err((NotFormed::Moved, _)) => return Ok(None),
                Err((NotFormed::Poisoned, _)) => {
                    self.journal.check_alive().map_err(|e| e.at(self.path()))?;
                    return Err(Error::new(Kind::Poisoned, "no more writes").at(self.path()));
                }
                Err((NotFormed::RingFull | NotFormed::TooMany | NotFormed::Held, back)) => vecs = back,
            }
            self.journal.room_for(content.is_unchanging()).await?;
        }
    }

    fn start_data(&self, batch: &mut Batch) -> FlyingData<S> {
        let file = &self.reader.file;
        let start = |(pblock, vecs): (PBlock, IoVecs)| {
            let len = vecs.len();
            (pblock, len, file.write(vecs, pblock.pos()))
        };
        batch.writes.drain(..).map(start).collect()
    }

    /// Data, unless it is written already, and record, in parallel, without an order between them.
    async fn move_bytes(
        &self,
        queue: &QueueSpace,
        batch: &mut Batch,
        mut formed: Formed,
    ) -> ((Seq, crate::map::Slot), Result<()>) {
        let file = &self.reader.file;
        let flying = self.start_data(batch);
        let address = formed.address.pos();
        let journal = file.write(std::mem::take(&mut formed.vecs), address);
        let mut result = finish_data(file, batch, flying).await;
        let (recorded, mut vecs) = finish_write(file, journal, BLOCK_SIZE, address).await;
        vecs.clear();
        batch.spare.push(vecs);
        if let Err(e) = recorded
            && rules::holds(Rule::JournalPoison)
        {
            self.journal.poison(&format!("writing the journal failed: {e}"));
            result = Err(Error::io("write journal", e).offset(address));
        }
        self.journal.written(&mut queue.lanes.borrow_mut(), &formed);
        if result.is_err() {
            // W4: the blocks rest until the next open, since the write may still arrive.
            if rules::holds(Rule::Unsettled) {
                self.journal.fail(formed.seq);
            } else {
                self.journal.settle(formed.seq);
            }
        }
        ((formed.seq, formed.slot), result)
    }

    /// Gives back what the queue had reserved: a clean close.
    pub fn release_queue(&self, queue: &QueueSpace) {
        if let Some(run) = queue.run.borrow_mut().take() {
            self.space.give_back(run);
        }
    }
}
