//! What a service manager is told, as sd_notify(3) describes it: one datagram of `NAME=value` lines for each news.

use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use super::pulse::Pulse;
use crate::error::printable;
use crate::{Error, Result};

/// What a service manager puts into the environment of a service, and what is not meant for the service's children.
pub(super) const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];
/// A start that takes longer asks for more time again and again, each time for so much.
pub(super) const EXTENSION: Duration = Duration::from_secs(30);
/// A manager that does not read its socket is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The service manager's socket, if there is a manager.
#[derive(Debug, Default)]
pub(super) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often the manager wants to hear that this service lives.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says.
    pub(super) fn from_environment() -> Notifier {
        let [address, period, pid] = VARIABLES.map(std::env::var_os);
        let socket = address.filter(|address| !address.is_empty()).and_then(|address| connect(&address));
        Notifier { watchdog: watchdog(period, pid, std::process::id()).filter(|_| socket.is_some()), socket }
    }

    /// The disk can be used.
    pub(super) fn ready(&self, image: &str, place: &str) {
        self.send(&format!("READY=1\nSTATUS={} is served at {}", printable(image), printable(place)));
    }

    /// What is being done.
    pub(super) fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", printable(text)));
    }

    /// A start needs more time.
    pub(super) fn extend(&self) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros()));
    }

    /// The end has begun.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=closing the image");
    }

    /// From now on tells the manager that the service lives, as long as all threads that `pulse` knows turn.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn watch(self: &Arc<Notifier>, pulse: Arc<Pulse>) -> Result<()> {
        let Some(period) = self.watchdog else { return Ok(()) };
        let notifier = self.clone();
        let run = move || {
            loop {
                std::thread::sleep(period / 2);
                if pulse.all_answered() {
                    notifier.send("WATCHDOG=1");
                    pulse.begin_round();
                }
            }
        };
        let thread = std::thread::Builder::new().name("watchdog".into()).spawn(run);
        thread.map(drop).map_err(|e| Error::io("cannot start a thread", e))
    }

    /// True if the manager wants to hear that this service lives.
    pub(super) fn is_watched(&self) -> bool {
        self.watchdog.is_some()
    }

    fn send(&self, lines: &str) {
        if let Some((socket, address)) = &self.socket {
            // A manager that is gone needs no news.
            let _ = socket.send_to_addr(lines.as_bytes(), address);
        }
    }
}

fn connect(address: &OsStr) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok()?,
        [b'/', ..] => SocketAddr::from_pathname(address).ok()?,
        // Other kinds (vsock) are for virtual machines' managers.
        _ => return None,
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_write_timeout(Some(PATIENCE)).ok()?;
    Some((socket, address))
}

/// `WATCHDOG_USEC`, if it is meant for this process.
fn watchdog(period: Option<OsString>, pid: Option<OsString>, own: u32) -> Option<Duration> {
    let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
    let ours = pid.is_none_or(|pid| number(pid) == Some(u64::from(own)));
    period.and_then(number).filter(|&period| period > 0 && ours).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notifier(address: &OsStr) -> Notifier {
        Notifier { socket: connect(address), watchdog: None }
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    #[test]
    fn news_reach_sockets_with_a_path_and_abstract_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let named = UnixDatagram::bind(&path).unwrap();
        notifier(path.as_os_str()).ready("/a\nb.cow", "/dev/ublkb0");
        assert_eq!(receive(&named), "READY=1\nSTATUS=/a\\nb.cow is served at /dev/ublkb0");

        let name = format!("cowdisk-test-{}", std::process::id());
        let hidden = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notifier(OsStr::new(&format!("@{name}"))).extend();
        assert_eq!(receive(&hidden), "EXTEND_TIMEOUT_USEC=30000000");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        for address in ["", "vsock:2:1", "relative"] {
            assert!(connect(OsStr::new(address)).is_none(), "{address}");
        }
        Notifier::default().stopping();
        notifier(OsStr::new("/no/such/socket")).stopping();
    }

    #[test]
    fn a_watchdog_is_for_one_process() {
        let text = |text: &str| Some(OsString::from(text));
        assert_eq!(watchdog(text("3000000"), None, 7), Some(Duration::from_secs(3)));
        assert_eq!(watchdog(text("3000000"), text("7"), 7), Some(Duration::from_secs(3)));
        for (period, pid) in [(text("3"), text("8")), (text("0"), None), (text("x"), None), (None, None)] {
            assert_eq!(watchdog(period, pid, 7), None);
        }
    }
}
