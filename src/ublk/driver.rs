//! The seam between the server and the machine that it runs on.
//!
//! Above it stand [`super::Device`], its queues and its recovery, below it the kernel's driver ([`super::Kernel`]) or
//! the simulated one (`ublk::sim`, feature `sim`). The server is generic over the seam, so the way of a request costs
//! nothing more for it: no boxes, no dynamic calls.
//!
//! Three planes: admin commands ([`Admin`]), which block the calling thread with a bound in time; the character device
//! ([`CharDevice`]), whose operations are futures on a queue's thread; and what else a server asks its machine for
//! ([`Driver`]): threads, the clock, device nodes.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::uapi::{IoCmd, IoDesc};
use crate::storage::IoBuf;
use crate::{Error, Result};

/// An admin command with its arguments.
#[derive(Clone, Copy, Debug)]
pub struct AdminCall<'a> {
    /// Raw or encoded.
    pub number: u32,
    /// The device, or [`super::uapi::NO_DEVICE`].
    pub device: u32,
    /// The queue, or [`super::uapi::NO_QUEUE`].
    pub queue: u16,
    /// The inline argument.
    pub data: u64,
    /// Bytes that the command reads.
    pub send: &'a [u8],
    /// Bytes at the command's address: what is sent, or how much may be filled.
    pub len: u16,
    /// How many of them, from the first on, are the path of the character device, where the command has one.
    pub path_len: u16,
    /// How long to wait for the answer.
    pub bound: Duration,
}

/// The open control device.
pub trait Admin: Debug {
    /// Sends the command and waits for its answer, which may be minus an errno. [`io::ErrorKind::TimedOut`]: it did not
    /// end within its bound; nobody hears of it any more.
    fn run(&mut self, call: &AdminCall<'_>) -> io::Result<i32>;
    /// The first bytes of what the last command filled.
    fn received(&self, bytes: &mut [u8]);
}

/// The open character device of one ublk device; clones are the same open file.
pub trait CharDevice: Clone + Debug + Send + Sync + 'static {
    /// The mapped descriptors of a queue.
    type Descriptors: Debug + Send + 'static;
    /// A command on its way; gives its result. It began when it was made, and dropping it does not cancel it.
    type Op: Future<Output = i32> + 'static;

    /// Maps the descriptors of `queue`, which has `depth` tags.
    fn map(&self, queue: u16, depth: u16) -> Result<Self::Descriptors>;
    /// The descriptor of `tag`; valid after a fetch of the tag has completed, until its commit.
    fn descriptor(descriptors: &Self::Descriptors, tag: u16) -> IoDesc;
    /// Starts `command` on the ring of the calling thread. `buf` is the tag's buffer, which the driver reads and writes
    /// until the tag's next command; its address goes into the payload, or 0 without one. If it is an entry of the ring's
    /// buffer table, the driver puts the pages of the tag's next request there instead (AUTO_BUF_REG).
    fn io(&self, command: u32, payload: IoCmd, buf: Option<IoBuf>) -> Self::Op;
    /// Fills `buf` with the data of the write that `tag` of `queue` has (USER_COPY). Copies memory and never waits.
    fn copy_from_request(&self, queue: u16, tag: u16, buf: &IoBuf) -> io::Result<()>;
    /// Gives `buf` to the read that `tag` of `queue` has (USER_COPY). Copies memory and never waits.
    fn copy_to_request(&self, queue: u16, tag: u16, buf: &IoBuf) -> io::Result<()>;
}

/// What a queue's thread is given.
#[derive(Clone, Debug)]
pub struct ThreadSpec {
    /// Name of the thread.
    pub name: String,
    /// For messages.
    pub queue: u16,
    /// CPUs whose requests the queue gets, one bit each.
    pub cpus: Vec<u8>,
    /// Operations in flight at once, at least.
    pub operations: u32,
    /// Bytes of buffers.
    pub buffer_bytes: usize,
    /// Entries of the ring's buffer table.
    pub entries: u16,
    /// Bytes of the largest request.
    pub max_io: usize,
}

/// What a prepared thread has.
#[derive(Debug)]
pub struct Ready {
    /// As many bytes as were asked for.
    pub buffers: IoBuf,
    /// As many as were asked for.
    pub entries: Vec<IoBuf>,
    /// What could not be had and is not vital.
    pub warnings: Vec<String>,
}

/// What a queue's thread does.
pub trait QueueMain: Send + 'static {
    /// Runs on the thread; the thread ends with it.
    fn run(self, ready: Ready) -> impl Future<Output = ()> + 'static;
    /// The thread could not be prepared, and ends.
    fn failed(self, error: Error);
}

/// A queue's thread, seen from outside.
pub trait QueueHandle: Debug {
    /// True when it has ended and its ring is closed.
    fn is_finished(&self) -> bool;
    /// Frees what is left of a thread that has ended.
    fn join(self);
}

/// A machine with a ublk driver, as one process on it sees it.
pub trait Driver: Clone + Debug + 'static {
    /// The open control device.
    type Admin: Admin;
    /// An open character device.
    type Char: CharDevice;
    /// A queue's thread.
    type Thread: QueueHandle;
    /// The open disk.
    type Node;

    /// Opens `/dev/ublk-control`.
    fn open_admin(&self) -> Result<Self::Admin>;
    /// Opens `/dev/ublkcN`; EBUSY while another process has it open.
    fn open_char(&self, id: u32) -> io::Result<Self::Char>;
    /// The number of this process.
    fn pid(&self) -> u32;

    /// Starts a thread with a ring of its own.
    fn start_queue<M: QueueMain>(&self, spec: ThreadSpec, main: M) -> io::Result<Self::Thread>;
    /// Runs a task on the calling queue's thread.
    fn spawn(task: impl Future<Output = ()> + 'static);
    /// Done when the driver has seen every operation that the calling thread started before.
    fn submitted() -> impl Future<Output = ()>;
    /// Ends the process without a word to anybody. For a queue's thread that cannot go on: the clients of a living
    /// process would hang, a dead one is followed by the next server.
    fn abort() -> !;

    /// The clock.
    fn now(&self) -> Instant;
    /// Lets time pass: for something that has no event.
    fn pause(&self, time: Duration);
    /// Waits for an answer of a queue's thread.
    fn wait<T>(&self, answer: &Receiver<T>, time: Duration) -> Result<T, RecvTimeoutError>;

    /// The numbers of all ublk devices, in any order.
    fn devices(&self) -> Vec<u32>;
    /// Opens `/dev/ublkbN`.
    fn open_disk(&self, id: u32) -> io::Result<Self::Node>;
    /// Has the kernel read the partition table of the disk, and waits for that.
    fn read_partitions(&self, disk: &Self::Node) -> io::Result<()>;
    /// True if the kernel has found no partition on the disk.
    fn has_no_partitions(&self, id: u32) -> bool;
    /// Lets the block layer ask the driver about slow requests soon.
    fn shorten_timeout(&self, id: u32) -> io::Result<()>;
    /// Who has the disk or one of its partitions open, as text for a message; empty: nobody that can be seen.
    fn openers(&self, id: u32) -> Vec<String>;
    /// True if somebody has claimed the disk or a partition of it (mount, swap, device-mapper). Needs a living server.
    fn is_claimed(&self, id: u32) -> bool;
    /// False for a process that exits or is gone.
    fn is_alive(&self, pid: i32) -> bool;
}
