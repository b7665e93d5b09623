//! The caches keep to their budgets, and apart what is different.

use std::sync::Arc;

use super::builder::Rng;
use crate::format::{Child, InnerNode, LeafExtent, LeafNode, Place};
use crate::map::{LayerTag, Node, NodeCache, Run, RunSource, SpanCache, SpanRuns};
use crate::units::{PBlock, Span, VBlock};

fn node(rng: &mut Rng) -> Node {
    let n = rng.below(300) as usize;
    let extent = LeafExtent { vblock: VBlock(0), blocks: 1, place: Place::Zero, crc_index: 0 };
    match rng.below(3) {
        0 => Node::Leaf(LeafNode { extents: vec![extent; n], crcs: Vec::new() }),
        1 => Node::Leaf(LeafNode { extents: vec![extent], crcs: vec![1; 3 * n] }),
        _ => {
            let child = Child { first: VBlock(1), pblock: PBlock(2), crc: 3 };
            Node::Inner(InnerNode { children: vec![child; n / 2] })
        }
    }
}

/// Bytes that a node takes in memory.
fn bytes(node: &Node) -> u64 {
    (match node {
        Node::Leaf(leaf) => size_of_val(&leaf.extents[..]) + size_of_val(&leaf.crcs[..]),
        Node::Inner(inner) => size_of_val(&inner.children[..]),
    }) as u64
}

#[test]
fn the_node_cache_stays_within_its_budget() {
    for budget in [1u64 << 20, 5 << 20] {
        let (cache, mut rng) = (NodeCache::new(budget), Rng(budget));
        let mut total = 0;
        for i in 0..20_000 {
            let node = Arc::new(node(&mut rng));
            total += bytes(&node);
            cache.insert(LayerTag(0), PBlock(i), 0, 0, node);
            assert!(cache.weight() <= budget, "{} bytes after {i} nodes", cache.weight());
        }
        assert!(total > 5 * budget && cache.weight() > budget / 2, "{} of {budget}", cache.weight());
        // What it says it holds is at least what it holds.
        let held: u64 =
            (0..20_000).filter_map(|i| cache.get(LayerTag(0), PBlock(i), 0, 0)).map(|n| bytes(&n)).sum();
        assert!(held <= cache.weight() && held > budget / 3, "{held} held, {} stated", cache.weight());
    }
}

#[test]
fn the_smallest_node_cache_still_holds_full_nodes() {
    let cache = NodeCache::new(crate::limits::MIN_CACHE_BYTES / 2);
    let extent = LeafExtent { vblock: VBlock(0), blocks: 1, place: Place::Zero, crc_index: 0 };
    for i in 0..1000 {
        let node = Node::Leaf(LeafNode { extents: vec![extent; 287], crcs: Vec::new() });
        cache.insert(LayerTag(0), PBlock(i), 0, 0, Arc::new(node));
        assert!(cache.get(LayerTag(0), PBlock(i), 0, 0).is_some(), "node {i} is gone at once");
    }
}

/// A node that is cached for one range may be asked for with another by a forged tree.
#[test]
fn a_node_lies_within_a_range_with_all_that_it_maps() {
    let child = |first| Child { first: VBlock(first), pblock: PBlock(2), crc: 3 };
    let inner = Node::Inner(InnerNode { children: vec![child(10), child(20)] });
    let extent = |first| LeafExtent { vblock: VBlock(first), blocks: 5, place: Place::Zero, crc_index: 0 };
    let leaf = Node::Leaf(LeafNode { extents: vec![extent(10), extent(20)], crcs: vec![] });
    for (range, inner_in, leaf_in) in [
        (10..25, true, true),
        (11..25, false, false),
        (10..24, true, false),
        (10..21, true, false),
        (10..20, false, false),
    ] {
        let blocks = VBlock(range.start)..VBlock(range.end);
        assert_eq!((inner.within(&blocks), leaf.within(&blocks)), (inner_in, leaf_in), "{range:?}");
    }
}

