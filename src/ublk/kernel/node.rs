//! What the machine knows of devices and processes: nodes, sysfs, `/proc`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::sys;
use crate::ublk::bounds;
use crate::ublk::node::block_node;

/// Users of a device that an error names, at most.
const MAX_NAMED: usize = 8;

fn sys_block(id: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/ublkb{id}"))
}

/// Reads the partition table, and waits for that. Kernels from 6.18 on do it some time after START_DEV, unless
/// NO_AUTO_PART_SCAN leaves it to us; before they have done it they answer EINVAL.
pub(super) fn read_partitions(node: &File) -> io::Result<()> {
    let end = Instant::now() + bounds::PARTITIONS;
    loop {
        match sys::read_partitions(node).map_err(|e| (e.raw_os_error(), e)) {
            Err((Some(libc::EINVAL), _)) if Instant::now() < end => std::thread::sleep(bounds::POLL),
            // Somebody uses the disk, or a partition: so they are there.
            Ok(()) | Err((Some(libc::EBUSY), _)) => return Ok(()),
            Err((_, e)) => return Err(e),
        }
    }
}

/// True if the kernel has found no partition on the disk.
pub(super) fn has_no_partitions(id: u32) -> bool {
    device_numbers(&sys_block(id)).len() < 2
}

/// Lets the block layer ask the driver about slow requests after a tenth of a second instead of 30 (its own rounding
/// adds up to a second).
///
/// Before 6.15 a driver whose server died while *every* tag of a queue was in the server's hands notices only then
/// (`ublk_timeout`): no fetch is left whose cancellation would tell it. While the server lives the question has no
/// effect, a privileged device's requests never time out.
pub(super) fn shorten_timeout(id: u32) -> io::Result<()> {
    fs::write(sys_block(id).join("queue/io_timeout"), "100")
}

/// Who has the disk or one of its partitions open, as text for a message; empty: nobody that can be seen.
///
/// From 7.0 the driver knows (TRY_STOP_DEV). Before, this looks where users leave traces: mounts, device-mapper and
/// the like, swap, loop devices, open files. It can miss a user that opens the disk at this very moment, and what
/// other mount and process namespaces hide from this process.
pub fn openers(id: u32) -> Vec<String> {
    let numbers = device_numbers(&sys_block(id));
    if numbers.is_empty() {
        return Vec::new();
    }
    let mut found = holders(id);
    found.extend(loops(id));
    for process in numeric_names(Path::new("/proc")) {
        if found.len() >= MAX_NAMED {
            break;
        }
        found.extend(uses_of(&process, &numbers));
    }
    found.sort();
    found.dedup();
    found.truncate(MAX_NAMED);
    found
}

/// True if somebody has claimed the disk or a partition of it (mount, swap, device-mapper). Needs a living server:
/// the close writes back what the page cache holds.
pub(super) fn is_claimed(id: u32) -> bool {
    let open =
        OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(block_node(id));
    matches!(open, Err(e) if e.raw_os_error() == Some(libc::EBUSY))
}

/// The numbers of all ublk devices.
pub(super) fn devices() -> Vec<u32> {
    let names = names(Path::new("/sys/class/ublk-char"));
    names.iter().filter_map(|name| name.strip_prefix("ublkc")?.parse().ok()).collect()
}

/// Device numbers of the disk and its partitions, as `major:minor`.
fn device_numbers(disk: &Path) -> Vec<String> {
    let partitions =
        names(disk).into_iter().map(|name| disk.join(name)).filter(|p| p.join("partition").exists());
    let dirs = std::iter::once(disk.to_path_buf()).chain(partitions);
    dirs.filter_map(|dir| fs::read_to_string(dir.join("dev")).ok())
        .map(|text| text.trim().to_owned())
        .collect()
}

fn holders(id: u32) -> Vec<String> {
    let disk = sys_block(id);
    let parts = names(&disk).into_iter().map(|name| disk.join(name));
    let dirs = std::iter::once(disk.clone()).chain(parts).map(|dir| dir.join("holders"));
    dirs.flat_map(|dir| names(&dir)).map(|name| format!("/dev/{name} is built on it")).collect()
}

