//! Opening a layer file: lock, verify, recover (rule O).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::create::random_id;
use super::head::Head;
use super::reader::{Caches, LayerReader};
use super::slots::{Slots, read_slots, write_slot};
use crate::error::{Error, Kind, Result};
use crate::format::{ChecksumKind, Holder, LayerId, Parent, Place, Superblock};
use crate::journal::{Journal, JournalStart, Later, LeftOut, Replay, Scan, replay, scan};
use crate::limits;
use crate::map::{LayerTag, PendingMap, Slot};
use crate::rules::{self, Rule};
use crate::space::{Readers, Space, SpaceOptions};
use crate::storage::{File, FileKind, Lock, OpenHow, Storage, sync_directory_of};
use crate::units::{PBlock, blocks_for};

/// Times the path is opened again because it named another file by the time the lock was held.
const MAX_REOPENS: u32 = 16;
/// A dying daemon keeps the lock until its last write has landed: waited for this long, in steps.
const LOCK_WAIT: Duration = Duration::from_secs(15);
const LOCK_STEP: Duration = Duration::from_millis(20);

/// What recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The layer was not closed: its journal was read.
    pub needed: bool,
    /// Records applied.
    pub applied: usize,
    /// Records left out.
    pub left_out: Vec<LeftOut>,
    /// One superblock slot did not verify (torn by the crash).
    pub torn_slot: bool,
}

/// A layer opened without writing to it.
#[derive(Debug)]
pub struct Opened<F> {
    /// The file and its tree.
    pub reader: Arc<LayerReader<F>>,
    /// Its superblock.
    pub sb: Superblock,
    /// What the journal holds on top of the tree.
    pub pending: PendingMap,
    /// What recovery would do.
    pub recovery: Recovery,
}

/// Takes the one writer's lock. Fails at once if `holder_lives` says that the holder is alive; otherwise waits, bounded.
async fn lock_exclusive<S: Storage>(
    storage: &S,
    file: &S::File,
    path: &Path,
    holder_lives: impl AsyncFn() -> Option<String>,
) -> Result<()> {
    let taken = while_dying(storage, async || {
        if file.try_lock(Lock::Exclusive).map_err(|e| Error::io("lock", e).at(path))? {
            return Ok(Some(()));
        }
        match holder_lives().await {
            Some(who) => Err(Error::new(Kind::InUse, format!("in use by {who}")).at(path)),
            None => Ok(None),
        }
    });
    taken.await?.ok_or_else(|| Error::new(Kind::InUse, "in use: its lock is held").at(path))
}

/// Asks `look` in steps until it has an answer, for as long as a dying process may keep its lock. `None`: it had none.
///
/// # Errors
/// Those of `look`, at once.
pub async fn while_dying<S: Storage, T>(
    storage: &S,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    for _ in 0..LOCK_WAIT.as_millis() / LOCK_STEP.as_millis() {
        if let Some(answer) = look().await? {
            return Ok(Some(answer));
        }
        storage.pause(LOCK_STEP).await;
    }
    Ok(None)
}

/// Names the process that a locked image says holds it, unless it is known to be gone.
async fn living_holder<F: File>(
    file: &F,
    path: &Path,
    me: &Holder,
    alive: &dyn Fn(u32) -> bool,
) -> Option<String> {
    let holder = read_slots(file, path).await.ok()?.newest.holder?;
    let here = holder.host == me.host;
    if here && !alive(holder.pid) {
        return None;
    }
    Some(format!("process {} on host {}", holder.pid, crate::error::printable(&holder.host)))
}

/// A layer that is locked for writing, synced, and not yet recovered.
#[derive(Debug)]
pub struct LockedLayer<F> {
    /// Its file.
    pub file: F,
    /// Its superblock.
    pub sb: Superblock,
    both_valid: bool,
    /// How its file grows.
    pub space: SpaceOptions,
    /// Those who read the image.
    pub readers: Readers,
    /// A child names it as its parent: also a copy of it stays the layer that it is.
    pub is_parent: bool,
}

/// O1: locks `path` for writing, makes durable what a dead daemon wrote, and reads the superblock. Writes nothing.
/// `alive` tells whether a process of this host lives.
///
/// # Errors
/// `InUse` with the holder; `Unsupported` for a sealed layer or unknown features; `Corrupt` with the offset; what the
/// host says.
pub async fn lock_head<S: Storage>(
    storage: &S,
    path: &Path,
    me: &Holder,
    alive: &dyn Fn(u32) -> bool,
) -> Result<LockedLayer<S::File>> {
    let file = open_locked(storage, path, me, alive).await?;
    if rules::holds(Rule::SyncFirst) {
        sync_before_reading(storage, &file, path).await?;
    }
    let Slots { newest: sb, both_valid, .. } = read_slots(&file, path).await?;
    writable(&sb, path)?;
    Ok(LockedLayer {
        file,
        sb,
        both_valid,
        space: SpaceOptions::default(),
        readers: Readers::default(),
        is_parent: false,
    })
}

