//! `delete` of a snapshot of an image that nobody serves: the layer above takes over what it needs of it, or the other way
//! round; what becomes of the files is told in [`super::join`].
//!
//! A head never takes part: if the snapshot is the newest one, a layer without a name is cut first. It goes with the next
//! delete, as soon as there is a sealed layer above it.

use std::path::{Path, PathBuf};

use super::join::{self, Direction, Work};
use super::map::hidden;
use super::snapshot::{OfflineSnapshot, check_mount};
use super::walk::{Link, find_snapshot, read_superblock, walk};
use crate::chain::{Access, OpenOptions, OpenReport, SnapshotName, image_file, open_chain};
use crate::error::{Error, Kind, Result, printable};
use crate::format::{Joining, LayerId, Parent, Superblock};
use crate::layer::Editor;
use crate::limits::MAX_CHAIN;
use crate::storage::{FileId, FileKind, Storage, sync_directory_of};

/// A snapshot that was deleted.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// Bytes allocated to the files of the disk before, less those after.
    pub freed: u64,
    /// What opening the image did.
    pub report: OpenReport,
}

/// What a delete would do.
#[derive(Clone, Debug)]
pub struct DeletePlan {
    /// The snapshot's file.
    pub path: PathBuf,
    /// What would move, and to where; `None`: nothing, the file would just go.
    pub moves: Option<(Direction, PathBuf)>,
    /// Bytes that would move, at most.
    pub moved: u64,
    /// Bytes that the file system must have free.
    pub needed: u64,
    /// Bytes of data that would be freed.
    pub freed: u64,
}

/// Deletes the snapshot `name` of `image`, which nobody has open. `options` are for writing; `is_mount_point` as for
/// [`super::snapshot()`].
///
/// # Errors
/// `NotFound` without such a snapshot; `InUse` with the names of those who need it, or with further names of its file;
/// whatever keeps the image from being opened for writing. If the layers could not be joined to the end, the disk and its
/// other snapshots are as before, and the next delete goes on.
pub async fn delete<S: Storage>(
    storage: &S,
    image: &Path,
    name: &SnapshotName,
    options: &OpenOptions,
    is_mount_point: fn(&Path) -> bool,
    work: &Work<'_>,
) -> Result<Deleted> {
    let path = image_file(storage, image)?;
    check_mount(&path, is_mount_point)?;
    let (image, report) = open_chain(storage, &path, options).await?;
    image.close().await?;
    // Its lock goes with it.
    drop(image);
    let disk = Disk { storage, path: &path, search: &options.search };
    let before = disk.allocated().await?;
    let ended = disk.end_last(work).await?;
    if ended.as_deref() != Some(name.as_str()) {
        disk.delete(name, options, work).await?;
    }
    disk.join_nameless(work).await?;
    Ok(Deleted { freed: before.saturating_sub(disk.allocated().await?), report })
}

/// What [`delete`] would do. Writes nothing; `search` as in [`OpenOptions`].
///
/// # Errors
/// As [`delete`].
pub async fn plan_delete<S: Storage>(
    storage: &S,
    image: &Path,
    name: &SnapshotName,
    search: &[PathBuf],
) -> Result<DeletePlan> {
    let path = image_file(storage, image)?;
    let disk = Disk { storage, path: &path, search };
    let target = find_snapshot(storage, &path, name, search).await?;
    let chain = disk.chain().await?;
    let allocated =
        |path: &Path| storage.meta(path).map(|m| m.allocated).map_err(|e| Error::io("stat", e).at(path));
    let Some(at) = chain.iter().position(|link| link.path == target) else {
        disk.no_children(&read_superblock(storage, &target).await?, &target).await?;
        return Ok(DeletePlan { freed: allocated(&target)?, path: target, moves: None, moved: 0, needed: 0 });
    };
    disk.check(&chain, at).await?;
    let (upper, lower) = (&chain[at - 1], &chain[at]);
    let options = OpenOptions { search: search.to_vec(), ..OpenOptions::new(Access::Read { lock: true }) };
    let (image, _) = open_chain(storage, &upper.path, &options).await?;
    let freed = hidden(&image.chain(), 0).await?;
    let (up, low) = ((&upper.sb, allocated(&upper.path)?), (&lower.sb, allocated(&lower.path)?));
    let direction = join::direction(up, low);
    let (into, (sb, bytes)) = match direction {
        Direction::Down => (&lower.path, up),
        Direction::Up => (&upper.path, low),
    };
    let moved = join::content_bytes(sb, bytes);
    // The chunk and its tree, and a layer without a name, which begins with its superblocks.
    let needed = 2 * moved.min(join::CHUNK_BYTES);
    Ok(DeletePlan { path: lower.path.clone(), moves: Some((direction, into.clone())), moved, needed, freed })
}

