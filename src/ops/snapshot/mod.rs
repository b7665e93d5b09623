//! `snapshot` of an image that nobody serves: the head becomes a sealed layer, an empty overlay takes its place.
//!
//! Every crash point leaves an openable image with everything that was acknowledged. The names on disk, in order:
//!
//! | after                          | found by the next open for writing                                       |
//! |--------------------------------|--------------------------------------------------------------------------|
//! | the overlay is made            | an empty layer under a temporary name: removed                           |
//! | the head's link, not synced    | as before, or as after the next line                                     |
//! | the directory's sync           | a head with a second name: the name is removed, there is no snapshot     |
//! | the rename, not synced         | as before, or as after the next line                                     |
//! | the directory's sync           | an overlay on an unsealed parent: the parent is recovered and sealed     |
//! | the seal                       | the snapshot                                                             |

mod live;
mod names;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chain::{
    Image, OpenOptions, OpenReport, SnapshotName, image_file, nameless_path, open_chain, snapshot_path,
    unused_temporary,
};
use crate::error::{Error, Kind, Result};
use crate::format::{Sealed, Superblock};
use crate::layer::{self, Head, NewLayer};
use crate::storage::{File, Lock, Storage};
use names::{Broken, overlay, put_in_place};

pub use live::LiveCut;
pub(super) use live::still_there;
pub(super) use names::{check_mount, check_names, copy_access, next_head};

/// A snapshot that was taken.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its file.
    pub path: PathBuf,
    /// Its superblock.
    pub sb: Superblock,
    /// What opening the image did.
    pub report: OpenReport,
}

/// Takes the snapshot `name` of `image`, which nobody has open. `options` are for writing; `is_mount_point` tells whether
/// a file cannot be replaced because something is mounted on it.
///
/// # Errors
/// `Exists`, `InUse`, and whatever keeps the image from being opened for writing: then nothing has changed, except that
/// the image may have been recovered. An error of the last step, the seal, leaves the snapshot taken; the next open for
/// writing finishes it.
pub async fn snapshot<S: Storage>(
    storage: &S,
    image: &Path,
    name: &SnapshotName,
    options: &OpenOptions,
    is_mount_point: fn(&Path) -> bool,
) -> Result<Snapshot> {
    OfflineSnapshot::open(storage, image, name, options, is_mount_point).await?.take().await
}

/// An image that was opened for nothing but a snapshot: as long as it is open nobody changes it.
#[derive(Debug)]
pub struct OfflineSnapshot<S: Storage> {
    storage: S,
    image: Image<S>,
    old: Arc<Head<S>>,
    report: OpenReport,
    /// Its name; empty for a layer that is no snapshot.
    name: String,
    target: PathBuf,
}

impl<S: Storage> OfflineSnapshot<S> {
    /// The first half of [`snapshot`]: checks names, opens the image and recovers it.
    ///
    /// # Errors
    /// As [`snapshot`]; nothing but recovery was done.
    pub async fn open(
        storage: &S,
        image: &Path,
        name: &SnapshotName,
        options: &OpenOptions,
        is_mount_point: fn(&Path) -> bool,
    ) -> Result<OfflineSnapshot<S>> {
        let head = image_file(storage, image)?;
        let target = snapshot_path(&head, name);
        check_names(storage, &head, &target, name, &options.search).await?;
        check_mount(&head, is_mount_point)?;
        let (image, report) = open_chain(storage, &head, options).await?;
        OfflineSnapshot::of(storage, image, report, name)
    }

    /// Of an image that is open already; nothing may be called like its snapshot `name`.
    ///
    /// # Errors
    /// It is not open for writing.
    pub(super) fn of(
        storage: &S,
        image: Image<S>,
        report: OpenReport,
        name: &SnapshotName,
    ) -> Result<OfflineSnapshot<S>> {
        let Some(old) = image.head() else {
            return Err(Error::new(Kind::Usage, "a snapshot opens the image for writing").at(image.path()));
        };
        let target = snapshot_path(&image.path(), name);
        let name = name.as_str().to_owned();
        Ok(OfflineSnapshot { storage: storage.clone(), image, old, report, name, target })
    }

