//! Shared state of the journal: which numbers are given, settled, acknowledged and durable; the ring's blocks.

use std::collections::VecDeque;

use crate::error::{Error, Kind, Result};
use crate::format::{LayerId, Salt};
use crate::map::Slot;
use crate::rules::{self, Rule};
use crate::runtime::sync::Monitor;
use crate::units::{PBlock, Seq};

/// What a journal begins with after an open.
#[derive(Clone, Debug)]
pub struct JournalStart {
    /// The layer, for headers and salts.
    pub layer: LayerId,
    /// This opening of it.
    pub epoch: u64,
    /// The superblock in force.
    pub generation: u64,
    /// Everything up to here is in the tree and durable.
    pub cut: Seq,
    /// The ring.
    pub ring: std::ops::Range<PBlock>,
    /// Blocks of the ring that are allocated on the host.
    pub reserved: u64,
}

/// The journal of one open layer.
#[derive(Debug)]
pub struct Journal<F> {
    pub(super) file: F,
    pub(super) layer: LayerId,
    pub(super) epoch: u64,
    pub(super) salt: Salt,
    pub(super) state: Monitor<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) next: Seq,
    pub(super) slot: Slot,
    /// Given and not settled, ascending.
    pub(super) unsettled: Vec<Seq>,
    /// Of these, the ones whose data write failed: settled by a checkpoint only (W4).
    pub(super) failed: Vec<Seq>,
    pub(super) acked: Seq,
    pub(super) ring: Ring,
    /// Grows with every freeze: it closes all open blocks (J2).
    pub(super) lane_generation: u64,
    pub(super) sb_generation: u64,
    pub(super) durable: Seq,
    pub(super) sync: SyncState,
    /// For each value of `durable` that records carry, the first record that does.
    pub(super) carried: VecDeque<(Seq, Seq)>,
    pub(super) evidence: Seq,
    /// The newest record that changes anything.
    pub(super) newest_change: Seq,
    pub(super) poisoned: Option<String>,
    pub(super) gate: Gate,
    pub(super) checkpoint_wanted: bool,
    pub(super) checkpoints: Checkpoints,
}

/// Whether records are formed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Gate {
    #[default]
    Open,
    /// Not now: a snapshot is about to put another head in this one's place.
    Held,
    /// Never again: it has. All that was acknowledged here was durable by then.
    Moved,
}

/// Checkpoints, and why the last one broke off that did.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    /// Folds begun.
    pub(super) begun: u64,
    /// Which of them broke off last.
    broke_off: u64,
    why: Option<(Kind, String)>,
}

impl Checkpoints {
    /// The error of the last one that broke off, if it had begun after the first `begun`.
    pub(super) fn broke_off_since(&self, begun: u64) -> Option<Error> {
        let (kind, why) = self.why.as_ref().filter(|_| self.broke_off > begun)?;
        Some(Error::new(*kind, format!("a checkpoint broke off: {why}")))
    }
}

/// The one fdatasync that may run.
#[derive(Debug, Default)]
pub(super) struct SyncState {
    pub(super) running: bool,
    /// What the running one will have made durable.
    pub(super) target: Option<Seq>,
    pub(super) started: u64,
    /// Number of the last one that ended well.
    pub(super) done: u64,
    /// A turn ended without its sync: the next one waits for the rewrites of both phases.
    pub(super) aborted: bool,
    /// The fdatasync of the running turn has been issued.
    pub(super) began: bool,
    /// Rewrites of journal blocks in flight, by the phase they began in; a sync waits for those of the phase before.
    pub(super) phase: usize,
    pub(super) rewrites: [u32; 2],
}

#[derive(Debug, Default)]
pub(super) struct Ring {
    /// In the order of reuse.
    pub(super) free: VecDeque<PBlock>,
    /// Taken since the last freeze.
    pub(super) used: Vec<PBlock>,
    /// Taken before it: free once the checkpoint is durable.
    pub(super) frozen: Vec<PBlock>,
    /// Blocks not yet allocated on the host.
    pub(super) unreserved: std::ops::Range<u64>,
    pub(super) total: usize,
    /// The host had no space for more of the ring.
    pub(super) capped: bool,
}

