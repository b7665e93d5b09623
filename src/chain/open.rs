//! Opening a chain: the head, its sealed parents, the base. Hints only find, identity decides. In a loop, bounded.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::base::{Base, open_base};
use super::elsewhere::refuse_open_elsewhere;
use super::image::Image;
use super::kin::{check_parent, condemned, is_parent, moved_to_parent};
use super::layers::{ChainLayer, TOP};
use super::leftovers::remove_leftovers;
use super::names::{SnapshotName, image_file};
use crate::error::{Error, Kind, Result, printable};
use crate::format::{Holder, Joining, LayerId, Parent, PathHints, Sealed, Superblock};
use crate::layer::{
    Caches, Head, LayerReader, LockedLayer, Opened, Recovery, finish_seal, lock_head, open_read_only,
    read_slots, recover_head, sync_sealed, while_dying,
};
use crate::limits::{DEFAULT_CACHE_BYTES, MAX_CHAIN, MAX_PATH_BYTES};
use crate::map::LayerTag;
use crate::space::SpaceOptions;
use crate::storage::{File, Lock, OpenHow, Storage};

/// How an image is opened.
#[derive(Clone, Debug)]
pub enum Access {
    /// For writing, by this process.
    Write(Holder),
    /// Nothing is written, not even recovery. `lock`: keep writers out.
    Read {
        /// Take shared locks.
        lock: bool,
    },
}

/// Settings of an open.
#[derive(Clone)]
pub struct OpenOptions {
    /// Reading or writing.
    pub access: Access,
    /// Bytes for the caches.
    pub cache_bytes: u64,
    /// Further directories to look for parents in (`COWDISK_PATH`).
    pub search: Vec<PathBuf>,
    /// Tells whether a process of this host is alive.
    pub alive: fn(u32) -> bool,
    /// How the file grows.
    pub space: SpaceOptions,
    /// Also if another machine may have it open.
    pub force: bool,
}

impl OpenOptions {
    /// With default settings.
    pub fn new(access: Access) -> OpenOptions {
        let space = SpaceOptions::default();
        OpenOptions {
            access,
            cache_bytes: DEFAULT_CACHE_BYTES,
            search: Vec::new(),
            alive: |_| true,
            space,
            force: false,
        }
    }
}

/// What an open did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Recovery of the head.
    pub recovery: Recovery,
    /// An unsealed parent (a snapshot that was broken off) was recovered and sealed: its path.
    pub sealed_parent: Option<PathBuf>,
    /// Files and names that broken-off snapshots had left, now removed.
    pub removed: Vec<PathBuf>,
}

/// Opens the image `path`.
///
/// # Errors
/// Everything that can be wrong with an image: see [`Kind`]. Nothing is written in that case, except that recovery of an
/// unsealed parent may have been done.
pub async fn open_chain<S: Storage>(
    storage: &S,
    path: &Path,
    options: &OpenOptions,
) -> Result<(Image<S>, OpenReport)> {
    let path = image_file(storage, path)?;
    let caches = Caches::new(options.cache_bytes);
    let mut report = OpenReport::default();
    let mut layers = Vec::new();
    let head = match &options.access {
        Access::Write(me) => {
            let head = open_for_writing(storage, &path, &caches, options, me, &mut report).await?;
            let sb = head.superblock();
            let size = sb.virtual_size;
            layers.push(ChainLayer { reader: head.reader.clone(), sb, size, pending: None });
            Some(head)
        }
        Access::Read { lock } => {
            let opened = open_read_only(storage, &path, TOP, &caches, *lock).await?;
            if opened.sb.joining.as_ref().is_some_and(Joining::is_condemned) {
                return Err(condemned(&opened.sb).at(&path));
            }
            report.recovery = opened.recovery.clone();
            layers.push(chain_layer(opened));
            None
        }
    };
    let base = match open_parents(storage, &options.search, &caches, &mut layers).await {
        Ok(base) => base,
        Err(e) => {
            // What is missing below is no reason to leave the head as after a crash.
            if let Some(head) = &head {
                let _ = head.close().await;
            }
            return Err(e);
        }
    };
    Ok((Image::assemble(head, layers, base, caches, options.space), report))
}

