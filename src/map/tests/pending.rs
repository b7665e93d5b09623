//! The pending map against one number per block.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::format::{Place, Resize};
use crate::map::{Change, Freed, Mapped, PendingMap, Slot};
use crate::units::{PBlock, SPAN_BLOCKS, Seq, Span, VBlock, blocks_for};

const BLOCKS: u64 = 8 * SPAN_BLOCKS;

/// One extent of a record: its number, where, and the first of its blocks; `None` are zeros.
#[derive(Clone, Debug)]
struct Install {
    seq: u64,
    first: u64,
    blocks: u64,
    data: Option<u64>,
}

impl Install {
    fn crc(pblock: u64) -> u32 {
        !(pblock as u32)
    }

    fn apply(&self, map: &PendingMap, slot: Slot, freed: &mut Vec<Freed>) {
        let (seq, first) = (Seq(self.seq), VBlock(self.first));
        match self.data {
            None => map.install_zero(slot, seq, first..first.plus(self.blocks), freed),
            Some(pblock) => {
                let crcs: Vec<u32> = (pblock..pblock + self.blocks).map(Install::crc).collect();
                map.install_data(slot, seq, first, PBlock(pblock), &crcs, freed);
            }
        }
    }
}

/// What each block of one slot is, and by which number.
type HalfModel = BTreeMap<u64, (u64, Option<u64>)>;

#[derive(Default)]
struct Model {
    halves: [HalfModel; 2],
    /// Numbers installed at each block of each half.
    installed: [BTreeMap<u64, Vec<u64>>; 2],
    /// Blocks given to an install, with number, block of the disk and half.
    given: BTreeMap<u64, (u64, u64, usize)>,
    freed: BTreeSet<u64>,
}

impl Model {
    fn install(&mut self, slot: Slot, install: &Install, freed: &[Freed]) {
        let half = slot.0 as usize;
        for i in 0..install.blocks {
            let v = install.first + i;
            self.installed[half].entry(v).or_default().push(install.seq);
            let data = install.data.map(|p| p + i);
            if let Some(p) = data {
                self.given.insert(p, (install.seq, v, half));
            }
            // Of equal numbers the later one counts: the extents of a record apply in their order.
            let cell = self.halves[half].entry(v).or_insert((0, None));
            if install.seq >= cell.0 {
                *cell = (install.seq, data);
            }
        }
        for freed in freed {
            assert!(freed.blocks > 0);
            for p in freed.pblock.0..freed.pblock.0 + u64::from(freed.blocks) {
                assert!(self.freed.insert(p), "block {p} is freed twice");
                let (seq, v, its_half) = self.given[&p];
                assert_eq!(its_half, half, "block {p} is freed by an install into the other slot");
                assert!(freed.by.0 >= seq, "block {p} of record {seq} is freed by record {}", freed.by.0);
                assert!(self.installed[half][&v].contains(&freed.by.0), "record {} is not there", freed.by.0);
            }
        }
        // Exactly once, and at once: every block is mapped or freed.
        let mapped: BTreeSet<u64> = self.halves.iter().flat_map(|h| h.values().filter_map(|c| c.1)).collect();
        for p in self.given.keys() {
            assert_ne!(
                mapped.contains(p),
                self.freed.contains(p),
                "block {p} is mapped and freed, or neither"
            );
        }
    }

    fn lookup(&self, v: u64) -> Mapped {
        let best = self.halves.iter().filter_map(|h| h.get(&v)).max();
        match best {
            None => Mapped::Absent,
            Some((_, None)) => Mapped::Zero,
            Some(&(_, Some(p))) => Mapped::Data { pblock: PBlock(p), crc: Install::crc(p) },
        }
    }

    fn clear(&mut self, slot: Slot) {
        let half = slot.0 as usize;
        self.halves[half].clear();
        self.installed[half].clear();
        // The tree maps them now.
        self.given.retain(|_, g| g.2 != half);
    }
}