/// O2 to O4: replays the journal, folds it into the tree, and writes a superblock that names `me`. `parent`, if given,
/// replaces the recorded one (the same parent, better known).
pub async fn recover_head<S: Storage>(
    storage: &S,
    path: &Path,
    locked: LockedLayer<S::File>,
    tag: LayerTag,
    caches: &Caches,
    me: Holder,
    parent: Option<Parent>,
) -> Result<(Head<S>, Recovery)> {
    let LockedLayer { file, sb, both_valid, space, readers, is_parent } = locked;
    let clean = both_valid && sb.holder.is_none();
    let meta = file.meta().map_err(|e| Error::io("stat", e).at(path))?;
    let later = Later::of(&sb, meta.id.ino, storage.boot_id());
    let (scan, replay) = match clean {
        true => (None, Replay { newest: sb.cut, ..Replay::default() }),
        false => read_journal(&file, &sb, later, path).await?,
    };
    let recovery = Recovery {
        needed: !clean,
        applied: replay.apply.len(),
        left_out: replay.left_out,
        torn_slot: !both_valid,
    };
    let scan = scan.filter(|_| rules::holds(Rule::AboveRecords));
    let top = scan.map_or(sb.high_water, |s: Scan| s.high_water.max(sb.high_water));
    let reader = Arc::new(LayerReader::new(path, file.clone(), tag, &sb, caches));
    // What the file has behind the top may be a hole: it is allocated as it is needed.
    let space = Space::new(sb.block_area, top, top.0, readers, space);
    let mut next = next_opening(storage, &sb, meta.id.ino, me, is_parent)?;
    next.parent = parent.unwrap_or(next.parent);
    let start = JournalStart {
        layer: next.layer,
        epoch: next.epoch,
        generation: sb.generation,
        cut: replay.newest,
        ring: sb.ring().map_or(PBlock(0)..PBlock(0), |r| r.first..r.first.plus(r.blocks)),
        reserved: blocks_for(limits::JOURNAL_RESERVE_BYTES),
    };
    let journal = Journal::new(file, start);
    let head = Head::assemble(storage.clone(), reader, journal, space, caches.clone(), sb);
    install(&head.pending, &replay.apply);
    head.finish_open(next).await?;
    Ok((head, recovery))
}

/// Opens `path` without writing: locks it shared (unless `lock` is false) and reads what recovery would apply into RAM.
pub async fn open_read_only<S: Storage>(
    storage: &S,
    path: &Path,
    tag: LayerTag,
    caches: &Caches,
    lock: bool,
) -> Result<Opened<S::File>> {
    let how = OpenHow { write: false, direct: false, regular_only: true };
    let file = storage.open(path, how).map_err(|e| Error::io("open", e).at(path))?;
    if lock && !file.try_lock(Lock::Shared).map_err(|e| Error::io("lock", e).at(path))? {
        let holder = read_slots(&file, path).await.ok().and_then(|s| s.newest.holder);
        let who = holder.map_or_else(String::new, |h| {
            format!(" by process {} on host {}", h.pid, crate::error::printable(&h.host))
        });
        return Err(Error::new(Kind::InUse, format!("in use{who}")).at(path));
    }
    let Slots { newest: sb, both_valid, .. } = read_slots(&file, path).await?;
    let pending = PendingMap::default();
    let mut recovery = Recovery { torn_slot: !both_valid, ..Recovery::default() };
    if sb.ring().is_some() && (sb.holder.is_some() || !both_valid) {
        let inode = file.meta().map_err(|e| Error::io("stat", e).at(path))?.id.ino;
        let later = Later::of(&sb, inode, storage.boot_id());
        let (_, replay) = read_journal(&file, &sb, later, path).await?;
        install(&pending, &replay.apply);
        recovery.needed = true;
        recovery.applied = replay.apply.len();
        recovery.left_out = replay.left_out;
    }
    let reader = Arc::new(LayerReader::new(path, file, tag, &sb, caches));
    Ok(Opened { reader, sb, pending, recovery })
}

/// O1: opens and locks, and makes sure that the path still names the locked file.
async fn open_locked<S: Storage>(
    storage: &S,
    path: &Path,
    me: &Holder,
    alive: &dyn Fn(u32) -> bool,
) -> Result<S::File> {
    for _ in 0..MAX_REOPENS {
        let how = OpenHow { write: true, direct: true, regular_only: false };
        let file = storage.open(path, how).map_err(|e| Error::io("open", e).at(path))?;
        let meta = file.meta().map_err(|e| Error::io("stat", e).at(path))?;
        if meta.kind != FileKind::Regular {
            return Err(Error::new(Kind::BadName, "not a regular file").at(path));
        }
        lock_exclusive(storage, &file, path, async || living_holder(&file, path, me, alive).await).await?;
        let now = storage.meta(path).map_err(|e| Error::io("stat", e).at(path))?;
        if now.id == meta.id {
            return Ok(file);
        }
    }
    Err(Error::new(Kind::InUse, "the path keeps changing").at(path))
}

