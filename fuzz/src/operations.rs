//! Requests of several clients and resizes, then perhaps a snapshot, further requests and a rollback to it, a crash at any
//! storage operation, a second one in the recovery, against the model of the crash tests: after the death of the process
//! every acknowledged request is there, after a loss of power every flushed one and of the others a set closed under order,
//! and each snapshot is exact.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use cowdisk::chain::{
    Access, ImageQueue, OpenOptions, SnapshotName, describe_raw, hints_between, open_chain,
};
use cowdisk::device::{Errno, Queue};
use cowdisk::format::Parent;
use cowdisk::layer::{Finish, NewLayer, create};
use cowdisk::limits::MIN_JOURNAL_BYTES;
use cowdisk::ops::{CheckOptions, Code, LiveCut, LiveRollback, Present, check};
use cowdisk::storage::sim::{Crash, Executor, SimDisk, spawn};
use cowdisk::storage::{IoBuf, Storage};

use crate::image::{IMAGE, Opened, open};
use crate::oracle::{History, Observed, SECTOR, Seen, base_stamp, identify_all, stamp};

const BASE: &str = "/d/base.raw";
/// Not whole blocks.
const SECTORS: usize = 140;
const BASE_SECTORS: usize = 84;
const CLIENTS: usize = 3;
const MAX_OPS: usize = 24;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Op {
    Write {
        first: u8,
        sectors: u8,
        fua: bool,
    },
    Aligned {
        block: u8,
        blocks: u8,
        fua: bool,
    },
    Discard {
        first: u8,
        sectors: u8,
    },
    Zero {
        first: u8,
        sectors: u8,
        unmap: bool,
    },
    Read {
        first: u8,
        sectors: u8,
    },
    Flush,
    Checkpoint,
    Tick,
    /// Half the disk and more.
    Resize {
        sectors: u8,
    },
}

/// A snapshot, and a rollback to it while no client is there.
#[derive(Arbitrary, Clone, Debug)]
struct Back {
    discard: bool,
    between: Vec<Op>,
    after: Vec<Op>,
}

#[derive(Arbitrary, Clone, Debug)]
struct Input {
    seed: u16,
    on_base: bool,
    /// The disk's data has no checksums.
    plain: bool,
    power: bool,
    /// The crash comes at this event of the disk, counted from the open; behind the end: when all is done.
    at: u16,
    /// Recovery is crashed at this event.
    again: Option<u8>,
    clients: [Vec<Op>; CLIENTS],
    back: Option<Back>,
}

fn range(first: u8, sectors: u8) -> (usize, usize) {
    let first = usize::from(first) % SECTORS;
    (first, 1 + usize::from(sectors) % 48.min(SECTORS - first))
}

fn blocks(block: u8, blocks: u8) -> (usize, usize) {
    let block = usize::from(block) % (SECTORS / 8);
    (block * 8, 8 * (1 + usize::from(blocks) % 6.min(SECTORS / 8 - block)))
}

fn make(disk: &SimDisk, on_base: bool, plain: bool) {
    let base: Vec<u8> = (0..BASE_SECTORS).flat_map(base_stamp).collect();
    disk.put_file(BASE, &base);
    disk.block_on(async {
        let empty = NewLayer::empty((SECTORS * SECTOR) as u64);
        let mut new = NewLayer { journal: MIN_JOURNAL_BYTES, checksums: !plain, ..empty };
        if on_base {
            let hints = hints_between(Path::new(IMAGE), Path::new(BASE));
            let described = describe_raw(disk, Path::new(BASE), hints).await;
            new.parent = described.expect("the base is there").0;
        } else {
            new.parent = Parent::None;
        }
        create(disk, Path::new(IMAGE), &new).await.expect("a new image");
        disk.sync_dir(Path::new("/d")).expect("no fault is injected");
    });
}

/// A client of one queue.
#[derive(Clone)]
struct Client {
    opened: Opened,
    queue: Rc<ImageQueue<SimDisk>>,
    history: Rc<RefCell<History>>,
    sizes: Rc<Sizes>,
}

