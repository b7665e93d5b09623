//! Open journal blocks of one queue.
//!
//! A lane is a block that records are packed into: its bytes so far, and the one or two places of the ring where
//! versions of it stand. Rule J1 decides where the next version goes: over the last one while no commit has covered
//! any of its records; else to the other place, if what was flushed there is durable in the last one; else to a
//! fresh block. So at depth 1 dozens of records share a block, and no flushed byte is ever rewritten.

use super::state::{Gate, Journal, NotFormed, State};
use crate::format::{JOURNAL_HEADER_BYTES, JournalBlock, RecordExtent, RecordRef, Resize, encode_record};
use crate::limits::MAX_UNSETTLED;
use crate::map::Slot;
use crate::rules::{self, Rule};
use crate::storage::{File, IoBuf, IoVecs};
use crate::units::{BLOCK_SIZE, PBlock, Seq};

#[derive(Debug)]
struct Lane {
    /// The bytes of the block, as written last or being written.
    block: Box<[u8; BLOCK_SIZE]>,
    buf: IoBuf,
    used: usize,
    /// Where the newest version stands.
    current: PBlock,
    /// Where an older one stands, that may be overwritten when the newest is durable.
    other: Option<PBlock>,
    first_seq: Seq,
    /// Syncs that had started when the newest version's write completed.
    written_at: u64,
    in_flight: bool,
    /// Closed by a freeze: gone when its write has completed.
    closed: bool,
}

/// The lanes of one queue; stays on its thread.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: Vec<Lane>,
    generation: u64,
    unsettled: Vec<u32>,
}

/// What a record is to say.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// What it maps.
    pub extents: &'a [RecordExtent],
    /// One checksum per block of its data extents, in their order.
    pub crcs: &'a [u32],
    /// The size that the disk has from now on, if it changes.
    pub resize: Option<Resize>,
}

impl<'a> Content<'a> {
    /// Extents alone.
    pub fn new(extents: &'a [RecordExtent], crcs: &'a [u32]) -> Content<'a> {
        Content { extents, crcs, resize: None }
    }

    /// True without any change.
    pub fn is_unchanging(&self) -> bool {
        self.extents.is_empty() && self.resize.is_none()
    }
}

/// A record with a number: it must now be written, or the layer poisoned (W1).
#[derive(Debug)]
pub struct Formed {
    /// Its number.
    pub seq: Seq,
    /// The half of the pending map it belongs to.
    pub slot: Slot,
    /// Where its journal block goes.
    pub address: PBlock,
    /// The journal block.
    pub vecs: IoVecs,
    lane: usize,
    rewrite_phase: Option<usize>,
}

/// Where the next version of a lane goes.
enum Target {
    /// Over the last version.
    Same,
    /// Over the older version.
    Other,
    /// To a fresh block.
    Fresh,
}

impl Lane {
    fn has_room(&self, len: usize) -> bool {
        !self.in_flight && !self.closed && self.used + len <= BLOCK_SIZE
    }

    fn target(&self, state: &State) -> Target {
        let covered = state.durable.max(state.sync.target.unwrap_or_default());
        if self.first_seq > covered || !rules::holds(Rule::Rewrite) {
            Target::Same
        } else if self.other.is_some() && state.sync.done > self.written_at {
            Target::Other
        } else {
            Target::Fresh
        }
    }
}

impl<F: File> Journal<F> {
    /// Gives a record its number and its place in the journal (W1: everything it needs is reserved before).
    ///
    /// `vecs` is used for the journal block's write.
    pub fn form(
        &self,
        lanes: &mut Lanes,
        content: Content<'_>,
        mut vecs: IoVecs,
    ) -> Result<Formed, (NotFormed, IoVecs)> {
        vecs.clear();
        let reserved = self.state.with(|s| lanes.reserve(s, content));
        let Reserved { seq, slot, durable, lane, address, fresh, generation, rewrite_phase, pressure } =
            match reserved {
                Ok(reserved) => reserved,
                Err(why) => return Err((why, vecs)),
            };
        if pressure {
            self.want_checkpoint();
        }
        let Lanes { lanes: all, unsettled, .. } = lanes;
        let at = &mut all[lane];
        if fresh {
            let header = JournalBlock { layer: self.layer, epoch: self.epoch, generation };
            header.encode(address, &mut at.block);
            at.buf.copy_from(0, &at.block[..JOURNAL_HEADER_BYTES]);
        }
        let Content { extents, crcs, resize } = content;
        let record = RecordRef { seq, durable, unsettled, extents, crcs, resize };
        let used = encode_record(&record, self.salt, &mut at.block[at.used..]);
        let used = used.expect("the room was checked");
        at.buf.copy_from(at.used, &at.block[at.used..at.used + used]);
        at.used += used;
        vecs.push(at.buf.clone());
        Ok(Formed { seq, slot, address, vecs, lane, rewrite_phase })
    }

