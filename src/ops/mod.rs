//! What commands do to images: they return values and print nothing.

mod bench;
mod check;
mod create;
mod info;
mod map;
pub mod process;
mod snapshot;
mod walk;

pub use bench::{BenchOptions, BenchResult, Histogram, bench};
pub use check::{CheckOptions, CheckReport, Code, Finding, Findings, Severity, Status, check};
pub use create::{BaseFormat, CreateOptions, create};
pub use info::{LayerInfo, info, info_chain};
pub use map::{MapRun, RunState, map};
pub use snapshot::{Snapshot, snapshot};
pub use walk::{Chain, Link, find_snapshot, locate, read_superblock, walk};

use std::path::Path;

use crate::error::{Error, Kind, printable};
use crate::layer::read_slots;
use crate::storage::File;

/// The error for a file whose lock somebody else holds: names the holder, if the file does.
async fn in_use<F: File>(file: &F, path: &Path) -> Error {
    let holder = read_slots(file, path).await.ok().and_then(|s| s.newest.holder);
    let who =
        holder.map_or_else(String::new, |h| format!(" by process {} on host {}", h.pid, printable(&h.host)));
    Error::new(Kind::InUse, format!("in use{who}")).at(path)
}
