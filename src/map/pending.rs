//! Extents changed since the last checkpoint, all of them in the journal.
//!
//! Two slots: records number into the slot that was current when they were formed, so a checkpoint freezes the map
//! by making the other slot current and moves nothing. Within and across slots the higher number wins, whatever
//! completed first (rule W2). Entries are kept per block, in 64 shards by span; whole spans of zeros stand in a
//! range map beside them.

use std::ops::Range;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::ranges::ZeroRanges;
use super::tree::END;
use crate::format::{Place, Resize};
use crate::rules::{self, Rule};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::units::{PBlock, SPAN_BLOCKS, Seq, Span, VBlock};

const SHARDS: usize = 64;

/// Which half of the map a record belongs to; fixed when its number is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot(pub u8);

impl Slot {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Slot {
        Slot(self.0 ^ 1)
    }
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the map knows of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapped {
    /// Nothing: look further down.
    Absent,
    /// It reads as zeros.
    Zero,
    /// It is in this block of the layer, with this checksum.
    Data {
        /// The block.
        pblock: PBlock,
        /// CRC-32 of its bytes.
        crc: u32,
    },
}

/// A block of the layer that nothing maps any more, and the number of the record that made it so (rule R).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Freed {
    /// First block.
    pub pblock: PBlock,
    /// Number of blocks.
    pub blocks: u32,
    /// The record.
    pub by: Seq,
}

/// A change of the frozen slot, for the tree builder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// First block of the disk.
    pub vblock: VBlock,
    /// Number of blocks.
    pub blocks: u64,
    /// Where they are now.
    pub place: Place,
    /// One checksum per block, of data.
    pub crcs: Vec<u32>,
}

impl Change {
    /// The block behind the last one.
    pub fn end(&self) -> VBlock {
        self.vblock.plus(self.blocks)
    }
}

const ZERO: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    seq: Seq,
    /// [`ZERO`]: no block.
    pblock: u64,
    crc: u32,
    offset: u8,
}

type Spans = FxHashMap<u64, Vec<Entry>>;

#[derive(Debug, Default)]
struct Shard {
    slots: [Spans; 2],
}

/// The map.
#[derive(Debug)]
pub struct PendingMap {
    shards: Box<[Mutex<Shard>]>,
    zeros: Mutex<[ZeroRanges; 2]>,
    /// False while both range maps are empty, so that most lookups need not lock them.
    any_zeros: AtomicBool,
    counts: [AtomicUsize; 2],
    /// The disk's size by the newest record that changes it, and that record.
    sizes: Mutex<[Option<(Seq, u64)>; 2]>,
}

impl Default for PendingMap {
    fn default() -> Self {
        PendingMap {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            zeros: Mutex::default(),
            any_zeros: AtomicBool::new(false),
            counts: Default::default(),
            sizes: Mutex::default(),
        }
    }
}

impl PendingMap {
    fn shard(&self, span: u64) -> &Mutex<Shard> {
        &self.shards[(span % SHARDS as u64) as usize]
    }

    /// Installs a data extent of record `seq`; the extents of one record in their order, of which the later one
    /// counts where they overlap. What it replaces, or the extent itself where a higher number was there first, is
    /// added to `freed`. Blocks that only the tree maps are freed by the checkpoint that takes
    /// them out of the tree.
    pub fn install_data(
        &self,
        slot: Slot,
        seq: Seq,
        first: VBlock,
        pblock: PBlock,
        crcs: &[u32],
        freed: &mut Vec<Freed>,
    ) {
        let mut done = 0;
        while done < crcs.len() {
            let vblock = first.plus(done as u64);
            let room = (SPAN_BLOCKS - u64::from(vblock.in_span())) as usize;
            let count = room.min(crcs.len() - done);
            let entries = crcs[done..done + count].iter().enumerate().map(|(i, &crc)| Entry {
                seq,
                pblock: pblock.0 + (done + i) as u64,
                crc,
                offset: vblock.in_span() + i as u8,
            });
            self.install_in_span(slot, vblock.span().0, entries, freed);
            done += count;
        }
    }

