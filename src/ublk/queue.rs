//! The data plane: one thread, ring and executor for each queue, one long-lived task for each tag.
//!
//! A tag's life: FETCH_REQ; its completion says that a request stands in the tag's descriptor; the request runs on
//! the disk's [`Queue`]; COMMIT_AND_FETCH_REQ hands over the result and asks for the next one; and so on, until a
//! completion says ABORT. The thread that fetched a tag is the only one that may commit it. Nothing on this ring
//! carries IO_DRAIN or IO_LINK: an idle fetch never completes, and a drain would wait for it for ever.

use std::cell::{Cell, OnceCell, RefCell};
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
use super::request::{self, Request};
use super::stats::QueueStats;
use super::sys::Descriptors;
use super::uapi::{Command, IoCmd, IoDesc, io, io_result};
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

/// The answer of a thread that is prepared: what could not be had and is not vital.
pub(super) type Prepared = Receiver<Result<Vec<String>>>;

/// Handle on a queue's thread.
#[derive(Debug)]
pub(super) struct QueueThread {
    index: u16,
    mailbox: Arc<Mailbox>,
    pub(super) stats: Arc<QueueStats>,
    thread: JoinHandle<()>,
}

impl QueueThread {
    /// Starts the thread, which makes its ring, its buffers and its handle on the disk, says so, and then waits for
    /// orders. From there on it needs nothing more than the character device.
    pub(super) fn spawn<D: Disk>(disk: &D, spec: QueueSpec) -> Result<(QueueThread, Prepared)> {
        let (mailbox, stats) = (Arc::new(Mailbox::default()), Arc::new(QueueStats::default()));
        let (sender, prepared) = channel();
        let own =
            Thread { disk: disk.clone(), mailbox: mailbox.clone(), stats: stats.clone(), prepared: sender };
        let index = spec.index;
        let thread = std::thread::Builder::new()
            .name(format!("ublk{}q{index}", spec.device))
            .spawn(move || own.run(spec))
            .map_err(|e| Error::io(format!("start of the thread of queue {index}"), e))?;
        Ok((QueueThread { index, mailbox, stats, thread }, prepared))
    }

    /// Fetches every tag; the answer comes from the receiver.
    pub(super) fn fetch(&self, char_device: Arc<File>) -> Receiver<Result<()>> {
        let (sender, answer) = channel();
        self.send(Order::Fetch(char_device, sender));
        answer
    }

    /// Hands the descriptors over.
    pub(super) fn map(&self, descriptors: Descriptors) -> Result<()> {
        let (sender, answer) = channel();
        self.send(Order::Map(descriptors, sender));
        self.answer(&answer)
    }

    /// Waits for the answer to an order of the start.
    pub(super) fn answer<T>(&self, answer: &Receiver<T>) -> Result<T> {
        let failed =
            |what: &str| Error::new(Kind::Io, format!("the thread of ublk queue {} {what}", self.index));
        answer.recv_timeout(bounds::THREAD).map_err(|e| match e {
            RecvTimeoutError::Timeout => failed("did not answer in time"),
            RecvTimeoutError::Disconnected => failed("ended early"),
        })
    }

