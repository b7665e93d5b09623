//! Crashing at every operation, and judging every crash.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use cowdisk::ops::{CheckOptions, Code, check};
use cowdisk::storage::sim::{Crash, Executor, SimDisk};

use crate::oracle::{History, Observed, Seen, identify_all};
use crate::world::{IMAGE, Setup, World, read_snapshots};

/// How hard a run is crashed.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Crashes of each kind at each event.
    pub variants: u64,
    /// Only one event in so many, chosen by seed.
    pub every: u64,
    /// The recovery of one crash in so many is crashed in its turn; 0: none.
    pub recrash: u64,
}

/// One crash image in so many is opened a second time and checked.
const AGAIN: u64 = 8;

/// What was explored.
#[derive(Default, Debug)]
pub struct Counts {
    /// Beginnings and ends of storage operations at which there were crashes.
    pub events: AtomicU64,
    /// Crashes that were judged.
    pub crashes: AtomicU64,
    /// Of these, crashes of a recovery.
    pub in_recovery: AtomicU64,
    /// Different images that crashes have left, by fingerprint.
    images: [Mutex<HashSet<u64>>; 32],
}

impl Counts {
    /// Different images so far.
    pub fn distinct(&self) -> u64 {
        self.images.iter().map(|part| part.lock().unwrap().len() as u64).sum()
    }

    fn add_image(&self, print: u64) {
        self.images[(print % 32) as usize].lock().unwrap().insert(print);
    }

    /// Prints the counts and makes sure that there are some.
    pub fn report(&self, name: &str) {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        println!(
            "crash states: {name}: {} storage events, {} crashes ({} of them in recovery), {} distinct images, no violation",
            get(&self.events),
            get(&self.crashes),
            get(&self.in_recovery),
            self.distinct(),
        );
        assert!(self.distinct() > 100, "the exploration did not run");
    }
}

/// Runs `job` for each number in `range` on all processors, in order, until `enough` says so.
pub fn in_parallel(
    range: std::ops::Range<usize>,
    enough: impl Fn() -> bool + Sync,
    job: impl Fn(usize) + Sync,
) {
    let next = AtomicUsize::new(range.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !enough() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= range.end {
                        break;
                    }
                    job(number);
                }
            });
        }
    });
}

struct Pending {
    disk: SimDisk,
    power: bool,
    now: u64,
    label: String,
    seed: u64,
}

/// What snapshots show, by name; see [`Explorer`].
type Snapshots = RefCell<HashMap<u64, Vec<(String, Vec<Seen>)>>>;

/// What a hook has collected, and how far the run was.
type Waiting = Rc<RefCell<Vec<Pending>>>;

/// Collects crashed disks from the hook; they are judged between the steps, outside of it.
pub struct Explorer<'a> {
    seed: u64,
    effort: Effort,
    waiting: Waiting,
    history: Rc<RefCell<History>>,
    events: Rc<Cell<u64>>,
    /// What was found in the images of this run, by fingerprint.
    found: RefCell<HashMap<u64, Rc<Observed>>>,
    /// What the snapshots of an image show, by the fingerprint of their files.
    snapshots: Snapshots,
    /// What has been judged: image, time, whether the power went.
    judged: RefCell<HashSet<(u64, u64, bool)>>,
    setup: Setup,
    counts: &'a Counts,
    /// What else it takes to reproduce the run.
    pub note: String,
}

impl Drop for Explorer<'_> {
    fn drop(&mut self) {
        self.counts.events.fetch_add(self.events.get(), Ordering::Relaxed);
    }
}

impl<'a> Explorer<'a> {
    pub fn new(
        disk: &SimDisk,
        seed: u64,
        effort: Effort,
        setup: Setup,
        history: Rc<RefCell<History>>,
        counts: &'a Counts,
    ) -> Explorer<'a> {
        let waiting = Waiting::default();
        let events = Rc::new(Cell::new(0));
        let (list, count, hist) = (waiting.clone(), events.clone(), history.clone());
        disk.set_hook(Some(Box::new(move |disk, event| {
            count.set(count.get() + 1);
            if !mix(seed, count.get()).is_multiple_of(effort.every) {
                return;
            }
            let now = hist.borrow().now;
            for variant in 0..effort.variants {
                let seed_of_crash = mix(seed ^ 0x5eed, count.get() * 64 + variant);
                let dead = disk.crash(Crash::ProcessDeath, seed_of_crash);
                let lost = disk.crash(Crash::PowerLoss, seed_of_crash);
                let both = dead.crash(Crash::PowerLoss, seed_of_crash + 1);
                for (disk, power, what) in [
                    (dead, false, "process death"),
                    (lost, true, "power loss"),
                    (both, true, "death, then power loss"),
                ] {
                    let label = format!(
                        "seed {seed} event {} ({:?} {:?}) variant {variant}, {what}",
                        count.get(),
                        event.when,
                        event.op
                    );
                    list.borrow_mut().push(Pending { disk, power, now, label, seed: seed_of_crash });
                }
            }
        })));
        Explorer {
            seed,
            effort,
            waiting,
            history,
            events,
            found: RefCell::default(),
            snapshots: RefCell::default(),
            judged: RefCell::default(),
            setup,
            counts,
            note: String::new(),
        }
    }

    /// Runs `executor` until `done`, judging on the way.
    pub fn run(&self, executor: &Executor, done: impl Fn() -> bool) {
        while !done() {
            assert!(executor.step(), "{} seed {}: nothing can go on", self.note, self.seed);
            self.judge();
        }
    }

    /// Crashes `disk` as it is now and judges that.
    pub fn judge_now(&self, disk: &SimDisk, kind: Crash, label: &str) {
        let (now, power) = (self.history.borrow().now, kind == Crash::PowerLoss);
        let crashed = disk.crash(kind, self.seed);
        let pending = Pending { disk: crashed, power, now, label: label.to_owned(), seed: self.seed };
        self.waiting.borrow_mut().push(pending);
        self.judge();
    }

    /// Judges what was collected.
    pub fn judge(&self) {
        if self.waiting.borrow().is_empty() {
            return;
        }
        for pending in std::mem::take(&mut *self.waiting.borrow_mut()) {
            let recrash = self.effort.recrash > 0 && pending.seed.is_multiple_of(self.effort.recrash);
            self.judge_one(&pending, recrash);
        }
    }

    fn judge_one(&self, pending: &Pending, recrash: bool) {
        self.counts.crashes.fetch_add(1, Ordering::Relaxed);
        let mut print = pending.disk.fingerprint();
        if !self.setup.checksums {
            // What counts then depends on whether the machine went down too.
            print = mix(print, pending.disk.boot());
        }
        // The same image at the same time has the same answer.
        if !self.judged.borrow_mut().insert((print, pending.now, pending.power)) && !recrash {
            return;
        }
        let found = self.find(pending, print, recrash);
        let judged = self.history.borrow().judge(&found, pending.power, pending.now);
        judged.unwrap_or_else(|e| panic!("{} {}: {e}", self.note, pending.label));
    }

    /// What a recovery finds: from memory if the same image has been there before in this run.
    fn find(&self, pending: &Pending, print: u64, recrash: bool) -> Rc<Observed> {
        if let Some(known) = self.found.borrow().get(&print).filter(|_| !recrash) {
            return known.clone();
        }
        self.counts.add_image(print);
        let crashes: Waiting = Waiting::default();
        if recrash {
            collect_crashes(pending, crashes.clone());
        }
        let found = Rc::new(self.recover(&pending.disk, pending.seed, &pending.label));
        pending.disk.set_hook(None);
        self.found.borrow_mut().insert(print, found.clone());
        for inner in crashes.take() {
            self.counts.in_recovery.fetch_add(1, Ordering::Relaxed);
            self.judge_one(&inner, false);
        }
        found
    }
}

