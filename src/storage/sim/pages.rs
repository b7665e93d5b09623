//! The content of a file at one moment: a sparse map of 4 KiB pages that is cheap to copy.
//!
//! A copy shares everything. A change copies the chunk table, one chunk of 64 slots and, for part of a page,
//! the page. Holes take no memory, so a large file that nobody wrote costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::page::{Page, mix};

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;
/// Bytes of a sector: what a disk writes whole.
pub(super) const SECTOR: u64 = 512;
/// All sectors of a page.
pub(super) const WHOLE: u8 = 0xff;
/// Pages of a chunk.
const CHUNK: u64 = 64;

/// A page of a file.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    /// No space on the host; reads zeros.
    Hole,
    /// Space, never written; reads zeros.
    Reserved,
    /// Bytes.
    Data(Arc<Page>),
}

/// A piece of what a read gives.
pub(super) enum Part<'a> {
    /// Bytes of a page.
    Bytes(&'a [u8]),
    /// So many zeros.
    Zeros(usize),
}

#[derive(Clone, Debug)]
struct Chunk {
    slots: [Slot; CHUNK as usize],
    /// Slots that are not holes.
    used: u64,
    /// A number that follows from the bytes alone, once it has been asked for.
    print: OnceLock<u64>,
}

impl Chunk {
    const fn holes() -> Chunk {
        Chunk { slots: [const { Slot::Hole }; CHUNK as usize], used: 0, print: OnceLock::new() }
    }
    const fn reserved() -> Chunk {
        Chunk { slots: [const { Slot::Reserved }; CHUNK as usize], used: CHUNK, print: OnceLock::new() }
    }
}

/// All bytes of a file. No data lies past `len`, except while a crash image is being put together.
#[derive(Clone, Default, Debug)]
pub(super) struct Content {
    /// Size in bytes.
    pub(super) len: u64,
    /// Pages that are not holes.
    allocated: u64,
    chunks: Arc<BTreeMap<u64, Arc<Chunk>>>,
    /// Sectors that cannot be read until they are rewritten.
    bad: Arc<BTreeSet<u64>>,
}

/// `n` as an index: positions inside of a page or chunk.
#[expect(clippy::cast_possible_truncation, reason = "the callers bound it by a page or a buffer")]
pub(super) const fn at(n: u64) -> usize {
    n as usize
}

/// The byte ranges of the sectors in `mask`.
pub(super) fn sectors(mask: u8) -> impl Iterator<Item = Range<usize>> {
    let size = at(SECTOR);
    (0..8).filter(move |bit| mask & (1 << bit) != 0).map(move |bit| bit * size..(bit + 1) * size)
}

impl Chunk {
    /// Pages of zeros, reserved ones and holes read alike and count alike.
    fn print(&self) -> u64 {
        *self.print.get_or_init(|| {
            let prints = self.slots.iter().map(|slot| match slot {
                Slot::Data(page) => page.print(),
                Slot::Hole | Slot::Reserved => 0,
            });
            let numbered = (0..).zip(prints).filter(|(_, print)| *print != 0);
            numbered.fold(0, |sum, (number, print)| mix(mix(sum, number), print))
        })
    }
}

impl Content {
    /// A number that follows from what a reader can see: size, bytes, unreadable sectors.
    pub(super) fn print(&self) -> u64 {
        let chunks = self.chunks.iter().map(|(number, chunk)| (*number, chunk.print()));
        let sum =
            chunks.filter(|(_, print)| *print != 0).fold(self.len, |sum, (n, print)| mix(mix(sum, n), print));
        self.bad.iter().fold(sum, |sum, sector| mix(sum, !sector))
    }

