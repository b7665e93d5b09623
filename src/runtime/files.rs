//! How many files this process may have open.
//!
//! Each layer of a chain is one. The soft limit is 1024 mostly, for the sake of programs that call select(); the hard one is
//! what counts for others, so it is taken in full. Programs that are run get the old one back.
#![expect(unsafe_code, reason = "getrlimit and setrlimit; each block states why it holds")]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// The soft limit before it was raised; 0: it was not.
static BEFORE: AtomicU64 = AtomicU64::new(0);

/// Raises the soft limit of open files to the hard one. To be called once, before threads are started.
///
/// # Errors
/// What the kernel says; the limit is as it was.
pub fn raise_open_files() -> io::Result<()> {
    let limits = limits()?;
    if limits.rlim_cur < limits.rlim_max {
        set(libc::rlimit { rlim_cur: limits.rlim_max, ..limits })?;
        BEFORE.store(limits.rlim_cur, Ordering::Relaxed);
    }
    Ok(())
}

/// Takes [`raise_open_files`] back, for a program that is about to be run. Two system calls and nothing else.
///
/// # Errors
/// What the kernel says.
pub fn restore_open_files() -> io::Result<()> {
    match BEFORE.load(Ordering::Relaxed) {
        0 => Ok(()),
        before => set(libc::rlimit { rlim_cur: before, ..limits()? }),
    }
}

fn limits() -> io::Result<libc::rlimit> {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits) })?;
    Ok(limits)
}

fn set(limits: libc::rlimit) -> io::Result<()> {
    // SAFETY: the kernel reads the structure.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limits) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
