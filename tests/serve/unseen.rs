//! Data that goes by without being seen: the engine on a real ring, with memory that stands in the ring's buffer table. Any
//! look at the bytes would panic.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use cowdisk::chain::{Access, Image, ImageQueue, OpenOptions, open_chain};
use cowdisk::device::{Errno, Queue};
use cowdisk::layer::Finish;
use cowdisk::ops::{BaseFormat, CreateOptions, create, process};
use cowdisk::runtime::{RingOptions, Runtime, spawn};
use cowdisk::storage::IoBuf;
use cowdisk::storage::uring::Uring;
use tempfile::tempdir;

const BLOCK: usize = 4096;
const BASE_BYTES: usize = 10 * BLOCK + 512;

async fn open(path: &Path) -> (Arc<Image<Uring>>, Rc<ImageQueue<Uring>>) {
    let options = OpenOptions::new(Access::Write(process::holder("")));
    let image = Arc::new(open_chain(&Uring, path, &options).await.unwrap().0);
    let queue = ImageQueue::new(image.clone());
    for _ in 0..2 {
        drop(spawn(queue.clone().runner()));
    }
    let (growth, ring) = (image.clone(), image.clone());
    drop(spawn(async move { growth.run_growth().await }));
    drop(spawn(async move { ring.run_ring_growth().await }));
    (image, queue)
}

async fn make(path: &Path, no_checksums: bool) {
    let base = path.with_file_name("base.raw");
    std::fs::write(&base, vec![7; BASE_BYTES]).unwrap();
    let options = CreateOptions {
        size: Some(1 << 20),
        base: Some((base, BaseFormat::Raw)),
        no_checksums,
        ..CreateOptions::default()
    };
    create(&Uring, path, &options).await.unwrap();
}

/// Memory of this process, and the same as an entry of the table.
fn registered(runtime: &Runtime, count: u16) -> Vec<(IoBuf, IoBuf)> {
    let bufs: Vec<IoBuf> = (0..count).map(|_| IoBuf::zeroed(4 * BLOCK)).collect();
    runtime.register(&bufs).unwrap();
    (0..).zip(bufs).map(|(index, buf)| (buf.clone(), buf.as_entry(index))).collect()
}

#[test]
fn whole_blocks_without_checksums_go_by_unseen() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("vm.cow");
    let runtime = Runtime::new(RingOptions::default()).unwrap();
    let entries = registered(&runtime, 4);
    let on = path.clone();
    runtime.block_on(async move {
        make(&on, true).await;
        let (image, queue) = open(&on).await;
        assert!(image.moves_unseen());
        // Several at once share a batch, and each has an operation of its own.
        let writes: Vec<_> = (0..)
            .zip(&entries)
            .map(|(i, (seen, entry))| {
                seen.copy_from(0, &[10 + i; 4 * BLOCK]);
                let (queue, entry) = (queue.clone(), entry.slice(0..(1 + usize::from(i)) * BLOCK));
                let pos = u64::from(i) * 32 * BLOCK as u64;
                spawn(async move { queue.write_unseen(pos, entry, i == 3).await })
            })
            .collect();
        for write in writes {
            assert_eq!(write.await, Ok(true));
        }
        let (seen, entry) = &entries[0];
        let read = async |pos: usize, len: usize| {
            seen.copy_from(0, &[0xee; 4 * BLOCK]);
            let done = queue.read_unseen(pos as u64, entry.slice(0..len)).await;
            (done, seen.slice(0..len).to_vec())
        };
        assert_eq!(read(96 * BLOCK, 4 * BLOCK).await, (Ok(true), vec![13; 4 * BLOCK]));
        // Written, then of the base.
        let mixed = [vec![10; BLOCK], vec![7; BLOCK]].concat();
        assert_eq!(read(0, 2 * BLOCK).await, (Ok(true), mixed));
        // Where zeros have to be made up, or no block begins or ends.
        for (pos, len) in [(8 * BLOCK, 4 * BLOCK), (200 * BLOCK, BLOCK), (512, BLOCK), (0, 512)] {
            assert_eq!(read(pos, len).await.0, Ok(false), "{pos} + {len}");
            assert_eq!(queue.read(pos as u64, seen.slice(0..len)).await, Ok(()));
        }
        assert_eq!(queue.write_unseen(512, entry.slice(0..BLOCK), false).await, Ok(false));
        assert_eq!(queue.write_unseen(0, entry.slice(0..512), false).await, Ok(false));
        assert_eq!(queue.write_unseen(1 << 20, entry.slice(0..BLOCK), false).await, Err(Errno(libc::EINVAL)));
        image.head().unwrap().checkpoint(Finish::Running).await.unwrap();
        assert_eq!(read(32 * BLOCK, 2 * BLOCK).await, (Ok(true), vec![11; 2 * BLOCK]));
        queue.close();
        image.close().await.unwrap();
    });
}

#[test]
fn data_with_checksums_has_to_be_seen() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("vm.cow");
    let runtime = Runtime::new(RingOptions::default()).unwrap();
    let entries = registered(&runtime, 1);
    let on = path.clone();
    runtime.block_on(async move {
        make(&on, false).await;
        let (image, queue) = open(&on).await;
        assert!(!image.moves_unseen());
        let (seen, entry) = &entries[0];
        assert_eq!(queue.write_unseen(0, entry.slice(0..BLOCK), false).await, Ok(false));
        queue.write(0, seen.slice(0..BLOCK), false).await.unwrap();
        assert_eq!(queue.read_unseen(0, entry.slice(0..BLOCK)).await, Ok(false));
        // The base has none.
        assert_eq!(queue.read_unseen(BLOCK as u64, entry.slice(0..BLOCK)).await, Ok(true));
        assert_eq!(seen.slice(0..BLOCK).to_vec(), [7; BLOCK]);
        queue.close();
        image.close().await.unwrap();
    });
}