/// Opens `base` (read-only, whatever its state) and puts the new, empty layer `overlay` on it: a temporary image.
pub async fn open_over<S: Storage>(
    storage: &S,
    overlay: &Path,
    base: &Path,
    options: &OpenOptions,
    me: &Holder,
) -> Result<(Image<S>, OpenReport)> {
    let caches = Caches::new(options.cache_bytes);
    let base = image_file(storage, base)?;
    let mut locked = lock_head(storage, overlay, me, &options.alive).await?;
    locked.space = options.space;
    let (head, _) = recover_head(storage, overlay, locked, TOP, &caches, me.clone(), None).await?;
    let sb = head.superblock();
    let size = sb.virtual_size;
    let mut layers = vec![ChainLayer { reader: head.reader.clone(), sb, size, pending: None }];
    let opened = open_read_only(storage, &base, LayerTag(TOP.0 - 1), &caches, true).await?;
    let report = OpenReport { recovery: opened.recovery.clone(), ..OpenReport::default() };
    layers.push(chain_layer(opened));
    let foreign = open_parents(storage, &options.search, &caches, &mut layers).await?;
    Ok((Image::assemble(Some(head), layers, foreign, caches, options.space), report))
}

fn chain_layer<F>(opened: Opened<F>) -> ChainLayer<F> {
    let size = opened.pending.size().unwrap_or(opened.sb.virtual_size);
    let pending = (opened.recovery.applied > 0).then_some(opened.pending);
    ChainLayer { reader: opened.reader, sb: opened.sb, size, pending }
}

async fn open_for_writing<S: Storage>(
    storage: &S,
    path: &Path,
    caches: &Caches,
    options: &OpenOptions,
    me: &Holder,
    report: &mut OpenReport,
) -> Result<Head<S>> {
    refuse_snapshot_name(path)?;
    let mut locked = lock_head(storage, path, me, &options.alive).await?;
    refuse_open_elsewhere(storage, path, &locked.sb, options)?;
    locked.space = options.space;
    report.removed = remove_leftovers(storage, path, &locked).await?;
    // One unsealed parent at most: a snapshot was broken off behind its rename. It is locked and synced before
    // anything is written here (O1), then recovered and sealed.
    let parent = seal_parent(storage, path, &locked, caches, options, me, report).await?;
    let (head, recovery) = recover_head(storage, path, locked, TOP, caches, me.clone(), parent).await?;
    report.recovery = recovery;
    Ok(head)
}

/// Refuses to write to a file that is called like a snapshot.
///
/// # Errors
/// `Unsupported`.
pub fn refuse_snapshot_name(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.contains('@') {
        let shown = printable(&path.to_string_lossy());
        let error = Error::new(Kind::Unsupported, "a snapshot's file is never opened for writing").at(path);
        return Err(error.hint(format!("cowdisk serve --read-only '{shown}'")));
    }
    Ok(())
}

/// If the parent is a layer without a recorded root, seals it (if need be) and gives the completed parent.
async fn seal_parent<S: Storage>(
    storage: &S,
    path: &Path,
    locked: &LockedLayer<S::File>,
    caches: &Caches,
    options: &OpenOptions,
    me: &Holder,
    report: &mut OpenReport,
) -> Result<Option<Parent>> {
    let Parent::Layer { layer, root_crc: None, hints } = &locked.sb.parent else { return Ok(None) };
    if *layer == locked.sb.layer {
        return Err(Error::corrupt("the chain of parents is a circle").at(path));
    }
    let (at, sb) = find_parent(storage, path, &locked.sb, &options.search).await?;
    let sb = match sb.sealed {
        Some(_) => read_sealed(storage, &at, *layer).await?,
        None => match lock_head(storage, &at, me, &options.alive).await {
            Ok(parent) if parent.sb.layer != *layer => return Err(changed(&at)),
            Ok(parent) => {
                refuse_open_elsewhere(storage, &at, &parent.sb, options)?;
                let (parent, _) = recover_unsealed(storage, &at, parent, caches, me).await?;
                parent.seal(Sealed { name: name_in(&at), time_ns: storage.now_ns() }).await?;
                report.sealed_parent = Some(at.clone());
                parent.superblock()
            }
            // A dying process may have been sealing it, and its last write has landed since.
            Err(e) if e.kind() == Kind::Unsupported => {
                read_sealed(storage, &at, *layer).await.map_err(|_| e)?
            }
            Err(e) => return Err(e),
        },
    };
    Ok(Some(Parent::Layer { layer: *layer, root_crc: Some(sb.root.crc), hints: hints.clone() }))
}

fn changed(path: &Path) -> Error {
    Error::new(Kind::ParentChanged, "the parent changed while it was opened").at(path)
}

