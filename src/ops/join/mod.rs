//! Joining two sealed neighbours, S below and C above it, under the layer D: what C shows stays, S goes.
//!
//! The protocol is that of `docs/merge.md` and format-spec.md 9.1. Each superblock is durable before the next step:
//!
//! | step | up: S into C                                   | down: C into S                                            |
//! |------|------------------------------------------------|-----------------------------------------------------------|
//! | 1    | D: `Above`                                     | the same                                                  |
//! | 2    | C: `TakesLower`, the result's id; S: `GoesUp`  | C: `GoesDown`; S: `TakesUpper`, not smaller than C        |
//! | 3    | chunk by chunk: C takes, S is punched          | chunk by chunk: S takes, C is punched                     |
//! | 4    | C: the parent of S, no `TakesLower`            | S: the result's id, name and size of C; renamed over C    |
//! | 5    | S is removed                                   | S: no `TakesUpper`                                        |
//! | 6    | D: the result is its parent, no `Above`        | the same                                                  |
//!
//! What was taken reads the same from either layer, so a crash at any point shows the disk and all other snapshots as they
//! were; D's note tells the next run where to go on.

mod copy;

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::chain::{check_parent, find_parent, is_parent};
use crate::error::{Error, Kind, Result};
use crate::format::{Joining, LayerId, Parent, Place, Superblock};
use crate::layer::{Editor, random_id, read_slots};
use crate::map::Change;
use crate::rules::{self, Rule};
use crate::storage::{File, OpenHow, Storage, sync_directory_of};
use crate::units::{BLOCK, VBlock};

use copy::{Chunk, Copier, punch};
pub use copy::{Direction, stopped};

/// Data of one chunk: with the tree that is written anew for it, it fits into 64 MiB in the worst case.
pub const CHUNK_BYTES: u64 = 16 << 20;

/// How a join works.
pub struct Work<'a> {
    /// Blocks of data in a chunk.
    pub chunk_blocks: u64,
    /// Bytes a second; `None`: as fast as possible.
    pub rate: Option<u64>,
    /// Asked before each piece, with the file that is read: whether to go on.
    pub go_on: &'a dyn Fn(&Path) -> Result<()>,
    /// Told how many bytes were moved since the last time.
    pub moved: &'a dyn Fn(u64),
}

/// Begins the join of the two layers below `above`, which is to be ended by [`go_on`]: writes the first note.
///
/// # Errors
/// What the host says; nothing has changed then.
pub(super) async fn begin<S: Storage>(
    storage: &S,
    above: &mut Editor<S::File>,
    upper: &Superblock,
    lower: &Superblock,
    lower_file: &str,
) -> Result<()> {
    let result = LayerId(random_id(storage)?);
    let name = lower.sealed.as_ref().map_or_else(String::new, |sealed| sealed.name.clone());
    let note = Joining::Above { result, lower: lower.layer, file: lower_file.to_owned(), name };
    let root = upper.root.crc;
    if !rules::holds(Rule::JoinNote) {
        above.sb.joining = Some(note);
        return Ok(());
    }
    above
        .note(|sb| {
            if let Parent::Layer { root_crc, .. } = &mut sb.parent {
                root_crc.get_or_insert(root);
            }
            sb.joining = Some(note);
        })
        .await
}

/// Does what is left of the join below `above`.
///
/// # Errors
/// What the host says, damage in what is to be moved. The disk and its other snapshots are as before, and the next call
/// goes on.
pub(super) async fn go_on<S: Storage>(
    storage: &S,
    mut above: Editor<S::File>,
    search: &[PathBuf],
    work: &Work<'_>,
) -> Result<()> {
    let Some(Joining::Above { result, lower, file, .. }) = above.sb.joining.clone() else { return Ok(()) };
    let (path, _) = find_parent(storage, &above.path, &above.sb, search).await?;
    let mut upper = open_parent(storage, &path, &above.sb).await?;
    let mut join = Join { storage, search, work, result, lower };
    let root = if upper.sb.layer != result {
        join.both(upper).await?
    } else {
        if let Some(Joining::TakesLower { .. }) = upper.joining() {
            let lower = join.lower_of(&upper).await?;
            join.up(&mut upper, lower).await?;
        } else if upper.sb.joining.is_some() {
            join.settle(&mut upper).await?;
        }
        upper.sb.root.crc
    };
    remove_lower(storage, &above.path.with_file_name(&file), lower).await?;
    if rules::holds(Rule::JoinNames) {
        sync_directory_of(storage, &above.path)?;
    }
    above
        .note(|sb| {
            if let Parent::Layer { layer, root_crc, .. } = &mut sb.parent {
                (*layer, *root_crc) = (result, Some(root));
            }
            sb.joining = None;
        })
        .await?;
    above.twin().await
}

