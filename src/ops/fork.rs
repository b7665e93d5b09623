//! `fork`: new disks on a sealed layer. Nothing is written beside that layer, and nothing of it is read but its header.

use std::path::{Path, PathBuf};

use super::create::{BaseFormat, CreateOptions, create};
use super::walk::read_superblock;
use crate::chain::{SnapshotName, find_parent, snapshot_path};
use crate::error::{Error, Kind, Result};
use crate::format::{Parent, Superblock};
use crate::limits::MAX_CHAIN;
use crate::storage::{File, Lock, OpenHow, Storage};
use crate::units::Seq;

/// Makes the images `new`, each an empty overlay on the sealed layer `parent`, with a disk id of its own; `size` in bytes,
/// or the parent's. All of them are made, or none.
///
/// # Errors
/// `Exists`, `Usage` for a size that cannot be, `Unsupported` for a parent that is not sealed; what the host says.
pub async fn fork<S: Storage>(
    storage: &S,
    parent: &Path,
    new: &[PathBuf],
    size: Option<u64>,
) -> Result<Vec<(PathBuf, Superblock)>> {
    let options = options(storage, parent, size).await?;
    let mut made = Vec::with_capacity(new.len());
    for path in new {
        match create(storage, path, &options).await {
            Ok(one) => made.push(one),
            Err(e) => {
                made.iter().for_each(|(path, _)| remove_unused(storage, path));
                return Err(e);
            }
        }
    }
    Ok(made)
}

/// What a fork is made with. What its owner wanted of a disk is what is wanted of its forks.
pub(super) async fn options<S: Storage>(
    storage: &S,
    parent: &Path,
    size: Option<u64>,
) -> Result<CreateOptions> {
    let no_checksums = !read_superblock(storage, parent).await?.checksums.protects();
    let base = Some((parent.to_owned(), BaseFormat::Cow));
    Ok(CreateOptions { size, base, no_checksums, ..CreateOptions::default() })
}

/// Takes back an image that was made just now, unless somebody uses it already.
fn remove_unused<S: Storage>(storage: &S, path: &Path) {
    let how = OpenHow { write: true, direct: false, regular_only: true };
    let Ok(file) = storage.open(path, how) else { return };
    if file.try_lock(Lock::Exclusive).unwrap_or(false) {
        // What stays is an empty image with a name that the error does not mention: harmless.
        let _ = storage.unlink(path);
    }
}

/// The sealed layer that shows what the image `path` shows, if the image was closed and nothing has changed since its last
/// snapshot; or the image itself, if it is sealed.
///
/// # Errors
/// Why the image or its parent cannot be read.
pub async fn unchanged_since<S: Storage>(
    storage: &S,
    path: &Path,
    search: &[PathBuf],
) -> Result<Option<PathBuf>> {
    let sb = read_superblock(storage, path).await?;
    if sb.sealed.is_some() {
        return Ok(Some(path.to_owned()));
    }
    let Parent::Layer { root_crc, .. } = &sb.parent else { return Ok(None) };
    let empty = sb.holder.is_none() && sb.root.height == 0 && sb.cut == Seq(0);
    if !empty {
        return Ok(None);
    }
    let (parent, below) = find_parent(storage, path, &sb, search).await?;
    // One that is not sealed yet, or that is another one by now, is dealt with by an open.
    let same = below.sealed.is_some() && root_crc.is_none_or(|crc| crc == below.root.crc);
    Ok((same && below.virtual_size == sb.virtual_size).then_some(parent))
}

/// A name for a snapshot that nobody has named: `WHY-1`, or the next number that is free beside `image`.
///
/// # Errors
/// All are taken.
pub fn unused_snapshot_name<S: Storage>(
    storage: &S,
    image: &Path,
    why: &str,
    taken: &[String],
) -> Result<SnapshotName> {
    for number in 1..=MAX_CHAIN {
        let name = SnapshotName::new(&format!("{why}-{number}"))?;
        let is_taken = taken.iter().any(|other| other == name.as_str());
        if !is_taken && storage.meta(&snapshot_path(image, &name)).is_err() {
            return Ok(name);
        }
    }
    Err(Error::new(Kind::Exists, "it has all the snapshots that it may have").at(image))
}
