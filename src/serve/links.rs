//! Stable names of devices: `/dev/cowdisk/NAME` and `/dev/cowdisk/by-id/DISK_ID`.
//!
//! The daemon makes them itself, before it says that it is ready: so they are there with and without udev. It writes
//! down in its registry entry which ones it has made, and that is what decides whose a name is: one that an entry with
//! a device claims is never taken away, also not while the device waits for its next daemon; any other symbolic link to
//! a ublk device was left behind and is replaced. Where udev runs it is told (`udev` in this directory's rules asks
//! [`names_of`]) and makes the same links once more, so that systemd knows the names too.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::registry::{Entry, Registry};
use super::{Mode, is_disk_name};
use crate::error::printable;
use crate::{Error, Kind, Result};

/// Where the links are.
pub(super) const DIR: &str = "/dev/cowdisk";
const BY_ID: &str = "by-id";
const UDEV: &str = "/run/udev/control";

/// The links that a disk would like, below [`DIR`].
fn wanted(entry: &Entry) -> Vec<String> {
    let mut links = Vec::new();
    if entry.frontend != "ublk" {
        return links;
    }
    if is_disk_name(&entry.name) && entry.name != BY_ID {
        links.push(entry.name.clone());
    }
    // What is written to a temporary disk is not what its id stands for.
    if entry.mode != Mode::Temporary {
        links.push(format!("{BY_ID}/{}", entry.disk_id));
    }
    links
}

/// Makes the links in `dir` that the device of `entry` would like and none of `others` claims, unless that one's device
/// does not live any more. Gives the links that it could not make, as lines for the log.
pub(super) fn name_device(
    dir: &Path,
    entry: &mut Entry,
    others: &[Entry],
    lives: impl Fn(&Entry) -> bool,
) -> Vec<String> {
    let mut refused = Vec::new();
    for link in wanted(entry) {
        let holder = others.iter().find(|other| other.links.contains(&link) && lives(other));
        let made = match holder {
            Some(other) => Err(format!("it is {} ({})", other.place, other.path)),
            None => put(dir, &link, &entry.place).map_err(|e| e.to_string()),
        };
        match made {
            Ok(()) => entry.links.push(link),
            Err(why) => refused.push(refused_line(&link, &why)),
        }
    }
    refused
}

/// Makes the link `link` in `dir` to the device `node`. The caller knows that no living device has that name.
///
/// # Errors
/// Something else is there, or the host's.
fn put(dir: &Path, link: &str, node: &str) -> io::Result<()> {
    let place = dir.join(link);
    match fs::read_link(&place) {
        Ok(target) if is_device(&target) => {}
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it leads somewhere else")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let parent = place.parent().unwrap_or(dir);
    fs::create_dir_all(parent)?;
    let temporary = parent.join(format!(".{}.tmp", std::process::id()));
    let _ = fs::remove_file(&temporary);
    symlink(target_of(link, node), &temporary)?;
    // In the place of an old one at once: whoever opens it finds one or the other.
    fs::rename(&temporary, &place)
}

/// Removes the links that still lead to `node`, and directories that are empty then.
pub(super) fn remove(dir: &Path, links: &[String], node: &str) {
    for link in links {
        let place = dir.join(link);
        if fs::read_link(&place).is_ok_and(|target| target == target_of(link, node)) {
            // Whatever keeps it there: the next daemon that wants the name replaces it.
            let _ = fs::remove_file(&place);
        }
    }
    if !links.is_empty() {
        for empty in [dir.join(BY_ID), dir.to_owned()] {
            let _ = fs::remove_dir(empty);
        }
    }
}

/// Relative, as udev makes them.
fn target_of(link: &str, node: &str) -> PathBuf {
    let name = Path::new(node).file_name().unwrap_or_default();
    let up = link.split('/').map(|_| "..").collect::<PathBuf>();
    up.join(name)
}

fn is_device(target: &Path) -> bool {
    target.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"ublkb"))
}

/// Lets udev look at the device `node` and its partitions again, where udev runs.
pub(super) fn tell_udev(node: &str) {
    let Some(name) = Path::new(node).file_name().and_then(|name| name.to_str()) else { return };
    if !Path::new(UDEV).exists() {
        return;
    }
    let disk = Path::new("/sys/block").join(name);
    let parts = fs::read_dir(&disk).into_iter().flatten().flatten().map(|entry| entry.path());
    let parts = parts.filter(|path| path.join("partition").exists());
    for device in std::iter::once(disk.clone()).chain(parts) {
        // Only names for other programs depend on it.
        let _ = fs::write(device.join("uevent"), "change");
    }
}

/// The names of a device for udev: those of its links that the daemon has made and that udev takes as they are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceNames {
    /// NAME of `/dev/cowdisk/NAME`.
    pub name: Option<String>,
    /// DISK_ID of `/dev/cowdisk/by-id/DISK_ID`.
    pub disk_id: Option<String>,
}

/// The names of the device `node`, `/dev/ublkbN`.
///
/// # Errors
/// [`Kind::NotFound`] if it is no device of ours.
pub fn names_of(node: &Path) -> Result<DeviceNames> {
    let entries = Registry::all().into_iter().map(|(_, entry)| entry);
    let mut ours = entries.filter(|entry| Path::new(&entry.place) == node);
    // The number may have been given away again.
    let is_this = |entry: &Entry| entry.device().is_ok_and(|device| device.map(|d| d.id) == entry.device_id);
    let entry = ours.find(is_this).ok_or_else(|| Error::new(Kind::NotFound, "not served").at(node))?;
    Ok(names(&entry.links))
}

