//! A disk on many layers, beside one with the same content on one.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowdisk::chain::{Access, Image, ImageQueue, OpenOptions, SnapshotName, open_chain};
use cowdisk::device::Queue;
use cowdisk::ops::{process, snapshot};
use cowdisk::runtime::{RingOptions, Runtime, spawn};
use cowdisk::storage::IoBuf;
use cowdisk::storage::sim::Rng;
use cowdisk::storage::uring::Uring;

use crate::bench::Bench;
use crate::memory::{memory, mib, open_files};
use crate::scale;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const SIZE: u64 = 64 * MIB;
const BLOCKS: u64 = SIZE / BLOCK;
/// Blocks that are written between two snapshots.
const WRITES: u64 = 32;
const CACHE: u64 = 8 * MIB;
/// What a daemon takes besides its cache, and for each layer; as for snapshots in a row.
const MOST: u64 = CACHE + 24 * MIB;
const OF_A_LAYER: u64 = 8 << 10;
/// Reads of a round, and rounds of which the best one counts.
const READS: u64 = 20_000;
const ROUNDS: usize = 5;

fn to_write() -> OpenOptions {
    OpenOptions { alive: process::is_alive, ..OpenOptions::new(Access::Write(process::holder(""))) }
}

fn to_read() -> OpenOptions {
    OpenOptions { cache_bytes: CACHE, ..OpenOptions::new(Access::Read { lock: true }) }
}

/// Writes blocks, each with its number and that of the round.
async fn write(path: &Path, blocks: &[(u64, u64)]) {
    let (image, _) = open_chain(&Uring, path, &to_write()).await.unwrap();
    let image = Arc::new(image);
    let queue = ImageQueue::new(image.clone());
    let (growth, ring, checkpoints) = (image.clone(), image.clone(), image.clone());
    let tasks = [
        spawn(queue.clone().runner()),
        spawn(async move { growth.run_growth().await }),
        spawn(async move { ring.run_ring_growth().await }),
        spawn(async move { checkpoints.run_checkpoints().await }),
    ];
    for &(block, round) in blocks {
        let words: Vec<u8> = [block, round].iter().flat_map(|word| word.to_le_bytes()).collect();
        queue.write(block * BLOCK, IoBuf::from_slice(&words.repeat(256)), false).await.unwrap();
    }
    queue.close();
    image.close().await.unwrap();
    drop(image);
    for task in tasks {
        task.await;
    }
}

/// The same content twice: on `depth` layers, and on one.
async fn make(deep: PathBuf, flat: PathBuf, depth: u64) {
    let mut rng = Rng::new(depth);
    let mut content = vec![0; BLOCKS as usize];
    for round in 1..=depth {
        let blocks: Vec<(u64, u64)> = (0..WRITES).map(|_| (rng.below(BLOCKS), round)).collect();
        blocks.iter().for_each(|&(block, round)| content[block as usize] = round);
        write(&deep, &blocks).await;
        take(&deep, &format!("s{round}")).await;
    }
    let written = (0..).zip(&content).filter(|(_, round)| **round > 0);
    let blocks: Vec<(u64, u64)> = written.map(|(block, round)| (block, *round)).collect();
    write(&flat, &blocks).await;
    take(&flat, "s").await;
}

async fn take(image: &Path, name: &str) {
    let name = SnapshotName::new(name).unwrap();
    snapshot(&Uring, image, &name, &to_write(), process::is_mount_point).await.unwrap();
}

/// An image that is open for reading, and how long that took.
async fn open(path: &Path) -> (Arc<Image<Uring>>, Duration) {
    let begun = Instant::now();
    let (image, _) = open_chain(&Uring, path, &to_read()).await.unwrap();
    (Arc::new(image), begun.elapsed())
}

async fn read_all(queue: &ImageQueue<Uring>) -> Vec<u8> {
    let mut all = Vec::new();
    for at in (0..SIZE).step_by(MIB as usize) {
        let buf = IoBuf::zeroed(MIB as usize);
        queue.read(at, buf.clone()).await.unwrap();
        all.extend(buf.to_vec());
    }
    all
}

