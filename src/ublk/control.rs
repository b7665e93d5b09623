//! The control plane: admin commands to `/dev/ublk-control`, each with a bound in time.
//!
//! Commands travel as `IORING_OP_URING_CMD` with a payload of 32 bytes, which needs submission entries of 128
//! bytes, so this ring is apart from the queues'. The kernel runs them on worker threads of the ring, where they may
//! block: a [`Control`] belongs on a thread that serves no queue.
#![expect(unsafe_code, reason = "pushing an entry that names a buffer of ours")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::squeue::Entry128;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};

use super::features::Features;
use super::uapi::{CtrlCmd, CtrlDevInfo, FEATURES_LEN, NO_DEVICE, NO_QUEUE, Params, admin};
use super::{bounds, uapi};
use crate::storage::IoBuf;
use crate::{Error, Kind, Result};

const PATH: &str = "/dev/ublk-control";
/// Bytes for what a command reads or fills: the largest is a CPU mask.
const BUFFER: usize = 4096;
/// Bytes of a CPU mask: room for 8,192 CPUs.
const MASK_BYTES: u16 = 1024;

/// An open `/dev/ublk-control` with its ring.
pub struct Control {
    ring: IoUring<Entry128, cqueue::Entry>,
    file: File,
    features: Option<Features>,
    /// What the running command reads or fills.
    buf: IoBuf,
    /// `user_data` of the next command; a completion of an earlier one, given up on, has a lower number.
    next: u64,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("features", &self.features).finish_non_exhaustive()
    }
}

/// One command with its arguments.
struct Call<'a> {
    command: uapi::Command,
    device: u32,
    queue: u16,
    data: u64,
    /// Bytes that the command reads.
    send: &'a [u8],
    /// Bytes at `addr`: what is sent, or how much may be filled.
    len: u16,
    bound: Duration,
}

impl Call<'_> {
    const fn new(command: uapi::Command, device: u32) -> Call<'static> {
        Call { command, device, queue: NO_QUEUE, data: 0, send: &[], len: 0, bound: bounds::QUICK }
    }

    fn what(&self) -> String {
        match self.device {
            NO_DEVICE => format!("ublk {}", self.command.name),
            id => format!("ublk {} of device {id}", self.command.name),
        }
    }
}

impl Control {
    /// Opens the control device and asks the driver for its features.
    pub fn open() -> Result<Control> {
        let file = OpenOptions::new().read(true).write(true).open(PATH).map_err(open_error)?;
        let ring = IoUring::builder().build(4).map_err(ring_error)?;
        let mut control = Control { ring, file, features: None, buf: IoBuf::zeroed(BUFFER), next: 0 };
        control.features = control.get_features()?;
        Ok(control)
    }

    /// What GET_FEATURES says; `None` where the driver does not have that command (before 6.5).
    pub const fn features(&self) -> Option<Features> {
        self.features
    }

    /// True if the driver offers all of `bits`; unknown before 6.5, so false.
    pub(super) fn offers(&self, bits: u64) -> bool {
        self.features.is_some_and(|features| features.has(bits))
    }

    /// The number to send for `command`. GET_FEATURES came after the ioctl encoding (6.4), and the drivers without
    /// it all know the legacy numbers.
    pub(super) const fn encode(&self, command: uapi::Command) -> u32 {
        if self.features.is_some() { command.encoded } else { command.raw }
    }

    fn get_features(&mut self) -> Result<Option<Features>> {
        let call = Call { len: FEATURES_LEN as u16, ..Call::new(admin::GET_FEATURES, NO_DEVICE) };
        match self.run_encoded(&call, admin::GET_FEATURES.encoded)? {
            0.. => Ok(Some(Features(u64::from_ne_bytes(self.received())))),
            // A driver that does not know the command looks for a device first, or refuses the number.
            code if [-libc::ENODEV, -libc::EINVAL, -libc::EOPNOTSUPP].contains(&code) => Ok(None),
            code => Err(failed(&call, code)),
        }
    }

