//! What a process has open: the control device, its threads, disks.

use std::io;
use std::sync::Arc;

use super::admin::{Call, Step};
use super::server::Server;
use super::state::Shared;
use crate::storage::sim::JoinHandle;
use crate::ublk::driver::{Admin, AdminCall, QueueHandle};

/// The open control device.
#[derive(Debug)]
pub struct SimAdmin {
    server: Server,
    bytes: Vec<u8>,
}

impl SimAdmin {
    pub(super) const fn new(server: Server) -> SimAdmin {
        SimAdmin { server, bytes: Vec::new() }
    }
}

impl Admin for SimAdmin {
    fn run(&mut self, call: &AdminCall<'_>) -> io::Result<i32> {
        self.server.check();
        let mut bytes = vec![0; usize::from(call.len)];
        let len = bytes.len().min(call.send.len());
        bytes[..len].copy_from_slice(&call.send[..len]);
        let path: Vec<u8> = bytes.drain(..usize::from(call.path_len.min(call.len))).collect();
        let shared = self.server.shared().clone();
        let id = shared.state().call(Call {
            pid: self.server.process.pid,
            privileged: self.server.process.privileged.get(),
            number: call.number,
            device: call.device,
            queue: call.queue,
            data: call.data,
            path,
            bytes,
            result: None,
            deadline: None,
            step: Step::Begin,
        });
        let done = || {
            let mut state = shared.state();
            state.calls.get(&id).is_some_and(|call| call.result.is_some()).then(|| state.calls.remove(&id))
        };
        let ended = self.server.until(call.bound, done).flatten();
        let Some(call) = ended else { return Err(io::ErrorKind::TimedOut.into()) };
        self.bytes = [call.path, call.bytes].concat();
        call.result.ok_or_else(|| io::ErrorKind::TimedOut.into())
    }

    fn received(&self, bytes: &mut [u8]) {
        let len = bytes.len().min(self.bytes.len());
        bytes[..len].copy_from_slice(&self.bytes[..len]);
    }
}

/// A queue's thread.
#[derive(Debug)]
pub struct SimThread(JoinHandle<()>);

impl SimThread {
    pub(super) const fn new(thread: JoinHandle<()>) -> SimThread {
        SimThread(thread)
    }
}

impl QueueHandle for SimThread {
    fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
    fn join(self) {}
}

/// The open disk.
#[derive(Debug)]
pub struct SimNode {
    shared: Arc<Shared>,
    id: u32,
}

impl SimNode {
    pub(super) fn open(shared: &Arc<Shared>, id: u32) -> std::result::Result<SimNode, i32> {
        let mut state = shared.state();
        let dev = state.devices.get_mut(&id).filter(|dev| dev.disk && !dev.stopping).ok_or(libc::ENOENT)?;
        dev.openers += 1;
        drop(state);
        Ok(SimNode { shared: shared.clone(), id })
    }

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) const fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for SimNode {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Some(dev) = state.devices.get_mut(&self.id) {
            dev.openers -= 1;
        }
        state.forget_deleted();
    }
}
