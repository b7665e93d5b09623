//! What is served, and how to end it: for everybody but the daemons themselves.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::open::{locate, recorded_holder};
use super::registry::{Entry, Registry};
use super::start::clean_up;
use super::status::ImageStatus;
use super::{Mode, client, links};
use crate::storage::FileId;
use crate::ublk::{self, State};
use crate::{Error, Kind, Result};

/// What a stop has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// The image.
    pub path: String,
    /// Where it was served.
    pub device: String,
    /// No daemon served it: the device only waited for one.
    pub waited: bool,
}

/// An image that is served or whose device waits.
#[derive(Clone, Debug)]
enum Found {
    /// A daemon's control socket, with the entry if there is one.
    Daemon(PathBuf),
    /// A device without a daemon.
    Waiting(Registry, Entry, Unserved),
}

/// A device without a daemon.
#[derive(Clone, Copy, Debug)]
struct Unserved {
    id: u32,
    /// Its requests fail instead of waiting.
    fails: bool,
}

/// What is served on this host, or the one image or device `target`.
///
/// # Errors
/// [`Kind::NotFound`] if `target` is not served.
pub fn status(target: Option<&OsStr>, search: &[PathBuf]) -> Result<Vec<ImageStatus>> {
    let found = match target {
        Some(target) => find(target, search)?,
        None => all(|_| true),
    };
    let mut images = Vec::new();
    for found in &found {
        match found {
            Found::Waiting(_, entry, device) => images.push(ImageStatus::waiting(entry, device.fails)),
            Found::Daemon(socket) => match ask(socket) {
                Ok(status) => images.push(status),
                // It ended just now.
                Err(e) if e.kind() == Kind::NotFound => {}
                // A list shows what this user may see.
                Err(e) if e.kind() == Kind::Permission && target.is_none() => {}
                Err(e) => return Err(e),
            },
        }
    }
    match target {
        Some(target) if images.is_empty() => Err(not_served(target)),
        _ => Ok(images),
    }
}

fn ask(socket: &Path) -> Result<ImageStatus> {
    let value = client::status(socket)?;
    serde_json::from_value(value)
        .map_err(|e| Error::new(Kind::Unsupported, format!("the daemon's answer: {e}")).at(socket))
}

/// Ends the serving of the image or device `target`, or removes its waiting device. Returns when that is done.
///
/// # Errors
/// [`Kind::NotFound`] if it is not served; [`Kind::InUse`] while somebody has the disk open, unless `force`d.
pub fn stop(target: &OsStr, force: bool, search: &[PathBuf]) -> Result<Stopped> {
    let found = find(target, search)?;
    match &found[..] {
        [] => Err(not_served(target)),
        [Found::Daemon(socket)] => {
            let ImageStatus { path, device, .. } = ask(socket)?;
            client::stop(socket, force)?;
            Ok(Stopped { path, device, waited: false })
        }
        [Found::Waiting(registry, entry, device)] => {
            ublk::remove_waiting(device.id, entry.tag(), force)?;
            registry.remove(entry)?;
            Ok(Stopped { path: entry.path.clone(), device: entry.place.clone(), waited: true })
        }
        several => {
            let text = format!("it is served {} times: name one of the devices", several.len());
            Err(Error::new(Kind::Usage, text).at(Path::new(target)).hint("cowdisk status"))
        }
    }
}

fn not_served(target: &OsStr) -> Error {
    Error::new(Kind::NotFound, "it is not served").at(Path::new(target))
}

/// All that the registries know and that `wanted` takes. Those that are gone are forgotten on the way.
fn all(wanted: impl Fn(&Entry) -> bool) -> Vec<Found> {
    clean_up(&Registry::of_this_user());
    let entries = Registry::all().into_iter().filter(|(_, entry)| wanted(entry));
    entries.filter_map(|(registry, entry)| judge(registry, entry)).collect()
}