    /// A file with these bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Content {
        let mut content = Content { len: bytes.len() as u64, ..Content::default() };
        for (number, part) in (0..).zip(bytes.chunks(at(PAGE))) {
            content.page_mut(number)[..part.len()].copy_from_slice(part);
        }
        content
    }

    /// Bytes allocated on the host.
    pub(super) const fn allocated_bytes(&self) -> u64 {
        self.allocated * PAGE
    }

    /// The page `number`.
    pub(super) fn slot(&self, number: u64) -> &Slot {
        self.chunks.get(&(number / CHUNK)).map_or(&Slot::Hole, |chunk| &chunk.slots[at(number % CHUNK)])
    }

    /// True if the page has been written.
    pub(super) fn has_data(&self, number: u64) -> bool {
        matches!(self.slot(number), Slot::Data(_))
    }

    /// True if the page takes no space.
    pub(super) fn is_hole(&self, number: u64) -> bool {
        matches!(self.slot(number), Slot::Hole)
    }

    /// The numbers in `range` of pages that are not holes.
    pub(super) fn pages_in(&self, range: Range<u64>) -> impl Iterator<Item = u64> {
        let chunks = self.chunks.range(range.start / CHUNK..range.end.div_ceil(CHUNK));
        chunks
            .flat_map(|(&index, chunk)| (index * CHUNK..).zip(&chunk.slots))
            .filter(move |(number, slot)| range.contains(number) && !matches!(slot, Slot::Hole))
            .map(|(number, _)| number)
    }

    fn set(&mut self, number: u64, slot: Slot) {
        let is_hole = matches!(slot, Slot::Hole);
        if is_hole && self.is_hole(number) {
            return;
        }
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(chunks.entry(number / CHUNK).or_insert_with(|| Arc::new(Chunk::holes())));
        chunk.print.take();
        let old = std::mem::replace(&mut chunk.slots[at(number % CHUNK)], slot);
        let was_hole = matches!(old, Slot::Hole);
        chunk.used = chunk.used + u64::from(was_hole) - u64::from(is_hole);
        self.allocated = self.allocated + u64::from(was_hole) - u64::from(is_hole);
        if chunk.used == 0 {
            chunks.remove(&(number / CHUNK));
        }
    }

    /// The bytes of a page, to be changed; allocates it.
    fn page_mut(&mut self, number: u64) -> &mut Page {
        if !self.has_data(number) {
            self.set(number, Slot::Data(Arc::new(Page::zeroed())));
        }
        let chunk = Arc::make_mut(&mut self.chunks).get_mut(&(number / CHUNK)).expect("made above");
        let chunk = Arc::make_mut(chunk);
        chunk.print.take();
        match &mut chunk.slots[at(number % CHUNK)] {
            Slot::Data(page) => Arc::make_mut(page),
            _ => unreachable!("made above"),
        }
    }

    /// A copy of the bytes of a page.
    pub(super) fn page(&self, number: u64) -> Page {
        match self.slot(number) {
            Slot::Data(page) => (**page).clone(),
            _ => Page::zeroed(),
        }
    }

    /// Writes the sectors `mask` of a page, from the same place in `bytes`; without bytes, gives the space back.
    pub(super) fn patch(&mut self, number: u64, mask: u8, bytes: Option<&Arc<Page>>) {
        self.heal(number, mask);
        match bytes {
            _ if mask == 0 => {}
            Some(bytes) if mask == WHOLE => self.set(number, Slot::Data(bytes.clone())),
            None if mask == WHOLE => self.set(number, Slot::Hole),
            Some(bytes) => {
                let page = self.page_mut(number);
                sectors(mask).for_each(|range| page[range.clone()].copy_from_slice(&bytes[range]));
            }
            None if self.has_data(number) => {
                let page = self.page_mut(number);
                sectors(mask).for_each(|range| page[range].fill(0));
            }
            None => {}
        }
    }

    /// Makes the holes of a range of pages space that reads zeros.
    pub(super) fn reserve(&mut self, range: Range<u64>) {
        let full = Arc::new(Chunk::reserved());
        let mut number = range.start;
        while number < range.end {
            let chunk = number / CHUNK;
            if number.is_multiple_of(CHUNK)
                && number + CHUNK <= range.end
                && !self.chunks.contains_key(&chunk)
            {
                Arc::make_mut(&mut self.chunks).insert(chunk, full.clone());
                self.allocated += CHUNK;
                number += CHUNK;
                continue;
            }
            if self.is_hole(number) {
                self.set(number, Slot::Reserved);
            }
            number += 1;
        }
    }

    /// Holes in a range of pages.
    pub(super) fn holes(&self, range: Range<u64>) -> u64 {
        (range.end - range.start) - self.pages_in(range).count() as u64
    }

    /// ftruncate: what lies past `len` is gone, also if the file was shorter than that data.
    pub(super) fn set_len(&mut self, len: u64) {
        self.len = len;
        let first_gone = len.div_ceil(PAGE);
        let gone: Vec<u64> = self.pages_in(first_gone..u64::MAX - CHUNK).collect();
        gone.into_iter().for_each(|number| self.set(number, Slot::Hole));
        let tail = at(len % PAGE);
        if tail != 0 && self.has_data(len / PAGE) {
            self.page_mut(len / PAGE)[tail..].fill(0);
        }
        if self.bad.range(len.div_ceil(SECTOR)..).next().is_some() {
            Arc::make_mut(&mut self.bad).split_off(&len.div_ceil(SECTOR));
        }
    }

    /// Gives up to `len` bytes from `pos` on to `sink`, with their place among those asked for; returns their number,
    /// 0 past the end.
    pub(super) fn read(
        &self,
        pos: u64,
        len: usize,
        mut sink: impl FnMut(usize, Part<'_>),
    ) -> io::Result<usize> {
        let end = self.len.min(pos.saturating_add(len as u64));
        if pos >= end {
            return Ok(0);
        }
        if self.bad.range(pos / SECTOR..end.div_ceil(SECTOR)).next().is_some() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let mut next = pos;
        while next < end {
            let within = at(next % PAGE);
            let n = at((PAGE - next % PAGE).min(end - next));
            match self.slot(next / PAGE) {
                Slot::Data(page) => sink(at(next - pos), Part::Bytes(&page[within..within + n])),
                _ => sink(at(next - pos), Part::Zeros(n)),
            }
            next += n as u64;
        }
        Ok(at(end - pos))
    }

    /// All bytes, those of unreadable sectors too.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; at(self.len)];
        for number in self.pages_in(0..self.len.div_ceil(PAGE)) {
            let start = at(number * PAGE);
            let end = out.len().min(start + at(PAGE));
            out[start..end].copy_from_slice(&self.page(number)[..end - start]);
        }
        out
    }

    /// True if a sector of the page in `mask` cannot be read.
    pub(super) fn is_bad(&self, number: u64, mask: u8) -> bool {
        !self.bad.is_empty()
            && (0..8).any(|bit| mask & (1 << bit) != 0 && self.bad.contains(&(number * 8 + bit)))
    }

    /// Makes sectors unreadable.
    pub(super) fn spoil(&mut self, number: u64, mask: u8) {
        let bad = Arc::make_mut(&mut self.bad);
        bad.extend((0..8).filter(|bit| mask & (1 << bit) != 0).map(|bit| number * 8 + bit));
    }

    fn heal(&mut self, number: u64, mask: u8) {
        if self.is_bad(number, mask) {
            let bad = Arc::make_mut(&mut self.bad);
            (0..8).filter(|bit| mask & (1 << bit) != 0).for_each(|bit| {
                bad.remove(&(number * 8 + bit));
            });
        }
    }
}