    /// The write of the journal block has completed.
    pub fn written(&self, lanes: &mut Lanes, formed: &Formed) {
        let lane = &mut lanes.lanes[formed.lane];
        let change = |s: &mut State| {
            lane.written_at = s.sync.started;
            if let Some(phase) = formed.rewrite_phase {
                s.sync.rewrites[phase] -= 1;
            }
        };
        // Only a sync waits for rewrites.
        if formed.rewrite_phase.is_some() {
            self.state.update(change)
        } else {
            self.state.with(change)
        }
        lane.in_flight = false;
    }
}

struct Reserved {
    seq: Seq,
    slot: Slot,
    durable: Seq,
    lane: usize,
    address: PBlock,
    fresh: bool,
    generation: u64,
    rewrite_phase: Option<usize>,
    /// The ring is half full, seen for the first time.
    pressure: bool,
}

impl Lanes {
    /// Lanes for one queue.
    pub fn new() -> Lanes {
        Lanes::default()
    }

    fn reserve(&mut self, s: &mut State, content: Content<'_>) -> Result<Reserved, NotFormed> {
        // A head that is sealed takes no more records, and has moved before that.
        if s.gate == Gate::Moved {
            return Err(NotFormed::Moved);
        }
        if s.poisoned.is_some() {
            return Err(NotFormed::Poisoned);
        }
        // What changes nothing is no part of what a snapshot shows; its last commit may need it (N2).
        if s.gate == Gate::Held && !content.is_unchanging() {
            return Err(NotFormed::Held);
        }
        if s.unsettled.len() >= MAX_UNSETTLED {
            return Err(NotFormed::TooMany);
        }
        let seq = s.next;
        self.unsettled.clear();
        self.unsettled.extend(s.unsettled.iter().rev().map(|u| (seq.0 - u.0) as u32));
        let Content { extents, crcs, resize } = content;
        let record = RecordRef { seq, durable: s.durable, unsettled: &self.unsettled, extents, crcs, resize };
        let len = record.encoded_len();
        if self.generation != s.lane_generation {
            self.generation = s.lane_generation;
            self.lanes.iter_mut().for_each(|l| l.closed = true);
        }
        let (lane, address, fresh, rewrite) = self.place(s, len, seq)?;
        let rewrite_phase = rewrite.then_some(s.sync.phase);
        if rewrite {
            s.sync.rewrites[s.sync.phase] += 1;
        }
        s.next = seq.next();
        if !content.is_unchanging() {
            s.newest_change = seq;
        }
        s.unsettled.push(seq);
        if s.carried.back().map(|c| c.1) != Some(s.durable) {
            s.carried.push_back((seq, s.durable));
        }
        self.lanes[lane].in_flight = true;
        let (slot, durable, generation) = (s.slot, s.durable, s.sb_generation);
        let pressure = fresh && !s.checkpoint_wanted && s.ring.wants_checkpoint();
        Ok(Reserved { seq, slot, durable, lane, address, fresh, generation, rewrite_phase, pressure })
    }

    /// Chooses a lane and the place of its next version: lane, address, whether a header must be written there,
    /// whether it overwrites records.
    fn place(
        &mut self,
        s: &mut State,
        len: usize,
        seq: Seq,
    ) -> Result<(usize, PBlock, bool, bool), NotFormed> {
        if let Some(index) = self.lanes.iter().position(|l| l.has_room(len)) {
            let lane = &mut self.lanes[index];
            match lane.target(s) {
                Target::Same => return Ok((index, lane.current, false, true)),
                Target::Other => {
                    let other = lane.other.replace(lane.current).expect("`Other` needs one");
                    lane.current = other;
                    // The header names its address, so the other place has its own.
                    return Ok((index, other, true, true));
                }
                Target::Fresh => {
                    let fresh = take_fresh(s)?;
                    lane.other = Some(lane.current);
                    lane.current = fresh;
                    return Ok((index, fresh, true, false));
                }
            }
        }
        let fresh = take_fresh(s)?;
        let index = match self.lanes.iter().position(|l| !l.in_flight) {
            Some(index) => index,
            None => {
                self.lanes.push(Lane::empty());
                self.lanes.len() - 1
            }
        };
        self.lanes[index].restart(fresh, seq);
        Ok((index, fresh, true, false))
    }
}

impl Lane {
    fn empty() -> Lane {
        Lane {
            block: Box::new([0; BLOCK_SIZE]),
            buf: IoBuf::zeroed(BLOCK_SIZE),
            used: 0,
            current: PBlock(0),
            other: None,
            first_seq: Seq(0),
            written_at: 0,
            in_flight: false,
            closed: true,
        }
    }

    fn restart(&mut self, at: PBlock, seq: Seq) {
        self.block.fill(0);
        self.buf.zero(0..BLOCK_SIZE);
        self.used = JOURNAL_HEADER_BYTES;
        self.current = at;
        self.other = None;
        self.first_seq = seq;
        self.closed = false;
    }
}

fn take_fresh(s: &mut State) -> Result<PBlock, NotFormed> {
    let block = s.ring.free.pop_front().ok_or(NotFormed::RingFull)?;
    s.ring.used.push(block);
    Ok(block)
}