    /// Installs zeros by record `seq`; see [`PendingMap::install_data`].
    pub fn install_zero(&self, slot: Slot, seq: Seq, blocks: Range<VBlock>, freed: &mut Vec<Freed>) {
        let whole = blocks.start.0.div_ceil(SPAN_BLOCKS)..blocks.end.0 / SPAN_BLOCKS;
        if whole.start >= whole.end {
            return self.zero_by_block(slot, seq, blocks, freed);
        }
        {
            let mut zeros = self.zeros.lock();
            zeros[slot.index()].insert(whole.clone(), seq);
            self.any_zeros.store(true, Ordering::SeqCst);
        }
        self.drop_covered(slot, seq, &whole, freed);
        self.zero_by_block(slot, seq, blocks.start..Span(whole.start).first(), freed);
        self.zero_by_block(slot, seq, Span(whole.end).first()..blocks.end, freed);
    }

    /// Installs a resize by record `seq`, behind the extents of that record: the size, and zeros where the record says.
    pub fn install_resize(&self, slot: Slot, seq: Seq, resize: Resize, freed: &mut Vec<Freed>) {
        if rules::holds(Rule::ZeroBehind) {
            self.install_zero(slot, seq, resize.zero_from..END, freed);
        }
        let mut sizes = self.sizes.lock();
        let size = &mut sizes[slot.index()];
        if size.is_none_or(|(by, _)| by < seq) {
            *size = Some((seq, resize.size));
        }
    }

    /// The size of the disk in bytes by the newest record that has changed it.
    pub fn size(&self) -> Option<u64> {
        let sizes = self.sizes.lock();
        // By number; of the halves the newer one counts.
        sizes.iter().flatten().max().map(|&(_, size)| size)
    }

    /// The size of the disk as of the end of `slot`, if it changes there.
    pub fn frozen_size(&self, slot: Slot) -> Option<u64> {
        self.sizes.lock()[slot.index()].map(|(_, size)| size)
    }

    fn zero_by_block(&self, slot: Slot, seq: Seq, blocks: Range<VBlock>, freed: &mut Vec<Freed>) {
        let mut next = blocks.start;
        while next < blocks.end {
            let end = Span(next.span().0 + 1).first().min(blocks.end);
            let entries =
                (next.0..end.0).map(|b| Entry { seq, pblock: ZERO, crc: 0, offset: VBlock(b).in_span() });
            self.install_in_span(slot, next.span().0, entries, freed);
            next = end;
        }
    }

    /// Puts entries of ascending offset into one span.
    fn install_in_span(
        &self,
        slot: Slot,
        span: u64,
        new: impl Iterator<Item = Entry>,
        freed: &mut Vec<Freed>,
    ) {
        let mut shard = self.shard(span).lock();
        // Read under the shard's lock: a zero range that is inserted later finds these entries when it cleans up.
        let zeroed = if self.any_zeros.load(Ordering::SeqCst) {
            self.zeros.lock()[slot.index()].get(span)
        } else {
            None
        };
        let map = &mut shard.slots[slot.index()];
        let entries = map.entry(span).or_default();
        let before = entries.len();
        for entry in new {
            if let Some(by) = zeroed.filter(|&z| z > entry.seq) {
                free(freed, entry.pblock, by);
                continue;
            }
            match entries.binary_search_by_key(&entry.offset, |e| e.offset) {
                Err(at) => entries.insert(at, entry),
                Ok(at) if entries[at].seq > entry.seq && rules::holds(Rule::Numbers) => {
                    free(freed, entry.pblock, entries[at].seq);
                }
                Ok(at) => {
                    free(freed, entries[at].pblock, entry.seq);
                    entries[at] = entry;
                }
            }
        }
        self.counts[slot.index()].fetch_add(entries.len() - before, Ordering::Relaxed);
        if entries.is_empty() {
            map.remove(&span);
        }
    }

