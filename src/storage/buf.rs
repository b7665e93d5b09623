//! Aligned memory that the kernel may read or write at any time while an operation is in flight.
//!
//! An [`IoBuf`] is a counted view of such memory. Every operation keeps a clone until its completion, so memory
//! never goes away under the kernel, also when the future that waits for it is dropped. Because a guest or the
//! kernel may change the bytes at any moment, no Rust reference to them is ever handed out: all access copies.
//!
//! Some memory only the kernel can reach: an entry of the ring's buffer table, such as the pages of a ublk request
//! (zero copy). A view of it can be sliced and handed to reads and writes, and that is all.
#![expect(unsafe_code, reason = "raw memory shared with the kernel; the only file that touches it")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of every allocation: a page, enough for O_DIRECT on any device.
pub const BUF_ALIGN: usize = 4096;

/// What malloc gives anyway.
const MALLOC_ALIGN: usize = 16;

#[derive(Debug)]
struct Memory {
    /// What the allocator gave; `None`: the memory is somebody else's.
    whole: Option<(NonNull<u8>, Layout)>,
    /// The first page border in it. Where the kernel counts from the beginning of an entry, 0.
    start: *mut u8,
}

// SAFETY: plain bytes; all access goes through raw pointer copies and nobody relies on the bytes being stable.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some((whole, layout)) = self.whole {
            // SAFETY: allocated with this layout in `IoBuf::zeroed`, freed once, when the last view goes.
            unsafe { dealloc(whole.as_ptr(), layout) }
        }
    }
}

/// A view of page-aligned memory that an I/O operation can own. Clones and slices share the memory.
#[derive(Clone, Debug)]
pub struct IoBuf {
    memory: Arc<Memory>,
    start: usize,
    len: usize,
    /// The entry of the ring's buffer table that the memory is; nobody but the kernel reaches it then.
    entry: Option<u16>,
}

impl IoBuf {
    /// `len` zero bytes, page-aligned; `len` must not be 0.
    pub fn zeroed(len: usize) -> IoBuf {
        assert!(len > 0, "an I/O buffer has bytes");
        // Aligned by hand: asked for zeroed memory of a greater alignment than malloc's own, the allocator would write
        // the zeros itself and so touch every page, also of buffers that are never used.
        let layout = Layout::from_size_align(len + BUF_ALIGN, MALLOC_ALIGN);
        let layout = layout.expect("buffer sizes are bounded by limits.rs");
        // SAFETY: the layout has a size above zero.
        let Some(whole) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        let skip = whole.as_ptr().align_offset(BUF_ALIGN);
        // SAFETY: `skip` is below BUF_ALIGN, and so many bytes more than `len` were allocated.
        let start = unsafe { whole.add(skip) }.as_ptr();
        let memory = Memory { whole: Some((whole, layout)), start };
        IoBuf { memory: Arc::new(memory), start: 0, len, entry: None }
    }

    /// Views of the first `count` entries of the buffer table of the ring that they are used on, of `len` bytes each.
    pub fn entries(count: u16, len: usize) -> Vec<IoBuf> {
        let memory = Arc::new(Memory { whole: None, start: std::ptr::null_mut() });
        let entry = |index| IoBuf { memory: memory.clone(), start: 0, len, entry: Some(index) };
        (0..count).map(entry).collect()
    }

    /// This memory as entry `index` of a buffer table: it is registered there, or a simulated kernel's.
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn as_entry(&self, index: u16) -> IoBuf {
        IoBuf { entry: Some(index), ..self.clone() }
    }

    /// What [`IoBuf::as_entry`] was made of, for the simulated kernel.
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn by_kernel(&self) -> IoBuf {
        IoBuf { entry: None, ..self.clone() }
    }

    /// The entry of the ring's buffer table that the memory is, if it is one: then the bytes cannot be seen.
    pub const fn entry(&self) -> Option<u16> {
        self.entry
    }

