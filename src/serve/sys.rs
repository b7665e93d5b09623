//! Signals as events, and who this process is.
#![expect(unsafe_code, reason = "signal masks, signalfd and ids; each block states why it holds")]

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::runtime::{files, thread};

/// The signals that end a daemon, and the one that says that a child of it ended.
const WATCHED: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD];

/// A signal that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Signal {
    /// Its number.
    pub(super) number: i32,
    /// The kernel sent it, as the terminal's Ctrl-C: to the whole process group, not to this process alone.
    pub(super) to_group: bool,
}

/// The signals a daemon waits for, as a stream. They are blocked in the calling thread and in all that it starts later,
/// but not in commands that it runs.
#[derive(Debug)]
pub(super) struct Signals(File);

impl Signals {
    /// Must be called before any other thread is started: that thread could die of the signal instead.
    pub(super) fn take() -> io::Result<Signals> {
        // SAFETY: the set is initialized by sigemptyset before it is read, and lives over the calls.
        unsafe {
            let mut set = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            for signal in WATCHED {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Signals(File::from(OwnedFd::from_raw_fd(fd))))
        }
    }

    /// Waits for the next one.
    pub(super) fn next(&mut self) -> io::Result<Signal> {
        let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut bytes)?;
        // SAFETY: the kernel filled the structure, in which every bit pattern is valid; it may lie unaligned.
        let info: libc::signalfd_siginfo = unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) };
        let number = i32::try_from(info.ssi_signo).unwrap_or(libc::SIGTERM);
        Ok(Signal { number, to_group: info.ssi_code == libc::SI_KERNEL })
    }
}

/// What becomes true when this process is told to end, for a command that stops where that is good. Told once more it ends
/// at once. Must be called before any other thread is started.
///
/// # Errors
/// What the host says.
pub fn interrupted() -> io::Result<Arc<AtomicBool>> {
    let mut signals = Signals::take()?;
    let told = Arc::new(AtomicBool::new(false));
    let tell = told.clone();
    let watch = move || {
        while let Ok(signal) = signals.next() {
            if signal.number != libc::SIGCHLD && tell.swap(true, Ordering::Relaxed) {
                std::process::exit(128 + signal.number);
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch)?;
    Ok(told)
}

/// Lets `command` start with no signal blocked, without this process's standing with memory reclaim, and with the limit of
/// open files that this process had; by itself it would inherit all of that.
pub(super) fn unblock_signals(command: &mut Command) {
    let unblock = || {
        // Where it was never allowed there is nothing to take back.
        let _ = thread::clear_io_flusher();
        let _ = files::restore_open_files();
        // SAFETY: the set is initialized by sigemptyset before it is read, and lives over the calls.
        let error = unsafe {
            let mut set = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut())
        };
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
    };
    // SAFETY: between fork and exec it calls only functions that are safe in a signal handler, and allocates nothing.
    unsafe { command.pre_exec(unblock) };
}

/// Lets `command` start in a session of its own, with no files but its standard ones: it outlives this process, and keeps
/// nothing open for it.
pub(super) fn detach(command: &mut Command) {
    let detach = || {
        // SAFETY: both take plain numbers. What is marked is closed by the exec.
        unsafe {
            libc::setsid();
            // Before 5.11 there is no such flag; then they stay open.
            libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        }
        Ok(())
    };
    // SAFETY: between fork and exec it calls only functions that are safe in a signal handler, and allocates nothing.
    unsafe { command.pre_exec(detach) };
}

/// Puts `/dev/null` in the place of stdout and stderr.
pub(super) fn let_go_of_terminal() -> io::Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    for standard in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: plain numbers of open files.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Sends `signal` to a child of ours that was not waited for yet.
pub(super) fn send_signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: plain numbers.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps this process in memory from the first use of each page on: what serves a disk that swap is on must not wait for
/// swap.
pub(super) fn lock_memory() -> io::Result<()> {
    let how = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: plain numbers.
    if unsafe { libc::mlockall(how) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The effective user of this process.
pub(super) fn user_id() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}