/// Opens the parent of the layer `child` to change it.
async fn open_parent<S: Storage>(storage: &S, path: &Path, child: &Superblock) -> Result<Editor<S::File>> {
    let parent = Editor::open(storage, path).await?;
    if !is_parent(child, &parent.sb) || parent.sb.sealed.is_none() {
        return Err(Error::new(Kind::InUse, "it changed meanwhile").at(path));
    }
    check_parent(child, &parent.sb).map_err(|e| e.at(path))?;
    Ok(parent)
}

/// Removes the file of the lower layer, if it is still there.
async fn remove_lower<S: Storage>(storage: &S, path: &Path, lower: LayerId) -> Result<()> {
    let how = OpenHow { write: false, direct: false, regular_only: true };
    let Ok(file) = storage.open(path, how) else { return Ok(()) };
    let Ok(slots) = read_slots(&file, path).await else { return Ok(()) };
    if slots.newest.layer == lower && slots.newest.joining == Some(Joining::GoesUp) {
        storage.unlink(path).map_err(|e| Error::io("remove", e).at(path))?;
    }
    Ok(())
}

/// A join under way.
struct Join<'a, S: Storage> {
    storage: &'a S,
    search: &'a [PathBuf],
    work: &'a Work<'a>,
    result: LayerId,
    lower: LayerId,
}

impl<S: Storage> Join<'_, S> {
    async fn lower_of(&self, upper: &Editor<S::File>) -> Result<Editor<S::File>> {
        let (path, _) = find_parent(self.storage, &upper.path, &upper.sb, self.search).await?;
        let lower = open_parent(self.storage, &path, &upper.sb).await?;
        if lower.sb.layer != self.lower && lower.sb.layer != self.result {
            let text = "the layer above says that another one is being deleted";
            return Err(Error::corrupt(text).at(&path));
        }
        Ok(lower)
    }

    /// From the place where neither is the result. Gives the checksum of the result's root.
    async fn both(&mut self, mut upper: Editor<S::File>) -> Result<u32> {
        let lower = self.lower_of(&upper).await?;
        let down = upper.joining() == Some(&Joining::GoesDown);
        let (up, low) = ((&upper.sb, allocated(&upper)?), (&lower.sb, allocated(&lower)?));
        if down || direction(up, low) == Direction::Down {
            return self.down(upper, lower).await;
        }
        let (result, source) = (self.result, lower.sb.layer);
        upper
            .note(|sb| {
                sb.layer = result;
                sb.joining = Some(Joining::TakesLower { source, next: VBlock(0) });
            })
            .await?;
        self.up(&mut upper, lower).await?;
        Ok(upper.sb.root.crc)
    }

    /// Step 3 and 4 of "up", and the second half of step 2.
    async fn up(&mut self, upper: &mut Editor<S::File>, mut lower: Editor<S::File>) -> Result<()> {
        if lower.sb.joining.is_none() {
            lower.note(|sb| sb.joining = Some(Joining::GoesUp)).await?;
        }
        let parent = lower.sb.parent.clone();
        let zeros_to = zeros_to(&parent, upper.sb.virtual_blocks());
        self.chunks(Direction::Up, &lower, upper, zeros_to).await?;
        upper
            .note(|sb| {
                sb.parent = parent;
                sb.joining = None;
            })
            .await?;
        upper.twin().await?;
        upper.punch_free().await
    }

    /// Steps 2 to 5 of "down". Gives the checksum of the result's root.
    async fn down(&mut self, mut upper: Editor<S::File>, mut lower: Editor<S::File>) -> Result<u32> {
        if upper.sb.joining.is_none() {
            upper.note(|sb| sb.joining = Some(Joining::GoesDown)).await?;
        }
        if lower.sb.joining.is_none() {
            self.condemn_target(&upper, &mut lower).await?;
        }
        let zeros_to = zeros_to(&lower.sb.parent, lower.sb.virtual_blocks());
        self.chunks(Direction::Down, &upper, &mut lower, zeros_to).await?;
        let failed = |e| Error::io("rename", e).at(&upper.path);
        self.storage.rename(&lower.path, &upper.path).map_err(failed)?;
        sync_directory_of(self.storage, &upper.path)?;
        self.settle(&mut lower).await?;
        Ok(lower.sb.root.crc)
    }

    /// Step 2 of "down", for the lower one. What it gets behind its end are zeros, whatever lies below it.
    async fn condemn_target(&self, upper: &Editor<S::File>, lower: &mut Editor<S::File>) -> Result<()> {
        let next = Joining::TakesUpper { source: upper.sb.layer, next: VBlock(0) };
        let (old, new) = (lower.sb.virtual_blocks(), upper.sb.virtual_blocks());
        let size = lower.sb.virtual_size.max(upper.sb.virtual_size);
        let behind = zeros(old..new).filter(|_| rules::holds(Rule::JoinEnd));
        let changes: Vec<Change> = behind.into_iter().collect();
        let zeros_to = zeros_to(&lower.sb.parent, new);
        lower
            .fold(&changes, zeros_to, |sb| {
                sb.virtual_size = size;
                sb.joining = Some(next);
            })
            .await
    }

    /// The result of "down" has its place: nothing is left of the join in it.
    async fn settle(&self, result: &mut Editor<S::File>) -> Result<()> {
        result.note(|sb| sb.joining = None).await?;
        result.twin().await?;
        result.punch_free().await
    }

    /// Step 3: moves chunk after chunk from `source` to `target`, from where that one says.
    async fn chunks(
        &mut self,
        direction: Direction,
        source: &Editor<S::File>,
        target: &mut Editor<S::File>,
        zeros_to: VBlock,
    ) -> Result<()> {
        // What a run before this one moved may not have been given back.
        let mut punched = VBlock(0);
        loop {
            let (Some(Joining::TakesLower { next, .. }) | Some(Joining::TakesUpper { next, .. })) =
                target.joining()
            else {
                return Err(Error::new(Kind::InUse, "it changed meanwhile").at(&target.path));
            };
            let next = *next;
            if next == Joining::ALL {
                return Ok(());
            }
            punch(source, punched..next).await?;
            punched = next;
            self.chunk(direction, source, target, next, zeros_to).await?;
        }
    }

    /// One chunk, from `from` on. The last one of "down" makes the target what the source is, in the same superblock: before
    /// that it is no layer of its own, and behind it the one that it was is gone.
    async fn chunk(
        &mut self,
        direction: Direction,
        source: &Editor<S::File>,
        target: &mut Editor<S::File>,
        from: VBlock,
        zeros_to: VBlock,
    ) -> Result<()> {
        let chunk = Chunk { changes: Vec::new(), next: from, copied: 0 };
        let (storage, work) = (self.storage, self.work);
        let copier = Copier { storage, work, direction, source, target: &mut *target, chunk };
        let Chunk { mut changes, next, .. } = copier.fill(from).await?;
        if direction == Direction::Up || next != Joining::ALL {
            return target.fold(&changes, zeros_to, |sb| set_next(sb, next)).await;
        }
        // What the lower one has behind the end of the upper one goes: zeros there are holes.
        let end = source.sb.virtual_blocks();
        changes.extend(zeros(end..target.sb.virtual_blocks()));
        let result = self.result;
        target
            .fold(&changes, zeros_to.min(VBlock(end)), |sb| {
                sb.layer = result;
                sb.virtual_size = source.sb.virtual_size;
                sb.sealed = source.sb.sealed.clone();
                set_next(sb, next);
            })
            .await
    }
}

