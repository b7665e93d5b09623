//! Serving: joins an image to a frontend, and what daemons and their clients say to each other.
//!
//! [`serve`] is the life of a daemon: open the image (which recovers it), take up the device that waits for it or start
//! a new frontend, wait for a reason to end, drain, close. While it runs it stands in the registry (`registry`) and
//! answers on its control socket (`control`); [`status`] and [`stop`] are the other side of these.

mod background;
mod below;
mod client;
mod command;
mod control;
mod daemon;
mod disk;
mod fork;
mod frontend;
mod jobs;
mod keeper;
mod latency;
mod links;
mod logfile;
mod manage;
mod notify;
mod open;
mod plan;
mod prometheus;
mod pulse;
mod registry;
mod resize;
mod rollback;
mod session;
mod snapshot;
mod start;
mod status;
mod sys;

pub use daemon::serve;
pub use disk::{ImageDisk, ServedQueue};
pub use fork::{Forked, fork};
pub use keeper::{detach, keep, new_tag};
pub use latency::{Latencies, Latency};
pub use links::{DeviceNames, names_of};
pub use manage::{Stopped, status, stop};
pub use plan::{PlannedForks, plan_fork, plan_rollback, plan_snapshot};
pub use prometheus::prometheus;
pub use registry::{Entry, Registry};
pub use resize::{ResizeDone, resize};
pub use rollback::{KeptPresent, RollbackDone, rollback};
pub use snapshot::{Taken, snapshot};
pub use status::{ByKind, CacheStatus, ImageStatus, Job, JournalStatus, SpaceStatus, State, Trouble};
pub use sys::interrupted;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::{DEFAULT_CACHE_BYTES, MAX_NAME_BYTES};
use crate::nbd::Address;
use crate::ublk::{CopyMode, FeatureChoice, OnDeath};

/// How an image is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// For reading and writing, by one daemon.
    Write,
    /// Nothing is written, not even recovery.
    ReadOnly,
    /// What is written goes to a file that vanishes with the daemon.
    Temporary,
}

/// The frontend that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrontendChoice {
    /// ublk where it can be used, else NBD.
    Auto,
    /// A block device.
    Ublk,
    /// A network block device server.
    Nbd,
}

/// What to serve, and how.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// `IMAGE` or `IMAGE@NAME`.
    pub image: PathBuf,
    /// How.
    pub mode: Mode,
    /// A name for lists; `None`: the file's stem.
    pub name: Option<String>,
    /// Device or server.
    pub frontend: FrontendChoice,
    /// Where an NBD server listens; `None`: a socket in the runtime directory.
    pub nbd: Option<Address>,
    /// Queues, one thread each.
    pub queues: u16,
    /// Who copies data on ublk, and when; `None`: the best that the driver has.
    pub copy: Option<CopyMode>,
    /// What becomes of a ublk device when the daemon dies. A temporary disk always goes.
    pub on_death: OnDeath,
    /// Features of ublk that must be used, or must not; for tests.
    pub ublk_features: FeatureChoice,
    /// Requests that a queue (with NBD: a connection) has running at once.
    pub depth: u16,
    /// Bytes for the caches.
    pub cache_bytes: u64,
    /// The N of `/dev/ublkbN`; `None`: any.
    pub device_id: Option<u32>,
    /// Further directories to look for parents in.
    pub search: Vec<PathBuf>,
    /// The number of this daemon's keeper, which starts it again if it dies; `None`: there is no keeper.
    pub keeper: Option<u64>,
    /// Also if another machine may have the image open.
    pub force: bool,
    /// Serve only while this command runs; empty: until told to stop.
    pub command: Vec<OsString>,
}

impl ServeOptions {
    /// Serves `image` for writing, with default settings.
    pub fn new(image: impl Into<PathBuf>) -> ServeOptions {
        ServeOptions {
            image: image.into(),
            mode: Mode::Write,
            name: None,
            frontend: FrontendChoice::Auto,
            nbd: None,
            queues: 1,
            copy: None,
            on_death: OnDeath::default(),
            ublk_features: FeatureChoice::default(),
            depth: 64,
            cache_bytes: DEFAULT_CACHE_BYTES,
            device_id: None,
            search: Vec::new(),
            keeper: None,
            force: false,
            command: Vec::new(),
        }
    }
}

/// True if `name` can be the name of a disk: up to 100 bytes, no `/` or control characters, and no `.` in front.
pub fn is_disk_name(name: &str) -> bool {
    let bad = name.is_empty() || name.len() > MAX_NAME_BYTES || name.starts_with('.') || name.contains('/');
    !bad && !name.chars().any(char::is_control)
}

/// Where a daemon says what it does.
#[derive(Clone)]
pub struct Log(Arc<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Log")
    }
}

impl Log {
    /// Calls `say` with each line.
    pub fn new(say: impl Fn(&str) + Send + Sync + 'static) -> Log {
        Log(Arc::new(say))
    }

    /// One line.
    pub fn say(&self, line: &str) {
        (self.0)(line);
    }
}
