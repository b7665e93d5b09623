//! `space::Readers` and `Limbo` (rule R): a block that a reader has looked up is not written again before it has read it.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use cowdisk::map::Freed;
use cowdisk::rules::Rule;
use cowdisk::space::{Readers, Reserve, Space, SpaceOptions};
use cowdisk::sync::Mutex;
use cowdisk::sync::atomic::AtomicU64 as Step;
use cowdisk::units::{PBlock, Seq};
use shuttle::thread;

use crate::{explore, notices};

const AREA: u64 = 10;
/// One more than is mapped and one more than is being written: blocks come back at once, or not at all.
const FILE: u64 = 3;
const WRITES: u64 = 4;

struct Disk {
    space: Space,
    /// The map of a disk of one block: where it is, and what is there. Locked as the real one is.
    map: Mutex<(PBlock, u64)>,
    /// What the blocks of the file hold. Plain memory: it may change at any moment, as a disk may.
    file: [AtomicU64; FILE as usize],
    /// The highest durable number on durable record, R(a).
    evidence: AtomicU64,
}

impl Disk {
    fn new() -> Disk {
        let options = SpaceOptions { slack_percent: 100, free_growth: 0, ..SpaceOptions::default() };
        let area = PBlock(AREA);
        let space = Space::new(area, area, AREA + FILE, Readers::default(), options);
        let Reserve::Run(run) = space.reserve(1) else { panic!("an empty file has room") };
        let disk = Disk {
            space,
            map: Mutex::new((run.first, 0)),
            file: Default::default(),
            evidence: AtomicU64::new(0),
        };
        disk.cell(run.first).store(0, Relaxed);
        disk
    }

    fn cell(&self, at: PBlock) -> &AtomicU64 {
        &self.file[(at.0 - AREA) as usize]
    }

    /// Writes `value` to a free block, maps it and frees the old one. `false`: there is no free block.
    fn write(&self, value: u64) -> bool {
        let Reserve::Run(run) = self.space.reserve(1) else { return false };
        self.cell(run.first).store(value, Relaxed);
        thread::yield_now();
        let (old, _) = std::mem::replace(&mut *self.map.lock(), (run.first, value));
        self.space.free_later(&[Freed { pblock: old, blocks: 1, by: Seq(value) }]);
        true
    }

    fn release(&self) {
        assert_eq!(self.space.release(Seq(self.evidence.load(Relaxed))), None, "a block was freed twice");
    }

    fn read(&self) {
        let guard = self.space.readers().enter();
        let (at, value) = *self.map.lock();
        for _ in 0..2 {
            thread::yield_now();
            let found = self.cell(at).load(Relaxed);
            assert_eq!(found, value, "block {} was used again under a reader", at.0);
        }
        drop(guard);
    }
}

/// One writer, two readers, and somebody who releases beside them.
fn readers_hold_blocks_back() {
    let disk = Arc::new(Disk::new());
    disk.evidence.store(u64::MAX, Relaxed);
    let mut threads: Vec<_> = (0..2)
        .map(|_| {
            let disk = disk.clone();
            thread::spawn(move || (0..2).for_each(|_| disk.read()))
        })
        .collect();
    let background = disk.clone();
    threads.push(thread::spawn(move || (0..3).for_each(|_| background.release())));
    for value in 1..=WRITES {
        disk.release();
        disk.write(value);
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
    // Nobody reads any more: two steps of the epoch, and everything that was freed is there again.
    (0..2).for_each(|_| disk.release());
    let stats = disk.space.stats();
    assert_eq!((stats.limbo_blocks, stats.file_blocks - stats.free_blocks), (0, 1));
}

/// The epochs alone: one block is replaced, and used again as soon as they allow it, while others move them on.
fn the_epoch_waits_for_readers() {
    let readers = Readers::default();
    let replaced = Arc::new(Step::new(0));
    let reused = Arc::new(Step::new(0));
    let others = readers.clone();
    let mut threads = vec![thread::spawn(move || {
        (0..2).for_each(|_| {
            others.advance();
        })
    })];
    let (theirs, looked, seen) = (readers.clone(), replaced.clone(), reused.clone());
    threads.push(thread::spawn(move || {
        let guard = theirs.enter();
        if looked.load(SeqCst) == 0 {
            thread::yield_now();
            assert_eq!(seen.load(SeqCst), 0, "the block was used again under a reader");
        }
        drop(guard);
    }));
    replaced.store(1, SeqCst);
    let epoch = readers.epoch();
    if (0..2).any(|_| readers.advance() >= epoch + 2) {
        reused.store(1, SeqCst);
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
}

/// Two writers race to free blocks, so that limbo holds numbers out of order; a commit makes evidence of them bit by bit.
fn evidence_holds_blocks_back() {
    let disk = Arc::new(Disk::new());
    let freed: Arc<[AtomicU64; FILE as usize]> = Arc::default();
    let writer = |numbers: [u64; 2]| {
        let (disk, freed) = (disk.clone(), freed.clone());
        thread::spawn(move || {
            for value in numbers {
                let Reserve::Run(run) = disk.space.reserve(1) else { continue };
                let by = freed[(run.first.0 - AREA) as usize].load(Relaxed);
                assert!(by <= disk.evidence.load(Relaxed), "a block freed by {by} is used again too early");
                let (old, _) = std::mem::replace(&mut *disk.map.lock(), (run.first, value));
                freed[(old.0 - AREA) as usize].store(value, Relaxed);
                disk.space.free_later(&[Freed { pblock: old, blocks: 1, by: Seq(value) }]);
                disk.release();
            }
        })
    };
    let threads = [writer([1, 4]), writer([2, 3])];
    for number in 1..=4 {
        disk.evidence.store(number, Relaxed);
        disk.release();
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
    (0..2).for_each(|_| disk.release());
    assert_eq!(disk.space.stats().limbo_blocks, 0);
}

#[test]
fn a_block_is_not_used_again_under_a_reader() {
    explore("readers", 20_000, the_epoch_waits_for_readers);
    explore("readers and limbo", 5000, readers_hold_blocks_back);
    notices("readers and limbo", Rule::Readers, 5000, readers_hold_blocks_back);
}

#[test]
fn a_block_is_not_used_again_before_there_is_evidence() {
    explore("evidence and limbo", 5000, evidence_holds_blocks_back);
    notices("evidence and limbo", Rule::Evidence, 5000, evidence_holds_blocks_back);
}
