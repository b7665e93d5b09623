//! How long requests take: a histogram for each kind of request and each queue, of a fixed size.
//!
//! A queue's numbers are written by its own thread alone, so that counting is a load and a store on memory that is its
//! own; whoever asks adds up all queues.

use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Everything faster than this is in the first bucket, in nanoseconds: a power of two.
const FIRST_NS: u64 = 1 << 10;
/// Buckets of each power of two.
const STEPS: usize = 4;
/// Powers of two: up to 68 seconds.
pub(super) const POWERS: usize = 26;
/// With the first bucket, and one for all that is slower.
const BUCKETS: usize = POWERS * STEPS + 2;

/// Kinds of requests, as indices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

const OPERATIONS: usize = 5;

/// The bucket of a time: a power of two in quarters.
fn bucket(ns: u64) -> usize {
    if ns < FIRST_NS {
        return 0;
    }
    let power = ns.ilog2() as usize;
    let quarter = (ns >> (power - 2)) as usize & (STEPS - 1);
    (1 + (power - FIRST_NS.ilog2() as usize) * STEPS + quarter).min(BUCKETS - 1)
}

/// What no time in the bucket reaches, in nanoseconds.
fn upper_ns(bucket: usize) -> u64 {
    match bucket.checked_sub(1) {
        None => FIRST_NS,
        Some(_) if bucket == BUCKETS - 1 => u64::MAX,
        Some(at) => (FIRST_NS >> 2 << (at / STEPS)) * (STEPS + at % STEPS + 1) as u64,
    }
}

#[derive(Debug)]
struct Times {
    sum_ns: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Times {
    fn default() -> Times {
        Times { sum_ns: AtomicU64::default(), buckets: [const { AtomicU64::new(0) }; BUCKETS] }
    }
}

/// Adds to a number that one thread writes.
fn add(to: &AtomicU64, more: u64) {
    to.store(to.load(Relaxed).wrapping_add(more), Relaxed);
}

/// The numbers of one queue.
#[derive(Debug, Default)]
#[repr(align(128))]
struct QueueTimes {
    operations: [Times; OPERATIONS],
    running: AtomicU64,
}

impl QueueTimes {
    fn add_to(&self, sum: &QueueTimes) {
        for (from, to) in self.operations.iter().zip(&sum.operations) {
            add(&to.sum_ns, from.sum_ns.load(Relaxed));
            for (from, to) in from.buckets.iter().zip(&to.buckets) {
                add(to, from.load(Relaxed));
            }
        }
        add(&sum.running, self.running.load(Relaxed));
    }
}

/// The numbers of all queues of a disk.
#[derive(Debug, Default)]
pub(super) struct DiskTimes {
    queues: Mutex<Vec<Arc<QueueTimes>>>,
    /// Of queues that have ended.
    past: QueueTimes,
}

impl DiskTimes {
    /// For a new queue, on its thread.
    pub(super) fn queue(self: &Arc<DiskTimes>) -> Clock {
        let times = Arc::<QueueTimes>::default();
        self.queues.lock().push(times.clone());
        Clock { disk: self.clone(), times, one_thread: PhantomData }
    }

    fn sum(&self) -> QueueTimes {
        let sum = QueueTimes::default();
        // Queues end under the same lock: none is missed, none counted twice.
        let queues = self.queues.lock();
        self.past.add_to(&sum);
        queues.iter().for_each(|queue| queue.add_to(&sum));
        drop(queues);
        sum
    }

    /// What `status` says of it.
    pub(super) fn report(&self) -> (Latencies, u64) {
        let sum = self.sum();
        let of = |operation: Operation| Latency::of(&sum.operations[operation as usize]);
        let latencies = Latencies {
            read: of(Operation::Read),
            write: of(Operation::Write),
            flush: of(Operation::Flush),
            discard: of(Operation::Discard),
            write_zeroes: of(Operation::WriteZeroes),
        };
        (latencies, sum.running.load(Relaxed))
    }
}

/// Measures the requests of a queue. It stays on the queue's thread.
#[derive(Debug)]
pub(super) struct Clock {
    disk: Arc<DiskTimes>,
    times: Arc<QueueTimes>,
    one_thread: PhantomData<Rc<()>>,
}

impl Drop for Clock {
    fn drop(&mut self) {
        let mut queues = self.disk.queues.lock();
        queues.retain(|queue| !Arc::ptr_eq(queue, &self.times));
        self.times.add_to(&self.disk.past);
    }
}

impl Clock {
    /// Runs a request.
    pub(super) async fn time<T>(&self, operation: Operation, request: impl Future<Output = T>) -> T {
        let running = Running::new(&self.times.running);
        let begin = Instant::now();
        let result = request.await;
        self.record(operation, begin.elapsed());
        drop(running);
        result
    }

