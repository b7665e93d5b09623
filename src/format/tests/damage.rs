//! Flipped bits and cut-off ends.

use super::*;

/// Calls `decode` with each single bit of `block[bits]` flipped.
fn flip_each(block: &Block, bytes: std::ops::Range<usize>, mut decode: impl FnMut(&Block, usize)) {
    let mut damaged = block.clone();
    for at in bytes {
        for bit in 0..8 {
            damaged[at] ^= 1 << bit;
            decode(&damaged, at);
            damaged[at] ^= 1 << bit;
        }
    }
    assert_eq!(&damaged, block);
}

#[test]
fn every_flipped_bit_of_a_superblock_is_found() {
    for sb in [head(), sealed()] {
        let slot = Superblock::slot(sb.generation);
        let block = encoded(&sb);
        assert_eq!(Superblock::decode(&block[..], slot).expect("undamaged"), sb);
        flip_each(&block, 0..BLOCK_SIZE, |damaged, at| {
            let error = Superblock::decode(&damaged[..], slot).expect_err("damaged");
            assert_eq!((error.kind(), error.at_offset()), (Kind::Corrupt, Some(slot.pos())), "byte {at}");
        });
    }
}

#[test]
fn every_flipped_bit_of_a_node_is_found() {
    let block = leaf_block();
    assert_eq!(LeafNode::decode(&block[..], ADDRESS, WHOLE).expect("undamaged").0, leaf());
    flip_each(&block, 0..BLOCK_SIZE, |damaged, at| {
        let error = LeafNode::decode(&damaged[..], ADDRESS, WHOLE).expect_err("damaged");
        assert_eq!((error.kind(), error.at_offset()), (Kind::Corrupt, Some(ADDRESS.pos())), "byte {at}");
    });
    let block = inner_block();
    assert_eq!(InnerNode::decode(&block[..], ADDRESS, 3, WHOLE).expect("undamaged").0, inner());
    flip_each(&block, 0..BLOCK_SIZE, |damaged, at| {
        let error = InnerNode::decode(&damaged[..], ADDRESS, 3, WHOLE).expect_err("damaged");
        assert_eq!((error.kind(), error.at_offset()), (Kind::Corrupt, Some(ADDRESS.pos())), "byte {at}");
    });
}

#[test]
fn every_flipped_bit_of_a_journal_header_is_found_and_only_there() {
    let (block, _) = journal(&[record(10)]);
    let header = JournalBlock::decode(&block[..], ADDRESS).expect("undamaged");
    assert_eq!(header, JournalBlock { layer: LAYER, epoch: 77, generation: GENERATION });
    flip_each(&block, 0..JOURNAL_HEADER_BYTES, |damaged, at| {
        assert!(JournalBlock::decode(&damaged[..], ADDRESS).is_err(), "byte {at}");
    });
    // Records, also damaged ones, are nothing to the header: J1 rewrites them behind it.
    flip_each(&block, JOURNAL_HEADER_BYTES..BLOCK_SIZE, |damaged, at| {
        assert_eq!(JournalBlock::decode(&damaged[..], ADDRESS).expect("header"), header, "byte {at}");
    });
}

#[test]
fn a_flipped_bit_ends_a_journal_block_at_its_record() {
    let records = [record(10), record(11), record(15)];
    let (block, used) = journal(&records);
    let ends: Vec<usize> = (1..=3).map(|n| journal(&records[..n]).1).collect();
    assert_eq!(decode_records(&block[..], salt()), records);
    flip_each(&block, JOURNAL_HEADER_BYTES..used, |damaged, at| {
        let intact = ends.iter().filter(|end| at >= **end).count();
        assert_eq!(decode_records(&damaged[..], salt()), records[..intact], "byte {at}");
    });
    flip_each(&block, used..BLOCK_SIZE, |damaged, at| {
        assert_eq!(decode_records(&damaged[..], salt()), records, "byte {at}");
    });
}

#[test]
fn every_truncation_is_an_error() {
    let sb = sealed();
    let slot = Superblock::slot(sb.generation);
    let (superblock, leaf, inner) = (encoded(&sb), leaf_block(), inner_block());
    let records = [record(10), record(11)];
    let (journal_block, used) = journal(&records);
    let first = journal(&records[..1]).1;
    for len in 0..BLOCK_SIZE {
        assert!(Superblock::decode(&superblock[..len], slot).is_err(), "superblock of {len} bytes");
        assert!(LeafNode::decode(&leaf[..len], ADDRESS, WHOLE).is_err(), "leaf of {len} bytes");
        assert!(InnerNode::decode(&inner[..len], ADDRESS, 3, WHOLE).is_err(), "inner node of {len} bytes");
        let header = JournalBlock::decode(&journal_block[..len], ADDRESS);
        assert_eq!(header.is_ok(), len >= JOURNAL_HEADER_BYTES, "journal block of {len} bytes");
        let whole = usize::from(len >= first) + usize::from(len >= used);
        assert_eq!(decode_records(&journal_block[..len], salt()), records[..whole], "{len} bytes");
    }
}