/// The superblock of a sealed layer whose root is not recorded yet, when it is durable (O1) and nobody changes it.
async fn read_sealed<S: Storage>(storage: &S, path: &Path, layer: LayerId) -> Result<Superblock> {
    let how = OpenHow { write: false, direct: false, regular_only: true };
    let file = storage.open(path, how).map_err(|e| Error::io("open parent", e).at(path))?;
    lock_parent(storage, &file, path).await?;
    sync_sealed(&file, path).await?;
    let sb = read_slots(&file, path).await?.newest;
    match sb.sealed {
        Some(_) if sb.layer == layer => {}
        _ => return Err(changed(path)),
    }
    // It takes the lock for itself.
    drop(file);
    finish_seal(storage, path).await?;
    Ok(sb)
}

async fn recover_unsealed<S: Storage>(
    storage: &S,
    path: &Path,
    mut locked: LockedLayer<S::File>,
    caches: &Caches,
    me: &Holder,
) -> Result<(Head<S>, Recovery)> {
    locked.is_parent = true;
    // Its tag is that of no layer of the chain: its nodes are not looked up again under it.
    recover_head(storage, path, locked, LayerTag(u32::MAX), caches, me.clone(), None).await
}

/// The snapshot name in `vm@NAME.cow`; empty if there is none, as in `vm@~1.cow`.
fn name_in(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = stem.rsplit_once('@').and_then(|(_, name)| SnapshotName::new(name).ok());
    name.map_or_else(String::new, |name| name.as_str().to_owned())
}

/// Opens everything below `layers`, one after the other.
pub(super) async fn open_parents<S: Storage>(
    storage: &S,
    search: &[PathBuf],
    caches: &Caches,
    layers: &mut Vec<ChainLayer<S::File>>,
) -> Result<Option<(PathBuf, Base<S::File>)>> {
    let mut seen: BTreeSet<LayerId> = layers.iter().map(|l| l.sb.layer).collect();
    loop {
        let Some(child) = layers.last() else { unreachable!("a chain has a head") };
        let path = child.reader.path.clone();
        match child.sb.parent.clone() {
            Parent::None => return Ok(None),
            parent @ Parent::Foreign { .. } => {
                let Parent::Foreign { hints, .. } = &parent else { unreachable!("just matched") };
                let at = find_foreign(storage, &path, hints, search)?;
                let base = open_base(storage, &at, &parent).await.map_err(|e| rebase_hint(e, &path))?;
                return Ok(Some((at, base)));
            }
            Parent::Layer { layer, .. } => {
                if !seen.insert(layer) {
                    return Err(Error::corrupt("the chain of parents is a circle").at(&path));
                }
                if layers.len() >= MAX_CHAIN {
                    let text = format!("the chain of parents is longer than {MAX_CHAIN}");
                    return Err(Error::new(Kind::Unsupported, text).at(&path));
                }
                let tag = LayerTag(child.reader.tag.0 - 1);
                let (at, _) = find_parent(storage, &path, &child.sb, search).await?;
                let next = open_layer(storage, &at, tag, caches, &child.sb).await?;
                if let Some(moved) = moved_to_parent(&child.sb, &next.sb) {
                    child.reader.set_moved(moved);
                }
                layers.push(next);
            }
        }
    }
}

async fn open_layer<S: Storage>(
    storage: &S,
    path: &Path,
    tag: LayerTag,
    caches: &Caches,
    child: &Superblock,
) -> Result<ChainLayer<S::File>> {
    let how = OpenHow { write: false, direct: false, regular_only: true };
    let file = storage.open(path, how).map_err(|e| Error::io("open parent", e).at(path))?;
    lock_parent(storage, &file, path).await?;
    let sb = read_slots(&file, path).await?.newest;
    if !is_parent(child, &sb) {
        return Err(changed(path));
    }
    check_parent(child, &sb).map_err(|e| e.at(path))?;
    if sb.sealed.is_none() {
        return Err(Error::new(
            Kind::ParentChanged,
            "the parent is not sealed: open the image for writing once",
        )
        .at(path));
    }
    let size = sb.virtual_size;
    let reader = std::sync::Arc::new(LayerReader::new(path, file, tag, &sb, caches));
    Ok(ChainLayer { reader, sb, size, pending: None })
}

/// Takes a shared lock on a parent. A sealed layer names no holder: who has its lock is sealing it just now, or has died
/// over that and keeps the lock until the last write has landed. That is waited for, bounded.
async fn lock_parent<S: Storage>(storage: &S, file: &S::File, path: &Path) -> Result<()> {
    let locked = while_dying(storage, async || {
        if file.try_lock(Lock::Shared).map_err(|e| Error::io("lock", e).at(path))? {
            return Ok(Some(true));
        }
        Ok(read_slots(file, path).await?.newest.sealed.is_none().then_some(false))
    });
    match locked.await? {
        Some(true) => Ok(()),
        _ => Err(Error::new(Kind::InUse, "the parent is being changed by another process").at(path)),
    }
}

