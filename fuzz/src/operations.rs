//! Requests of several clients, a crash at any storage operation, a second one in the recovery, against the model of
//! the crash tests: after the death of the process every acknowledged request is there, after a loss of power every
//! flushed one and of the others a set closed under order.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

use arbitrary::{Arbitrary, Unstructured};
use cowdisk::chain::{ImageQueue, describe_raw, hints_between};
use cowdisk::device::Queue;
use cowdisk::format::Parent;
use cowdisk::layer::{Finish, NewLayer, create};
use cowdisk::limits::MIN_JOURNAL_BYTES;
use cowdisk::ops::{CheckOptions, Status, check};
use cowdisk::storage::sim::{Crash, Executor, SimDisk, spawn};
use cowdisk::storage::{IoBuf, Storage};

use crate::image::{IMAGE, Opened, open};
use crate::oracle::{History, Observed, SECTOR, base_stamp, identify_all, stamp};

const BASE: &str = "/d/base.raw";
/// Not whole blocks.
const SECTORS: usize = 140;
const BASE_SECTORS: usize = 84;
const CLIENTS: usize = 3;
const MAX_OPS: usize = 24;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Op {
    Write { first: u8, sectors: u8, fua: bool },
    Aligned { block: u8, blocks: u8, fua: bool },
    Discard { first: u8, sectors: u8 },
    Zero { first: u8, sectors: u8, unmap: bool },
    Read { first: u8, sectors: u8 },
    Flush,
    Checkpoint,
    Tick,
}

#[derive(Arbitrary, Clone, Debug)]
struct Input {
    seed: u16,
    on_base: bool,
    power: bool,
    /// The crash comes at this event of the disk, counted from the open; behind the end: when all is done.
    at: u16,
    /// Recovery is crashed at this event.
    again: Option<u8>,
    clients: [Vec<Op>; CLIENTS],
}

fn range(first: u8, sectors: u8) -> (usize, usize) {
    let first = usize::from(first) % SECTORS;
    (first, 1 + usize::from(sectors) % 48.min(SECTORS - first))
}

fn blocks(block: u8, blocks: u8) -> (usize, usize) {
    let block = usize::from(block) % (SECTORS / 8);
    (block * 8, 8 * (1 + usize::from(blocks) % 6.min(SECTORS / 8 - block)))
}

