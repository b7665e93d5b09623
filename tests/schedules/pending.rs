//! `map::PendingMap` (W2): the higher number wins whatever completes first, no lookup goes back in time, also while one half
//! is folded and cleared, and every block that is replaced is freed once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cowdisk::format::Place;
use cowdisk::map::{Freed, Mapped, PendingMap, Slot};
use cowdisk::rules::Rule;
use cowdisk::runtime::sync::Monitor;
use cowdisk::units::{PBlock, SPAN_BLOCKS, Seq, VBlock};
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use crate::{explore, notices};

/// Two neighbours in one span, and one in the next.
const WATCHED: [u64; 3] = [SPAN_BLOCKS - 2, SPAN_BLOCKS - 1, SPAN_BLOCKS];
const INSTALLERS: usize = 2;
/// Records of each half of the map.
const RECORDS: [u64; 2] = [4, 3];

/// A record of one extent.
#[derive(Clone, Debug)]
struct Record {
    seq: u64,
    slot: Slot,
    first: u64,
    blocks: u64,
    data: bool,
}

impl Record {
    fn draw(seq: u64) -> Record {
        let mut rng = thread_rng();
        let slot = Slot(u8::from(seq > RECORDS[0]));
        let (first, blocks, data) = match rng.gen_range(0..8) {
            0..=3 => (SPAN_BLOCKS - rng.gen_range(0..=2), rng.gen_range(1..=2), true),
            4 => (SPAN_BLOCKS - rng.gen_range(1..=2), rng.gen_range(1..=3), false),
            5 => (0, SPAN_BLOCKS, false),
            6 => (1, 2 * SPAN_BLOCKS, false),
            // So many that the map walks its shards instead of the spans.
            _ => (SPAN_BLOCKS - 1, 65 * SPAN_BLOCKS, false),
        };
        Record { seq, slot, first, blocks, data }
    }

    fn covers(&self, block: u64) -> bool {
        (self.first..self.first + self.blocks).contains(&block)
    }

    /// Where it puts a block.
    fn pblock(&self, block: u64) -> u64 {
        self.seq * 4096 + block
    }

    fn install(&self, map: &PendingMap) -> Vec<Freed> {
        let (mut freed, first) = (Vec::new(), VBlock(self.first));
        if self.data {
            let crcs: Vec<u32> = (0..self.blocks).map(|i| self.pblock(self.first + i) as u32).collect();
            let place = PBlock(self.pblock(self.first));
            map.install_data(self.slot, Seq(self.seq), first, place, &crcs, &mut freed);
        } else {
            map.install_zero(self.slot, Seq(self.seq), first..first.plus(self.blocks), &mut freed);
        }
        freed
    }
}

struct World {
    map: PendingMap,
    records: Vec<Record>,
    /// By block: the newest record whose install has ended.
    done: Mutex<BTreeMap<u64, u64>>,
    /// What the checkpoint has folded: by block the record that it is of. Read after the map, as the tree is.
    tree: Mutex<BTreeMap<u64, u64>>,
    freed: Mutex<BTreeMap<u64, u64>>,
    /// Installs of the first half to come.
    to_come: Monitor<usize>,
}

impl World {
    fn new() -> World {
        let records: Vec<_> = (1..=RECORDS[0] + RECORDS[1]).map(Record::draw).collect();
        World {
            map: PendingMap::default(),
            to_come: Monitor::new(records.iter().filter(|r| r.slot == Slot(0)).count()),
            records,
            done: Mutex::default(),
            tree: Mutex::default(),
            freed: Mutex::default(),
        }
    }

    fn record(&self, seq: u64) -> &Record {
        &self.records[seq as usize - 1]
    }

    fn install(&self, record: &Record) {
        for freed in record.install(&self.map) {
            for pblock in freed.pblock.0..freed.pblock.0 + u64::from(freed.blocks) {
                let twice = self.freed.lock().unwrap().insert(pblock, freed.by.0);
                assert_eq!(twice, None, "block {pblock} is freed twice");
                assert!(freed.by.0 > pblock / 4096, "block {pblock} is freed by an older record");
            }
        }
        for block in WATCHED.into_iter().filter(|b| record.covers(*b)) {
            let mut done = self.done.lock().unwrap();
            let newest = done.entry(block).or_default();
            *newest = record.seq.max(*newest);
        }
        if record.slot == Slot(0) {
            self.to_come.update(|n| *n -= 1);
        }
    }

