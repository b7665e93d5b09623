//! The data plane: one thread, ring and executor for each queue, one long-lived task for each tag.
//!
//! A tag's life: FETCH_REQ; its completion says that a request stands in the tag's descriptor; the request runs on
//! the disk's [`Queue`]; COMMIT_AND_FETCH_REQ hands over the result and asks for the next one; and so on, until a
//! completion says ABORT. The thread that fetched a tag is the only one that may commit it. Nothing on this ring
//! carries IO_DRAIN or IO_LINK: an idle fetch never completes, and a drain would wait for it for ever.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::{pending, poll_fn};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::Instant;

use io_uring::{opcode, types};

use super::bounds;
use super::mailbox::{Mailbox, Order};
use super::mapping::Descriptors;
use super::request::{self, Request};
use super::stats::QueueStats;
use super::uapi::{Command, IoCmd, IoDesc, io_result};
use crate::device::{Disk, Queue};
use crate::runtime::{self, Op, Payload, RingOptions, Runtime, spawn, thread};
use crate::storage::IoBuf;
use crate::{Error, Kind, Result};

/// What a queue's thread needs to know before it can fetch.
#[derive(Clone, Debug)]
pub(super) struct QueueSpec {
    pub(super) device: u32,
    pub(super) index: u16,
    pub(super) depth: u16,
    /// Bytes of each tag's buffer.
    pub(super) max_io: usize,
    /// CPUs whose requests the queue gets, one bit each.
    pub(super) cpus: Vec<u8>,
    /// FETCH_REQ and COMMIT_AND_FETCH_REQ in the encoding of this driver.
    pub(super) fetch: u32,
    pub(super) commit: u32,
}

/// A queue's share of the open character device.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) descriptors: Descriptors,
    pub(super) char_device: Arc<File>,
}

/// Handle on a queue's thread.
#[derive(Debug)]
pub(super) struct QueueThread {
    index: u16,
    mailbox: Arc<Mailbox>,
    pub(super) stats: Arc<QueueStats>,
    attach: Sender<Attachment>,
    /// Answers of the two steps of the start: prepared, fetched. With what could not be had and is not vital.
    steps: Receiver<Result<Vec<String>>>,
    thread: JoinHandle<()>,
}

impl QueueThread {
    /// Starts the thread, which makes its ring and buffers and then waits for [`QueueThread::attach`].
    pub(super) fn spawn<D: Disk>(disk: &D, spec: QueueSpec) -> Result<QueueThread> {
        let (mailbox, stats) = (Arc::new(Mailbox::default()), Arc::new(QueueStats::default()));
        let (attach, attached) = channel();
        let (steps_in, steps) = channel();
        let own = Thread { disk: disk.clone(), mailbox: mailbox.clone(), stats: stats.clone(), attached };
        let index = spec.index;
        let thread = std::thread::Builder::new()
            .name(format!("ublk{}q{index}", spec.device))
            .spawn(move || own.run(spec, &steps_in))
            .map_err(|e| Error::io(format!("start of the thread of queue {index}"), e))?;
        Ok(QueueThread { index, mailbox, stats, attach, steps, thread })
    }

    /// Waits for the end of the current step of the start.
    pub(super) fn wait_step(&self) -> Result<Vec<String>> {
        let failed =
            |what: &str| Error::new(Kind::Io, format!("the thread of ublk queue {} {what}", self.index));
        match self.steps.recv_timeout(bounds::THREAD) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(failed("did not get ready in time")),
            Err(RecvTimeoutError::Disconnected) => Err(failed("ended early")),
        }
    }

    /// Lets the thread fetch all its tags.
    pub(super) fn attach(&self, attachment: Attachment) {
        // A thread that is gone is reported by the next `wait_step`.
        let _ = self.attach.send(attachment);
    }

    pub(super) fn send(&self, order: Order) {
        self.mailbox.send(order);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until the thread has ended and its ring is closed.
    pub(super) fn join(self, end: Instant) -> Result<()> {
        // A thread that still waits to be attached sees that nobody will.
        drop(self.attach);
        while !self.thread.is_finished() {
            if Instant::now() >= end {
                return Err(Error::new(
                    Kind::Io,
                    format!("the thread of ublk queue {} did not end", self.index),
                ));
            }
            std::thread::sleep(bounds::POLL);
        }
        // It cannot have panicked: that aborts the process.
        let _ = self.thread.join();
        Ok(())
    }
}

