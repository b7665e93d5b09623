//! What a change would do, for `--dry-run`: the refusals of the change itself, and what it would take of the host. Nothing
//! is written.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::create::{CreateOptions, describe, real_place, take_over};
use super::rollback::{Present, find_target, keep_name, same_sectors};
use super::snapshot::{check_mount, check_names, still_there};
use super::walk::walk;
use crate::chain::{
    Image, OpenOptions, SnapshotName, image_file, refuse_open_elsewhere, refuse_snapshot_name, snapshot_path,
};
use crate::error::{Error, Kind, Result};
use crate::format::Superblock;
use crate::layer::{Caches, open_read_only, read_slots, while_dying, writable};
use crate::limits::{JOURNAL_RESERVE_BYTES, MAX_CHAIN, MAX_TREE_HEIGHT, MIN_CACHE_BYTES};
use crate::map::LayerTag;
use crate::storage::{File, FileKind, Lock, Meta, OpenHow, Storage};
use crate::units::BLOCK;

/// Bytes of the host that a change would take at most while it runs, and those that it would give back in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Taken.
    pub needed: u64,
    /// Given back.
    pub freed: u64,
}

/// A new layer: its superblocks.
const NEW_LAYER: u64 = 2 * BLOCK;
/// A layer that is opened for writing: the first piece of its journal.
const OPENED: u64 = JOURNAL_RESERVE_BYTES;

impl Cost {
    fn of(needed: u64) -> Cost {
        Cost { needed, freed: 0 }
    }

    /// Both.
    #[must_use]
    pub fn and(self, other: Cost) -> Cost {
        Cost { needed: self.needed + other.needed, freed: self.freed + other.freed }
    }
}

/// What a checkpoint of so many pending entries may write: a leaf for each at most, and what leads to them.
fn checkpoint_bytes(entries: u64) -> u64 {
    match entries {
        0 => 0,
        _ => (entries + entries / 50 + 2 * u64::from(MAX_TREE_HEIGHT)) * BLOCK,
    }
}

/// A snapshot that would be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannedSnapshot {
    /// Its file.
    pub path: PathBuf,
    /// What it would take.
    pub cost: Cost,
}

/// A rollback that would be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannedRollback {
    /// The name and the file of the snapshot that would keep the present.
    pub kept: Option<(SnapshotName, PathBuf)>,
    /// The size of the disk then, in bytes.
    pub virtual_size: u64,
    /// What it would take.
    pub cost: Cost,
}

/// A new image that would be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannedImage {
    /// Its file.
    pub path: PathBuf,
    /// The size of its disk in bytes.
    pub virtual_size: u64,
    /// What it would take.
    pub cost: Cost,
}

/// An image that nobody serves, as an open for writing would find it.
struct Found {
    sb: Superblock,
    meta: Meta,
    /// Names of its snapshots.
    names: Vec<String>,
    /// Something was written since the last snapshot.
    changed: bool,
    layers: usize,
    cost: Cost,
}

/// Looks for everything that would keep `path` from being opened for writing.
async fn find<S: Storage>(storage: &S, path: &Path, options: &OpenOptions) -> Result<Found> {
    refuse_snapshot_name(path)?;
    let how = OpenHow { write: true, direct: true, regular_only: false };
    let file = storage.open(path, how).map_err(|e| Error::io("open", e).at(path))?;
    let meta = file.meta().map_err(|e| Error::io("stat", e).at(path))?;
    if meta.kind != FileKind::Regular {
        return Err(Error::new(Kind::BadName, "not a regular file").at(path));
    }
    nobody_has(storage, &file, path, options).await?;
    let sb = read_slots(&file, path).await?.newest;
    writable(&sb, path)?;
    refuse_open_elsewhere(storage, path, &sb, options)?;
    let caches = Caches::new(MIN_CACHE_BYTES);
    let opened = open_read_only(storage, path, LayerTag(MAX_CHAIN as u32), &caches, false).await?;
    let mut sb = opened.sb;
    sb.virtual_size = opened.pending.size().unwrap_or(sb.virtual_size);
    let chain = walk(storage, path, sb.clone(), &options.search).await?;
    let below = chain.layers.get(1).map(|below| &below.sb);
    let empty = sb.root.height == 0 && sb.cut.0 == 0 && opened.recovery.applied == 0;
    let changed = !(empty
        && below
            .is_some_and(|sb_below| sb_below.sealed.is_some() && sb_below.virtual_size == sb.virtual_size));
    let sealed = chain.layers.iter().filter_map(|link| link.sb.sealed.as_ref());
    Ok(Found {
        names: sealed.map(|sealed| sealed.name.clone()).collect(),
        changed,
        layers: chain.layers.len(),
        cost: Cost::of(OPENED + checkpoint_bytes(opened.pending.entries() as u64)),
        sb,
        meta,
    })
}

