//! This process and others of this host, as images name them.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
    mounts.split(|&b| b == b'\n').any(|line| {
        let place = line.split(|&b| b == b' ').nth(4).unwrap_or_default();
        unescape(place) == path.as_os_str().as_bytes()
    })
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
    fn this_process_is_alive() {
        let me = holder("");
        assert!(is_alive(me.pid) && !me.host.is_empty());
        assert!(!is_alive(u32::MAX));
    }
}