    /// ADD_DEV: gives the device as the driver made it.
    pub(super) fn add_device(&mut self, info: &CtrlDevInfo) -> Result<CtrlDevInfo> {
        let call = Call {
            send: &info.to_bytes(),
            len: CtrlDevInfo::SIZE as u16,
            bound: bounds::START,
            ..Call::new(admin::ADD_DEV, info.dev_id)
        };
        self.run(&call)?;
        Ok(CtrlDevInfo::from_bytes(&self.received()))
    }

    /// GET_DEV_INFO; [`Kind::NotFound`] if there is no such device.
    pub(super) fn device_info(&mut self, id: u32) -> Result<CtrlDevInfo> {
        self.run(&Call { len: CtrlDevInfo::SIZE as u16, ..Call::new(admin::GET_DEV_INFO, id) })?;
        Ok(CtrlDevInfo::from_bytes(&self.received()))
    }

    /// SET_PARAMS.
    pub(super) fn set_params(&mut self, id: u32, params: &Params) -> Result<()> {
        let bytes = params.to_bytes();
        self.run(&Call { send: &bytes, len: Params::SIZE as u16, ..Call::new(admin::SET_PARAMS, id) })?;
        Ok(())
    }

    /// GET_PARAMS. The driver reads from the buffer how much of the structure the caller knows.
    pub(super) fn params(&mut self, id: u32) -> Result<Params> {
        let asked = Params { len: u32::from(Params::SIZE as u16), ..Params::default() }.to_bytes();
        self.run(&Call { send: &asked, len: Params::SIZE as u16, ..Call::new(admin::GET_PARAMS, id) })?;
        Ok(Params::from_bytes(&self.received()))
    }

    /// GET_QUEUE_AFFINITY: one bit for each CPU whose requests go to `queue`.
    pub(super) fn queue_affinity(&mut self, id: u32, queue: u16) -> Result<Vec<u8>> {
        let data = u64::from(queue);
        self.run(&Call { queue, data, len: MASK_BYTES, ..Call::new(admin::GET_QUEUE_AFFINITY, id) })?;
        Ok(self.received::<{ MASK_BYTES as usize }>().to_vec())
    }

    /// START_DEV: returns when the disk is there. Every tag must be fetched, or be about to.
    pub(super) fn start(&mut self, id: u32) -> Result<()> {
        self.run(&Call { data: own_pid(), bound: bounds::START, ..Call::new(admin::START_DEV, id) })?;
        Ok(())
    }

    /// STOP_DEV: returns when the disk is gone and every idle tag was told so.
    pub(super) fn stop(&mut self, id: u32) -> Result<()> {
        self.run(&Call { bound: bounds::STOP, ..Call::new(admin::STOP_DEV, id) })?;
        Ok(())
    }

    /// TRY_STOP_DEV: [`Kind::InUse`] while somebody has the disk open.
    pub(super) fn try_stop(&mut self, id: u32) -> Result<()> {
        self.run(&Call { bound: bounds::STOP, ..Call::new(admin::TRY_STOP_DEV, id) })?;
        Ok(())
    }

    /// DEL_DEV: returns when the number is free again. Nothing in this process may refer to `/dev/ublkcN` any more.
    pub(super) fn delete(&mut self, id: u32) -> Result<()> {
        self.run(&Call { bound: bounds::DELETE, ..Call::new(admin::DEL_DEV, id) })?;
        Ok(())
    }

    /// DEL_DEV_ASYNC: the number is free again when the last user of the disk has let go of it.
    pub(super) fn delete_later(&mut self, id: u32) -> Result<()> {
        self.run(&Call::new(admin::DEL_DEV_ASYNC, id))?;
        Ok(())
    }

    /// START_USER_RECOVERY; the raw answer, since EBUSY and EINVAL have meanings of their own.
    pub(super) fn start_recovery(&mut self, id: u32) -> Result<i32> {
        let call = Call::new(admin::START_USER_RECOVERY, id);
        let command = self.encode(call.command);
        self.run_encoded(&call, command)
    }

