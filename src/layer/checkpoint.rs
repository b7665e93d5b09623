//! Checkpoints (rule K): fold the frozen half of the pending map into a new tree, make that durable, write the
//! other superblock slot, make that durable, write its twin over the older slot, and only then release what the old
//! tree and the journal held.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use smallvec::SmallVec;

use super::head::{Head, allocate, first_ring_piece, no_ring_space};
use super::slots::write_slot;
use crate::error::{Error, Kind, Result};
use crate::format::{Sealed, Superblock};
use crate::journal::Freeze;
use crate::map::{Built, Node, NodeSink, build};
use crate::rules::{self, Rule};
use crate::space::{BlockRun, Reserve};
use crate::storage::{File, IoBuf, IoVecs, Storage, finish_write};
use crate::units::{BLOCK_SIZE, PBlock, Span};

/// Nodes in one write.
const NODES_PER_WRITE: u64 = 64;
/// Looks at limbo, a millisecond apart, before it counts as drained as far as possible.
const DRAIN_TRIES: u32 = 100;
/// Node writes in flight.
const WRITES_IN_FLIGHT: usize = 4;

/// What a checkpoint leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The layer stays open.
    Running,
    /// The layer is closed: nobody holds it.
    Clean,
    /// The layer is immutable from now on.
    Sealed(Sealed),
    /// The layer was just recovered and belongs to a new holder, in a new epoch.
    Opened(Box<Superblock>),
}

/// The next superblock, but for what the checkpoint itself decides.
fn next_superblock(current: &Superblock, finish: &Finish) -> Superblock {
    let mut sb = match finish {
        Finish::Opened(sb) => (**sb).clone(),
        _ => current.clone(),
    };
    sb.generation = current.generation + 1;
    match finish {
        Finish::Clean => sb.holder = None,
        Finish::Sealed(sealed) => {
            sb.holder = None;
            sb.sealed = Some(sealed.clone());
            sb.areas.clear();
        }
        Finish::Running | Finish::Opened(_) => {}
    }
    sb
}

impl<S: Storage> Head<S> {
    /// Runs a checkpoint, if there is anything to fold or to finish. One at a time; a second caller waits.
    ///
    /// # Errors
    /// `Poisoned` after a failed write or sync. Otherwise (`NoSpace`: there was no room for the tree; `Io`, `Corrupt`: a
    /// node of the old one cannot be read) nothing is lost: the same changes are folded by the next one.
    pub async fn checkpoint(&self, finish: Finish) -> Result<()> {
        self.below_sealed().await?;
        let _turn = self.checkpoint_turn().await;
        self.journal.check_alive().map_err(|e| e.at(self.path()))?;
        let old = self.superblock();
        let nothing = !self.journal.has_records_above(old.cut) && self.unfinished.lock().is_none();
        if nothing && finish == Finish::Running && self.space.limbo_waits_for().is_none() {
            return Ok(());
        }
        let unfinished = self.unfinished.lock().take();
        if let Some(freeze) = unfinished {
            // A checkpoint that broke off: it finishes first, and the layer stays open over it.
            self.fold_or_keep(freeze, &Finish::Running).await?;
            if finish == Finish::Running {
                return Ok(());
            }
        }
        let freeze = self.journal.freeze();
        self.fold_or_keep(freeze, &finish).await
    }

    async fn fold_or_keep(&self, freeze: Freeze, finish: &Finish) -> Result<()> {
        let old = self.superblock();
        self.journal.checkpoint_begins();
        let result = self.fold(freeze, &old, finish).await;
        if let Err(e) = &result
            && self.journal.poisoned().is_none()
            && rules::holds(Rule::KeepFrozen)
        {
            // The old root stays in force. Whatever kept this fold from its end, the next one must begin with the same
            // changes: a superblock with a later cut, and without them, would lose them.
            *self.unfinished.lock() = Some(freeze);
            self.journal.checkpoint_broke_off(e);
        }
        result.map_err(|e| e.at(self.path()))
    }

