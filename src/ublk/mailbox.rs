//! Orders from the control thread to a queue's thread.
//!
//! The queue's thread sleeps only in its ring; an order wakes the task that waits there.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::driver::CharDevice;
use crate::Result;
use crate::device::Errno;

/// What a queue may be told. The answer is sent when it is done.
#[derive(Debug)]
pub(super) enum Order<C: CharDevice> {
    /// Fetch every tag through this open character device.
    Fetch(C, Sender<Result<()>>),
    /// Requests are described here. Comes before the first one can.
    Map(C::Descriptors, Sender<()>),
    /// End, when no tag is fetched (any more).
    End,
    /// Stay, though every tag may be taken away: the process is about to leave the device to the next server.
    Park(Sender<()>),
    /// Keep new requests without touching them; answer when the ones that run are committed.
    Hold(Sender<()>),
    /// Flush the disk.
    Flush(Sender<std::result::Result<(), Errno>>),
}

#[derive(Debug)]
struct Slot<C: CharDevice> {
    orders: VecDeque<Order<C>>,
    waker: Option<Waker>,
    closed: bool,
}

/// The orders of one queue.
#[derive(Debug)]
pub(super) struct Mailbox<C: CharDevice>(Mutex<Slot<C>>);

impl<C: CharDevice> Mailbox<C> {
    pub(super) fn new() -> Mailbox<C> {
        Mailbox(Mutex::new(Slot { orders: VecDeque::new(), waker: None, closed: false }))
    }

    /// Hands an order over. One for a queue that has ended is dropped, and with it its sender.
    pub(super) fn send(&self, order: Order<C>) {
        let mut slot = self.0.lock();
        if slot.closed {
            return;
        }
        slot.orders.push_back(order);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The next order; keeps the waker of the task that asks.
    pub(super) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Order<C>> {
        let mut slot = self.0.lock();
        match slot.orders.pop_front() {
            Some(order) => Poll::Ready(order),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// No more orders: whoever waits for an answer sees that nobody will give it.
    pub(super) fn close(&self) {
        let mut slot = self.0.lock();
        slot.closed = true;
        slot.orders.clear();
        slot.waker = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ublk::kernel::CharFile;
    use std::sync::mpsc::channel;

    #[test]
    fn orders_arrive_in_turn_and_a_closed_box_drops_them() {
        let (mailbox, mut cx) = (Mailbox::<CharFile>::new(), Context::from_waker(Waker::noop()));
        let (sender, answer) = channel();
        assert!(mailbox.poll_next(&mut cx).is_pending());
        mailbox.send(Order::Park(sender.clone()));
        mailbox.send(Order::Hold(sender.clone()));
        assert!(matches!(mailbox.poll_next(&mut cx), Poll::Ready(Order::Park(_))));
        assert!(matches!(mailbox.poll_next(&mut cx), Poll::Ready(Order::Hold(_))));
        mailbox.send(Order::Hold(sender.clone()));
        mailbox.close();
        mailbox.send(Order::Hold(sender));
        assert!(answer.recv().is_err());
    }
}