/// O1: what a dead daemon wrote is complete but not durable, and the next superblock must not outrun it.
pub(super) async fn sync_before_reading<S: Storage>(storage: &S, file: &S::File, path: &Path) -> Result<()> {
    sync_directory_of(storage, path)?;
    file.sync_data().await.result.map_err(|e| Error::io("fdatasync", e).at(path))?;
    Ok(())
}

/// O1: makes a sealed layer durable. Whoever sealed it may have died before it was, and what names it as sealed must not
/// outrun that.
pub async fn sync_sealed<F: File>(file: &F, path: &Path) -> Result<()> {
    if rules::holds(Rule::SyncParent) {
        file.sync_data().await.result.map_err(|e| Error::io("fdatasync", e).at(path))?;
    }
    Ok(())
}

/// Writes the twin of a sealed superblock that is durable, if whoever sealed the layer died before it was whole. A file
/// that may not be written, or that others read, is left alone: its seal has gone further, or its twin can wait.
pub async fn finish_seal<S: Storage>(storage: &S, path: &Path) -> Result<()> {
    let how = OpenHow { write: true, direct: true, regular_only: true };
    let Ok(file) = storage.open(path, how) else { return Ok(()) };
    if !file.try_lock(Lock::Exclusive).map_err(|e| Error::io("lock", e).at(path))? {
        return Ok(());
    }
    let Slots { newest: mut sb, older, .. } = read_slots(&file, path).await?;
    if sb.sealed.is_none() || older.is_some_and(|older| older.sealed.is_some()) {
        return Ok(());
    }
    sb.generation += 1;
    write_slot(&file, &sb).await.map_err(|e| e.at(path))?;
    sync_sealed(&file, path).await
}

/// Refuses a layer that cannot be written to.
///
/// # Errors
/// `Unsupported`: it is sealed, or has features that only a reader may leave aside.
pub fn writable(sb: &Superblock, path: &Path) -> Result<()> {
    if let Some(sealed) = &sb.sealed {
        let name = crate::error::printable(&sealed.name);
        let text = format!("a sealed layer (snapshot {name:?}) cannot be written to");
        let hint = format!("cowdisk fork {} NEW", crate::error::printable(&path.to_string_lossy()));
        return Err(Error::new(Kind::Unsupported, text).at(path).hint(hint));
    }
    if sb.forces_read_only() {
        let text = format!("features {:#x} are unknown: the layer can only be read", sb.ro_compat);
        return Err(Error::new(Kind::Unsupported, text).at(path));
    }
    Ok(())
}

async fn read_journal<F: File>(
    file: &F,
    sb: &Superblock,
    later: Later,
    path: &Path,
) -> Result<(Option<Scan>, Replay)> {
    let Some(ring) = sb.ring() else { return Ok((None, Replay { newest: sb.cut, ..Replay::default() })) };
    let found = scan(file, ring, sb).await.map_err(|e| e.at(path))?;
    let kept = Scan { high_water: found.high_water, durable: found.durable, ..Scan::default() };
    let replay = replay(file, sb.cut, found, later).await.map_err(|e| e.at(path))?;
    Ok((Some(kept), replay))
}

/// Installs replayed records, in their order.
pub fn install(pending: &PendingMap, records: &[crate::format::Record]) {
    // What replay replaces is not put into limbo: the walk for holes finds it free.
    let mut freed = Vec::new();
    for record in records {
        let mut crcs = &record.crcs[..];
        for extent in &record.extents {
            match extent.place {
                Place::Data(pblock) => {
                    let (these, rest) = crcs.split_at((extent.blocks as usize).min(crcs.len()));
                    pending.install_data(Slot(0), record.seq, extent.vblock, pblock, these, &mut freed);
                    crcs = rest;
                }
                Place::Zero => {
                    let blocks = extent.vblock..extent.vblock.plus(u64::from(extent.blocks));
                    pending.install_zero(Slot(0), record.seq, blocks, &mut freed);
                }
            }
        }
        if let Some(resize) = record.resize {
            pending.install_resize(Slot(0), record.seq, resize, &mut freed);
        }
        freed.clear();
    }
}

/// The superblock of the new opening. A copy of the file (another inode) becomes a layer of its own, unless it is about
/// to be sealed for a child that names it.
fn next_opening<S: Storage>(
    storage: &S,
    sb: &Superblock,
    inode: u64,
    me: Holder,
    is_parent: bool,
) -> Result<Superblock> {
    let mut next = sb.clone();
    next.epoch += 1;
    next.holder = Some(me);
    if let ChecksumKind::None { boot } = &mut next.checksums {
        *boot = storage.boot_id();
    }
    if sb.inode != inode {
        next.inode = inode;
        if !is_parent {
            next.layer = LayerId(random_id(storage)?);
        }
    }
    Ok(next)
}
