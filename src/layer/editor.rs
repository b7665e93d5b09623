//! Changing the content of a layer that nobody writes to: sealed, or a head that was closed. For joins only.
//!
//! The rules are those of a checkpoint: data and nodes go to free blocks and are durable before the superblock that names
//! them; that one is durable before anything is used again that only the one before it needs. There is no journal, and
//! nobody reads meanwhile: the file is locked exclusively.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::head::UsedBlocks;
use super::open::{sync_before_reading, while_dying};
use super::slots::{Slots, read_slots, write_slot};
use crate::error::{Error, Kind, Result, printable};
use crate::format::{Joining, Place, Superblock};
use crate::limits::MAX_REUSED_BLOCKS;
use crate::map::{Change, LayerTag, Node, NodeCache, NodeSink, Tree, Visit, build};
use crate::rules::{self, Rule};
use crate::space::{Bitmap, BlockRun};
use crate::storage::{File, IoBuf, IoVecs, Lock, OpenHow, Storage, write_all};
use crate::units::{BLOCK, BLOCK_SIZE, PBlock, Seq, VBlock};

/// Bytes for tree nodes.
const NODE_CACHE: u64 = 8 << 20;
/// Write permission of owner, group and others.
const WRITE_BITS: u32 = 0o222;
/// Write permission of the owner.
const OWNER_WRITES: u32 = 0o200;
/// Nodes in one write.
const NODES_PER_WRITE: usize = 64;
/// Free runs that are looked at before the file grows.
const LOOKS: usize = 64;

/// A layer whose content is being changed. Locked as long as it lives.
#[derive(Debug)]
pub struct Editor<F> {
    /// Its file.
    pub path: PathBuf,
    /// The file, open for reading and writing.
    pub file: F,
    /// The superblock in force.
    pub sb: Superblock,
    /// Its tree.
    pub tree: Tree<F>,
    /// Its free blocks; `None`: not known yet.
    space: Option<Free>,
}

impl<F: File> Editor<F> {
    /// Opens the layer `path` and locks it for itself. What a process wrote that has died is durable from here on.
    ///
    /// # Errors
    /// `InUse`; `Unsupported` for unknown features; a head that was not closed; what the host says.
    pub async fn open<S: Storage<File = F>>(storage: &S, path: &Path) -> Result<Editor<F>> {
        let editor = Editor::open_unclosed(storage, path).await?;
        if editor.sb.sealed.is_none() && editor.sb.holder.is_some() {
            return Err(Error::new(Kind::InUse, "it was opened meanwhile").at(path));
        }
        Ok(editor)
    }

    /// As [`Editor::open`], but a head need not have been closed: only notes can be made in that one, its journal stays as it
    /// is.
    ///
    /// # Errors
    /// As [`Editor::open`]; a head of which one superblock does not verify, as that may have been the newest one.
    pub async fn open_unclosed<S: Storage<File = F>>(storage: &S, path: &Path) -> Result<Editor<F>> {
        let file = open_writable(storage, path)?;
        if !lock(storage, &file, path).await? {
            let text = "it is in use: a disk that stands on it is being served, or read";
            return Err(Error::new(Kind::InUse, text).at(path));
        }
        let (ours, named) = (file.meta(), storage.meta(path));
        let same = ours.and_then(|ours| named.map(|named| ours.id == named.id));
        if !same.map_err(|e| Error::io("stat", e).at(path))? {
            return Err(Error::new(Kind::InUse, "the path names another file by now").at(path));
        }
        sync_before_reading(storage, &file, path).await?;
        let Slots { newest: sb, both_valid, .. } = read_slots(&file, path).await?;
        if sb.forces_read_only() {
            let text = format!("features {:#x} are unknown: the layer can only be read", sb.ro_compat);
            return Err(Error::new(Kind::Unsupported, text).at(path));
        }
        if sb.sealed.is_none() && !both_valid {
            let text = "one of its superblocks was torn by a crash: it must be recovered first";
            return Err(Error::new(Kind::InUse, text).at(path));
        }
        let tree = Tree::new(file.clone(), LayerTag(0), Arc::new(NodeCache::new(NODE_CACHE)));
        Ok(Editor { path: path.to_path_buf(), file, sb, tree, space: None })
    }

    /// Writes the next superblock, changed by `edit`; durable when this is done.
    pub async fn note(&mut self, edit: impl FnOnce(&mut Superblock)) -> Result<()> {
        let mut sb = self.sb.clone();
        edit(&mut sb);
        self.write_superblock(sb).await
    }