    /// The newest record of `slot` that covers `block`.
    fn winner(&self, slot: Slot, block: u64) -> Option<&Record> {
        self.records.iter().rev().find(|r| r.slot == slot && r.covers(block))
    }

    /// What a lookup gives must be as new as the newest install that had ended before it.
    fn look(&self, first: u64, count: usize) {
        let floor: Vec<u64> = {
            let done = self.done.lock().unwrap();
            (first..).take(count).map(|b| done.get(&b).copied().unwrap_or(0)).collect()
        };
        let mut out = vec![Mapped::Absent; count];
        self.map.lookup(VBlock(first), &mut out);
        for ((block, mapped), floor) in (first..).zip(out).zip(floor) {
            let found = match mapped {
                Mapped::Data { pblock, crc } => {
                    let record = self.record(pblock.0 / 4096);
                    assert!(record.data && pblock.0 == record.pblock(block) && crc == pblock.0 as u32);
                    record.seq
                }
                // Which zeros these are does not show: the newest there could be.
                Mapped::Zero => {
                    let zeros = self.records.iter().rev().find(|r| !r.data && r.covers(block));
                    zeros.expect("nobody zeroed it").seq
                }
                Mapped::Absent => self.tree.lock().unwrap().get(&block).copied().unwrap_or(0),
            };
            assert!(found >= floor, "block {block} reads as of record {found} ({mapped:?}) after {floor}");
        }
    }

    /// A checkpoint of the first half.
    fn fold(&self) {
        block_on(self.to_come.wait(|n| (*n == 0).then_some(())));
        let changes = self.map.frozen_changes(Slot(0));
        for block in WATCHED {
            let winner = self.winner(Slot(0), block);
            let change = changes.iter().find(|c| (c.vblock.0..c.end().0).contains(&block));
            let folded = change.map(|c| match c.place {
                Place::Data(p) => Some(p.0 + block - c.vblock.0),
                Place::Zero => None,
            });
            assert_eq!(folded, winner.map(|r| r.data.then(|| r.pblock(block))), "block {block}");
            if let Some(winner) = winner {
                self.tree.lock().unwrap().insert(block, winner.seq);
            }
        }
        self.map.clear(Slot(0));
        assert!(self.map.slot_is_empty(Slot(0)));
    }

    /// Every block that was written is mapped or was freed.
    fn judge(&self) {
        let freed = self.freed.lock().unwrap();
        for record in self.records.iter().filter(|r| r.data) {
            for block in record.first..record.first + record.blocks {
                let mapped = self.winner(record.slot, block).is_some_and(|w| w.seq == record.seq);
                let pblock = record.pblock(block);
                assert_ne!(
                    mapped,
                    freed.contains_key(&pblock),
                    "block {pblock} is lost, or freed and mapped"
                );
            }
        }
    }
}

fn installs_lookups_and_a_checkpoint() {
    let world = Arc::new(World::new());
    let mut threads = Vec::new();
    for i in 0..INSTALLERS {
        let ours = world.clone();
        threads.push(thread::spawn(move || {
            let mine = ours.records.iter().skip(i).step_by(INSTALLERS);
            mine.for_each(|record| ours.install(record));
        }));
    }
    let ours = world.clone();
    threads.push(thread::spawn(move || ours.fold()));
    for _ in 0..4 {
        world.look(WATCHED[0], 2);
        world.look(WATCHED[2], 1);
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
    world.look(WATCHED[0], 2);
    world.look(WATCHED[2], 1);
    world.judge();
}

#[test]
fn the_higher_number_wins() {
    explore("pending map", 5000, installs_lookups_and_a_checkpoint);
    notices("pending map", Rule::Numbers, 5000, installs_lookups_and_a_checkpoint);
}