/// Waits, as an open does, for the lock of a process that is dying.
async fn nobody_has<S: Storage>(
    storage: &S,
    file: &S::File,
    path: &Path,
    options: &OpenOptions,
) -> Result<()> {
    let free = while_dying(storage, async || {
        if !file.is_locked(Lock::Exclusive).map_err(|e| Error::io("look at the lock", e).at(path))? {
            return Ok(Some(()));
        }
        let holder = read_slots(file, path).await.ok().and_then(|slots| slots.newest.holder);
        match holder {
            Some(holder) if !(options.alive)(holder.pid) => Ok(None),
            _ => Err(super::in_use(file, path).await),
        }
    });
    free.await?.ok_or_else(|| Error::new(Kind::InUse, "in use: its lock is held").at(path))
}

/// For [`super::snapshot()`].
///
/// # Errors
/// Its refusals.
pub async fn plan_snapshot<S: Storage>(
    storage: &S,
    image: &Path,
    name: &SnapshotName,
    options: &OpenOptions,
    is_mount_point: fn(&Path) -> bool,
) -> Result<PlannedSnapshot> {
    let head = image_file(storage, image)?;
    let path = snapshot_path(&head, name);
    check_names(storage, &head, &path, name, &options.search).await?;
    check_mount(&head, is_mount_point)?;
    let found = find(storage, &head, options).await?;
    Ok(PlannedSnapshot { path, cost: found.cost.and(Cost::of(NEW_LAYER)) })
}

/// For [`super::LiveCut`].
///
/// # Errors
/// Its refusals.
pub async fn plan_live_snapshot<S: Storage>(
    storage: &S,
    image: &Image<S>,
    name: &SnapshotName,
    search: &[PathBuf],
    is_mount_point: fn(&Path) -> bool,
) -> Result<PlannedSnapshot> {
    let head = image.path();
    let open =
        image.head().ok_or_else(|| Error::new(Kind::Permission, "the image is open read-only").at(&head))?;
    if image.chain().layers.len() >= MAX_CHAIN {
        let text = format!("the chain has {MAX_CHAIN} layers, and may not be longer");
        return Err(Error::new(Kind::Unsupported, text).at(head));
    }
    still_there(storage, &head, &open.reader.file)?;
    check_mount(&head, is_mount_point)?;
    let path = snapshot_path(&head, name);
    check_names(storage, &head, &path, name, search).await?;
    let fold = checkpoint_bytes(open.pending.entries() as u64);
    Ok(PlannedSnapshot { path, cost: Cost::of(NEW_LAYER + OPENED + fold) })
}

/// For [`super::rollback()`].
///
/// # Errors
/// Its refusals.
pub async fn plan_rollback<S: Storage>(
    storage: &S,
    image: &Path,
    name: &SnapshotName,
    present: Present,
    options: &OpenOptions,
    is_mount_point: fn(&Path) -> bool,
) -> Result<PlannedRollback> {
    let path = image_file(storage, image)?;
    check_mount(&path, is_mount_point)?;
    let found = find(storage, &path, options).await?;
    let target = find_target(storage, &path, name, &found.sb, &options.search).await?;
    let virtual_size = target.new.virtual_size;
    let keep = present == Present::Keep && found.changed;
    if keep && found.layers >= MAX_CHAIN {
        let text = format!("the chain has {MAX_CHAIN} layers, and may not be longer");
        return Err(Error::new(Kind::Unsupported, text).at(&path));
    }
    let kept = match keep {
        true => Some(super::fork::unused_snapshot_name(storage, &path, "rollback", &found.names)?),
        false => None,
    };
    let layers = if keep { 2 } else { 1 };
    let cost = found.cost.and(Cost::of(layers * NEW_LAYER)).and(gone(&found.meta, keep));
    Ok(PlannedRollback { kept: kept.map(|name| with_path(&path, name)), virtual_size, cost })
}

