//! System calls that tell what a file system can do, and what this process may.
#![expect(unsafe_code, reason = "statx, fallocate, ioctl and getrlimit; each block states why it holds")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use crate::storage::IoBuf;

/// `FICLONE` of `linux/fs.h`.
const FICLONE: libc::Ioctl = 0x4004_9409_u32 as libc::Ioctl;

/// Turns O_DIRECT on.
pub(super) fn set_direct(file: &File) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take and give plain numbers.
    unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        check(flags.min(0))?;
        check(libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT))
    }
}

/// What direct I/O on `file` must be aligned to, in bytes: memory, positions. `None`: the kernel (before 6.1) or the
/// file system does not say.
pub(super) fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    let mut info = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty C string with AT_EMPTY_PATH means the descriptor; the structure is zeroed and may be filled.
    let info = unsafe {
        let flags = libc::AT_EMPTY_PATH;
        let mask = libc::STATX_DIOALIGN;
        check(libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, mask, info.as_mut_ptr())).ok()?;
        info.assume_init()
    };
    let known = info.stx_mask & libc::STATX_DIOALIGN != 0 && info.stx_dio_offset_align > 0;
    known.then_some((info.stx_dio_mem_align, info.stx_dio_offset_align))
}

/// Writes `buf` at 0; it need not be a reference's bytes, as O_DIRECT wants it aligned.
pub(super) fn write(file: &File, buf: &IoBuf) -> io::Result<()> {
    // SAFETY: the view is `len` bytes of live memory.
    let written = unsafe { libc::pwrite(file.as_raw_fd(), buf.as_ptr().cast(), buf.len(), 0) };
    match usize::try_from(written) {
        Ok(count) if count == buf.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Gives the first `len` bytes back to the host.
pub(super) fn punch(file: &File, len: i64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, len)
}

/// Reserves the first `len` bytes.
pub(super) fn allocate(file: &File, len: i64) -> io::Result<()> {
    fallocate(file, 0, len)
}

fn fallocate(file: &File, mode: i32, len: i64) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, len) })
}

/// Makes `to` share all bytes of `from`.
pub(super) fn clone_file(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: the argument is a plain descriptor.
    check(unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) })
}

/// The soft limit of memory that may be locked, in bytes.
pub(super) fn locked_memory() -> u64 {
    limit(libc::RLIMIT_MEMLOCK)
}

/// The soft limit of open files.
pub(super) fn open_files() -> u64 {
    limit(libc::RLIMIT_NOFILE)
}

fn limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure.
    let result = unsafe { libc::getrlimit(resource, &mut limits) };
    if result == 0 { limits.rlim_cur } else { 0 }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
