//! `bench`: requests against the engine through queues of this process, each with a thread, as a frontend would send them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::chain::{Image, ImageQueue, OpenOptions, open_chain};
use crate::device::Queue;
use crate::error::{Error, Kind, Result};
use crate::runtime::{self, RingOptions, Runtime, sync::Monitor};
use crate::storage::{IoBuf, Storage};
use std::path::Path;

/// Most requests in flight.
pub const MAX_DEPTH: usize = 1024;
/// Largest request: 64 MiB.
pub const MAX_SIZE: u64 = 64 << 20;
/// Most queues.
pub const MAX_QUEUES: usize = 64;
/// Batches in flight at most.
const MAX_RUNNERS: usize = 64;
/// Time between two ticks of an image that is written to.
const TICK: Duration = Duration::from_secs(1);

/// What to do, as `qemu-img bench` has it.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Write; otherwise read.
    pub write: bool,
    /// Number of requests.
    pub count: u64,
    /// Requests in flight.
    pub depth: usize,
    /// Bytes of a request.
    pub size: u64,
    /// Bytes from the start of a request to that of the next one.
    pub step: u64,
    /// Where the first one starts.
    pub offset: u64,
    /// Random places, multiples of `size`, drawn from this seed.
    pub random: Option<u64>,
    /// Drain and flush after so many writes; 0: never.
    pub flush_interval: u64,
    /// Do not drain: each task flushes after so many writes of its own, as an independent client would.
    pub no_drain: bool,
    /// Queues, each with a thread and with `depth` requests in flight; they share the requests evenly.
    pub queues: usize,
}

