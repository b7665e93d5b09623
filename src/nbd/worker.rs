//! One queue's thread: it takes connections from its inbox and serves them.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use slab::Slab;

use super::limits::{ACCEPT_PAUSE, MAX_CONNECTIONS, STOP_TIME};
use super::listener::Listener;
use super::service::Service;
use super::stats::Counters;
use super::stream::Stream;
use crate::device::Disk;
use crate::runtime::net::{self, Direction, Socket};
use crate::runtime::{self, Signal, spawn};
use crate::storage::{IoBuf, IoVecs};

/// What the threads of a server share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) listener: Listener,
    pub(super) inboxes: Vec<Inbox>,
    pub(super) counters: Vec<Arc<Counters>>,
    /// Connections that are open now.
    pub(super) open: AtomicUsize,
    /// Clients that connect must wait.
    pub(super) closed: AtomicBool,
    pub(super) stopping: AtomicBool,
    pub(super) handshake_time: Duration,
}

/// Connections on their way to a thread.
#[derive(Debug, Default)]
pub(super) struct Inbox(Mutex<InboxState>);

#[derive(Debug, Default)]
struct InboxState {
    sockets: Vec<OwnedFd>,
    stop: bool,
    waker: Option<Waker>,
}

impl Inbox {
    fn push(&self, socket: OwnedFd) {
        self.change(|state| state.sockets.push(socket));
    }

    /// Tells the thread to finish.
    pub(super) fn stop(&self) {
        self.change(|state| state.stop = true);
    }

    fn change(&self, f: impl FnOnce(&mut InboxState)) {
        let mut state = self.0.lock();
        f(&mut state);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The next connection, or `None` when the server stops.
    async fn next(&self) -> Option<OwnedFd> {
        poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.stop {
                return Poll::Ready(None);
            }
            match state.sockets.pop() {
                Some(socket) => Poll::Ready(Some(socket)),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// A client's socket.
#[derive(Debug)]
struct Client {
    socket: Socket,
    /// The thread's flag.
    stopping: Rc<Cell<bool>>,
}

impl Stream for Client {
    async fn recv(&self, buf: IoBuf, whole: bool) -> io::Result<usize> {
        self.socket.recv(buf, whole).await
    }
    async fn send(&self, vecs: IoVecs) -> (io::Result<()>, IoVecs) {
        self.socket.send(vecs).await
    }
    fn close(&self) {
        self.socket.shut_down(Direction::Both);
    }
    fn stopping(&self) -> bool {
        self.stopping.get()
    }
}

/// A connection that is open.
#[derive(Debug)]
struct Live {
    client: Rc<Client>,
    /// When its handshake must be over; `None` when it is.
    deadline: Option<Instant>,
}

pub(super) struct Worker<D: Disk> {
    index: usize,
    shared: Arc<Shared>,
    service: Service<D>,
    live: RefCell<Slab<Live>>,
    /// A connection ended, or the time to wait for that.
    gone: Signal,
    stopping: Rc<Cell<bool>>,
    /// A task looks after deadlines.
    watching: Cell<bool>,
}

impl<D: Disk> Worker<D> {
    pub(super) fn new(index: usize, shared: Arc<Shared>, service: Service<D>) -> Rc<Worker<D>> {
        Rc::new(Worker {
            index,
            shared,
            service,
            live: RefCell::default(),
            gone: Signal::new(),
            stopping: Rc::default(),
            watching: Cell::new(false),
        })
    }

    /// Serves until the server stops. The first thread also accepts connections for all.
    pub(super) async fn run(self: Rc<Self>) {
        if self.index == 0 {
            spawn(accept_all(self.shared.clone()));
        }
        while let Some(socket) = self.shared.inboxes[self.index].next().await {
            self.start(socket);
        }
        self.stop().await;
        self.service.close();
    }

    fn start(self: &Rc<Self>, fd: OwnedFd) {
        let client = Rc::new(Client { socket: Socket::new(fd), stopping: self.stopping.clone() });
        let deadline = Instant::now() + self.shared.handshake_time;
        let key = self.live.borrow_mut().insert(Live { client: client.clone(), deadline: Some(deadline) });
        if !self.watching.replace(true) {
            spawn(self.clone().watch());
        }
        let worker = self.clone();
        spawn(async move {
            let negotiated = || worker.live.borrow_mut()[key].deadline = None;
            worker.service.serve(client, negotiated).await;
            worker.live.borrow_mut().remove(key);
            worker.shared.open.fetch_sub(1, Ordering::Relaxed);
            worker.gone.notify();
        });
    }

    /// Cuts off clients that do not finish their handshake, as long as there are any in it.
    async fn watch(self: Rc<Self>) {
        loop {
            let next = self.live.borrow().iter().filter_map(|(_, live)| live.deadline).min();
            let Some(next) = next else { break };
            runtime::sleep(next.saturating_duration_since(Instant::now())).await;
            for (_, live) in self.live.borrow_mut().iter_mut() {
                if live.deadline.take_if(|deadline| *deadline <= Instant::now()).is_some() {
                    live.client.close();
                }
            }
        }
        self.watching.set(false);
    }

    /// Lets running requests finish, within a bound.
    async fn stop(self: &Rc<Self>) {
        self.stopping.set(true);
        for (_, live) in self.live.borrow().iter() {
            live.client.socket.shut_down(Direction::Receive);
        }
        let expired = Rc::new(Cell::new(false));
        let (worker, timer) = (self.clone(), expired.clone());
        spawn(async move {
            // A client that does not read its replies is cut off; what a disk holds longer is left behind.
            runtime::sleep(STOP_TIME).await;
            for (_, live) in worker.live.borrow().iter() {
                live.client.close();
            }
            runtime::sleep(STOP_TIME / 5).await;
            timer.set(true);
            worker.gone.notify();
        });
        self.gone.until(|| (self.live.borrow().is_empty() || expired.get()).then_some(())).await;
    }
}

/// Accepts connections and deals them out to the threads in turn.
async fn accept_all(shared: Arc<Shared>) {
    let mut turn = 0;
    while !shared.stopping.load(Ordering::Acquire) {
        match net::accept(&shared.listener.fd).await {
            Ok(socket) => {
                enter(&shared).await;
                admit(&shared, socket, turn);
                turn = (turn + 1) % shared.inboxes.len();
            }
            // No descriptors or no memory left: that passes. A client that went away again is no trouble.
            Err(_) if !shared.stopping.load(Ordering::Acquire) => runtime::sleep(ACCEPT_PAUSE).await,
            Err(_) => {}
        }
    }
}

/// Counts another connection, when it may come in.
async fn enter(shared: &Shared) {
    loop {
        // Counted first: either who closes sees the connection, or it sees that it is closed.
        shared.open.fetch_add(1, Ordering::SeqCst);
        if !shared.closed.load(Ordering::SeqCst) || shared.stopping.load(Ordering::Acquire) {
            return;
        }
        shared.open.fetch_sub(1, Ordering::SeqCst);
        runtime::sleep(ACCEPT_PAUSE).await;
    }
}

/// Hands an entered connection to the thread whose turn it is.
fn admit(shared: &Shared, socket: OwnedFd, turn: usize) {
    if shared.open.load(Ordering::Relaxed) > MAX_CONNECTIONS {
        shared.open.fetch_sub(1, Ordering::Relaxed);
        shared.counters[0].rejected.fetch_add(1, Ordering::Relaxed);
        return;
    }
    if shared.listener.is_tcp() {
        // Only speed depends on it.
        let _ = net::tune_tcp(&socket);
    }
    shared.inboxes[turn].push(socket);
}