    /// Writes the superblock again, over the older slot: then either of them may be damaged.
    pub async fn twin(&mut self) -> Result<()> {
        self.write_superblock(self.sb.clone()).await
    }

    async fn write_superblock(&mut self, mut sb: Superblock) -> Result<()> {
        sb.generation += 1;
        write_slot(&self.file, &sb).await.map_err(|e| e.at(&self.path))?;
        if rules::holds(Rule::JoinSuperblock) {
            self.sync().await?;
        }
        self.sb = sb;
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        self.file.sync_data().await.result.map_err(|e| Error::io("fdatasync", e).at(&self.path))?;
        Ok(())
    }

    /// Folds `changes` (sorted, disjoint, their data written) into the tree, and writes the superblock that `edit` has
    /// changed, both durable when this is done. Zeros from `zeros_to` on are holes. What the new tree does not need is free
    /// then.
    pub async fn fold(
        &mut self,
        changes: &[Change],
        zeros_to: VBlock,
        edit: impl FnOnce(&mut Superblock),
    ) -> Result<()> {
        let mut sb = self.sb.clone();
        edit(&mut sb);
        // Should this break off, what is free is looked for again.
        let mut space = self.take_space().await?;
        let mut sink = Sink { editor: self, space: &mut space, start: PBlock(0), vecs: IoVecs::new() };
        let built = build(&self.tree, sb.root, changes, zeros_to, Seq(0), &mut sink).await;
        let built = match built {
            Ok(built) => sink.flush().await.map(|()| built),
            Err(e) => Err(e),
        };
        let built = built.map_err(|e| e.at(&self.path))?;
        if rules::holds(Rule::JoinData) {
            self.sync().await?;
        }
        sb.root = built.root;
        sb.high_water = sb.high_water.max(PBlock(space.top));
        self.write_superblock(sb).await?;
        for freed in &built.freed {
            space.give(freed.pblock.0, u64::from(freed.blocks));
        }
        self.space = Some(space);
        Ok(())
    }

    /// Up to `want` consecutive free blocks for data. What is not named by the next [`Editor::fold`] is free again when the
    /// layer is opened the next time.
    ///
    /// # Errors
    /// The tree cannot be read, so that it is not known what is free.
    pub async fn allocate(&mut self, want: u64) -> Result<BlockRun> {
        let mut space = self.take_space().await?;
        let run = space.take(want);
        self.space = Some(space);
        Ok(run)
    }

    /// Gives all free blocks back to the host.
    pub async fn punch_free(&mut self) -> Result<()> {
        let space = self.take_space().await?;
        let mut next = self.sb.block_area.0;
        while let Some(run) = space.free.next_run(next, u64::MAX) {
            self.punch(run.start, run.end - run.start).await;
            next = run.end;
        }
        self.space = Some(space);
        Ok(())
    }

    /// Gives blocks back to the host that nobody reads any more. Only space is lost if it cannot.
    pub async fn punch(&self, first: u64, blocks: u64) {
        let _ = self.file.punch(first * BLOCK, blocks * BLOCK).await.result;
    }

    /// The part that the layer takes in a join.
    pub fn joining(&self) -> Option<&Joining> {
        self.sb.joining.as_ref()
    }

    /// The free blocks, found by reading the tree once; to be put back.
    async fn take_space(&mut self) -> Result<Free> {
        match self.space.take() {
            Some(space) => Ok(space),
            None => Free::find(&self.tree, &self.sb).await.map_err(|e| e.at(&self.path)),
        }
    }
}

/// Locks `file` for its one writer. Whoever broke a join off may be dying still, and keeps the lock until its last write
/// has landed: that is waited for, bounded. `false`: somebody else has it.
async fn lock<S: Storage>(storage: &S, file: &S::File, path: &Path) -> Result<bool> {
    let locked = while_dying(storage, async || {
        if file.try_lock(Lock::Exclusive).map_err(|e| Error::io("lock", e).at(path))? {
            return Ok(Some(true));
        }
        Ok(read_slots(file, path).await?.newest.joining.is_none().then_some(false))
    });
    Ok(locked.await?.unwrap_or(false))
}

