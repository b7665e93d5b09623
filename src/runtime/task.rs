//! Tasks of the local executor.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use async_task::{Runnable, Task};
use concurrent_queue::ConcurrentQueue;
use std::os::fd::{AsRawFd, OwnedFd};

use super::ring;

/// The part of a runtime that other threads may touch.
#[derive(Debug)]
pub(super) struct Shared {
    /// Tasks woken by other threads.
    pub(super) remote: ConcurrentQueue<Runnable>,
    /// True while the thread sleeps in the kernel, or is about to.
    pub(super) sleeping: AtomicBool,
    pub(super) eventfd: OwnedFd,
}

impl Shared {
    fn wake_remote(&self, task: Runnable) {
        // An unbounded queue refuses only when closed, which happens when the thread has ended: the task's
        // memory goes with it.
        if self.remote.push(task).is_err() {
            return;
        }
        if self.sleeping.swap(false, Ordering::SeqCst) {
            ring::signal(self.eventfd.as_raw_fd());
        }
    }
}

pub(super) type RunQueue = VecDeque<Runnable>;

/// A spawned task's result. Dropping it lets the task run on.
#[derive(Debug)]
pub struct JoinHandle<T>(Option<Task<T>>);

impl<T> Future for JoinHandle<T> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            Some(task) => Pin::new(task).poll(cx),
            None => unreachable!("taken only by drop"),
        }
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

/// Runs `future` on the current thread's runtime.
///
/// # Panics
/// Outside of a [`super::Runtime`].
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    let shared = ring::with_current(|inner| inner.shared.clone());
    let schedule = move |task: Runnable| {
        if let Some(task) = ring::push_local(&shared, task) {
            shared.wake_remote(task);
        }
    };
    let (runnable, task) = async_task::spawn_local(future, schedule);
    runnable.schedule();
    JoinHandle(Some(task))
}

pub(super) fn new_shared(eventfd: OwnedFd) -> Arc<Shared> {
    Arc::new(Shared { remote: ConcurrentQueue::unbounded(), sleeping: AtomicBool::new(false), eventfd })
}