impl BenchOptions {
    /// The share of one of the queues: its own part of the way around a disk of `disk` bytes, or its own random places.
    fn share(&self, index: usize, disk: u64) -> BenchOptions {
        let (queues, index) = (self.queues as u64, index as u64);
        let before: u64 = (0..index).map(|i| (self.count + i) / queues).sum();
        let way = u128::from(self.offset) + u128::from(before) * u128::from(self.step);
        let offset = (way % u128::from(disk)) as u64;
        BenchOptions {
            count: (self.count + index) / queues,
            offset: if offset > disk - self.size { 0 } else { offset },
            random: self.random.map(|seed| seed.wrapping_add(index << 32)),
            queues: 1,
            ..self.clone()
        }
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct BenchResult {
    /// Requests done.
    pub requests: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Time from the first request's start to the last one's end.
    pub elapsed: Duration,
    /// Time that requests took.
    pub latency: Histogram,
}

/// Runs the requests against `image`; `options` of the open decide whether it may be written to. In a runtime, whose
/// thread is that of the first queue.
///
/// # Errors
/// `Usage` for numbers out of range, why the image cannot be opened, `Io` for the first request that failed.
pub async fn bench<S: Storage>(
    storage: &S,
    image: &Path,
    open: &OpenOptions,
    options: &BenchOptions,
) -> Result<BenchResult> {
    let (image, _) = open_chain(storage, image, open).await?;
    let image = Arc::new(image);
    let disk = image.geometry().size;
    Places::new(options, disk)?;
    if options.write {
        run_background(storage, &image);
    }
    let queues = Arc::new(Queues { image: image.clone(), all: Monitor::default() });
    for index in 1..options.queues {
        queues.clone().start_thread(options.share(index, disk), index)?;
    }
    let run = Run::new(&image, options.share(0, disk), 0)?;
    // The threads are there; the time begins with the requests.
    let start = queues.all.update(|all| *all.start.insert(Instant::now()));
    let (mut latency, mut failed) = run.drive().await;
    let mut elapsed = start.elapsed();
    let ended =
        queues.all.wait(|all| (all.ended.len() + 1 == options.queues).then(|| all.ended.split_off(0)));
    for (other, errno, at) in ended.await {
        latency.merge(&other);
        failed = failed.or(errno);
        elapsed = elapsed.max(at - start);
    }
    let errors = image.last_errors();
    image.close().await?;
    if let Some(errno) = failed {
        let cause = std::io::Error::from_raw_os_error(errno);
        let text = errors.last().cloned().unwrap_or_else(|| "a request failed".into());
        return Err(Error::io(text, cause));
    }
    Ok(BenchResult { requests: latency.count, bytes: latency.count * options.size, elapsed, latency })
}

/// The queues on other threads.
struct Queues<S: Storage> {
    image: Arc<Image<S>>,
    all: Monitor<AllQueues>,
}

#[derive(Default)]
struct AllQueues {
    /// When the requests began.
    start: Option<Instant>,
    /// Latencies, the errno of the first request that failed, the end.
    ended: Vec<(Histogram, Option<i32>, Instant)>,
}

impl<S: Storage> Queues<S> {
    fn start_thread(self: Arc<Self>, share: BenchOptions, index: usize) -> Result<()> {
        let (ready, is_ready) = std::sync::mpsc::channel();
        let work = move || {
            let runtime = match Runtime::new(RingOptions::default()) {
                Ok(runtime) => runtime,
                Err(e) => return drop(ready.send(Err(Error::io("set up io_uring on this host", e)))),
            };
            runtime.block_on(async move {
                let run = match Run::new(&self.image, share, index) {
                    Ok(run) => run,
                    Err(e) => return drop(ready.send(Err(e))),
                };
                drop(ready.send(Ok(())));
                self.all.wait(|all| all.start.map(drop)).await;
                let (latency, failed) = run.drive().await;
                self.all.update(|all| all.ended.push((latency, failed, Instant::now())));
            });
        };
        let thread = std::thread::Builder::new().name(format!("queue-{index}")).spawn(work);
        thread.map_err(|e| Error::io("cannot start a thread", e))?;
        is_ready.recv().unwrap_or_else(|_| Err(Error::new(Kind::Io, "a queue's thread ended early")))
    }
}

/// Starts what an image that is open for writing needs beside its requests.
fn run_background<S: Storage>(storage: &S, image: &Arc<Image<S>>) {
    let [growth, ring, checkpoints, holes, ticks] = std::array::from_fn(|_| image.clone());
    drop(runtime::spawn(async move { growth.run_growth().await }));
    drop(runtime::spawn(async move { ring.run_ring_growth().await }));
    drop(runtime::spawn(async move { checkpoints.run_checkpoints().await }));
    // Where the holes are not known the file grows instead.
    drop(runtime::spawn(async move { holes.find_holes().await }));
    let storage = storage.clone();
    drop(runtime::spawn(async move {
        loop {
            storage.pause(TICK).await;
            // A poisoned image answers the requests themselves.
            if ticks.tick().await.is_err() {
                return;
            }
        }
    }));
}

/// Requests in flight, and whether new ones wait for a flush.
#[derive(Default)]
struct Gate {
    in_flight: usize,
    flushing: bool,
}

/// A run under way.
struct Run<S: Storage> {
    queue: Rc<ImageQueue<S>>,
    options: BenchOptions,
    /// Of the queue.
    index: usize,
    places: RefCell<Places>,
    issued: Cell<u64>,
    gate: Monitor<Gate>,
    latency: RefCell<Histogram>,
    /// The errno of the first request that failed.
    failed: Cell<Option<i32>>,
}

impl<S: Storage> Run<S> {
    /// One queue on this thread.
    fn new(image: &Arc<Image<S>>, options: BenchOptions, index: usize) -> Result<Rc<Run<S>>> {
        let places = Places::new(&options, image.geometry().size)?;
        let queue = ImageQueue::new(image.clone());
        if options.write {
            for _ in 0..options.depth.min(MAX_RUNNERS) {
                drop(runtime::spawn(queue.clone().runner()));
            }
        }
        Ok(Rc::new(Run {
            queue,
            options,
            index,
            places: RefCell::new(places),
            issued: Cell::new(0),
            gate: Monitor::new(Gate::default()),
            latency: RefCell::new(Histogram::default()),
            failed: Cell::new(None),
        }))
    }

    /// Sends all requests, and closes the queue; the errno is that of the first one that failed.
    async fn drive(self: Rc<Self>) -> (Histogram, Option<i32>) {
        let depth = self.options.depth;
        let tasks: Vec<_> = (0..depth).map(|i| runtime::spawn(self.clone().task(i))).collect();
        for task in tasks {
            task.await;
        }
        self.queue.close();
        (self.latency.take(), self.failed.get())
    }

    /// One of `depth` tasks: one request after the other.
    async fn task(self: Rc<Self>, index: usize) {
        let seed = self.index * MAX_DEPTH + index;
        let buf = filled(self.options.size as usize, seed as u64);
        let interval = if self.options.write { self.options.flush_interval } else { 0 };
        let mut own = 0;
        while self.failed.get().is_none() {
            let number = self.issued.get();
            if number == self.options.count {
                return;
            }
            self.issued.set(number + 1);
            own += 1;
            let pos = self.places.borrow_mut().next();
            let done = match interval {
                0 => self.request(pos, &buf).await,
                _ if self.options.no_drain => self.alone(pos, &buf, own % interval == 0).await,
                _ => self.gated(pos, &buf, number > 0 && number.is_multiple_of(interval)).await,
            };
            if let Err(errno) = done {
                self.failed.set(self.failed.get().or(Some(errno)));
            }
        }
    }

    /// A request and perhaps a flush behind it, whatever others do.
    async fn alone(&self, pos: u64, buf: &IoBuf, flush: bool) -> std::result::Result<(), i32> {
        self.request(pos, buf).await?;
        if flush { self.queue.flush().await.map_err(|e| e.0) } else { Ok(()) }
    }

    async fn request(&self, pos: u64, buf: &IoBuf) -> std::result::Result<(), i32> {
        let start = Instant::now();
        let done = match self.options.write {
            true => self.queue.write(pos, buf.clone(), false).await,
            false => self.queue.read(pos, buf.clone()).await,
        };
        self.latency.borrow_mut().add(start.elapsed());
        done.map_err(|e| e.0)
    }

    /// A request that lets a flush go first, when it is its turn, after all that were issued before.
    async fn gated(&self, pos: u64, buf: &IoBuf, flush: bool) -> std::result::Result<(), i32> {
        if flush {
            self.gate.wait(|g| (!std::mem::replace(&mut g.flushing, true)).then_some(())).await;
            self.gate.wait(|g| (g.in_flight == 0).then_some(())).await;
            let flushed = self.queue.flush().await;
            self.gate.update(|g| (g.flushing, g.in_flight) = (false, 1));
            flushed.map_err(|e| e.0)?;
        } else {
            let enter = |g: &mut Gate| (!g.flushing).then(|| g.in_flight += 1);
            self.gate.wait(enter).await;
        }
        let done = self.request(pos, buf).await;
        self.gate.update(|g| g.in_flight -= 1);
        done
    }
}

/// Bytes that neither compress nor are equal from task to task.
fn filled(size: usize, seed: u64) -> IoBuf {
    let mut random = Random(seed);
    let bytes: Vec<u8> = (0..size.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    IoBuf::from_slice(&bytes[..size])
}

/// Where requests go.
#[derive(Clone, Debug)]
struct Places {
    next: u64,
    size: u64,
    step: u64,
    /// Behind the last possible start.
    end: u64,
    random: Option<Random>,
}

impl Places {
    fn new(options: &BenchOptions, disk: u64) -> Result<Places> {
        let usage = |text: String| Err(Error::new(Kind::Usage, text));
        let BenchOptions { size, step, offset, .. } = *options;
        if options.count == 0 || options.depth == 0 || options.depth > MAX_DEPTH {
            return usage(format!("count must be at least 1, and depth between 1 and {MAX_DEPTH}"));
        }
        if options.queues == 0 || options.queues > MAX_QUEUES || options.queues as u64 > options.count {
            return usage(format!("queues must be between 1 and {MAX_QUEUES}, each with a request at least"));
        }
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(512) || size > disk {
            return usage(format!(
                "size {size}: a multiple of 512, up to 64M and the size of the disk, {disk}"
            ));
        }
        if !step.is_multiple_of(512) || !offset.is_multiple_of(512) || offset > disk - size {
            return usage(format!(
                "offset {offset} and step {step} must be multiples of 512 within the disk"
            ));
        }
        let random = options.random.map(Random);
        Ok(Places { next: offset, size, step, end: disk - size + 1, random })
    }

    fn next(&mut self) -> u64 {
        if let Some(random) = &mut self.random {
            return random.next() % ((self.end - 1) / self.size + 1) * self.size;
        }
        let pos = self.next;
        // As `qemu-img bench` does: around the end, not back to the start, so that a large odd step visits every place.
        let disk = self.end - 1 + self.size;
        let next = (pos % disk + self.step % disk) % disk;
        self.next = if next < self.end { next } else { 0 };
        pos
    }
}

/// SplitMix64.
#[derive(Clone, Copy, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// Steps within one power of two of the histogram: 1.6 % each.
const STEPS: usize = 64;
/// Powers of two above 64 ns, up to a day.
const POWERS: usize = 42;

/// Latencies in nanoseconds, in buckets 1.6 % wide. Adding one allocates nothing.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: vec![0; STEPS * POWERS].into(), count: 0 }
    }
}

impl Histogram {
    /// Adds a sample.
    pub fn add(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let power = (ns / STEPS as u64).checked_ilog2().map_or(0, |p| p as usize + 1);
        let step = if power == 0 { ns as usize } else { (ns >> (power - 1)) as usize - STEPS };
        let last = self.buckets.len() - 1;
        self.buckets[(power * STEPS + step).min(last)] += 1;
        self.count += 1;
    }

