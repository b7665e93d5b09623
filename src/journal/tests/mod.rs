//! The journal without a layer around it: what each step of its rules does, and what it waits for.

mod commit;
mod hold;
mod lanes;
mod replay;
mod ring;
mod scan;

use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::{Content, Formed, Journal, JournalStart, Lanes, NotFormed};
use crate::error::Kind;
use crate::format::{JournalBlock, LayerId, Place, Record, RecordExtent, Salt, decode_records};
use crate::storage::sim::{SimDisk, SimFile};
use crate::storage::{IoVecs, Storage};
use crate::units::{BLOCK_SIZE, PBlock, Seq, VBlock};

const LAYER: LayerId = LayerId([7; 16]);
const EPOCH: u64 = 5;
const GENERATION: u64 = 9;

fn now<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn zeros(vblock: u64, blocks: u32) -> RecordExtent {
    RecordExtent { vblock: VBlock(vblock), place: Place::Zero, blocks }
}

/// A journal with one queue, whose writes complete when the test says so.
struct World {
    disk: SimDisk,
    journal: Journal<SimFile>,
    lanes: Lanes,
}

impl World {
    /// A ring of `blocks` blocks from 2 on, of which `reserved` are allocated on the host; numbers begin at 1.
    fn new(blocks: u64, reserved: u64) -> World {
        let disk = SimDisk::new(1);
        let ring = PBlock(2)..PBlock(2 + blocks);
        let start =
            JournalStart { layer: LAYER, epoch: EPOCH, generation: GENERATION, cut: Seq(0), ring, reserved };
        let file = disk.create(Path::new("/ring"), 0o600).expect("a new file");
        World { journal: Journal::new(file, start), disk, lanes: Lanes::new() }
    }

    /// Forms a record of `extents` extents.
    fn form_big(&mut self, extents: usize) -> Result<Formed, NotFormed> {
        let extents = vec![zeros(3, 1); extents];
        self.journal.form(&mut self.lanes, Content::new(&extents, &[]), IoVecs::new()).map_err(|e| e.0)
    }

    fn form(&mut self) -> Formed {
        self.form_big(1).expect("there is room")
    }

    fn written(&mut self, formed: &Formed) {
        self.journal.written(&mut self.lanes, formed);
    }

    /// A whole write: formed, on disk, acknowledged. Gives its place.
    fn write(&mut self) -> u64 {
        let formed = self.form();
        self.written(&formed);
        self.journal.settle(formed.seq);
        formed.address.0
    }

    /// As [`World::write`], of a record that fills most of a block.
    fn write_big(&mut self) -> u64 {
        let formed = self.form_big(150).expect("there is room");
        self.written(&formed);
        self.journal.settle(formed.seq);
        formed.address.0
    }

    fn commit(&self) {
        self.disk.block_on(self.journal.commit(self.journal.acked())).expect("the disk is healthy");
    }

    /// A checkpoint of everything, with nothing in flight.
    fn checkpoint(&self, generation: u64) {
        let freeze = self.journal.freeze();
        self.journal.checkpoint_begins();
        self.journal.release(freeze.cut, generation);
    }

    fn durable(&self) -> u64 {
        self.journal.stats().durable.0
    }

    fn wants_checkpoint(&self) -> bool {
        now(self.journal.checkpoint_wanted()) == Poll::Ready(true)
    }
}

/// The records that a formed block holds, and the generation in its header.
fn content(formed: &Formed) -> (Vec<Record>, u64) {
    let block: Vec<u8> = formed.vecs.bufs().iter().flat_map(|b| b.to_vec()).collect();
    assert_eq!(block.len(), BLOCK_SIZE);
    let header = JournalBlock::decode(&block, formed.address).expect("a header for its place");
    assert_eq!((header.layer, header.epoch), (LAYER, EPOCH));
    (decode_records(&block, Salt::new(LAYER, EPOCH)), header.generation)
}

fn numbers(records: &[Record]) -> Vec<u64> {
    records.iter().map(|r| r.seq.0).collect()
}
