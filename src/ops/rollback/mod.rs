//! `rollback`: an empty head on a snapshot takes the place of the head; here of an image that nobody serves.
//!
//! The present is kept by an ordinary snapshot first, whose crash points are those of `snapshot`; what is replaced then is
//! an empty head on it. So each crash point leaves the disk as it was, with or without a snapshot of that, or as it is
//! after the rollback: one rename decides.

mod live;

use std::path::{Path, PathBuf};

pub(super) use live::same_sectors;
pub use live::{Kept, LiveRollback, LiveRolledBack};

use super::create::sealed_parent;
use super::fork::unused_snapshot_name;
use super::join_first;
use super::snapshot::{OfflineSnapshot, Snapshot, check_mount, make_overlay, next_head};
use super::walk::{find_snapshot, read_superblock, walk};
use crate::chain::{
    Image, OpenOptions, OpenReport, SnapshotName, hints_between, image_file, open_chain, unused_temporary,
};
use crate::error::{Error, Kind, Result};
use crate::format::Superblock;
use crate::layer::NewLayer;
use crate::limits::MAX_CHAIN;
use crate::storage::{Storage, sync_directory_of};

/// What becomes of the present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Present {
    /// A snapshot, unless nothing has changed since the last one.
    Keep,
    /// It goes.
    Discard,
}

/// A rollback that was done.
#[derive(Clone, Debug)]
pub struct RolledBack {
    /// The snapshot that keeps the present; `None`: nothing had changed since the last one, or it was not wanted.
    pub kept: Option<Snapshot>,
    /// The file of the snapshot that the disk shows now.
    pub target: PathBuf,
    /// The new head's superblock.
    pub sb: Superblock,
    /// What opening the image did.
    pub report: OpenReport,
}

/// Makes `image`, which nobody has open, show its snapshot `name` again, with the size that it had then. `options` are
/// for writing; `is_mount_point` as for [`super::snapshot()`].
///
/// # Errors
/// `NotFound` without such a snapshot, `InUse`, a chain below it that is not whole, and whatever keeps the image from
/// being opened for writing. The disk is as it was then; that it was recovered, and that the present was kept, may have
/// been done.
pub async fn rollback<S: Storage>(
    storage: &S,
    image: &Path,
    name: &SnapshotName,
    present: Present,
    options: &OpenOptions,
    is_mount_point: fn(&Path) -> bool,
) -> Result<RolledBack> {
    let path = image_file(storage, image)?;
    check_mount(&path, is_mount_point)?;
    let (image, report) = open_chain(storage, &path, options).await?;
    let Some(old) = image.head() else {
        return Err(Error::new(Kind::Usage, "a rollback opens the image for writing").at(&path));
    };
    let plan = async {
        let target = find_target(storage, &path, name, &old.superblock(), &options.search).await?;
        Ok((target, keep_name(storage, &image, present)?))
    };
    let replaced = match plan.await {
        Ok((target, None)) => {
            let sb = replace(storage, &path, &old.reader.file, &target.new).await;
            sb.map(|sb| (target.path, sb))
        }
        Ok((target, Some(kept))) => {
            drop(old);
            let keeping = OfflineSnapshot::of(storage, image, report.clone(), &kept)?;
            let (kept, empty) = keeping.take_and_hold().await?;
            let sb = replace(storage, &path, &empty, &target.new).await?;
            return Ok(RolledBack { kept: Some(kept), target: target.path, sb, report });
        }
        Err(e) => Err(e),
    };
    drop(old);
    match replaced {
        // The head that was replaced has no name any more, and nothing is written to it.
        Ok((target, sb)) => Ok(RolledBack { kept: None, target, sb, report }),
        Err(e) => {
            // Why there is no rollback matters more than that the image could not be closed.
            let _ = image.close().await;
            Err(e)
        }
    }
}

/// What the disk is to show, and the empty layer that stands on it.
pub(super) struct Target {
    path: PathBuf,
    pub(super) new: NewLayer,
}

/// Finds the snapshot, and makes sure that everything is there that it needs. `head`: what the image's head says.
pub(super) async fn find_target<S: Storage>(
    storage: &S,
    image: &Path,
    name: &SnapshotName,
    head: &Superblock,
    search: &[PathBuf],
) -> Result<Target> {
    let path = find_snapshot(storage, image, name, search).await?;
    let (parent, sb) = sealed_parent(storage, &path, hints_between(image, &path)).await?;
    let (virtual_size, sector_size) = (sb.virtual_size, sb.sector_size);
    let new = NewLayer { virtual_size, sector_size, ..next_head(head, parent) };
    let below = walk(storage, &path, sb, search).await?;
    let chain = walk(storage, image, head.clone(), search).await?;
    if let Some(link) = chain.layers.iter().find(|link| link.sb.joining.is_some()) {
        return Err(join_first(&link.sb, &link.path));
    }
    if below.layers.len() >= MAX_CHAIN {
        let text = format!("its chain has {MAX_CHAIN} layers, and may not be longer");
        return Err(Error::new(Kind::Unsupported, text).at(&path));
    }
    Ok(Target { path, new })
}

/// The name under which the present is kept, if it is.
pub(super) fn keep_name<S: Storage>(
    storage: &S,
    image: &Image<S>,
    present: Present,
) -> Result<Option<SnapshotName>> {
    let chain = image.chain();
    if present == Present::Discard || chain.unchanged_since().is_some() {
        return Ok(None);
    }
    let names = chain.layers.iter().filter_map(|layer| layer.sb.sealed.as_ref());
    let taken: Vec<String> = names.map(|sealed| sealed.name.clone()).collect();
    unused_snapshot_name(storage, &image.path(), "rollback", &taken).map(Some)
}

/// Puts `new` in the place of the file `path`, which is open as `head` and locked. Its superblock.
async fn replace<S: Storage>(storage: &S, path: &Path, head: &S::File, new: &NewLayer) -> Result<Superblock> {
    let temporary = unused_temporary(storage, path)?;
    let overlay = make_overlay(storage, new, head, &temporary).await?;
    if let Err(e) = storage.rename(&temporary, path) {
        let _ = storage.unlink(&temporary);
        return Err(Error::io("replace the head", e).at(path));
    }
    sync_directory_of(storage, path)?;
    let sb = read_superblock(storage, path).await;
    drop(overlay);
    sb
}
