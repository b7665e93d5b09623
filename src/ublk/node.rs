//! Device nodes, which may appear a little later than what they stand for.

use std::io;
use std::path::PathBuf;

use super::bounds;
use super::driver::Driver;
use crate::{Error, Kind, Result};

/// The disk.
pub(super) fn block_node(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

pub(super) fn char_node(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkc{id}"))
}

/// Opens `/dev/ublkcN`. Its node appears with ADD_DEV (devtmpfs), or a little later (udev). Only one process at a
/// time can have it open: EBUSY means that the old server is not gone yet.
pub(super) fn open_char<K: Driver>(driver: &K, id: u32) -> Result<K::Char> {
    let not_yet = [libc::ENOENT, libc::ENXIO, libc::ENODEV, libc::EACCES, libc::EBUSY];
    open_when_there(driver, || driver.open_char(id), &not_yet).map_err(|e| e.at(char_node(id)))
}

/// True if a process has the device's character device open.
pub(super) fn char_is_open<K: Driver>(driver: &K, id: u32) -> bool {
    matches!(driver.open_char(id), Err(e) if e.raw_os_error() == Some(libc::EBUSY))
}

/// Waits until `/dev/ublkbN` can be opened.
pub(super) fn wait_for_disk<K: Driver>(driver: &K, id: u32) -> Result<K::Node> {
    let not_yet = [libc::ENOENT, libc::ENXIO, libc::EACCES, libc::EBUSY];
    open_when_there(driver, || driver.open_disk(id), &not_yet).map_err(|e| e.at(block_node(id)))
}

fn open_when_there<K: Driver, T>(driver: &K, open: impl Fn() -> io::Result<T>, not_yet: &[i32]) -> Result<T> {
    let end = driver.now() + bounds::NODE;
    loop {
        match open() {
            Ok(opened) => return Ok(opened),
            Err(e)
                if e.raw_os_error().is_some_and(|errno| not_yet.contains(&errno)) && driver.now() < end =>
            {
                driver.pause(bounds::POLL);
            }
            Err(e) => {
                let error = Error::io("the device cannot be opened", e);
                let missing = error.kind() == Kind::NotFound;
                return Err(if missing { error.hint("mount -t devtmpfs dev /dev") } else { error });
            }
        }
    }
}
