//! What a node may hold.

use super::*;

fn decode_leaf(block: &Block, range: std::ops::Range<u64>) -> crate::Result<LeafNode> {
    LeafNode::decode(&block[..], ADDRESS, VBlock(range.start)..VBlock(range.end)).map(|(node, _)| node)
}

fn decode_inner(block: &Block, range: std::ops::Range<u64>) -> crate::Result<InnerNode> {
    InnerNode::decode(&block[..], ADDRESS, 3, VBlock(range.start)..VBlock(range.end)).map(|(node, _)| node)
}

fn with_extents(extents: Vec<LeafExtent>) -> Block {
    let blocks: u32 = extents.iter().filter(|e| e.place != Place::Zero).map(|e| e.blocks).sum();
    LeafNode { extents, crcs: vec![9; blocks as usize] }.encode(LAYER, ADDRESS, GENERATION).0
}

fn with_children(children: &[(u64, u64)]) -> Block {
    let child =
        |&(first, pblock): &(u64, u64)| Child { first: VBlock(first), pblock: PBlock(pblock), crc: 5 };
    InnerNode { children: children.iter().map(child).collect() }.encode(LAYER, ADDRESS, GENERATION, 3).0
}

#[test]
fn extents_out_of_order_or_range_are_refused() {
    let refuse = |extents: Vec<LeafExtent>, range: std::ops::Range<u64>, text: &str| {
        assert_refused(decode_leaf(&with_extents(extents), range), Kind::Corrupt, text, ADDRESS);
    };
    let all = 0..1 << 40;
    refuse(vec![], all.clone(), "no extent at its base");
    refuse(vec![data(10, 2, 50, 0), data(11, 1, 60, 2)], all.clone(), "extent 1: 1 + 1 overlaps");
    refuse(vec![zero(10, 70_000, 0), data(70_009, 1, 60, 0)], all.clone(), "extent 1");
    refuse(vec![data(10, 1, 50, 0), data(10, 1, 60, 1)], all.clone(), "extent 1");
    refuse(vec![data(10, 0, 50, 0)], all.clone(), "extent 0: 0 + 0");
    refuse(vec![zero(10, 0, 0)], all.clone(), "extent 0: 0 + 0");
    refuse(vec![data(10, 2, 50, 0)], 11..20, "extent 0");
    refuse(vec![data(10, 2, 50, 0)], 0..11, "extent 0");
    refuse(vec![zero(10, 100_000, 0)], 0..100_009, "extent 0");
    refuse(vec![zero((1 << 40) - 1, 2, 0)], all.clone(), "extent 0");
    refuse(vec![zero(u64::MAX - 3, 2, 0)], all.clone(), "extent 0");
    refuse(vec![zero(u64::MAX - 3, u32::MAX, 0)], all.clone(), "extent 0");
    assert!(decode_leaf(&with_extents(vec![data(10, 2, 50, 0)]), 10..12).is_ok());
    // The same bytes with extents exchanged: unsorted starts.
    let block = with_extents(vec![data(10, 1, 50, 0), data(20, 1, 60, 1), data(30, 1, 70, 2)]);
    let mut swapped = block.clone();
    swapped[64 + 14..64 + 28].copy_from_slice(&block[64 + 28..64 + 42]);
    swapped[64 + 28..64 + 42].copy_from_slice(&block[64 + 14..64 + 28]);
    reseal(&mut swapped[..]);
    assert_refused(decode_leaf(&swapped, all.clone()), Kind::Corrupt, "extent 2", ADDRESS);
    // A leaf that does not begin at its base has more than one encoding.
    assert_refused(
        decode_leaf(&patched(&block, 64, &[1]), all),
        Kind::Corrupt,
        "no extent at its base",
        ADDRESS,
    );
}

#[test]
fn places_of_extents_out_of_range_are_refused() {
    let all = 0..1 << 40;
    for pblock in [0, 1, (1 << 42) - 2] {
        let block = with_extents(vec![data(5, 1, 50, 0), data(6, 3, pblock, 1)]);
        let text = format!("extent 1: block {pblock} is outside");
        assert_refused(decode_leaf(&block, all.clone()), Kind::Corrupt, &text, ADDRESS);
    }
    assert!(decode_leaf(&with_extents(vec![data(5, 2, (1 << 42) - 2, 0)]), all.clone()).is_ok());
    let block = with_extents(vec![data(5, 1, 50, 0)]);
    for place in [1u64 << 42, 2 << 60, 15 << 60, u64::MAX, 50 | 1 << 59] {
        let text = format!("extent 0: place {place:#x}");
        let block = patched(&block, 64 + 6, &place.to_le_bytes());
        assert_refused(decode_leaf(&block, all.clone()), Kind::Corrupt, &text, ADDRESS);
    }
    let zeros = with_extents(vec![zero(5, 1, 0)]);
    for address in [1u64 << 16, 1 << 42, (1 << 60) - 1] {
        let block = patched(&zeros, 64 + 6, &(1 << 60 | address).to_le_bytes());
        assert_refused(decode_leaf(&block, all.clone()), Kind::Corrupt, "extent 0: place", ADDRESS);
    }
}

