//! An image on a simulated disk, and the operations that workloads are made of.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use cowdisk::chain::{
    Access, Image, ImageQueue, OpenOptions, SnapshotName, describe_raw, hints_between, open_chain,
};
use cowdisk::device::{Errno, Queue};
use cowdisk::format::{Holder, Parent};
use cowdisk::layer::{Finish, NewLayer, create};
use cowdisk::limits::MIN_JOURNAL_BYTES;
use cowdisk::ops::{LiveCut, LiveRollback, Present, rollback, snapshot};
use cowdisk::space::SpaceOptions;
use cowdisk::storage::sim::{Executor, JoinHandle, SimDisk, spawn};
use cowdisk::storage::{IoBuf, Storage};

use crate::oracle::{History, SECTOR, base_stamp, identify_all, stamp};

pub const IMAGE: &str = "/d/vm.cow";
/// All images have the same identities, so that equal contents are equal images.
const IDENTITY: u64 = 7;
const BASE: &str = "/d/base.raw";

/// What an image is made with.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub sectors: usize,
    /// Sectors of the raw base; 0: none.
    pub base: usize,
    /// Its data has checksums.
    pub checksums: bool,
}

impl Setup {
    pub const fn new(sectors: usize, base: usize) -> Setup {
        Setup { sectors, base, checksums: true }
    }

    /// The same without checksums of data.
    pub const fn plain(self) -> Setup {
        Setup { checksums: false, ..self }
    }

    /// The history of a disk that nobody has written to yet.
    pub fn history(self) -> Rc<RefCell<History>> {
        Rc::new(RefCell::new(History::new(self.sectors, self.base)))
    }
}

/// One operation of a workload; positions in sectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    Write {
        first: usize,
        sectors: usize,
        fua: bool,
    },
    Discard {
        first: usize,
        sectors: usize,
    },
    Zero {
        first: usize,
        sectors: usize,
        unmap: bool,
    },
    Read {
        first: usize,
        sectors: usize,
    },
    Flush,
    Checkpoint,
    Tick,
    /// A snapshot while requests go on.
    Snapshot,
    Resize {
        sectors: usize,
    },
}

impl Op {
    /// The sector behind the last one that it reads or changes.
    fn end(self) -> usize {
        match self {
            Op::Write { first, sectors, .. }
            | Op::Discard { first, sectors }
            | Op::Zero { first, sectors, .. }
            | Op::Read { first, sectors } => first + sectors,
            _ => 0,
        }
    }
}

fn holder() -> Holder {
    Holder { pid: 1, host: "sim".into(), socket: String::new() }
}

/// Sectors from which on a disk's file grows as freely as it does by default. Those of smaller disks fill their holes
/// first, so that blocks are used again at once, and grow in small steps, so that what is grown is zeroed now and then.
const ROOMY: usize = 1000;

fn options(sectors: usize) -> OpenOptions {
    let space = match sectors {
        ..ROOMY => SpaceOptions { slack_percent: 100, free_growth: 0, first_growth: 16 },
        ROOMY.. => SpaceOptions::default(),
    };
    OpenOptions { alive: |_| false, cache_bytes: 1 << 20, space, ..OpenOptions::new(Access::Write(holder())) }
}

/// A disk with base and image, everything durable.
pub fn make(setup: Setup) -> SimDisk {
    let disk = &SimDisk::new(IDENTITY);
    let bytes: Vec<u8> = (0..setup.base).flat_map(base_stamp).collect();
    if setup.base > 0 {
        disk.put_file(BASE, &bytes);
    }
    let storage = disk.clone();
    Executor::new(disk, 0).block_on(async move {
        let parent = match setup.base {
            0 => Parent::None,
            _ => {
                let hints = hints_between(Path::new(IMAGE), Path::new(BASE));
                describe_raw(&storage, Path::new(BASE), hints).await.unwrap().0
            }
        };
        let new = NewLayer {
            journal: MIN_JOURNAL_BYTES,
            checksums: setup.checksums,
            parent,
            ..NewLayer::empty((setup.sectors * SECTOR) as u64)
        };
        create(&storage, Path::new(IMAGE), &new).await.unwrap();
        storage.sync_dir(Path::new("/d")).unwrap();
    });
    disk.clone()
}