    /// Adds the samples of another one.
    pub fn merge(&mut self, other: &Histogram) {
        self.count += other.count;
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// The latency that this share of all samples (0 to 1) did not exceed, in microseconds.
    pub fn quantile_us(&self, share: f64) -> f64 {
        let wanted = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (i, &bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= wanted {
                return upper_ns(i) as f64 / 1000.0;
            }
        }
        0.0
    }
}

/// The largest value of a bucket.
fn upper_ns(bucket: usize) -> u64 {
    let (power, step) = (bucket / STEPS, (bucket % STEPS) as u64);
    if power == 0 { step } else { ((STEPS as u64 + step + 1) << (power - 1)) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(size: u64, step: u64, offset: u64) -> BenchOptions {
        BenchOptions {
            write: false,
            count: 1,
            depth: 1,
            size,
            step,
            offset,
            random: None,
            flush_interval: 0,
            no_drain: false,
            queues: 1,
        }
    }

    #[test]
    fn requests_wrap_and_stay_inside() {
        let mut far = Places::new(&options(4096, 12288, 0), 20480).unwrap();
        assert_eq!([(); 5].map(|()| far.next()), [0, 12288, 4096, 16384, 8192], "every place once");
        let mut places = Places::new(&options(4096, 4096, 8192), 16384).unwrap();
        assert_eq!([(); 4].map(|()| places.next()), [8192, 12288, 0, 4096]);
        let mut places =
            Places::new(&BenchOptions { random: Some(7), ..options(4096, 0, 0) }, 20000).unwrap();
        let all: std::collections::BTreeSet<u64> = (0..100).map(|_| places.next()).collect();
        assert_eq!(all, [0, 4096, 8192, 12288].into());
        assert!(Places::new(&options(4096, 4096, 512), 4096).is_err());
        assert!(Places::new(&options(100, 4096, 0), 8192).is_err());
    }

    #[test]
    fn queues_share_the_way_around_the_disk() {
        for (queues, count) in [(1, 7), (2, 7), (3, 10)] {
            let all = BenchOptions { count, queues, ..options(4096, 12288, 4096) };
            let mut one = Places::new(&all, 40960).unwrap();
            for index in 0..queues {
                let share = all.share(index, 40960);
                let mut places = Places::new(&share, 40960).unwrap();
                for n in 0..share.count {
                    assert_eq!(places.next(), one.next(), "request {n} of queue {index} of {queues}");
                }
            }
            assert_eq!((0..queues).map(|i| all.share(i, 40960).count).sum::<u64>(), count);
        }
        let random = BenchOptions { random: Some(7), queues: 2, count: 2, ..options(512, 512, 0) };
        assert_ne!(random.share(0, 4096).random, random.share(1, 4096).random);
        for queues in [0, 3, MAX_QUEUES + 1] {
            assert!(Places::new(&BenchOptions { queues, ..random.clone() }, 4096).is_err());
        }
    }

    #[test]
    fn a_quantile_is_at_most_two_percent_off() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|us| histogram.add(Duration::from_micros(us)));
        for (share, us) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 1000.0)] {
            let found = histogram.quantile_us(share);
            assert!((us..us * 1.02).contains(&found), "{share}: {found}");
        }
        histogram.add(Duration::MAX);
        histogram.add(Duration::ZERO);
        assert_eq!(histogram.quantile_us(0.0), 0.0);
    }
}