    /// Removes entries that a zero range of a higher number covers, or of the same number: an extent in front of it
    /// in the same record.
    fn drop_covered(&self, slot: Slot, seq: Seq, spans: &Range<u64>, freed: &mut Vec<Freed>) {
        let few = spans.end - spans.start < SHARDS as u64;
        let walk = if few { spans.clone() } else { 0..SHARDS as u64 };
        for at in walk {
            let mut shard = self.shard(at).lock();
            let map = &mut shard.slots[slot.index()];
            let mut hit: SmallVec<[u64; 8]> = SmallVec::new();
            if few {
                hit.push(at);
            } else {
                hit.extend(map.keys().copied().filter(|s| spans.contains(s)));
                hit.sort_unstable();
            }
            for span in hit {
                let Some(entries) = map.get_mut(&span) else { continue };
                let before = entries.len();
                entries.retain(|e| {
                    if e.seq <= seq {
                        free(freed, e.pblock, seq);
                    }
                    e.seq > seq
                });
                self.counts[slot.index()].fetch_sub(before - entries.len(), Ordering::Relaxed);
                if entries.is_empty() {
                    map.remove(&span);
                }
            }
        }
    }

    /// Looks up `out.len()` blocks from `first` on, all in one span. Gives `true` if all were found.
    pub fn lookup(&self, first: VBlock, out: &mut [Mapped]) -> bool {
        debug_assert!(u64::from(first.in_span()) + out.len() as u64 <= SPAN_BLOCKS);
        let span = first.span().0;
        let mut best: SmallVec<[Option<Entry>; 32]> = SmallVec::from_elem(None, out.len());
        let shard = self.shard(span).lock();
        for map in &shard.slots {
            let Some(entries) = map.get(&span) else { continue };
            let start = entries.partition_point(|e| e.offset < first.in_span());
            for entry in &entries[start..] {
                let Some(cell) = best.get_mut(usize::from(entry.offset - first.in_span())) else { break };
                if cell.is_none_or(|c| c.seq < entry.seq) {
                    *cell = Some(*entry);
                }
            }
        }
        // Under the shard's lock, so that entries removed for a range are not missed together with the range.
        let zeroed = if self.any_zeros.load(Ordering::SeqCst) {
            let zeros = self.zeros.lock();
            zeros[0].get(span).max(zeros[1].get(span))
        } else {
            None
        };
        drop(shard);
        let mut all = true;
        for (cell, out) in best.iter().zip(out.iter_mut()) {
            *out = match (cell, zeroed) {
                // Of an equal number the entry came later in the record: the range removes what it finds.
                (Some(e), z) if z.is_none_or(|z| z <= e.seq) && e.pblock != ZERO => {
                    Mapped::Data { pblock: PBlock(e.pblock), crc: e.crc }
                }
                (None, None) => {
                    all = false;
                    Mapped::Absent
                }
                _ => Mapped::Zero,
            };
        }
        all
    }

    /// Entries of both slots, a measure of the memory in use.
    pub fn entries(&self) -> usize {
        self.counts[0].load(Ordering::Relaxed) + self.counts[1].load(Ordering::Relaxed)
    }

    /// True if `slot` has nothing in it.
    pub fn slot_is_empty(&self, slot: Slot) -> bool {
        self.counts[slot.index()].load(Ordering::Relaxed) == 0
            && self.zeros.lock()[slot.index()].is_empty()
            && self.sizes.lock()[slot.index()].is_none()
    }