/// The name that a rollback gives the present.
fn kept_name(names: &[String]) -> String {
    (1..).map(|n| format!("rollback-{n}")).find(|name| !names.contains(name)).unwrap()
}

/// The content of each snapshot beside the image, by name.
pub async fn read_snapshots(disk: &SimDisk) -> cowdisk::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for file in disk.list(Path::new("/d")).unwrap() {
        let Some(name) = file.strip_prefix("vm@").and_then(|rest| rest.strip_suffix(".cow")) else {
            continue;
        };
        let to_read = OpenOptions::new(Access::Read { lock: true });
        let (image, _) = open_chain(disk, &Path::new("/d").join(&file), &to_read).await?;
        let buf = IoBuf::zeroed(image.geometry().size as usize);
        let queue = ImageQueue::new(Arc::new(image));
        let done = queue.read(0, buf.clone()).await;
        done.map_err(|e| cowdisk::Error::new(cowdisk::Kind::Corrupt, format!("{name}: {e:?}")))?;
        found.push((name.to_owned(), buf.to_vec()));
    }
    Ok(found)
}

/// An open image with its queues and background tasks, inside an executor's task.
pub struct World {
    pub image: Arc<Image<SimDisk>>,
    pub queues: Vec<Rc<ImageQueue<SimDisk>>>,
    pub history: Rc<RefCell<History>>,
    tasks: Vec<JoinHandle<()>>,
    /// Requests that got an error.
    pub failed: Cell<u64>,
    /// A resize is under way.
    resizing: Cell<bool>,
    /// Resizes that were begun.
    resizes: Cell<u64>,
    /// The smallest size that one of them was to.
    smallest: Cell<usize>,
}

impl World {
    /// Opens the image (recovering it) and starts what runs beside the requests.
    pub async fn open(
        disk: &SimDisk,
        queues: usize,
        history: Rc<RefCell<History>>,
    ) -> cowdisk::Result<World> {
        let options = options(history.borrow().sectors);
        let (image, _) = open_chain(disk, Path::new(IMAGE), &options).await?;
        let image = Arc::new(image);
        let (a, b, c, d, e) = (image.clone(), image.clone(), image.clone(), image.clone(), image.clone());
        let mut tasks = vec![
            spawn(async move { a.run_checkpoints().await }),
            spawn(async move { b.run_growth().await }),
            spawn(async move { c.run_ring_growth().await }),
            spawn(async move { drop(d.find_holes().await) }),
            spawn(async move { e.run_seals().await }),
        ];
        let queues: Vec<_> = (0..queues).map(|_| ImageQueue::new(image.clone())).collect();
        for queue in &queues {
            tasks.extend((0..4).map(|_| spawn(queue.clone().runner())));
        }
        Ok(World {
            image,
            queues,
            history,
            tasks,
            failed: Cell::new(0),
            resizing: Cell::new(false),
            resizes: Cell::new(0),
            smallest: Cell::new(usize::MAX),
        })
    }

    /// Sectors that the disk has now.
    pub fn size(&self) -> usize {
        self.image.geometry().size as usize / SECTOR
    }

    /// Does one operation on queue `queue`; panics with a description if an answer is wrong. One behind the end of a disk
    /// that has shrunk is left out, or, if that comes while it runs, may fail.
    pub async fn run(&self, queue: usize, op: Op) {
        if op.end() > self.size() {
            return;
        }
        let (failed, resizes) = (self.failed.get(), self.resizes.get());
        let resizing = self.resizing.get();
        self.run_within(queue, op).await;
        if (resizing || self.resizes.get() > resizes) && op.end() > self.smallest.get() {
            self.failed.set(failed);
        }
    }

