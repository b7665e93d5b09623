//! Tasks of the local executor.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

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
        // An unbounded queue refuses only when closed, which happens when the runtime has ended, after all its tasks.
        // Should one be left its future must not be dropped here, on another thread than its own.
        if let Err(late) = self.remote.push(task) {
            return std::mem::forget(late.into_inner());
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
    let inner = ring::with_current(Rc::clone);
    let shared = inner.shared.clone();
    let schedule = move |task: Runnable| {
        if let Some(task) = ring::push_local(&shared, task) {
            shared.wake_remote(task);
        }
    };
    let key = inner.alive.borrow().vacant_key();
    let alive = Alive { inner: inner.clone(), key };
    let (runnable, task) = async_task::spawn_local(
        async move {
            let _alive = alive;
            future.await
        },
        schedule,
    );
    inner.alive.borrow_mut().insert(runnable.waker());
    runnable.schedule();
    JoinHandle(Some(task))
}

/// Takes a task that has ended, or was dropped, off the list of its runtime.
struct Alive {
    inner: Rc<ring::Inner>,
    key: usize,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.inner.alive.borrow_mut().try_remove(self.key);
    }
}

/// Drops the futures of all tasks, on their own thread: a wake-up that comes later finds nothing to run.
pub(super) fn drop_all(inner: &ring::Inner) {
    loop {
        // Whoever sleeps is put into the queue, where it can be reached.
        let sleeping: Vec<Waker> = inner.alive.borrow().iter().map(|(_, waker)| waker.clone()).collect();
        sleeping.into_iter().for_each(Waker::wake);
        let mut found: Vec<Runnable> = inner.local.borrow_mut().drain(..).collect();
        found.extend(inner.shared.remote.try_iter());
        if found.is_empty() {
            return;
        }
    }
}

pub(super) fn new_shared(eventfd: OwnedFd) -> Arc<Shared> {
    Arc::new(Shared { remote: ConcurrentQueue::unbounded(), sleeping: AtomicBool::new(false), eventfd })
}