/// Finds the layer that `child`, whose superblock is `sb`, stands on: at the recorded places, beside the child, in
/// `search`.
///
/// # Errors
/// `ParentMissing` with the places; `ParentChanged` if a file is there but has another identity.
pub async fn find_parent<S: Storage>(
    storage: &S,
    child: &Path,
    sb: &Superblock,
    search: &[PathBuf],
) -> Result<(PathBuf, Superblock)> {
    let Parent::Layer { layer: id, hints, .. } = &sb.parent else {
        return Err(Error::new(Kind::ParentMissing, "it stands on no layer").at(child));
    };
    let mut other = None;
    for place in candidates(child, hints, search) {
        let how = OpenHow { write: false, direct: false, regular_only: true };
        let Ok(place) = storage.canonical(&place) else { continue };
        let file = match storage.open(&place, how) {
            Ok(file) => file,
            Err(e) if e.raw_os_error() == Some(libc::EMFILE) => return Err(too_many_files(e).at(place)),
            Err(_) => continue,
        };
        match read_slots(&file, &place).await {
            Ok(slots) if is_parent(sb, &slots.newest) => return Ok((place, slots.newest)),
            Ok(slots) => other = Some((place, format!("it is layer {}, not {id}", slots.newest.layer))),
            Err(e) => other = Some((place, e.message())),
        }
    }
    if let Some((place, why)) = other {
        let text = format!("parent {}: {why}", printable(&place.to_string_lossy()));
        return Err(Error::new(Kind::ParentChanged, text).at(child));
    }
    Err(rebase_hint(missing(child, hints), child))
}

/// Each layer of a chain is an open file of the process.
fn too_many_files(source: std::io::Error) -> Error {
    Error::io("open parent", source).hint("ulimit -n 65536, or LimitNOFILE=65536 in the service's unit")
}

/// Finds the foreign base of `child`; [`super::open_base`] tells whether it is the right one.
///
/// # Errors
/// `ParentMissing` with the place.
pub fn find_foreign<S: Storage>(
    storage: &S,
    child: &Path,
    hints: &PathHints,
    search: &[PathBuf],
) -> Result<PathBuf> {
    let found = candidates(child, hints, search).into_iter().find(|p| storage.meta(p).is_ok());
    found.ok_or_else(|| rebase_hint(missing(child, hints), child))
}

fn missing(child: &Path, hints: &PathHints) -> Error {
    let text = format!("its parent {:?} cannot be found", printable(&hints.absolute));
    Error::new(Kind::ParentMissing, text).at(child)
}

fn rebase_hint(error: Error, child: &Path) -> Error {
    let shown = printable(&child.to_string_lossy());
    error.hint(format!("cowdisk rebase '{shown}' --base FILE, or COWDISK_PATH=DIRECTORY for this once"))
}

fn candidates(child: &Path, hints: &PathHints, search: &[PathBuf]) -> Vec<PathBuf> {
    let dir = child.parent().unwrap_or(Path::new(""));
    let mut places = Vec::new();
    if !hints.relative.is_empty() {
        places.push(dir.join(&hints.relative));
    }
    if !hints.absolute.is_empty() {
        places.push(PathBuf::from(&hints.absolute));
    }
    let names = [&hints.relative, &hints.absolute];
    if let Some(name) = names.iter().find_map(|h| Path::new(h.as_str()).file_name()) {
        places.push(dir.join(name));
        places.extend(search.iter().map(|s| s.join(name)));
    }
    places
}

/// Hints from the directory of `child` to `parent`; both without symbolic links. A path that a superblock cannot hold
/// is left empty.
pub fn hints_between(child: &Path, parent: &Path) -> PathHints {
    let text =
        |p: &Path| p.to_str().filter(|t| t.len() <= MAX_PATH_BYTES).map(str::to_owned).unwrap_or_default();
    let from = child.parent().unwrap_or(Path::new(""));
    let (mut a, mut b) = (from.components().peekable(), parent.components().peekable());
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        if x != y {
            break;
        }
        a.next();
        b.next();
    }
    let relative: PathBuf = a.map(|_| std::path::Component::ParentDir).chain(b).collect();
    PathHints { relative: text(&relative), absolute: text(parent) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_lead_from_the_childs_directory() {
        let hints = |a: &str, b: &str| hints_between(Path::new(a), Path::new(b)).relative;
        assert_eq!(hints("/d/vm.cow", "/d/base.raw"), "base.raw");
        assert_eq!(hints("/d/a/vm.cow", "/d/b/base.raw"), "../b/base.raw");
        assert_eq!(hints("/vm.cow", "/d/base.raw"), "d/base.raw");
    }
}