    /// END_USER_RECOVERY: requests flow again.
    pub(super) fn end_recovery(&mut self, id: u32) -> Result<()> {
        self.run(&Call { data: own_pid(), bound: bounds::START, ..Call::new(admin::END_USER_RECOVERY, id) })?;
        Ok(())
    }

    /// QUIESCE_DEV: the driver keeps new requests and takes idle tags away. EBUSY if a queue had no idle tag.
    pub(super) fn quiesce(&mut self, id: u32) -> Result<()> {
        let data = u64::try_from(bounds::QUIESCE.as_millis()).unwrap_or(u64::MAX);
        let bound = bounds::QUIESCE + bounds::QUICK;
        self.run(&Call { data, bound, ..Call::new(admin::QUIESCE_DEV, id) })?;
        Ok(())
    }

    fn run(&mut self, call: &Call<'_>) -> Result<i32> {
        match self.run_encoded(call, self.encode(call.command))? {
            code @ 0.. => Ok(code),
            code => Err(failed(call, code)),
        }
    }

    fn received<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.buf.copy_to(0, &mut bytes);
        bytes
    }

    /// Sends the command and waits for its answer, which may be minus an errno.
    fn run_encoded(&mut self, call: &Call<'_>, command: u32) -> Result<i32> {
        self.buf.zero(0..BUFFER);
        self.buf.copy_from(0, call.send);
        let payload = CtrlCmd {
            dev_id: call.device,
            queue_id: call.queue,
            len: call.len,
            addr: if call.len == 0 { 0 } else { self.buf.as_ptr() as u64 },
            data: call.data,
            ..CtrlCmd::default()
        };
        let mut bytes = [0; 80];
        bytes[..CtrlCmd::SIZE].copy_from_slice(&payload.to_bytes());
        self.next += 1;
        let entry = opcode::UringCmd80::new(Fd(self.file.as_raw_fd()), command).cmd(bytes).build();
        // SAFETY: the payload is in the entry; its buffer is `self.buf`, which is replaced and never freed if the
        // wait below gives up before the completion has come.
        unsafe { self.ring.submission().push(&entry.user_data(self.next)) }
            .map_err(|_| Error::new(Kind::Io, format!("{}: the control ring is full", call.what())))?;
        self.wait(call)
    }

    fn wait(&mut self, call: &Call<'_>) -> Result<i32> {
        let end = Instant::now() + call.bound;
        loop {
            while let Some(entry) = self.ring.completion().next() {
                if entry.user_data() == self.next {
                    return Ok(entry.result());
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                std::mem::forget(std::mem::replace(&mut self.buf, IoBuf::zeroed(BUFFER)));
                let seconds = call.bound.as_secs();
                let message = format!("{} did not end within {seconds} seconds", call.what());
                return Err(Error::new(Kind::Io, message).at(PATH));
            }
            let timeout = Timespec::from(left);
            match self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout)) {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN)) => {}
                Err(e) => return Err(Error::io(call.what(), e).at(PATH)),
            }
        }
    }
}

fn own_pid() -> u64 {
    u64::from(std::process::id())
}

fn failed(call: &Call<'_>, code: i32) -> Error {
    let error = Error::io(call.what(), io::Error::from_raw_os_error(-code)).at(PATH);
    match -code {
        libc::EPERM | libc::EACCES => error.hint("run as root, or with CAP_SYS_ADMIN"),
        _ => error,
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

    #[test]
    fn a_failed_command_names_itself_and_its_device() {
        let e = failed(&Call::new(admin::START_DEV, 3), -libc::EBUSY);
        assert_eq!(e.kind(), Kind::InUse);
        assert!(e.to_string().starts_with("/dev/ublk-control: ublk START_DEV of device 3: "), "{e}");
        let e = failed(&Call::new(admin::ADD_DEV, NO_DEVICE), -libc::EPERM);
        assert!(e.to_string().contains("ublk ADD_DEV: "), "{e}");
        assert!(e.hint_text().is_some());
    }
}