fn loops(id: u32) -> Vec<String> {
    let node = block_node(id).to_string_lossy().into_owned();
    let backing = |name: &String| fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
    let on_it = |name: &String| backing(name).is_ok_and(|path| is_part_of(path.trim(), &node));
    names(Path::new("/sys/block"))
        .into_iter()
        .filter(on_it)
        .map(|name| format!("/dev/{name} is on it"))
        .collect()
}

/// `/dev/ublkb1` and its partitions, but not `/dev/ublkb10`.
fn is_part_of(path: &str, node: &str) -> bool {
    path.strip_prefix(node).is_some_and(|rest| rest.is_empty() || rest.starts_with('p'))
}

/// How process `pid` uses one of the devices `numbers`.
fn uses_of(pid: &str, numbers: &[String]) -> Vec<String> {
    let dir = Path::new("/proc").join(pid);
    let mounts = fs::read_to_string(dir.join("mountinfo")).unwrap_or_default();
    let mut found: Vec<String> = mounts.lines().filter_map(|line| mount_point(line, numbers)).collect();
    let fds = dir.join("fd");
    if names(&fds).iter().any(|fd| is_one_of(&fds.join(fd), numbers)) {
        let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        found.push(format!("open in process {pid} ({})", name.trim()));
    }
    found
}

/// The mount point in a line of mountinfo (`id parent major:minor root point …`, see proc(5)).
fn mount_point(line: &str, numbers: &[String]) -> Option<String> {
    let mut fields = line.split(' ').skip(2);
    let number = fields.next()?;
    let point = fields.nth(1)?;
    numbers.iter().any(|n| n == number).then(|| format!("mounted on {point}"))
}

fn is_one_of(path: &Path, numbers: &[String]) -> bool {
    const BLOCK_DEVICE: u32 = libc::S_IFBLK;
    fs::metadata(path).is_ok_and(|meta| {
        let number = format!("{}:{}", libc::major(meta.rdev()), libc::minor(meta.rdev()));
        meta.mode() & libc::S_IFMT == BLOCK_DEVICE && numbers.contains(&number)
    })
}

fn numeric_names(dir: &Path) -> Vec<String> {
    names(dir).into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())).collect()
}

/// Names in a directory; none if it cannot be read (a process that has just ended, a directory of another user).
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// `PF_EXITING` of the kernel's `linux/sched.h`, in field 9 of `/proc/PID/stat`.
const EXITING: u64 = 4;

/// False for a process that exits or is gone: the driver will notice, or has.
pub(super) fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| is_running(&stat))
}

fn is_running(stat: &str) -> bool {
    // The name stands in parentheses and may contain anything.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let mut fields = rest.split(' ');
    let state = fields.next().unwrap_or("X");
    let flags = fields.nth(5).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    !matches!(state, "Z" | "X") && flags & EXITING == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_recognized_by_its_number() {
        let line = "36 35 259:3 / /mnt/data rw,noatime master:1 - ext4 /dev/ublkb0 rw";
        let numbers = ["259:3".to_owned()];
        assert_eq!(mount_point(line, &numbers).as_deref(), Some("mounted on /mnt/data"));
        assert_eq!(mount_point(line, &["259:1".to_owned()]), None);
        assert_eq!(mount_point("36 35", &numbers), None);
    }

    #[test]
    fn device_1_is_not_device_10() {
        assert!(is_part_of("/dev/ublkb1", "/dev/ublkb1"));
        assert!(is_part_of("/dev/ublkb1p2", "/dev/ublkb1"));
        assert!(!is_part_of("/dev/ublkb10", "/dev/ublkb1"));
    }

    #[test]
    fn a_process_that_exits_is_not_alive() {
        assert!(is_running("12 (a) b) S 1 12 12 0 -1 4194304 100 0"));
        assert!(!is_running("12 (a) Z 1 12 12 0 -1 4194304 100 0"));
        assert!(!is_running("12 (a) R 1 12 12 0 -1 4194308 100 0"));
        assert!(!is_running(""));
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!((is_alive(own), is_alive(0)), (true, false));
    }

    #[test]
    fn a_device_that_is_not_there_is_open_nowhere() {
        assert!(openers(u32::MAX).is_empty());
    }
}
