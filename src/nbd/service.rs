//! Serving connections on one thread, whatever carries them.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::connection::Transmission;
use super::export::{Export, Exports};
use super::handshake::negotiate;
use super::limits::{MAX_DEPTH, MAX_OPTION_BYTES, RECEIVE_BYTES};
use super::stats::Counters;
use super::stream::{End, Input, Stream};
use crate::device::Disk;

/// An export with this thread's handle on its disk.
type Opened<D> = (Arc<Export<D>>, Rc<<D as Disk>::Queue>);

/// Serves the exports of a server on one thread. Servers have one per queue; tests and fuzz targets use it with
/// streams of their own.
pub struct Service<D: Disk> {
    exports: Exports<D>,
    index: usize,
    depth: usize,
    counters: Arc<Counters>,
    /// Made when an export is first used on this thread.
    opened: RefCell<Vec<Opened<D>>>,
}

impl<D: Disk> fmt::Debug for Service<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("exports", &self.exports).field("index", &self.index).finish()
    }
}

impl<D: Disk> Service<D> {
    /// For queue `index`. Each connection has at most `depth` (1 to [`MAX_DEPTH`]) requests running.
    pub fn new(exports: Exports<D>, index: usize, depth: usize, counters: Arc<Counters>) -> Service<D> {
        let depth = depth.clamp(1, MAX_DEPTH);
        Service { exports, index, depth, counters, opened: RefCell::default() }
    }

    /// Talks to one client until it leaves, and waits for its requests; must run inside the thread's runtime.
    /// `negotiated` is called when the handshake is over.
    pub async fn serve<S: Stream>(&self, stream: Rc<S>, negotiated: impl FnOnce()) -> End {
        self.counters.connections.fetch_add(1, Relaxed);
        let end = match self.try_serve(&stream, negotiated).await {
            Ok(end) | Err(end) => end,
        };
        if matches!(end, End::Violation(_)) {
            self.counters.violations.fetch_add(1, Relaxed);
        }
        stream.close();
        end
    }

    async fn try_serve<S: Stream>(&self, stream: &Rc<S>, negotiated: impl FnOnce()) -> Result<End, End> {
        // The large buffers come only when the client has shown that it speaks the protocol.
        let mut input = Input::new(stream.clone(), MAX_OPTION_BYTES as usize);
        let agreed = negotiate(stream, &mut input, &self.exports).await?;
        negotiated();
        input.grow(RECEIVE_BYTES);
        let queue = self.queue(&agreed.export);
        let announced = (agreed.disk, agreed.structured);
        let counters = self.counters.clone();
        let transmission = Transmission::new(stream.clone(), queue, announced, self.depth, counters);
        Ok(transmission.run(input).await)
    }

    /// Lets go of the disks, while the runtime is still there for what they do then.
    pub(super) fn close(&self) {
        self.opened.take();
    }

    /// This thread's handle on an export's disk.
    fn queue(&self, export: &Arc<Export<D>>) -> Rc<D::Queue> {
        let mut opened = self.opened.borrow_mut();
        opened.retain(|(other, _)| self.exports.contains(other));
        if let Some((_, queue)) = opened.iter().find(|(other, _)| Arc::ptr_eq(other, export)) {
            return queue.clone();
        }
        let queue = export.disk.queue(self.index);
        opened.push((export.clone(), queue.clone()));
        queue
    }
}