impl Ring {
    fn available(&self) -> usize {
        let unreserved = (self.unreserved.end - self.unreserved.start) as usize;
        if self.capped { self.total - unreserved } else { self.total }
    }

    /// Nothing is free, and only a checkpoint can change that.
    fn is_stuck(&self) -> bool {
        self.free.is_empty() && (self.unreserved.is_empty() || self.capped)
    }

    /// Half of what there is has been used since the last freeze.
    pub(super) fn wants_checkpoint(&self) -> bool {
        self.used.len() * 2 >= self.available() || (self.free.is_empty() && self.capped)
    }
}

/// Why a record could not be formed now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotFormed {
    /// The ring has no block; a checkpoint will free some.
    RingFull,
    /// Too many records are in flight.
    TooMany,
    /// A snapshot holds the layer for a moment.
    Held,
    /// A snapshot has put another head in this one's place: the records belong there.
    Moved,
    /// The layer takes no more writes.
    Poisoned,
}

/// A checkpoint's freeze (rule K).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Freeze {
    /// The newest number given: all up to it belong to the checkpoint.
    pub cut: Seq,
    /// The half of the pending map that they install into.
    pub slot: Slot,
}

/// For `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JournalStats {
    /// Blocks of the ring.
    pub ring_blocks: usize,
    /// Blocks in use.
    pub used_blocks: usize,
    /// Newest number given.
    pub newest: Seq,
    /// Newest number known durable.
    pub durable: Seq,
    /// Highest durable number that is itself on durable record (rule R).
    pub evidence: Seq,
    /// Newest number acknowledged.
    pub acked: Seq,
}

impl<F> Journal<F> {
    /// An empty journal on `file`.
    pub fn new(file: F, start: JournalStart) -> Journal<F> {
        let first = start.ring.start.0;
        let end = start.ring.end.0;
        let reserved = (first + start.reserved).min(end);
        let ring = Ring {
            free: (first..reserved).map(PBlock).collect(),
            unreserved: reserved..end,
            total: (end - first) as usize,
            ..Ring::default()
        };
        let state = State {
            next: start.cut.next(),
            slot: Slot(0),
            unsettled: Vec::new(),
            failed: Vec::new(),
            acked: start.cut,
            ring,
            lane_generation: 0,
            sb_generation: start.generation,
            durable: start.cut,
            sync: SyncState::default(),
            carried: VecDeque::new(),
            evidence: start.cut,
            newest_change: start.cut,
            poisoned: None,
            gate: Gate::Open,
            checkpoint_wanted: false,
            checkpoints: Checkpoints::default(),
        };
        let salt = Salt::new(start.layer, start.epoch);
        Journal { file, layer: start.layer, epoch: start.epoch, salt, state: Monitor::new(state) }
    }

    /// Gives a number that gets no record: what W1 is there to prevent.
    #[cfg(feature = "sim")]
    pub fn waste_number(&self) {
        self.state.with(|s| s.next = s.next.next());
    }

    /// The half of the pending map that a record formed now would belong to: for a freeze by time, as K forbids it.
    #[cfg(feature = "sim")]
    pub fn slot_now(&self) -> Slot {
        self.state.with(|s| s.slot)
    }

    /// The record's data and journal block are written and its extents are installed.
    pub fn settle(&self, seq: Seq) {
        self.state.update(|s| {
            s.forget_unsettled(seq);
            s.acked = s.acked.max(seq);
        });
    }

    /// The record's journal block is written but its data is not: it stays unsettled until a checkpoint (W4).
    pub fn fail(&self, seq: Seq) {
        self.state.update(|s| {
            s.failed.push(seq);
            s.checkpoint_wanted = true;
        });
    }

