//! Taking up a device whose server has gone.
//!
//! When a server ends, the driver keeps the disk, requeues what was in flight (USER_RECOVERY_REISSUE) and holds all
//! requests: the device is QUIESCED; or it fails all requests (USER_RECOVERY_FAIL_IO): the device is in FAIL_IO.
//! START_USER_RECOVERY makes its queues forget the old server, the new one fetches every tag, and END_USER_RECOVERY lets the
//! requests flow again, those that were in flight first. A write may so be executed twice.

use std::time::Instant;

use super::control::Control;
use super::device::Device;
use super::driver::Driver;
use super::features::{self, FeatureChoice, Features, Wish};
use super::kernel::Kernel;
use super::node;
use super::uapi::{CtrlDevInfo, Params, flag, state};
use super::{bounds, params};
use crate::device::Disk;
use crate::units::SECTOR;
use crate::{Error, Kind, Result};

/// Which device to take up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoverOptions {
    /// The N of `/dev/ublkbN`.
    pub device_id: u32,
    /// The tag of its start; a device with another one is not ours.
    pub tag: u64,
    /// Features that must be used, or must not; most were settled when the device was made.
    pub features: FeatureChoice,
}

impl Device {
    /// Takes up a device that waits for a server, or whose server is just dying. Queues, depth and request size stay
    /// as they are. Fails with [`Kind::NotFound`] if the device is gone, stopped or not ours, with [`Kind::InUse`]
    /// while another process serves it.
    pub fn recover<D: Disk>(disk: &D, options: &RecoverOptions) -> Result<Device> {
        Device::recover_on(&Kernel, disk, options)
    }
}

impl<K: Driver> Device<K> {
    /// [`Device::recover`] on the machine of `driver`.
    pub fn recover_on<D: Disk>(driver: &K, disk: &D, options: &RecoverOptions) -> Result<Device<K>> {
        let id = options.device_id;
        let mut control = Control::open_on(driver)?;
        control.leave_out(options.features.off);
        let info = find_waiting(&mut control, options)?;
        features::accept(Features(info.flags))?;
        let wish = Wish { choice: options.features, ..Wish::default() };
        wish.check(Features(info.flags)).map_err(|e| e.at(node::block_node(id)))?;
        if info.flags & flag::USER_RECOVERY == 0 {
            let message = "the device was started without recovery";
            return Err(Error::new(Kind::Unsupported, message).at(node::block_node(id)));
        }
        let params = control.params(id)?;
        params::check_same_disk(&params, &disk.geometry()).map_err(|e| e.at(node::block_node(id)))?;
        let mut device = Device::new(driver.clone(), control, info, options.features.off);
        match device.take_up(disk, options) {
            Ok(()) => {
                device.tell_size(&params, disk.geometry().size);
                Ok(device)
            }
            Err(e) => {
                // Threads that have fetched stay until the process ends; then the device waits again.
                device.abandon();
                Err(e)
            }
        }
    }

    /// The last server may have died between a resize and telling of it, or without being able to.
    fn tell_size(&mut self, known: &Params, bytes: u64) {
        if known.basic.dev_sectors * SECTOR != bytes {
            let told = self.update_size(bytes);
            self.warnings.extend(told.err().map(|e| format!("size: {e}")));
        }
    }

    /// All that can fail or takes time comes before START_USER_RECOVERY. Before 6.15 the driver crashes in the next
    /// recovery if a server dies when some of its queues are fetched and others are not: the fetches follow each
    /// other at once.
    fn take_up<D: Disk>(&mut self, disk: &D, options: &RecoverOptions) -> Result<()> {
        self.prepare_threads(disk)?;
        start_recovery(&self.driver, self.control.get_mut(), options)?;
        self.attach_threads()?;
        let id = options.device_id;
        self.control.get_mut().end_recovery(id)?;
        // The last server may have died between the start of the disk and the look for partitions.
        let driver = &self.driver;
        let scans = self.control.get_mut().knows(flag::QUIESCE);
        if scans && driver.has_no_partitions(id) && driver.openers(id).is_empty() {
            let result = driver.open_disk(id).and_then(|disk| driver.read_partitions(&disk));
            self.wish("partitions", result);
        }
        Ok(())
    }
}

