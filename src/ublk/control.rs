//! The control plane: admin commands to `/dev/ublk-control`, each with a bound in time.
//!
//! The driver runs them on worker threads of the ring, where they may block: a [`Control`] belongs on a thread that
//! serves no queue.

use std::io;
use std::time::Duration;

use super::driver::{Admin, AdminCall, Driver};
use super::features::{Features, command};
use super::kernel::Kernel;
use super::uapi::{CtrlDevInfo, FEATURES_LEN, NO_DEVICE, NO_QUEUE, Params, admin, flag};
use super::{bounds, node, uapi};
use crate::{Error, Kind, Result};

pub(super) const PATH: &str = "/dev/ublk-control";
/// Bytes of a CPU mask: room for 8,192 CPUs.
const MASK_BYTES: u16 = 1024;

/// An open `/dev/ublk-control`.
#[derive(Debug)]
pub struct Control<K: Driver = Kernel> {
    admin: K::Admin,
    features: Option<Features>,
    /// What is not used, though the driver may have it.
    off: Features,
    /// Commands are sent in ioctl encoding.
    encoded: bool,
    /// This process.
    pid: u32,
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
    path_len: u16,
    bound: Duration,
}

impl Call<'_> {
    const fn new(command: uapi::Command, device: u32) -> Call<'static> {
        Call {
            command,
            device,
            queue: NO_QUEUE,
            data: 0,
            send: &[],
            len: 0,
            path_len: 0,
            bound: bounds::QUICK,
        }
    }

    fn what(&self) -> String {
        match self.device {
            NO_DEVICE => format!("ublk {}", self.command.name),
            id => format!("ublk {} of device {id}", self.command.name),
        }
    }
}

impl Control {
    /// Opens the control device of this machine and asks the driver for its features.
    pub fn open() -> Result<Control> {
        Control::open_on(&Kernel)
    }
}

impl<K: Driver> Control<K> {
    /// [`Control::open`] on the machine of `driver`.
    pub fn open_on(driver: &K) -> Result<Control<K>> {
        let (admin, pid) = (driver.open_admin()?, driver.pid());
        let off = Features::default();
        let mut control = Control { admin, features: None, off, encoded: true, pid };
        control.features = control.get_features()?;
        control.encoded = control.features.is_some() || !control.takes_raw_numbers()?;
        Ok(control)
    }

    /// What GET_FEATURES says; `None` where the driver does not have that command (before 6.5).
    pub const fn features(&self) -> Option<Features> {
        self.features
    }

    /// Does without `off` from now on.
    pub(super) const fn leave_out(&mut self, off: Features) {
        self.off = off;
        self.encoded &= !off.has(flag::CMD_IOCTL_ENCODE);
    }

    /// True if the driver has all of `bits`, used or not; unknown before 6.5, so false.
    pub(super) fn knows(&self, bits: u64) -> bool {
        self.features.is_some_and(|features| features.has(bits))
    }

    /// True if the driver has all of `bits`, and they are not left out.
    pub(super) fn offers(&self, bits: u64) -> bool {
        self.knows(bits) && !self.leaves_out(bits)
    }

    /// True if one of `bits` is left out.
    pub(super) const fn leaves_out(&self, bits: u64) -> bool {
        self.off.0 & bits != 0
    }

    /// The number to send for `command`: encoded, unless the driver may be too old for that (6.4).
    pub(super) const fn encode(&self, command: uapi::Command) -> u32 {
        if self.encoded { command.encoded } else { command.raw }
    }

    /// A driver without GET_FEATURES (before 6.5) knows the raw numbers, unless it is of 6.4 and was built without
    /// them.
    fn takes_raw_numbers(&mut self) -> Result<bool> {
        let call = Call { len: CtrlDevInfo::SIZE as u16, ..Call::new(admin::GET_DEV_INFO, NO_DEVICE) };
        Ok(self.run_encoded(&call, admin::GET_DEV_INFO.raw)? != -libc::EOPNOTSUPP)
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

    /// GET_DEV_INFO2 or GET_DEV_INFO; [`Kind::NotFound`] if there is no such device.
    pub(super) fn device_info(&mut self, id: u32) -> Result<CtrlDevInfo> {
        // An ordinary user's device is shown only to who names it by its path, root included.
        if self.offers(flag::UNPRIVILEGED_DEV) && !self.leaves_out(command::GET_DEV_INFO2) {
            let path = node::char_node(id).into_os_string().into_encoded_bytes();
            let (path_len, len) = (path.len() as u16, (path.len() + CtrlDevInfo::SIZE) as u16);
            let call = Call { send: &path, path_len, len, ..Call::new(admin::GET_DEV_INFO2, id) };
            if self.run(&call).is_ok() {
                let mut bytes = vec![0; usize::from(len)];
                self.admin.received(&mut bytes);
                let info = bytes.last_chunk().expect("it ends with the structure");
                return Ok(CtrlDevInfo::from_bytes(info));
            }
            // Its node may not be there (yet).
        }
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
        self.run(&Call {
            data: u64::from(self.pid),
            bound: bounds::START,
            ..Call::new(admin::START_DEV, id)
        })?;
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
        self.run(&Call {
            data: u64::from(self.pid),
            bound: bounds::START,
            ..Call::new(admin::END_USER_RECOVERY, id)
        })?;
        Ok(())
    }

    /// UPDATE_SIZE, of a device that has it (6.16): its users see a disk of `sectors` sectors from now on.
    pub(super) fn update_size(&mut self, id: u32, sectors: u64) -> Result<()> {
        self.run(&Call { data: sectors, ..Call::new(admin::UPDATE_SIZE, id) })?;
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
        self.admin.received(&mut bytes);
        bytes
    }

    /// Sends the command as `number` and waits for its answer, which may be minus an errno.
    fn run_encoded(&mut self, call: &Call<'_>, number: u32) -> Result<i32> {
        let Call { device, queue, data, send, len, path_len, bound, .. } = *call;
        let sent = AdminCall { number, device, queue, data, send, len, path_len, bound };
        self.admin.run(&sent).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => {
                let message = format!("{} did not end within {} seconds", call.what(), bound.as_secs());
                Error::new(Kind::Io, message).at(PATH)
            }
            _ => Error::io(call.what(), e).at(PATH),
        })
    }
}

fn failed(call: &Call<'_>, code: i32) -> Error {
    let error = Error::io(call.what(), io::Error::from_raw_os_error(-code)).at(PATH);
    match -code {
        libc::EPERM | libc::EACCES => error.hint("run as root, or with CAP_SYS_ADMIN"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