#[test]
fn counts_that_do_not_fit_are_refused() {
    let all = 0..1 << 40;
    let block = leaf_block();
    for count in [0u64, 3, 5, 288, 1 << 32, 1 << 61, u64::MAX] {
        let block = patched(&block, 56, &count.to_le_bytes());
        assert!(decode_leaf(&block, all.clone()).is_err(), "{count} extents");
    }
    let crcs_at = 64 + 4 * LEAF_EXTENT_BYTES;
    for count in [0u64, 4, 6, 1000, 1 << 62, u64::MAX] {
        let block = patched(&block, crcs_at, &count.to_le_bytes());
        assert!(decode_leaf(&block, all.clone()).is_err(), "{count} checksums");
    }
    // One checksum too few, and one too many, in a leaf that is otherwise consistent.
    for crcs in [4, 6] {
        let node = LeafNode { extents: leaf().extents, crcs: vec![1; crcs] };
        let (block, _) = node.encode(LAYER, ADDRESS, GENERATION);
        let text = format!("{crcs} checksums for 5 blocks");
        assert_refused(decode_leaf(&block, all.clone()), Kind::Corrupt, &text, ADDRESS);
    }
    for count in [0u64, 2, 4, 203, 1 << 60, u64::MAX] {
        let block = patched(&inner_block(), 48, &count.to_le_bytes());
        assert!(decode_inner(&block, all.clone()).is_err(), "{count} children");
    }
}

#[test]
fn children_out_of_order_or_range_are_refused() {
    let refuse = |children: &[(u64, u64)], range: std::ops::Range<u64>, text: &str| {
        assert_refused(decode_inner(&with_children(children), range), Kind::Corrupt, text, ADDRESS);
    };
    refuse(&[], 0..100, "no children");
    refuse(&[(10, 50), (10, 51)], 0..100, "child 1: first block 10");
    refuse(&[(10, 50), (9, 51)], 0..100, "child 1: first block 9");
    refuse(&[(10, 50), (20, 51)], 11..100, "child 0: first block 10");
    refuse(&[(10, 50), (20, 51)], 0..20, "child 1: first block 20");
    refuse(&[(10, 50), (u64::MAX, 51)], 0..1 << 40, "child 1");
    for pblock in [0, 1, 1 << 42, u64::MAX, ADDRESS.0] {
        refuse(&[(10, 50), (20, pblock)], 0..100, &format!("child 1: block {pblock}"));
    }
    let node = decode_inner(&with_children(&[(10, 50), (20, 51)]), 10..21).expect("valid");
    assert_eq!(node.range(0, VBlock(21)), VBlock(10)..VBlock(20));
    assert_eq!(node.range(1, VBlock(21)), VBlock(20)..VBlock(21));
}

#[test]
fn a_node_of_another_level_is_refused() {
    let (leaf, inner) = (leaf_block(), inner_block());
    assert_refused(decode_leaf(&inner, 0..1 << 40), Kind::Corrupt, "level 3 where a leaf belongs", ADDRESS);
    assert_refused(decode_inner(&leaf, 0..1 << 40), Kind::Corrupt, "level 0 where level 3 belongs", ADDRESS);
    for level in [1, 2, 4] {
        let result = InnerNode::decode(&inner[..], ADDRESS, level, WHOLE);
        assert_refused(result, Kind::Corrupt, &format!("level 3 where level {level} belongs"), ADDRESS);
    }
}

#[test]
fn full_nodes_fit_and_fuller_ones_do_not() {
    let extents: Vec<LeafExtent> = (0..287).map(|i| zero(i * 10, 1, 0)).collect();
    assert!(extents.len() * LEAF_EXTENT_BYTES <= LEAF_BODY_BYTES);
    assert_eq!(decode_leaf(&with_extents(extents.clone()), 0..2861).expect("valid").extents, extents);
    let blocks = ((LEAF_BODY_BYTES - LEAF_EXTENT_BYTES) / LEAF_CRC_BYTES) as u32;
    assert_eq!(
        decode_leaf(&with_extents(vec![data(7, blocks, 50, 0)]), 0..9999).expect("valid").crcs.len(),
        1002
    );
    assert!(std::panic::catch_unwind(|| with_extents(vec![data(7, blocks + 1, 50, 0)])).is_err());
    let children: Vec<(u64, u64)> = (0..INNER_CAPACITY as u64).map(|i| (i, i + 2)).collect();
    assert_eq!(
        decode_inner(&with_children(&children), 0..202).expect("valid").children.len(),
        INNER_CAPACITY
    );
    let more: Vec<(u64, u64)> = (0..=INNER_CAPACITY as u64).map(|i| (i, i + 2)).collect();
    assert!(std::panic::catch_unwind(|| with_children(&more)).is_err());
}

#[test]
fn the_largest_extents_keep_their_length() {
    for blocks in [1, 65_535, 65_536, 65_537, 1 << 31, MAX_ZERO_BLOCKS] {
        let extents = vec![zero(3, blocks, 0), zero(3 + u64::from(blocks), 1, 0)];
        assert_eq!(decode_leaf(&with_extents(extents.clone()), 3..1 << 33).expect("valid").extents, extents);
    }
    let far = vec![zero(5, 1, 0), zero(5 + MAX_LEAF_START, 1, 0)];
    assert_eq!(decode_leaf(&with_extents(far.clone()), 0..1 << 33).expect("valid").extents, far);
}