/// Opens a layer for writing whose write bits are off: its owner may put them on for that moment.
fn open_writable<S: Storage>(storage: &S, path: &Path) -> Result<S::File> {
    let failed = |e| Error::io("open", e).at(path);
    let how = OpenHow { write: true, direct: true, regular_only: true };
    match storage.open(path, how) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {}
        opened => return opened.map_err(failed),
    }
    let file = storage.open(path, OpenHow { write: false, ..how }).map_err(failed)?;
    let mode = file.meta().map_err(failed)?.mode;
    file.set_mode(mode | OWNER_WRITES).map_err(|e| {
        let text = format!("open {} for writing", printable(&path.to_string_lossy()));
        Error::io(text, e).at(path)
    })?;
    let opened = storage.open(path, how).map_err(failed);
    // What is open stays so.
    file.set_mode(mode & !WRITE_BITS).map_err(|e| Error::io("set mode", e).at(path))?;
    opened
}

/// The free blocks of a layer.
#[derive(Debug)]
struct Free {
    free: Bitmap,
    area: u64,
    /// Free from here on.
    top: u64,
    /// Where the next search begins.
    sweep: u64,
}

impl Free {
    async fn find<F: File>(tree: &Tree<F>, sb: &Superblock) -> Result<Free> {
        let mut used = UsedBlocks::new(sb.block_area..sb.high_water);
        let mut bad = None;
        tree.walk(&sb.root, |visit| match visit {
            Visit::Node { child, .. } => used.add(child.pblock, 1),
            Visit::Extent { extent, .. } => {
                if let Place::Data(p) = extent.place {
                    used.add(p, u64::from(extent.blocks));
                }
            }
            Visit::Bad { error, .. } => bad = Some(error),
        })
        .await;
        if let Some(error) = bad.or(used.wrong) {
            return Err(error);
        }
        let (area, top) = (sb.block_area.0, sb.high_water.0);
        let mut space = Free { free: Bitmap::default(), area, top, sweep: area };
        let mut next = area;
        while next < top {
            let run = used.blocks.next_run(next, u64::MAX).unwrap_or(top..top);
            space.give(next, run.start.min(top) - next);
            next = run.end;
        }
        Ok(space)
    }

    fn give(&mut self, first: u64, blocks: u64) {
        self.free.insert(first..(first + blocks).min(MAX_REUSED_BLOCKS).max(first));
    }

    /// The best run of the next few, or new ones.
    fn take(&mut self, want: u64) -> BlockRun {
        let good = want.min(NODES_PER_WRITE as u64);
        let mut from = self.sweep;
        for _ in 0..LOOKS {
            let Some(run) = self.free.next_run(from, want) else {
                if from == self.area {
                    break;
                }
                from = self.area;
                continue;
            };
            if run.end - run.start >= good {
                self.free.remove(run.clone());
                self.sweep = run.end;
                return BlockRun { first: PBlock(run.start), blocks: run.end - run.start };
            }
            from = run.end;
        }
        let first = PBlock(self.top);
        self.top += want;
        BlockRun { first, blocks: want }
    }
}

/// Where the builder's nodes go: neighbours in one write.
struct Sink<'a, F> {
    editor: &'a Editor<F>,
    space: &'a mut Free,
    start: PBlock,
    vecs: IoVecs,
}

impl<F: File> Sink<'_, F> {
    async fn flush(&mut self) -> Result<()> {
        if self.vecs.is_empty() {
            return Ok(());
        }
        let vecs = std::mem::take(&mut self.vecs);
        let (result, _) = write_all(&self.editor.file, vecs, self.start.pos()).await;
        result.map_err(|e| Error::io("write tree node", e).offset(self.start.pos()))
    }
}

impl<F: File> NodeSink for Sink<'_, F> {
    async fn allocate(&mut self) -> Result<PBlock> {
        Ok(self.space.take(1).first)
    }

    async fn write(&mut self, at: PBlock, node: &Node, level: u16) -> Result<u32> {
        let gathered = self.vecs.len() / BLOCK_SIZE;
        if gathered >= NODES_PER_WRITE || self.start.plus(gathered as u64) != at {
            self.flush().await?;
        }
        if self.vecs.is_empty() {
            self.start = at;
        }
        let (layer, generation) = (self.editor.sb.layer, self.editor.sb.generation + 1);
        let (block, crc) = match node {
            Node::Leaf(leaf) => leaf.encode(layer, at, generation),
            Node::Inner(inner) => inner.encode(layer, at, generation, level),
        };
        self.vecs.push(IoBuf::from_slice(&block[..]));
        Ok(crc)
    }
}