/// What resizes have done to requests that ran beside them.
#[derive(Default)]
struct Sizes {
    /// One is under way; there is one at a time, as the history has them.
    running: Cell<bool>,
    /// How many there were.
    begun: Cell<u64>,
}

impl Client {
    fn sectors(&self) -> usize {
        self.opened.image.geometry().size as usize / SECTOR
    }

    /// Runs one after the other.
    async fn run_all(&self, ops: Vec<Op>) {
        for op in ops.into_iter().take(MAX_OPS) {
            self.run(op).await;
        }
    }

    /// A request that the disk is too small for is left out.
    fn fits(&self, op: Op) -> bool {
        let (first, sectors) = match op {
            Op::Aligned { block, blocks: count, .. } => blocks(block, count),
            Op::Write { first, sectors, .. }
            | Op::Discard { first, sectors }
            | Op::Zero { first, sectors, .. }
            | Op::Read { first, sectors } => range(first, sectors),
            Op::Flush | Op::Checkpoint | Op::Tick | Op::Resize { .. } => (0, 0),
        };
        first + sectors <= self.sectors()
    }

    async fn run(&self, op: Op) {
        if self.fits(op) {
            self.run_fitting(op).await;
        }
    }

    /// The answer to the change `id`; `begun`: how many resizes there were when it was issued. Only one that came meanwhile
    /// may have it fail.
    fn answered(&self, id: usize, done: Result<(), Errno>, fua: bool, begun: u64) {
        let mut history = self.history.borrow_mut();
        match done {
            Ok(()) => history.ack(id, fua),
            Err(e) => {
                let beside = self.sizes.running.get() || self.sizes.begun.get() > begun;
                assert!(beside, "no fault is injected: {e:?}");
                history.tick();
                history.changes[id].failed = true;
            }
        }
    }

    async fn resize(&self, sectors: usize) {
        if sectors == self.sectors() || self.sizes.running.replace(true) {
            return;
        }
        self.sizes.begun.set(self.sizes.begun.get() + 1);
        let id = self.history.borrow_mut().issue_resize(self.sectors(), sectors);
        self.queue.resize((sectors * SECTOR) as u64).await.expect("no fault is injected");
        self.history.borrow_mut().ack(id, true);
        self.sizes.running.set(false);
    }

    /// Takes a snapshot, goes on, goes back to it, and goes on.
    async fn there_and_back(&self, disk: &SimDisk, back: Back) -> cowdisk::Result<()> {
        let image = &self.opened.image;
        let name = SnapshotName::new("s")?;
        let snapshot = self.history.borrow_mut().snapshot(name.as_str(), None);
        let cut = LiveCut::prepare(disk, image, &name, &[], |_| false).await?;
        cut.hold().await?;
        cut.cut();
        self.history.borrow_mut().kept(Some(snapshot), true);
        let then = identify_all(&read_all(&self.queue).await).expect("nothing is damaged");
        self.run_all(back.between).await;
        let present = if back.discard { Present::Discard } else { Present::Keep };
        let kept = match present {
            Present::Keep => Some(self.history.borrow_mut().snapshot("rollback-1", None)),
            Present::Discard => None,
        };
        self.history.borrow_mut().issue_rollback(then);
        let mut live = LiveRollback::prepare(disk, image, &name, present, &[], |_| false).await?;
        live.hold().await?;
        let done = live.finish().await?;
        self.history.borrow_mut().ack_rollback();
        self.history.borrow_mut().kept(kept, done.kept.is_some());
        self.run_all(back.after).await;
        Ok(())
    }