fn assert_lookups(map: &PendingMap, model: &Model) {
    for span in 0..BLOCKS / SPAN_BLOCKS {
        // The whole span, and a part of it.
        for part in [0..SPAN_BLOCKS, 3..4, 100..SPAN_BLOCKS, 17..90] {
            let first = Span(span).first().plus(part.start);
            let expected: Vec<Mapped> =
                (0..part.end - part.start).map(|i| model.lookup(first.0 + i)).collect();
            let mut found = vec![Mapped::Absent; expected.len()];
            let all = map.lookup(first, &mut found);
            assert_eq!(found, expected, "span {span}, blocks {part:?}");
            assert_eq!(all, !expected.contains(&Mapped::Absent), "span {span}, blocks {part:?}");
        }
    }
}

fn assert_changes(map: &PendingMap, slot: Slot, model: &HalfModel) {
    let changes = map.frozen_changes(slot);
    let mut found = BTreeMap::new();
    let mut next = 0;
    for change in &changes {
        assert!(change.blocks > 0 && change.vblock.0 >= next, "{change:?} behind block {next}");
        next = change.end().0;
        for i in 0..change.blocks {
            let data = match change.place {
                Place::Zero => None,
                Place::Data(p) => Some((p.0 + i, change.crcs[i as usize])),
            };
            found.insert(change.vblock.0 + i, data);
        }
        let crcs = if change.place == Place::Zero { 0 } else { change.blocks };
        assert_eq!(change.crcs.len() as u64, crcs);
    }
    let expected: BTreeMap<u64, _> =
        model.iter().map(|(&v, &(_, p))| (v, p.map(|p| (p, Install::crc(p))))).collect();
    assert_eq!(found, expected);
    // What neighbours in both spaces is one change.
    for pair in changes.windows(2) {
        let (a, b) = (&pair[0], &pair[1]);
        let joins = match (a.place, b.place) {
            (Place::Zero, Place::Zero) => true,
            (Place::Data(p), Place::Data(q)) => p.plus(a.blocks) == q,
            _ => false,
        };
        assert!(a.end() != b.vblock || !joins, "{a:?} and {b:?} are one");
    }
    let (spans, ranges) = map.frozen_spans(slot);
    assert!(spans.is_sorted_by(|a, b| a < b) && ranges.is_sorted_by(|a, b| a.end <= b.start));
    let touched: BTreeSet<u64> = model.keys().map(|v| v / SPAN_BLOCKS).collect();
    let named: BTreeSet<u64> =
        spans.iter().map(|s| s.0).chain(ranges.iter().flat_map(|r| r.start.0..r.end.0)).collect();
    assert_eq!(named, touched);
    assert_eq!(map.slot_is_empty(slot), model.is_empty());
}

/// (first block, blocks, zeros, place in the order of completion, begins a checkpoint)
type Step = (u64, u64, bool, u8, bool);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let blocks = prop_oneof![4 => 1..8u64, 2 => 1..200u64, 1 => 100..BLOCKS];
    let step = (0..BLOCKS, blocks, prop::bool::weighted(0.3), any::<u8>(), prop::bool::weighted(0.05));
    prop::collection::vec(step, 1..80).prop_map(|mut steps| {
        for s in &mut steps {
            s.1 = s.1.min(BLOCKS - s.0);
        }
        steps
    })
}