    /// Waits for the checkpoint that runs, and keeps others from beginning until the result is dropped.
    pub async fn checkpoint_turn(&self) -> impl Drop {
        self.checkpointing.wait(|busy| (!std::mem::replace(busy, true)).then_some(())).await;
        Turn(&self.checkpointing)
    }

    /// Lets everything in limbo go that rule R allows, by way of a checkpoint.
    pub async fn drain_limbo(&self) -> Result<()> {
        self.checkpoint(Finish::Running).await?;
        for _ in 0..DRAIN_TRIES {
            self.release_limbo();
            if self.space.limbo_waits_for().is_none() {
                break;
            }
            // Readers that looked up before finish their reads meanwhile.
            self.storage.pause(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    async fn fold(&self, freeze: Freeze, old: &Superblock, finish: &Finish) -> Result<()> {
        self.journal.settled(freeze.cut).await?;
        let changes = self.pending.frozen_changes(freeze.slot);
        let size = self.pending.frozen_size(freeze.slot).unwrap_or(old.virtual_size);
        let built = {
            let mut sink = Sink::new(self, old.generation + 1);
            let built = build(
                &self.reader.tree,
                self.reader.root(),
                &changes,
                self.zeros_to(size),
                freeze.cut,
                &mut sink,
            )
            .await;
            sink.finish(built).await?
        };
        drop(changes);
        // The nodes, and the data they map, before the superblock that names them.
        if rules::holds(Rule::NodesFirst) {
            self.journal.sync_for_checkpoint(freeze.cut).await?;
        }
        let mut sb = next_superblock(old, finish);
        // A resize behind the cut is not in the new tree.
        sb.virtual_size = match rules::holds(Rule::SizeOfCut) {
            true => size,
            false => self.pending.size().unwrap_or(size),
        };
        sb.root = built.root;
        sb.cut = freeze.cut;
        sb.durable = freeze.cut;
        sb.high_water = self.space.high_water().max(old.high_water);
        if let Err(e) = write_slot(&self.reader.file, &sb).await {
            self.journal.poison(&e.to_string());
            return Err(e);
        }
        // The superblock, before anything that only the old one needs is given up.
        let rule = match finish {
            Finish::Opened(_) => Rule::OpenedFirst,
            Finish::Running | Finish::Clean | Finish::Sealed(_) => Rule::SuperblockFirst,
        };
        if rules::holds(rule) {
            self.journal.sync_for_checkpoint(freeze.cut).await?;
        }
        // Records name the generation that is durable: a power loss may keep them and not the twin.
        let durable = sb.generation;
        self.write_twin(&mut sb, freeze, finish).await?;
        self.switch(freeze, sb, durable, &built, finish);
        Ok(())
    }

    /// Writes the superblock to the other slot too, as the next generation. The older one that stands there must not
    /// outlive the journal that leads from it to this one: if this one were lost, it would be taken for the newest.
    async fn write_twin(&self, sb: &mut Superblock, freeze: Freeze, finish: &Finish) -> Result<()> {
        sb.generation += 1;
        if let Err(e) = write_slot(&self.reader.file, sb).await {
            self.journal.poison(&e.to_string());
            return Err(e);
        }
        match finish {
            // Before the ring is given back, or as nothing else comes that would make it durable.
            Finish::Sealed(_) | Finish::Clean => self.journal.sync_for_checkpoint(freeze.cut).await,
            // It is as durable as the first record behind it.
            Finish::Running | Finish::Opened(_) => Ok(()),
        }
    }

    /// Makes the new root visible and releases what only the old one needed. The order matters to readers that
    /// probe the pending map first, then the span cache, then the tree: root, cache, frozen map.
    fn switch(&self, freeze: Freeze, sb: Superblock, durable: u64, built: &Built, finish: &Finish) {
        self.reader.set_root(sb.root);
        self.caches.spans.root_changed();
        let (spans, zeros) = self.pending.frozen_spans(freeze.slot);
        spans.into_iter().for_each(|span| self.caches.spans.drop_span(span));
        if !zeros.is_empty() {
            self.caches.spans.drop_where(|span: Span| zeros.iter().any(|z| z.contains(&span)));
        }
        self.pending.clear(freeze.slot);
        self.add_nodes(built.nodes, built.removed);
        match finish {
            // What recovery's tree lets go lies below the top of the open: the walk for holes finds it.
            Finish::Opened(_) => *self.opened_root.lock() = sb.root,
            _ => self.space.free_later(&built.freed),
        }
        self.journal.release(freeze.cut, durable);
        *self.sb.lock() = sb;
        self.update_node_reserve();
        self.release_limbo();
    }

    /// Runs checkpoints when they are wanted, for ever; a background task. Ends when the layer is poisoned.
    pub async fn run_checkpoints(&self) {
        while self.journal.checkpoint_wanted().await {
            // Whoever waits for it is told if it fails; the next wish tries again. Of a poisoned layer there is none.
            let _ = self.checkpoint(Finish::Running).await;
        }
    }

    /// Turns the recovered layer into an open one: a checkpoint of what was replayed (already installed in the pending
    /// map), then the first piece of the ring. Before it is durable nothing goes into the ring (O4).
    pub(super) async fn finish_open(&self, sb: Superblock) -> Result<()> {
        if let Some(piece) = first_ring_piece(&sb)
            && !allocate(&self.reader.file, piece).await
        {
            return Err(no_ring_space(self.path(), piece.first));
        }
        let _turn = self.checkpoint_turn().await;
        let old = self.superblock();
        let freeze = self.journal.freeze();
        let finish = Finish::Opened(Box::new(sb));
        // No background task runs yet, and the tree may need space.
        while_running(self.fold(freeze, &old, &finish), self.serve_growth(None))
            .await
            .map_err(|e| e.at(self.path()))
    }

    /// Commits, folds everything into the tree and marks the layer clean.
    pub async fn close(&self) -> Result<()> {
        self.checkpoint(Finish::Clean).await?;
        self.end("the image is closed").await;
        Ok(())
    }

    /// Another head has taken this one's place, and nobody wants what it has: nothing is written to it any more.
    pub async fn abandon(&self) {
        self.end("another head has taken its place").await;
    }

    /// Nothing is written any more, and nothing is in flight; the background tasks end.
    async fn end(&self, why: &str) {
        self.journal.poison(why);
        self.space.close();
        self.space.zeroing_ended().await;
    }

    /// Folds everything into the tree, makes the layer immutable, gives the journal's space back and takes the write
    /// bits off.
    pub async fn seal(&self, sealed: Sealed) -> Result<()> {
        let ring = self.superblock().ring();
        self.checkpoint(Finish::Sealed(sealed)).await?;
        self.end("the layer is sealed").await;
        let file = &self.reader.file;
        if let Some(ring) = ring {
            let run = BlockRun { first: ring.first, blocks: ring.blocks };
            // Only space is lost if the host cannot.
            let _ = file.punch(run.first.pos(), run.blocks * BLOCK_SIZE as u64).await.result;
        }
        let meta = file.meta().map_err(|e| Error::io("stat", e).at(self.path()))?;
        file.set_mode(meta.mode & !0o222).map_err(|e| Error::io("set mode", e).at(self.path()))
    }
}

/// Runs `main` to its end with `background`, which has none, beside it.
async fn while_running<T>(main: impl Future<Output = T>, background: impl Future<Output = ()>) -> T {
    let (mut main, mut background) = (pin!(main), pin!(background));
    poll_fn(|cx| {
        // The background may be what makes the main future ready, and wakes it itself.
        let _ = background.as_mut().poll(cx);
        main.as_mut().poll(cx)
    })
    .await
}

struct Turn<'a>(&'a crate::runtime::sync::Monitor<bool>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.update(|busy| *busy = false);
    }
}

/// Where the builder's nodes go: blocks from the reserve, written in runs, a few writes in flight.
struct Sink<'a, S: Storage> {
    head: &'a Head<S>,
    generation: u64,
    run: Option<BlockRun>,
    /// Everything allocated, given back if the checkpoint breaks off.
    taken: Vec<BlockRun>,
    start: Option<PBlock>,
    vecs: IoVecs,
    flying: SmallVec<[Flying<S>; WRITES_IN_FLIGHT]>,
}