    /// Runs what may turn out to be no request yet (`false`), which is not counted.
    pub(super) async fn time_if_done<E>(
        &self,
        operation: Operation,
        request: impl Future<Output = Result<bool, E>>,
    ) -> Result<bool, E> {
        let running = Running::new(&self.times.running);
        let begin = Instant::now();
        let result = request.await;
        if !matches!(result, Ok(false)) {
            self.record(operation, begin.elapsed());
        }
        drop(running);
        result
    }

    fn record(&self, operation: Operation, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let times = &self.times.operations[operation as usize];
        add(&times.sum_ns, ns);
        add(&times.buckets[bucket(ns)], 1);
    }
}

/// A request that runs; also if it is dropped.
struct Running<'a>(&'a AtomicU64);

impl<'a> Running<'a> {
    fn new(count: &'a AtomicU64) -> Running<'a> {
        add(count, 1);
        Running(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        add(self.0, u64::MAX);
    }
}

/// How long requests of one kind took, from the frontend's hands to its answer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Requests ended.
    pub count: u64,
    /// Their times together, in nanoseconds.
    pub sum_ns: u64,
    /// What half of them did not exceed, in microseconds, at most a fifth too large.
    pub p50_us: u64,
    /// The same for 99 %.
    pub p99_us: u64,
    /// The same for 99.9 %.
    pub p999_us: u64,
    /// Requests by time: number i took less than 1.024 us * 2^i, and not less than the one before; the last one all that
    /// were slower.
    pub buckets: Vec<u64>,
}

impl Latency {
    fn of(times: &Times) -> Latency {
        let counts: Vec<u64> = times.buckets.iter().map(|count| count.load(Relaxed)).collect();
        let count = counts.iter().sum();
        let us = |thousandths: u64| quantile_ns(&counts, count, thousandths).div_ceil(1000);
        let (first, rest) = counts.split_first().map_or((0, &[][..]), |(first, rest)| (*first, rest));
        Latency {
            count,
            sum_ns: times.sum_ns.load(Relaxed),
            p50_us: us(500),
            p99_us: us(990),
            p999_us: us(999),
            buckets: std::iter::once(first)
                .chain(rest.chunks(STEPS).map(|power| power.iter().sum()))
                .collect(),
        }
    }

    /// The bounds of [`Latency::buckets`] but the last, in nanoseconds.
    pub fn bounds_ns() -> impl Iterator<Item = u64> {
        (0..=POWERS).map(|power| FIRST_NS << power)
    }
}

fn quantile_ns(counts: &[u64], count: u64, thousandths: u64) -> u64 {
    let wanted = u128::from(count) * u128::from(thousandths);
    let mut seen = 0;
    let found = counts.iter().position(|bucket| {
        seen += bucket;
        seen > 0 && u128::from(seen) * 1000 >= wanted
    });
    found.map_or(0, |at| upper_ns(at).min(upper_ns(BUCKETS - 2)))
}

/// The same for each kind of request.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Latencies {
    /// Reads.
    pub read: Latency,
    /// Writes.
    pub write: Latency,
    /// Flushes.
    pub flush: Latency,
    /// Discards.
    pub discard: Latency,
    /// Write-zeroes.
    pub write_zeroes: Latency,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        let mut last = 0;
        for at in 0..BUCKETS - 1 {
            let upper = upper_ns(at);
            assert_eq!((bucket(last), bucket(upper - 1), bucket(upper)), (at, at, at + 1));
            last = upper;
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
        assert_eq!(Latency::bounds_ns().last(), Some(upper_ns(BUCKETS - 2)));
    }

    #[test]
    fn queues_add_up_also_those_that_have_ended() {
        let disk = Arc::<DiskTimes>::default();
        let (first, second) = (disk.queue(), disk.queue());
        for us in 1..=1000 {
            let queue = if us % 2 == 0 { &first } else { &second };
            queue.record(Operation::Write, Duration::from_micros(us));
        }
        drop(first);
        second.record(Operation::Flush, Duration::from_secs(3600));
        let (report, running) = disk.report();
        let write = &report.write;
        assert_eq!((write.count, write.sum_ns, running), (1000, 500_500_000, 0));
        for (found, exact) in [(write.p50_us, 500), (write.p99_us, 990), (write.p999_us, 999)] {
            assert!((exact..=exact * 6 / 5 + 1).contains(&found), "{found} for {exact}");
        }
        assert_eq!(write.buckets.len(), POWERS + 2);
        assert_eq!(write.buckets.iter().sum::<u64>(), 1000);
        assert_eq!(write.buckets[0], 1, "1 us");
        assert_eq!(report.flush.buckets.last(), Some(&1));
        assert_eq!((report.read.count, report.read.p99_us), (0, 0));
    }

    #[test]
    fn a_request_that_is_dropped_does_not_run_any_more() {
        let disk = Arc::<DiskTimes>::default();
        let clock = disk.queue();
        let mut request = Box::pin(clock.time(Operation::Read, std::future::pending::<()>()));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(request.as_mut().poll(&mut cx).is_pending());
        assert_eq!(disk.report().1, 1);
        drop(request);
        assert_eq!((disk.report().1, disk.report().0.read.count), (0, 0));
    }
}