#[test]
fn nodes_are_told_apart_by_layer_place_checksum_and_level() {
    let cache = NodeCache::new(1 << 20);
    let leaf = Arc::new(node(&mut Rng(1)));
    cache.insert(LayerTag(1), PBlock(2), 3, 4, leaf.clone());
    let found = cache.get(LayerTag(1), PBlock(2), 3, 4).expect("just put there");
    assert!(Arc::ptr_eq(&found, &leaf));
    assert!(cache.get(LayerTag(0), PBlock(2), 3, 4).is_none());
    assert!(cache.get(LayerTag(1), PBlock(3), 3, 4).is_none());
    assert!(cache.get(LayerTag(1), PBlock(2), 4, 4).is_none());
    assert!(cache.get(LayerTag(1), PBlock(2), 3, 0).is_none());
}

fn span(rng: &mut Rng) -> SpanRuns {
    let n = 1 + rng.below(128) as u8;
    let run = |offset| Run {
        offset,
        blocks: 1,
        source: RunSource::Data { layer: LayerTag(0), pblock: PBlock(9), crc_index: offset },
    };
    SpanRuns { runs: (0..n).map(run).collect(), crcs: vec![5; n.into()] }
}

#[test]
fn the_span_cache_stays_within_its_budget() {
    for budget in [512u64 << 10, 8 << 20] {
        let (cache, mut rng) = (SpanCache::new(budget), Rng(budget));
        let mut total = 0;
        for i in 0..20_000 {
            let runs = Arc::new(span(&mut rng));
            total += size_of_val(&runs.runs[..]) + size_of_val(&runs.crcs[..]);
            cache.fill(Span(i), runs.clone(), cache.generation());
            assert!(cache.weight() <= budget, "{} bytes after {i} spans", cache.weight());
            assert!(
                cache.get(Span(i)).is_some_and(|found| Arc::ptr_eq(&found, &runs)),
                "span {i} is gone at once"
            );
        }
        assert!(total as u64 > 3 * budget && cache.weight() > budget / 2, "{} of {budget}", cache.weight());
        let held: usize = (0..20_000)
            .filter_map(|i| cache.get(Span(i)))
            .map(|s| size_of_val(&s.runs[..]) + size_of_val(&s.crcs[..]))
            .sum();
        assert!(held as u64 <= cache.weight(), "{held} held, {} stated", cache.weight());
    }
}

#[test]
fn the_last_span_of_the_largest_disk_can_be_dropped() {
    let (cache, last) = (SpanCache::new(1 << 20), Span((1 << 33) - 1));
    cache.fill(last, Arc::default(), cache.generation());
    assert!(cache.get(last).is_some());
    cache.drop_span(last);
    assert!(cache.get(last).is_none());
}

#[test]
fn dropped_spans_are_gone_and_others_stay() {
    let cache = SpanCache::new(1 << 20);
    for i in 0..200 {
        cache.fill(Span(i), Arc::default(), cache.generation());
    }
    cache.root_changed();
    cache.drop_where(|s| s.0 % 3 == 0);
    cache.drop_span(Span(1));
    for i in 0..200 {
        assert_eq!(cache.get(Span(i)).is_some(), i % 3 != 0 && i != 1, "span {i}");
    }
}

/// A root changes while threads fill spans from the old one: afterwards nothing is left that was made from it.
#[test]
fn no_fill_of_an_old_root_survives_its_drop() {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    let cache = SpanCache::new(4 << 20);
    // The "tree": what a fill reads. The first checksum of a span says which root it was made from.
    let (root, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (cache, root, stop) = (&cache, &root, &stop);
            scope.spawn(move || {
                let mut i = thread;
                while !stop.load(Ordering::Relaxed) {
                    let generation = cache.generation();
                    let made_from = root.load(Ordering::SeqCst);
                    let runs = SpanRuns { runs: Vec::new(), crcs: vec![made_from] };
                    cache.fill(Span(i % 64), Arc::new(runs), generation);
                    i += 1;
                }
            });
        }
        for new in 1..=2000u32 {
            root.store(new, Ordering::SeqCst);
            cache.root_changed();
            if new % 2 == 0 {
                cache.drop_where(|_| true);
            } else {
                (0..64).for_each(|i| cache.drop_span(Span(i)));
            }
            for i in 0..64 {
                if let Some(runs) = cache.get(Span(i)) {
                    assert_eq!(runs.crcs, [new], "span {i} was made from an older root");
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
