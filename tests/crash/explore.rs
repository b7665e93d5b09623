//! Crashing at every operation, and judging every crash.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use cowdisk::storage::sim::{Crash, Executor, SimDisk};

use crate::oracle::History;
use crate::world::{Setup, World};

/// How hard a run is crashed.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Crashes of each kind at each event.
    pub variants: u64,
    /// Only one event in so many, chosen by seed.
    pub every: u64,
    /// Queues when the image is opened again.
    pub recrash: bool,
}

/// What was explored.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    pub events: u64,
    pub crashes: u64,
}

#[derive(Clone)]
struct Pending {
    disk: SimDisk,
    power: bool,
    now: u64,
    label: String,
}

/// Collects crashed disks from the hook; they are judged between the steps, outside of it.
pub struct Explorer {
    seed: u64,
    effort: Effort,
    waiting: Rc<RefCell<Vec<Pending>>>,
    history: Rc<RefCell<History>>,
    events: Rc<Cell<u64>>,
    crashes: Cell<u64>,
    setup: Setup,
}

impl Explorer {
    pub fn new(
        disk: &SimDisk,
        seed: u64,
        effort: Effort,
        setup: Setup,
        history: Rc<RefCell<History>>,
    ) -> Explorer {
        let waiting: Rc<RefCell<Vec<Pending>>> = Rc::default();
        let events = Rc::new(Cell::new(0));
        let (list, count, hist) = (waiting.clone(), events.clone(), history.clone());
        disk.set_hook(Some(Box::new(move |disk, event| {
            count.set(count.get() + 1);
            if !mix(seed, count.get()).is_multiple_of(effort.every) {
                return;
            }
            let now = hist.borrow().now;
            for variant in 0..effort.variants {
                let crash_seed = mix(seed ^ 0x5eed, count.get() * 64 + variant);
                let label = format!("seed {seed} event {} ({event:?}) variant {variant}", count.get());
                let dead = disk.crash(Crash::ProcessDeath, crash_seed);
                let power = disk.crash(Crash::PowerLoss, crash_seed);
                let both = dead.crash(Crash::PowerLoss, crash_seed + 1);
                for (disk, power, what) in [
                    (dead, false, "process death"),
                    (power, true, "power loss"),
                    (both, true, "death, then power"),
                ] {
                    list.borrow_mut().push(Pending { disk, power, now, label: format!("{label}, {what}") });
                }
            }
        })));
        Explorer { seed, effort, waiting, history, events, crashes: Cell::new(0), setup }
    }

    /// Runs `executor` until `done`, judging on the way.
    pub fn run(&self, executor: &Executor, done: impl Fn() -> bool) {
        while !done() {
            assert!(executor.step(), "seed {}: nothing can go on", self.seed);
            self.judge();
        }
    }

    /// Judges what was collected.
    pub fn judge(&self) {
        let list = std::mem::take(&mut *self.waiting.borrow_mut());
        for pending in list {
            self.crashes.set(self.crashes.get() + 1);
            judge_one(&pending, &self.history, self.setup, self.effort.recrash);
        }
    }

    pub fn counts(&self) -> Counts {
        Counts { events: self.events.get(), crashes: self.crashes.get() }
    }
}

fn judge_one(pending: &Pending, history: &Rc<RefCell<History>>, setup: Setup, recrash: bool) {
    let seed = pending.disk.ops() ^ pending.now;
    let first = recover(&pending.disk, setup, seed, &pending.label, recrash.then_some((pending, history)));
    let judged = history.borrow().judge(&first, pending.power, pending.now);
    judged.unwrap_or_else(|e| panic!("{}: {e}", pending.label));
}

/// Opens the crashed disk, reads everything, closes it, and reads it again: recovering twice gives the same bytes.
fn recover(
    disk: &SimDisk,
    setup: Setup,
    seed: u64,
    label: &str,
    recrash: Option<(&Pending, &Rc<RefCell<History>>)>,
) -> Vec<u8> {
    let inner: Rc<RefCell<Vec<SimDisk>>> = Rc::default();
    if let Some((pending, _)) = recrash {
        let list = inner.clone();
        let power = pending.power;
        disk.set_hook(Some(Box::new(move |disk, event| {
            let kind = if mix(seed, event.index).is_multiple_of(2) && power {
                Crash::PowerLoss
            } else {
                Crash::ProcessDeath
            };
            if mix(seed ^ 77, event.index).is_multiple_of(8) {
                list.borrow_mut().push(disk.crash(kind, mix(seed, event.index)));
            }
        })));
    }
    let read = |disk: &SimDisk, label: &str| {
        let history = Rc::new(RefCell::new(History::new(setup.sectors, setup.base)));
        let executor = Executor::new(disk, seed);
        let (label, disk) = (label.to_owned(), disk.clone());
        let main = async move {
            let world = World::open(&disk, 1, history)
                .await
                .unwrap_or_else(|e| panic!("{label}: cannot be opened: {e}"));
            let bytes = world
                .read_all()
                .await
                .unwrap_or_else(|e| panic!("{label}: cannot be read: {e:?} {:?}", world.image.last_errors()));
            world.close().await.unwrap_or_else(|e| panic!("{label}: cannot be closed: {e}"));
            bytes
        };
        executor.block_on(main)
    };
    let first = read(disk, label);
    disk.set_hook(None);
    let again = read(disk, &format!("{label}, second open"));
    assert!(first == again, "{label}: the second open reads other bytes than the first");
    if let Some((pending, history)) = recrash {
        for (i, crashed) in inner.take().into_iter().enumerate() {
            let label = format!("{label}, crash {i} in recovery");
            let bytes = recover(&crashed, setup, seed + 1, &label, None);
            let judged = history.borrow().judge(&bytes, pending.power, pending.now);
            judged.unwrap_or_else(|e| panic!("{label}: {e}"));
        }
    }
    first
}

/// A number that depends on both and looks random.
pub fn mix(seed: u64, n: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ n.wrapping_mul(0xD1B5_4A32_D192_ED03);
    x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 29)
}