    /// As [`OfflineSnapshot::of`], but the layer is no snapshot: nobody asks for it by name.
    ///
    /// # Errors
    /// It is not open for writing.
    pub(super) fn nameless(storage: &S, image: Image<S>, report: OpenReport) -> Result<OfflineSnapshot<S>> {
        let target = nameless_path(storage, &image.path())?;
        let Some(old) = image.head() else {
            return Err(Error::new(Kind::Usage, "a snapshot opens the image for writing").at(image.path()));
        };
        Ok(OfflineSnapshot { storage: storage.clone(), image, old, report, name: String::new(), target })
    }

    /// The second half of [`snapshot`].
    ///
    /// # Errors
    /// As [`snapshot`].
    pub async fn take(self) -> Result<Snapshot> {
        self.take_and_hold().await.map(|(snapshot, _)| snapshot)
    }

    /// As [`OfflineSnapshot::take`]; also gives the new head, empty and locked: nobody opens the image as long as it is
    /// there.
    pub(super) async fn take_and_hold(self) -> Result<(Snapshot, S::File)> {
        let OfflineSnapshot { storage, image, old, report, name, target } = self;
        // Its lock is held until the old head is sealed: whoever opens the image meanwhile waits.
        let overlay = match replace_head(&storage, &old, &target).await {
            Ok(overlay) => overlay,
            Err(Broken { error, replaced }) => {
                if !replaced {
                    // The image is as it was; that it could not be closed matters less than why.
                    let _ = image.close().await;
                }
                return Err(error);
            }
        };
        let time_ns = storage.now_ns();
        old.seal(Sealed { name, time_ns }).await.map_err(|e| e.at(&target))?;
        Ok((Snapshot { path: target, sb: old.superblock(), report }, overlay))
    }

    /// Closes the image again, as it was.
    ///
    /// # Errors
    /// The next open recovers it.
    pub async fn leave(self) -> Result<()> {
        let OfflineSnapshot { image, old, .. } = self;
        drop(old);
        image.close().await
    }
}

/// Everything up to the moment at which the head's path names a new overlay and `target` the old head, durably. Gives the
/// overlay, locked.
async fn replace_head<S: Storage>(
    storage: &S,
    old: &Head<S>,
    target: &Path,
) -> std::result::Result<S::File, Broken> {
    let head = old.path();
    let unchanged = |error: Error| Broken { error, replaced: false };
    let temporary = unused_temporary(storage, head).map_err(unchanged)?;
    let new = overlay(&old.superblock(), head, target);
    let overlay = make_overlay(storage, &new, &old.reader.file, &temporary).await.map_err(unchanged)?;
    put_in_place(storage, head, target, &temporary).map(|()| overlay)
}

/// A new head for the disk of `head`, empty, durable and locked, under a temporary name.
pub(super) async fn make_overlay<S: Storage>(
    storage: &S,
    new: &NewLayer,
    head: &S::File,
    temporary: &Path,
) -> Result<S::File> {
    let file = layer::create(storage, temporary, new).await?;
    let finished = finish_overlay(&file, head).await;
    if finished.is_err() {
        let _ = storage.unlink(temporary);
    }
    finished.map_err(|e| e.at(temporary))?;
    Ok(file)
}

async fn finish_overlay<F: File>(file: &F, head: &F) -> Result<()> {
    if !file.try_lock(Lock::Exclusive).map_err(|e| Error::io("lock", e))? {
        return Err(Error::new(Kind::InUse, "another process took the new layer's lock"));
    }
    copy_access(file, head)?;
    file.sync_data().await.result.map_err(|e| Error::io("fdatasync", e))?;
    Ok(())
}
