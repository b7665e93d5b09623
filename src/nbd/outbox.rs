//! Replies on their way out: what is ready together is sent together.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::protocol::{REPLY_BYTES, Reply};
use crate::runtime::Signal;
use crate::storage::{IoBuf, IoVecs};

/// A reply, or a part of one, that a slot wants to be sent. A slot has one at a time.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) slot: usize,
    pub(super) cookie: u64,
    /// `None`: more data of a simple reply whose header went out before.
    pub(super) reply: Option<Reply>,
    pub(super) data: Option<IoBuf>,
    /// Where the reply stands after this.
    pub(super) then: Then,
}

/// What follows a part of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Then {
    /// Nothing: the slot is free once this is sent.
    Done,
    /// Another part; other replies may come in between.
    More,
    /// Another part, and nothing may come in between: a simple reply's data has no header of its own.
    Hold,
}

/// The queue of replies of one connection; bounded by its slots.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: RefCell<VecDeque<Outgoing>>,
    ready: Signal,
    /// Only this slot's parts may be sent.
    holder: Cell<Option<usize>>,
    closed: Cell<bool>,
    /// The headers of the batch that is being sent, one after the other.
    headers: IoBuf,
}

impl Outbox {
    /// For `depth` slots.
    pub(super) fn new(depth: usize) -> Outbox {
        Outbox {
            queue: RefCell::new(VecDeque::with_capacity(depth)),
            ready: Signal::new(),
            holder: Cell::new(None),
            closed: Cell::new(false),
            headers: IoBuf::zeroed(depth * REPLY_BYTES),
        }
    }

    pub(super) fn push(&self, outgoing: Outgoing) {
        self.queue.borrow_mut().push_back(outgoing);
        self.ready.notify();
    }

    /// No further reply will come.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.ready.notify();
    }

    /// Waits for replies, and puts all that may be sent now into `vecs`, and their slots into `batch`. `false`
    /// after [`Outbox::close`].
    pub(super) async fn next(&self, batch: &mut Vec<(usize, Then)>, vecs: &mut IoVecs) -> bool {
        self.ready
            .until(|| {
                self.gather(batch, vecs);
                if !batch.is_empty() {
                    return Some(true);
                }
                self.closed.get().then_some(false)
            })
            .await
    }

    fn gather(&self, batch: &mut Vec<(usize, Then)>, vecs: &mut IoVecs) {
        let mut queue = self.queue.borrow_mut();
        let mut header_end = 0;
        let mut index = 0;
        while let Some(next) = queue.get(index) {
            if self.holder.get().is_some_and(|holder| holder != next.slot) {
                index += 1;
                continue;
            }
            let Some(next) = queue.remove(index) else { return };
            self.holder.set((next.then == Then::Hold).then_some(next.slot));
            if let Some(reply) = next.reply {
                let mut header = [0; REPLY_BYTES];
                let length = reply.encode(next.cookie, &mut header);
                self.headers.copy_from(header_end, &header[..length]);
                vecs.push(self.headers.slice(header_end..header_end + length));
                header_end += length;
            }
            if let Some(data) = next.data {
                vecs.push(data);
            }
            batch.push((next.slot, next.then));
            if next.then != Then::Hold {
                continue;
            }
            // The holder's next part comes only after this one is sent.
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{RingOptions, Runtime};

    fn outgoing(slot: usize, header: bool, then: Then) -> Outgoing {
        let data = IoBuf::from_slice(&[u8::try_from(slot).unwrap(); 3]);
        let reply = header.then_some(Reply::Simple { error: 0 });
        Outgoing { slot, cookie: slot as u64, reply, data: Some(data), then }
    }

    fn bytes(vecs: &IoVecs) -> usize {
        vecs.bufs().iter().map(IoBuf::len).sum()
    }

    #[test]
    fn nothing_comes_between_the_parts_of_a_simple_reply() {
        Runtime::new(RingOptions { entries: 8 }).unwrap().block_on(async {
            let outbox = Outbox::new(4);
            let (mut batch, mut vecs) = (Vec::new(), IoVecs::new());
            outbox.push(outgoing(0, true, Then::Done));
            outbox.push(outgoing(1, true, Then::Hold));
            outbox.push(outgoing(2, true, Then::Done));
            assert!(outbox.next(&mut batch, &mut vecs).await);
            assert_eq!((batch.as_slice(), bytes(&vecs)), (&[(0, Then::Done), (1, Then::Hold)][..], 2 * 19));
            batch.clear();
            vecs.clear();
            outbox.push(outgoing(1, false, Then::Done));
            assert!(outbox.next(&mut batch, &mut vecs).await);
            assert_eq!(batch, [(1, Then::Done)]);
            batch.clear();
            vecs.clear();
            assert!(outbox.next(&mut batch, &mut vecs).await);
            assert_eq!(batch, [(2, Then::Done)]);
            batch.clear();
            outbox.close();
            assert!(!outbox.next(&mut batch, &mut vecs).await);
        });
    }

    #[test]
    fn headers_of_a_batch_without_data_are_one_buffer() {
        let outbox = Outbox::new(4);
        let (mut batch, mut vecs) = (Vec::new(), IoVecs::new());
        for slot in 0..4 {
            outbox.push(Outgoing { data: None, ..outgoing(slot, true, Then::Done) });
        }
        outbox.gather(&mut batch, &mut vecs);
        assert_eq!((batch.len(), vecs.bufs().len(), bytes(&vecs)), (4, 1, 64));
    }
}
