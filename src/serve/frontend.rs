//! The two ways in which a disk can be reached, behind one face.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use super::daemon::Users;
use super::disk::ImageDisk;
use super::{FrontendChoice, Mode, ServeOptions};
use crate::nbd::{self, Address, Export, Server, ServerOptions};
use crate::ublk::{Device, DeviceInfo, OnDeath, RecoverOptions, StartOptions};
use crate::{Error, Kind, Result};

/// Bytes of one request, and of each tag's buffer.
const MAX_IO: u32 = 128 << 10;
/// A device whose last user has just gone may still be looked at by the machinery that watches disks (udev); a client that
/// has left may not have been noticed.
const SETTLE: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(20);

/// Which kind of frontend it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FrontendKind {
    Ublk,
    Nbd,
}

impl FrontendKind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            FrontendKind::Ublk => "ublk",
            FrontendKind::Nbd => "nbd",
        }
    }

    /// `auto` is ublk where the driver can be used.
    pub(super) fn choose(options: &ServeOptions) -> FrontendKind {
        match options.frontend {
            FrontendChoice::Ublk => FrontendKind::Ublk,
            FrontendChoice::Nbd => FrontendKind::Nbd,
            FrontendChoice::Auto if options.nbd.is_some() => FrontendKind::Nbd,
            FrontendChoice::Auto => match File::options().read(true).write(true).open("/dev/ublk-control") {
                Ok(_) => FrontendKind::Ublk,
                Err(_) => FrontendKind::Nbd,
            },
        }
    }
}

/// A running frontend.
#[derive(Debug)]
pub(super) enum Frontend {
    Ublk(Box<Device>),
    Nbd(Server),
}

/// A unix socket's mode and owner.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketOwner {
    pub(super) mode: u32,
    pub(super) owner: Option<(u32, u32)>,
}

impl Frontend {
    /// Starts a new device.
    pub(super) fn start_ublk(disk: &ImageDisk, options: &ServeOptions, tag: u64) -> Result<Frontend> {
        // A temporary disk's content ends with this process.
        let on_death = if options.mode == Mode::Temporary { OnDeath::Remove } else { options.on_death };
        let start = StartOptions {
            device_id: options.device_id,
            queues: options.queues,
            depth: options.depth,
            max_io: MAX_IO,
            tag,
            on_death,
            copy: options.copy,
            features: options.ublk_features,
        };
        Ok(Frontend::Ublk(Box::new(Device::start(disk, &start)?)))
    }

    /// Takes up a device that waits.
    pub(super) fn recover_ublk(
        disk: &ImageDisk,
        options: &ServeOptions,
        waiting: &DeviceInfo,
    ) -> Result<Frontend> {
        let features = options.ublk_features;
        let options = RecoverOptions { device_id: waiting.id, tag: waiting.tag, features };
        Ok(Frontend::Ublk(Box::new(Device::recover(disk, &options)?)))
    }

    /// Starts an NBD server, at `default` unless the options name another place.
    pub(super) fn start_nbd(
        disk: &ImageDisk,
        options: &ServeOptions,
        default: &Path,
        socket: SocketOwner,
    ) -> Result<Frontend> {
        let address = options.nbd.clone().unwrap_or_else(|| Address::Unix(default.to_owned()));
        let server = ServerOptions {
            queues: usize::from(options.queues),
            depth: usize::from(options.depth).min(nbd::limits::MAX_DEPTH),
            socket_mode: socket.mode,
            socket_owner: socket.owner,
            ..ServerOptions::new(address)
        };
        let export = Export { name: String::new(), description: String::new(), disk: disk.clone() };
        Ok(Frontend::Nbd(Server::start(vec![export], server)?))
    }

    /// `/dev/ublkbN`, or the URI.
    pub(super) fn place(&self) -> String {
        match self {
            Frontend::Ublk(device) => device.node().to_string_lossy().into_owned(),
            Frontend::Nbd(server) => server.uri(),
        }
    }

