//! The ring and the loop that drives it.
#![expect(unsafe_code, reason = "io_uring submission and the eventfd; each block states why it holds")]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use async_task::Runnable;
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;

use super::op::{Op, OpOutput, Payload, Slot};
use super::task::{self, RunQueue, Shared};
use crate::storage::IoBuf;

/// `user_data` of the eventfd read; no slab key gets there.
const WAKE_KEY: u64 = u64::MAX;
/// `user_data` of operations whose completion nobody wants.
const IGNORE_KEY: u64 = u64::MAX - 1;
/// Tasks run before the ring is looked at again.
const TURN: usize = 512;

/// Size of a ring.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Submission entries; the completion queue gets four times as many, since ublk keeps one operation in
    /// flight for each idle tag.
    pub entries: u32,
}

impl Default for RingOptions {
    fn default() -> Self {
        RingOptions { entries: 256 }
    }
}

pub(super) struct Inner {
    ring: RefCell<IoUring>,
    pub(super) slots: RefCell<Slab<Slot>>,
    pub(super) local: RefCell<RunQueue>,
    /// The tasks that have not ended.
    pub(super) alive: RefCell<Slab<Waker>>,
    pub(super) shared: Arc<Shared>,
    /// Wakers of the completions of one turn; they run only after the table is free again.
    woken: RefCell<Vec<Waker>>,
    /// The eventfd is read into this.
    wake_buf: IoBuf,
    wake_armed: Cell<bool>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Inner>>> = const { RefCell::new(None) };
}

pub(super) fn with_current<R>(f: impl FnOnce(&Rc<Inner>) -> R) -> R {
    CURRENT.with(|current| match &*current.borrow() {
        Some(inner) => f(inner),
        None => panic!("an asynchronous operation was started outside of a runtime"),
    })
}

/// Queues `task` if `shared` belongs to this thread; gives it back otherwise.
pub(super) fn push_local(shared: &Arc<Shared>, task: Runnable) -> Option<Runnable> {
    CURRENT
        .try_with(|current| match &*current.borrow() {
            Some(inner) if Arc::ptr_eq(&inner.shared, shared) => {
                inner.local.borrow_mut().push_back(task);
                None
            }
            _ => Some(task),
        })
        .unwrap_or(None)
}

pub(super) fn signal(eventfd: RawFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: writes eight bytes from a live array. The counter cannot overflow: it is written once per sleep.
    let _ = unsafe { libc::write(eventfd, one.as_ptr().cast(), one.len()) };
}

fn new_eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked and owned once.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn new_ring(options: RingOptions) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(options.entries * 4).setup_submit_all().setup_single_issuer().setup_defer_taskrun();
    builder.setup_taskrun_flag();
    match builder.build(options.entries) {
        // Kernels before 6.1 do not know these flags; the loop below is right without them.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().setup_cqsize(options.entries * 4).build(options.entries)
        }
        other => other,
    }
}

/// A ring and its executor, bound to the thread that made it.
#[derive(Debug)]
pub struct Runtime {
    inner: Rc<Inner>,
}

impl Runtime {
    /// Makes the ring on the calling thread, which must be the one that runs it.
    pub fn new(options: RingOptions) -> io::Result<Runtime> {
        let inner = Rc::new(Inner {
            ring: RefCell::new(new_ring(options)?),
            slots: RefCell::new(Slab::with_capacity(options.entries as usize * 2)),
            local: RefCell::new(RunQueue::with_capacity(256)),
            shared: task::new_shared(new_eventfd()?),
            alive: RefCell::default(),
            woken: RefCell::new(Vec::with_capacity(options.entries as usize)),
            wake_buf: IoBuf::zeroed(8),
            wake_armed: Cell::new(false),
        });
        Ok(Runtime { inner })
    }

    /// Makes a buffer table of `count` empty entries, for drivers that put pages into it.
    ///
    /// # Errors
    /// Before Linux 5.19.
    pub fn make_entries(&self, count: u16) -> io::Result<()> {
        self.inner.ring.borrow().submitter().register_buffers_sparse(count.into())
    }

    /// Makes a buffer table of this memory.
    #[cfg(feature = "sim")]
    pub fn register(&self, bufs: &[IoBuf]) -> io::Result<()> {
        let list: Vec<_> = bufs
            .iter()
            .map(|buf| libc::iovec { iov_base: buf.as_ptr().cast(), iov_len: buf.len() })
            .collect();
        // SAFETY: the kernel holds on to the pages by itself; the caller keeps the memory as long as it uses the entries.
        unsafe { self.inner.ring.borrow().submitter().register_buffers(&list) }
    }

