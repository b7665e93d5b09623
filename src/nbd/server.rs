//! A server: its threads from start to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::export::{Export, Exports};
use super::limits::{DEFAULT_DEPTH, HANDSHAKE_TIME, MAX_DEPTH};
use super::listener::{Access, Address, Listener};
use super::service::Service;
use super::stats::{Counters, Stats};
use super::worker::{Inbox, Shared, Worker};
use crate::device::Disk;
use crate::limits::MAX_QUEUES;
use crate::runtime::{RingOptions, Runtime};
use crate::{Error, Kind, Result};

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen.
    pub address: Address,
    /// Threads, each with a ring and a queue of the disk: 1 to [`MAX_QUEUES`]. Connections are dealt out in turn.
    pub queues: usize,
    /// Running requests per connection: 1 to [`MAX_DEPTH`].
    pub depth: usize,
    /// Permission bits of a unix socket.
    pub socket_mode: u32,
    /// User and group of a unix socket, if not the process's own.
    pub socket_owner: Option<(u32, u32)>,
    /// Time that a client has to finish its handshake.
    pub handshake_time: Duration,
}

impl ServerOptions {
    /// One queue, the default depth, a socket for the owner alone.
    pub fn new(address: Address) -> ServerOptions {
        ServerOptions {
            address,
            queues: 1,
            depth: DEFAULT_DEPTH,
            socket_mode: 0o600,
            socket_owner: None,
            handshake_time: HANDSHAKE_TIME,
        }
    }

    fn check(&self) -> Result<()> {
        let range = |name: &str, value: usize, most: usize| match value {
            v if (1..=most).contains(&v) => Ok(()),
            v => Err(Error::new(Kind::Usage, format!("{name} must be 1 to {most}, not {v}"))),
        };
        range("queues", self.queues, MAX_QUEUES)?;
        range("depth", self.depth, MAX_DEPTH)
    }
}

/// A running NBD server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens and serves `exports`; clients can connect when this returns.
    ///
    /// # Errors
    /// As [`Server::serve`] and [`Exports::add`].
    pub fn start<D: Disk>(exports: Vec<Export<D>>, options: ServerOptions) -> Result<Server> {
        Server::serve(Exports::new(exports)?, options)
    }

    /// Like [`Server::start`], with a list to which exports can be added while the server runs.
    ///
    /// # Errors
    /// `Usage` for options out of range; `InUse` if another server has the address; `Exists` if there is
    /// another kind of file at the socket's path; whatever the operating system refuses.
    pub fn serve<D: Disk>(exports: Exports<D>, options: ServerOptions) -> Result<Server> {
        options.check()?;
        let access = Access { mode: options.socket_mode, owner: options.socket_owner };
        let shared = Arc::new(Shared {
            listener: Listener::open(&options.address, access)?,
            inboxes: std::iter::repeat_with(Inbox::default).take(options.queues).collect(),
            counters: std::iter::repeat_with(Arc::default).take(options.queues).collect(),
            open: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            handshake_time: options.handshake_time,
        });
        let mut server = Server { shared, threads: Vec::with_capacity(options.queues) };
        let (started, starts) = mpsc::channel();
        for index in 0..options.queues {
            let thread = server.spawn(index, exports.clone(), options.depth, started.clone())?;
            server.threads.push(thread);
        }
        drop(started);
        // A thread that does not come up takes the others with it, by way of the drop of `server`.
        for result in starts {
            result?;
        }
        Ok(server)
    }

    fn spawn<D: Disk>(
        &self,
        index: usize,
        exports: Exports<D>,
        depth: usize,
        started: Sender<Result<()>>,
    ) -> Result<JoinHandle<()>> {
        let shared = self.shared.clone();
        let run = move || {
            let runtime = match Runtime::new(RingOptions::default()) {
                Ok(runtime) => runtime,
                Err(e) => {
                    let _ = started.send(Err(Error::io("cannot set up io_uring", e)));
                    return;
                }
            };
            // Nobody receives only if another thread failed, and then this one is told to stop.
            let _ = started.send(Ok(()));
            drop(started);
            let counters: Arc<Counters> = shared.counters[index].clone();
            let service = Service::new(exports, index, depth, counters);
            runtime.block_on(async move { Worker::new(index, shared, service).run().await });
        };
        let builder = std::thread::Builder::new().name(format!("nbd-{index}"));
        builder.spawn(run).map_err(|e| Error::io("cannot start a thread", e))
    }

    /// Where the default export is, as NBD clients take it: `nbd+unix:///?socket=PATH` or `nbd://HOST:PORT`.
    pub fn uri(&self) -> String {
        self.shared.listener.uri().to_owned()
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Whether clients are let in that connect from now on; the others wait. After `false`, [`Server::connections`] counts
    /// all that there are.
    pub fn admit(&self, admit: bool) {
        self.shared.closed.store(!admit, Ordering::SeqCst);
    }

    /// What clients asked for so far.
    pub fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        for counters in &self.shared.counters {
            counters.add_to(&mut sum);
        }
        sum
    }

    /// Refuses new clients, lets running requests finish within a bound of some seconds, closes all
    /// connections, ends the threads and removes the socket.
    ///
    /// # Errors
    /// If the socket cannot be removed or a thread has panicked; the server is stopped nevertheless.
    pub fn stop(mut self) -> Result<()> {
        self.shut_down()
    }

    fn shut_down(&mut self) -> Result<()> {
        self.shared.stopping.store(true, Ordering::Release);
        let closed = self.shared.listener.close();
        for inbox in &self.shared.inboxes {
            inbox.stop();
        }
        let mut panicked = false;
        for thread in self.threads.drain(..) {
            panicked |= thread.join().is_err();
        }
        if panicked {
            return Err(Error::new(Kind::Io, "a thread of the NBD server panicked"));
        }
        closed
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.shared.stopping.load(Ordering::Relaxed) {
            // Whoever wants to know calls `stop`.
            let _ = self.shut_down();
        }
    }
}