/// A panic in a queue's thread must not leave a living process behind: its users would hang for ever. A dead one
/// is followed by the next server.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "cowdisk: a queue thread panicked: the process aborts, so that the next server can take over"
            );
            std::process::abort();
        }
    }
}

/// What moves to the thread.
struct Thread<D> {
    disk: D,
    mailbox: Arc<Mailbox>,
    stats: Arc<QueueStats>,
    attached: Receiver<Attachment>,
}

impl<D: Disk> Thread<D> {
    fn run(self, spec: QueueSpec, steps: &Sender<Result<Vec<String>>>) {
        let _guard = AbortOnPanic;
        let (runtime, buffers) = match prepare(&spec) {
            Ok((runtime, buffers, warnings)) => {
                let _ = steps.send(Ok(warnings));
                (runtime, buffers)
            }
            Err(e) => {
                let _ = steps.send(Err(e));
                return;
            }
        };
        // Not in the ring yet, so it may sleep elsewhere.
        let Ok(attachment) = self.attached.recv() else { return };
        let attachment = Rc::new(attachment);
        let Thread { disk, mailbox, stats, .. } = self;
        let (ours, orders, steps) = (attachment.clone(), mailbox.clone(), steps.clone());
        runtime.block_on(async move {
            let queue = disk.queue(usize::from(spec.index));
            let served =
                Rc::new(Served { spec, queue, attachment: ours, buffers, stats, state: State::default() });
            serve(served, &orders, &steps).await;
        });
        mailbox.close();
        // The order of teardown: ring, mapping, character device. Only then can DEL_DEV end.
        drop(runtime);
        drop(attachment);
    }
}

/// Everything that can fail or take time, before the first fetch. Reclaim first: rings and their workers inherit it.
fn prepare(spec: &QueueSpec) -> Result<(Runtime, IoBuf, Vec<String>)> {
    let mut warnings = Vec::new();
    let mut wish = |what: &str, result: std::io::Result<()>| {
        if let Err(e) = result {
            warnings.push(format!("queue {}: {what}: {e}", spec.index));
        }
    };
    wish("PR_SET_IO_FLUSHER", thread::set_io_flusher());
    wish("pinning to the queue's CPUs", thread::pin_within(&spec.cpus).map(drop));
    let buffers = IoBuf::zeroed(usize::from(spec.depth) * spec.max_io);
    wish("locking of buffers", thread::lock_once_used(&buffers));
    let entries = (u32::from(spec.depth) * 2).next_power_of_two().clamp(64, 4096);
    let what = || format!("io_uring_setup for ublk queue {}", spec.index);
    let runtime = Runtime::new(RingOptions { entries }).map_err(|e| Error::io(what(), e))?;
    Ok((runtime, buffers, warnings))
}

/// What the tasks of a queue share.
struct Served<Q> {
    spec: QueueSpec,
    queue: Rc<Q>,
    attachment: Rc<Attachment>,
    /// One buffer of `max_io` bytes for each tag.
    buffers: IoBuf,
    stats: Arc<QueueStats>,
    state: State,
}

#[derive(Default)]
struct State {
    /// Tags that are fetched or executing.
    live: Cell<u16>,
    /// Requests between fetch and commit.
    executing: Cell<u16>,
    /// New requests are kept, neither executed nor committed; the driver delivers them to the next server.
    hold: Cell<bool>,
    /// The thread stays even without a tag.
    park: Cell<bool>,
    /// All tags were fetched once.
    started: Cell<bool>,
    /// The first fetch that failed, as minus errno.
    failed: Cell<Option<i32>>,
    /// The queue's main task, which waits for a change of the above.
    waker: RefCell<Option<Waker>>,
}