    async fn run_within(&self, queue: usize, op: Op) {
        let q = &self.queues[queue % self.queues.len()];
        match op {
            Op::Write { first, sectors, fua } => self.write(q, first, sectors, fua).await,
            Op::Discard { first, sectors } => {
                let id = self.history.borrow_mut().issue(first, sectors, true, true);
                let done = q.discard((first * SECTOR) as u64, (sectors * SECTOR) as u64, false).await;
                self.answered(id, done, false);
            }
            Op::Zero { first, sectors, unmap } => {
                let id = self.history.borrow_mut().issue(first, sectors, true, true);
                let done =
                    q.write_zeroes((first * SECTOR) as u64, (sectors * SECTOR) as u64, unmap, false).await;
                self.answered(id, done, false);
            }
            Op::Read { first, sectors } => {
                let issued = self.history.borrow_mut().tick();
                let buf = IoBuf::zeroed(sectors * SECTOR);
                // Only where faults are injected: whoever has none judges all that was read at the end.
                if q.read((first * SECTOR) as u64, buf.clone()).await.is_err() {
                    self.failed.set(self.failed.get() + 1);
                    return;
                }
                let judged = self.history.borrow_mut().judge_read(first, &buf.to_vec(), issued);
                judged.unwrap_or_else(|e| panic!("read: {e}"));
            }
            Op::Flush => {
                let issued = self.history.borrow_mut().tick();
                if q.flush().await.is_ok() {
                    self.history.borrow_mut().flushed(issued);
                }
            }
            Op::Checkpoint => {
                let head = self.image.head().unwrap();
                // Fails only when the layer is poisoned, which the requests report.
                let _ = head.checkpoint(Finish::Running).await;
            }
            Op::Tick => {
                let _ = self.image.tick().await;
            }
            Op::Resize { sectors } => self.resize(q, sectors).await,
            // Fails only where faults are injected.
            Op::Snapshot => {
                if self.live_snapshot().await.is_err() {
                    self.failed.set(self.failed.get() + 1);
                }
            }
        }
    }

    /// One at a time: the history has them in their order.
    async fn resize(&self, q: &ImageQueue<SimDisk>, sectors: usize) {
        if sectors == self.size() || self.resizing.replace(true) {
            return;
        }
        self.resizes.set(self.resizes.get() + 1);
        self.smallest.set(self.smallest.get().min(sectors));
        let id = self.history.borrow_mut().issue_resize(self.size(), sectors);
        let done = q.resize((sectors * SECTOR) as u64).await;
        self.answered(id, done.map_err(|e| Errno(e.kind().errno())), true);
        self.resizing.set(false);
    }

    async fn live_snapshot(&self) -> cowdisk::Result<()> {
        let storage = self.image.head().unwrap().storage().clone();
        let taken = self.history.borrow().snapshots.len();
        let name = SnapshotName::new(&format!("live{taken}"))?;
        let id = self.history.borrow_mut().snapshot(name.as_str(), None);
        let cut = LiveCut::prepare(&storage, &self.image, &name, &[], |_| false).await?;
        cut.hold().await?;
        cut.cut();
        let now = self.history.borrow_mut().tick();
        self.history.borrow_mut().snapshots[id].acked = Some(now);
        Ok(())
    }

    async fn write(&self, q: &ImageQueue<SimDisk>, first: usize, sectors: usize, fua: bool) {
        let id = self.history.borrow_mut().issue(first, sectors, false, false);
        let bytes: Vec<u8> = (first..first + sectors).flat_map(|s| stamp(s, id)).collect();
        let done = q.write((first * SECTOR) as u64, IoBuf::from_slice(&bytes), fua).await;
        self.answered(id, done, fua);
    }

    fn answered(&self, id: usize, done: Result<(), Errno>, fua: bool) {
        let mut history = self.history.borrow_mut();
        match done {
            Ok(()) => history.ack(id, fua),
            Err(_) => {
                self.failed.set(self.failed.get() + 1);
                history.tick();
                history.changes[id].failed = true;
            }
        }
    }