/// Gives each step its number, splits them at the checkpoints, and runs them in the order of completion: records of
/// a checkpoint and of the time after it complete in any order among each other.
fn run(steps: &[Step]) {
    let (map, mut model) = (PendingMap::default(), Model::default());
    let mut next_pblock = 1000;
    let mut epochs: Vec<Vec<(u8, Install)>> = vec![Vec::new()];
    for (i, &(first, blocks, zeros, order, freeze)) in steps.iter().enumerate() {
        if freeze {
            epochs.push(Vec::new());
        }
        let data = (!zeros).then_some(next_pblock);
        next_pblock += blocks + u64::from(order & 1);
        let install = Install { seq: i as u64 + 1, first, blocks, data };
        epochs.last_mut().expect("one is there").push((order, install));
    }
    let mut slot = Slot(0);
    for i in 0..epochs.len() {
        // Half of the records of the next epoch complete before the last ones of this epoch.
        let mut now: Vec<(Slot, u8, Install)> =
            epochs[i].drain(..).map(|(order, install)| (slot, order, install)).collect();
        if let Some(next) = epochs.get_mut(i + 1) {
            let early: Vec<_> = next.extract_if(.., |(order, _)| *order < 128).collect();
            now.extend(early.into_iter().map(|(order, install)| (slot.other(), order, install)));
        }
        now.sort_by_key(|(_, order, _)| *order);
        for (slot, _, install) in now {
            let mut freed = Vec::new();
            install.apply(&map, slot, &mut freed);
            model.install(slot, &install, &freed);
        }
        assert_lookups(&map, &model);
        assert_changes(&map, slot, &model.halves[slot.0 as usize]);
        map.clear(slot);
        model.clear(slot);
        assert!(map.slot_is_empty(slot));
        assert_lookups(&map, &model);
        slot = slot.other();
        assert_changes(&map, slot, &model.halves[slot.0 as usize]);
    }
    map.clear(slot);
    assert_eq!(map.entries(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn agrees_with_one_number_per_block(steps in steps()) {
        run(&steps);
    }
}

fn data(seq: u64, first: u64, blocks: u64, pblock: u64) -> Install {
    Install { seq, first, blocks, data: Some(pblock) }
}

fn zero(seq: u64, first: u64, blocks: u64) -> Install {
    Install { seq, first, blocks, data: None }
}

fn check(installs: &[Install]) {
    let (map, mut model) = (PendingMap::default(), Model::default());
    for install in installs {
        let mut freed = Vec::new();
        install.apply(&map, Slot(0), &mut freed);
        model.install(Slot(0), install, &freed);
        assert_lookups(&map, &model);
        assert_changes(&map, Slot(0), &model.halves[0]);
    }
}

/// A batch may hold overlapping requests: their extents share a number and apply in their order.
#[test]
fn extents_of_one_record_apply_in_their_order() {
    check(&[data(7, 10, 5, 100), data(7, 12, 1, 200)]);
    check(&[data(7, 10, 5, 100), zero(7, 12, 1)]);
    check(&[zero(7, 10, 5), data(7, 12, 1, 200)]);
    check(&[data(7, 130, 5, 100), zero(7, 100, 300)]);
    check(&[zero(7, 100, 300), data(7, 130, 5, 100)]);
    check(&[zero(7, 100, 300), data(7, 130, 5, 100), zero(7, 132, 1), data(7, 132, 1, 300)]);
    check(&[data(7, 130, 5, 100), zero(7, 0, BLOCKS), data(7, 131, 2, 200), zero(7, 128, 128)]);
    check(&[zero(6, 0, BLOCKS), data(7, 131, 2, 200), zero(7, 128, 128), data(6, 140, 1, 300)]);
}

#[test]
fn a_late_lower_number_is_freed_by_what_beats_it() {
    let map = PendingMap::default();
    let mut freed = Vec::new();
    zero(9, 0, 256).apply(&map, Slot(0), &mut freed);
    assert_eq!(freed, []);
    data(5, 120, 20, 1000).apply(&map, Slot(0), &mut freed);
    assert_eq!(freed, [Freed { pblock: PBlock(1000), blocks: 20, by: Seq(9) }]);
    freed.clear();
    data(10, 120, 20, 2000).apply(&map, Slot(0), &mut freed);
    assert_eq!(freed, []);
    zero(8, 0, 256).apply(&map, Slot(0), &mut freed);
    assert_eq!(freed, [], "a lower number frees nothing of a higher one");
    zero(11, 125, 1000).apply(&map, Slot(0), &mut freed);
    freed.sort_by_key(|f| f.pblock.0);
    let blocks: u32 = freed.iter().map(|f| f.blocks).sum();
    assert!(
        blocks == 15 && freed[0].pblock == PBlock(2005) && freed.iter().all(|f| f.by == Seq(11)),
        "{freed:?}"
    );
}

/// A record of the checkpoint that completes late leaves what is newer in the other slot alone (W2).
#[test]
fn the_frozen_half_does_not_hide_the_new_one() {
    let map = PendingMap::default();
    let mut freed = Vec::new();
    data(6, 0, 300, 1000).apply(&map, Slot(1), &mut freed);
    zero(5, 0, BLOCKS).apply(&map, Slot(0), &mut freed);
    data(4, 0, 300, 2000).apply(&map, Slot(0), &mut freed);
    assert_eq!(freed, [Freed { pblock: PBlock(2000), blocks: 300, by: Seq(5) }]);
    let mut found = [Mapped::Absent; 100];
    assert!(map.lookup(VBlock(0), &mut found));
    assert!(
        found.iter().zip(1000..).all(|(f, p)| *f == Mapped::Data { pblock: PBlock(p), crc: Install::crc(p) })
    );
    let mut found = [Mapped::Absent; 1];
    assert!(map.lookup(VBlock(300), &mut found));
    assert_eq!(found, [Mapped::Zero]);
}

#[test]
fn zeroing_a_terabyte_is_one_entry() {
    let map = PendingMap::default();
    let mut freed = Vec::new();
    let tib = 1 << 28;
    data(1, 1 << 20, 3, 700).apply(&map, Slot(0), &mut freed);
    data(5, 1 << 21, 3, 800).apply(&map, Slot(0), &mut freed);
    // Not on the borders of spans.
    zero(2, 5, tib).apply(&map, Slot(0), &mut freed);
    assert_eq!(freed, [Freed { pblock: PBlock(700), blocks: 3, by: Seq(2) }]);
    assert!(map.entries() < 3 + 2 * SPAN_BLOCKS as usize, "{} entries", map.entries());
    for n in 3..1000 {
        zero(n, (n * 7919) << 10, tib).apply(&map, Slot(0), &mut freed);
    }
    assert!(map.entries() < 3 + 2 * SPAN_BLOCKS as usize, "{} entries", map.entries());
    let changes = map.frozen_changes(Slot(0));
    let (before, behind): (Vec<&Change>, Vec<&Change>) = changes.iter().partition(|c| c.vblock.0 < 1 << 21);
    assert!(before.len() <= 2 && behind.len() <= 2, "{changes:?}");
    let mut found = [Mapped::Absent; 128];
    assert!(map.lookup(VBlock(1 << 27), &mut found) && found.iter().all(|f| *f == Mapped::Zero));
    map.clear(Slot(0));
    assert!(!map.lookup(VBlock(1 << 27), &mut found) && found.iter().all(|f| *f == Mapped::Absent));
}

#[test]
fn entries_are_counted_as_they_come_and_go() {
    assert_eq!((Slot(0).other(), Slot(1).other()), (Slot(1), Slot(0)));
    let (map, mut freed) = (PendingMap::default(), Vec::new());
    let counts = |map: &PendingMap| (map.entries(), map.slot_is_empty(Slot(0)), map.slot_is_empty(Slot(1)));
    assert_eq!(counts(&map), (0, true, true));
    data(5, 100, 50, 1000).apply(&map, Slot(0), &mut freed);
    assert_eq!(counts(&map), (50, false, true));
    data(6, 110, 30, 2000).apply(&map, Slot(0), &mut freed);
    data(4, 95, 10, 3000).apply(&map, Slot(0), &mut freed);
    assert_eq!(counts(&map), (55, false, true), "thirty are replaced, five came too late");
    data(7, 100, 3, 4000).apply(&map, Slot(1), &mut freed);
    assert_eq!(counts(&map), (58, false, false));
    // Blocks 95 to 127 without the 18 that number 6 wrote.
    zero(5, 0, SPAN_BLOCKS).apply(&map, Slot(0), &mut freed);
    assert_eq!(counts(&map), (58 - 15, false, false));
    zero(9, 0, 1000 * SPAN_BLOCKS).apply(&map, Slot(0), &mut freed);
    assert_eq!(counts(&map), (3, false, false), "a range is no entry");
    map.clear(Slot(1));
    assert_eq!(counts(&map), (0, false, true));
    map.clear(Slot(0));
    assert_eq!(counts(&map), (0, true, true));
}

/// The ranges of the half that stays are still looked for.
#[test]
fn clearing_one_half_leaves_the_zeros_of_the_other() {
    let (map, mut freed) = (PendingMap::default(), Vec::new());
    zero(1, 0, SPAN_BLOCKS).apply(&map, Slot(0), &mut freed);
    zero(2, SPAN_BLOCKS, SPAN_BLOCKS).apply(&map, Slot(1), &mut freed);
    map.clear(Slot(0));
    let mut found = [Mapped::Zero; 1];
    assert!(!map.lookup(VBlock(5), &mut found));
    assert!(map.lookup(VBlock(SPAN_BLOCKS + 5), &mut found));
    assert_eq!(found, [Mapped::Zero]);
    data(1, SPAN_BLOCKS, 3, 700).apply(&map, Slot(1), &mut freed);
    assert_eq!(freed, [Freed { pblock: PBlock(700), blocks: 3, by: Seq(2) }]);
}

/// What a slot holds is in the tree before it is cleared. So while it is cleared a block may be absent (ask the tree)
/// or what it was, but never what an older record of the same slot made of it.
#[test]
fn clearing_uncovers_nothing_older() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let map = PendingMap::default();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let (map, stop) = (&map, &stop);
                scope.spawn(move || {
                    let mut reads = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        // Spans of the shard that is cleared first.
                        let span = (reads * 7 + reader) % 64 * 64;
                        let mut found = [Mapped::Absent; 1];
                        map.lookup(Span(span).first(), &mut found);
                        assert_ne!(found, [Mapped::Zero], "span {span} was written after it was zeroed");
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for round in 0..60u64 {
            let mut freed = Vec::new();
            let base = 10_000 * round;
            let slot = Slot((round % 2) as u8);
            // The data first: in between no reader can see the zeros without it.
            for span in 0..4096 {
                data(base + 2, span * SPAN_BLOCKS, 1, base + span).apply(&map, slot, &mut freed);
            }
            zero(base + 1, 0, 4096 * SPAN_BLOCKS).apply(&map, slot, &mut freed);
            assert_eq!(freed, []);
            map.clear(slot);
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().expect("no wrong read") > 0);
        }
    });
}