    async fn run_fitting(&self, op: Op) {
        let change = |first, sectors, zero| self.history.borrow_mut().issue(first, sectors, zero, zero);
        let bytes = |n: usize| (n * SECTOR) as u64;
        let done = "no fault is injected";
        let begun = self.sizes.begun.get() - u64::from(self.sizes.running.get());
        match op {
            Op::Write { first, sectors, fua } => self.write(range(first, sectors), fua).await,
            Op::Aligned { block, blocks: count, fua } => self.write(blocks(block, count), fua).await,
            Op::Discard { first, sectors } => {
                let (first, sectors) = range(first, sectors);
                let id = change(first, sectors, true);
                let done = self.queue.discard(bytes(first), bytes(sectors), false).await;
                self.answered(id, done, false, begun);
            }
            Op::Zero { first, sectors, unmap } => {
                let (first, sectors) = range(first, sectors);
                let id = change(first, sectors, true);
                let done = self.queue.write_zeroes(bytes(first), bytes(sectors), unmap, false).await;
                self.answered(id, done, false, begun);
            }
            Op::Read { first, sectors } => {
                let (first, sectors) = range(first, sectors);
                let issued = self.history.borrow_mut().tick();
                let buf = IoBuf::zeroed(sectors * SECTOR);
                if let Err(e) = self.queue.read(bytes(first), buf.clone()).await {
                    assert!(self.sizes.begun.get() > begun, "no fault is injected: {e:?}");
                    return;
                }
                let judged = self.history.borrow_mut().judge_read(first, &buf.to_vec(), issued);
                judged.unwrap_or_else(|e| panic!("read: {e}"));
            }
            Op::Flush => {
                let issued = self.history.borrow_mut().tick();
                self.queue.flush().await.expect(done);
                self.history.borrow_mut().flushed(issued);
            }
            Op::Checkpoint => {
                let head = self.opened.image.head().expect("open for writing");
                head.checkpoint(Finish::Running).await.expect(done);
            }
            Op::Tick => self.opened.image.tick().await.expect(done),
            Op::Resize { sectors } => self.resize(SECTORS / 2 + usize::from(sectors) % SECTORS).await,
        }
    }

    async fn write(&self, (first, sectors): (usize, usize), fua: bool) {
        let id = self.history.borrow_mut().issue(first, sectors, false, false);
        let bytes: Vec<u8> = (first..first + sectors).flat_map(|s| stamp(s, id)).collect();
        let buf = IoBuf::from_slice(&bytes);
        let begun = self.sizes.begun.get() - u64::from(self.sizes.running.get());
        let done = self.queue.write((first * SECTOR) as u64, buf, fua).await;
        self.answered(id, done, fua, begun);
    }
}

/// The whole disk.
async fn read_all(queue: &ImageQueue<SimDisk>) -> Vec<u8> {
    let buf = IoBuf::zeroed(queue.image().geometry().size as usize);
    queue.read(0, buf.clone()).await.expect("nothing is damaged");
    buf.to_vec()
}

/// The content of each snapshot beside the image, by name.
async fn read_snapshots(disk: &SimDisk) -> Vec<(String, Vec<Seen>)> {
    let mut found = Vec::new();
    for file in disk.list(Path::new("/d")).expect("the directory is there") {
        let name = file.strip_prefix("vm@").and_then(|rest| rest.strip_suffix(".cow"));
        let Some(name) = name.map(str::to_owned) else { continue };
        let to_read = OpenOptions::new(Access::Read { lock: true });
        let opened = open_chain(disk, &Path::new("/d").join(&file), &to_read).await;
        let (image, _) = opened.expect("a snapshot that is there can be opened");
        let bytes = read_all(&ImageQueue::new(Arc::new(image))).await;
        found.push((name, identify_all(&bytes).expect("nothing is damaged")));
    }
    found
}

/// What a crash left, and the time of it.
struct Crashed {
    disk: SimDisk,
    now: u64,
}

/// Takes the crash at event `at` from the hook.
fn crash_at(
    disk: &SimDisk,
    at: u64,
    kind: Crash,
    seed: u64,
    now: impl Fn() -> u64 + 'static,
) -> Rc<RefCell<Option<Crashed>>> {
    let taken = Rc::new(RefCell::new(None));
    let (slot, events) = (taken.clone(), Cell::new(0));
    disk.set_hook(Some(Box::new(move |disk, _| {
        events.set(events.get() + 1);
        if events.get() == at {
            *slot.borrow_mut() = Some(Crashed { disk: disk.crash(kind, seed), now: now() });
        }
    })));
    taken
}

