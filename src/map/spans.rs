//! The span cache: what a chain holds below the head's pending map, resolved once per 512 KiB.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use rustc_hash::FxBuildHasher;

use super::nodes::LayerTag;
use crate::rules::{self, Rule};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{PBlock, Span};

const SHARDS: usize = 64;

/// Where a run's bytes come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunSource {
    /// Zeros.
    Zero,
    /// The foreign base, at the same position of the disk.
    Base,
    /// Consecutive blocks of a layer.
    Data {
        /// Which layer.
        layer: LayerTag,
        /// First block.
        pblock: PBlock,
        /// Index of the first checksum in [`SpanRuns::crcs`].
        crc_index: u8,
    },
}

/// Consecutive blocks of a span.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First block within the span.
    pub offset: u8,
    /// Number of blocks, `1..=128`.
    pub blocks: u8,
    /// Where they are.
    pub source: RunSource,
}

/// A resolved span: runs that cover all its blocks, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SpanRuns {
    /// The runs.
    pub runs: Vec<Run>,
    /// Checksums of data blocks.
    pub crcs: Vec<u32>,
}

#[derive(Clone, Debug)]
struct SpanWeight;

impl Weighter<u64, Arc<SpanRuns>> for SpanWeight {
    fn weight(&self, _: &u64, runs: &Arc<SpanRuns>) -> u64 {
        (runs.runs.capacity() * size_of::<Run>() + runs.crcs.capacity() * 4) as u64 + 128
    }
}

/// The cache, with a byte budget.
#[derive(Debug)]
pub struct SpanCache {
    cache: Cache<u64, Arc<SpanRuns>, SpanWeight, FxBuildHasher>,
    /// Grows with every root that replaces another. A fill made from an older one is refused.
    generation: AtomicU64,
    /// Orders fills and drops of one span.
    fills: Box<[Mutex<()>]>,
}

impl SpanCache {
    /// Holds about `budget` bytes.
    pub fn new(budget: u64) -> SpanCache {
        let items = usize::try_from(budget / 512).unwrap_or(usize::MAX).max(16);
        SpanCache {
            cache: Cache::with(items, budget, SpanWeight, FxBuildHasher, DefaultLifecycle::default()),
            generation: AtomicU64::new(0),
            fills: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// The resolved span, if it is there.
    pub fn get(&self, span: Span) -> Option<Arc<SpanRuns>> {
        self.cache.get(&span.0)
    }

    /// To be read before the roots that a fill is made from.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Keeps `runs`, unless a root has changed since `generation`.
    pub fn fill(&self, span: Span, runs: Arc<SpanRuns>, generation: u64) {
        let _ordered = self.fills[(span.0 % SHARDS as u64) as usize].lock();
        // Under the span's lock: either this fill sees the new generation, or the drop that follows it sees the fill.
        if self.generation() == generation || !rules::holds(Rule::CacheFill) {
            crate::sync::pause();
            self.cache.insert(span.0, runs);
        }
    }

    /// A root has changed: fills made from the old one are refused from now on.
    pub fn root_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Forgets one span.
    pub fn drop_span(&self, span: Span) {
        let _ordered = self.fills[(span.0 % SHARDS as u64) as usize].lock();
        self.cache.remove(&span.0);
    }

    /// Forgets the spans that `f` names.
    pub fn drop_where(&self, f: impl Fn(Span) -> bool) {
        // After `root_changed`: taking every lock once waits for fills that saw the old generation.
        for fill in &self.fills {
            drop(fill.lock());
        }
        self.cache.retain(|span, _| !f(Span(*span)));
    }

    /// Bytes held.
    pub fn weight(&self) -> u64 {
        self.cache.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_from_an_old_root_is_refused() {
        let cache = SpanCache::new(1 << 20);
        let old = cache.generation();
        cache.fill(Span(1), Arc::default(), old);
        assert!(cache.get(Span(1)).is_some());
        cache.root_changed();
        cache.drop_span(Span(1));
        cache.fill(Span(1), Arc::default(), old);
        assert!(cache.get(Span(1)).is_none());
        cache.fill(Span(1), Arc::default(), cache.generation());
        assert!(cache.get(Span(1)).is_some());
        cache.drop_where(|s| s == Span(1));
        assert!(cache.get(Span(1)).is_none());
    }
}