fn names(links: &[String]) -> DeviceNames {
    let prefix = format!("{BY_ID}/");
    let disk_id = links.iter().find_map(|link| link.strip_prefix(&prefix)).map(str::to_owned);
    let name = links.iter().find(|link| !link.contains('/')).filter(|name| is_plain(name)).cloned();
    DeviceNames { name, disk_id }
}

/// True if udev makes no other name of it.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&b))
}

/// That a link could not be had, and why.
fn refused_line(link: &str, why: &str) -> String {
    printable(&format!("no link {DIR}/{link}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::super::registry::Identity;
    use super::*;
    use crate::storage::FileId;

    fn target(dir: &Path, link: &str) -> Option<String> {
        fs::read_link(dir.join(link)).ok().map(|t| t.to_string_lossy().into_owned())
    }

    #[test]
    fn links_come_and_go_and_lead_to_the_device() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("cowdisk");
        let links = ["vm".to_owned(), "by-id/1234".to_owned()];
        for link in &links {
            put(&dir, link, "/dev/ublkb3").unwrap();
            put(&dir, link, "/dev/ublkb3").unwrap();
        }
        assert_eq!(target(&dir, "vm").as_deref(), Some("../ublkb3"));
        assert_eq!(target(&dir, "by-id/1234").as_deref(), Some("../../ublkb3"));
        remove(&dir, &links, "/dev/ublkb4");
        assert!(target(&dir, "vm").is_some(), "not ours");
        put(&dir, "vm", "/dev/ublkb4").unwrap();
        remove(&dir, &links, "/dev/ublkb3");
        assert_eq!(target(&dir, "vm").as_deref(), Some("../ublkb4"), "another device has the name now");
        remove(&dir, &links, "/dev/ublkb4");
        assert!(!dir.exists());
    }

    /// The entry of a device `node` whose disk is called `name`.
    fn named(name: &str, disk_id: &str, node: &str, tag: u64) -> Entry {
        let identity = Identity {
            path: Path::new("/vm.cow"),
            file: FileId { dev: 1, ino: 2 },
            disk_id: disk_id.into(),
            mode: Mode::Write,
            name: name.into(),
            tag,
        };
        let mut entry = Entry::new(identity, "host".into(), "ublk", "/s".into());
        entry.place = node.into();
        entry
    }

    #[test]
    fn a_name_is_never_taken_from_a_living_device() {
        let dir = tempfile::tempdir().unwrap();
        let target = |link: &str| fs::read_link(dir.path().join(link)).unwrap();
        let mut first = named("vm", "id-1", "/dev/ublkb0", 1);
        assert!(name_device(dir.path(), &mut first, &[], |_| true).is_empty());
        assert_eq!(first.links, ["vm", "by-id/id-1"]);

        let mut second = named("vm", "id-2", "/dev/ublkb1", 2);
        let others = [first.clone()];
        let refused = name_device(dir.path(), &mut second, &others, |_| true);
        assert!(refused.len() == 1 && refused[0].contains("it is /dev/ublkb0 (/vm.cow)"), "{refused:?}");
        assert_eq!((second.links.as_slice(), target("vm")), (&["by-id/id-2".into()][..], "../ublkb0".into()));

        // Its device is gone, and nobody has cleaned up.
        let mut third = named("vm", "id-1", "/dev/ublkb0", 3);
        assert!(name_device(dir.path(), &mut third, &others, |_| false).is_empty());
        assert_eq!(third.links, first.links);
        // The next daemon of a device that waited.
        let mut again = named("vm", "id-1", "/dev/ublkb0", 1);
        assert!(name_device(dir.path(), &mut again, &[], |_| true).is_empty());
        assert_eq!(target("by-id/id-1"), PathBuf::from("../../ublkb0"));
    }

    #[test]
    fn only_devices_with_proper_names_get_links() {
        for name in ["", ".x", "a\nb", "by-id", &"n".repeat(101)] {
            assert_eq!(wanted(&named(name, "i", "/dev/ublkb0", 1)), ["by-id/i"], "{name}");
        }
        let mut other = named("vm", "i", "/dev/ublkb0", 1);
        other.mode = Mode::Temporary;
        assert_eq!(wanted(&other), ["vm"]);
        other.frontend = "nbd".into();
        assert!(wanted(&other).is_empty(), "an NBD server has no device");
    }

    #[test]
    fn what_is_no_link_to_a_device_stays() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("file"), "x").unwrap();
        symlink("/etc/passwd", tmp.path().join("link")).unwrap();
        fs::create_dir(tmp.path().join("dir")).unwrap();
        for name in ["file", "link", "dir"] {
            put(tmp.path(), name, "/dev/ublkb0").unwrap_err();
        }
        assert_eq!(fs::read(tmp.path().join("file")).unwrap(), b"x");
        assert_eq!(target(tmp.path(), "link").as_deref(), Some("/etc/passwd"));
    }

    #[test]
    fn udev_gets_the_names_that_it_takes_as_they_are() {
        let of = |links: &[&str]| names(&links.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>());
        let both = of(&["vm-1.2", "by-id/12-34"]);
        assert_eq!((both.name.as_deref(), both.disk_id.as_deref()), (Some("vm-1.2"), Some("12-34")));
        assert_eq!(of(&["my disk"]), DeviceNames::default());
        assert_eq!(of(&[]), DeviceNames::default());
    }
}
