//! Checking one layer file: superblocks, journal, tree, places of blocks.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::data::DataCheck;
use super::findings::{Code, Finding, Findings};
use super::used::Used;
use crate::chain::find_leftovers;
use crate::error::{Error, Kind, Result, printable};
use crate::format::{Joining, LeafNode, Magic, Place, Superblock};
use crate::journal::{Later, Replay, Scan, replay, scan};
use crate::layer::{Slots, install, read_slots};
use crate::map::{Change, LayerTag, Node, NodeCache, PendingMap, Slot, Step, Tree};
use crate::storage::{File, IoBuf, Lock, Meta, OpenHow, Storage, read_up_to};
use crate::units::{BLOCK, BLOCK_SIZE, PBlock, VBlock, blocks_for};

/// Bytes for tree nodes: each is visited once.
const NODE_CACHE: u64 = 1 << 20;

/// What [`check_layer`] gives back.
pub(super) struct Checked {
    /// The superblock, if there is one.
    pub(super) sb: Option<Superblock>,
    /// Blocks read and verified.
    pub(super) blocks: u64,
    /// Blocks of data read that have no checksum to verify.
    pub(super) unverified: u64,
}

/// Checks the layer file `path`. `top`: it is the one that the user named, not a parent.
pub(super) async fn check_layer<S: Storage>(
    storage: &S,
    path: &Path,
    with_data: bool,
    top: bool,
    findings: &mut Findings,
) -> Result<Checked> {
    // Direct where that is possible: the disk is to be checked, not the page cache.
    let how = OpenHow { write: false, direct: true, regular_only: true };
    let file = storage.open(path, how).map_err(|e| Error::io("open", e).at(path))?;
    if !file.try_lock(Lock::Shared).map_err(|e| Error::io("lock", e).at(path))? {
        return Err(crate::ops::in_use(&file, path).await);
    }
    let from = findings.kept().len();
    let meta = file.meta().map_err(|e| Error::io("stat", e).at(path))?;
    let Some(Slots { newest: sb, both_valid, .. }) = superblock(&file, path, findings).await? else {
        return Ok(Checked { sb: None, blocks: 0, unverified: 0 });
    };
    let closed = both_valid && sb.holder.is_none();
    let later = Later::of(&sb, meta.id.ino, storage.boot_id());
    let (pending, high_water) = journal(&file, path, &sb, closed, later, findings).await;
    let mut check = LayerCheck {
        path,
        sb: &sb,
        new_end: VBlock(blocks_for(pending.size().unwrap_or(sb.virtual_size))),
        high_water,
        meta,
        used: Used::default(),
        blocks: 2,
        // What the other layer of a join has taken is not here any more.
        data: (with_data && !moves_away(&sb))
            .then(|| DataCheck::new(file.clone(), path, sb.checksums.protects())),
        findings,
    };
    check.pending(&pending).await;
    check.tree(&file, &pending).await;
    let (blocks, unverified) = check.finish().await;
    if let Some(joining) = &sb.joining {
        findings.add(Finding::new(Code::JoinUnfinished, path, join_text(joining)));
    }
    if top && sb.sealed.is_none() {
        leftovers(storage, path, &meta, findings);
    }
    if let Some(sealed) = &sb.sealed {
        findings.name_snapshot(from, &sealed.name);
    }
    Ok(Checked { sb: Some(sb), blocks, unverified })
}

fn moves_away(sb: &Superblock) -> bool {
    sb.joining.as_ref().is_some_and(Joining::is_source)
}

fn join_text(joining: &Joining) -> String {
    match joining {
        Joining::Above { name, .. } => {
            format!("the snapshot {:?} below was being deleted: the next delete ends it", printable(name))
        }
        _ if joining.is_condemned() => "a snapshot that was being deleted: the next delete ends it".into(),
        _ => "it was being joined with the layer of a deleted snapshot: the next delete ends it".into(),
    }
}

