//! A rollback of an image that is open for writing in this process, while nobody uses its disk.
//!
//! Three steps, so that whoever serves the disk can make sure of that in between: *prepare* (the present is kept by a live
//! snapshot, the new head is made and all that it stands on is opened), *hold* (writes wait), *finish* (the rename, and the
//! switch). The crash points are those of a live snapshot and of the one rename behind it.

use std::path::{Path, PathBuf};

use super::{Present, Target, find_target, keep_name};
use crate::chain::{Image, NewChain, Replacement, SnapshotName, unused_temporary};
use crate::error::{Error, Kind, Result};
use crate::format::Superblock;
use crate::layer;
use crate::ops::snapshot::{LiveCut, check_mount, copy_access, still_there};
use crate::storage::{Storage, sync_directory_of};

/// A live rollback under way. Dropped before [`LiveRollback::finish`] it leaves the disk as it was; what it has kept stays.
#[derive(Debug)]
pub struct LiveRollback<'a, S: Storage> {
    storage: S,
    replacement: Replacement<'a, S>,
    new: Option<NewChain<S>>,
    image: &'a Image<S>,
    path: PathBuf,
    temporary: PathBuf,
    target: PathBuf,
    present: Present,
    kept: Option<Kept>,
}

/// A snapshot that keeps the present.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its name.
    pub name: SnapshotName,
    /// Its file.
    pub path: PathBuf,
    /// Its superblock, but for the seal.
    pub sb: Superblock,
}

/// A live rollback that was done.
#[derive(Clone, Debug)]
pub struct LiveRolledBack {
    /// What keeps the present; `None`: nothing had changed since the last snapshot, or it was not wanted.
    pub kept: Option<Kept>,
    /// The file of the snapshot that the disk shows now.
    pub target: PathBuf,
    /// The new head's superblock.
    pub sb: Superblock,
}

impl<'a, S: Storage> LiveRollback<'a, S> {
    /// Makes everything ready. The image's background tasks run meanwhile.
    ///
    /// # Errors
    /// As [`super::rollback()`]; `NotFound` if the image's file has been moved away. The disk is as it was; that the present
    /// was kept may have been done.
    pub async fn prepare(
        storage: &S,
        image: &'a Image<S>,
        name: &SnapshotName,
        present: Present,
        search: &[PathBuf],
        is_mount_point: fn(&Path) -> bool,
    ) -> Result<LiveRollback<'a, S>> {
        let path = image.path();
        // What it goes back to may be the snapshot that was taken last.
        image.sealed().await?;
        let Some(head) = image.head() else {
            return Err(Error::new(Kind::Permission, "the image is open read-only").at(&path));
        };
        still_there(storage, &path, &head.reader.file)?;
        check_mount(&path, is_mount_point)?;
        let target = find_target(storage, &path, name, &head.superblock(), search).await?;
        same_sectors(image, &target)?;
        drop(head);
        let kept = match keep_name(storage, image, present)? {
            Some(name) => Some(keep(storage, image, name, search, is_mount_point).await?),
            None => None,
        };
        let replacement = image.begin_replacement().await?;
        let temporary = unused_temporary(storage, &path)?;
        let new = make_chain(storage, &replacement, &target, &path, &temporary, search).await?;
        Ok(LiveRollback {
            storage: storage.clone(),
            replacement,
            new: Some(new),
            image,
            path,
            temporary,
            target: target.path,
            present,
            kept,
        })
    }

    /// The size of the disk that will be, in bytes.
    pub fn size(&self) -> u64 {
        self.new.as_ref().map_or(0, NewChain::size)
    }

    /// Waits for requests that write, and keeps new ones waiting.
    ///
    /// # Errors
    /// `InUse`: something was written since the present was kept.
    pub async fn hold(&mut self) -> Result<()> {
        self.replacement.hold().await;
        if self.present == Present::Keep && self.image.chain().unchanged_since().is_none() {
            let text = "it was written to while the present was being kept";
            return Err(Error::new(Kind::InUse, text).at(&self.path));
        }
        Ok(())
    }

    /// Goes back, once [`LiveRollback::hold`] is done.
    ///
    /// # Errors
    /// What the host says to the rename: the disk is as it was. If the directory cannot be synced, the disk has gone back,
    /// but takes no writes until it is opened again: a power loss might take them with the new head.
    pub async fn finish(mut self) -> Result<LiveRolledBack> {
        let old = self.replacement.old.clone();
        still_there(&self.storage, &self.path, &old.reader.file)?;
        let rename = self.storage.rename(&self.temporary, &self.path);
        rename.map_err(|e| Error::io("replace the head", e).at(&self.path))?;
        let Some(new) = self.new.take() else { unreachable!("it finishes once") };
        let synced = sync_directory_of(&self.storage, &self.path);
        let LiveRollback { ref replacement, .. } = self;
        replacement.switch(new).await;
        let Some(head) = self.image.head() else { unreachable!("there is a new one") };
        if let Err(e) = synced {
            head.journal.poison(&e.to_string());
            return Err(e);
        }
        Ok(LiveRolledBack { kept: self.kept.take(), target: self.target.clone(), sb: head.superblock() })
    }
}

impl<S: Storage> Drop for LiveRollback<'_, S> {
    fn drop(&mut self) {
        if self.new.is_some() {
            // What stays is an empty layer that the next open for writing removes.
            let _ = self.storage.unlink(&self.temporary);
        }
    }
}

/// A disk that is served keeps the size of its sectors.
pub(in crate::ops) fn same_sectors<S: Storage>(image: &Image<S>, target: &Target) -> Result<()> {
    let (now, then) = (image.geometry().sector_size, target.new.sector_size);
    if now == then {
        return Ok(());
    }
    let text = format!("the snapshot has sectors of {then} bytes, and the disk that is served has {now}");
    Err(Error::new(Kind::Unsupported, text).at(&target.path).hint("cowdisk stop, then go back"))
}

/// Keeps the present.
async fn keep<S: Storage>(
    storage: &S,
    image: &Image<S>,
    name: SnapshotName,
    search: &[PathBuf],
    is_mount_point: fn(&Path) -> bool,
) -> Result<Kept> {
    let cut = LiveCut::prepare(storage, image, &name, search, is_mount_point).await?;
    cut.hold().await?;
    let (path, sb) = cut.cut();
    image.sealed().await?;
    Ok(Kept { name, path, sb })
}

/// The new head, open and durable under a temporary name, on its chain.
async fn make_chain<S: Storage>(
    storage: &S,
    replacement: &Replacement<'_, S>,
    target: &Target,
    path: &Path,
    temporary: &Path,
    search: &[PathBuf],
) -> Result<NewChain<S>> {
    let made = layer::create(storage, temporary, &target.new).await?;
    let opened = async {
        copy_access(&made, &replacement.old.reader.file).map_err(|e| e.at(temporary))?;
        drop(made);
        replacement.prepare(temporary, path, search).await
    };
    let opened = opened.await;
    if opened.is_err() {
        let _ = storage.unlink(temporary);
    }
    opened
}
