//! What processes other than the server may know of a device, and do to it.

use super::bounds;
use super::control::Control;
use super::device::{delete_disk, stop_disk};
use super::driver::Driver;
use super::features::Features;
use super::kernel::Kernel;
use super::node;
use super::recovery::check_tag;
use super::uapi::{CtrlDevInfo, state};
use crate::{Error, Kind, Result};

/// State of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Without a disk: not started yet, or stopped.
    Dead,
    /// Served.
    Live,
    /// Without a server; its requests wait for one.
    Quiesced,
    /// Without a server; its requests fail.
    FailIo,
    /// One that came after this program.
    Unknown(u16),
}

impl State {
    const fn from_raw(raw: u16) -> State {
        match raw {
            state::DEAD => State::Dead,
            state::LIVE => State::Live,
            state::QUIESCED => State::Quiesced,
            state::FAIL_IO => State::FailIo,
            other => State::Unknown(other),
        }
    }
}

/// A ublk device, whoever serves it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// The N of `/dev/ublkbN`.
    pub id: u32,
    /// Its state.
    pub state: State,
    /// Queues.
    pub queues: u16,
    /// Tags of each queue.
    pub depth: u16,
    /// Largest request in bytes.
    pub max_io: u32,
    /// Its last server; `None` before START_DEV and after STOP_DEV.
    pub pid: Option<i32>,
    /// The tag of its start, if one of ours made it; any number otherwise.
    pub tag: u64,
    /// What was negotiated.
    pub features: Features,
}

impl From<CtrlDevInfo> for DeviceInfo {
    fn from(info: CtrlDevInfo) -> DeviceInfo {
        DeviceInfo {
            id: info.dev_id,
            state: State::from_raw(info.state),
            queues: info.nr_hw_queues,
            depth: info.queue_depth,
            max_io: info.max_io_buf_bytes,
            pid: Some(info.ublksrv_pid).filter(|&pid| pid > 0),
            tag: info.ublksrv_flags,
            features: Features(info.flags),
        }
    }
}

/// The device `id`; [`Kind::NotFound`] if there is none.
pub fn device_info(id: u32) -> Result<DeviceInfo> {
    device_info_on(&Kernel, id)
}

/// [`device_info`] on the machine of `driver`.
pub fn device_info_on<K: Driver>(driver: &K, id: u32) -> Result<DeviceInfo> {
    Control::open_on(driver)?.device_info(id).map(DeviceInfo::from)
}

/// All ublk devices, by id. There is no command for that: sysfs names them.
pub fn list_devices() -> Result<Vec<DeviceInfo>> {
    list_devices_on(&Kernel)
}

/// [`list_devices`] on the machine of `driver`.
pub fn list_devices_on<K: Driver>(driver: &K) -> Result<Vec<DeviceInfo>> {
    let mut control = Control::open_on(driver)?;
    let mut ids = driver.devices();
    ids.sort_unstable();
    let mut devices = Vec::new();
    for id in ids {
        match control.device_info(id) {
            Ok(info) => devices.push(info.into()),
            // Removed meanwhile.
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(devices)
}

/// The device of the start with this tag. A server that records its tag before the start finds the device again
/// whenever it died.
pub fn find_device(tag: u64) -> Result<Option<DeviceInfo>> {
    Ok(list_devices()?.into_iter().find(|device| device.tag == tag))
}

/// Removes a device that no process serves: one that waits, or one whose start never ended. Refuses with
/// [`Kind::NotFound`] if its tag is another one, with [`Kind::InUse`] while a process serves it, and, unless
/// `force`d, while somebody has it open; forced, its users get EIO.
pub fn remove_waiting(id: u32, tag: u64, force: bool) -> Result<()> {
    remove_waiting_on(&Kernel, id, tag, force)
}

/// [`remove_waiting`] on the machine of `driver`.
pub fn remove_waiting_on<K: Driver>(driver: &K, id: u32, tag: u64, force: bool) -> Result<()> {
    let mut control = Control::open_on(driver)?;
    wait_until_unserved(driver, &mut control, id, tag)?;
    stop_disk(driver, &mut control, id, force, false)?;
    delete_disk(&mut control, id, force)
}

/// A server that was just killed may need a moment; one that lives is refused.
fn wait_until_unserved<K: Driver>(driver: &K, control: &mut Control<K>, id: u32, tag: u64) -> Result<()> {
    let begin = driver.now();
    loop {
        let info = control.device_info(id)?;
        check_tag(&info, tag)?;
        let (served, alive) = match info.state {
            state::LIVE => (true, driver.is_alive(info.ublksrv_pid)),
            // Without a disk the driver names no server: one that starts, or ends, has the character device open.
            state::DEAD => (node::char_is_open(driver, id), true),
            _ => (false, false),
        };
        if !served {
            return Ok(());
        }
        if driver.now().saturating_duration_since(begin)
            > if alive { bounds::ALIVE } else { bounds::OLD_SERVER }
        {
            let pid = info.ublksrv_pid;
            let who = if pid > 0 { format!("process {pid}") } else { "another process".to_owned() };
            let message = format!("the device is served by {who}");
            return Err(Error::new(Kind::InUse, message).at(node::block_node(id)));
        }
        driver.pause(bounds::POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_a_server_has_no_pid() {
        let raw = CtrlDevInfo { state: 2, ublksrv_pid: -1, ublksrv_flags: 5, ..CtrlDevInfo::default() };
        let info = DeviceInfo::from(raw);
        assert_eq!((info.state, info.pid, info.tag), (State::Quiesced, None, 5));
        assert_eq!(State::from_raw(9), State::Unknown(9));
    }
}
