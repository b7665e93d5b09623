//! What a frontend needs of a disk: the contract between `ublk`/`nbd` (requests) and the engine (images).

use std::future::Future;
use std::rc::Rc;

use crate::storage::IoBuf;

/// A failed request: the errno its sender gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

/// Facts of a disk that a frontend announces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Size in bytes; a multiple of 512.
    pub size: u64,
    /// Logical sector size: 512 or 4096. Requests are multiples of it.
    pub sector_size: u32,
    /// Writes, discards and zeroes are refused.
    pub read_only: bool,
    /// Preferred request size and discard granularity, in bytes.
    pub block_size: u32,
}

/// One queue's handle on a disk; it stays on the thread it was made on. Any number of requests may run at once.
///
/// Positions and lengths are bytes. A request outside of the disk, or not a multiple of the sector size, is
/// `EINVAL`. `buf` is read or written as a whole and must not be reused before the future is done.
pub trait Queue: 'static {
    /// Fills `buf` from `pos`.
    fn read(&self, pos: u64, buf: IoBuf) -> impl Future<Output = Result<(), Errno>>;
    /// Writes `buf` at `pos`; atomic up to [`crate::limits::MAX_REQUEST_BYTES`]. With `fua` it is durable when done.
    fn write(&self, pos: u64, buf: IoBuf, fua: bool) -> impl Future<Output = Result<(), Errno>>;
    /// As [`Queue::read`], into memory that only the kernel reaches ([`IoBuf::entry`]). `false`: the bytes would have to be
    /// seen, and nothing of worth was done.
    fn read_unseen(&self, _pos: u64, _buf: IoBuf) -> impl Future<Output = Result<bool, Errno>> {
        async { Ok(false) }
    }
    /// As [`Queue::write`], from memory that only the kernel reaches. `false`: the bytes have to be seen; nothing changed.
    fn write_unseen(&self, _pos: u64, _buf: IoBuf, _fua: bool) -> impl Future<Output = Result<bool, Errno>> {
        async { Ok(false) }
    }
    /// Makes every write acknowledged so far durable.
    fn flush(&self) -> impl Future<Output = Result<(), Errno>>;
    /// The range reads as zeros from now on; its space goes back to the host.
    fn discard(&self, pos: u64, len: u64, fua: bool) -> impl Future<Output = Result<(), Errno>>;
    /// The range reads as zeros from now on. `unmap`: its space may go back to the host; otherwise it stays
    /// allocated (NOUNMAP).
    fn write_zeroes(
        &self,
        pos: u64,
        len: u64,
        unmap: bool,
        fua: bool,
    ) -> impl Future<Output = Result<(), Errno>>;
}

/// A disk that several queues on several threads serve.
pub trait Disk: Clone + Send + Sync + 'static {
    /// Its handle for one queue.
    type Queue: Queue;
    /// What to announce.
    fn geometry(&self) -> Geometry;
    /// Its queues can move most data without seeing it.
    fn moves_unseen(&self) -> bool {
        false
    }
    /// Makes the handle of queue `index`, on the thread that will use it, inside its runtime. May spawn tasks there.
    fn queue(&self, index: usize) -> Rc<Self::Queue>;
}
