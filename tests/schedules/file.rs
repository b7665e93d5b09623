//! A file that holds only journal blocks, and knows which of them the loss of power would leave.
//!
//! A block survives from the end of a sync that was issued after its write had completed until its next write begins: what is
//! being rewritten may be torn, or unreadable. Nothing here is a point at which another thread is scheduled, except that
//! an operation takes a while.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use cowdisk::format::{LayerId, Salt, decode_records};
use cowdisk::storage::{Done, File, IoBuf, IoVecs, Lock, Meta};
use cowdisk::units::Seq;

pub(crate) const LAYER: [u8; 16] = [7; 16];
pub(crate) const EPOCH: u64 = 1;

#[derive(Debug, Default)]
struct Block {
    /// Records of the newest version, and whether its write has completed.
    records: Vec<u64>,
    completed: bool,
    /// Grows with every write that begins.
    version: u64,
    /// The newest version survives.
    survives: bool,
}

#[derive(Debug, Default)]
struct State {
    blocks: BTreeMap<u64, Block>,
    promised: u64,
    cut: u64,
}

impl State {
    /// Everything that was promised and no superblock has folded stands somewhere.
    fn judge(&self, when: &str) {
        for seq in self.cut + 1..=self.promised {
            let safe = self.blocks.values().any(|b| b.survives && b.records.contains(&seq));
            assert!(safe, "{when}: record {seq} was promised and would not survive: {self:?}");
        }
    }
}

/// The file.
#[derive(Clone, Debug, Default)]
pub(crate) struct RingFile(Arc<Mutex<State>>);

impl RingFile {
    /// A commit has told somebody that everything up to `seq` is durable.
    pub(crate) fn promise(&self, seq: Seq) {
        let mut state = self.0.lock().unwrap();
        state.promised = state.promised.max(seq.0);
        state.judge("after a commit");
    }

    /// A superblock with this cut is durable.
    pub(crate) fn cut(&self, seq: Seq) {
        let mut state = self.0.lock().unwrap();
        state.cut = state.cut.max(seq.0);
    }
}

/// An operation: it takes two turns.
pub(crate) struct RingOp {
    turns: u32,
    end: Option<Box<dyn FnOnce() -> Done>>,
}

impl RingOp {
    fn new(end: impl FnOnce() -> Done + 'static) -> RingOp {
        RingOp { turns: 2, end: Some(Box::new(end)) }
    }
}

impl Future for RingOp {
    type Output = Done;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        if self.turns > 0 {
            self.turns -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.end.take().expect("polled after its end")())
    }
}

impl File for RingFile {
    type Op = RingOp;

    fn write(&self, vecs: IoVecs, pos: u64) -> RingOp {
        let len = vecs.len();
        let bytes = vecs.bufs()[0].to_vec();
        let records = decode_records(&bytes, Salt::new(LayerId(LAYER), EPOCH));
        let mut state = self.0.lock().unwrap();
        let block = state.blocks.entry(pos).or_default();
        assert!(block.completed || block.version == 0, "two writes of one block at once");
        block.records = records.iter().map(|r| r.seq.0).collect();
        block.version += 1;
        (block.completed, block.survives) = (false, false);
        state.judge("as a write begins");
        let file = self.clone();
        RingOp::new(move || {
            file.0.lock().unwrap().blocks.entry(pos).or_default().completed = true;
            Done { result: Ok(len), vecs }
        })
    }

    fn sync_data(&self) -> RingOp {
        let state = self.0.lock().unwrap();
        let completed = state.blocks.iter().filter(|(_, b)| b.completed);
        let covered: Vec<(u64, u64)> = completed.map(|(pos, b)| (*pos, b.version)).collect();
        let file = self.clone();
        RingOp::new(move || {
            let mut state = file.0.lock().unwrap();
            for (pos, version) in covered {
                let block = state.blocks.entry(pos).or_default();
                block.survives |= block.version == version;
            }
            Done { result: Ok(0), vecs: IoVecs::new() }
        })
    }

    fn read(&self, _: IoBuf, _: u64) -> RingOp {
        unreachable!("the journal is not read")
    }
    fn allocate(&self, _: u64, _: u64) -> RingOp {
        unreachable!("the ring is allocated")
    }
    fn punch(&self, _: u64, _: u64) -> RingOp {
        unreachable!("nothing is punched")
    }
    fn meta(&self) -> io::Result<Meta> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn try_lock(&self, _: Lock) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn is_locked(&self, _: Lock) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn set_mode(&self, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn set_owner(&self, _: u32, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn copy_access(&self, _: &Self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
