//! The NBD server against raw bytes, against memory, and against the clients that people use.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "modules of one test program")]

mod client;
mod foreign;
mod handshake;
mod hostile;
mod lifecycle;
mod memory;
mod ram;
mod transmission;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use client::Client;
use cowdisk::nbd::{Address, Export, Server, ServerOptions};
use ram::RamDisk;

/// How long a test waits for something that must happen before it fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a unix socket in a directory of its own.
struct Served {
    server: Server,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Served {
    /// Serves `disk` as the default export.
    fn new(disk: &RamDisk) -> Served {
        Served::with(disk, |_| {})
    }

    fn with(disk: &RamDisk, change: impl FnOnce(&mut ServerOptions)) -> Served {
        let export = Export { name: String::new(), description: "a test disk".into(), disk: disk.clone() };
        Served::exports(vec![export], change)
    }

    fn exports(exports: Vec<Export<RamDisk>>, change: impl FnOnce(&mut ServerOptions)) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let mut options = ServerOptions::new(Address::Unix(path.clone()));
        change(&mut options);
        let server = Server::start(exports, options).unwrap();
        Served { server, path, _dir: dir }
    }

    /// A new connection; nothing is said yet.
    fn connect(&self) -> Client {
        Client::connect(&self.path)
    }

    /// A connection in the transmission phase with the default export.
    fn ready(&self, structured: bool) -> Client {
        let mut client = self.connect();
        client.begin(structured, "");
        client
    }

    /// Waits until no connection is left.
    fn wait_idle(&self) {
        wait_until("all connections have ended", || self.server.connections() == 0);
    }
}

/// Waits for `done`, which another thread brings about.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