/// A resize zeroes what lies behind, except where a higher number was first, and of two sizes the higher number's counts,
/// whatever completed first; the frozen half has its own.
#[test]
fn a_size_follows_the_numbers() {
    let map = PendingMap::default();
    let mut freed = Vec::new();
    let resize = |sectors: u64| Resize { size: sectors * 512, zero_from: VBlock(blocks_for(sectors * 512)) };
    assert_eq!((map.size(), map.slot_is_empty(Slot(0))), (None, true));
    map.install_data(Slot(0), Seq(1), VBlock(3), PBlock(900), &[1, 2], &mut freed);
    map.install_data(Slot(0), Seq(4), VBlock(700), PBlock(910), &[3], &mut freed);
    map.install_resize(Slot(0), Seq(3), resize(32), &mut freed);
    map.install_resize(Slot(0), Seq(2), resize(9), &mut freed);
    assert_eq!(
        (map.size(), map.frozen_size(Slot(0)), map.frozen_size(Slot(1))),
        (Some(16384), Some(16384), None)
    );
    let at = |block: u64| {
        let mut out = [Mapped::Absent];
        map.lookup(VBlock(block), &mut out);
        out[0]
    };
    assert_eq!(at(1), Mapped::Absent);
    assert_eq!(
        (at(3), at(4), at(699), at((1 << 40) - 1)),
        (Mapped::Zero, Mapped::Zero, Mapped::Zero, Mapped::Zero)
    );
    assert_eq!(at(700), Mapped::Data { pblock: PBlock(910), crc: 3 });
    assert_eq!(freed.iter().map(|f| u64::from(f.blocks)).sum::<u64>(), 2, "{freed:?}");
    map.install_resize(Slot(1), Seq(5), resize(64), &mut freed);
    assert_eq!((map.size(), map.frozen_size(Slot(0))), (Some(32768), Some(16384)));
    map.clear(Slot(0));
    assert_eq!(
        (map.size(), map.slot_is_empty(Slot(0)), map.slot_is_empty(Slot(1))),
        (Some(32768), true, false)
    );
}