    /// A new buffer with a copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> IoBuf {
        let buf = IoBuf::zeroed(bytes.len());
        buf.copy_from(0, bytes);
        buf
    }

    /// Bytes in the view.
    pub const fn len(&self) -> usize {
        self.len
    }
    /// Never true: see [`IoBuf::zeroed`]; a slice may be empty.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Address of the first byte, for the kernel; of an entry of a buffer table what it calls so.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.start.wrapping_add(self.start)
    }

    /// Address of the first byte of memory that can be reached: within its allocation, as `slice` has checked.
    fn bytes(&self) -> *mut u8 {
        assert!(self.entry.is_none(), "only the kernel reaches an entry of a buffer table");
        self.as_ptr()
    }

    /// Views of the same memory, this one included: operations in flight hold theirs.
    pub fn views(&self) -> usize {
        Arc::strong_count(&self.memory)
    }

    /// The bytes `range` of this view.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> IoBuf {
        assert!(range.start <= range.end && range.end <= self.len, "slice outside of the buffer");
        IoBuf { start: self.start + range.start, len: range.end - range.start, ..self.clone() }
    }

    /// Copies `bytes` to offset `at`.
    pub fn copy_from(&self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.len), "copy outside of the buffer");
        // SAFETY: the destination range was checked; `bytes` is a reference, so it cannot overlap this memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.bytes().add(at), bytes.len()) }
    }

    /// Copies from offset `at` into `bytes`.
    pub fn copy_to(&self, at: usize, bytes: &mut [u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.len), "copy outside of the buffer");
        // SAFETY: the source range was checked; `bytes` is a unique reference, so it cannot overlap this memory.
        unsafe { std::ptr::copy_nonoverlapping(self.bytes().add(at), bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Copies `from` to offset `at`; the two may be views of the same memory.
    pub fn copy_buf(&self, at: usize, from: &IoBuf) {
        assert!(at.checked_add(from.len).is_some_and(|end| end <= self.len), "copy outside of the buffer");
        // SAFETY: both ranges were checked; `copy` allows overlap.
        unsafe { std::ptr::copy(from.bytes(), self.bytes().add(at), from.len) }
    }

    /// Sets the bytes `range` to zero.
    pub fn zero(&self, range: Range<usize>) {
        let view = self.slice(range);
        // SAFETY: `slice` checked the range.
        unsafe { std::ptr::write_bytes(view.bytes(), 0, view.len) }
    }

    /// A copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to(0, &mut bytes);
        bytes
    }

    /// CRC-32 (IEEE) of the bytes, continued from `init`. If another party changes the bytes meanwhile the
    /// value is that of some mixture, which then fails verification like any other damage.
    pub fn crc32(&self, init: u32) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(init);
        // SAFETY: the range is within the allocation, which lives as long as `self`. The slice does not outlive
        // this statement; a concurrent change by the kernel or a guest yields a wrong sum, which is what a
        // checksum is for.
        hasher.update(unsafe { std::slice::from_raw_parts(self.bytes(), self.len) });
        hasher.finalize()
    }

    /// True if all bytes are zero.
    pub fn is_zero(&self) -> bool {
        // SAFETY: as in `crc32`.
        let bytes = unsafe { std::slice::from_raw_parts(self.bytes(), self.len) };
        // SAFETY: any bytes are a valid u128.
        let (head, body, tail) = unsafe { bytes.align_to::<u128>() };
        head.iter().chain(tail).all(|&b| b == 0) && body.iter().all(|&w| w == 0)
    }
}

/// The buffers of one vectored operation, with the array the kernel reads. Reused from one to the next.
#[derive(Default, Debug)]
pub struct IoVecs {
    bufs: Vec<IoBuf>,
    raw: Vec<libc::iovec>,
}

// SAFETY: the raw pointers point into memory that `bufs` keeps alive; see `Memory`.
unsafe impl Send for IoVecs {}

