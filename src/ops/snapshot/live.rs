//! A snapshot of an image that is open for writing in this process, while requests run.
//!
//! Three steps, so that several images can be cut at one instant: *prepare* (the new head is made, and the names are
//! changed, both durably), *hold* (everything is committed, requests wait), *cut* (the new head takes over). The names
//! change first: until the cut the old head goes on under the snapshot's name, and a crash leaves the image as it was, or
//! with a snapshot that nobody was promised.

use std::path::{Path, PathBuf};

use super::names::{Broken, check_mount, check_names, copy_access, overlay, put_back, put_in_place};
use crate::chain::{Image, LiveSnapshot, NewHead, SnapshotName, snapshot_path, unused_temporary};
use crate::error::{Error, Kind, Result, printable};
use crate::format::{Sealed, Superblock};
use crate::layer::{self, NewLayer};
use crate::storage::{File, Storage};

/// A live snapshot under way. Dropped before [`LiveCut::cut`] it leaves the image as it was, as far as names can be put
/// back.
#[derive(Debug)]
pub struct LiveCut<'a, S: Storage> {
    storage: S,
    live: Option<(LiveSnapshot<'a, S>, NewHead<S>)>,
    name: SnapshotName,
    head: PathBuf,
    target: PathBuf,
}

impl<'a, S: Storage> LiveCut<'a, S> {
    /// Makes everything ready. Requests go on.
    ///
    /// # Errors
    /// `Exists`, `BadName`; `NotFound` if the image's file has been moved away; whatever the host says. The image is as
    /// it was.
    pub async fn prepare(
        storage: &S,
        image: &'a Image<S>,
        name: &SnapshotName,
        search: &[PathBuf],
        is_mount_point: fn(&Path) -> bool,
    ) -> Result<LiveCut<'a, S>> {
        let live = image.begin_snapshot().await?;
        let head = image.path();
        let target = snapshot_path(&head, name);
        still_there(storage, &head, &live.old.reader.file)?;
        check_mount(&head, is_mount_point)?;
        check_names(storage, &head, &target, name, search).await?;
        remove_second_name(storage, &head, &target)?;
        let temporary = unused_temporary(storage, &head)?;
        let new = make_head(storage, &live, &head, &target, &temporary).await?;
        if let Err(Broken { error, replaced }) = put_in_place(storage, &head, &target, &temporary) {
            if replaced {
                // The error to report is the first one.
                let _ = put_back(storage, &head, &target);
            }
            return Err(error);
        }
        let live = Some((live, new));
        Ok(LiveCut { storage: storage.clone(), live, name: name.clone(), head, target })
    }

    /// Commits everything and holds requests back.
    ///
    /// # Errors
    /// The image is poisoned, or a failed write cannot be got over. Drop the cut then.
    pub async fn hold(&self) -> Result<()> {
        match &self.live {
            Some((live, _)) => live.hold().await,
            None => Ok(()),
        }
    }

    /// The snapshot is taken: gives its file, and the superblock that it will have but for its seal.
    pub fn cut(mut self) -> (PathBuf, Superblock) {
        let (live, new) = self.live.take().expect("cut once");
        let sealed = Sealed { name: self.name.as_str().to_owned(), time_ns: self.storage.now_ns() };
        let sb = live.old.superblock();
        live.switch(new, self.target.clone(), sealed);
        (self.target.clone(), sb)
    }
}

impl<S: Storage> Drop for LiveCut<'_, S> {
    fn drop(&mut self) {
        let live = self.live.take();
        if live.is_some() {
            // If it cannot be done now, the next open finishes the snapshot, which is exact.
            let _ = put_back(&self.storage, &self.head, &self.target);
        }
    }
}

/// Nothing is changed at a path that names another file by now.
pub(in crate::ops) fn still_there<S: Storage>(storage: &S, head: &Path, file: &S::File) -> Result<()> {
    let now = storage.meta(head).map_err(|e| Error::io("stat", e).at(head))?;
    let open = file.meta().map_err(|e| Error::io("stat", e).at(head))?;
    if now.id == open.id {
        return Ok(());
    }
    let text = "the file that is being served is no longer here: it was moved, or another took its name";
    let hint = format!("put it back to {} first", printable(&head.to_string_lossy()));
    Err(Error::new(Kind::NotFound, text).at(head).hint(hint))
}

/// A second name of the head is what a broken-off snapshot left behind.
fn remove_second_name<S: Storage>(storage: &S, head: &Path, target: &Path) -> Result<()> {
    let (Ok(head), Ok(second)) = (storage.meta(head), storage.meta(target)) else { return Ok(()) };
    if head.id == second.id {
        storage.unlink(target).map_err(|e| Error::io("remove", e).at(target))?;
    }
    Ok(())
}

/// The new head, open and durable, under a temporary name.
async fn make_head<S: Storage>(
    storage: &S,
    live: &LiveSnapshot<'_, S>,
    head: &Path,
    target: &Path,
    temporary: &Path,
) -> Result<NewHead<S>> {
    // A resize may not have reached the superblock.
    let new = NewLayer { virtual_size: live.size(), ..overlay(&live.old.superblock(), head, target) };
    let made = layer::create(storage, temporary, &new).await?;
    let opened = async {
        copy_access(&made, &live.old.reader.file).map_err(|e| e.at(temporary))?;
        drop(made);
        live.prepare(temporary, head).await
    };
    let opened = opened.await;
    if opened.is_err() {
        let _ = storage.unlink(temporary);
    }
    opened
}
