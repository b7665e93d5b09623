//! System calls that have no safe wrapper: the mapping of a queue's request descriptors, which the driver writes and
//! this process reads, and the ioctl that reads a partition table.
#![expect(unsafe_code, reason = "mmap and ioctl; each block states why it holds")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use crate::storage::IoBuf;
use crate::ublk::uapi::{IoDesc, MAX_QUEUE_DEPTH};
use crate::{Error, Result};

/// A read-only mapping of the descriptors of one queue.
#[derive(Debug)]
pub struct Descriptors {
    start: NonNull<libc::c_void>,
    bytes: usize,
    depth: u16,
}

// SAFETY: plain memory, only read, and through volatile reads; nothing ties it to a thread.
unsafe impl Send for Descriptors {}

impl Descriptors {
    /// Maps queue `queue` with `depth` tags of the device whose character device `device` is.
    ///
    /// The queues lie at a stride for the greatest depth there is, not for this one; the length is for this one
    /// (`ublk_ch_mmap`).
    pub(super) fn map(device: &impl AsFd, queue: u16, depth: u16) -> Result<Descriptors> {
        let page = page_size();
        let stride = (usize::from(MAX_QUEUE_DEPTH) * IoDesc::SIZE).next_multiple_of(page);
        let bytes = (usize::from(depth) * IoDesc::SIZE).next_multiple_of(page);
        let offset = libc::off_t::try_from(usize::from(queue) * stride).expect("4,096 queues of 96 KiB");
        let (fd, flags) = (device.as_fd().as_raw_fd(), libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping at a place of the kernel's choice; the result is checked.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, flags, fd, offset) };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Descriptors { start, bytes, depth }),
            _ => Err(Error::io(format!("mmap of queue {queue}"), io::Error::last_os_error())),
        }
    }

    /// The descriptor of `tag`; valid after a fetch of the tag has completed, until its commit.
    pub(super) fn read(&self, tag: u16) -> IoDesc {
        assert!(tag < self.depth, "a tag of this queue");
        let at = self.start.cast::<IoDesc>();
        // SAFETY: within the mapping, which holds `depth` descriptors; the driver aligns them to 8 bytes, and any
        // bytes are a valid descriptor. The driver wrote it before it posted the completion that was reaped.
        unsafe { at.add(usize::from(tag)).read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, unmapped once.
        unsafe { libc::munmap(self.start.as_ptr(), self.bytes) };
    }
}

/// `BLKRRPART` of `linux/fs.h`.
const BLKRRPART: libc::Ioctl = 0x125f;

/// Has the kernel read the partition table of the disk `node`, and waits for that.
pub(super) fn read_partitions(node: &File) -> io::Result<()> {
    // SAFETY: an ioctl without an argument on an open file.
    if unsafe { libc::ioctl(node.as_raw_fd(), BLKRRPART) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Fills `buf` from `file` at `pos`.
pub(super) fn read_at(file: &File, pos: u64, buf: &IoBuf) -> io::Result<()> {
    whole(buf, pos, |start, len, pos| {
        // SAFETY: `whole` names bytes of `buf`, which outlives the call.
        unsafe { libc::pread64(file.as_raw_fd(), start.cast(), len, pos) }
    })
}

/// Writes `buf` to `file` at `pos`.
pub(super) fn write_at(file: &File, pos: u64, buf: &IoBuf) -> io::Result<()> {
    whole(buf, pos, |start, len, pos| {
        // SAFETY: as in `read_at`.
        unsafe { libc::pwrite64(file.as_raw_fd(), start.cast(), len, pos) }
    })
}

/// Calls `some` until it has moved all bytes of `buf`: a count is not a yes. Each call moves a byte at least, or ends it.
fn whole(buf: &IoBuf, pos: u64, some: impl Fn(*mut u8, usize, i64) -> isize) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let rest = buf.slice(done..buf.len());
        let at = i64::try_from(pos + done as u64).map_err(|_| io::ErrorKind::InvalidInput)?;
        match usize::try_from(some(rest.as_ptr(), rest.len(), at)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
    Ok(())
}

fn page_size() -> usize {
    // SAFETY: takes and gives plain numbers.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_counts_go_on_and_an_end_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let buf = IoBuf::from_slice(&[7; 8192]);
        write_at(&file, 4096, &buf).unwrap();
        let read = IoBuf::zeroed(8192);
        read_at(&file, 4096, &read).unwrap();
        assert_eq!(read.to_vec(), [7; 8192]);
        let e = read_at(&file, 8192, &read).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
        let calls = std::cell::RefCell::new(Vec::new());
        let three = |start: *mut u8, len: usize, pos: i64| {
            calls.borrow_mut().push((start as usize - buf.as_ptr() as usize, len, pos));
            len.min(3000).cast_signed()
        };
        whole(&buf, 100, three).unwrap();
        assert_eq!(*calls.borrow(), [(0, 8192, 100), (3000, 5192, 3100), (6000, 2192, 6100)]);
    }
}
