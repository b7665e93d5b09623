//! One queue's handle on an image: it gathers what is ready in one turn of the loop into batches.
//!
//! A request puts its change into the ready list and waits. A *runner* takes all that is ready, forms a batch and sees
//! it through; any number of runners may be under way. The first request that finds the list without a woken runner
//! wakes one, which runs behind the other tasks of that turn and so finds their requests too.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};

use slab::Slab;

use super::image::Image;
use super::layers::Chain;
use crate::error::{Error, Result};
use crate::layer::{Batch, QueueSpace, WriteItem, Written};
use crate::map::LayerTag;
use crate::storage::{IoBuf, Storage};
use crate::units::{BLOCK_SIZE, Seq};

/// Bounce buffers kept for reuse, of [`BOUNCE_BYTES`] each.
const BOUNCES: usize = 16;
const BOUNCE_BYTES: usize = 34 * BLOCK_SIZE;

/// A record: which head has it, and its number there. The heads of an image ascend as the numbers do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Stamp {
    pub(super) head: LayerTag,
    pub(super) seq: Seq,
}

/// The answer to all requests of a batch.
type Answer = std::result::Result<Stamp, Rc<Error>>;

/// The chain as this queue works with it, and what the queue owns of the chain's head.
#[derive(Debug)]
pub(super) struct Here<S: Storage> {
    chain: Arc<Chain<S>>,
    space: Rc<QueueSpace>,
}

impl<S: Storage> Deref for Here<S> {
    type Target = Chain<S>;
    fn deref(&self) -> &Chain<S> {
        &self.chain
    }
}

#[derive(Debug)]
enum Ticket {
    Waiting(Option<Waker>),
    Done(Answer),
    Taken,
}

#[derive(Debug, Default)]
struct Ready {
    items: VecDeque<(usize, WriteItem)>,
    tickets: Slab<Ticket>,
    idle_runners: Vec<Waker>,
    /// A runner has been woken and has not yet looked.
    runner_coming: bool,
    closed: bool,
}

/// The handle. It stays on the thread it was made on.
#[derive(Debug)]
pub struct ImageQueue<S: Storage> {
    pub(super) image: Arc<Image<S>>,
    here: RefCell<Rc<Here<S>>>,
    ready: RefCell<Ready>,
    bounces: RefCell<Vec<IoBuf>>,
    /// The host has refused to write from memory that only the kernel reaches.
    pub(super) unseen_refused: Cell<bool>,
}

impl<S: Storage> ImageQueue<S> {
    /// A queue of `image`. Its owner runs [`ImageQueue::runner`]s on the same thread, as many as there may be batches in
    /// flight.
    pub fn new(image: Arc<Image<S>>) -> Rc<ImageQueue<S>> {
        let here = RefCell::new(Rc::new(Here { chain: image.chain(), space: Rc::default() }));
        let (ready, bounces) = (RefCell::default(), RefCell::default());
        Rc::new(ImageQueue { image, here, ready, bounces, unseen_refused: Cell::new(false) })
    }

    /// The image.
    pub fn image(&self) -> &Arc<Image<S>> {
        &self.image
    }

    /// Gathers and writes batches until [`ImageQueue::close`].
    pub async fn runner(self: Rc<Self>) {
        let mut batch = Batch::default();
        let mut tickets = Vec::new();
        while self.gather(&mut batch, &mut tickets).await {
            let result = self.write_batch(&mut batch).await.map_err(Rc::new);
            for ticket in tickets.drain(..) {
                self.complete(ticket, result.clone());
            }
        }
    }

    /// Writes the batch to the head; if a snapshot is taken meanwhile, to the one that has its place then.
    pub(super) async fn write_batch(&self, batch: &mut Batch) -> Result<Stamp> {
        loop {
            let here = self.here();
            let head = here.writable()?;
            if let Written::At(seq) = head.write(&here.space, batch).await? {
                return Ok(Stamp { head: head.tag(), seq });
            }
        }
    }

    /// The chain as it is now.
    pub(super) fn here(&self) -> Rc<Here<S>> {
        let mut here = self.here.borrow_mut();
        let now = self.image.chain.load();
        if !Arc::ptr_eq(&here.chain, &now) {
            let head = |chain: &Chain<S>| chain.head.as_ref().map(Arc::as_ptr);
            // What was reserved of a head that is being sealed needs no giving back: nothing more is written to it.
            let space = if head(&here.chain) == head(&now) { here.space.clone() } else { Rc::default() };
            *here = Rc::new(Here { chain: Arc::clone(&now), space });
        }
        here.clone()
    }

    /// Lets go of a chain that the image has no more, also while no request comes. Ends with the image, or the queue.
    pub async fn follow(image: Arc<Image<S>>, queue: Weak<ImageQueue<S>>) {
        let mut newest = None;
        loop {
            newest = image.snapshots.another_head(newest).await;
            match queue.upgrade() {
                Some(queue) if newest.is_some() => drop(queue.here()),
                _ => return,
            }
        }
    }

