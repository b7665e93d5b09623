//! A file in memory whose operations are ready at once, and what waits for them.

use std::collections::BTreeMap;
use std::future::{Future, Ready, ready};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::storage::{Done, File, FileId, FileKind, IoBuf, IoVecs, Lock, Meta};
use crate::units::{BLOCK, BLOCK_SIZE, PBlock};

/// Whole blocks; a block that was never written is behind the end of the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Ram {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    blocks: BTreeMap<u64, Box<[u8; BLOCK_SIZE]>>,
    reads: u64,
    fail_reads_of: Option<u64>,
}

impl Ram {
    pub(super) fn put(&self, at: PBlock, block: Box<[u8; BLOCK_SIZE]>) {
        self.state.lock().blocks.insert(at.0, block);
    }
    pub(super) fn take(&self, at: PBlock) -> Option<Box<[u8; BLOCK_SIZE]>> {
        self.state.lock().blocks.remove(&at.0)
    }
    pub(super) fn copy(&self, at: PBlock) -> Box<[u8; BLOCK_SIZE]> {
        self.state.lock().blocks[&at.0].clone()
    }
    /// Reads since the last call.
    pub(super) fn take_reads(&self) -> u64 {
        std::mem::take(&mut self.state.lock().reads)
    }
    pub(super) fn fail_reads_of(&self, at: Option<PBlock>) {
        self.state.lock().fail_reads_of = at.map(|p| p.0);
    }
}

fn done(result: io::Result<usize>) -> Ready<Done> {
    ready(Done { result, vecs: IoVecs::new() })
}

impl File for Ram {
    type Op = Ready<Done>;

    fn read(&self, buf: IoBuf, pos: u64) -> Ready<Done> {
        assert!(pos.is_multiple_of(BLOCK) && buf.len() == BLOCK_SIZE, "nodes are read whole");
        let mut state = self.state.lock();
        state.reads += 1;
        if state.fail_reads_of == Some(pos / BLOCK) {
            return done(Err(io::Error::from_raw_os_error(libc::EIO)));
        }
        let Some(block) = state.blocks.get(&(pos / BLOCK)) else { return done(Ok(0)) };
        buf.copy_from(0, &block[..]);
        done(Ok(BLOCK_SIZE))
    }
    fn write(&self, _: IoVecs, _: u64) -> Ready<Done> {
        unreachable!("the sink puts blocks")
    }
    fn sync_data(&self) -> Ready<Done> {
        done(Ok(0))
    }
    fn allocate(&self, _: u64, _: u64) -> Ready<Done> {
        done(Ok(0))
    }
    fn punch(&self, _: u64, _: u64) -> Ready<Done> {
        done(Ok(0))
    }
    fn meta(&self) -> io::Result<Meta> {
        let len = self.state.lock().blocks.keys().next_back().map_or(0, |last| (last + 1) * BLOCK);
        let id = FileId { dev: 0, ino: 0 };
        Ok(Meta {
            id,
            kind: FileKind::Regular,
            len,
            allocated: len,
            mtime_ns: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            links: 1,
        })
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn try_lock(&self, _: Lock) -> io::Result<bool> {
        Ok(true)
    }
    fn is_locked(&self, _: Lock) -> io::Result<bool> {
        Ok(false)
    }
    fn set_mode(&self, _: u32) -> io::Result<()> {
        Ok(())
    }
    fn copy_access(&self, _: &Self) -> io::Result<()> {
        Ok(())
    }
    fn set_owner(&self, _: u32, _: u32) -> io::Result<()> {
        Ok(())
    }
}

/// The result of a future that waits for nothing but [`Ram`].
pub(super) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("nothing here waits"),
    }
}