    /// Runs `future`, and every task spawned meanwhile, until `future` is done. Tasks that are not done then
    /// stay where they are until the next `block_on`, or the drop of the runtime.
    ///
    /// # Panics
    /// Inside another `block_on` on the same thread.
    pub fn block_on<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let before = CURRENT.with(|c| c.replace(Some(self.inner.clone())));
        assert!(before.is_none(), "block_on within block_on");
        let reset = ResetCurrent;
        let mut main = pin!(task::spawn(future));
        let mut cx = Context::from_waker(Waker::noop());
        let value = loop {
            self.inner.run_ready();
            if let Poll::Ready(value) = main.as_mut().poll(&mut cx) {
                break value;
            }
            if let Err(e) = self.inner.enter() {
                panic!("io_uring_enter: {e}");
            }
        };
        drop(reset);
        value
    }
}

struct ResetCurrent;
impl Drop for ResetCurrent {
    fn drop(&mut self) {
        CURRENT.with(|c| c.replace(None));
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Tasks hold operations, which hold `inner`: without this the cycle would keep ring and files open.
        task::drop_all(&self.inner);
        self.inner.shared.remote.close();
        self.inner.drain();
    }
}

impl Inner {
    pub(super) fn submit(self: &Rc<Self>, entry: squeue::Entry, payload: Payload) -> Op {
        let key = self.slots.borrow_mut().insert(Slot::Running { waker: None, payload });
        self.push(entry.user_data(key as u64));
        Op::new(self.clone(), key)
    }

    fn push(&self, entry: squeue::Entry) {
        let mut ring = self.ring.borrow_mut();
        loop {
            // SAFETY: everything the entry points to is in the slot's payload, which stays in the table until
            // the completion of this entry has been reaped.
            if unsafe { ring.submission().push(&entry) }.is_ok() {
                return;
            }
            match ring.submit() {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
                Err(e) => panic!("io_uring submission: {e}"),
            }
        }
    }

    /// Runs the tasks that are ready now, at most [`TURN`].
    fn run_ready(&self) {
        for _ in 0..TURN {
            let next = self.local.borrow_mut().pop_front().or_else(|| self.shared.remote.pop().ok());
            match next {
                Some(task) => {
                    task.run();
                }
                None => return,
            }
        }
    }

    /// Submits what is queued, sleeps if there is nothing to run, and reaps completions.
    fn enter(&self) -> io::Result<()> {
        if !self.wake_armed.replace(true) {
            let fd = types::Fd(self.shared.eventfd.as_raw_fd());
            self.push(opcode::Read::new(fd, self.wake_buf.as_ptr(), 8).build().user_data(WAKE_KEY));
        }
        self.shared.sleeping.store(true, Ordering::SeqCst);
        // Checked after the flag is up: a task pushed before was seen here, one pushed later writes the eventfd.
        let idle = self.local.borrow().is_empty() && self.shared.remote.is_empty();
        let entered = self.get_events(usize::from(idle));
        self.shared.sleeping.store(false, Ordering::SeqCst);
        match entered {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {}
            other => other?,
        }
        self.reap();
        Ok(())
    }

    /// One `io_uring_enter` that submits, and with GETEVENTS also when it does not wait: deferred task work runs
    /// nowhere else.
    fn get_events(&self, want: usize) -> io::Result<()> {
        const ENTER_GETEVENTS: u32 = 1;
        let mut ring = self.ring.borrow_mut();
        let to_submit = ring.submission().len();
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the ring's size")]
        // SAFETY: no argument struct is passed; flags and counts are plain numbers.
        unsafe {
            ring.submitter().enter::<libc::sigset_t>(to_submit as u32, want as u32, ENTER_GETEVENTS, None)?;
        }
        Ok(())
    }

    fn reap(&self) {
        let mut woken = self.woken.take();
        self.reap_into(&mut woken);
        // A wake may drop a task, and with it operations that look into the table: nothing is borrowed here.
        for waker in woken.drain(..) {
            waker.wake();
        }
        self.woken.replace(woken);
    }

    fn reap_into(&self, woken: &mut Vec<Waker>) {
        let mut ring = self.ring.borrow_mut();
        let mut slots = self.slots.borrow_mut();
        for cqe in ring.completion() {
            match cqe.user_data() {
                WAKE_KEY => self.wake_armed.set(false),
                IGNORE_KEY => {}
                #[expect(clippy::cast_possible_truncation, reason = "a slab key made by `submit`")]
                key => woken.extend(complete(&mut slots, key as usize, cqe.result())),
            }
        }
    }

