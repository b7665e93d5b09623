//! The data plane: one thread, ring and executor for each queue, one long-lived task for each tag.
//!
//! A tag's life: FETCH_REQ; its completion says that a request stands in the tag's descriptor; the request runs on
//! the disk's [`Queue`]; COMMIT_AND_FETCH_REQ hands over the result and asks for the next one; and so on, until a
//! completion says ABORT. The thread that fetched a tag is the only one that may commit it. Nothing on this ring
//! carries IO_DRAIN or IO_LINK: an idle fetch never completes, and a drain would wait for it for ever.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{pending, poll_fn};
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::task::{Poll, Waker};
use std::time::Instant;

use super::bounds;
use super::data::Data;
use super::driver::{CharDevice, Driver, QueueHandle, QueueMain, Ready, ThreadSpec};
use super::features::CopyMode;
use super::mailbox::{Mailbox, Order};
use super::request::{self, Request};
use super::stats::QueueStats;
use super::uapi::{Command, IoCmd, IoDesc, io, io_flag, io_result};
use crate::device::{Disk, Errno, Queue};
use crate::{Error, Kind, Result};

/// A queue's commands in the encoding of its driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Commands {
    fetch: u32,
    commit: u32,
    get_data: u32,
}

impl Commands {
    pub(super) fn new(encode: impl Fn(Command) -> u32) -> Commands {
        Commands {
            fetch: encode(io::FETCH_REQ),
            commit: encode(io::COMMIT_AND_FETCH_REQ),
            get_data: encode(io::NEED_GET_DATA),
        }
    }
}

/// What a queue's thread needs to know before it can fetch.
#[derive(Clone, Debug)]
pub(super) struct QueueSpec {
    pub(super) device: u32,
    pub(super) index: u16,
    pub(super) depth: u16,
    /// Bytes of the largest request.
    pub(super) max_io: usize,
    pub(super) copy: CopyMode,
    /// The driver puts the pages of requests into the ring's buffer table (AUTO_BUF_REG).
    pub(super) unseen: bool,
    /// CPUs whose requests the queue gets, one bit each.
    pub(super) cpus: Vec<u8>,
    pub(super) commands: Commands,
}

/// The answer of a thread that is prepared: what could not be had and is not vital.
pub(super) type Prepared = Receiver<Result<Vec<String>>>;

/// Handle on a queue's thread.
#[derive(Debug)]
pub(super) struct QueueThread<K: Driver> {
    index: u16,
    mailbox: Arc<Mailbox<K::Char>>,
    pub(super) stats: Arc<QueueStats>,
    thread: K::Thread,
}

impl<K: Driver> QueueThread<K> {
    /// Starts the thread, which makes its ring, its buffers and its handle on the disk, says so, and then waits for
    /// orders. From there on it needs nothing more than the character device.
    pub(super) fn spawn<D: Disk>(
        driver: &K,
        disk: &D,
        spec: QueueSpec,
    ) -> Result<(QueueThread<K>, Prepared)> {
        let (mailbox, stats) = (Arc::new(Mailbox::new()), Arc::new(QueueStats::default()));
        let (sender, prepared) = channel();
        let index = spec.index;
        let thread = ThreadSpec {
            name: format!("ublk{}q{index}", spec.device),
            queue: index,
            cpus: spec.cpus.clone(),
            operations: u32::from(spec.depth) * 2,
            buffer_bytes: Data::bytes(spec.copy, spec.depth, spec.max_io),
            entries: if spec.unseen { spec.depth } else { 0 },
            max_io: spec.max_io,
        };
        let main = Main::<D, K> {
            disk: disk.clone(),
            spec,
            orders: Orders(mailbox.clone()),
            stats: stats.clone(),
            prepared: sender,
            driver: PhantomData,
        };
        let thread = driver
            .start_queue(thread, main)
            .map_err(|e| Error::io(format!("start of the thread of queue {index}"), e))?;
        Ok((QueueThread { index, mailbox, stats, thread }, prepared))
    }

    /// Fetches every tag; the answer comes from the receiver.
    pub(super) fn fetch(&self, char_device: K::Char) -> Receiver<Result<()>> {
        let (sender, answer) = channel();
        self.send(Order::Fetch(char_device, sender));
        answer
    }

    /// Hands the descriptors over.
    pub(super) fn map(&self, driver: &K, descriptors: <K::Char as CharDevice>::Descriptors) -> Result<()> {
        let (sender, answer) = channel();
        self.send(Order::Map(descriptors, sender));
        self.answer(driver, &answer)
    }

    /// Waits for the answer to an order of the start.
    pub(super) fn answer<T>(&self, driver: &K, answer: &Receiver<T>) -> Result<T> {
        let failed =
            |what: &str| Error::new(Kind::Io, format!("the thread of ublk queue {} {what}", self.index));
        driver.wait(answer, bounds::THREAD).map_err(|e| match e {
            RecvTimeoutError::Timeout => failed("did not answer in time"),
            RecvTimeoutError::Disconnected => failed("ended early"),
        })
    }