/// The disk whose snapshot goes.
struct Disk<'a, S: Storage> {
    storage: &'a S,
    path: &'a Path,
    search: &'a [PathBuf],
}

impl<S: Storage> Disk<'_, S> {
    /// Its layers, the head first.
    async fn chain(&self) -> Result<Vec<Link>> {
        let sb = read_superblock(self.storage, self.path).await?;
        Ok(walk(self.storage, self.path, sb, self.search).await?.layers)
    }

    /// Bytes allocated to all layers in the image's directory that belong to its disk.
    async fn allocated(&self) -> Result<u64> {
        let chain = self.chain().await?;
        let bytes =
            chain.iter().filter_map(|link| self.storage.meta(&link.path).ok()).map(|meta| meta.allocated);
        Ok(bytes.sum())
    }

    /// Ends the join that was broken off, if there is one. Gives the name of the snapshot that has gone with it.
    async fn end_last(&self, work: &Work<'_>) -> Result<Option<String>> {
        for link in self.chain().await? {
            let Some(Joining::Above { name, .. }) = &link.sb.joining else { continue };
            let above = Editor::open(self.storage, &link.path).await?;
            join::go_on(self.storage, above, self.search, work).await?;
            return Ok(Some(name.clone()));
        }
        Ok(None)
    }

    async fn delete(&self, name: &SnapshotName, options: &OpenOptions, work: &Work<'_>) -> Result<()> {
        let target = find_snapshot(self.storage, self.path, name, self.search).await?;
        let chain = self.chain().await?;
        let Some(at) = chain.iter().position(|link| link.path == target) else {
            return self.remove(&target).await;
        };
        self.check(&chain, at).await?;
        if at > 1 {
            return self.join(&chain, at, work).await;
        }
        if chain.len() >= MAX_CHAIN {
            let text = format!("the chain has {MAX_CHAIN} layers, and must not be longer even for a while");
            return Err(Error::new(Kind::Unsupported, text)
                .at(self.path)
                .hint("delete an older snapshot first"));
        }
        let (image, report) = open_chain(self.storage, self.path, options).await?;
        OfflineSnapshot::nameless(self.storage, image, report)?.take().await?;
        self.join(&self.chain().await?, at + 1, work).await
    }

    /// Joins the layer `at` of the chain with the one above it, which is no head.
    async fn join(&self, chain: &[Link], at: usize, work: &Work<'_>) -> Result<()> {
        let (above, upper, lower) = (&chain[at - 2], &chain[at - 1], &chain[at]);
        let mut above = Editor::open(self.storage, &above.path).await?;
        let file = lower.path.file_name().and_then(|file| file.to_str());
        let file =
            file.ok_or_else(|| Error::new(Kind::BadName, "the name is not valid UTF-8").at(&lower.path))?;
        // Both are free, or nothing is begun.
        for link in [upper, lower] {
            drop(Editor::open(self.storage, &link.path).await?);
        }
        join::begin(self.storage, &mut above, &upper.sb, &lower.sb, file).await?;
        join::go_on(self.storage, above, self.search, work).await
    }

    /// Joins layers without a name with what is above them, where that is no head.
    async fn join_nameless(&self, work: &Work<'_>) -> Result<()> {
        for _ in 0..MAX_CHAIN {
            let chain = self.chain().await?;
            let nameless = |link: &Link| link.sb.sealed.as_ref().is_some_and(|sealed| sealed.name.is_empty());
            let Some(at) = (2..chain.len()).find(|at| nameless(&chain[*at])) else { return Ok(()) };
            // One that somebody needs stays; it is in nobody's way.
            if self.check(&chain, at).await.is_err() {
                return Ok(());
            }
            self.join(&chain, at, work).await?;
        }
        Ok(())
    }

    /// Removes a snapshot on which nothing stands.
    async fn remove(&self, target: &Path) -> Result<()> {
        let layer = Editor::open(self.storage, target).await?;
        self.no_children(&layer.sb, target).await?;
        self.storage.unlink(target).map_err(|e| Error::io("remove", e).at(target))?;
        sync_directory_of(self.storage, target)
    }

    /// Makes sure that the layer `at` of the chain may go, and the one above it may change.
    async fn check(&self, chain: &[Link], at: usize) -> Result<()> {
        let (upper, lower) = (&chain[at - 1], &chain[at]);
        if lower.sb.disk != chain[0].sb.disk {
            let text = "it belongs to another disk, which this one only stands on";
            return Err(Error::new(Kind::Unsupported, text).at(&lower.path));
        }
        let above = if at > 1 { Some(&chain[at - 2]) } else { None };
        self.no_others(&lower.sb, &lower.path, Some(upper)).await?;
        if upper.sb.sealed.is_some() {
            self.no_others(&upper.sb, &upper.path, above).await?;
        }
        // Of the head only what it says of its parent changes.
        let changing = if at > 1 { &chain[at - 2..=at] } else { &chain[..=at] };
        for link in changing {
            if link.path.parent() != self.path.parent() {
                let text = "it does not lie beside the image, and only what does is changed";
                return Err(Error::new(Kind::Unsupported, text).at(&link.path));
            }
            self.one_name(&link.path)?;
        }
        Ok(())
    }

    async fn no_children(&self, sb: &Superblock, path: &Path) -> Result<()> {
        self.no_others(sb, path, None).await
    }

    /// Makes sure that no layer in reach stands on the layer `path` but `child`.
    async fn no_others(&self, sb: &Superblock, path: &Path, child: Option<&Link>) -> Result<()> {
        let child = child.and_then(|link| self.storage.meta(&link.path).ok()).map(|meta| meta.id);
        let users: Vec<String> = self
            .children(sb.layer)
            .await
            .into_iter()
            .filter(|(_, id)| Some(*id) != child)
            .map(|(path, _)| printable(&path.to_string_lossy()))
            .collect();
        if users.is_empty() {
            return Ok(());
        }
        let text = format!("it is needed by {}", users.join(", "));
        let shown = printable(&self.path.to_string_lossy());
        Err(Error::new(Kind::InUse, text).at(path).hint(format!("cowdisk list '{shown}'")))
    }

    /// The layers in reach that stand on the layer `id`: beside the image, and in the further directories.
    async fn children(&self, id: LayerId) -> Vec<(PathBuf, FileId)> {
        let mut found = Vec::new();
        let dirs = self.path.parent().into_iter().chain(self.search.iter().map(PathBuf::as_path));
        for dir in dirs {
            for name in self.storage.list(dir).unwrap_or_default() {
                let path = dir.join(&name);
                let Ok(meta) = self.storage.meta(&path) else { continue };
                if meta.kind != FileKind::Regular {
                    continue;
                }
                let Ok(sb) = read_superblock(self.storage, &path).await else { continue };
                if matches!(sb.parent, Parent::Layer { layer, .. } if layer == id) {
                    found.push((path, meta.id));
                }
            }
        }
        found
    }

    /// Makes sure that the file `path` has no further hard link: its other names would change with it.
    fn one_name(&self, path: &Path) -> Result<()> {
        let meta = self.storage.meta(path).map_err(|e| Error::io("stat", e).at(path))?;
        if meta.links <= 1 {
            return Ok(());
        }
        let dir = path.parent().unwrap_or(Path::new(""));
        let others = self.storage.list(dir).unwrap_or_default().into_iter().map(|name| dir.join(name));
        let same = |other: &PathBuf| other != path && self.storage.meta(other).is_ok_and(|m| m.id == meta.id);
        let mut names: Vec<String> =
            others.filter(same).map(|other| printable(&other.to_string_lossy())).collect();
        if names.is_empty() {
            names.push("in another directory".into());
        }
        let text = format!(
            "its file has {} names, the others would change with it: {}",
            meta.links,
            names.join(", ")
        );
        Err(Error::new(Kind::InUse, text).at(path))
    }
}
