//! The transmission phase of one connection.
//!
//! One task receives and decodes ([`receive`]); it hands each request to a free *slot*, a long-lived task that
//! runs one request at a time ([`super::slots`]); one task sends replies in the order in which they become ready.
//! All of them live on one thread. A request owns its slot and its pages of the arena from the moment its header
//! is accepted until its reply is sent, so a client that does not read its replies stops being read itself.
//!
//! Everything that arrived together is decoded without a pause, so that the slots it wakes run in the same turn
//! of the executor and the disk sees the requests side by side.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::limits::{ARENA_BYTES, READ_PART, WRITE_PART};
use super::outbox::{Outbox, Then};
use super::protocol::{self, Command, Request, error};
use super::slots::{self, Job, Parts, Slot, Task};
use super::stats::Counters;
use super::stream::{End, Input, Stream};
use crate::device::{Geometry, Queue};
use crate::runtime::{Signal, spawn};
use crate::storage::{Arena, IoBuf, IoVecs, PageRun};

/// The state that the tasks of a connection share.
#[derive(Debug)]
pub(super) struct Transmission<S, Q> {
    pub(super) stream: Rc<S>,
    pub(super) queue: Rc<Q>,
    pub(super) disk: Geometry,
    /// READ is answered in chunks.
    pub(super) structured: bool,
    pub(super) counters: Arc<Counters>,
    pub(super) slots: Vec<Slot>,
    pub(super) outbox: Outbox,
    /// The client cannot be reached any more: replies are dropped.
    pub(super) broken: Cell<bool>,
    /// Slots that have a task and no request.
    free: RefCell<Vec<usize>>,
    /// Slots that have a task; they get one when they are first needed.
    started: Cell<usize>,
    arena: RefCell<Arena>,
    /// A slot became free.
    room: Signal,
}

/// A slot with memory, taken for one request or one part of it.
struct Claim {
    slot: usize,
    buf: Option<IoBuf>,
}

impl<S: Stream, Q: Queue> Transmission<S, Q> {
    pub(super) fn new(
        stream: Rc<S>,
        queue: Rc<Q>,
        (disk, structured): (Geometry, bool),
        depth: usize,
        counters: Arc<Counters>,
    ) -> Rc<Self> {
        Rc::new(Transmission {
            stream,
            queue,
            disk,
            structured,
            counters,
            slots: std::iter::repeat_with(Slot::default).take(depth).collect(),
            outbox: Outbox::new(depth),
            broken: Cell::new(false),
            free: RefCell::new(Vec::with_capacity(depth)),
            started: Cell::new(0),
            arena: RefCell::new(Arena::new(IoBuf::zeroed(ARENA_BYTES))),
            room: Signal::new(),
        })
    }

    /// Serves requests until the client leaves; returns when all that were accepted are answered.
    pub(super) async fn run(self: Rc<Self>, mut input: Input<S>) -> End {
        let sender = spawn(self.clone().send_replies());
        let end = self.receive(&mut input).await;
        // Whatever else may come is not looked at; what was accepted still runs and is answered.
        drop(input);
        self.room.until(|| (self.free.borrow().len() == self.started.get()).then_some(())).await;
        for slot in &self.slots {
            slot.close();
        }
        self.outbox.close();
        sender.await;
        self.stream.close();
        end
    }

    /// Receives and dispatches requests; the reason why that ended.
    async fn receive(self: &Rc<Self>, input: &mut Input<S>) -> End {
        loop {
            let header = match input.take().await {
                Ok(header) => header,
                Err(end) => return end,
            };
            let Ok(request) = protocol::parse_request(&header) else {
                return End::Violation("request without its magic");
            };
            if request.command == Command::Disconnect {
                return End::Disconnect;
            }
            if let Err(end) = self.accept(input, request).await {
                return end;
            }
        }
    }

    /// Takes in one request with its payload.
    async fn accept(self: &Rc<Self>, input: &mut Input<S>, request: Request) -> Result<(), End> {
        let stopping = if self.stream.stopping() { Err(error::ESHUTDOWN) } else { Ok(()) };
        if let Err(error) = stopping.and_then(|()| request.check(&self.disk, self.structured)) {
            return self.refuse(input, request, error).await;
        }
        let length = request.length as usize;
        let (bytes, task): (_, fn(IoBuf) -> Task) = match request.command {
            Command::Read => (length.min(READ_PART), Task::Read),
            Command::Write if length > WRITE_PART => return self.accept_parts(input, request).await,
            Command::Write => (length, Task::Write),
            _ => {
                let claim = self.claim(0).await;
                self.slots[claim.slot].start(Job { request, task: Task::NoData, parts: None });
                return Ok(());
            }
        };
        let claim = self.claim(bytes).await;
        let Some(buf) = claim.buf else { unreachable!("a request that was checked has a length") };
        if request.command == Command::Write {
            self.payload(input, claim.slot, &buf).await?;
        }
        self.slots[claim.slot].start(Job { request, task: task(buf), parts: None });
        Ok(())
    }