/// Crashes the recovery of `pending` at some of its events. After a power loss, or a death and then one, it is as
/// after a power loss; after two deaths, as after one.
fn collect_crashes(pending: &Pending, list: Waiting) {
    let (seed, power, now, label) = (pending.seed, pending.power, pending.now, pending.label.clone());
    let count = Cell::new(0);
    pending.disk.set_hook(Some(Box::new(move |disk, _| {
        count.set(count.get() + 1);
        if !mix(seed ^ 77, count.get()).is_multiple_of(4) {
            return;
        }
        let inner_seed = mix(seed, count.get());
        let also_power = inner_seed.is_multiple_of(2);
        let kind = if also_power { Crash::PowerLoss } else { Crash::ProcessDeath };
        list.borrow_mut().push(Pending {
            disk: disk.crash(kind, inner_seed),
            power: power || also_power,
            now,
            label: format!("{label}; {kind:?} at event {} of the recovery", count.get()),
            seed: inner_seed,
        });
    })));
}

impl Explorer<'_> {
    /// Opens the crashed disk, reads everything and closes it; one time in a few, reads it again and checks it:
    /// recovering twice gives the same bytes.
    fn recover(&self, disk: &SimDisk, seed: u64, label: &str) -> Observed {
        let found = self.read_once(disk, seed, label);
        if mix(seed, 3).is_multiple_of(AGAIN) {
            let again = self.read_once(disk, seed, label);
            assert!(found == again, "{label}: the second open reads other bytes than the first");
            let whole = CheckOptions { data: true, chain: true, ..CheckOptions::default() };
            let report = disk.block_on(check(disk, Path::new(IMAGE), &whole));
            let report = report.unwrap_or_else(|e| panic!("{label}: check: {e}"));
            // A file that was being made may be there for ever.
            let harm = report.findings.kept().iter().find(|f| f.code != Code::LeftoverFile);
            assert!(harm.is_none(), "{label}: check: {harm:?}");
        }
        found
    }

    fn read_once(&self, disk: &SimDisk, seed: u64, label: &str) -> Observed {
        let history = self.setup.history();
        let bad = |e: &dyn std::fmt::Debug| -> ! { panic!("{label}: {e:?}") };
        let on = disk.clone();
        let main = async move {
            let world = World::open(&on, 1, history).await.unwrap_or_else(|e| bad(&("cannot be opened", e)));
            let bytes = world.read_all().await;
            let bytes = bytes.unwrap_or_else(|e| bad(&("cannot be read", e, world.image.last_errors())));
            world.close().await.unwrap_or_else(|e| bad(&("cannot be closed", e)));
            bytes
        };
        let bytes = Executor::new(disk, seed).block_on(main);
        let identify = |bytes: &[u8]| identify_all(bytes).unwrap_or_else(|e| bad(&e));
        // Their files are the same in most images of a run, and then show the same.
        let print = disk.fingerprint_of(|name| name != Path::new(IMAGE));
        let known = self.snapshots.borrow().get(&print).cloned();
        let snapshots = known.unwrap_or_else(|| {
            let found = disk.block_on(read_snapshots(disk)).unwrap_or_else(|e| bad(&("snapshot", e)));
            found.into_iter().map(|(name, bytes)| (name, identify(&bytes))).collect()
        });
        self.snapshots.borrow_mut().insert(print, snapshots.clone());
        Observed { disk: identify(&bytes), snapshots }
    }
}

/// A number that depends on both and looks random.
pub fn mix(seed: u64, n: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ n.wrapping_mul(0xD1B5_4A32_D192_ED03);
    x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 29)
}