/// What an entry stands for now; `None`: nothing any more.
fn judge(registry: Registry, entry: Entry) -> Option<Found> {
    if client::answers(&entry) {
        return Some(Found::Daemon(entry.socket));
    }
    let device = match entry.device() {
        Ok(device) => {
            let device = device.filter(|device| device.state != State::Dead)?;
            Unserved { id: device.id, fails: device.state == State::FailIo }
        }
        // Only root may ask the driver; sysfs at least tells whether the device is there.
        Err(_) => {
            let there = |id: &u32| Path::new(&format!("/sys/class/ublk-char/ublkc{id}")).exists();
            Unserved { id: entry.device_id.filter(there)?, fails: false }
        }
    };
    Some(Found::Waiting(registry, entry, device))
}

/// What `target` names: a device's node or number, an NBD URI, or an image.
fn find(target: &OsStr, search: &[PathBuf]) -> Result<Vec<Found>> {
    if let Some(place) = place_of(target) {
        return Ok(all(|entry| entry.place == place));
    }
    let path = locate(Path::new(target), search)?;
    let found = all(|entry| entry.is_of(&path));
    if !found.is_empty() {
        return Ok(found);
    }
    // The same file under another name: a hard link, a bind mount.
    let meta = std::fs::metadata(&path).map_err(|e| Error::io("stat", e).at(&path))?;
    let file = FileId { dev: meta.dev(), ino: meta.ino() };
    let found = all(|entry| entry.is_of_file(file));
    if !found.is_empty() {
        return Ok(found);
    }
    // Served by another user, with a runtime directory of its own: the image itself knows.
    Ok(recorded_socket(&path)?.map(Found::Daemon).into_iter().collect())
}

/// The control socket that the image itself names, if somebody listens there.
fn recorded_socket(path: &Path) -> Result<Option<PathBuf>> {
    let socket = recorded_holder(path)?.map(|holder| PathBuf::from(holder.socket));
    let listening = |socket: &PathBuf| std::os::unix::net::UnixStream::connect(socket).is_ok();
    Ok(socket.filter(listening))
}

/// The control socket of the daemon that writes the image `path`; `None`: there is none.
pub(super) fn writer_of(path: &Path) -> Result<Option<PathBuf>> {
    let writes = |entry: &Entry| entry.mode == Mode::Write;
    let listed = all(|entry| writes(entry) && entry.is_of(path)).into_iter().find_map(|found| match found {
        Found::Daemon(socket) => Some(socket),
        Found::Waiting(..) => None,
    });
    listed.map_or_else(|| recorded_socket(path), |socket| Ok(Some(socket)))
}

/// The device of the image `path` that waits for the next daemon.
pub(super) fn waiting_device(path: &Path) -> Option<String> {
    let found = all(|entry| entry.mode == Mode::Write && entry.is_of(path));
    found.into_iter().find_map(|found| match found {
        Found::Waiting(_, entry, _) => Some(entry.place),
        Found::Daemon(_) => None,
    })
}

/// A device as it stands in an entry, if `target` names one.
fn place_of(target: &OsStr) -> Option<String> {
    let linked = Path::new(target).starts_with(links::DIR);
    let real = if linked { std::fs::canonicalize(target).ok() } else { None };
    let target = real.as_ref().map_or(target, |real| real.as_os_str());
    let text = target.to_str()?;
    let is_number = text.parse::<u32>().is_ok() && !Path::new(text).exists();
    match text {
        number if is_number => Some(format!("/dev/ublkb{number}")),
        place if place.starts_with("/dev/ublkb") || place.starts_with("nbd") && place.contains("://") => {
            Some(place.to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_from_images() {
        let place = |text: &str| place_of(OsStr::new(text));
        assert_eq!(place("/dev/ublkb3").as_deref(), Some("/dev/ublkb3"));
        assert_eq!(place("3").as_deref(), Some("/dev/ublkb3"));
        assert_eq!(place("nbd+unix:///?socket=/a").as_deref(), Some("nbd+unix:///?socket=/a"));
        assert_eq!(place("vm.cow"), None);
        assert_eq!(place("nbd.cow"), None);
        assert_eq!(place("3.cow"), None);
    }
}