    /// Waits until something is ready and moves it into the batch. `false`: the queue is closed.
    async fn gather(&self, batch: &mut Batch, tickets: &mut Vec<usize>) -> bool {
        poll_fn(|cx| {
            let mut ready = self.ready.borrow_mut();
            if ready.items.is_empty() {
                if ready.closed {
                    return Poll::Ready(false);
                }
                ready.runner_coming = false;
                if !ready.idle_runners.iter().any(|w| w.will_wake(cx.waker())) {
                    ready.idle_runners.push(cx.waker().clone());
                }
                return Poll::Pending;
            }
            while let Some((ticket, item)) = ready.items.pop_front() {
                match batch.push(item) {
                    Ok(()) => tickets.push(ticket),
                    Err(item) => {
                        ready.items.push_front((ticket, item));
                        break;
                    }
                }
            }
            ready.runner_coming = false;
            if !ready.items.is_empty() {
                ready.wake_runner();
            }
            Poll::Ready(true)
        })
        .await
    }

    fn complete(&self, ticket: usize, result: Answer) {
        let mut ready = self.ready.borrow_mut();
        let Some(state) = ready.tickets.get_mut(ticket) else { return };
        match std::mem::replace(state, Ticket::Done(result)) {
            Ticket::Waiting(waker) => {
                drop(ready);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            // The request was dropped: nobody wants the answer.
            Ticket::Taken => {
                ready.tickets.remove(ticket);
            }
            Ticket::Done(_) => unreachable!("a batch answers each request once"),
        }
    }

    /// Puts a change into the next batch; gives its number when it is written and visible.
    pub(super) async fn submit(&self, item: WriteItem) -> Result<Stamp> {
        let ticket = {
            let mut ready = self.ready.borrow_mut();
            let ticket = ready.tickets.insert(Ticket::Waiting(None));
            ready.items.push_back((ticket, item));
            ready.wake_runner();
            ticket
        };
        let guard = TicketGuard { ready: &self.ready, ticket };
        let result = poll_fn(|cx| {
            let mut ready = self.ready.borrow_mut();
            match &mut ready.tickets[ticket] {
                Ticket::Done(result) => Poll::Ready(result.clone()),
                Ticket::Waiting(waker) => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                Ticket::Taken => unreachable!("only a drop takes a ticket"),
            }
        })
        .await;
        drop(guard);
        result.map_err(|e| Error::new(e.kind(), e.to_string()))
    }

    /// Lets the runners end when nothing is ready, and gives back what was reserved. No request may be running.
    pub fn close(&self) {
        let mut ready = self.ready.borrow_mut();
        ready.closed = true;
        let runners = std::mem::take(&mut ready.idle_runners);
        drop(ready);
        runners.into_iter().for_each(Waker::wake);
        let here = self.here();
        if let Some(head) = &here.head {
            head.release_queue(&here.space);
        }
    }

    /// A buffer of `len` bytes, page-aligned, with any content.
    pub(super) fn bounce(&self, len: usize) -> Bounce<'_> {
        // Not in the match itself: it would be borrowed to the end of it.
        let kept = self.bounces.borrow_mut().pop();
        let whole = match kept {
            Some(buf) if buf.len() >= len => buf,
            Some(small) => {
                self.bounces.borrow_mut().push(small);
                IoBuf::zeroed(len)
            }
            None => IoBuf::zeroed(len.max(BOUNCE_BYTES)),
        };
        Bounce { buf: whole.slice(0..len), whole, pool: &self.bounces }
    }
}

impl Ready {
    fn wake_runner(&mut self) {
        if self.runner_coming {
            return;
        }
        if let Some(waker) = self.idle_runners.pop() {
            self.runner_coming = true;
            waker.wake();
        }
    }
}

struct TicketGuard<'a> {
    ready: &'a RefCell<Ready>,
    ticket: usize,
}

impl Drop for TicketGuard<'_> {
    fn drop(&mut self) {
        let mut ready = self.ready.borrow_mut();
        match &mut ready.tickets[self.ticket] {
            Ticket::Done(_) => {
                ready.tickets.remove(self.ticket);
            }
            waiting => *waiting = Ticket::Taken,
        }
    }
}

/// A borrowed buffer; goes back to the pool.
pub(super) struct Bounce<'a> {
    /// As many bytes as were asked for.
    pub(super) buf: IoBuf,
    whole: IoBuf,
    pool: &'a RefCell<Vec<IoBuf>>,
}

impl Drop for Bounce<'_> {
    fn drop(&mut self) {
        let mut pool = self.pool.borrow_mut();
        // A dropped request may have left an operation behind that still uses the memory: beside it, only `buf` and
        // `whole` are views.
        if self.whole.len() == BOUNCE_BYTES && pool.len() < BOUNCES && self.whole.views() == 2 {
            pool.push(self.whole.clone());
        }
    }
}
