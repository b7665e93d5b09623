//! How long requests wait while snapshots are taken: 4 KiB random writes at depth 32 in this process, first without, then
//! with a live snapshot every quarter of a second.
//!
//!     stall IMAGE [SECONDS]
//!
//! Prints the longest request and the 99.9th percentile of both halves. IMAGE must exist; the snapshots stay beside it.
#![expect(clippy::print_stdout, reason = "a command")]

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use cowdisk::chain::{Access, Image, ImageQueue, OpenOptions, SnapshotName, open_chain};
use cowdisk::device::Queue;
use cowdisk::ops::{Histogram, LiveCut, process};
use cowdisk::runtime::sync::Monitor;
use cowdisk::runtime::{RingOptions, Runtime, sleep, spawn};
use cowdisk::storage::IoBuf;
use cowdisk::storage::uring::Uring;

const DEPTH: usize = 32;
const SIZE: u64 = 4096;
const EVERY: Duration = Duration::from_millis(250);

/// What the two threads tell each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
enum Phase {
    #[default]
    Quiet,
    Snapshots,
    Over,
}

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let path: PathBuf = args.next().ok_or("which image?")?.into();
    let seconds = args.next().map_or(Ok(5), |s| s.to_string_lossy().parse())?;
    let half = Duration::from_secs(seconds);
    let phase = Arc::new(Monitor::<Phase>::default());
    let (opened, image) = channel();
    let theirs = phase.clone();
    let background = std::thread::spawn(move || {
        let runtime = Runtime::new(RingOptions::default())?;
        runtime.block_on(async move {
            let options = OpenOptions::new(Access::Write(process::holder("")));
            let image = Arc::new(open_chain(&Uring, &path, &options).await?.0);
            opened.send(image.clone())?;
            live(image, &theirs).await
        })
    });
    let image = image.recv()?;
    let (quiet, taken) = Runtime::new(RingOptions::default())?.block_on(load(image, phase, half))?;
    let snapshots = background.join().map_err(|_| "the background thread died")??;
    for (name, (latency, longest)) in [("without", quiet), ("with", taken)] {
        println!(
            "{name:>8} snapshots: p50 {:.0} us, p99.9 {:.0} us, longest {:.0} us",
            latency.quantile_us(0.5),
            latency.quantile_us(0.999),
            longest.as_secs_f64() * 1e6
        );
    }
    println!("{snapshots} snapshots");
    Ok(())
}

/// What a daemon runs beside its queues, and the snapshots.
async fn live(image: Arc<Image<Uring>>, phase: &Monitor<Phase>) -> Result<u32> {
    let [growth, ring, checkpoints, seals, ticks] = std::array::from_fn(|_| image.clone());
    drop(spawn(async move { growth.run_growth().await }));
    drop(spawn(async move { ring.run_ring_growth().await }));
    drop(spawn(async move { checkpoints.run_checkpoints().await }));
    drop(spawn(async move { seals.run_seals().await }));
    image.find_holes().await?;
    drop(spawn(async move {
        loop {
            sleep(Duration::from_secs(1)).await;
            if ticks.tick().await.is_err() {
                return;
            }
        }
    }));
    let mut taken = 0;
    phase.wait(|p| (*p >= Phase::Snapshots).then_some(())).await;
    while phase.with(|p| *p == Phase::Snapshots) {
        let name = SnapshotName::new(&format!("stall-{}-{taken}", std::process::id()))?;
        let cut = LiveCut::prepare(&Uring, &image, &name, &[], process::is_mount_point).await?;
        cut.hold().await?;
        cut.cut();
        taken += 1;
        sleep(EVERY).await;
    }
    image.close().await?;
    Ok(taken)
}

type Half = (Histogram, Duration);

async fn load(image: Arc<Image<Uring>>, phase: Arc<Monitor<Phase>>, half: Duration) -> Result<(Half, Half)> {
    let blocks = image.geometry().size / SIZE;
    let queue = ImageQueue::new(image);
    for _ in 0..DEPTH {
        drop(spawn(queue.clone().runner()));
    }
    let halves = Rc::new(RefCell::new([Half::default(), Half::default()]));
    let (begin, seed) = (Instant::now(), Rc::new(Cell::new(1u64)));
    let tasks: Vec<_> = (0..DEPTH)
        .map(|_| {
            let (queue, halves, seed, phase) = (queue.clone(), halves.clone(), seed.clone(), phase.clone());
            spawn(async move {
                let buf = IoBuf::from_slice(&[0x5a; SIZE as usize]);
                while begin.elapsed() < 2 * half {
                    if begin.elapsed() >= half && phase.with(|p| *p == Phase::Quiet) {
                        phase.update(|p| *p = Phase::Snapshots);
                    }
                    let next = seed
                        .get()
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    seed.set(next);
                    let start = Instant::now();
                    queue.write((next >> 33) % blocks * SIZE, buf.clone(), false).await?;
                    let took = start.elapsed();
                    let at = usize::from(start.duration_since(begin) >= half);
                    let (latency, longest) = &mut halves.borrow_mut()[at];
                    latency.add(took);
                    *longest = took.max(*longest);
                }
                Ok::<(), cowdisk::device::Errno>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.map_err(|e| std::io::Error::from_raw_os_error(e.0))?;
    }
    phase.update(|p| *p = Phase::Over);
    queue.close();
    let [quiet, taken] = halves.take();
    Ok((quiet, taken))
}
