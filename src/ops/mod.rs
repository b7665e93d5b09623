//! What commands do to images: they return values and print nothing.

mod bench;
mod check;
mod create;
mod delete;
mod fork;
mod info;
mod join;
mod list;
mod map;
mod plan;
pub mod process;
mod rebase;
mod resize;
mod rollback;
mod snapshot;
mod walk;

pub use bench::{BenchOptions, BenchResult, Histogram, bench};
pub use check::{CheckOptions, CheckReport, Code, Finding, Findings, Severity, Status, check};
pub use create::{BaseFormat, CreateOptions, create};
pub use delete::{DeletePlan, Deleted, delete, plan_delete};
pub use fork::{fork, unchanged_since, unused_snapshot_name};
pub use info::{LayerInfo, info, info_chain};
pub use join::{CHUNK_BYTES, Direction, Work, stopped};
pub use list::{Disk, Listing, SnapshotEntry, list};
pub use map::{MapRun, RunState, map, map_since};
pub use plan::{
    Cost, PlannedImage, PlannedRollback, PlannedSnapshot, plan_create, plan_fork, plan_live_rollback,
    plan_live_snapshot, plan_rollback, plan_snapshot,
};
pub use rebase::{RebaseOptions, Rebased, rebase};
pub use resize::{NewSize, ResizeOptions, Resized, resize, resize_open};
pub use rollback::{Kept, LiveRollback, LiveRolledBack, Present, RolledBack, rollback};
pub use snapshot::{LiveCut, OfflineSnapshot, Snapshot, snapshot};
pub use walk::{Chain, Link, find_snapshot, locate, read_superblock, walk};

use std::path::Path;

use crate::error::{Error, Kind, Result, printable};
use crate::format::{Holder, Joining, Superblock};
use crate::layer::{read_slots, while_dying};
use crate::storage::{File, Lock, OpenHow, Storage};

/// Waits, bounded, while the writer's lock of the layer `path` is held for a process that is `gone`: the kernel releases
/// it only when the last write has landed. To be called before an image is opened for reading.
///
/// # Errors
/// What the host says when the file is opened.
pub async fn settle<S: Storage>(storage: &S, path: &Path, gone: fn(&Holder) -> bool) -> Result<()> {
    let how = OpenHow { write: false, direct: false, regular_only: true };
    let file = storage.open(path, how).map_err(|e| Error::io("open", e).at(path))?;
    let settled = while_dying(storage, async || {
        if !file.is_locked(Lock::Shared).map_err(|e| Error::io("look at the lock", e).at(path))? {
            return Ok(Some(()));
        }
        let holder = read_slots(&file, path).await.ok().and_then(|s| s.newest.holder);
        Ok((!holder.is_some_and(|h| gone(&h))).then_some(()))
    });
    settled.await.map(|_| ())
}

/// The error for a layer that takes part in a join that was broken off, and so cannot have another child, or lose the one
/// that knows of it.
fn join_first(sb: &Superblock, path: &Path) -> Error {
    let name = match &sb.joining {
        Some(Joining::Above { name, .. }) => name.as_str(),
        _ => "NAME",
    };
    let text = "a command that joins layers of this disk was broken off: it must be ended first";
    let error = Error::new(Kind::InUse, text).at(path);
    error.hint(format!("cowdisk delete IMAGE@{}", printable(name)))
}

/// The error for a file whose lock somebody else holds: names the holder, if the file does.
async fn in_use<F: File>(file: &F, path: &Path) -> Error {
    let holder = read_slots(file, path).await.ok().and_then(|s| s.newest.holder);
    let who =
        holder.map_or_else(String::new, |h| format!(" by process {} on host {}", h.pid, printable(&h.host)));
    Error::new(Kind::InUse, format!("in use{who}")).at(path)
}