    pub(super) fn send(&self, order: Order) {
        self.mailbox.send(order);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until the thread has ended and its ring is closed. It ends when the driver has taken all tags away.
    pub(super) fn join(self, end: Instant) -> Result<()> {
        self.send(Order::End);
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
    prepared: Sender<Result<Vec<String>>>,
}

impl<D: Disk> Thread<D> {
    fn run(self, spec: QueueSpec) {
        let _guard = AbortOnPanic;
        let Thread { disk, mailbox, stats, prepared } = self;
        // Whoever waits for the answers may have given up.
        match prepare(&spec) {
            Ok((runtime, buffers, warnings)) => {
                let orders = mailbox.clone();
                // Mapping and character device go with the last task, before the ring: then DEL_DEV can end.
                runtime.block_on(async move {
                    let queue = disk.queue(usize::from(spec.index));
                    let _ = prepared.send(Ok(warnings));
                    let served = Served { spec, queue, buffers, stats, state: State::default() };
                    serve(Rc::new(served), &orders).await;
                });
            }
            Err(e) => drop(prepared.send(Err(e))),
        }
        mailbox.close();
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
    let entries = (u32::from(spec.depth) * 2).next_power_of_two().clamp(64, 8192);
    let what = || format!("io_uring_setup for ublk queue {}", spec.index);
    let runtime = Runtime::new(RingOptions { entries }).map_err(|e| Error::io(what(), e))?;
    Ok((runtime, buffers, warnings))
}

/// What the tasks of a queue share.
struct Served<Q> {
    spec: QueueSpec,
    queue: Rc<Q>,
    /// One buffer of `max_io` bytes for each tag.
    buffers: IoBuf,
    stats: Arc<QueueStats>,
    state: State,
}

#[derive(Default)]
struct State {
    char_device: OnceCell<Arc<File>>,
    descriptors: OnceCell<Descriptors>,
    /// Tags that are fetched or executing.
    live: Cell<u16>,
    /// Requests between fetch and commit.
    executing: Cell<u16>,
    /// New requests are kept, neither executed nor committed; the driver delivers them to the next server.
    hold: Cell<bool>,
    /// The thread stays even without a tag.
    park: Cell<bool>,
    /// The thread ends without a tag.
    ending: Cell<bool>,
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
        let char_device = self.state.char_device.get().expect("an order brought it before the first fetch");
        let target = types::Fd(char_device.as_raw_fd());
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
            let descriptors =
                state.descriptors.get().expect("an order brought them before the disk was started");
            let result = self.execute(tag, &descriptors.read(tag)).await;
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
        if self.state.descriptors.get().is_some() {
            let QueueSpec { device, index, .. } = self.spec;
            eprintln!(
                "cowdisk: ublk device {device}: queue {index}, tag {tag}: the driver answered {code}: aborting"
            );
            std::process::abort();
        }
        self.state.failed.set(self.state.failed.get().or(Some(code)));
    }

    /// Fetches every tag: in one system call, since the ring has room for all of them. A server that dies in the
    /// middle leaves a queue that old drivers cannot recover.
    async fn fetch_all(self: &Rc<Self>, char_device: Arc<File>) -> Result<()> {
        let _ = self.state.char_device.set(char_device);
        self.state.live.set(self.spec.depth);
        for tag in 0..self.spec.depth {
            let first = self.command(self.spec.fetch, tag, 0);
            spawn(self.clone().serve_tag(tag, first));
        }
        submitted().await;
        // The tags end, too: without them the thread does.
        self.state.ending.set(true);
        let what = || format!("ublk {} on queue {}", io::FETCH_REQ.name, self.spec.index);
        match self.state.failed.get() {
            None => Ok(()),
            Some(code) => Err(Error::io(what(), std::io::Error::from_raw_os_error(-code))),
        }
    }
}

const CANCELLED: i32 = -libc::ECANCELED;

/// Obeys until all tags are gone.
async fn serve<Q: Queue>(served: Rc<Served<Q>>, orders: &Mailbox) {
    while let Some(order) = next_order(&served.state, orders).await {
        obey(&served, order).await;
    }
}

/// Done when every operation started before is in the driver's hands: entries are taken in order, and ublk's
/// commands never wait for a worker.
async fn submitted() {
    let _ = runtime::submit(opcode::Nop::new().build(), Payload::None).await;
}

/// The next order, or `None` when no tag is left and nobody asked the queue to stay.
async fn next_order(state: &State, orders: &Mailbox) -> Option<Order> {
    poll_fn(|cx| {
        if let Poll::Ready(order) = orders.poll_next(cx) {
            return Poll::Ready(Some(order));
        }
        state.waker.replace(Some(cx.waker().clone()));
        let over = state.live.get() == 0 && state.ending.get() && !state.park.get();
        if over { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

async fn obey<Q: Queue>(served: &Rc<Served<Q>>, order: Order) {
    // Whoever gave the order may have given up waiting.
    match order {
        Order::Fetch(char_device, done) => {
            let _ = done.send(served.fetch_all(char_device).await);
        }
        Order::Map(descriptors, done) => {
            let _ = served.state.descriptors.set(descriptors);
            let _ = done.send(());
        }
        Order::End => served.state.ending.set(true),
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
    (encode(io::FETCH_REQ), encode(io::COMMIT_AND_FETCH_REQ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Errno, Geometry};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    /// A disk that refuses everything.
    #[derive(Clone)]
    struct Refusing;
    impl Queue for Refusing {
        async fn read(&self, _: u64, _: IoBuf) -> Result<(), Errno> {
            Err(Errno(libc::EROFS))
        }
        async fn write(&self, _: u64, _: IoBuf, _: bool) -> Result<(), Errno> {
            Err(Errno(libc::EROFS))
        }
        async fn flush(&self) -> Result<(), Errno> {
            Err(Errno(libc::EROFS))
        }
        async fn discard(&self, _: u64, _: u64, _: bool) -> Result<(), Errno> {
            Err(Errno(libc::EROFS))
        }
        async fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), Errno> {
            Err(Errno(libc::EROFS))
        }
    }
    impl Disk for Refusing {
        type Queue = Refusing;
        fn geometry(&self) -> Geometry {
            Geometry { size: 4096, sector_size: 512, read_only: false, block_size: 4096 }
        }
        fn queue(&self, _: usize) -> Rc<Refusing> {
            Rc::new(Refusing)
        }
    }

    /// Runs itself once more, in a process that must not survive the panic of one of its threads.
    #[test]
    fn a_panic_in_a_queue_thread_aborts_the_process() {
        const CHILD: &str = "COWDISK_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            let panicking = std::thread::spawn(|| {
                let _guard = AbortOnPanic;
                panic!("as the test wants it");
            });
            let _ = panicking.join();
            return;
        }
        let name = "ublk::queue::tests::a_panic_in_a_queue_thread_aborts_the_process";
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name]).env(CHILD, "1").stdout(Stdio::null()).stderr(Stdio::null());
        assert_eq!(child.status().unwrap().signal(), Some(libc::SIGABRT));
    }

    #[test]
    fn a_prepared_thread_that_never_fetched_ends_when_told() {
        let spec = QueueSpec {
            device: 0,
            index: 0,
            depth: 4,
            max_io: 4096,
            cpus: vec![0xff; 128],
            fetch: 0,
            commit: 0,
        };
        let (thread, prepared) = QueueThread::spawn(&Refusing, spec).unwrap();
        thread.answer(&prepared).unwrap().unwrap();
        let (held_in, held) = channel();
        thread.send(Order::Hold(held_in));
        thread.answer(&held).unwrap();
        let (flushed_in, flushed) = channel();
        thread.send(Order::Flush(flushed_in));
        assert_eq!(thread.answer(&flushed).unwrap(), Err(Errno(libc::EROFS)));
        assert!(!thread.is_finished());
        thread.join(Instant::now() + bounds::THREAD).unwrap();
    }

    /// The driver's answer to a file that is no ublk device stands for every fetch that fails.
    #[test]
    fn a_fetch_that_fails_is_an_error_of_the_start_and_ends_the_thread() {
        let spec =
            QueueSpec { device: 0, index: 3, depth: 4, max_io: 4096, cpus: vec![], fetch: 0, commit: 0 };
        let (thread, prepared) = QueueThread::spawn(&Refusing, spec).unwrap();
        thread.answer(&prepared).unwrap().unwrap();
        let file = Arc::new(File::open("/dev/zero").unwrap());
        let e = thread.answer(&thread.fetch(file)).unwrap().unwrap_err();
        assert!(e.to_string().starts_with("ublk FETCH_REQ on queue 3: "), "{e}");
        thread.join(Instant::now() + bounds::THREAD).unwrap();
    }
}
