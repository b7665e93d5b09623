//! The byte stream under a connection, and buffered receiving from it.

use std::future::Future;
use std::io;
use std::rc::Rc;

use super::limits::DIRECT_BYTES;
use crate::storage::{IoBuf, IoVecs};

/// A connected byte stream: a socket, or memory in tests.
pub trait Stream: 'static {
    /// Receives into `buf`; the count of bytes, 0 at the end. `whole`: rather fill `buf` than come back early.
    fn recv(&self, buf: IoBuf, whole: bool) -> impl Future<Output = io::Result<usize>>;
    /// Sends all of `vecs` and gives the emptied list back.
    fn send(&self, vecs: IoVecs) -> impl Future<Output = (io::Result<()>, IoVecs)>;
    /// Ends both directions; what waits in the stream comes back.
    fn close(&self);
    /// The server is stopping: nothing further is received or begun.
    fn stopping(&self) -> bool {
        false
    }
}

/// Why a connection ended.
#[derive(Debug)]
pub enum End {
    /// The client said so.
    Disconnect,
    /// The stream ended or failed, wherever that was.
    Closed,
    /// The client broke the protocol in a way that leaves no common ground.
    Violation(&'static str),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Closed
    }
}

/// Receives through a buffer: one receive brings as many headers and small payloads as have arrived.
#[derive(Debug)]
pub(super) struct Input<S> {
    stream: Rc<S>,
    buf: IoBuf,
    /// Bytes `start..end` of `buf` were received and not yet taken.
    start: usize,
    end: usize,
}

impl<S: Stream> Input<S> {
    pub(super) fn new(stream: Rc<S>, capacity: usize) -> Input<S> {
        Input { stream, buf: IoBuf::zeroed(capacity), start: 0, end: 0 }
    }

    /// Replaces the buffer by one of `capacity` bytes, which must not be less than now.
    pub(super) fn grow(&mut self, capacity: usize) {
        let larger = IoBuf::zeroed(capacity);
        larger.copy_buf(0, &self.buf.slice(self.start..self.end));
        (self.buf, self.end, self.start) = (larger, self.end - self.start, 0);
    }

    const fn buffered(&self) -> usize {
        self.end - self.start
    }

    /// The next `N` bytes; does not wait if they are there. `N` must fit into the buffer.
    pub(super) async fn take<const N: usize>(&mut self) -> Result<[u8; N], End> {
        self.need(N).await?;
        let mut bytes = [0; N];
        self.buf.copy_to(self.start, &mut bytes);
        self.start += N;
        Ok(bytes)
    }

    /// The next `len` bytes, which must fit into the buffer.
    pub(super) async fn take_vec(&mut self, len: usize) -> Result<Vec<u8>, End> {
        self.need(len).await?;
        let mut bytes = vec![0; len];
        self.buf.copy_to(self.start, &mut bytes);
        self.start += len;
        Ok(bytes)
    }

    /// Fills `to`.
    pub(super) async fn take_into(&mut self, to: &IoBuf) -> Result<(), End> {
        let mut done = 0;
        while done < to.len() {
            let left = to.len() - done;
            let ready = left.min(self.buffered());
            if ready > 0 {
                to.copy_buf(done, &self.buf.slice(self.start..self.start + ready));
                self.start += ready;
                done += ready;
            } else if left >= DIRECT_BYTES {
                done += self.direct(to.slice(done..to.len())).await?;
            } else {
                self.fill().await?;
            }
        }
        Ok(())
    }

    /// Drops the next `len` bytes.
    pub(super) async fn skip(&mut self, mut len: usize) -> Result<(), End> {
        loop {
            let ready = len.min(self.buffered());
            self.start += ready;
            len -= ready;
            if len == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn need(&mut self, len: usize) -> Result<(), End> {
        assert!(len <= self.buf.len(), "what is needed at once fits into the buffer");
        while self.buffered() < len {
            self.fill().await?;
        }
        Ok(())
    }

    /// Receives what has arrived, at least one byte.
    async fn fill(&mut self) -> Result<(), End> {
        if self.start > 0 {
            self.buf.copy_buf(0, &self.buf.slice(self.start..self.end));
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = self.buf.slice(self.end..self.buf.len());
        self.end += self.receive(room, false).await?;
        Ok(())
    }

    async fn direct(&self, to: IoBuf) -> Result<usize, End> {
        self.receive(to, true).await
    }

    async fn receive(&self, to: IoBuf, whole: bool) -> Result<usize, End> {
        let count = self.stream.recv(to, whole).await?;
        // A stopped TCP socket still gives out what arrives.
        if count == 0 || self.stream.stopping() { Err(End::Closed) } else { Ok(count) }
    }
}
