//! The names of a snapshot: what is made beside the head, and in which order names change.

use std::path::{Path, PathBuf};

use super::super::walk::find_snapshot;
use crate::chain::{SnapshotName, hints_between, unused_temporary};
use crate::error::{Error, Kind, Result};
use crate::format::{Parent, Superblock};
use crate::layer::NewLayer;
use crate::limits;
use crate::rules::{self, Rule};
use crate::storage::{File, Storage, sync_directory_of};
use crate::units::BLOCK;

/// Nothing may be called like the new snapshot, neither a file nor a layer of the chain.
pub(in crate::ops) async fn check_names<S: Storage>(
    storage: &S,
    head: &Path,
    target: &Path,
    name: &SnapshotName,
    search: &[PathBuf],
) -> Result<()> {
    if head.file_name().and_then(|f| f.to_str()).is_none() {
        return Err(Error::new(Kind::BadName, "the name is not valid UTF-8").at(head));
    }
    let file_name = target.file_name().unwrap_or_default();
    if file_name.len() > limits::MAX_FILE_NAME_BYTES {
        return Err(Error::new(Kind::BadName, "the name of its file would be too long").at(target));
    }
    if let Ok(meta) = storage.meta(target) {
        // A second name of the head itself is left over from a snapshot that was broken off.
        if storage.meta(head).is_ok_and(|h| h.id == meta.id) {
            return Ok(());
        }
        return Err(Error::new(Kind::Exists, "it exists").at(target));
    }
    match find_snapshot(storage, head, name, search).await {
        Ok(path) => Err(Error::new(Kind::Exists, "it is the snapshot of that name").at(path)),
        Err(e) if e.kind() == Kind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// The layer that is to become the head, on the one that is.
pub(super) fn overlay(sb: &Superblock, head: &Path, target: &Path) -> NewLayer {
    next_head(sb, Parent::Layer { layer: sb.layer, root_crc: None, hints: hints_between(head, target) })
}

/// A head for the disk whose head says `sb`, on `parent`.
pub(in crate::ops) fn next_head(sb: &Superblock, parent: Parent) -> NewLayer {
    NewLayer {
        disk: Some(sb.disk),
        virtual_size: sb.virtual_size,
        sector_size: sb.sector_size,
        checksums: sb.checksums.protects(),
        journal: sb.ring().map_or(limits::DEFAULT_JOURNAL_BYTES, |ring| ring.blocks * BLOCK),
        parent,
        mode: 0o600,
        owner: None,
    }
}

/// Refuses a head that no other file can take the place of.
pub(in crate::ops) fn check_mount(head: &Path, is_mount_point: fn(&Path) -> bool) -> Result<()> {
    if is_mount_point(head) {
        let text = "it is a mount point of its own, so no new head can take its place";
        return Err(Error::new(Kind::Unsupported, text).at(head));
    }
    Ok(())
}

/// Gives the new head's file the access of the old one.
pub(in crate::ops) fn copy_access<F: File>(new: &F, old: &F) -> Result<()> {
    new.copy_access(old).map_err(|e| Error::io("give the new head the old one's owner and mode", e))
}

/// Why the head could not be replaced.
pub(super) struct Broken {
    pub(super) error: Error,
    /// It may have been.
    pub(super) replaced: bool,
}

/// The two changes of names: `target` becomes a name of the head, and the file `temporary` takes its first one. If that
/// fails, and the head was not replaced, all names are as they were, without `temporary`.
pub(super) fn put_in_place<S: Storage>(
    storage: &S,
    head: &Path,
    target: &Path,
    temporary: &Path,
) -> std::result::Result<(), Broken> {
    let mut linked = false;
    change_names(storage, head, target, temporary, &mut linked).map_err(|error| {
        // As long as the temporary name is there, the rename has not been done.
        let undone = storage.unlink(temporary).is_ok();
        if undone && linked {
            let _ = storage.unlink(target);
        }
        Broken { error, replaced: !undone }
    })
}

/// `linked` tells how far it came.
fn change_names<S: Storage>(
    storage: &S,
    head: &Path,
    target: &Path,
    temporary: &Path,
    linked: &mut bool,
) -> Result<()> {
    let sync = || sync_directory_of(storage, head);
    storage.link(head, target).map_err(|e| Error::io("make the snapshot's name", e).at(target))?;
    *linked = true;
    // The old head's second name is durable before its first one goes: it never has none.
    if rules::holds(Rule::DirectorySync) {
        sync()?;
    }
    storage.rename(temporary, head).map_err(|e| Error::io("replace the head", e).at(head))?;
    // The new head is durable before the old one is sealed: a sealed head could not be opened for writing.
    sync()
}

/// Takes [`put_in_place`] back: `head` names the file again that has the name `target`. Each crash point is one of those
/// of a snapshot that was broken off.
pub(super) fn put_back<S: Storage>(storage: &S, head: &Path, target: &Path) -> Result<()> {
    let temporary = unused_temporary(storage, head)?;
    storage.link(target, &temporary).map_err(|e| Error::io("make a second name", e).at(&temporary))?;
    storage.rename(&temporary, head).map_err(|e| Error::io("put the head back", e).at(head))?;
    sync_directory_of(storage, head)?;
    storage.unlink(target).map_err(|e| Error::io("remove", e).at(target))
}
