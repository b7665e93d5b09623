//! Open files, and the future that stands for an operation.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::OpKind;
use super::disk::SimDisk;
use super::effect::Effect;
use super::flight::Request;
use super::state::State;
use crate::storage::{Done, File, IoBuf, IoVecs, Lock, Meta};

/// An open file of a [`SimDisk`].
#[derive(Clone, Debug)]
pub struct SimFile {
    handle: Arc<Handle>,
}

/// The handles' side of an open file description.
#[derive(Debug)]
struct Handle {
    disk: SimDisk,
    description: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.disk.state().settle(self.description, true);
    }
}

/// A running operation. It runs on when this is dropped.
#[derive(Debug)]
pub struct SimOp {
    cell: Arc<Cell>,
}

/// Where the result of an operation goes, and who waits for it.
#[derive(Default, Debug)]
pub(super) struct Cell {
    slot: Mutex<Slot>,
}

#[derive(Default, Debug)]
struct Slot {
    done: Option<Done>,
    waker: Option<Waker>,
}

impl Cell {
    /// Gives the result and wakes who waits.
    pub(super) fn finish(&self, done: Done) {
        let mut slot = self.slot.lock();
        slot.done = Some(done);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl SimOp {
    pub(super) const fn new(cell: Arc<Cell>) -> SimOp {
        SimOp { cell }
    }
}

impl Future for SimOp {
    type Output = Done;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let mut slot = self.cell.slot.lock();
        match slot.done.take() {
            Some(done) => Poll::Ready(done),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl SimFile {
    pub(super) fn new(disk: &SimDisk, description: u64) -> SimFile {
        SimFile { handle: Arc::new(Handle { disk: disk.clone(), description }) }
    }

    fn issue(&self, request: Request) -> SimOp {
        self.handle.disk.issue(self.handle.description, request)
    }

    /// Does something to the inode that ends at once.
    fn at_once(
        &self,
        op: OpKind,
        pos: u64,
        act: impl FnOnce(&mut State, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let Handle { disk, description } = &*self.handle;
        let (ino, path) = {
            let state = disk.state();
            let description = state.description(*description);
            (description.ino, description.path.clone())
        };
        disk.at_once(op, &path, pos, |state, fault| fault.and_then(|()| act(state, ino)))
    }
}

impl File for SimFile {
    type Op = SimOp;

    fn read(&self, buf: IoBuf, pos: u64) -> SimOp {
        self.issue(Request::Read(buf, pos))
    }
    fn write(&self, vecs: IoVecs, pos: u64) -> SimOp {
        self.issue(Request::Write(vecs, pos))
    }
    fn sync_data(&self) -> SimOp {
        self.issue(Request::Sync)
    }
    fn allocate(&self, pos: u64, len: u64) -> SimOp {
        self.issue(Request::Allocate(pos, len))
    }
    fn punch(&self, pos: u64, len: u64) -> SimOp {
        self.issue(Request::Punch(pos, len))
    }

    fn meta(&self) -> io::Result<Meta> {
        let state = self.handle.disk.state();
        Ok(state.meta(state.description(self.handle.description).ino))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let write = self.handle.disk.state().description(self.handle.description).write;
        self.at_once(OpKind::SetLen, len, |state, ino| {
            if !write {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            state.land(ino, Effect::set_len(len));
            Ok(())
        })
    }
    fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        self.handle.disk.state().try_lock(self.handle.description, lock)
    }
    fn is_locked(&self, lock: Lock) -> io::Result<bool> {
        Ok(self.handle.disk.state().is_locked(self.handle.description, lock))
    }
    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.at_once(OpKind::Attr, 0, |state, ino| {
            state.inode_mut(ino).mode = mode & 0o7777;
            Ok(())
        })
    }
    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        self.at_once(OpKind::Attr, 0, |state, ino| {
            state.inode_mut(ino).owner = (uid, gid);
            Ok(())
        })
    }
    fn copy_access(&self, from: &Self) -> io::Result<()> {
        let meta = from.meta()?;
        self.set_owner(meta.uid, meta.gid)?;
        self.set_mode(meta.mode)
    }
}
