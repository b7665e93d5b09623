//! Admin commands on a ring.
//!
//! They travel as `IORING_OP_URING_CMD` with a payload of 32 bytes, which needs submission entries of 128 bytes, so
//! this ring is apart from the queues'.
#![expect(unsafe_code, reason = "pushing an entry that names a buffer of ours")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::squeue::Entry128;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};

use crate::storage::IoBuf;
use crate::ublk::control::PATH;
use crate::ublk::driver::{Admin, AdminCall};
use crate::ublk::uapi::CtrlCmd;
use crate::{Error, Kind, Result};

/// Bytes for what a command reads or fills: the largest is a CPU mask.
const BUFFER: usize = 4096;

/// An open `/dev/ublk-control` with its ring.
pub struct AdminRing {
    ring: IoUring<Entry128, cqueue::Entry>,
    file: File,
    /// What the running command reads or fills.
    buf: IoBuf,
    /// `user_data` of the next command; a completion of an earlier one, given up on, has a lower number.
    next: u64,
}

impl std::fmt::Debug for AdminRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminRing").field("next", &self.next).finish_non_exhaustive()
    }
}

impl AdminRing {
    pub(super) fn open() -> Result<AdminRing> {
        let file = OpenOptions::new().read(true).write(true).open(PATH).map_err(open_error)?;
        let ring = IoUring::builder().build(4).map_err(ring_error)?;
        Ok(AdminRing { ring, file, buf: IoBuf::zeroed(BUFFER), next: 0 })
    }

    fn wait(&mut self, bound: Duration) -> io::Result<i32> {
        let end = Instant::now() + bound;
        loop {
            while let Some(entry) = self.ring.completion().next() {
                if entry.user_data() == self.next {
                    return Ok(entry.result());
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                std::mem::forget(std::mem::replace(&mut self.buf, IoBuf::zeroed(BUFFER)));
                return Err(io::ErrorKind::TimedOut.into());
            }
            let timeout = Timespec::from(left);
            match self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout)) {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN)) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Admin for AdminRing {
    fn run(&mut self, call: &AdminCall<'_>) -> io::Result<i32> {
        self.buf.zero(0..BUFFER);
        self.buf.copy_from(0, call.send);
        let payload = CtrlCmd {
            dev_id: call.device,
            queue_id: call.queue,
            len: call.len,
            addr: if call.len == 0 { 0 } else { self.buf.as_ptr() as u64 },
            data: call.data,
            dev_path_len: call.path_len,
            ..CtrlCmd::default()
        };
        let mut bytes = [0; 80];
        bytes[..CtrlCmd::SIZE].copy_from_slice(&payload.to_bytes());
        self.next += 1;
        let entry = opcode::UringCmd80::new(Fd(self.file.as_raw_fd()), call.number).cmd(bytes).build();
        // SAFETY: the payload is in the entry; its buffer is `self.buf`, which is replaced and never freed if the
        // wait below gives up before the completion has come.
        unsafe { self.ring.submission().push(&entry.user_data(self.next)) }
            .map_err(|_| io::Error::other("the control ring is full"))?;
        self.wait(call.bound)
    }

    fn received(&self, bytes: &mut [u8]) {
        self.buf.copy_to(0, bytes);
    }
}

fn open_error(source: io::Error) -> Error {
    let error = |what| Error::io(what, source).at(PATH);
    match error("open") {
        e if e.kind() == Kind::NotFound => {
            Error::new(Kind::Unsupported, "the kernel's ublk driver is not loaded")
                .at(PATH)
                .hint("modprobe ublk_drv")
        }
        e if e.kind() == Kind::Permission => e.hint("run as root"),
        e => e,
    }
}

fn ring_error(source: io::Error) -> Error {
    let denied = matches!(source.raw_os_error(), Some(libc::EPERM | libc::ENOSYS));
    let error = Error::io("io_uring_setup", source);
    if denied { error.hint("sysctl kernel.io_uring_disabled=0") } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_named_with_its_remedy() {
        let e = open_error(io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!((e.kind(), e.hint_text()), (Kind::Unsupported, Some("modprobe ublk_drv")));
        let e = open_error(io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!((e.kind(), e.hint_text()), (Kind::Permission, Some("run as root")));
    }
}
