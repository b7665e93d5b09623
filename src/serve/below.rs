//! On which ublk devices a file lies: an image must not lie on its own.
//!
//! A daemon whose image is on its own disk waits for itself. That comes about when a disk is mounted over the directory
//! of its image, with a copy of the image on it, and the daemon is started again. sysfs tells what a file system's device
//! is built on: a partition lies in the directory of its disk, `slaves` names what device-mapper and MD use, and
//! `loop/backing_file` the file below a loop device.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::ops::process;

/// Devices that are looked at, at most.
const MAX_DEVICES: usize = 1024;

/// The numbers N of the ublk devices `/dev/ublkbN` that the file `path` lies on, directly or through others. Empty where
/// that cannot be seen: on the network, in memory, and through an overlay.
pub(super) fn ublk_devices_below(path: &Path) -> BTreeSet<u32> {
    below(Path::new("/sys/dev/block"), path, &device_of)
}

/// The device, `major:minor`, of the file system on which `path` is.
fn device_of(path: &Path) -> Option<String> {
    let meta = fs::metadata(path).ok()?;
    if meta.file_type().is_block_device() {
        return Some(number(meta.rdev()));
    }
    let own = number(meta.dev());
    if Path::new("/sys/dev/block").join(&own).exists() {
        return Some(own);
    }
    // btrfs and others have a number of their own for each volume; the mount knows the device.
    let source = fs::metadata(process::mount_source(path)?).ok()?;
    source.file_type().is_block_device().then(|| number(source.rdev()))
}

fn number(device: u64) -> String {
    format!("{}:{}", libc::major(device), libc::minor(device))
}

/// `devices`: sysfs' directory of block devices by number; `device_of`: the number below a file.
fn below(devices: &Path, path: &Path, device_of: &dyn Fn(&Path) -> Option<String>) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut next: Vec<PathBuf> = device_of(path).map(|number| devices.join(number)).into_iter().collect();
    while let Some(device) = next.pop() {
        let Ok(dir) = fs::canonicalize(device) else { continue };
        if seen.len() == MAX_DEVICES || !seen.insert(dir.clone()) {
            continue;
        }
        found.extend(ublk_number(&dir));
        if dir.join("partition").exists() {
            next.extend(dir.parent().map(Path::to_path_buf));
        }
        next.extend(
            fs::read_dir(dir.join("slaves")).into_iter().flatten().flatten().map(|slave| slave.path()),
        );
        let file = fs::read_to_string(dir.join("loop/backing_file")).ok();
        let number = file.and_then(|file| device_of(Path::new(file.trim_end_matches('\n'))));
        next.extend(number.map(|number| devices.join(number)));
    }
    found
}

fn ublk_number(dir: &Path) -> Option<u32> {
    dir.file_name()?.to_str()?.strip_prefix("ublkb")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A sysfs of a few devices.
    struct Sysfs(tempfile::TempDir);

    impl Sysfs {
        fn new() -> Sysfs {
            let sysfs = Sysfs(tempfile::tempdir().unwrap());
            fs::create_dir(sysfs.by_number()).unwrap();
            sysfs
        }

        fn by_number(&self) -> PathBuf {
            self.0.path().join("dev")
        }

        /// Adds a device `name`, a path below its disk's, with a number.
        fn add(&self, name: &str, number: &str) -> PathBuf {
            let dir = self.0.path().join("devices").join(name);
            fs::create_dir_all(dir.join("slaves")).unwrap();
            symlink(&dir, self.by_number().join(number)).unwrap();
            if name.contains('/') {
                fs::write(dir.join("partition"), "1").unwrap();
            }
            dir
        }

        fn below(&self, number: &str) -> Vec<u32> {
            let file = |path: &Path| match path.to_str().unwrap() {
                "/image" => Some(number.to_owned()),
                "/backing" => Some("259:1".to_owned()),
                _ => None,
            };
            below(&self.by_number(), Path::new("/image"), &file).into_iter().collect()
        }
    }

    #[test]
    fn devices_are_followed_down_to_the_last() {
        let sysfs = Sysfs::new();
        sysfs.add("ublkb7", "259:0");
        let part = sysfs.add("ublkb7/ublkb7p1", "259:1");
        sysfs.add("vda", "254:0");
        let mapper = sysfs.add("dm-0", "253:0");
        symlink(&part, mapper.join("slaves/ublkb7p1")).unwrap();
        symlink(&mapper, mapper.join("slaves/itself")).unwrap();
        let disk = sysfs.add("loop3", "7:3");
        fs::create_dir(disk.join("loop")).unwrap();
        fs::write(disk.join("loop/backing_file"), "/backing\n").unwrap();
        for (number, found) in [
            ("259:0", &[7][..]),
            ("259:1", &[7]),
            ("253:0", &[7]),
            ("7:3", &[7]),
            ("254:0", &[]),
            ("0:45", &[]),
        ] {
            assert_eq!(sysfs.below(number), found, "{number}");
        }
    }

    #[test]
    fn files_of_this_machine_can_be_asked() {
        assert!(ublk_devices_below(Path::new("/proc/self/stat")).is_empty());
        assert!(ublk_devices_below(Path::new("/no such file")).is_empty());
    }
}
