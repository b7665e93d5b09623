//! The block layer's side: requests, from their submission to their end, which comes exactly once.

use std::task::Waker;

use super::state::{Stage, State};
use crate::ublk::uapi::{IoDesc, flag, io_flag, io_result, op};
use crate::units::SECTOR;

/// A request as the driver hands it to a server.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Bio {
    /// Operation and flags.
    pub op_flags: u32,
    /// First sector, of 512 bytes.
    pub sector: u64,
    /// Length in sectors.
    pub sectors: u32,
    /// Data of a write; as many bytes as the sectors have, unless somebody wants to see what happens.
    pub data: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) bio: Bio,
    /// Bytes that are done, after short counts.
    done: usize,
    /// The end: what was read, or an errno.
    pub(super) result: Option<Result<Vec<u8>, i32>>,
    pub(super) waker: Option<Waker>,
    /// Handed to a server that then died.
    reissue: bool,
    /// What the server that has it has written for a read, with USER_COPY.
    pub(super) given: Vec<u8>,
    /// Bytes of a write that the server that has it has read, with USER_COPY.
    pub(super) taken: usize,
}

impl Request {
    pub(super) fn is(&self, kind: u32) -> bool {
        self.bio.op_flags & op::MASK == kind
    }

    /// Data of a write that is left of it.
    pub(super) fn left(&self) -> &[u8] {
        self.bio.data.get(self.done..).unwrap_or_default()
    }

    /// What is left of it.
    fn rest(&self) -> (u64, u32) {
        let done = self.done as u64 / SECTOR;
        let left = u64::from(self.bio.sectors).saturating_sub(done);
        (self.bio.sector.wrapping_add(done), u32::try_from(left).unwrap_or(0))
    }
}

impl State {
    /// A new request of device `id` for its queue `queue`.
    pub(super) fn submit(&mut self, id: u32, queue: usize, bio: Bio) -> u64 {
        self.counts.requests += 1;
        let number = self.number();
        let request =
            Request { bio, done: 0, result: None, waker: None, reissue: false, given: Vec::new(), taken: 0 };
        self.requests.insert(number, request);
        let refused = match self.devices.get(&id) {
            None => Some(libc::ENXIO),
            Some(dev) if !dev.disk || dev.stopping => Some(libc::EIO),
            Some(dev) if dev.info.state == crate::ublk::uapi::state::FAIL_IO => Some(libc::EIO),
            Some(_) => None,
        };
        match refused {
            Some(errno) => self.end(number, Err(errno)),
            None => {
                let dev = self.devices.get_mut(&id).expect("looked up above");
                let queues = dev.queues.len();
                dev.queues[queue % queues].waiting.push_back(number);
            }
        }
        number
    }

    /// Ends a request.
    pub(super) fn end(&mut self, number: u64, result: Result<Vec<u8>, i32>) {
        let Some(request) = self.requests.get_mut(&number) else {
            self.broken.push(format!("request {number} was ended after its user had its result"));
            return;
        };
        if request.result.is_some() {
            self.broken.push(format!("request {number} was ended twice"));
            return;
        }
        self.counts.ended += 1;
        request.result = Some(result);
        if let Some(waker) = request.waker.take() {
            waker.wake();
        }
    }

    /// Hands the oldest waiting request of a queue to one of its idle tags.
    pub(super) fn deliver(&mut self, id: u32, index: u16) {
        let Some(dev) = self.devices.get_mut(&id) else { return };
        let get_data = dev.wants_get_data();
        let queue = &mut dev.queues[usize::from(index)];
        let idle = (0..queue.tags.len()).filter(|&tag| matches!(queue.tags[tag].stage, Stage::Idle(_)));
        let idle: Vec<usize> = idle.collect();
        let at = idle[self.rng.index(idle.len())];
        let Some(number) = queue.waiting.pop_front() else { return };
        let tag = &mut queue.tags[at];
        let Stage::Idle(fetch) = tag.stage else { return };
        tag.request = Some(number);
        let request = self.requests.get_mut(&number).expect("it waits");
        (request.given, request.taken) = (Vec::new(), 0);
        let (sector, sectors) = request.rest();
        let addr = tag.buf.as_ref().map_or(0, |buf| buf.as_ptr() as u64);
        queue.descs[at] =
            IoDesc { op_flags: request.bio.op_flags, nr_sectors: sectors, start_sector: sector, addr };
        self.counts.delivered += 1;
        self.counts.reissued += u64::from(std::mem::take(&mut request.reissue));
        if get_data && request.is(op::WRITE) {
            tag.stage = Stage::Asking;
            return self.end_op(fetch, io_result::NEED_GET_DATA);
        }
        self.hand_over(id, index, at, fetch);
    }

    /// The server has answered NEED_GET_DATA.
    pub(super) fn give_data(&mut self, id: u32, index: u16, at: u16) {
        let Some(dev) = self.devices.get(&id) else { return };
        let at = usize::from(at);
        if let Stage::Getting(command) = dev.queues[usize::from(index)].tags[at].stage {
            self.counts.get_data += 1;
            self.hand_over(id, index, at, command);
        }
    }

