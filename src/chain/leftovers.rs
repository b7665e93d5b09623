//! What a snapshot that was broken off leaves beside the head.

use std::path::{Path, PathBuf};

use super::names::is_temporary;
use crate::error::{Error, Result};
use crate::format::Superblock;
use crate::layer::{LockedLayer, read_slots};
use crate::storage::{File, FileId, Lock, OpenHow, Storage, sync_directory_of};
use crate::units::Seq;

/// Files beside an image that the next open for writing removes, or would if it were sure that nobody needs them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Further names `stem@*` of the head itself: the snapshot was broken off before its rename.
    pub names: Vec<PathBuf>,
    /// Files that were being made.
    pub temporaries: Vec<PathBuf>,
}

/// Looks for leftovers of the image `path`, whose file is `id`. Opens nothing.
///
/// # Errors
/// The directory cannot be read.
pub fn find_leftovers<S: Storage>(storage: &S, path: &Path, id: FileId) -> Result<Leftovers> {
    let dir = path.parent().unwrap_or(Path::new(""));
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut found = Leftovers::default();
    for name in storage.list(dir).map_err(|e| Error::io("read directory", e).at(dir))? {
        let candidate = dir.join(&name);
        let second = name.strip_prefix(&*stem).is_some_and(|rest| rest.starts_with('@'));
        if second && candidate != path && storage.meta(&candidate).is_ok_and(|m| m.id == id) {
            found.names.push(candidate);
        } else if is_temporary(&name, path) {
            found.temporaries.push(candidate);
        }
    }
    Ok(found)
}

/// Removes what is certainly left over from snapshots of the locked head. Gives what went.
pub(super) async fn remove_leftovers<S: Storage>(
    storage: &S,
    path: &Path,
    locked: &LockedLayer<S::File>,
) -> Result<Vec<PathBuf>> {
    let meta = locked.file.meta().map_err(|e| Error::io("stat", e).at(path))?;
    let found = find_leftovers(storage, path, meta.id)?;
    let mut remove = found.names;
    for temporary in found.temporaries {
        if is_abandoned(storage, &temporary, &locked.sb).await {
            remove.push(temporary);
        }
    }
    for name in &remove {
        storage.unlink(name).map_err(|e| Error::io("remove", e).at(name))?;
    }
    if !remove.is_empty() {
        sync_directory_of(storage, path)?;
    }
    Ok(remove)
}

/// True for an empty layer of this disk that nobody holds. It was to become the head, but did not.
async fn is_abandoned<S: Storage>(storage: &S, temporary: &Path, head: &Superblock) -> bool {
    let how = OpenHow { write: true, direct: false, regular_only: true };
    let Ok(file) = storage.open(temporary, how) else { return false };
    if !file.try_lock(Lock::Exclusive).unwrap_or(false) {
        return false;
    }
    let Ok(slots) = read_slots(&file, temporary).await else { return false };
    let sb = slots.newest;
    // A live snapshot opens it before it gets its name; that is one opening, in which nothing is written.
    sb.disk == head.disk && sb.layer != head.layer && sb.epoch <= 1 && sb.root.height == 0 && sb.cut == Seq(0)
}
