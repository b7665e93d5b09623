//! System calls that have no safe wrapper: the mapping of a queue's request descriptors, which the driver writes and
//! this process reads, and the ioctl that reads a partition table.
#![expect(unsafe_code, reason = "mmap and ioctl; each block states why it holds")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

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

fn page_size() -> usize {
    // SAFETY: takes and gives plain numbers.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