/// A write in flight: where it began, its bytes, its operation.
pub(super) type Flying<S> = (PBlock, usize, <<S as Storage>::File as File>::Op);

impl<'a, S: Storage> Sink<'a, S> {
    fn new(head: &'a Head<S>, generation: u64) -> Self {
        Sink {
            head,
            generation,
            run: None,
            taken: Vec::new(),
            start: None,
            vecs: IoVecs::new(),
            flying: SmallVec::new(),
        }
    }

    async fn fetch(&self) -> Result<BlockRun> {
        let space = &self.head.space;
        loop {
            if let Reserve::Run(run) = space.reserve_node(NODES_PER_WRITE) {
                return Ok(run);
            }
            if space.growth_ended().await && space.reserve_node(0) == Reserve::Wait {
                return Err(Error::new(Kind::NoSpace, "the host has no space for a checkpoint"));
            }
        }
    }

    /// Starts the write of the nodes gathered so far.
    async fn start_write(&mut self) -> Result<()> {
        let Some(start) = self.start.take() else { return Ok(()) };
        if self.flying.len() == WRITES_IN_FLIGHT {
            self.wait_one().await?;
        }
        let vecs = std::mem::take(&mut self.vecs);
        let len = vecs.len();
        self.flying.push((start, len, self.head.reader.file.write(vecs, start.pos())));
        Ok(())
    }