    /// Cancels what is in flight and waits for it, so that no buffer goes away under the kernel.
    fn drain(&self) {
        for _ in 0..1000 {
            let running = self.slots.borrow().iter().any(|(_, s)| !matches!(s, Slot::Done(_)));
            if !running && !self.wake_armed.get() {
                return;
            }
            let cancel = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build().user_data(IGNORE_KEY);
            self.push(cancel);
            if self.get_events(1).is_err() {
                break;
            }
            self.reap();
        }
        // Something the kernel will not give up: its memory must outlive this process's interest in it.
        for slot in self.slots.borrow_mut().drain() {
            std::mem::forget(slot);
        }
    }
}

/// Stores a completion; gives the waker of whoever waits for it.
fn complete(slots: &mut Slab<Slot>, key: usize, raw: i32) -> Option<Waker> {
    let slot = slots.get_mut(key).expect("the kernel completes only what was submitted");
    match slot {
        Slot::Running { waker, payload } => {
            let waker = waker.take();
            *slot = Slot::Done(OpOutput { raw, payload: std::mem::take(payload) });
            waker
        }
        Slot::Orphaned { .. } => {
            slots.remove(key);
            None
        }
        Slot::Done(_) => unreachable!("two completions of one operation"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{sleep, spawn};
    use crate::storage::uring::Uring;
    use crate::storage::{File, IoVecs, OpenHow, Storage, read_exact, read_up_to, write_all};
    use std::sync::Mutex;
    use std::time::Duration;

    fn runtime() -> Runtime {
        Runtime::new(RingOptions { entries: 32 }).unwrap()
    }

    #[test]
    fn a_file_reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        runtime().block_on(async move {
            let file = Uring.create(&path, 0o600).unwrap();
            file.allocate(0, 16384).await.result.unwrap();
            let mut vecs = IoVecs::one(IoBuf::from_slice(&[7; 4096]));
            vecs.push(IoBuf::from_slice(&[8; 4096]));
            write_all(&file, vecs, 4096).await.0.unwrap();
            file.sync_data().await.result.unwrap();
            let buf = IoBuf::zeroed(12288);
            read_exact(&file, buf.clone(), 4096).await.unwrap();
            let bytes = buf.to_vec();
            assert_eq!((bytes[0], bytes[4096], bytes[8192]), (7, 8, 0));
            file.punch(4096, 4096).await.result.unwrap();
            let reader = Uring.open(&path, OpenHow::default()).unwrap();
            assert_eq!(read_up_to(&reader, buf.clone(), 8192).await.unwrap(), 8192);
            assert_eq!(read_up_to(&reader, buf.clone(), 1 << 20).await.unwrap(), 0);
        });
    }

    #[test]
    fn a_dropped_operation_keeps_its_buffer_and_the_runtime_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let rt = runtime();
        rt.block_on(async move {
            let file = Uring.create(&path, 0o600).unwrap();
            drop(file.write(IoVecs::one(IoBuf::zeroed(4096)), 0));
            spawn(async { sleep(Duration::from_secs(3600)).await });
        });
        drop(rt);
    }

    #[test]
    fn tasks_end_with_their_runtime_and_a_late_wake_up_finds_none() {
        struct Gone(Arc<Mutex<Option<std::thread::ThreadId>>>);
        impl Drop for Gone {
            fn drop(&mut self) {
                *self.0.lock().unwrap() = Some(std::thread::current().id());
            }
        }
        let waker: Arc<Mutex<Option<Waker>>> = Arc::default();
        let gone = Arc::default();
        let (theirs, dropped) = (waker.clone(), Gone(Arc::clone(&gone)));
        let id = std::thread::spawn(move || {
            let rt = runtime();
            rt.block_on(async move {
                spawn(std::future::poll_fn(move |cx| {
                    let _ = &dropped;
                    *theirs.lock().unwrap() = Some(cx.waker().clone());
                    Poll::<()>::Pending
                }));
                sleep(Duration::from_millis(1)).await;
            });
            drop(rt);
            std::thread::current().id()
        });
        let id = id.join().unwrap();
        assert_eq!(*gone.lock().unwrap(), Some(id), "the task is dropped by its own thread");
        waker.lock().unwrap().take().unwrap().wake();
    }

    #[test]
    fn a_task_is_woken_from_another_thread() {
        let shared: Arc<Mutex<(bool, Option<Waker>)>> = Arc::default();
        let theirs = shared.clone();
        let waiting = std::future::poll_fn(move |cx| {
            let mut state = shared.lock().unwrap();
            state.1 = Some(cx.waker().clone());
            if state.0 { Poll::Ready(()) } else { Poll::Pending }
        });
        let other = std::thread::spawn(move || {
            loop {
                let mut state = theirs.lock().unwrap();
                if let Some(waker) = state.1.take() {
                    state.0 = true;
                    drop(state);
                    return waker.wake();
                }
                drop(state);
                std::thread::yield_now();
            }
        });
        runtime().block_on(waiting);
        other.join().unwrap();
    }
}
