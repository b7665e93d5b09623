//! One thread = one ring = one local executor.
//!
//! A [`Runtime`] owns an io_uring and a run queue. Tasks are spawned on the thread they run on and never move;
//! a task woken from another thread travels through a queue and an eventfd that is written only if the thread
//! sleeps. The only place where the thread sleeps is `io_uring_enter` with GETEVENTS: with DEFER_TASKRUN the
//! kernel can make progress on this ring nowhere else.

pub mod files;
pub mod net;
mod op;
mod ring;
mod signal;
pub mod sync;
mod task;
pub mod thread;

pub use op::{Op, OpOutput, Payload};
pub use ring::{RingOptions, Runtime};
pub use signal::Signal;
pub use task::{JoinHandle, spawn};

use std::time::Duration;

use io_uring::{opcode, types};

/// Starts an operation on the ring of the current thread. `payload` is kept until the completion has come.
///
/// # Panics
/// Outside of a [`Runtime`].
pub fn submit(entry: io_uring::squeue::Entry, payload: Payload) -> Op {
    ring::with_current(|inner| inner.submit(entry, payload))
}

/// Completes after `duration`.
pub async fn sleep(duration: Duration) {
    let spec = Box::new(types::Timespec::from(duration));
    let entry = opcode::Timeout::new(&*spec).build();
    // ETIME is the timer's success; any other result means that the ring is going away.
    let _ = submit(entry, Payload::Timespec(spec)).await;
}