    pub(super) fn send(&self, order: Order<K::Char>) {
        self.mailbox.send(order);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until the thread has ended and its ring is closed. It ends when the driver has taken all tags away.
    pub(super) fn join(self, driver: &K, end: Instant) -> Result<()> {
        self.send(Order::End);
        while !self.thread.is_finished() {
            if driver.now() >= end {
                return Err(Error::new(
                    Kind::Io,
                    format!("the thread of ublk queue {} did not end", self.index),
                ));
            }
            driver.pause(bounds::POLL);
        }
        self.thread.join();
        Ok(())
    }
}

/// The receiving end of a mailbox, which closes with its thread.
struct Orders<C: CharDevice>(Arc<Mailbox<C>>);

impl<C: CharDevice> Drop for Orders<C> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What moves to the thread.
struct Main<D, K: Driver> {
    disk: D,
    spec: QueueSpec,
    orders: Orders<K::Char>,
    stats: Arc<QueueStats>,
    prepared: Sender<Result<Vec<String>>>,
    driver: PhantomData<fn() -> K>,
}

impl<D: Disk, K: Driver> QueueMain for Main<D, K> {
    async fn run(self, ready: Ready) {
        let Main { disk, spec, orders, stats, prepared, .. } = self;
        let queue = disk.queue(usize::from(spec.index));
        // Whoever waits for the answer may have given up.
        let _ = prepared.send(Ok(ready.warnings));
        let data = Data::new(spec.copy, ready.buffers, ready.entries, spec.depth, spec.max_io);
        let served = Served::<D::Queue, K> { spec, queue, data, stats, state: State::new() };
        serve(Rc::new(served), &orders.0).await;
    }

    fn failed(self, error: Error) {
        let _ = self.prepared.send(Err(error));
    }
}

/// What the tasks of a queue share.
struct Served<Q, K: Driver> {
    spec: QueueSpec,
    queue: Rc<Q>,
    data: Data,
    stats: Arc<QueueStats>,
    state: State<K::Char>,
}

struct State<C: CharDevice> {
    char_device: OnceCell<C>,
    descriptors: OnceCell<C::Descriptors>,
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

impl<C: CharDevice> State<C> {
    fn new() -> State<C> {
        State {
            char_device: OnceCell::new(),
            descriptors: OnceCell::new(),
            live: Cell::new(0),
            executing: Cell::new(0),
            hold: Cell::new(false),
            park: Cell::new(false),
            ending: Cell::new(false),
            failed: Cell::new(None),
            waker: RefCell::new(None),
        }
    }

