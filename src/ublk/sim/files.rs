//! The open character device: one process at a time, its descriptors, and what its end means.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::server::current_thread;
use super::state::{OpenFile, Shared, State};
use crate::storage::IoBuf;
use crate::ublk::driver::CharDevice;
use crate::ublk::uapi::{IoCmd, IoDesc, flag, op, state};
use crate::{Error, Result};

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    file: u64,
    device: u32,
    pid: u32,
}

impl Drop for Inner {
    /// The last reference of a living process: the driver knows at once. What a dead one had open is noticed later.
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if state.alive.contains(&self.pid) {
            state.release(self.file);
        }
    }
}

/// An open `/dev/ublkcN`.
#[derive(Clone, Debug)]
pub struct SimChar(Arc<Inner>);

impl SimChar {
    pub(super) fn open(shared: &Arc<Shared>, id: u32, pid: u32) -> std::result::Result<SimChar, i32> {
        let mut state = shared.state();
        let file = state.number();
        let dev = state.devices.get_mut(&id).ok_or(libc::ENOENT)?;
        if dev.opened.is_some() {
            return Err(libc::EBUSY);
        }
        dev.opened = Some(file);
        state.files.insert(file, OpenFile { device: id, pid, closed: false });
        drop(state);
        Ok(SimChar(Arc::new(Inner { shared: shared.clone(), file, device: id, pid })))
    }
}

/// The descriptors of a queue. They refer to the open file, as a mapping does.
#[derive(Debug)]
pub struct SimDescriptors {
    file: SimChar,
    queue: u16,
}

/// A command on its way; it refers to the open file, too.
#[derive(Debug)]
pub struct SimOp {
    file: SimChar,
    op: u64,
}

impl Future for SimOp {
    type Output = i32;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<i32> {
        let mut state = self.file.0.shared.state();
        let op = state.ops.get_mut(&self.op).expect("polled until it is done, and while its process lives");
        match op.result {
            Some(result) => Poll::Ready(result),
            None => {
                op.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for SimOp {
    fn drop(&mut self) {
        let mut state = self.file.0.shared.state();
        state.ops.remove(&self.op);
        let submitters = std::mem::take(&mut state.submitters);
        drop(state);
        submitters.into_iter().for_each(std::task::Waker::wake);
    }
}

impl SimChar {
    fn copy(&self, queue: u16, tag: u16, kind: u32, buf: &IoBuf) -> io::Result<()> {
        let Inner { shared, file, .. } = &*self.0;
        let copied = shared.state().user_copy(*file, queue, tag, kind, buf);
        copied.map_err(io::Error::from_raw_os_error)
    }
}

impl CharDevice for SimChar {
    type Descriptors = SimDescriptors;
    type Op = SimOp;

    fn map(&self, queue: u16, depth: u16) -> Result<SimDescriptors> {
        let Inner { device, pid, .. } = *self.0;
        let mut state = self.0.shared.state();
        let bound = !state.profile.is(6, 15);
        let refused = match state.devices.get_mut(&device) {
            None => Some(libc::ENODEV),
            Some(dev) if queue >= dev.info.nr_hw_queues || depth != dev.info.queue_depth => {
                Some(libc::EINVAL)
            }
            Some(dev) if bound && dev.mapped_by.is_some_and(|by| by != pid) => Some(libc::EINVAL),
            Some(dev) => {
                dev.mapped_by = Some(pid);
                None
            }
        };
        match refused {
            None => Ok(SimDescriptors { file: self.clone(), queue }),
            Some(errno) => {
                let source = std::io::Error::from_raw_os_error(errno);
                Err(Error::io(format!("mmap of queue {queue}"), source))
            }
        }
    }

    fn descriptor(descriptors: &SimDescriptors, tag: u16) -> IoDesc {
        let SimDescriptors { file, queue } = descriptors;
        let state = file.0.shared.state();
        let queue = state.devices.get(&file.0.device).and_then(|dev| dev.queues.get(usize::from(*queue)));
        queue.and_then(|queue| queue.descs.get(usize::from(tag)).copied()).expect("a tag of this queue")
    }

    fn io(&self, command: u32, payload: IoCmd, buf: Option<IoBuf>) -> SimOp {
        let named = buf.as_ref().filter(|buf| buf.entry().is_none());
        let payload = IoCmd { addr: named.map_or(0, |buf| buf.as_ptr() as u64), ..payload };
        let Inner { shared, file, .. } = &*self.0;
        let op = shared.state().mutated_io(current_thread(), *file, command, payload, buf);
        SimOp { file: self.clone(), op }
    }

    fn copy_from_request(&self, queue: u16, tag: u16, buf: &IoBuf) -> io::Result<()> {
        self.copy(queue, tag, op::WRITE, buf)
    }

    fn copy_to_request(&self, queue: u16, tag: u16, buf: &IoBuf) -> io::Result<()> {
        self.copy(queue, tag, op::READ, buf)
    }
}

impl State {
    /// A process ends: its files are closed, its rings go with all that runs on them.
    pub(super) fn process_died(&mut self, pid: u32) {
        self.alive.remove(&pid);
        self.ops.retain(|_, op| op.thread.pid != pid);
        self.calls.retain(|_, call| call.pid != pid);
        self.files.values_mut().filter(|file| file.pid == pid).for_each(|file| file.closed = true);
    }

    /// The driver notices that a character device was let go of.
    pub(super) fn release(&mut self, file: u64) {
        let Some(OpenFile { device: id, .. }) = self.files.remove(&file) else { return };
        self.counts.released += 1;
        let resets_itself = self.profile.is(6, 15);
        let Some(dev) = self.devices.get_mut(&id) else { return };
        dev.opened = None;
        let state = dev.info.state;
        if state == state::LIVE {
            self.server_died(id);
        } else {
            self.abort_idle(id);
        }
        let Some(dev) = self.devices.get_mut(&id) else { return };
        if state == state::LIVE {
            let (next, pid) = match (dev.has(flag::USER_RECOVERY), dev.has(flag::USER_RECOVERY_FAIL_IO)) {
                _ if dev.stopping => (state, dev.info.ublksrv_pid),
                (false, _) => (state::DEAD, -1),
                (true, true) => (state::FAIL_IO, -1),
                (true, false) => (state::QUIESCED, -1),
            };
            (dev.info.state, dev.info.ublksrv_pid, dev.canceling) = (next, pid, false);
            dev.disk &= next != state::DEAD;
        }
        let some_ready = dev.queues.iter().any(super::state::Queue::is_ready);
        if resets_itself || !some_ready {
            dev.queues.iter_mut().for_each(super::state::Queue::reset);
        }
        if resets_itself {
            dev.mapped_by = None;
        }
        self.forget_deleted();
    }
}