/// Zeros in `blocks`, if there are any.
fn zeros(blocks: Range<u64>) -> Option<Change> {
    let (vblock, blocks) = (VBlock(blocks.start), blocks.end.saturating_sub(blocks.start));
    (blocks > 0).then_some(Change { vblock, blocks, place: Place::Zero, crcs: Vec::new() })
}

fn set_next(sb: &mut Superblock, to: VBlock) {
    if let Some(Joining::TakesLower { next, .. } | Joining::TakesUpper { next, .. }) = &mut sb.joining {
        *next = to;
    }
}

/// What moves: the smaller one of the two, of whose files so many bytes are allocated; but data with checksums never moves to
/// where there are none.
pub(super) fn direction(upper: (&Superblock, u64), lower: (&Superblock, u64)) -> Direction {
    let protects = |(sb, _): (&Superblock, u64)| sb.checksums.protects();
    let size = |(sb, allocated)| content_bytes(sb, allocated);
    match (protects(upper), protects(lower)) {
        (true, false) => Direction::Up,
        (false, true) => Direction::Down,
        _ if size(upper) < size(lower) => Direction::Down,
        _ => Direction::Up,
    }
}

fn allocated<F: File>(layer: &Editor<F>) -> Result<u64> {
    let meta = layer.file.meta().map_err(|e| Error::io("stat", e).at(&layer.path))?;
    Ok(meta.allocated)
}

/// Bytes that a layer has on its host at most, without what it was given ahead: `allocated` are those of its file.
pub(super) fn content_bytes(sb: &Superblock, allocated: u64) -> u64 {
    allocated.min((sb.high_water.0 - sb.block_area.0) * BLOCK)
}

/// Where zeros need not be stored any more: a layer on nothing stores none.
fn zeros_to(parent: &Parent, blocks: u64) -> VBlock {
    match parent {
        Parent::None => VBlock(0),
        _ => VBlock(blocks),
    }
}