    /// The spans that `slot` changes, in order, and its whole-span zero ranges.
    pub fn frozen_spans(&self, slot: Slot) -> (Vec<Span>, Vec<Range<Span>>) {
        let mut spans = Vec::new();
        for shard in &self.shards {
            spans.extend(shard.lock().slots[slot.index()].keys().map(|&s| Span(s)));
        }
        spans.sort_unstable();
        let ranges =
            self.zeros.lock()[slot.index()].iter().map(|(r, _)| Span(r.start)..Span(r.end)).collect();
        (spans, ranges)
    }

    /// The changes of `slot`, in order, without overlap. It must be settled: nothing installs into it any more.
    pub fn frozen_changes(&self, slot: Slot) -> Vec<Change> {
        let (spans, zeros) = self.frozen_spans(slot);
        let mut changes: Vec<Change> = Vec::with_capacity(spans.len() + zeros.len());
        let mut zeros = zeros.into_iter().map(|r| r.start.first()..r.end.first()).peekable();
        for span in spans {
            while let Some(range) = zeros.next_if(|r| r.end <= span.first()) {
                push_zero(&mut changes, range);
            }
            for entry in self.span_entries(slot, span) {
                let vblock = span.first().plus(u64::from(entry.offset));
                if let Some(range) = zeros.peek_mut().filter(|r| r.start <= vblock) {
                    push_zero(&mut changes, range.start..vblock);
                    range.start = vblock.plus(1);
                }
                push_entry(&mut changes, vblock, entry);
            }
        }
        zeros.for_each(|range| push_zero(&mut changes, range));
        changes
    }

    fn span_entries(&self, slot: Slot, span: Span) -> Vec<Entry> {
        self.shard(span.0).lock().slots[slot.index()].get(&span.0).cloned().unwrap_or_default()
    }

    /// Empties `slot`: its changes are in the tree.
    pub fn clear(&self, slot: Slot) {
        {
            // The ranges first: a lookup meanwhile finds an entry or asks the tree, both right. Without its entry it
            // would find a range of a lower number.
            let mut zeros = self.zeros.lock();
            zeros[slot.index()].clear();
            let any = !zeros.iter().all(ZeroRanges::is_empty);
            self.any_zeros.store(any, Ordering::SeqCst);
        }
        for shard in &self.shards {
            shard.lock().slots[slot.index()] = Spans::default();
        }
        self.counts[slot.index()].store(0, Ordering::Relaxed);
        self.sizes.lock()[slot.index()] = None;
    }
}

fn free(freed: &mut Vec<Freed>, pblock: u64, by: Seq) {
    if pblock == ZERO {
        return;
    }
    if let Some(last) = freed.last_mut()
        && last.by == by
        && last.pblock.0 + u64::from(last.blocks) == pblock
    {
        last.blocks += 1;
        return;
    }
    freed.push(Freed { pblock: PBlock(pblock), blocks: 1, by });
}

fn push_zero(changes: &mut Vec<Change>, range: Range<VBlock>) {
    if range.start >= range.end {
        return;
    }
    if let Some(last) = changes.last_mut()
        && last.place == Place::Zero
        && last.vblock.plus(last.blocks) == range.start
    {
        last.blocks += range.end.0 - range.start.0;
        return;
    }
    changes.push(Change {
        vblock: range.start,
        blocks: range.end.0 - range.start.0,
        place: Place::Zero,
        crcs: Vec::new(),
    });
}

fn push_entry(changes: &mut Vec<Change>, vblock: VBlock, entry: Entry) {
    if entry.pblock == ZERO {
        return push_zero(changes, vblock..vblock.plus(1));
    }
    if let Some(last) = changes.last_mut()
        && let Place::Data(p) = last.place
        && last.vblock.plus(last.blocks) == vblock
        && p.plus(last.blocks).0 == entry.pblock
    {
        last.blocks += 1;
        last.crcs.push(entry.crc);
        return;
    }
    changes.push(Change {
        vblock,
        blocks: 1,
        place: Place::Data(PBlock(entry.pblock)),
        crcs: vec![entry.crc],
    });
}