impl IoVecs {
    /// An empty list.
    pub fn new() -> IoVecs {
        IoVecs::default()
    }
    /// One buffer.
    pub fn one(buf: IoBuf) -> IoVecs {
        let mut vecs = IoVecs::new();
        vecs.push(buf);
        vecs
    }
    /// Adds a buffer at the end; a neighbour in memory of the last one joins it.
    pub fn push(&mut self, buf: IoBuf) {
        if let (Some(last), Some(raw)) = (self.bufs.last_mut(), self.raw.last_mut())
            && Arc::ptr_eq(&last.memory, &buf.memory)
            && last.entry == buf.entry
            && last.start + last.len == buf.start
        {
            last.len += buf.len;
            raw.iov_len += buf.len;
            return;
        }
        self.raw.push(libc::iovec { iov_base: buf.as_ptr().cast(), iov_len: buf.len });
        self.bufs.push(buf);
    }
    /// Forgets all buffers and keeps the room for them.
    pub fn clear(&mut self) {
        self.bufs.clear();
        self.raw.clear();
    }
    /// Total bytes.
    pub fn len(&self) -> usize {
        self.bufs.iter().map(IoBuf::len).sum()
    }
    /// True without any buffer.
    pub fn is_empty(&self) -> bool {
        self.bufs.is_empty()
    }
    /// The buffers in order.
    pub fn bufs(&self) -> &[IoBuf] {
        &self.bufs
    }
    /// The entry of the ring's buffer table that the bytes are in. Others don't go with it into one operation.
    pub fn entry(&self) -> Option<u16> {
        let entry = self.bufs.first().and_then(IoBuf::entry);
        debug_assert!(self.bufs.len() == 1 || self.bufs.iter().all(|buf| buf.entry.is_none()));
        entry
    }
    /// The array for the kernel; valid until the list changes.
    pub fn raw(&self) -> &[libc::iovec] {
        &self.raw
    }
    /// Drops the first `bytes` bytes: what a short write has done.
    pub fn advance(&mut self, mut bytes: usize) {
        let mut rest = Vec::new();
        for buf in self.bufs.drain(..) {
            let skip = bytes.min(buf.len);
            bytes -= skip;
            if skip < buf.len {
                rest.push(buf.slice(skip..buf.len));
            }
        }
        self.raw.clear();
        for buf in rest {
            self.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_and_neighbours_join() {
        let buf = IoBuf::zeroed(8192);
        buf.slice(4096..8192).copy_from(0, b"hello");
        let mut out = [0; 5];
        buf.copy_to(4096, &mut out);
        assert_eq!(&out, b"hello");
        let mut vecs = IoVecs::one(buf.slice(0..4096));
        vecs.push(buf.slice(4096..8192));
        assert_eq!((vecs.bufs().len(), vecs.len()), (1, 8192));
        vecs.push(IoBuf::zeroed(512));
        vecs.advance(8000);
        assert_eq!((vecs.bufs().len(), vecs.len()), (2, 704));
        assert_eq!(buf.as_ptr() as usize % BUF_ALIGN, 0);
    }

    #[test]
    fn zero_detection_looks_at_every_byte() {
        let buf = IoBuf::zeroed(4096);
        assert!(buf.is_zero());
        for at in [0, 1, 15, 2048, 4095] {
            buf.copy_from(at, &[1]);
            assert!(!buf.is_zero());
            buf.copy_from(at, &[0]);
        }
        assert_eq!(buf.crc32(0), crc32fast::hash(&[0; 4096]));
    }

    #[test]
    #[should_panic(expected = "outside of the buffer")]
    fn a_copy_past_the_end_panics() {
        IoBuf::zeroed(4096).copy_from(4000, &[0; 97]);
    }

    #[test]
    fn entries_of_a_table_are_told_apart_and_counted_from_their_beginning() {
        let entries = IoBuf::entries(3, 8192);
        assert_eq!(entries.iter().map(IoBuf::entry).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
        let part = entries[1].slice(4096..8192);
        assert_eq!((part.as_ptr() as usize, part.len(), part.entry()), (4096, 4096, Some(1)));
        let mut vecs = IoVecs::one(entries[1].slice(0..4096));
        vecs.push(part);
        assert_eq!((vecs.bufs().len(), vecs.entry()), (1, Some(1)), "neighbours join");
        let mut two = IoVecs::one(entries[1].slice(0..4096));
        two.push(entries[2].slice(4096..8192));
        assert_eq!(two.bufs().len(), 2);
    }

    #[test]
    #[should_panic(expected = "only the kernel")]
    fn an_entry_of_a_table_cannot_be_seen() {
        IoBuf::entries(1, 4096)[0].crc32(0);
    }
}
