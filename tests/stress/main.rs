//! One image on a real file, written, read and discarded by several queue threads at once, each with a ring of its own,
//! beside a thread for the background work, as `serve` runs them. Built with ThreadSanitizer by `tools/tsan`.
//!
//! The work is bounded by requests, not by time: `COWDISK_STRESS_REQUESTS` of each task in each of the lives.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disk;
mod history;
mod work;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowdisk::chain::{Image, ImageQueue};
use cowdisk::runtime::sync::Monitor;
use cowdisk::runtime::{RingOptions, Runtime, spawn};
use cowdisk::storage::uring::Uring;

use disk::{Background, QUEUES, SHARED_BLOCKS, TASKS};
use history::History;
use work::{Counts, Task};

/// Times that the image is opened, worked on, closed and checked.
const LIVES: usize = 3;
/// Batches in flight in one queue.
const RUNNERS: usize = 4;

fn requests() -> u64 {
    std::env::var("COWDISK_STRESS_REQUESTS").map_or(400, |n| n.parse().unwrap())
}

/// One queue thread: its tasks run their requests, and what they know of the disk goes from life to life.
fn serve_queue(image: Arc<Image<Uring>>, tasks: Vec<Task>, counts: Arc<Counts>) -> Vec<Task> {
    let runtime = Runtime::new(RingOptions { entries: 64 }).unwrap();
    runtime.block_on(async move {
        let queue = ImageQueue::new(image);
        for _ in 0..RUNNERS {
            drop(spawn(queue.clone().runner()));
        }
        let run = |mut task: Task| {
            let (queue, counts) = (queue.clone(), counts.clone());
            spawn(async move {
                task.run(&queue, requests(), &counts).await;
                task
            })
        };
        let running: Vec<_> = tasks.into_iter().map(run).collect();
        let mut back = Vec::new();
        for task in running {
            back.push(task.await);
        }
        queue.close();
        back
    })
}

/// Reads the whole disk once more, when nothing else runs.
fn read_back(path: &Path, tasks: &[Vec<Task>], history: &History) {
    let background = Background::start(path, Arc::default());
    let queue_image = background.image();
    let runtime = Runtime::new(RingOptions { entries: 64 }).unwrap();
    let queue = ImageQueue::new(queue_image);
    let mine = tasks.concat();
    let history = history.clone();
    runtime.block_on(async move {
        for block in 0..SHARED_BLOCKS {
            work::read_shared(&queue, &history, block, 1).await;
        }
        for task in mine {
            task.read_own(&queue).await;
        }
        queue.close();
    });
    background.close();
}

#[test]
fn queues_on_threads_of_their_own_agree_with_every_request() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("vm.cow");
    disk::create(&path);
    let history = History::new((QUEUES * TASKS) as u64 * (requests() + 1) * LIVES as u64);
    let counts = Arc::new(Counts::default());
    let mut tasks: Vec<Vec<Task>> = (0..QUEUES)
        .map(|q| (0..TASKS).map(|t| Task::new((q * TASKS + t) as u64, history.clone())).collect())
        .collect();
    let ticks = Arc::new(AtomicU64::new(0));
    let mut checkpoints = 0;
    for _ in 0..LIVES {
        let background = Background::start(&path, ticks.clone());
        let threads: Vec<_> = tasks
            .drain(..)
            .map(|tasks| {
                let (image, counts) = (background.image(), counts.clone());
                std::thread::spawn(move || serve_queue(image, tasks, counts))
            })
            .collect();
        tasks = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        checkpoints += background.close();
        disk::check(&path);
    }
    read_back(&path, &tasks, &history);
    let Counts { reads, writes, discards, flushes, .. } = &*counts;
    let [reads, writes, discards, flushes] =
        [reads, writes, discards, flushes].map(|c| c.load(Ordering::Relaxed));
    println!(
        "stress: {QUEUES} queues of {TASKS} tasks, {LIVES} lives: {writes} writes, {reads} reads, {discards} discards, \
         {flushes} flushes, {} ticks, {checkpoints} checkpoints",
        ticks.load(Ordering::Relaxed)
    );
    assert!(checkpoints > LIVES as u64 * 3, "no checkpoint ran beside the requests");
}

/// The phase of a life, as the background thread sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
enum Phase {
    #[default]
    Running,
    Closing,
    Closed,
}

type Phases = Arc<Monitor<Phase>>;
