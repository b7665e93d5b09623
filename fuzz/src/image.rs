//! An image on the simulated disk.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use cowdisk::chain::{Access, Image, ImageQueue, OpenOptions, open_chain};
use cowdisk::device::Queue;
use cowdisk::format::Holder;
use cowdisk::layer::{NewLayer, create};
use cowdisk::limits::MIN_JOURNAL_BYTES;
use cowdisk::storage::IoBuf;
use cowdisk::storage::sim::{Executor, SimDisk, spawn};

/// Where the image is.
pub const IMAGE: &str = "/d/vm.cow";
/// Its size in bytes.
pub const SIZE: u64 = 256 * 1024;

/// How it is opened.
pub fn options() -> OpenOptions {
    let me = Holder { pid: 1, host: "fuzz".into(), socket: String::new() };
    OpenOptions { alive: |_| false, cache_bytes: 1 << 20, ..OpenOptions::new(Access::Write(me)) }
}

/// Makes an empty image; `plain`: its data has no checksums.
fn make(disk: &SimDisk, plain: bool) {
    let on = disk.clone();
    Executor::new(disk, 0).block_on(async move {
        let new = NewLayer { journal: MIN_JOURNAL_BYTES, checksums: !plain, ..NewLayer::empty(SIZE) };
        create(&on, Path::new(IMAGE), &new).await.expect("a new image on an empty disk");
    });
}

/// An image open for writing.
#[derive(Clone)]
pub struct Opened {
    pub image: Arc<Image<SimDisk>>,
    pub queue: Rc<ImageQueue<SimDisk>>,
}

impl Opened {
    /// A further queue. Within a task of an executor.
    pub fn another_queue(&self) -> Rc<ImageQueue<SimDisk>> {
        let queue = ImageQueue::new(self.image.clone());
        for _ in 0..4 {
            spawn(queue.clone().runner());
        }
        queue
    }
}

/// Opens it for writing, with its background tasks and one queue. Within a task of an executor.
pub async fn open(disk: &SimDisk) -> cowdisk::Result<Opened> {
    let (image, _) = open_chain(disk, Path::new(IMAGE), &options()).await?;
    let image = Arc::new(image);
    let (a, b, c, d, e) = (image.clone(), image.clone(), image.clone(), image.clone(), image.clone());
    spawn(async move { a.run_checkpoints().await });
    spawn(async move { b.run_growth().await });
    spawn(async move { c.run_ring_growth().await });
    spawn(async move { e.run_seals().await });
    // Of a damaged tree the holes cannot be known; the file grows instead.
    spawn(async move { d.find_holes().await.ok() });
    let queue = ImageQueue::new(image.clone());
    for _ in 0..4 {
        spawn(queue.clone().runner());
    }
    Ok(Opened { image, queue })
}

/// The bytes of a file that holds a few extents, a tree and a journal with records; `plain`: data without checksums.
pub fn sample_image(plain: bool) -> Vec<u8> {
    let disk = SimDisk::new(1);
    make(&disk, plain);
    let (on, executor) = (disk.clone(), Executor::new(&disk, 1));
    executor.block_on(async move {
        let Opened { image, queue } = open(&on).await.expect("a good image");
        let buf = IoBuf::from_slice(&[7; 12288]);
        for (i, pos) in [0, 40960, 8192, 131_072, 20480].into_iter().enumerate() {
            queue.write(pos, buf.clone(), i % 2 == 0).await.expect("there is space");
            if i == 2 {
                let head = image.head().expect("open for writing");
                head.checkpoint(cowdisk::layer::Finish::Running).await.expect("there is space");
            }
        }
        queue.discard(4096, 4096, true).await.expect("there is space");
    });
    disk.read_file(IMAGE).expect("it was made above")
}
