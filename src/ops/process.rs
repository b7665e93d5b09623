//! This process and others of this host, as images name them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::format::Holder;
use crate::limits::MAX_HOLDER_BYTES;

/// This process as the holder of an image; `socket` is its control socket, or empty.
pub fn holder(socket: &str) -> Holder {
    Holder { pid: std::process::id(), host: host_name(), socket: socket.to_owned() }
}

/// True if a process of this number lives on this host. One that has ended and that nobody has waited for does not.
pub fn is_alive(pid: u32) -> bool {
    // Behind the name, which is in parentheses and may hold anything, stands the state.
    let stat = std::fs::read(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    let name_end = stat.iter().rposition(|&b| b == b')');
    let state = name_end.and_then(|at| stat.get(at + 2));
    state.is_some_and(|s| !b"ZXx".contains(s))
}

/// True if `holder` was a process of this host and has ended: its lock goes as soon as its last write has landed.
pub fn is_gone(holder: &Holder) -> bool {
    is_here(holder) && !is_alive(holder.pid)
}

/// True if `holder` is or was a process of this host, whose locks can be seen here.
pub fn is_here(holder: &Holder) -> bool {
    holder.host == host_name()
}

/// True if something is mounted on the file `path`, which is absolute and without symbolic links: a rename cannot
/// replace it.
pub fn is_mount_point(path: &Path) -> bool {
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    mounts.split(|&b| b == b'\n').any(|line| mount_place(line) == path.as_os_str().as_bytes())
}

/// What is mounted where the file `path` lies, which is absolute and without symbolic links: mostly a device's node.
pub fn mount_source(path: &Path) -> Option<PathBuf> {
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    source_of(&mounts, path)
}

/// The source of the last mount of those with the longest place that `path` is in.
fn source_of(mounts: &[u8], path: &Path) -> Option<PathBuf> {
    let places = mounts.split(|&b| b == b'\n').map(|line| (mount_place(line), line));
    let around = places.filter(|(place, _)| !place.is_empty() && path.starts_with(OsStr::from_bytes(place)));
    let (_, line) = around.max_by_key(|(place, _)| place.len())?;
    // Behind a variable number of fields stands a dash, then type, source and options (proc_pid_mountinfo(5)).
    let mut fields = line.split(|&b| b == b' ').skip_while(|&field| field != b"-").skip(2);
    fields.next().map(|source| PathBuf::from(OsString::from_vec(unescape(source))))
}

/// Where something is mounted, out of a line of mountinfo.
fn mount_place(line: &[u8]) -> Vec<u8> {
    unescape(line.split(|&b| b == b' ').nth(4).unwrap_or_default())
}

/// Undoes the octal escapes of blanks and backslashes in mountinfo.
fn unescape(escaped: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|t| u8::from_str_radix(std::str::from_utf8(t).ok()?, 8).ok());
        match code.filter(|_| first == b'\\') {
            Some(byte) => {
                plain.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

/// The host's name, cut to what a superblock holds.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim_end().chars().take(MAX_HOLDER_BYTES / 4).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_by_their_plain_names() {
        assert_eq!(unescape(br"/a\040b\134c\9"), br"/a b\c\9");
        assert!(is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")));
    }

    #[test]
    fn a_file_lies_on_the_innermost_and_last_mount() {
        let mounts = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
            2 1 0:40 /vol /a\\040b rw shared:1 - btrfs /dev/sdb rw\n\
            3 2 8:3 / /a\\040b/c rw - ext4 /dev/sdc rw\n\
            4 3 8:4 / /a\\040b/c rw - ext4 /dev/s\\040d rw\n";
        let source = |path: &str| source_of(mounts, Path::new(path)).unwrap();
        assert_eq!(source("/x"), Path::new("/dev/sda1"));
        assert_eq!(source("/a bc"), Path::new("/dev/sda1"));
        assert_eq!(source("/a b/x"), Path::new("/dev/sdb"));
        assert_eq!(source("/a b/c/x"), Path::new("/dev/s d"));
        assert_eq!(source_of(b"", Path::new("/x")), None);
    }

    #[test]
    fn this_process_is_alive() {
        let me = holder("");
        assert!(is_alive(me.pid) && !me.host.is_empty());
        assert!(!is_alive(u32::MAX));
    }
}
