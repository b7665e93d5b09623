//! A simulated process as the server sees its machine: the other implementation of [`Driver`].

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::block::Bio;
use super::files::SimChar;
use super::handles::{SimAdmin, SimNode, SimThread};
use super::machine::Machine;
use super::state::{Shared, ThreadId};
use crate::Result;
use crate::storage::IoBuf;
use crate::storage::sim::{Executor, JoinHandle, spawn};
use crate::ublk::driver::{Driver, QueueMain, Ready, ThreadSpec};
use crate::ublk::uapi::op;

/// A running simulated thread.
#[derive(Clone)]
struct Thread {
    id: ThreadId,
    shared: Arc<Shared>,
    /// Set when it aborts its process.
    aborted: Rc<Cell<bool>>,
}

thread_local! {
    /// Which simulated thread runs.
    static CURRENT: RefCell<Option<Thread>> = const { RefCell::new(None) };
}

/// The running thread; 0 of process 0 outside of all.
pub(super) fn current_thread() -> ThreadId {
    CURRENT.with_borrow(|current| current.as_ref().map_or(ThreadId { pid: 0, thread: 0 }, |thread| thread.id))
}

fn current() -> Thread {
    CURRENT.with_borrow(Clone::clone).expect("called on a simulated thread")
}

/// Makes a thread the running one as long as it lives.
struct Running(Option<Thread>);

impl Running {
    fn new(thread: Thread) -> Running {
        Running(CURRENT.replace(Some(thread)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CURRENT.replace(self.0.take());
    }
}

/// Unwinds a thread of a process that is dead.
struct Dead;

fn die() -> ! {
    resume_unwind(Box::new(Dead))
}

/// A process.
pub(super) struct Process {
    pub(super) pid: u32,
    /// Its threads; `None` once it is dead.
    executor: RefCell<Option<Executor>>,
    aborted: Rc<Cell<bool>>,
    threads: Cell<u32>,
    pub(super) privileged: Cell<bool>,
}

impl Process {
    pub(super) fn new(pid: u32, executor: Executor) -> Process {
        let executor = RefCell::new(Some(executor));
        let (threads, privileged) = (Cell::new(0), Cell::new(true));
        Process { pid, executor, aborted: Rc::default(), threads, privileged }
    }

    pub(super) fn step(&self) -> bool {
        self.executor.borrow().as_ref().is_some_and(Executor::step)
    }

    pub(super) fn has_aborted(&self) -> bool {
        self.aborted.get()
    }

    pub(super) fn die(&self) {
        let executor = self.executor.take();
        drop(executor);
    }

    fn is_dead(&self) -> bool {
        self.executor.borrow().is_none()
    }
}

/// A task of one thread of a process.
struct InThread<F> {
    thread: Thread,
    task: Pin<Box<F>>,
}

impl<F: Future<Output = ()>> Future for InThread<F> {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let _running = Running::new(self.thread.clone());
        match catch_unwind(AssertUnwindSafe(|| self.task.as_mut().poll(cx))) {
            Ok(poll) => poll,
            Err(payload) if payload.is::<Dead>() => {
                self.thread.aborted.set(true);
                Poll::Pending
            }
            Err(payload) => resume_unwind(payload),
        }
    }
}

/// See [`Driver::submitted`].
struct Submitted;

impl Future for Submitted {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Thread { id, shared, .. } = current();
        let mut state = shared.state();
        if state.ops.values().any(|op| op.thread == id && op.result.is_some()) {
            state.submitters.push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// A simulated process that may serve devices. Clones are the same process.
#[derive(Clone)]
pub struct Server {
    machine: Machine,
    pub(super) process: Rc<Process>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("pid", &self.process.pid).field("machine", &self.machine).finish()
    }
}

impl Server {
    pub(super) fn new(machine: Machine, process: Rc<Process>) -> Server {
        Server { machine, process }
    }

    pub(super) fn pid_number(&self) -> u32 {
        self.process.pid
    }

    /// Runs `main` as the process's first thread. `None`: the process died, in the middle of it or before.
    ///
    /// While `main` waits for something the machine goes on, one step at a time.
    pub fn run<T>(&self, main: impl FnOnce(&Server) -> T) -> Option<T> {
        let _running = Running::new(self.thread(0));
        match catch_unwind(AssertUnwindSafe(|| main(self))) {
            Ok(value) => Some(value),
            Err(payload) if payload.is::<Dead>() => None,
            Err(payload) => resume_unwind(payload),
        }
    }

    fn thread(&self, thread: u32) -> Thread {
        let id = ThreadId { pid: self.process.pid, thread };
        Thread { id, shared: self.shared().clone(), aborted: self.process.aborted.clone() }
    }

    /// Does something as another thread of the process.
    pub fn as_thread<T>(&self, thread: u32, act: impl FnOnce() -> T) -> T {
        let _running = Running::new(self.thread(thread));
        act()
    }

    /// From now on the process is an ordinary user's.
    pub fn drop_privilege(&self) {
        self.process.privileged.set(false);
    }

    /// Lets the machine do so many steps; for the first thread.
    pub fn work(&self, steps: u64) {
        for _ in 0..steps {
            self.check();
            if !self.machine.step() {
                break;
            }
        }
        self.check();
    }

