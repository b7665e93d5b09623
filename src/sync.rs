//! The locks and atomics of the small shared cores (`map`, `space`, and what stands on `runtime::sync`): the real ones, or
//! with the feature `shuttle` those of a schedule explorer, which `tests/schedules` runs them under.

#[cfg(not(feature = "shuttle"))]
pub use parking_lot::Mutex;
#[cfg(not(feature = "shuttle"))]
pub use std::sync::atomic;

#[cfg(feature = "shuttle")]
pub use explored::Mutex;
#[cfg(feature = "shuttle")]
pub use shuttle::sync::atomic;

/// Stands in front of something that the explorer does not know, where another thread may come in between.
#[cfg(not(feature = "shuttle"))]
#[inline(always)]
pub fn pause() {}

#[cfg(feature = "shuttle")]
pub use shuttle::thread::yield_now as pause;

#[cfg(feature = "shuttle")]
mod explored {
    use shuttle::sync::MutexGuard;

    /// The explorer's mutex with the interface of the real one.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// Wraps a value.
        pub const fn new(value: T) -> Mutex<T> {
            Mutex(shuttle::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        ///
        /// # Panics
        /// If a thread has panicked with it: the schedule has failed then.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a thread panicked with the lock")
        }
    }
}