/// For [`super::LiveRollback`].
///
/// # Errors
/// Its refusals, but for those who have the disk open.
pub async fn plan_live_rollback<S: Storage>(
    storage: &S,
    image: &Image<S>,
    name: &SnapshotName,
    present: Present,
    search: &[PathBuf],
    is_mount_point: fn(&Path) -> bool,
) -> Result<PlannedRollback> {
    image.sealed().await?;
    let path = image.path();
    let head =
        image.head().ok_or_else(|| Error::new(Kind::Permission, "the image is open read-only").at(&path))?;
    still_there(storage, &path, &head.reader.file)?;
    check_mount(&path, is_mount_point)?;
    let target = find_target(storage, &path, name, &head.superblock(), search).await?;
    same_sectors(image, &target)?;
    let kept = keep_name(storage, image, present)?;
    let meta = head.reader.file.meta().map_err(|e| Error::io("stat", e).at(&path))?;
    let mut cost = Cost::of(NEW_LAYER + OPENED).and(gone(&meta, kept.is_some()));
    if let Some(kept) = &kept {
        cost = cost.and(plan_live_snapshot(storage, image, kept, search, is_mount_point).await?.cost);
    }
    let virtual_size = target.new.virtual_size;
    Ok(PlannedRollback { kept: kept.map(|name| with_path(&path, name)), virtual_size, cost })
}

fn with_path(image: &Path, name: SnapshotName) -> (SnapshotName, PathBuf) {
    let path = snapshot_path(image, &name);
    (name, path)
}

/// What a head that is replaced gives back, unless it is `kept`, or has another name.
fn gone(meta: &Meta, kept: bool) -> Cost {
    let freed = if kept || meta.links > 1 { 0 } else { meta.allocated };
    Cost { needed: 0, freed }
}

/// For [`super::create()`].
///
/// # Errors
/// Its refusals.
pub async fn plan_create<S: Storage>(
    storage: &S,
    path: &Path,
    options: &CreateOptions,
) -> Result<PlannedImage> {
    let path = real_place(storage, path)?;
    let replaced = take_over(storage, &path, options.force).await?.map(|(_, meta)| meta);
    let (new, border) = describe(storage, &path, options, replaced.as_ref()).await?;
    let written = if border.is_some() { OPENED + BLOCK + checkpoint_bytes(1) } else { 0 };
    let cost = Cost::of(NEW_LAYER + written);
    let freed = replaced.map_or(Cost::default(), |meta| gone(&meta, false));
    Ok(PlannedImage { path, virtual_size: new.virtual_size, cost: cost.and(freed) })
}

/// For [`super::fork()`] on the sealed layer `parent`; `size` as there. `None`: on a snapshot of an image with a disk of so
/// many bytes, which would be taken first.
///
/// # Errors
/// Its refusals.
pub async fn plan_fork<S: Storage>(
    storage: &S,
    parent: std::result::Result<&Path, (u64, u32)>,
    new: &[PathBuf],
    size: Option<u64>,
) -> Result<Vec<PlannedImage>> {
    let options = match parent {
        Ok(parent) => super::fork::options(storage, parent, size).await?,
        Err((now, sector)) => {
            CreateOptions { size: size.or(Some(now)), sector_size: Some(sector), ..CreateOptions::default() }
        }
    };
    let mut planned: Vec<PlannedImage> = Vec::with_capacity(new.len());
    for path in new {
        let one = plan_create(storage, path, &options).await?;
        if planned.iter().any(|other| other.path == one.path) {
            // By then.
            return Err(Error::new(Kind::Exists, "it exists").at(one.path));
        }
        planned.push(one);
    }
    Ok(planned)
}