    /// No further write is acknowledged. The first reason stays.
    pub fn poison(&self, why: &str) {
        self.state.update(|s| {
            s.poisoned.get_or_insert_with(|| why.to_owned());
        });
    }

    /// Why the layer is poisoned, if it is.
    pub fn poisoned(&self) -> Option<String> {
        self.state.with(|s| s.poisoned.clone())
    }

    /// An error if the layer is poisoned.
    pub fn check_alive(&self) -> Result<()> {
        self.state.with(|s| s.check_alive())
    }

    /// Newest number acknowledged.
    pub fn acked(&self) -> Seq {
        self.state.with(|s| s.acked)
    }

    /// Highest durable number that is itself on durable record (rule R).
    pub fn evidence(&self) -> Seq {
        self.state.with(|s| s.evidence)
    }

    /// Syncs begun since the open.
    pub fn syncs(&self) -> u64 {
        self.state.with(|s| s.sync.started)
    }

    /// For `status`.
    pub fn stats(&self) -> JournalStats {
        self.state.with(|s| JournalStats {
            ring_blocks: s.ring.total,
            used_blocks: s.ring.used.len() + s.ring.frozen.len(),
            newest: Seq(s.next.0 - 1),
            durable: s.durable,
            evidence: s.evidence,
            acked: s.acked,
        })
    }

    /// Waits until a record may be formable again.
    ///
    /// # Errors
    /// The ring is full, and the checkpoint that would free it broke off: why.
    pub async fn room(&self) -> Result<()> {
        self.room_for(false).await
    }

    /// As [`Journal::room`]; `unchanging`: for a record that changes nothing, which a snapshot does not hold back.
    pub async fn room_for(&self, unchanging: bool) -> Result<()> {
        let (stuck, seen) = self.state.with(|s| (s.ring.is_stuck(), s.checkpoints.begun));
        if stuck {
            self.want_checkpoint();
        }
        self.state
            .wait(|s| {
                if s.poisoned.is_some() || s.gate == Gate::Moved {
                    return Some(Ok(()));
                }
                if s.gate == Gate::Held && !unchanging {
                    return None;
                }
                if !s.ring.free.is_empty() && s.unsettled.len() < crate::limits::MAX_UNSETTLED {
                    return Some(Ok(()));
                }
                if s.ring.is_stuck() { s.checkpoints.broke_off_since(seen).map(Err) } else { None }
            })
            .await
    }

    /// A checkpoint begins to fold; it must end with [`Journal::release`], [`Journal::checkpoint_broke_off`] or poison.
    pub fn checkpoint_begins(&self) {
        self.state.with(|s| s.checkpoints.begun += 1);
    }

    /// A checkpoint broke off: those who wait for one are told why.
    pub fn checkpoint_broke_off(&self, why: &Error) {
        self.state.update(|s| {
            s.checkpoints.broke_off = s.checkpoints.begun;
            s.checkpoints.why = Some((why.kind(), why.to_string()));
        });
    }

    /// Asks for a checkpoint.
    pub fn want_checkpoint(&self) {
        self.state.update(|s| s.checkpoint_wanted = true);
    }

    /// Waits until somebody wants a checkpoint (or the layer is poisoned: `false`).
    pub async fn checkpoint_wanted(&self) -> bool {
        self.state
            .wait(|s| match &s.poisoned {
                Some(_) => Some(false),
                None => std::mem::take(&mut s.checkpoint_wanted).then_some(true),
            })
            .await
    }

    /// True if a checkpoint would change anything: records above `cut`.
    pub fn has_records_above(&self, cut: Seq) -> bool {
        self.state.with(|s| s.next > cut.next())
    }