/// The device, if its tag is right and it has a disk.
fn find_waiting<K: Driver>(control: &mut Control<K>, options: &RecoverOptions) -> Result<CtrlDevInfo> {
    let info = control.device_info(options.device_id)?;
    check_tag(&info, options.tag)?;
    if info.state == state::DEAD {
        let message = "the device is stopped: there is nothing to take up";
        return Err(Error::new(Kind::NotFound, message).at(node::block_node(info.dev_id)));
    }
    Ok(info)
}

pub(super) fn check_tag(info: &CtrlDevInfo, tag: u64) -> Result<()> {
    if info.ublksrv_flags == tag {
        return Ok(());
    }
    let message = "the device belongs to another start";
    Err(Error::new(Kind::NotFound, message).at(node::block_node(info.dev_id)))
}

/// START_USER_RECOVERY, again and again while the old server is still on its way out.
fn start_recovery<K: Driver>(driver: &K, control: &mut Control<K>, options: &RecoverOptions) -> Result<()> {
    let begin = driver.now();
    loop {
        let info = find_waiting(control, options)?;
        match -control.start_recovery(options.device_id)? {
            ..=0 => return Ok(()),
            libc::EBUSY => {}
            // A recovery began and ended before its first queue was fetched: the queues are as it left them, clean.
            libc::EINVAL if [state::QUIESCED, state::FAIL_IO].contains(&info.state) => return Ok(()),
            errno => {
                let source = std::io::Error::from_raw_os_error(errno);
                let what = format!("ublk START_USER_RECOVERY of device {}", info.dev_id);
                return Err(Error::io(what, source).at(node::block_node(info.dev_id)));
            }
        }
        check_old_server(driver, &info, begin)?;
        driver.pause(bounds::POLL);
    }
}

/// The old server must go within a bound. One that is alive and well is not going at all.
fn check_old_server<K: Driver>(driver: &K, info: &CtrlDevInfo, begin: Instant) -> Result<()> {
    let waited = driver.now().saturating_duration_since(begin);
    let alive = info.state == state::LIVE && driver.is_alive(info.ublksrv_pid);
    let message = if alive && waited > bounds::ALIVE {
        format!("the device is served by process {}", info.ublksrv_pid)
    } else if waited > bounds::OLD_SERVER {
        format!(
            "its last server, process {}, is not gone after {} seconds",
            info.ublksrv_pid,
            waited.as_secs()
        )
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::InUse, message).at(node::block_node(info.dev_id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn live(pid: i32) -> CtrlDevInfo {
        CtrlDevInfo { state: state::LIVE, ublksrv_pid: pid, ublksrv_flags: 7, ..CtrlDevInfo::default() }
    }

    #[test]
    fn another_starts_device_is_not_found() {
        check_tag(&live(1), 7).unwrap();
        assert_eq!(check_tag(&live(1), 8).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn a_living_server_is_named_and_a_dead_one_waited_for() {
        let own = i32::try_from(std::process::id()).unwrap();
        let Some(past) = Instant::now().checked_sub(bounds::ALIVE + Duration::from_secs(1)) else { return };
        check_old_server(&Kernel, &live(own), Instant::now()).unwrap();
        let e = check_old_server(&Kernel, &live(own), past).unwrap_err();
        assert_eq!(e.kind(), Kind::InUse);
        assert!(e.to_string().contains(&own.to_string()), "{e}");
        check_old_server(&Kernel, &live(0), past).unwrap();
        check_old_server(&Kernel, &CtrlDevInfo { state: state::QUIESCED, ..live(own) }, past).unwrap();
    }
}