/// Random reads of a block, one after the other.
async fn read_at_random(queue: &ImageQueue<Uring>, seed: u64) -> Duration {
    let (mut rng, buf) = (Rng::new(seed), IoBuf::zeroed(BLOCK as usize));
    let begun = Instant::now();
    for _ in 0..READS {
        queue.read(rng.below(BLOCKS) * BLOCK, buf.clone()).await.unwrap();
    }
    begun.elapsed()
}

/// What was measured.
struct Measured {
    opened: Duration,
    deep: Duration,
    flat: Duration,
}

async fn compare(deep: PathBuf, flat: PathBuf, depth: u64) -> Measured {
    // The first open may find cold files.
    drop(open(&deep).await);
    let mut opened = Duration::MAX;
    for _ in 0..ROUNDS {
        opened = opened.min(open(&deep).await.1);
    }
    let (deep, flat) = (open(&deep).await.0, open(&flat).await.0);
    assert_eq!(deep.chain().layers.len() as u64, depth + 1);
    assert_eq!(flat.chain().layers.len(), 2);
    let queues: [Rc<ImageQueue<Uring>>; 2] = [&deep, &flat].map(|image| ImageQueue::new(image.clone()));
    assert!(read_all(&queues[0]).await == read_all(&queues[1]).await, "they do not show the same");
    let mut best = [Duration::MAX; 2];
    for round in 0..ROUNDS as u64 {
        for (queue, best) in queues.iter().zip(&mut best) {
            *best = (*best).min(read_at_random(queue, round).await);
        }
    }
    for image in [&deep, &flat] {
        let (nodes, spans) = image.cache_bytes();
        assert!(nodes + spans <= CACHE, "the caches hold {nodes} + {spans} bytes");
    }
    Measured { opened, deep: best[0], flat: best[1] }
}

#[test]
fn a_disk_on_many_layers() {
    let depth = scale(80);
    cowdisk::runtime::files::raise_open_files().unwrap();
    let bench = Bench::new();
    let (deep, flat) = (bench.image("deep.cow", SIZE), bench.image("flat.cow", SIZE));
    let runtime = || Runtime::new(RingOptions::default()).unwrap();
    runtime().block_on(make(deep.clone(), flat.clone(), depth));
    let Measured { opened, deep: slow, flat: fast } = runtime().block_on(compare(deep, flat, depth));

    let limited = format!("ulimit -Sn {}; exec \"$0\" \"$@\"", 40.min(depth));
    let daemon = bench.serve_by(&["sh", "-c", &limited], ["deep.cow", "--read-only", "--cache-size", "8M"]);
    let mut client = daemon.connect();
    for at in (0..SIZE).step_by(MIB as usize) {
        client.read(at, MIB as u32);
    }
    let (used, files) = (memory(daemon.pid()), open_files(daemon.pid()));
    assert!(used.private <= MOST + depth * OF_A_LAYER, "{used:?}");
    assert!(files as u64 <= depth + 40, "{files} files");
    daemon.terminate();
    let tight =
        bench.run_by(&["sh", "-c", "ulimit -n 40; exec \"$0\" \"$@\""], ["map", "deep.cow"]).expect(1);
    assert!(tight.stderr.contains("Too many open files"), "{tight:?}");
    assert!(tight.stderr.contains("try: ulimit -n "), "{tight:?}");
    println!(
        "depth: {depth} layers open in {:.1} ms; random reads {:.2} us, on one layer {:.2} us (ratio {:.2}); \
         the daemon takes {:.1} MiB with a cache of {:.0} MiB",
        opened.as_secs_f64() * 1e3,
        slow.as_secs_f64() * 1e6 / READS as f64,
        fast.as_secs_f64() * 1e6 / READS as f64,
        slow.as_secs_f64() / fast.as_secs_f64(),
        mib(used.private),
        mib(CACHE),
    );
}