    async fn wait_one(&mut self) -> Result<()> {
        let (start, len, op) = self.flying.remove(0);
        let (result, _) = finish_write(&self.head.reader.file, op, len, start.pos()).await;
        result.map_err(|e| {
            let error = Error::io("write tree node", e).offset(start.pos());
            // Without space the old root stays and the changes are folded later. Anything else poisons.
            if error.kind() != Kind::NoSpace {
                self.head.journal.poison(&error.to_string());
            }
            error
        })
    }

    /// Completes all writes. If anything failed, the blocks are free again: no durable root names them.
    async fn finish(mut self, built: Result<Built>) -> Result<Built> {
        let mut result = match built {
            Ok(built) => self.start_write().await.map(|()| built),
            Err(e) => Err(e),
        };
        while !self.flying.is_empty() {
            if let Err(e) = self.wait_one().await {
                result = Err(e);
            }
        }
        if let Some(rest) = self.run.take() {
            self.head.space.give_back(rest);
        }
        if result.is_err() {
            self.taken.drain(..).for_each(|run| self.head.space.give_back(run));
        }
        result
    }
}

impl<S: Storage> NodeSink for Sink<'_, S> {
    async fn allocate(&mut self) -> Result<PBlock> {
        let run = match self.run.take() {
            Some(run) => run,
            None => self.fetch().await?,
        };
        if run.blocks > 1 {
            self.run = Some(BlockRun { first: run.first.plus(1), blocks: run.blocks - 1 });
        }
        self.taken.push(BlockRun { first: run.first, blocks: 1 });
        Ok(run.first)
    }

    async fn write(&mut self, at: PBlock, node: &Node, level: u16) -> Result<u32> {
        let gathered = (self.vecs.len() / BLOCK_SIZE) as u64;
        if self.start.is_some_and(|s| s.plus(gathered) != at || gathered >= NODES_PER_WRITE) {
            self.start_write().await?;
        }
        let layer = self.head.sb.lock().layer;
        let (block, crc) = match node {
            Node::Leaf(leaf) => leaf.encode(layer, at, self.generation),
            Node::Inner(inner) => inner.encode(layer, at, self.generation, level),
        };
        self.start.get_or_insert(at);
        self.vecs.push(IoBuf::from_slice(&block[..]));
        Ok(crc)
    }
}
