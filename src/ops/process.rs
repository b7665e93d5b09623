//! This process and others of this host, as images name them.

use std::path::Path;

use crate::format::Holder;
use crate::limits::MAX_HOLDER_BYTES;

/// This process as the holder of an image; `socket` is its control socket, or empty.
pub fn holder(socket: &str) -> Holder {
    Holder { pid: std::process::id(), host: host_name(), socket: socket.to_owned() }
}

/// True if a process of this number lives on this host.
pub fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// True if `holder` is or was a process of this host, whose locks can be seen here.
pub fn is_here(holder: &Holder) -> bool {
    holder.host == host_name()
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
    fn this_process_is_alive() {
        let me = holder("");
        assert!(is_alive(me.pid) && !me.host.is_empty());
        assert!(!is_alive(u32::MAX));
    }
}
