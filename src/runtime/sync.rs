//! State that tasks on several threads watch: a short lock and the wakers of those who wait for a change.
//!
//! The lock is never held across an await. Waiters register under the same lock that changes are made under, so
//! no wake-up is lost; a change that somebody may wait for is made with [`Monitor::update`].

use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::sync::Mutex;

/// A value, and those who wait until it has some property.
#[derive(Debug, Default)]
pub struct Monitor<T> {
    inner: Mutex<Inner<T>>,
}

#[derive(Debug, Default)]
struct Inner<T> {
    value: T,
    waiters: Vec<Waker>,
}

impl<T> Monitor<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Monitor<T> {
        Monitor { inner: Mutex::new(Inner { value, waiters: Vec::new() }) }
    }

    /// Looks at the value, or changes something that nobody waits for.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.inner.lock().value)
    }

    /// Changes the value and wakes everybody who waits.
    pub fn update<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let (result, waiters) = {
            let mut inner = self.inner.lock();
            let result = f(&mut inner.value);
            (result, std::mem::take(&mut inner.waiters))
        };
        for waker in waiters {
            waker.wake();
        }
        result
    }

    /// Waits until `f` gives a value. `f` runs under the lock, at once and after every [`Monitor::update`].
    pub async fn wait<R>(&self, mut f: impl FnMut(&mut T) -> Option<R>) -> R {
        poll_fn(move |cx| {
            let mut inner = self.inner.lock();
            if let Some(result) = f(&mut inner.value) {
                return Poll::Ready(result);
            }
            if !inner.waiters.iter().any(|w| w.will_wake(cx.waker())) {
                inner.waiters.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}
