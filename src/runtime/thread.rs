//! What a thread that serves a block device tells the kernel about itself.
#![expect(unsafe_code, reason = "prctl, affinity and mlock calls; each block states why it holds")]

use std::io;

use crate::storage::IoBuf;

/// `PR_SET_IO_FLUSHER` of `linux/prctl.h` (5.6); libc has no name for it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Tells memory reclaim that the calling thread, and every thread made from it later, writes back what reclaim waits
/// for: its own allocations then never wait for that writeback. Needs CAP_SYS_RESOURCE.
///
/// The kernel's workers of a ring copy this from the thread that made the ring: call it before.
pub fn set_io_flusher() -> io::Result<()> {
    io_flusher(1)
}

/// Takes [`set_io_flusher`] back; programs that are run would inherit it. Does nothing but one system call.
pub fn clear_io_flusher() -> io::Result<()> {
    io_flusher(0)
}

fn io_flusher(on: libc::c_ulong) -> io::Result<()> {
    let unused: libc::c_ulong = 0;
    // SAFETY: takes plain numbers.
    check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) })
}

/// Lets the calling thread run only on those CPUs of `mask` (one bit each, as the kernel has them) on which it may
/// run now. `false`: there are none, and nothing was changed.
pub fn pin_within(mask: &[u8]) -> io::Result<bool> {
    // SAFETY: an all-zero set is the empty set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills at most the given size.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut allowed) })?;
    // SAFETY: as above.
    let mut wanted: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let cpus = (mask.len() * 8).min(size_of::<libc::cpu_set_t>() * 8);
    for cpu in (0..cpus).filter(|cpu| mask[cpu / 8] & 1 << (cpu % 8) != 0) {
        // SAFETY: `cpu` is below the number of bits of the set.
        unsafe {
            if libc::CPU_ISSET(cpu, &allowed) {
                libc::CPU_SET(cpu, &mut wanted);
            }
        }
    }
    // SAFETY: counts the bits of a live set.
    if unsafe { libc::CPU_COUNT(&wanted) } == 0 {
        return Ok(false);
    }
    // SAFETY: the kernel reads a live set of the given size.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &wanted) })?;
    Ok(true)
}

/// Keeps the pages of `buf` in memory from their first use on, so that serving a write never has to wait for swap.
pub fn lock_once_used(buf: &IoBuf) -> io::Result<()> {
    // SAFETY: the range is a live allocation; locking changes no bytes. The lock goes with the memory's mapping.
    check(unsafe { libc::mlock2(buf.as_ptr().cast(), buf.len(), libc::MLOCK_ONFAULT) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes from this process the right to keep more memory than `bytes` from being swapped, for ever.
#[cfg(test)]
pub(crate) fn limit_locking(bytes: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: reads a live struct; the user and group without rights have no capability.
    unsafe {
        check(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit)).expect("a limit can be lowered");
        if libc::geteuid() == 0 {
            check(libc::setresuid(65534, 65534, 65534)).expect("root may become anybody");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_pinned_only_where_it_may_run() {
        std::thread::spawn(|| {
            assert!(!pin_within(&[]).unwrap());
            assert!(!pin_within(&[0; 128]).unwrap());
            assert!(pin_within(&[0xff; 128]).unwrap());
        })
        .join()
        .unwrap();
    }
}