/// Runs the clients until they end or the crash comes.
fn run_clients(input: &Input, kind: Crash) -> (Crashed, Rc<RefCell<History>>) {
    let seed = u64::from(input.seed);
    let disk = SimDisk::new(seed);
    make(&disk, input.on_base, input.plain);
    let base = if input.on_base { BASE_SECTORS } else { 0 };
    let history = Rc::new(RefCell::new(History::new(SECTORS, base)));
    let clock = history.clone();
    let taken = crash_at(&disk, u64::from(input.at), kind, seed, move || clock.borrow().now);
    let executor = Executor::new(&disk, seed);
    let (on, kept, clients, back) =
        (disk.clone(), history.clone(), input.clients.clone(), input.back.clone());
    let main = executor.spawn(async move {
        let opened = open(&on).await.expect("a good image");
        let second = opened.another_queue();
        let sizes = Rc::<Sizes>::default();
        let client = |queue: &Rc<ImageQueue<SimDisk>>| Client {
            opened: opened.clone(),
            queue: queue.clone(),
            history: kept.clone(),
            sizes: sizes.clone(),
        };
        let running: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(i, ops)| {
                let client = client(if i % 2 == 0 { &opened.queue } else { &second });
                spawn(async move { client.run_all(ops).await })
            })
            .collect();
        for task in running {
            task.await;
        }
        if let Some(back) = back {
            client(&second).there_and_back(&on, back).await.expect("no fault is injected");
        }
    });
    while !main.is_finished() && taken.borrow().is_none() {
        assert!(executor.step(), "nothing can go on");
    }
    disk.set_hook(None);
    let now = history.borrow().now;
    let crashed = taken.borrow_mut().take();
    let crashed = crashed.unwrap_or_else(|| Crashed { disk: disk.crash(kind, seed), now });
    (crashed, history)
}

/// Recovers, gives what the disk shows, closes. With a crash in it, recovers that too.
fn recover(disk: &SimDisk, seed: u64, again: Option<(u64, Crash)>) -> Vec<Observed> {
    let taken = again.map(|(at, kind)| crash_at(disk, at, kind, seed, || 0));
    let on = disk.clone();
    let mut seen = vec![Executor::new(disk, seed).block_on(async move {
        let opened = open(&on).await.expect("a crash leaves an image that opens");
        let disk = identify_all(&read_all(&opened.queue).await).unwrap_or_else(|e| panic!("{e}"));
        opened.queue.close();
        opened.image.close().await.expect("no fault is injected");
        drop(opened);
        Observed { disk, snapshots: read_snapshots(&on).await }
    })];
    disk.set_hook(None);
    if let Some(crashed) = taken.and_then(|taken| taken.borrow_mut().take()) {
        seen.extend(recover(&crashed.disk, seed + 1, None));
    }
    let on = disk.crash(Crash::ProcessDeath, seed);
    let options = CheckOptions { data: true, chain: true, ..CheckOptions::default() };
    let report = on.block_on(check(&on, Path::new(IMAGE), &options)).expect("an image");
    // A file that was being made may be there for ever.
    let harm = report.findings.kept().iter().find(|finding| finding.code != Code::LeftoverFile);
    assert!(harm.is_none(), "{harm:?}");
    seen
}

/// What a run came to, for choosing seeds: requests, and whether the crash came before the end.
pub fn run(bytes: &[u8]) -> (usize, bool) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) else { return (0, false) };
    let kind = if input.power { Crash::PowerLoss } else { Crash::ProcessDeath };
    let (crashed, history) = run_clients(&input, kind);
    let seed = u64::from(input.seed) + 1;
    // Whoever may lose power later may lose it in the first place: the death of the process alone loses nothing.
    for found in recover(&crashed.disk, seed, input.again.map(|at| (u64::from(at), kind))) {
        let judged = history.borrow().judge(&found, input.power, crashed.now);
        judged.unwrap_or_else(|e| panic!("{kind:?} at {}: {e}", crashed.now));
    }
    let early = history.borrow().now != crashed.now;
    (history.borrow().changes.len(), early)
}