    fn changed(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl<Q: Queue, K: Driver> Served<Q, K> {
    fn char_device(&self) -> &K::Char {
        self.state.char_device.get().expect("an order brought it before the first fetch")
    }

    /// Starts a command for `tag`. The driver copies into and out of the tag's buffer, if it has one, until the next
    /// command, so the running operation keeps it.
    fn command(&self, command: u32, tag: u16, result: i32) -> Op<K> {
        let payload = IoCmd { q_id: self.spec.index, tag, result, addr: 0 };
        self.char_device().io(command, payload, self.data.named(tag))
    }

    async fn execute(&self, tag: u16, desc: &IoDesc) -> i32 {
        self.stats.begin();
        let outcome = match Request::parse(desc, self.spec.max_io) {
            Ok(request) => self.run(tag, request, desc.op_flags & io_flag::NEED_REG_BUF == 0).await,
            Err(errno) => Err(errno),
        };
        let bytes = u64::from(desc.nr_sectors) * crate::units::SECTOR;
        self.stats.end(desc.op_flags, outcome.is_ok().then_some(bytes));
        outcome.unwrap_or_else(request::failure)
    }

    /// `registered`: the driver has put the request's pages where the tag's commands name a place for them.
    async fn run(&self, tag: u16, request: Request, registered: bool) -> Result<i32, Errno> {
        if registered
            && let Some(entry) = self.data.unseen(tag, request.data())
            && let Some(count) = request.run_unseen(&*self.queue, &entry).await?
        {
            return Ok(count);
        }
        let lent = self.data.lend(tag, request.data()).await;
        let (index, copies) = (self.spec.index, self.spec.copy == CopyMode::UserCopy);
        if copies && matches!(request, Request::Write { .. }) {
            self.char_device().copy_from_request(index, tag, &lent.buf).map_err(not_copied)?;
        }
        let count = request.run(&*self.queue, &lent.buf).await?;
        if copies && matches!(request, Request::Read { .. }) {
            self.char_device().copy_to_request(index, tag, &lent.buf).map_err(not_copied)?;
        }
        Ok(count)
    }

    /// The whole life of a tag; `command` is its first fetch.
    async fn serve_tag(self: Rc<Self>, tag: u16, mut command: Op<K>) {
        let state = &self.state;
        loop {
            let got = command.await;
            match got {
                io_result::OK | io_result::NEED_GET_DATA => {}
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
            if got == io_result::NEED_GET_DATA {
                // Not before this is answered is the data in the buffer.
                command = self.command(self.spec.commands.get_data, tag, 0);
                continue;
            }
            state.executing.set(state.executing.get() + 1);
            let descriptors =
                state.descriptors.get().expect("an order brought them before the disk was started");
            let result = self.execute(tag, &K::Char::descriptor(descriptors, tag)).await;
            command = self.command(self.spec.commands.commit, tag, result);
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
            K::abort();
        }
        self.state.failed.set(self.state.failed.get().or(Some(code)));
    }

    /// Fetches every tag: in one system call, since the ring has room for all of them. A server that dies in the
    /// middle leaves a queue that old drivers cannot recover.
    async fn fetch_all(self: &Rc<Self>, char_device: K::Char) -> Result<()> {
        let _ = self.state.char_device.set(char_device);
        self.state.live.set(self.spec.depth);
        for tag in 0..self.spec.depth {
            let first = self.command(self.spec.commands.fetch, tag, 0);
            K::spawn(self.clone().serve_tag(tag, first));
        }
        K::submitted().await;
        // The tags end, too: without them the thread does.
        self.state.ending.set(true);
        let what = || format!("ublk {} on queue {}", io::FETCH_REQ.name, self.spec.index);
        match self.state.failed.get() {
            None => Ok(()),
            Some(code) => Err(Error::io(what(), std::io::Error::from_raw_os_error(-code))),
        }
    }
}

fn not_copied(e: std::io::Error) -> Errno {
    Errno(e.raw_os_error().unwrap_or(libc::EIO))
}

type Op<K> = <<K as Driver>::Char as CharDevice>::Op;

const CANCELLED: i32 = -libc::ECANCELED;

/// Obeys until all tags are gone.
async fn serve<Q: Queue, K: Driver>(served: Rc<Served<Q, K>>, orders: &Mailbox<K::Char>) {
    while let Some(order) = next_order(&served.state, orders).await {
        obey(&served, order).await;
    }
}

/// The next order, or `None` when no tag is left and nobody asked the queue to stay.
async fn next_order<C: CharDevice>(state: &State<C>, orders: &Mailbox<C>) -> Option<Order<C>> {
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

async fn obey<Q: Queue, K: Driver>(served: &Rc<Served<Q, K>>, order: Order<K::Char>) {
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
            K::submitted().await;
            let _ = done.send(());
        }
        Order::Flush(done) => {
            let _ = done.send(served.queue.flush().await);
        }
    }
}

async fn drained<C: CharDevice>(state: &State<C>) {
    poll_fn(|cx| {
        state.waker.replace(Some(cx.waker().clone()));
        if state.executing.get() == 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Geometry;
    use crate::storage::IoBuf;
    use crate::ublk::Kernel;
    use std::fs::File;

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

    #[test]
    fn a_prepared_thread_that_never_fetched_ends_when_told() {
        let spec = QueueSpec {
            device: 0,
            index: 0,
            depth: 4,
            max_io: 4096,
            copy: CopyMode::AtFetch,
            unseen: false,
            cpus: vec![0xff; 128],
            commands: Commands::default(),
        };
        let (thread, prepared) = QueueThread::spawn(&Kernel, &Refusing, spec).unwrap();
        thread.answer(&Kernel, &prepared).unwrap().unwrap();
        let (held_in, held) = channel();
        thread.send(Order::Hold(held_in));
        thread.answer(&Kernel, &held).unwrap();
        let (flushed_in, flushed) = channel();
        thread.send(Order::Flush(flushed_in));
        assert_eq!(thread.answer(&Kernel, &flushed).unwrap(), Err(Errno(libc::EROFS)));
        assert!(!thread.is_finished());
        thread.join(&Kernel, Instant::now() + bounds::THREAD).unwrap();
    }

    /// The driver's answer to a file that is no ublk device stands for every fetch that fails.
    #[test]
    fn a_fetch_that_fails_is_an_error_of_the_start_and_ends_the_thread() {
        let commands = Commands::default();
        let copy = CopyMode::UserCopy;
        let unseen = false;
        let spec =
            QueueSpec { device: 0, index: 3, depth: 4, max_io: 4096, copy, unseen, cpus: vec![], commands };
        let (thread, prepared) = QueueThread::spawn(&Kernel, &Refusing, spec).unwrap();
        thread.answer(&Kernel, &prepared).unwrap().unwrap();
        let file = File::open("/dev/zero").unwrap().into();
        let e = thread.answer(&Kernel, &thread.fetch(file)).unwrap().unwrap_err();
        assert!(e.to_string().starts_with("ublk FETCH_REQ on queue 3: "), "{e}");
        thread.join(&Kernel, Instant::now() + bounds::THREAD).unwrap();
    }
}
