//! What an operation does to the content of a file, kept as data so that a crash can undo, tear and reorder it.

use std::ops::Range;
use std::sync::Arc;

use super::page::Page;
use super::pages::{Content, PAGE, SECTOR, WHOLE, at};
use super::rng::Rng;
use crate::storage::IoVecs;

/// Sectors of one page: their new bytes, or space given back.
#[derive(Clone, Debug)]
pub(super) struct Patch {
    pub(super) page: u64,
    pub(super) mask: u8,
    pub(super) bytes: Option<Arc<Page>>,
}

/// What an operation does to the size. On a power loss it is kept or lost apart from the data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resize {
    Keep,
    Grow(u64),
    Set(u64),
}

/// What one operation does to a file.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) patches: Vec<Patch>,
    /// Pages that get space.
    pub(super) reserve: Option<Range<u64>>,
    pub(super) resize: Resize,
}

/// A part of a write within one page, as the caller gave it.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) page: u64,
    bytes: Arc<Page>,
    from: usize,
    to: usize,
}

/// The bytes of a write, copied at its issue.
pub(super) fn capture(vecs: &IoVecs, pos: u64) -> Vec<Piece> {
    let mut pieces: Vec<(u64, Page, usize, usize)> = Vec::new();
    let mut pos = pos;
    for buf in vecs.bufs() {
        let mut done = 0;
        while done < buf.len() {
            let (page, within) = (pos / PAGE, at(pos % PAGE));
            let n = (buf.len() - done).min(at(PAGE) - within);
            if pieces.last().is_none_or(|last| last.0 != page) {
                pieces.push((page, Page::zeroed(), within, within));
            }
            if let Some((_, bytes, _, to)) = pieces.last_mut() {
                buf.by_kernel().slice(done..done + n).copy_to(0, &mut bytes[within..within + n]);
                *to = within + n;
            }
            done += n;
            pos += n as u64;
        }
    }
    let whole = |(page, bytes, from, to)| Piece { page, bytes: Arc::new(bytes), from, to };
    pieces.into_iter().map(whole).collect()
}

/// The first `len` bytes of a write.
pub(super) fn cut(pieces: &mut Vec<Piece>, len: usize) {
    let mut left = len;
    for piece in pieces.iter_mut() {
        piece.to = piece.to.min(piece.from + left);
        left -= piece.to - piece.from;
    }
    pieces.retain(|piece| piece.from < piece.to);
}

/// The sectors of a page that a byte range touches.
fn touched(from: usize, to: usize) -> u8 {
    let (first, end) = (from / at(SECTOR), to.div_ceil(at(SECTOR)));
    (first..end).fold(0, |mask, bit| mask | 1 << bit)
}

impl Piece {
    /// Sectors written in part: they keep some of the bytes that are there.
    pub(super) fn shared_mask(&self) -> u8 {
        let inner = (self.from.div_ceil(at(SECTOR)), self.to / at(SECTOR));
        touched(self.from, self.to) & !(inner.0..inner.1).fold(0, |mask, bit| mask | 1 << bit)
    }

    fn patch(&self, visible: &Content) -> Patch {
        let mask = touched(self.from, self.to);
        let bytes = if self.shared_mask() == 0 {
            self.bytes.clone()
        } else {
            let mut page = visible.page(self.page);
            page[self.from..self.to].copy_from_slice(&self.bytes[self.from..self.to]);
            Arc::new(page)
        };
        Patch { page: self.page, mask, bytes: Some(bytes) }
    }
}

impl Effect {
    /// A write of `len` bytes; sectors written in part keep the other bytes of `visible`.
    pub(super) fn write(pieces: &[Piece], pos: u64, len: u64, visible: &Content) -> Effect {
        let patches = pieces.iter().map(|piece| piece.patch(visible)).collect();
        Effect { patches, reserve: None, resize: Resize::Grow(pos + len) }
    }

    /// A hole. Only pages that may hold bytes in memory or on disk need a patch.
    pub(super) fn punch(pos: u64, len: u64, visible: &Content, durable: &Content) -> Effect {
        let end = pos.saturating_add(len);
        let range = pos / PAGE..end.div_ceil(PAGE);
        let mut pages: Vec<u64> = visible.pages_in(range.clone()).chain(durable.pages_in(range)).collect();
        pages.sort_unstable();
        pages.dedup();
        let patches = pages.into_iter().map(|page| {
            let from = at(pos.saturating_sub(page * PAGE));
            let to = at((end - page * PAGE).min(PAGE));
            if (from, to) == (0, at(PAGE)) {
                return Patch { page, mask: WHOLE, bytes: None };
            }
            let mut bytes = visible.page(page);
            bytes[from..to].fill(0);
            Patch { page, mask: touched(from, to), bytes: Some(Arc::new(bytes)) }
        });
        Effect { patches: patches.collect(), reserve: None, resize: Resize::Keep }
    }

    /// Space for a range, which the file then covers.
    pub(super) const fn allocate(pos: u64, len: u64) -> Effect {
        let range = pos / PAGE..(pos + len).div_ceil(PAGE);
        Effect { patches: Vec::new(), reserve: Some(range), resize: Resize::Grow(pos + len) }
    }

    /// A new size.
    pub(super) const fn set_len(len: u64) -> Effect {
        Effect { patches: Vec::new(), reserve: None, resize: Resize::Set(len) }
    }

    /// Does it.
    pub(super) fn apply(&self, content: &mut Content) {
        if let Resize::Set(len) = self.resize {
            content.set_len(len);
        }
        for patch in &self.patches {
            content.patch(patch.page, patch.mask, patch.bytes.as_ref());
        }
        if let Some(range) = &self.reserve {
            content.reserve(range.clone());
        }
        if let Resize::Grow(len) = self.resize {
            content.len = content.len.max(len);
        }
    }

    /// Moves all bytes `by` bytes, whole pages, further on.
    pub(super) fn misdirect(&mut self, by: u64) {
        assert!(by.is_multiple_of(PAGE), "misdirected by whole pages");
        self.patches.iter_mut().for_each(|patch| patch.page += by / PAGE);
        if let Resize::Grow(len) = &mut self.resize {
            *len += by;
        }
    }

    /// The same with each sector kept `num` times out of 8, and the size kept or not.
    pub(super) fn torn(&self, rng: &mut Rng, num: u64, keep_size: bool) -> Effect {
        let tear = |patch: &Patch| Patch { mask: patch.mask & rng.mask(num), ..patch.clone() };
        let patches = self.patches.iter().map(tear).filter(|patch| patch.mask != 0).collect();
        let reserve = self.reserve.clone().filter(|_| num > 0);
        Effect { patches, reserve, resize: if keep_size { self.resize } else { Resize::Keep } }
    }
}