/// The checksum of what is left does not make it whole.
#[test]
fn a_resealed_truncation_is_an_error() {
    let sb = sealed();
    let slot = Superblock::slot(sb.generation);
    for len in 8..BLOCK_SIZE {
        let cut = |block: Block| {
            let mut bytes = block[..len].to_vec();
            reseal(&mut bytes);
            bytes
        };
        assert!(Superblock::decode(&cut(encoded(&sb)), slot).is_err(), "superblock of {len} bytes");
        assert!(LeafNode::decode(&cut(leaf_block()), ADDRESS, WHOLE).is_err(), "leaf of {len} bytes");
        assert!(InnerNode::decode(&cut(inner_block()), ADDRESS, 3, WHOLE).is_err(), "inner of {len} bytes");
    }
}

#[test]
fn one_kind_does_not_pass_for_another() {
    let sb = encoded(&head());
    let slot = Superblock::slot(GENERATION);
    // The magic alone changed, with the checksum of the new kind: the salt is not all that keeps them apart.
    let as_node = |block: &Block, magic: &[u8; 4]| {
        let mut block = block.clone();
        block[..4].copy_from_slice(magic);
        block
    };
    for (block, name) in [(&sb, "superblock"), (&leaf_block(), "leaf"), (&inner_block(), "inner")] {
        for magic in [b"COWD", b"COWN", b"COWJ"] {
            if block[..4] == *magic {
                continue;
            }
            let block = as_node(block, magic);
            assert!(Superblock::decode(&block[..], slot).is_err(), "{name} as {magic:?}");
            assert!(LeafNode::decode(&block[..], ADDRESS, WHOLE).is_err(), "{name} as {magic:?}");
            assert!(InnerNode::decode(&block[..], ADDRESS, 3, WHOLE).is_err(), "{name} as {magic:?}");
            assert!(JournalBlock::decode(&block[..], ADDRESS).is_err(), "{name} as {magic:?}");
        }
    }
}

#[test]
fn a_misplaced_structure_is_refused() {
    // A write that went astray: everything verifies except the place.
    let text = "it was written for block";
    let other = ADDRESS.plus(1);
    assert_refused(LeafNode::decode(&leaf_block()[..], other, WHOLE), Kind::Corrupt, text, other);
    assert_refused(InnerNode::decode(&inner_block()[..], other, 3, WHOLE), Kind::Corrupt, text, other);
    let (block, _) = journal(&[record(10)]);
    assert_refused(JournalBlock::decode(&block[..], other), Kind::Corrupt, text, other);
    for slot in [0, 1] {
        let mut sb = head();
        sb.generation = slot;
        let block = encoded(&sb);
        assert!(Superblock::decode(&block[..], PBlock(slot)).is_ok());
        let other = PBlock(1 - slot);
        assert_refused(Superblock::decode(&block[..], other), Kind::Corrupt, text, other);
        // An address that was corrected does not help where the generation belongs into the other slot.
        let moved = patched(&block, 32, &other.0.to_le_bytes());
        assert_refused(
            Superblock::decode(&moved[..], other),
            Kind::Corrupt,
            "does not belong into slot",
            other,
        );
    }
}

#[test]
fn bad_headers_are_refused() {
    let block = leaf_block();
    let decode = |block: Block| LeafNode::decode(&block[..], ADDRESS, WHOLE);
    let mut magic = block.clone();
    magic[0] = b'c';
    assert_refused(decode(magic), Kind::Corrupt, "magic", ADDRESS);
    for version in [0u16, 2, u16::MAX] {
        let text = format!("format version {version}");
        assert_refused(
            decode(patched(&block, 12, &version.to_le_bytes())),
            Kind::Unsupported,
            &text,
            ADDRESS,
        );
    }
    for length in [0u32, 47, 4097, u32::MAX] {
        let text = format!("length {length} is out of range");
        assert_refused(decode(patched(&block, 8, &length.to_le_bytes())), Kind::Corrupt, &text, ADDRESS);
    }
    let used = u32::from_le_bytes(block[8..12].try_into().expect("four bytes"));
    let shorter = patched(&block, 8, &(used - 4).to_le_bytes());
    assert_refused(decode(shorter), Kind::Corrupt, "bytes behind its end are not zero", ADDRESS);
    let longer = patched(&block, 8, &(used + 4).to_le_bytes());
    assert_refused(decode(longer), Kind::Corrupt, "cannot be decoded", ADDRESS);
    for at in [used as usize, 4095] {
        let dirty = patched(&block, at, &[1]);
        assert_refused(decode(dirty), Kind::Corrupt, "bytes behind its end are not zero", ADDRESS);
    }
    let slot = Superblock::slot(GENERATION);
    let level = patched(&encoded(&head()), 14, &[1]);
    assert_refused(Superblock::decode(&level[..], slot), Kind::Corrupt, "level 1", slot);
    let level = patched(&journal(&[]).0, 15, &[1]);
    assert_refused(JournalBlock::decode(&level[..], ADDRESS), Kind::Corrupt, "level 256", ADDRESS);
}

#[test]
fn a_damaged_structure_is_called_by_its_name() {
    let nothing = [0; BLOCK_SIZE];
    let named = |error: Error, name: &str| assert!(error.message().starts_with(name), "{error}");
    named(Superblock::decode(&nothing, PBlock(0)).expect_err("empty"), "superblock");
    named(LeafNode::decode(&nothing, ADDRESS, WHOLE).expect_err("empty"), "tree node");
    named(InnerNode::decode(&nothing, ADDRESS, 3, WHOLE).expect_err("empty"), "tree node");
    named(JournalBlock::decode(&nothing, ADDRESS).expect_err("empty"), "journal block");
}
