//! A process that serves or changes an image on a simulated disk.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use cowdisk::chain::{Access, Image, ImageQueue, OpenOptions, OpenReport, open_chain};
use cowdisk::device::Queue;
use cowdisk::error::Result;
use cowdisk::format::Holder;
use cowdisk::limits::MIN_JOURNAL_BYTES;
use cowdisk::ops::{CheckOptions, Code, CreateOptions, check, create, read_superblock};
use cowdisk::storage::sim::{Crash, Executor, SimDisk, spawn};
use cowdisk::storage::{FileKind, IoBuf, Storage};

pub(crate) const IMAGE: &str = "/d/vm.cow";
pub(crate) const BLOCK: usize = 4096;
/// Blocks of the disk; not a whole number of spans.
pub(crate) const BLOCKS: usize = 200;

/// What each block of the disk is filled with; 0: never written.
pub(crate) type Content = Vec<u8>;

pub(crate) fn to_write() -> OpenOptions {
    let me = Holder { pid: 1, host: "sim".into(), socket: String::new() };
    OpenOptions { alive: |_| false, ..OpenOptions::new(Access::Write(me)) }
}

pub(crate) fn to_read() -> OpenOptions {
    OpenOptions::new(Access::Read { lock: true })
}

/// Makes an empty image with a small journal.
pub(crate) fn create_image(disk: &SimDisk) {
    disk.put_special("/d", FileKind::Directory);
    let size = Some((BLOCKS * BLOCK) as u64);
    let options = CreateOptions { size, journal: Some(MIN_JOURNAL_BYTES), ..CreateOptions::default() };
    disk.block_on(create(disk, Path::new(IMAGE), &options)).unwrap();
}

/// Runs `work` on the open image in a process of its own, which ends with it: its locks go, nothing is closed.
pub(crate) fn serve<T>(
    disk: &SimDisk,
    path: &Path,
    options: OpenOptions,
    work: impl AsyncFnOnce(Served) -> T,
) -> Result<T> {
    let result = disk.block_on(async { Ok(work(Served::open(disk, path, options).await?).await) });
    // What the dead process had in flight lands, and its locks go.
    while disk.in_flight() > 0 {
        disk.complete(0);
    }
    result
}

/// Runs `work`; gives what crashes at each end of each of its operations leave, and a power loss behind it ("done"), and
/// how it ended.
pub(crate) fn crashes_of<T: 'static>(
    disk: &SimDisk,
    seed: u64,
    work: impl Future<Output = T> + 'static,
) -> (Vec<(String, Crash, SimDisk)>, T) {
    let states = Rc::new(RefCell::new(Vec::new()));
    let seen = states.clone();
    disk.set_hook(Some(Box::new(move |disk, event| {
        for (i, kind) in [Crash::ProcessDeath, Crash::PowerLoss, Crash::PowerLoss, Crash::PowerLoss]
            .into_iter()
            .enumerate()
        {
            let crash_seed = seed * 1000 + event.index * 8 + i as u64;
            let place = format!("seed {seed}, crash seed {crash_seed}, {kind:?} at {event:?}");
            seen.borrow_mut().push((place, kind, disk.crash(kind, crash_seed)));
        }
    })));
    let result = Executor::new(disk, seed).block_on(work);
    disk.set_hook(None);
    let mut states = states.take();
    states.push((format!("seed {seed}, done"), Crash::PowerLoss, disk.crash(Crash::PowerLoss, seed)));
    (states, result)
}

/// An open image with a queue and what it needs in the background.
pub(crate) struct Served {
    pub(crate) image: Arc<Image<SimDisk>>,
    pub(crate) queue: Rc<ImageQueue<SimDisk>>,
    pub(crate) report: OpenReport,
}

impl Served {
    pub(crate) async fn open(disk: &SimDisk, path: &Path, options: OpenOptions) -> Result<Served> {
        let (image, report) = open_chain(disk, path, &options).await?;
        let image = Arc::new(image);
        let queue = ImageQueue::new(image.clone());
        for _ in 0..4 {
            drop(spawn(queue.clone().runner()));
        }
        let (a, b, c, d) = (image.clone(), image.clone(), image.clone(), image.clone());
        drop(spawn(async move { a.run_growth().await }));
        drop(spawn(async move { b.run_ring_growth().await }));
        drop(spawn(async move { c.run_checkpoints().await }));
        drop(spawn(async move { d.run_seals().await }));
        Ok(Served { image, queue, report })
    }

    pub(crate) async fn write(&self, block: usize, fill: u8) {
        let buf = IoBuf::from_slice(&[fill; BLOCK]);
        self.queue.write((block * BLOCK) as u64, buf, false).await.unwrap();
    }

    pub(crate) async fn read_all(&self) -> Content {
        let mut content = Vec::with_capacity(BLOCKS);
        let buf = IoBuf::zeroed(BLOCK);
        for block in 0..BLOCKS {
            self.queue.read((block * BLOCK) as u64, buf.clone()).await.unwrap();
            let bytes = buf.to_vec();
            assert!(bytes.iter().all(|b| *b == bytes[0]), "block {block} is mixed");
            content.push(bytes[0]);
        }
        content
    }

    pub(crate) async fn close(self) {
        self.queue.close();
        self.image.close().await.unwrap();
    }
}

/// The image is whole: every structure and every block of its chain.
pub(crate) fn assert_whole(disk: &SimDisk, place: &str) {
    let whole = CheckOptions { data: true, chain: true, ..CheckOptions::default() };
    let report = disk.block_on(check(disk, Path::new(IMAGE), &whole));
    let report = report.unwrap_or_else(|e| panic!("{place}: {e}"));
    // A file that was being made may be there for ever.
    let harm = report.findings.kept().iter().find(|f| f.code != Code::LeftoverFile);
    assert!(harm.is_none(), "{place}: {harm:?}");
}

/// Nothing is left beside the image but the files `ours`, and files that never became layers.
pub(crate) fn assert_tidy(disk: &SimDisk, ours: &[&str], place: &str) {
    for file in disk.list(Path::new("/d")).unwrap() {
        let unborn = || disk.block_on(read_superblock(disk, &Path::new("/d").join(&file))).is_err();
        let known = ours.contains(&file.as_str());
        assert!(known || file.starts_with(".vm.cow.cowdisk-") && unborn(), "{place}: {file}");
    }
}
