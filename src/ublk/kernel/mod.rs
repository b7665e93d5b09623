//! The real thing: the kernel's driver through io_uring, threads, the clock and device nodes.

mod admin;
mod node;
mod sys;
mod thread;

pub use admin::AdminRing;
pub use node::openers;
pub use sys::Descriptors;
pub use thread::QueueThreadHandle;

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use io_uring::{opcode, types};

use super::driver::{CharDevice, Driver, QueueMain, ThreadSpec};
use super::node::{block_node, char_node};
use super::uapi::{IoCmd, IoDesc, auto_buf_reg, user_copy_position};
use crate::Result;
use crate::runtime::{self, Op, Payload};
use crate::storage::IoBuf;

/// This machine and its ublk driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kernel;

/// An open `/dev/ublkcN`.
#[derive(Clone, Debug)]
pub struct CharFile(Arc<File>);

impl From<File> for CharFile {
    fn from(file: File) -> CharFile {
        CharFile(Arc::new(file))
    }
}

/// A command on the ring of its thread.
#[derive(Debug)]
pub struct IoOp(Op);

impl Future for IoOp {
    type Output = i32;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<i32> {
        Pin::new(&mut self.0).poll(cx).map(|output| output.raw)
    }
}

impl CharDevice for CharFile {
    type Descriptors = Descriptors;
    type Op = IoOp;

    fn map(&self, queue: u16, depth: u16) -> Result<Descriptors> {
        Descriptors::map(&self.0, queue, depth)
    }

    fn descriptor(descriptors: &Descriptors, tag: u16) -> IoDesc {
        descriptors.read(tag)
    }

    /// The running operation keeps `buf`.
    fn io(&self, command: u32, payload: IoCmd, buf: Option<IoBuf>) -> IoOp {
        let entry = buf.as_ref().and_then(IoBuf::entry);
        let named = buf.as_ref().filter(|_| entry.is_none());
        let payload = IoCmd { addr: named.map_or(0, |buf| buf.as_ptr() as u64), ..payload };
        let target = types::Fd(self.0.as_raw_fd());
        let command = opcode::UringCmd16::new(target, command).cmd(payload.to_bytes());
        let entry = command.addr(entry.map(auto_buf_reg)).build();
        IoOp(runtime::submit(entry, buf.map_or(Payload::None, Payload::Buf)))
    }

    /// A system call, not an operation of the ring: the driver has no way to start it without a worker thread of the ring,
    /// and copies at once.
    fn copy_from_request(&self, queue: u16, tag: u16, buf: &IoBuf) -> io::Result<()> {
        sys::read_at(&self.0, user_copy_position(queue, tag), buf)
    }

    fn copy_to_request(&self, queue: u16, tag: u16, buf: &IoBuf) -> io::Result<()> {
        sys::write_at(&self.0, user_copy_position(queue, tag), buf)
    }
}

impl Driver for Kernel {
    type Admin = AdminRing;
    type Char = CharFile;
    type Thread = QueueThreadHandle;
    type Node = File;

    fn open_admin(&self) -> Result<AdminRing> {
        AdminRing::open()
    }

    fn open_char(&self, id: u32) -> io::Result<CharFile> {
        OpenOptions::new().read(true).write(true).open(char_node(id)).map(CharFile::from)
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn start_queue<M: QueueMain>(&self, spec: ThreadSpec, main: M) -> io::Result<QueueThreadHandle> {
        thread::start(spec, main)
    }

    fn spawn(task: impl Future<Output = ()> + 'static) {
        drop(runtime::spawn(task));
    }

    /// Entries are taken in order, and ublk's commands never wait for a worker.
    async fn submitted() {
        let _ = runtime::submit(opcode::Nop::new().build(), Payload::None).await;
    }

    fn abort() -> ! {
        std::process::abort();
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn wait<T>(&self, answer: &Receiver<T>, time: Duration) -> std::result::Result<T, RecvTimeoutError> {
        answer.recv_timeout(time)
    }

    fn devices(&self) -> Vec<u32> {
        node::devices()
    }

    fn open_disk(&self, id: u32) -> io::Result<File> {
        File::open(block_node(id))
    }

    fn read_partitions(&self, disk: &File) -> io::Result<()> {
        node::read_partitions(disk)
    }

    fn has_no_partitions(&self, id: u32) -> bool {
        node::has_no_partitions(id)
    }

    fn shorten_timeout(&self, id: u32) -> io::Result<()> {
        node::shorten_timeout(id)
    }

    fn openers(&self, id: u32) -> Vec<String> {
        openers(id)
    }

    fn is_claimed(&self, id: u32) -> bool {
        node::is_claimed(id)
    }

    fn is_alive(&self, pid: i32) -> bool {
        node::is_alive(pid)
    }
}
