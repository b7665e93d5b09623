//! What a slot does with a request.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::connection::Transmission;
use super::outbox::{Outgoing, Then};
use super::protocol::{Command, Reply, Request, wire_error};
use super::stream::Stream;
use crate::device::Queue;
use crate::runtime::Signal;
use crate::storage::{IoBuf, PageRun};

/// What to do, with the memory for it.
#[derive(Debug)]
pub(super) enum Task {
    /// Answer with this error number.
    Refuse(u32),
    /// Read by way of this buffer, which may be shorter than the request.
    Read(IoBuf),
    /// Write this.
    Write(IoBuf),
    /// A command without data.
    NoData,
}

/// One request, or one part of a long WRITE.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) task: Task,
    pub(super) parts: Option<Rc<Parts>>,
}

/// The common fate of the parts of a long WRITE.
#[derive(Debug)]
pub(super) struct Parts {
    left: Cell<usize>,
    error: Cell<u32>,
    /// Bytes of all parts.
    length: u32,
}

impl Parts {
    pub(super) fn new(count: usize, length: u32) -> Parts {
        Parts { left: Cell::new(count), error: Cell::new(0), length }
    }

    /// Notes the end of a part. After the last one: the first error, or 0, and the length of the whole.
    fn finish(&self, error: u32) -> Option<(u32, u32)> {
        if self.error.get() == 0 {
            self.error.set(error);
        }
        self.left.set(self.left.get() - 1);
        (self.left.get() == 0).then_some((self.error.get(), self.length))
    }
}

/// A place for one running request.
#[derive(Debug, Default)]
pub(super) struct Slot {
    job: RefCell<Option<Job>>,
    /// The pages that the request uses.
    pub(super) pages: Cell<Option<PageRun>>,
    part_sent: Cell<bool>,
    closed: Cell<bool>,
    wake: Signal,
}

impl Slot {
    /// Gives the slot's task something to do.
    pub(super) fn start(&self, job: Job) {
        self.job.replace(Some(job));
        self.wake.notify();
    }

    /// The part of the reply that was pushed last is sent: its memory can be used again.
    pub(super) fn part_sent(&self) {
        self.part_sent.set(true);
        self.wake.notify();
    }

    /// Ends the slot's task.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.wake.notify();
    }

    async fn next_job(&self) -> Option<Job> {
        self.wake
            .until(|| match self.job.take() {
                Some(job) => Some(Some(job)),
                None => self.closed.get().then_some(None),
            })
            .await
    }

    async fn wait_part_sent(&self) {
        self.wake.until(|| self.part_sent.take().then_some(())).await;
    }
}

/// The task of slot `index`: one request after the other until the slot is closed.
pub(super) async fn run<S: Stream, Q: Queue>(connection: Rc<Transmission<S, Q>>, index: usize) {
    while let Some(job) = connection.slots[index].next_job().await {
        let request = job.request;
        let result = match job.task {
            Task::Read(buf) => {
                connection.read(index, request, buf).await;
                continue;
            }
            Task::Refuse(error) => Err(error),
            Task::Write(buf) => {
                let written = connection.queue.write(request.offset, buf, request.fua()).await;
                written.map_err(wire_error)
            }
            Task::NoData => connection.without_data(request).await,
        };
        connection.finish(index, request, job.parts, result);
    }
}

impl<S: Stream, Q: Queue> Transmission<S, Q> {
    async fn without_data(&self, request: Request) -> Result<(), u32> {
        let (pos, len, fua) = (request.offset, u64::from(request.length), request.fua());
        let result = match request.command {
            Command::Flush => self.queue.flush().await,
            Command::Trim => self.queue.discard(pos, len, fua).await,
            Command::WriteZeroes => self.queue.write_zeroes(pos, len, request.unmap(), fua).await,
            Command::Read | Command::Write | Command::Disconnect | Command::Unknown(_) => {
                unreachable!("has data, or was refused")
            }
        };
        result.map_err(wire_error)
    }

    /// Answers a request that sends no data back, or notes that one of its parts is done.
    fn finish(&self, slot: usize, request: Request, parts: Option<Rc<Parts>>, result: Result<(), u32>) {
        let error = result.err().unwrap_or(0);
        let (error, length) = match parts {
            None => (error, request.length),
            Some(parts) => match parts.finish(error) {
                Some(whole) => whole,
                None => return self.release(slot),
            },
        };
        self.counters.answered(request.command, length, error != 0);
        let chunk = request.command == Command::Read && self.structured;
        let reply = if chunk { Reply::Failed { error } } else { Reply::Simple { error } };
        self.send(slot, request, Some(reply), None, Then::Done);
    }

    /// Reads part by part through one buffer. A part is sent before the next one is read.
    async fn read(&self, slot: usize, request: Request, buf: IoBuf) {
        let mut done = 0;
        while done < request.length {
            let length = (request.length - done).min(u32::try_from(buf.len()).unwrap_or(u32::MAX));
            let offset = request.offset + u64::from(done);
            let data = buf.slice(0..length as usize);
            if let Err(errno) = self.queue.read(offset, data.clone()).await {
                return self.read_failed(slot, request, wire_error(errno), done > 0);
            }
            let reply = match self.structured {
                true => Some(Reply::Data { offset, length, done: done + length == request.length }),
                false => (done == 0).then_some(Reply::Simple { error: 0 }),
            };
            done += length;
            let then = match (done == request.length, self.structured) {
                (true, _) => Then::Done,
                (false, true) => Then::More,
                (false, false) => Then::Hold,
            };
            if then == Then::Done {
                self.counters.answered(Command::Read, request.length, false);
            }
            self.send(slot, request, reply, Some(data), then);
            if then == Then::Done {
                return;
            }
            self.slots[slot].wait_part_sent().await;
            if self.broken.get() {
                return self.send(slot, request, None, None, Then::Done);
            }
        }
    }

    fn read_failed(&self, slot: usize, request: Request, error: u32, begun: bool) {
        if begun && !self.structured {
            // The header said success and data was promised: "MUST immediately initiate a hard disconnect".
            self.counters.answered(Command::Read, request.length, true);
            self.give_up();
            return self.send(slot, request, None, None, Then::Done);
        }
        self.finish(slot, request, None, Err(error));
    }

    fn send(&self, slot: usize, request: Request, reply: Option<Reply>, data: Option<IoBuf>, then: Then) {
        self.outbox.push(Outgoing { slot, cookie: request.cookie, reply, data, then });
    }
}
