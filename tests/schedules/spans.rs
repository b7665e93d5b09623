//! `map::SpanCache`: no fill from an old root survives the switch to a new one.

use std::sync::Arc;

use cowdisk::map::{SpanCache, SpanRuns};
use cowdisk::rules::Rule;
use cowdisk::sync::atomic::{AtomicU64, Ordering::SeqCst};
use cowdisk::units::Span;
use shuttle::thread;

use crate::{explore, notices};

const SPANS: [Span; 2] = [Span(3), Span(3 + 64)];
const ROOTS: u64 = 2;

struct World {
    cache: SpanCache,
    /// The version of the tree in force.
    root: AtomicU64,
    /// What the cache may give at least: readers do without the pending map from here on.
    cleared: AtomicU64,
}

/// What a resolved span of this version of the tree looks like.
fn runs(version: u64) -> Arc<SpanRuns> {
    Arc::new(SpanRuns { runs: Vec::new(), crcs: vec![u32::try_from(version).unwrap()] })
}

impl World {
    /// As `Image::span` does.
    fn read(&self, span: Span) {
        let cleared = self.cleared.load(SeqCst);
        let found = self.cache.get(span).unwrap_or_else(|| {
            let generation = self.cache.generation();
            let resolved = runs(self.root.load(SeqCst));
            thread::yield_now();
            self.cache.fill(span, resolved.clone(), generation);
            resolved
        });
        let version = u64::from(found.crcs[0]);
        assert!(version >= cleared, "span {} of root {version} after root {cleared} was in force", span.0);
    }

    /// As `Head::switch` does; by span, or by range.
    fn switch(&self, version: u64, by_span: bool) {
        self.root.store(version, SeqCst);
        self.cache.root_changed();
        if by_span {
            SPANS.into_iter().for_each(|span| self.cache.drop_span(span));
        } else {
            self.cache.drop_where(|span| SPANS.contains(&span));
        }
        self.cleared.store(version, SeqCst);
    }
}

fn fills_and_switches(by_span: bool) {
    let world = Arc::new(World {
        cache: SpanCache::new(1 << 20),
        root: AtomicU64::new(0),
        cleared: AtomicU64::new(0),
    });
    let threads: Vec<_> = (0..3)
        .map(|i| {
            let world = world.clone();
            thread::spawn(move || (0..2).for_each(|j| world.read(SPANS[(i + j) % 2])))
        })
        .collect();
    (1..=ROOTS).for_each(|version| world.switch(version, by_span));
    threads.into_iter().for_each(|t| t.join().unwrap());
    SPANS.into_iter().for_each(|span| world.read(span));
}

fn by_span() {
    fills_and_switches(true);
}

fn by_range() {
    fills_and_switches(false);
}

#[test]
fn no_stale_fill_survives() {
    explore("span cache, dropped by span", 4000, by_span);
    explore("span cache, dropped by range", 2000, by_range);
    notices("span cache, dropped by span", Rule::CacheFill, 4000, by_span);
    notices("span cache, dropped by range", Rule::CacheFill, 2000, by_range);
}
