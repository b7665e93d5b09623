//! The image, and the thread beside its queues.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use cowdisk::chain::{Access, Image, OpenOptions, SnapshotName, open_chain};
use cowdisk::format::Holder;
use cowdisk::limits;
use cowdisk::ops::{self, CheckOptions, CreateOptions, LiveCut};
use cowdisk::runtime::sync::Monitor;
use cowdisk::runtime::{RingOptions, Runtime, sleep, spawn};
use cowdisk::space::SpaceOptions;
use cowdisk::storage::uring::Uring;
use cowdisk::units::{BLOCK, SPAN_BLOCKS};

use crate::{Phase, Phases};

/// Queue threads.
pub(crate) const QUEUES: usize = 4;
/// Tasks of each, which have one request in flight each.
pub(crate) const TASKS: usize = 8;
/// Blocks that every task writes: four spans, so that discards of whole spans happen.
pub(crate) const SHARED_BLOCKS: u64 = 4 * SPAN_BLOCKS;
/// Blocks whose sectors belong to one task each.
pub(crate) const OWNED_BLOCKS: u64 = 64;

/// Time between two ticks: much shorter than in production, so that they meet as many requests as possible.
const TICK: Duration = Duration::from_millis(2);
/// Ticks from one snapshot to the next one.
const SNAPSHOT_TICKS: u64 = 40;

fn runtime() -> Runtime {
    Runtime::new(RingOptions { entries: 64 }).unwrap()
}

/// An image with the smallest journal, so that checkpoints run all the time.
pub(crate) fn create(path: &Path) {
    let options = CreateOptions {
        size: Some((SHARED_BLOCKS + OWNED_BLOCKS) * BLOCK),
        journal: Some(limits::MIN_JOURNAL_BYTES),
        ..CreateOptions::default()
    };
    let path = path.to_path_buf();
    runtime().block_on(async move { ops::create(&Uring, &path, &options).await.unwrap() });
}

/// `check --data` finds nothing.
pub(crate) fn check(path: &Path) {
    let path = path.to_path_buf();
    let options = CheckOptions { data: true, chain: true, ..CheckOptions::default() };
    let report = runtime().block_on(async move { ops::check(&Uring, &path, &options).await.unwrap() });
    assert_eq!(report.findings.total(), 0, "{:?}", report.findings);
}

/// Caches as small as they get, and a file that may hardly grow: blocks are used again soon.
fn options() -> OpenOptions {
    let me = Holder { pid: std::process::id(), host: "test".into(), socket: String::new() };
    OpenOptions {
        cache_bytes: limits::MIN_CACHE_BYTES,
        space: SpaceOptions { slack_percent: 150, free_growth: 64, ..SpaceOptions::default() },
        ..OpenOptions::new(Access::Write(me))
    }
}

/// The thread that opens the image, runs its background tasks and closes it.
pub(crate) struct Background {
    image: Arc<Image<Uring>>,
    phase: Phases,
    closed: Receiver<u64>,
    thread: JoinHandle<()>,
}

impl Background {
    pub(crate) fn start(path: &Path, ticks: Arc<AtomicU64>) -> Background {
        let phase = Phases::default();
        let (opened, image) = channel();
        let (ended, closed) = channel();
        let (path, ours) = (path.to_path_buf(), phase.clone());
        let thread = std::thread::spawn(move || {
            runtime().block_on(async move {
                let image = Arc::new(open_chain(&Uring, &path, &options()).await.unwrap().0);
                opened.send(image.clone()).unwrap();
                ended.send(live(image, ours, ticks).await).unwrap();
            });
        });
        Background { image: image.recv().unwrap(), phase, closed, thread }
    }

    pub(crate) fn image(&self) -> Arc<Image<Uring>> {
        self.image.clone()
    }

    /// Closes the image; gives the number of checkpoints of its life.
    pub(crate) fn close(self) -> u64 {
        self.phase.update(|phase| *phase = Phase::Closing);
        let generations = self.closed.recv().unwrap();
        self.thread.join().unwrap();
        assert_eq!(Arc::strong_count(&self.image), 1, "somebody still holds the image");
        assert_eq!(self.image.last_errors(), Vec::<String>::new());
        generations
    }
}

/// A snapshot while the queues go on.
async fn snapshot(image: &Image<Uring>) {
    let name = SnapshotName::new(&format!("s{}", image.chain().layers.len())).unwrap();
    let cut = LiveCut::prepare(&Uring, image, &name, &[], |_| false).await.unwrap();
    cut.hold().await.unwrap();
    cut.cut();
}

async fn live(image: Arc<Image<Uring>>, phase: Phases, ticks: Arc<AtomicU64>) -> u64 {
    let [checkpoints, growth, ring, holes, seals] = std::array::from_fn(|_| image.clone());
    let tasks = [
        spawn(async move { checkpoints.run_checkpoints().await }),
        spawn(async move { growth.run_growth().await }),
        spawn(async move { ring.run_ring_growth().await }),
        spawn(async move { holes.find_holes().await.unwrap() }),
        spawn(async move { seals.run_seals().await }),
    ];
    let mut before = image.superblock().generation;
    let mut generations = 0;
    let running = |phase: &Monitor<Phase>| phase.with(|p| *p == Phase::Running);
    while running(&phase) {
        sleep(TICK).await;
        image.tick().await.unwrap();
        let tick = ticks.fetch_add(1, Ordering::Relaxed);
        if tick.is_multiple_of(SNAPSHOT_TICKS) {
            generations += image.superblock().generation - before;
            snapshot(&image).await;
            before = image.superblock().generation;
        }
    }
    image.close().await.unwrap();
    phase.update(|phase| *phase = Phase::Closed);
    generations += image.superblock().generation - before;
    for task in tasks {
        task.await;
    }
    generations
}