    /// A WRITE that is larger than the disk's atomic unit: its parts run as they arrive, side by side.
    async fn accept_parts(self: &Rc<Self>, input: &mut Input<S>, request: Request) -> Result<(), End> {
        let count = (request.length as usize).div_ceil(WRITE_PART);
        let parts = Rc::new(Parts::new(count, request.length));
        let mut part = request;
        let mut left = request.length;
        while left > 0 {
            part.length = left.min(u32::try_from(WRITE_PART).unwrap_or(u32::MAX));
            let claim = self.claim(part.length as usize).await;
            let Some(buf) = claim.buf else { unreachable!("a part has a length") };
            self.payload(input, claim.slot, &buf).await?;
            let job = Job { request: part, task: Task::Write(buf), parts: Some(parts.clone()) };
            self.slots[claim.slot].start(job);
            left -= part.length;
            part.offset += u64::from(part.length);
        }
        Ok(())
    }

    async fn payload(&self, input: &mut Input<S>, slot: usize, buf: &IoBuf) -> Result<(), End> {
        let received = input.take_into(buf).await;
        if received.is_err() {
            self.release(slot);
        }
        received
    }

    /// Answers with an error, after the payload is out of the way.
    async fn refuse(self: &Rc<Self>, input: &mut Input<S>, request: Request, error: u32) -> Result<(), End> {
        if request.payload() > super::limits::MAX_PAYLOAD {
            return Err(End::Violation("payload larger than announced as the maximum"));
        }
        input.skip(request.payload() as usize).await?;
        let claim = self.claim(0).await;
        self.slots[claim.slot].start(Job { request, task: Task::Refuse(error), parts: None });
        Ok(())
    }

    /// Waits for a slot, and for memory if `bytes` is not 0.
    async fn claim(self: &Rc<Self>, bytes: usize) -> Claim {
        self.room.until(|| self.try_claim(bytes)).await
    }

    fn try_claim(self: &Rc<Self>, bytes: usize) -> Option<Claim> {
        if self.free.borrow().is_empty() {
            self.start_slot()?;
        }
        let (buf, pages) = match bytes {
            0 => (None, None),
            _ => self.arena.borrow_mut().take(bytes).map(|(buf, pages)| (Some(buf), Some(pages)))?,
        };
        let slot = self.free.borrow_mut().pop()?;
        self.slots[slot].pages.set(pages);
        Some(Claim { slot, buf })
    }

    fn start_slot(self: &Rc<Self>) -> Option<()> {
        let slot = self.started.get();
        if slot == self.slots.len() {
            return None;
        }
        self.started.set(slot + 1);
        self.free.borrow_mut().push(slot);
        spawn(slots::run(self.clone(), slot));
        Some(())
    }

    /// The slot's request is over, and nobody uses its memory.
    pub(super) fn release(&self, slot: usize) {
        let pages: Option<PageRun> = self.slots[slot].pages.take();
        if let Some(pages) = pages {
            self.arena.borrow_mut().give_back(pages);
        }
        self.free.borrow_mut().push(slot);
        self.room.notify();
    }

    /// Gives up on the client; its connection ends.
    pub(super) fn give_up(&self) {
        self.broken.set(true);
        self.stream.close();
    }

    async fn send_replies(self: Rc<Self>) {
        let mut batch = Vec::with_capacity(self.slots.len());
        let mut vecs = IoVecs::new();
        while self.outbox.next(&mut batch, &mut vecs).await {
            if !self.broken.get() {
                let (result, back) = self.stream.send(vecs).await;
                vecs = back;
                if result.is_err() {
                    self.give_up();
                }
            }
            vecs.clear();
            for (slot, then) in batch.drain(..) {
                match then {
                    Then::Done => self.release(slot),
                    Then::More | Then::Hold => self.slots[slot].part_sent(),
                }
            }
        }
    }
}