    /// The whole disk.
    pub async fn read_all(&self) -> Result<Vec<u8>, Errno> {
        let buf = IoBuf::zeroed(self.size() * SECTOR);
        self.queues[0].read(0, buf.clone()).await?;
        Ok(buf.to_vec())
    }

    /// Ends the requests' side and closes the image, after which everything is durable.
    pub async fn close(self) -> cowdisk::Result<()> {
        self.queues.iter().for_each(|q| q.close());
        let issued = self.history.borrow_mut().tick();
        self.image.close().await?;
        self.history.borrow_mut().flushed(issued);
        for task in self.tasks {
            task.await;
        }
        Ok(())
    }

    /// Closes the image, takes a snapshot of it and opens it again.
    pub async fn snapshot(self, disk: &SimDisk, name: &str) -> cowdisk::Result<World> {
        let seen = identify_all(&self.read_all().await.unwrap()).unwrap();
        let (queues, history) = (self.queues.len(), self.history.clone());
        self.close().await?;
        let id = history.borrow_mut().snapshot(name, Some(seen));
        let valid = SnapshotName::new(name)?;
        let options = options(history.borrow().sectors);
        snapshot(disk, Path::new(IMAGE), &valid, &options, |_| false).await?;
        let now = history.borrow_mut().tick();
        history.borrow_mut().snapshots[id].acked = Some(now);
        World::open(disk, queues, history).await
    }

    /// Goes back, while the image stays open, to the snapshot that [`World::rollback`] would go back to.
    pub async fn live_rollback(&self, disk: &SimDisk, present: Present) -> cowdisk::Result<()> {
        self.image.sealed().await?;
        let (history, names) = (&self.history, self.snapshot_names());
        let Some(to) = names.iter().rev().nth(1).or(names.last()) else { return Ok(()) };
        let found = read_snapshots(disk).await?;
        let (_, then) = found.iter().find(|(name, _)| name == to).unwrap();
        // What no flush covers may be lost as long as it is not done.
        let id = (present == Present::Keep).then(|| history.borrow_mut().snapshot(&kept_name(&names), None));
        history.borrow_mut().issue_rollback(identify_all(then).unwrap());
        let to = SnapshotName::new(to)?;
        let mut live = LiveRollback::prepare(disk, &self.image, &to, present, &[], |_| false).await?;
        live.hold().await?;
        let done = live.finish().await?;
        history.borrow_mut().ack_rollback();
        history.borrow_mut().kept(id, done.kept.is_some());
        Ok(())
    }

    fn snapshot_names(&self) -> Vec<String> {
        self.history.borrow().snapshots.iter().map(|s| s.name.clone()).collect()
    }

    /// Closes the image, goes back to the snapshot that was taken last but one, or the only one, and opens it again; the
    /// present is kept. Without a snapshot only opens it again.
    pub async fn rollback(self, disk: &SimDisk) -> cowdisk::Result<World> {
        let seen = identify_all(&self.read_all().await.unwrap()).unwrap();
        let (queues, history, names) = (self.queues.len(), self.history.clone(), self.snapshot_names());
        self.close().await?;
        if let Some(to) = names.iter().rev().nth(1).or(names.last()) {
            let found = read_snapshots(disk).await?;
            let (_, then) = found.iter().find(|(name, _)| name == to).unwrap();
            let id = history.borrow_mut().snapshot(&kept_name(&names), Some(seen));
            history.borrow_mut().issue_rollback(identify_all(then).unwrap());
            let (to, options) = (SnapshotName::new(to)?, options(history.borrow().sectors));
            let done = rollback(disk, Path::new(IMAGE), &to, Present::Keep, &options, |_| false).await?;
            history.borrow_mut().ack_rollback();
            history.borrow_mut().kept(Some(id), done.kept.is_some());
        }
        World::open(disk, queues, history).await
    }
}
