//! A running ring operation as a future.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::types::Timespec;

use super::ring::Inner;
use crate::storage::{IoBuf, IoVecs};

/// What the kernel reads or writes while an operation runs. Kept in the ring's table until the completion.
#[derive(Debug, Default)]
pub enum Payload {
    /// Nothing.
    #[default]
    None,
    /// One buffer.
    Buf(IoBuf),
    /// A list of buffers.
    Vecs(IoVecs),
    /// A timer's duration.
    Timespec(Box<Timespec>),
    /// Anything else that must live as long (socket addresses, message headers).
    Other(Box<dyn std::any::Any>),
}

/// The completion: the result as the kernel gave it (a count, or an errno), and the payload back.
#[derive(Debug)]
pub struct OpOutput {
    /// `>= 0`: the count; `< 0`: minus errno.
    pub raw: i32,
    /// What was given to [`super::submit`].
    pub payload: Payload,
}

impl OpOutput {
    /// The result in Rust's terms.
    pub fn result(&self) -> io::Result<usize> {
        usize::try_from(self.raw).map_err(|_| io::Error::from_raw_os_error(-self.raw))
    }
}

/// State of a slot in the ring's table of operations.
#[derive(Debug)]
pub(super) enum Slot {
    Running {
        waker: Option<Waker>,
        payload: Payload,
    },
    /// The future was dropped; the payload waits for the completion.
    Orphaned {
        _payload: Payload,
    },
    Done(OpOutput),
}

/// A running operation. Dropping it does not cancel it.
#[derive(Debug)]
pub struct Op {
    inner: Option<Rc<Inner>>,
    key: usize,
}

impl Op {
    pub(super) fn new(inner: Rc<Inner>, key: usize) -> Op {
        Op { inner: Some(inner), key }
    }
}

impl Future for Op {
    type Output = OpOutput;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<OpOutput> {
        let Some(inner) = &self.inner else { panic!("an operation was polled after its completion") };
        let mut slots = inner.slots.borrow_mut();
        match &mut slots[self.key] {
            Slot::Running { waker, .. } => {
                if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            Slot::Orphaned { .. } => unreachable!("the future is alive"),
            Slot::Done(_) => {
                let Slot::Done(output) = slots.remove(self.key) else { unreachable!("matched above") };
                drop(slots);
                self.inner = None;
                Poll::Ready(output)
            }
        }
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        let mut slots = inner.slots.borrow_mut();
        match &mut slots[self.key] {
            Slot::Running { payload, .. } => {
                let payload = std::mem::take(payload);
                slots[self.key] = Slot::Orphaned { _payload: payload };
            }
            Slot::Done(_) => {
                slots.remove(self.key);
            }
            Slot::Orphaned { .. } => unreachable!("only a drop makes orphans"),
        }
    }
}