    /// Begins a checkpoint: closes all open journal blocks and makes the other half of the pending map current (J2, K).
    pub fn freeze(&self) -> Freeze {
        self.state.with(|s| {
            let freeze = Freeze { cut: Seq(s.next.0 - 1), slot: s.slot };
            s.slot = s.slot.other();
            s.lane_generation += u64::from(rules::holds(Rule::CloseBlocks));
            let used = std::mem::take(&mut s.ring.used);
            s.ring.frozen.extend(used);
            freeze
        })
    }

    /// Waits until every record up to `cut` is settled, or failed with its journal block written.
    pub async fn settled(&self, cut: Seq) -> Result<()> {
        self.state
            .wait(|s| match s.check_alive() {
                Err(e) => Some(Err(e)),
                Ok(()) => (s.settled_or_failed(cut) || !rules::holds(Rule::SettledFirst)).then_some(Ok(())),
            })
            .await
    }

    /// The checkpoint with this cut is durable, in superblock `generation`: its ring blocks are free again, and
    /// failed records up to the cut are settled.
    pub fn release(&self, cut: Seq, generation: u64) {
        self.state.update(|s| {
            let frozen = std::mem::take(&mut s.ring.frozen);
            s.ring.free.extend(frozen);
            for seq in s.failed.extract_if(.., |f| *f <= cut).collect::<Vec<_>>() {
                s.forget_unsettled(seq);
            }
            s.sb_generation = generation;
            // A record that failed behind the cut waits for the next one: its wish may have come while this one ran.
            s.checkpoint_wanted = s.ring.wants_checkpoint() || !s.failed.is_empty();
            s.set_durable(cut);
            s.evidence = s.evidence.max(cut);
        });
    }

    /// Waits until more of the ring should be allocated on the host; gives the blocks. Answer with
    /// [`Journal::ring_grown`]. `None`: the layer takes no more writes.
    pub async fn ring_growth_wanted(&self, piece: u64) -> Option<std::ops::Range<PBlock>> {
        self.state
            .wait(|s| {
                if s.poisoned.is_some() {
                    return Some(None);
                }
                let low = s.ring.free.len() * 2 < piece as usize;
                let more = !s.ring.unreserved.is_empty() && !s.ring.capped;
                (low && more).then(|| {
                    let start = s.ring.unreserved.start;
                    Some(PBlock(start)..PBlock((start + piece).min(s.ring.unreserved.end)))
                })
            })
            .await
    }

    /// The ring is allocated up to `end`, or (`None`) the host is full: then what there is must do.
    pub fn ring_grown(&self, end: Option<PBlock>) {
        self.state.update(|s| match end {
            Some(end) => {
                s.ring.free.extend((s.ring.unreserved.start..end.0).map(PBlock));
                s.ring.unreserved.start = end.0;
            }
            None => {
                s.ring.capped = true;
                s.checkpoint_wanted |= s.ring.wants_checkpoint();
            }
        });
    }
}

impl State {
    pub(super) fn check_alive(&self) -> Result<()> {
        match &self.poisoned {
            Some(why) => Err(Error::new(Kind::Poisoned, format!("no more writes: {why}"))),
            None => Ok(()),
        }
    }

    fn forget_unsettled(&mut self, seq: Seq) {
        if let Ok(at) = self.unsettled.binary_search(&seq) {
            self.unsettled.remove(at);
        }
    }

    /// Settled, or failed and waiting for a checkpoint.
    pub(super) fn settled_or_failed(&self, target: Seq) -> bool {
        self.unsettled.iter().take_while(|s| **s <= target).all(|s| self.failed.contains(s))
    }

    pub(super) fn all_settled(&self, target: Seq) -> bool {
        self.unsettled.first().is_none_or(|s| *s > target)
    }

    /// Everything up to `seq` is durable; so is what records up to it carry.
    pub(super) fn set_durable(&mut self, seq: Seq) {
        self.durable = self.durable.max(seq);
        while let Some((_, carried)) = self.carried.pop_front_if(|(first, _)| *first <= seq) {
            self.evidence = self.evidence.max(carried);
        }
    }
}
