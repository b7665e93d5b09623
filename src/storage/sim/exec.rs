//! The seeded executor: one thread, and chance decides what happens next.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

use super::disk::SimDisk;
use super::rng::Rng;

/// Polls in a row, without any operation in flight, after which tasks are taken to wake each other for ever.
const MAX_IDLE_POLLS: u64 = 10_000_000;

/// One time out of so many, the straggler may end although something else could happen.
const RELEASE: u64 = 512;

/// Runs tasks, and completes the operations of a disk, in an order drawn from a seed. Dropping it drops its
/// tasks, as the death of a process does; what is in flight on the disk stays so.
pub struct Executor {
    inner: Rc<Inner>,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("seed", &self.inner.seed).finish()
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

struct Inner {
    disk: SimDisk,
    seed: u64,
    rng: RefCell<Rng>,
    habits: Habits,
    next_task: Cell<u64>,
    tasks: RefCell<BTreeMap<u64, (Task, Arc<TaskWaker>)>>,
    ready: Arc<Mutex<Vec<u64>>>,
    /// Index of an operation that is held back while others can end.
    straggler: Cell<Option<u64>>,
    idle_polls: Cell<u64>,
}

/// What kind of schedule a seed stands for. Uniform choices alone would hardly ever give the extreme ones.
#[derive(Clone, Copy, Debug)]
struct Habits {
    /// Times out of 8 that a task runs when an operation could end instead; never 8, as a task may poll for it.
    tasks_first: u64,
    /// Which of the runnable tasks, and which of the operations.
    task: Pick,
    op: Pick,
    /// One time out of so many, an operation becomes the straggler.
    straggle: u64,
}

#[derive(Clone, Copy, Debug)]
enum Pick {
    Any,
    Oldest,
    Newest,
}

impl Pick {
    const fn draw(number: u64) -> Pick {
        match number {
            0 => Pick::Oldest,
            1 => Pick::Newest,
            _ => Pick::Any,
        }
    }

    /// An index into a list of `len`, in order of age.
    fn from(self, len: usize, rng: &mut Rng) -> usize {
        match self {
            Pick::Any => rng.index(len),
            Pick::Oldest => 0,
            Pick::Newest => len - 1,
        }
    }
}

impl Habits {
    fn draw(rng: &mut Rng) -> Habits {
        Habits {
            tasks_first: rng.below(8),
            task: Pick::draw(rng.below(4)),
            op: Pick::draw(rng.below(6)),
            straggle: 4 << rng.below(8),
        }
    }
}

thread_local! {
    /// The executors that poll on this thread, innermost last.
    static CURRENT: RefCell<Vec<Weak<Inner>>> = const { RefCell::new(Vec::new()) };
}

/// Makes an executor the current one as long as it lives.
struct Entered;

impl Entered {
    fn new(inner: &Rc<Inner>) -> Entered {
        CURRENT.with(|current| current.borrow_mut().push(Rc::downgrade(inner)));
        Entered
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|current| current.borrow_mut().pop());
    }
}

struct TaskWaker {
    task: u64,
    queued: AtomicBool,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.ready.lock().push(self.task);
        }
    }
}

/// A spawned task's result. Dropping it lets the task run on.
pub struct JoinHandle<T> {
    outcome: Rc<RefCell<Outcome<T>>>,
}

struct Outcome<T> {
    done: bool,
    value: Option<T>,
    waker: Option<Waker>,
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("finished", &self.is_finished()).finish()
    }
}

impl<T> JoinHandle<T> {
    /// True once the task has ended.
    pub fn is_finished(&self) -> bool {
        self.outcome.borrow().done
    }

    /// The result, if the task has ended and nobody has taken it.
    pub fn try_take(&self) -> Option<T> {
        self.outcome.borrow_mut().value.take()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut outcome = self.outcome.borrow_mut();
        outcome.waker = Some(cx.waker().clone());
        outcome.value.take().map_or(Poll::Pending, Poll::Ready)
    }
}

/// Runs `future` on the executor that polls the caller.
///
/// # Panics
/// Outside of a task.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    let current = CURRENT.with(|current| current.borrow().last().and_then(Weak::upgrade));
    current.expect("called from a task of an executor").spawn(future)
}

/// What happens next.
enum Next {
    Poll(u64),
    Complete(usize),
    Nothing,
}

impl Executor {
    /// An executor for the operations of `disk`.
    pub fn new(disk: &SimDisk, seed: u64) -> Executor {
        let mut rng = Rng::new(seed);
        let habits = Habits::draw(&mut rng);
        let inner = Inner {
            disk: disk.clone(),
            seed,
            rng: RefCell::new(rng),
            habits,
            next_task: Cell::new(0),
            tasks: RefCell::default(),
            ready: Arc::default(),
            straggler: Cell::new(None),
            idle_polls: Cell::new(0),
        };
        Executor { inner: Rc::new(inner) }
    }