fn make(disk: &SimDisk, on_base: bool) {
    let base: Vec<u8> = (0..BASE_SECTORS).flat_map(base_stamp).collect();
    disk.put_file(BASE, &base);
    disk.block_on(async {
        let mut new = NewLayer { journal: MIN_JOURNAL_BYTES, ..NewLayer::empty((SECTORS * SECTOR) as u64) };
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
struct Client {
    opened: Opened,
    queue: Rc<ImageQueue<SimDisk>>,
    history: Rc<RefCell<History>>,
}

impl Client {
    async fn run(&self, op: Op) {
        let change = |first, sectors, zero| self.history.borrow_mut().issue(first, sectors, zero, zero);
        let bytes = |n: usize| (n * SECTOR) as u64;
        let done = "no fault is injected";
        match op {
            Op::Write { first, sectors, fua } => self.write(range(first, sectors), fua).await,
            Op::Aligned { block, blocks: count, fua } => self.write(blocks(block, count), fua).await,
            Op::Discard { first, sectors } => {
                let (first, sectors) = range(first, sectors);
                let id = change(first, sectors, true);
                self.queue.discard(bytes(first), bytes(sectors), false).await.expect(done);
                self.history.borrow_mut().ack(id, false);
            }
            Op::Zero { first, sectors, unmap } => {
                let (first, sectors) = range(first, sectors);
                let id = change(first, sectors, true);
                self.queue.write_zeroes(bytes(first), bytes(sectors), unmap, false).await.expect(done);
                self.history.borrow_mut().ack(id, false);
            }
            Op::Read { first, sectors } => {
                let (first, sectors) = range(first, sectors);
                let issued = self.history.borrow_mut().tick();
                let buf = IoBuf::zeroed(sectors * SECTOR);
                self.queue.read(bytes(first), buf.clone()).await.expect(done);
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
        }
    }

    async fn write(&self, (first, sectors): (usize, usize), fua: bool) {
        let id = self.history.borrow_mut().issue(first, sectors, false, false);
        let bytes: Vec<u8> = (first..first + sectors).flat_map(|s| stamp(s, id)).collect();
        let buf = IoBuf::from_slice(&bytes);
        self.queue.write((first * SECTOR) as u64, buf, fua).await.expect("no fault is injected");
        self.history.borrow_mut().ack(id, fua);
    }
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
    make(&disk, input.on_base);
    let base = if input.on_base { BASE_SECTORS } else { 0 };
    let history = Rc::new(RefCell::new(History::new(SECTORS, base)));
    let clock = history.clone();
    let taken = crash_at(&disk, u64::from(input.at), kind, seed, move || clock.borrow().now);
    let executor = Executor::new(&disk, seed);
    let (on, kept, clients) = (disk.clone(), history.clone(), input.clients.clone());
    let main = executor.spawn(async move {
        let opened = open(&on).await.expect("a good image");
        let second = opened.another_queue();
        let running: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(i, ops)| {
                let queue = if i % 2 == 0 { opened.queue.clone() } else { second.clone() };
                let client = Client { opened: opened.clone(), queue, history: kept.clone() };
                spawn(async move {
                    for op in ops.into_iter().take(MAX_OPS) {
                        client.run(op).await;
                    }
                })
            })
            .collect();
        for task in running {
            task.await;
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
fn recover(disk: &SimDisk, seed: u64, again: Option<(u64, Crash)>) -> Vec<Vec<u8>> {
    let taken = again.map(|(at, kind)| crash_at(disk, at, kind, seed, || 0));
    let on = disk.clone();
    let mut seen = vec![Executor::new(disk, seed).block_on(async move {
        let opened = open(&on).await.expect("a crash leaves an image that opens");
        let buf = IoBuf::zeroed(SECTORS * SECTOR);
        opened.queue.read(0, buf.clone()).await.expect("nothing is damaged");
        opened.queue.close();
        opened.image.close().await.expect("no fault is injected");
        buf.to_vec()
    })];
    disk.set_hook(None);
    if let Some(crashed) = taken.and_then(|taken| taken.borrow_mut().take()) {
        seen.extend(recover(&crashed.disk, seed + 1, None));
    }
    let on = disk.crash(Crash::ProcessDeath, seed);
    let options = CheckOptions { data: true, chain: true, ..CheckOptions::default() };
    let report = on.block_on(check(&on, Path::new(IMAGE), &options)).expect("an image");
    assert_eq!(report.status, Status::Clean, "{:?}", report.findings);
    seen
}

/// What a run came to, for choosing seeds: requests, and whether the crash came before the end.
pub fn run(bytes: &[u8]) -> (usize, bool) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) else { return (0, false) };
    let kind = if input.power { Crash::PowerLoss } else { Crash::ProcessDeath };
    let (crashed, history) = run_clients(&input, kind);
    let seed = u64::from(input.seed) + 1;
    // Whoever may lose power later may lose it in the first place: the death of the process alone loses nothing.
    for bytes in recover(&crashed.disk, seed, input.again.map(|at| (u64::from(at), kind))) {
        let judged = identify_all(&bytes).and_then(|disk| {
            let found = Observed { disk, snapshots: Vec::new() };
            history.borrow().judge(&found, input.power, crashed.now)
        });
        judged.unwrap_or_else(|e| panic!("{kind:?} at {}: {e}", crashed.now));
    }
    let early = history.borrow().now != crashed.now;
    (history.borrow().changes.len(), early)
}