impl State {
    fn changed(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl<Q: Queue> Served<Q> {
    fn buffer(&self, tag: u16) -> IoBuf {
        let start = usize::from(tag) * self.spec.max_io;
        self.buffers.slice(start..start + self.spec.max_io)
    }

    /// Starts a command for `tag`. The driver copies into and out of the tag's buffer until the next command, so
    /// the running operation keeps it.
    fn command(&self, command: u32, tag: u16, result: i32) -> Op {
        let buf = self.buffer(tag);
        let payload = IoCmd { q_id: self.spec.index, tag, result, addr: buf.as_ptr() as u64 };
        let target = types::Fd(self.attachment.char_device.as_raw_fd());
        let entry = opcode::UringCmd16::new(target, command).cmd(payload.to_bytes()).build();
        runtime::submit(entry, Payload::Buf(buf))
    }

    async fn execute(&self, tag: u16, desc: &IoDesc) -> i32 {
        self.stats.begin();
        let outcome = match Request::parse(desc, self.spec.max_io) {
            Ok(request) => request.run(&*self.queue, &self.buffer(tag)).await,
            Err(errno) => Err(errno),
        };
        let bytes = u64::from(desc.nr_sectors) * crate::units::SECTOR;
        self.stats.end(desc.op_flags, outcome.is_ok().then_some(bytes));
        outcome.unwrap_or_else(request::failure)
    }

    /// The whole life of a tag; `command` is its first fetch.
    async fn serve_tag(self: Rc<Self>, tag: u16, mut command: Op) {
        let state = &self.state;
        loop {
            match command.await.raw {
                io_result::OK => {}
                // The second: the ring itself is going away.
                io_result::ABORT | CANCELLED => break,
                code => {
                    self.unexpected(tag, code);
                    break;
                }
            }
            if state.hold.get() {
                pending::<()>().await;
            }
            state.executing.set(state.executing.get() + 1);
            let desc = self.attachment.descriptors.read(tag);
            let result = self.execute(tag, &desc).await;
            command = self.command(self.spec.commit, tag, result);
            state.executing.set(state.executing.get() - 1);
            if state.hold.get() {
                state.changed();
            }
        }
        state.live.set(state.live.get() - 1);
        state.changed();
    }

    /// A fetch that fails at the start is an error of the start. Later the request of that tag would hang for ever.
    fn unexpected(&self, tag: u16, code: i32) {
        if self.state.started.get() {
            let QueueSpec { device, index, .. } = self.spec;
            eprintln!(
                "cowdisk: ublk device {device}: queue {index}, tag {tag}: the driver answered {code}: aborting"
            );
            std::process::abort();
        }
        self.state.failed.set(self.state.failed.get().or(Some(code)));
    }

    /// The answer to the second step of the start.
    fn fetched(&self) -> Result<Vec<String>> {
        let what = || format!("ublk {} on queue {}", super::uapi::io::FETCH_REQ.name, self.spec.index);
        match self.state.failed.get() {
            None => Ok(Vec::new()),
            Some(code) => Err(Error::io(what(), std::io::Error::from_raw_os_error(-code))),
        }
    }
}

const CANCELLED: i32 = -libc::ECANCELED;

/// Fetches every tag, then waits for orders until all tags are gone.
async fn serve<Q: Queue>(served: Rc<Served<Q>>, orders: &Mailbox, steps: &Sender<Result<Vec<String>>>) {
    served.state.live.set(served.spec.depth);
    for tag in 0..served.spec.depth {
        let first = served.command(served.spec.fetch, tag, 0);
        spawn(served.clone().serve_tag(tag, first));
    }
    submitted().await;
    served.state.started.set(served.state.failed.get().is_none());
    let _ = steps.send(served.fetched());
    while let Some(order) = next_order(&served.state, orders).await {
        obey(&served, order).await;
    }
}

/// Done when every operation started before is in the driver's hands: entries are taken in order, and ublk's
/// commands never wait for a worker.
async fn submitted() {
    let _ = runtime::submit(opcode::Nop::new().build(), Payload::None).await;
}

/// The next order, or `None` when all tags are gone and nobody asked the queue to stay.
async fn next_order(state: &State, orders: &Mailbox) -> Option<Order> {
    poll_fn(|cx| {
        if let Poll::Ready(order) = orders.poll_next(cx) {
            return Poll::Ready(Some(order));
        }
        state.waker.replace(Some(cx.waker().clone()));
        if state.live.get() == 0 && !state.park.get() { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

async fn obey<Q: Queue>(served: &Served<Q>, order: Order) {
    // Whoever gave the order may have given up waiting.
    match order {
        Order::Park(done) => {
            served.state.park.set(true);
            let _ = done.send(());
        }
        Order::Hold(done) => {
            served.state.hold.set(true);
            drained(&served.state).await;
            submitted().await;
            let _ = done.send(());
        }
        Order::Flush(done) => {
            let _ = done.send(served.queue.flush().await);
        }
    }
}

async fn drained(state: &State) {
    poll_fn(|cx| {
        state.waker.replace(Some(cx.waker().clone()));
        if state.executing.get() == 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// The commands of a queue in the encoding that `encode` knows.
pub(super) fn commands(encode: impl Fn(Command) -> u32) -> (u32, u32) {
    (encode(super::uapi::io::FETCH_REQ), encode(super::uapi::io::COMMIT_AND_FETCH_REQ))
}