    /// The variable that tells a command where the disk is.
    pub(super) const fn variable(&self) -> &'static str {
        match self {
            Frontend::Ublk(_) => "COWDISK_DEVICE",
            Frontend::Nbd(_) => "COWDISK_URI",
        }
    }

    pub(super) fn device_id(&self) -> Option<u32> {
        match self {
            Frontend::Ublk(device) => Some(device.id()),
            Frontend::Nbd(_) => None,
        }
    }

    /// What could not be had, for the log.
    pub(super) fn warnings(&self) -> &[String] {
        match self {
            Frontend::Ublk(device) => device.warnings(),
            Frontend::Nbd(_) => &[],
        }
    }

    /// Somebody else ended it.
    pub(super) fn ended(&self) -> bool {
        match self {
            Frontend::Ublk(device) => device.ended(),
            Frontend::Nbd(_) => false,
        }
    }

    /// Ends it; afterwards no request runs. Refuses with [`Kind::InUse`] while somebody uses the disk, unless `force`d.
    pub(super) fn stop(self, force: bool) -> std::result::Result<(), (Option<Frontend>, Error)> {
        match self {
            Frontend::Ublk(mut device) => match settled(|| device.stop(force)) {
                Ok(()) => Ok(()),
                Err(e) => Err((Some(Frontend::Ublk(device)), e)),
            },
            Frontend::Nbd(server) if !force => match settled(|| no_clients(&server)) {
                Ok(()) => server.stop().map_err(|e| (None, e)),
                Err(e) => Err((Some(Frontend::Nbd(server)), e)),
            },
            Frontend::Nbd(server) => server.stop().map_err(|e| (None, e)),
        }
    }

    /// Refuses with [`Kind::InUse`] if users of the disk would lose its end under their feet.
    pub(super) fn may_shrink(&self) -> Result<()> {
        match self {
            Frontend::Ublk(device) => device.may_shrink(),
            // A client that goes on gets an error behind the end.
            Frontend::Nbd(_) => Ok(()),
        }
    }

    /// See [`Users`]. An NBD server lets nobody connect meanwhile; a device can be opened at any time, and who does so
    /// between the look and the end sees one disk, then the other.
    pub(super) fn users(&self, what: Users) -> Result<Option<String>> {
        match (self, what) {
            (Frontend::Ublk(device), Users::Look | Users::KeepAway { resizes: false }) => {
                device.is_unused()?
            }
            (Frontend::Ublk(device), Users::KeepAway { resizes: true }) => settled(|| device.may_shrink())?,
            (Frontend::Ublk(device), Users::LetIn(Some(size))) => {
                let note = size.and_then(|size| self.resized(size));
                device.reread_partitions();
                return Ok(note);
            }
            (Frontend::Ublk(_), Users::LetIn(None)) => {}
            (Frontend::Nbd(server), Users::Look) => settled(|| no_clients(server))?,
            (Frontend::Nbd(server), Users::KeepAway { .. }) => {
                server.admit(false);
                if let Err(e) = settled(|| no_clients(server)) {
                    server.admit(true);
                    return Err(e);
                }
            }
            (Frontend::Nbd(server), Users::LetIn(_)) => server.admit(true),
        }
        Ok(None)
    }

    /// The disk has `size` bytes now. Gives what its users should know.
    pub(super) fn resized(&self, size: u64) -> Option<String> {
        match self {
            Frontend::Ublk(device) => match device.update_size(size) {
                Ok(()) => None,
                Err(e) => Some(format!("{e}: the device keeps its size until the disk is served again")),
            },
            Frontend::Nbd(server) if server.connections() > 0 => {
                Some("clients see the new size when they connect again".to_owned())
            }
            Frontend::Nbd(_) => None,
        }
    }

    /// True if it can be left to the next daemon.
    pub(super) fn can_wait(&self) -> bool {
        matches!(self, Frontend::Ublk(device) if device.outlives_its_server())
    }

    /// Ends all requests that run and keeps new ones for the next daemon. Afterwards this process must end.
    pub(super) fn leave_waiting(&self) -> Result<()> {
        match self {
            Frontend::Ublk(device) => device.leave_waiting(),
            Frontend::Nbd(_) => Err(Error::new(Kind::Unsupported, "an NBD server cannot wait")),
        }
    }
}

fn no_clients(server: &Server) -> Result<()> {
    match server.connections() {
        0 => Ok(()),
        1 => Err(Error::new(Kind::InUse, "a client is connected").at(server.uri())),
        clients => Err(Error::new(Kind::InUse, format!("{clients} clients are connected")).at(server.uri())),
    }
}

/// Asks until nobody has it open, for as long as one who has just gone may still be seen.
fn settled(mut ask: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + SETTLE;
    loop {
        match ask() {
            Err(e) if e.kind() == Kind::InUse && Instant::now() < end => std::thread::sleep(POLL),
            other => return other,
        }
    }
}
