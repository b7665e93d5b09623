//! An open image as the disk that frontends serve.

use std::rc::Rc;
use std::sync::Arc;

use super::latency::{Clock, DiskTimes, Operation};
use super::pulse::Pulse;
use crate::chain::{Image, ImageQueue};
use crate::device::{Disk, Errno, Geometry, Queue};
use crate::runtime::spawn;
use crate::storage::IoBuf;
use crate::storage::uring::Uring;

/// Batches that a queue may have in flight; more requests than this share batches.
const MAX_RUNNERS: usize = 32;

/// The image behind a frontend.
#[derive(Clone, Debug)]
pub struct ImageDisk {
    image: Arc<Image<Uring>>,
    runners: usize,
    pulse: Option<Arc<Pulse>>,
    times: Arc<DiskTimes>,
}

impl ImageDisk {
    /// `depth`: requests that a queue has running at once.
    pub fn new(image: Arc<Image<Uring>>, depth: usize) -> ImageDisk {
        ImageDisk { image, runners: depth.clamp(1, MAX_RUNNERS), pulse: None, times: Arc::default() }
    }

    /// The threads of its queues take part in `pulse`.
    pub(super) fn watched(self, pulse: Option<Arc<Pulse>>) -> ImageDisk {
        ImageDisk { pulse, ..self }
    }

    /// The times of its requests go to `times`.
    pub(super) fn timed(self, times: Arc<DiskTimes>) -> ImageDisk {
        ImageDisk { times, ..self }
    }
}

impl Disk for ImageDisk {
    type Queue = ServedQueue;

    fn geometry(&self) -> Geometry {
        self.image.geometry()
    }

    fn moves_unseen(&self) -> bool {
        self.image.moves_unseen()
    }

    fn queue(&self, _index: usize) -> Rc<ServedQueue> {
        let queue = ImageQueue::new(self.image.clone());
        for _ in 0..self.runners {
            drop(spawn(queue.clone().runner()));
        }
        drop(spawn(ImageQueue::follow(self.image.clone(), Rc::downgrade(&queue))));
        if let Some(pulse) = &self.pulse {
            drop(spawn(pulse.beat()));
        }
        Rc::new(ServedQueue { queue, clock: self.times.queue() })
    }
}

/// A queue that ends its runners when its frontend lets go of it.
#[derive(Debug)]
pub struct ServedQueue {
    queue: Rc<ImageQueue<Uring>>,
    clock: Clock,
}

impl Drop for ServedQueue {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Queue for ServedQueue {
    fn read(&self, pos: u64, buf: IoBuf) -> impl Future<Output = Result<(), Errno>> {
        self.clock.time(Operation::Read, self.queue.read(pos, buf))
    }
    fn write(&self, pos: u64, buf: IoBuf, fua: bool) -> impl Future<Output = Result<(), Errno>> {
        self.clock.time(Operation::Write, self.queue.write(pos, buf, fua))
    }
    fn read_unseen(&self, pos: u64, buf: IoBuf) -> impl Future<Output = Result<bool, Errno>> {
        self.clock.time_if_done(Operation::Read, self.queue.read_unseen(pos, buf))
    }
    fn write_unseen(&self, pos: u64, buf: IoBuf, fua: bool) -> impl Future<Output = Result<bool, Errno>> {
        self.clock.time_if_done(Operation::Write, self.queue.write_unseen(pos, buf, fua))
    }
    fn flush(&self) -> impl Future<Output = Result<(), Errno>> {
        self.clock.time(Operation::Flush, self.queue.flush())
    }
    fn discard(&self, pos: u64, len: u64, fua: bool) -> impl Future<Output = Result<(), Errno>> {
        self.clock.time(Operation::Discard, self.queue.discard(pos, len, fua))
    }
    fn write_zeroes(
        &self,
        pos: u64,
        len: u64,
        unmap: bool,
        fua: bool,
    ) -> impl Future<Output = Result<(), Errno>> {
        self.clock.time(Operation::WriteZeroes, self.queue.write_zeroes(pos, len, unmap, fua))
    }
}