    /// Runs `future` on a thread of the process; for the first thread.
    ///
    /// # Panics
    /// If it does not end in an hour of the machine's time.
    pub fn block_on<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        self.check();
        let task = self.process.executor.borrow().as_ref().map(|executor| executor.spawn(future));
        let ended = self.until(Duration::from_secs(3600), || task.as_ref().and_then(JoinHandle::try_take));
        ended.expect("it ends")
    }

    /// The process ends, as by `exit` or SIGKILL.
    pub fn exit(&self) {
        self.machine.kill(self.process.pid);
    }

    /// True until the process has ended.
    pub fn is_running(&self) -> bool {
        !self.process.is_dead()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        self.machine.shared()
    }

    pub(super) fn check(&self) {
        if self.process.is_dead() {
            die();
        }
    }

    /// Goes on until `done` gives a value, or the bound is over.
    pub(super) fn until<T>(&self, bound: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
        let end = self.shared().state().clock + bound;
        loop {
            self.check();
            if let Some(value) = done() {
                return Some(value);
            }
            let (now, deadline) = {
                let state = self.shared().state();
                (state.clock, state.next_deadline())
            };
            if now >= end {
                return None;
            }
            if !self.machine.step() {
                self.machine.pass(deadline.map_or(end, |deadline| deadline.min(end)));
            }
        }
    }
}

impl Driver for Server {
    type Admin = SimAdmin;
    type Char = SimChar;
    type Thread = SimThread;
    type Node = SimNode;

    fn open_admin(&self) -> Result<SimAdmin> {
        self.check();
        Ok(SimAdmin::new(self.clone()))
    }

    fn open_char(&self, id: u32) -> io::Result<SimChar> {
        self.check();
        SimChar::open(self.shared(), id, self.process.pid).map_err(io::Error::from_raw_os_error)
    }

    fn pid(&self) -> u32 {
        self.process.pid
    }

    fn start_queue<M: QueueMain>(&self, spec: ThreadSpec, main: M) -> io::Result<SimThread> {
        self.check();
        let thread = self.process.threads.get() + 1;
        self.process.threads.set(thread);
        let entries = (0..spec.entries).map(|index| IoBuf::zeroed(spec.max_io).as_entry(index)).collect();
        let ready = Ready { buffers: IoBuf::zeroed(spec.buffer_bytes), entries, warnings: Vec::new() };
        // Its operations belong to the thread, so it begins there.
        let task =
            InThread { thread: self.thread(thread), task: Box::pin(async move { main.run(ready).await }) };
        let executor = self.process.executor.borrow();
        let executor = executor.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(SimThread::new(executor.spawn(task)))
    }

    fn spawn(task: impl Future<Output = ()> + 'static) {
        drop(spawn(InThread { thread: current(), task: Box::pin(task) }));
    }

    /// The driver sees commands at once; so this is done when their early results have been seen, as in a ring, whose
    /// completions come in order.
    async fn submitted() {
        Submitted.await;
    }

    fn abort() -> ! {
        die()
    }

    fn now(&self) -> Instant {
        self.check();
        self.shared().now()
    }

    fn pause(&self, time: Duration) {
        self.work(self.machine.some_steps());
        let now = self.shared().state().clock;
        self.machine.pass(now + time);
    }

    fn wait<T>(&self, answer: &Receiver<T>, time: Duration) -> std::result::Result<T, RecvTimeoutError> {
        let got = self.until(time, || match answer.try_recv() {
            Ok(value) => Some(Ok(value)),
            Err(TryRecvError::Disconnected) => Some(Err(RecvTimeoutError::Disconnected)),
            Err(TryRecvError::Empty) => None,
        });
        got.unwrap_or(Err(RecvTimeoutError::Timeout))
    }

    fn devices(&self) -> Vec<u32> {
        self.check();
        self.shared().state().devices.keys().copied().collect()
    }

    fn open_disk(&self, id: u32) -> io::Result<SimNode> {
        self.check();
        SimNode::open(self.shared(), id).map_err(io::Error::from_raw_os_error)
    }

    /// A read of the first sectors, through the server.
    fn read_partitions(&self, disk: &SimNode) -> io::Result<()> {
        let read = Bio { op_flags: op::READ, sectors: 8, ..Bio::default() };
        let number = self.shared().state().submit(disk.id(), 0, read);
        let over = || {
            let mut state = self.shared().state();
            let over = state.requests.get(&number).is_none_or(|request| request.result.is_some());
            over.then(|| state.requests.remove(&number)).map(drop)
        };
        self.until(Duration::from_secs(60), over).ok_or(io::ErrorKind::TimedOut)?;
        if let Some(dev) = self.shared().state().devices.get_mut(&disk.id()) {
            dev.partitions_read = true;
        }
        Ok(())
    }

    fn has_no_partitions(&self, id: u32) -> bool {
        self.shared().state().devices.get(&id).is_none_or(|dev| !dev.partitions_read)
    }

    fn shorten_timeout(&self, _id: u32) -> io::Result<()> {
        Ok(())
    }

    fn openers(&self, id: u32) -> Vec<String> {
        self.check();
        let openers = self.shared().state().devices.get(&id).map_or(0, |dev| dev.openers);
        (0..openers.min(8)).map(|n| format!("open in simulated process {n}")).collect()
    }

    fn is_claimed(&self, _id: u32) -> bool {
        false
    }

    fn is_alive(&self, pid: i32) -> bool {
        self.check();
        u32::try_from(pid).is_ok_and(|pid| self.shared().state().alive.contains(&pid))
    }
}