    /// Adds a task.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        self.inner.spawn(future)
    }

    /// Runs until `future` has ended; other tasks and operations may be left over.
    ///
    /// # Panics
    /// If it can never end ("deadlock"), or tasks keep waking each other; the message has the seed.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let waker = self.inner.new_task();
        loop {
            match self.inner.next() {
                Next::Poll(task) if task == waker.task => {
                    if let Poll::Ready(value) = self.inner.poll(future.as_mut(), &waker) {
                        return value;
                    }
                }
                Next::Nothing => {
                    self.inner.give_up("deadlock: the main task waits for something that nobody does")
                }
                next => self.inner.step(next),
            }
        }
    }

    /// Runs until no task can run and no operation is in flight.
    pub fn run_until_idle(&self) {
        while self.step() {}
    }

    /// Does one thing: polls a task, or ends an operation. `false` if there is nothing to do.
    pub fn step(&self) -> bool {
        let next = self.inner.next();
        let some = !matches!(next, Next::Nothing);
        self.inner.step(next);
        some
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.inner.tasks.borrow().len()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // A task may hold the executor's waker and spawn while it is dropped, so the map is free meanwhile.
        let tasks = std::mem::take(&mut *self.inner.tasks.borrow_mut());
        drop(tasks);
    }
}

impl Inner {
    /// A number for a new task, which is runnable.
    fn new_task(&self) -> Arc<TaskWaker> {
        let task = self.next_task.replace(self.next_task.get() + 1);
        let waker = Arc::new(TaskWaker { task, queued: AtomicBool::new(false), ready: self.ready.clone() });
        waker.wake_by_ref();
        waker
    }

    fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let outcome = Rc::new(RefCell::new(Outcome { done: false, value: None, waker: None }));
        let result = outcome.clone();
        let task = Box::pin(async move {
            let value = future.await;
            let mut outcome = result.borrow_mut();
            (outcome.done, outcome.value) = (true, Some(value));
            let waker = outcome.waker.take();
            drop(outcome);
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        let waker = self.new_task();
        self.tasks.borrow_mut().insert(waker.task, (task, waker));
        JoinHandle { outcome }
    }

    fn next(&self) -> Next {
        let mut rng = self.rng.borrow_mut();
        let mut ready = self.ready.lock();
        let in_flight = self.disk.in_flight();
        let tasks_first = match in_flight {
            0 => true,
            // Only the straggler can end, and it would rather not.
            1 if self.straggler_at().is_some() => !rng.chance(1, RELEASE),
            _ => rng.chance(self.habits.tasks_first, 8),
        };
        if !ready.is_empty() && tasks_first {
            let picked = self.habits.task.from(ready.len(), &mut rng);
            return Next::Poll(ready.remove(picked));
        }
        if in_flight == 0 {
            return Next::Nothing;
        }
        Next::Complete(self.pick_op(in_flight, &mut rng))
    }

    /// Where the straggler is among the operations in flight.
    fn straggler_at(&self) -> Option<usize> {
        self.straggler.get().and_then(|index| self.disk.position(index))
    }

    /// One of the operations in flight: not the straggler, unless it is alone or released.
    fn pick_op(&self, in_flight: usize, rng: &mut Rng) -> usize {
        match self.straggler_at() {
            Some(held) if in_flight > 1 && !rng.chance(1, RELEASE) => {
                let picked = self.habits.op.from(in_flight - 1, rng);
                return picked + usize::from(picked >= held);
            }
            Some(_) => self.straggler.set(None),
            None if rng.chance(1, self.habits.straggle) => {
                self.straggler.set(Some(self.disk.index_in_flight(rng.index(in_flight))));
            }
            None => {}
        }
        self.habits.op.from(in_flight, rng)
    }

    fn step(self: &Rc<Self>, next: Next) {
        match next {
            Next::Poll(task) => {
                // Gone if it has ended after it was woken.
                let Some((mut future, waker)) = self.tasks.borrow_mut().remove(&task) else { return };
                if self.poll(future.as_mut(), &waker).is_pending() {
                    self.tasks.borrow_mut().insert(task, (future, waker));
                }
            }
            Next::Complete(nth) => {
                self.idle_polls.set(0);
                self.disk.complete(nth);
            }
            Next::Nothing => {}
        }
    }

    fn poll<F: Future + ?Sized>(
        self: &Rc<Self>,
        future: Pin<&mut F>,
        waker: &Arc<TaskWaker>,
    ) -> Poll<F::Output> {
        self.idle_polls.set(self.idle_polls.get() + 1);
        if self.idle_polls.get() > MAX_IDLE_POLLS {
            self.give_up("livelock: tasks wake each other for ever");
        }
        waker.queued.store(false, Ordering::SeqCst);
        let _entered = Entered::new(self);
        future.poll(&mut Context::from_waker(&Waker::from(waker.clone())))
    }

    fn give_up(&self, why: &str) -> ! {
        let (seed, tasks) = (self.seed, self.tasks.borrow().len());
        panic!("{why} (executor seed {seed}, {} operations issued, {tasks} other tasks)", self.disk.ops());
    }
}