    /// Copies the data of a write into the tag's buffer, or puts the request's pages into the tag's entry of the buffer
    /// table, if there is room; and completes the server's command.
    fn hand_over(&mut self, id: u32, index: u16, at: usize, command: u64) {
        let Some(dev) = self.devices.get_mut(&id) else { return };
        let queue = &mut dev.queues[usize::from(index)];
        let tag = &mut queue.tags[at];
        tag.stage = Stage::Serving;
        let request = tag.request.and_then(|number| self.requests.get(&number));
        if let (Some(request), Some(buf)) = (request.filter(|r| r.is(op::WRITE) || r.is(op::READ)), &tag.buf)
        {
            if buf.entry().is_some() && self.rng.chance(1, 8) {
                queue.descs[at].op_flags |= io_flag::NEED_REG_BUF;
            } else if request.is(op::WRITE) {
                let data = request.left();
                buf.by_kernel().copy_from(0, &data[..data.len().min(buf.len())]);
            } else if buf.entry().is_some() {
                // Whatever the reader's memory held.
                buf.by_kernel().copy_from(0, &vec![0xee; buf.len()]);
            }
        }
        self.end_op(command, io_result::OK);
    }

    /// What a commit does to its request. The tag is free again.
    pub(super) fn commit(&mut self, id: u32, index: u16, at: usize, result: i32) {
        let Some(dev) = self.devices.get_mut(&id) else { return };
        let copies = dev.has(flag::USER_COPY);
        let queue = &mut dev.queues[usize::from(index)];
        let registered = queue.descs[at].op_flags & io_flag::NEED_REG_BUF == 0;
        let tag = &mut queue.tags[at];
        let entry = tag.buf.as_ref().is_some_and(|buf| buf.entry().is_some());
        let Some(number) = tag.request.take() else { return };
        let Some(request) = self.requests.get_mut(&number) else { return };
        let moves = request.is(op::READ) || request.is(op::WRITE);
        let left = request.rest().1 as usize * SECTOR as usize;
        let Ok(count) = usize::try_from(result) else {
            return self.end(number, Err(to_user(-result)));
        };
        if !moves {
            if count > 0 {
                self.broke(format!("count {count} for a request without data"));
            }
            return self.end(number, Ok(Vec::new()));
        }
        if request.is(op::READ) {
            if count == 0 {
                self.broke("count 0 for a read".to_owned());
                return self.end(number, Err(libc::EIO));
            }
            let mut bytes = vec![0; count.min(left)];
            match &tag.buf {
                _ if request.given.len() == bytes.len() => bytes.copy_from_slice(&request.given),
                Some(buf) if buf.len() >= bytes.len() => buf.by_kernel().copy_to(0, &mut bytes),
                _ => {}
            }
            request.bio.data.truncate(request.done);
            request.bio.data.extend(bytes);
        }
        let copied = if request.is(op::READ) { request.given.len() } else { request.taken };
        let unseen = entry && registered && copied == 0;
        self.counts.unseen += u64::from(unseen);
        if copies && !unseen && copied != left {
            self.broken.push(format!("{copied} bytes copied of a request of {left}"));
        }
        request.done += count.min(left) / SECTOR as usize * SECTOR as usize;
        if count != left {
            self.broken.push(format!("count {count} for a request of {left} bytes"));
        }
        if request.rest().1 == 0 {
            let data = if request.is(op::READ) { std::mem::take(&mut request.bio.data) } else { Vec::new() };
            return self.end(number, Ok(data));
        }
        // The block layer sends the rest again.
        if let Some(dev) = self.devices.get_mut(&id) {
            dev.queues[usize::from(index)].waiting.push_front(number);
        }
    }

    /// The server of a device is gone: the table "when the server dies" of the interface.
    pub(super) fn server_died(&mut self, id: u32) {
        let Some(dev) = self.devices.get_mut(&id) else { return };
        let (hold, reissue) = (dev.has(flag::USER_RECOVERY), dev.has(flag::USER_RECOVERY_REISSUE));
        let fail = dev.has(flag::USER_RECOVERY_FAIL_IO) || !hold;
        let stopping = dev.stopping;
        let (mut failed, mut ended) = (Vec::new(), Vec::new());
        for queue in &mut dev.queues {
            for tag in queue.tags.iter_mut().rev() {
                if let Stage::Idle(op) | Stage::Getting(op) = tag.stage {
                    ended.push(op);
                }
                tag.stage = Stage::Aborted;
                let Some(number) = tag.request.take() else { continue };
                if hold && reissue && !stopping {
                    queue.waiting.push_front(number);
                    if let Some(request) = self.requests.get_mut(&number) {
                        request.reissue = true;
                    }
                } else {
                    failed.push(number);
                }
            }
            if fail || stopping {
                failed.extend(queue.waiting.drain(..));
            }
        }
        self.counts.failed_by_death += failed.len() as u64;
        for number in failed {
            self.end(number, Err(libc::EIO));
        }
        for op in ended {
            self.end_op(op, io_result::ABORT);
        }
    }
}

/// The errno that a user sees for one that a server committed: the block layer knows only some.
fn to_user(errno: i32) -> i32 {
    const KNOWN: [i32; 10] = [
        libc::EOPNOTSUPP,
        libc::ETIMEDOUT,
        libc::ENOSPC,
        libc::ENOLINK,
        libc::EREMOTEIO,
        libc::EBADE,
        libc::ENODATA,
        libc::EILSEQ,
        libc::ENOMEM,
        libc::EAGAIN,
    ];
    if KNOWN.contains(&errno) { errno } else { libc::EIO }
}