/// The newest superblock; `None` after a finding.
async fn superblock<F: File>(file: &F, path: &Path, findings: &mut Findings) -> Result<Option<Slots>> {
    match read_slots(file, path).await {
        Ok(slots) => {
            if let Some(e) = &slots.damage {
                findings.add(Finding::of(Code::SuperblockSlot, path, e));
            }
            Ok(Some(slots))
        }
        Err(e) if e.kind() == Kind::Corrupt && has_magic(file).await => {
            findings.add(Finding::of(Code::Superblock, path, &e));
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// True if one of the slots at least begins like a superblock: then this is a damaged layer, else no layer at all.
async fn has_magic<F: File>(file: &F) -> bool {
    let buf = IoBuf::zeroed(2 * BLOCK_SIZE);
    if read_up_to(file, buf.clone(), 0).await.is_err() {
        return false;
    }
    let bytes = buf.to_vec();
    bytes.chunks(BLOCK_SIZE).any(|slot| slot.starts_with(&Magic::Superblock.bytes()))
}

/// What the journal holds on top of the tree, and the high-water mark that it knows.
async fn journal<F: File>(
    file: &F,
    path: &Path,
    sb: &Superblock,
    closed: bool,
    later: Later,
    findings: &mut Findings,
) -> (PendingMap, PBlock) {
    let pending = PendingMap::default();
    let Some(ring) = sb.ring() else { return (pending, sb.high_water) };
    let found: Scan = match scan(file, ring, sb).await {
        Ok(found) => found,
        Err(e) => {
            findings.add(Finding::of(Code::Journal, path, &e));
            return (pending, sb.high_water);
        }
    };
    // A closed layer has everything in its tree.
    if closed {
        return (pending, sb.high_water);
    }
    let high_water = found.high_water;
    match replay(file, sb.cut, found, later).await {
        Ok(replay) => {
            install(&pending, &replay.apply);
            if sb.holder.is_some() || !replay.apply.is_empty() {
                replayed(path, &replay, later, findings);
            }
        }
        Err(e) => findings.add(Finding::of(Code::Journal, path, &e)),
    }
    (pending, high_water)
}

fn replayed(path: &Path, replay: &Replay, later: Later, findings: &mut Findings) {
    let text = format!("not closed: {} journal records are to be applied", replay.apply.len());
    findings.add(Finding::new(Code::JournalReplay, path, text));
    for left in &replay.left_out {
        let why = match later {
            Later::Drop => "it was not flushed before the host went down, and has no checksums to prove it",
            Later::Verify | Later::Keep => "it is incomplete and was not flushed",
        };
        let text = format!("journal record {} is left out: {why}", left.seq.0);
        for blocks in &left.blocks {
            findings.add(Finding::new(Code::JournalLeftOut, path, text.clone()).affects(blocks.clone()));
        }
    }
}

fn leftovers<S: Storage>(storage: &S, path: &Path, meta: &Meta, findings: &mut Findings) {
    // A directory that cannot be read hides nothing that matters.
    let Ok(found) = find_leftovers(storage, path, meta.id) else { return };
    for name in found.names {
        let text =
            "a second name of the image: a snapshot was broken off, the next open for writing removes it";
        findings.add(Finding::new(Code::LeftoverName, &name, text));
    }
    for file in found.temporaries {
        let text = "a file that a command was making when it was broken off, or is making now";
        findings.add(Finding::new(Code::LeftoverFile, &file, text));
    }
}

/// A layer under check.
struct LayerCheck<'a, F: File> {
    path: &'a Path,
    sb: &'a Superblock,
    /// The end of the disk, as the journal has it.
    new_end: VBlock,
    /// Blocks from here on were never allocated.
    high_water: PBlock,
    meta: Meta,
    used: Used,
    blocks: u64,
    data: Option<DataCheck<'a, F>>,
    findings: &'a mut Findings,
}

impl<F: File> LayerCheck<'_, F> {
    /// What the journal maps.
    async fn pending(&mut self, pending: &PendingMap) {
        // Its blocks may be ones that the tree still names but that it has replaced: they are compared among themselves.
        let mut used = Used::default();
        for Change { vblock, blocks, place, crcs } in pending.frozen_changes(Slot(0)) {
            let range = vblock..vblock.plus(blocks);
            // The zeros of a resize have no end.
            if place != Place::Zero || pending.size().is_none() {
                self.inside_disk(&range, self.new_end);
            }
            let Place::Data(pblock) = place else { continue };
            let fits = self.placed(pblock, blocks, Some(&range));
            if fits && !used.insert(pblock.0..pblock.0 + blocks) {
                self.shared(pblock, Some(range));
            }
            if let Some(data) = self.data.as_mut().filter(|_| fits) {
                data.push(vblock, pblock, &crcs, self.findings).await;
            }
        }
    }

    /// The extent tree; `pending` is on top of it.
    async fn tree(&mut self, file: &F, pending: &PendingMap) {
        let tree = Tree::new(file.clone(), LayerTag(0), Arc::new(NodeCache::new(NODE_CACHE)));
        let covered = !pending.slot_is_empty(Slot(0));
        let mut walker = tree.walker(&self.sb.root);
        while let Some(step) = walker.next().await {
            match step {
                Step::Bad { range, error, .. } => self.bad_node(&range, &error),
                Step::Node { child, node, .. } => {
                    self.blocks += 1;
                    if self.placed(child.pblock, 1, None)
                        && !self.used.insert(child.pblock.0..child.pblock.0 + 1)
                    {
                        self.shared(child.pblock, None);
                    }
                    if let Node::Leaf(leaf) = &*node {
                        self.leaf(leaf, pending, covered).await;
                    }
                }
            }
        }
    }

    async fn leaf(&mut self, leaf: &LeafNode, pending: &PendingMap, covered: bool) {
        for extent in &leaf.extents {
            let blocks = u64::from(extent.blocks);
            let range = extent.vblock..extent.vblock.plus(blocks);
            self.inside_disk(&range, VBlock(self.sb.virtual_blocks()));
            let Place::Data(pblock) = extent.place else { continue };
            let fits = self.placed(pblock, blocks, Some(&range));
            if fits && !self.used.insert(pblock.0..pblock.0 + blocks) {
                self.shared(pblock, Some(range));
            }
            let Some(data) = self.data.as_mut().filter(|_| fits) else { continue };
            if covered {
                data.push_uncovered(extent.vblock, pblock, leaf.crcs_of(extent), pending, self.findings)
                    .await;
            } else {
                data.push(extent.vblock, pblock, leaf.crcs_of(extent), self.findings).await;
            }
        }
    }

    fn bad_node(&mut self, range: &Range<VBlock>, error: &Error) {
        let end = VBlock(self.sb.virtual_blocks());
        let lost = range.start.min(end)..range.end.min(end);
        self.findings.add(Finding::of(Code::TreeNode, self.path, error).affects(lost));
    }

    fn inside_disk(&mut self, range: &Range<VBlock>, end: VBlock) {
        if range.end > end {
            let (first, last, end) = (range.start.0, range.end.0, end.0);
            let text = format!("extent of blocks {first}..{last}, but the disk has {end}");
            self.findings.add(Finding::new(Code::ExtentOutside, self.path, text).affects(range.clone()));
        }
    }

    /// True if the blocks lie where blocks may lie, and within the file.
    fn placed(&mut self, first: PBlock, blocks: u64, disk: Option<&Range<VBlock>>) -> bool {
        let end = first.0 + blocks;
        let (code, text) = if first < self.sb.block_area || end > self.high_water.0 {
            let area = self.sb.block_area.0..self.high_water.0;
            (Code::BlockPlace, format!("blocks {}..{end} are outside of the area in use, {area:?}", first.0))
        } else if end > self.meta.len / BLOCK {
            let have = blocks_for(self.meta.len);
            (Code::FileShort, format!("blocks {}..{end} are used, but the file has {have}", first.0))
        } else {
            return true;
        };
        let finding = Finding::new(code, self.path, text).block(first);
        self.findings.add(match disk {
            Some(range) => finding.affects(range.clone()),
            None => finding,
        });
        false
    }

    fn shared(&mut self, first: PBlock, disk: Option<Range<VBlock>>) {
        let finding = Finding::new(Code::BlockShared, self.path, "a block is used twice").block(first);
        self.findings.add(match disk {
            Some(range) => finding.affects(range),
            None => finding,
        });
    }

    /// Verifies what data is left; gives the blocks verified, and those of data that could only be read.
    async fn finish(mut self) -> (u64, u64) {
        let mut unverified = 0;
        if let Some(data) = self.data.take() {
            let verified;
            (verified, unverified) = data.finish(self.findings).await;
            self.blocks += verified;
        }
        if self.used.is_full() {
            let text = "the file is too large to look for blocks that are used twice";
            self.findings.add(Finding::new(Code::Unfinished, self.path, text));
        }
        (self.blocks, unverified)
    }
}
