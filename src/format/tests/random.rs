//! Round trips of random values, and random bytes: no panic, and nothing decodes that encodes to other bytes.

use super::*;

fn text(max: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>().prop_filter("no zero byte", |c| *c != '\0'), 0..max / 4)
        .prop_map(String::from_iter)
}

fn hints() -> impl Strategy<Value = PathHints> {
    (text(300), text(300)).prop_map(|(relative, absolute)| PathHints { relative, absolute })
}

fn parent() -> impl Strategy<Value = Parent> {
    let layer = (any::<[u8; 16]>(), any::<Option<u32>>(), hints())
        .prop_map(|(id, root_crc, hints)| Parent::Layer { layer: LayerId(id), root_crc, hints });
    let foreign = (0..=limits::MAX_DISK_BYTES, any::<i64>(), any::<[u8; 32]>(), hints()).prop_map(
        |(size, mtime_ns, sample, hints)| Parent::Foreign {
            format: ForeignFormat::Raw,
            size,
            mtime_ns,
            sample,
            hints,
        },
    );
    prop_oneof![Just(Parent::None), layer, foreign]
}

prop_compose! {
    fn superblock()(
        (layer, disk) in any::<([u8; 16], [u8; 16])>(),
        (generation, epoch) in (0..=limits::MAX_COUNTER, 0..=limits::MAX_COUNTER),
        (ro_compat, compat, inode) in any::<(u64, u64, u64)>(),
        (created_ns, time_ns) in any::<(i64, i64)>(),
        sectors in 1..=limits::MAX_DISK_BYTES / 4096,
        big_sectors in any::<bool>(),
        ring in limits::MIN_JOURNAL_BYTES / 4096..=limits::MAX_JOURNAL_BYTES / 4096,
        (root, above, crc) in (0..1u64 << 30, 1..1u64 << 30, any::<u32>()),
        height in 0..=u32::from(limits::MAX_TREE_HEIGHT),
        (cut, ahead) in (any::<u32>(), any::<u32>()),
        parent in parent(),
        name in prop::option::of("([a-z_ä][a-zA-Z0-9 ._~ö-]{0,40})?"),
        holder in prop::option::of((any::<u32>(), text(256), text(256))),
    ) -> Superblock {
        let sector_size = if big_sectors { 4096 } else { 512 };
        let size = sectors * u64::from(sector_size);
        let mut sb = Superblock::new_layer(LayerId(layer), DiskId(disk), size, sector_size, ring * 4096);
        (sb.generation, sb.ro_compat, sb.compat) = (generation, ro_compat, compat);
        (sb.inode, sb.epoch, sb.created_ns) = (inode, epoch, created_ns);
        sb.high_water = sb.block_area.plus(root + above);
        if height > 0 {
            sb.root = TreeRoot { pblock: sb.block_area.plus(root), crc, height };
        }
        (sb.cut, sb.durable) = (Seq(cut.into()), Seq(u64::from(cut) + u64::from(ahead)));
        sb.sealed = name.map(|name| Sealed { name, time_ns });
        if sb.sealed.is_some() {
            sb.areas.clear();
        }
        sb.holder = holder.map(|(pid, host, socket)| Holder { pid, host, socket });
        sb.parent = parent;
        sb
    }
}

/// Extents in order, with gaps; zero extents of any length, data that fits.
fn leaves() -> impl Strategy<Value = LeafNode> {
    let extent = (0..1000u64, prop_oneof![1..20u32, 60_000..200_000u32], any::<bool>(), 2..1u64 << 41);
    (0..1u64 << 39, prop::collection::vec(extent, 1..100), any::<u32>()).prop_map(|(base, list, seed)| {
        let (mut node, mut next) = (LeafNode::default(), base);
        for (i, (gap, blocks, is_zero, pblock)) in list.into_iter().enumerate() {
            let start = if i == 0 { base } else { next + gap };
            let is_zero = is_zero || blocks >= 20;
            let crc_index = node.crcs.len() as u32;
            node.extents.push(if is_zero {
                zero(start, blocks, crc_index)
            } else {
                data(start, blocks, pblock, crc_index)
            });
            if !is_zero {
                node.crcs.extend((0..blocks).map(|b| seed.wrapping_mul(b + 1)));
            }
            next = start + u64::from(blocks);
        }
        while node.extents.len() * LEAF_EXTENT_BYTES + node.crcs.len() * LEAF_CRC_BYTES > LEAF_BODY_BYTES {
            let last = node.extents.pop().expect("it fits when empty");
            node.crcs.truncate(last.crc_index as usize);
        }
        node
    })
}

fn inners() -> impl Strategy<Value = InnerNode> {
    prop::collection::btree_map(0..1u64 << 40, (2..1u64 << 42, any::<u32>()), 1..=INNER_CAPACITY).prop_map(
        |map| {
            let child = |(first, (pblock, crc))| Child { first: VBlock(first), pblock: PBlock(pblock), crc };
            InnerNode { children: map.into_iter().map(child).collect() }
        },
    )
}

fn records() -> impl Strategy<Value = Record> {
    let extent = (0..1u64 << 39, prop::option::of(2..1u64 << 41), 1..9u32);
    let unsettled = prop::collection::btree_set(1..5000u32, 0..20);
    let resize = prop::option::of((1..=limits::MAX_DISK_BYTES / 512, any::<u64>()));
    let list = prop::collection::vec(extent, 0..12);
    (5000..=limits::MAX_COUNTER, any::<u64>(), unsettled, list, any::<u32>(), resize).prop_map(
        |(seq, durable, unsettled, list, crc, resize)| {
            let mut crcs = Vec::new();
            let extents = list.into_iter().map(|(vblock, pblock, blocks)| {
                let place = pblock.map_or(Place::Zero, |p| Place::Data(PBlock(p)));
                let count = if pblock.is_some() { blocks } else { 0 };
                crcs.extend((0..count).map(|b| crc ^ b));
                RecordExtent { vblock: VBlock(vblock), place, blocks }
            });
            let extents = extents.collect();
            let unsettled = unsettled.into_iter().collect();
            let resize = resize.map(|(sectors, from)| {
                let size = sectors * 512;
                Resize { size, zero_from: VBlock(1 + from % crate::units::blocks_for(size)) }
            });
            Record { seq: Seq(seq), durable: Seq(durable % seq), unsettled, extents, crcs, resize }
        },
    )
}

fn block_of(bytes: &[u8]) -> Block {
    let mut block = Box::new([0; BLOCK_SIZE]);
    block[..bytes.len()].copy_from_slice(bytes);
    block
}

/// Whatever decodes encodes to the same bytes: there is one encoding of a value.
fn decode_as_anything(block: &Block, address: PBlock) -> Result<(), TestCaseError> {
    if let Ok(sb) = Superblock::decode(&block[..], address) {
        prop_assert_eq!(&sb.encode().expect("it was decoded"), block);
    }
    if let Ok((node, h)) = LeafNode::decode(&block[..], address, WHOLE) {
        prop_assert_eq!(&node.encode(h.layer, h.address, h.generation), &(block.clone(), h.crc()));
    }
    let level = u16::from_le_bytes([block[14], block[15]]);
    if let Ok((node, h)) = InnerNode::decode(&block[..], address, level, WHOLE) {
        prop_assert_eq!(&node.encode(h.layer, h.address, h.generation, h.level), &(block.clone(), h.crc()));
    }
    if let Ok(header) = JournalBlock::decode(&block[..], address) {
        let mut again = block.clone();
        header.encode(address, &mut again);
        prop_assert_eq!(&again, block);
    }
    let mut used = JOURNAL_HEADER_BYTES;
    for record in decode_records(&block[..], salt()) {
        let mut again = vec![0; BLOCK_SIZE];
        let len = encode_one(&record, salt(), &mut again).expect("it was decoded");
        prop_assert_eq!(&again[..len], &block[used..used + len]);
        used += len;
    }
    Ok(())
}

proptest! {
    #[test]
    fn superblocks_come_back(sb in superblock()) {
        let block = encoded(&sb);
        prop_assert_eq!(Superblock::decode(&block[..], Superblock::slot(sb.generation)).expect("valid"), sb);
    }

    #[test]
    fn leaves_come_back(node in leaves(), address in 2..1u64 << 42, generation: u64) {
        let (block, crc) = node.encode(LAYER, PBlock(address), generation);
        let last = node.extents.last().expect("not empty");
        let range = node.extents[0].vblock..last.vblock.plus(last.blocks.into());
        let (read, header) = LeafNode::decode(&block[..], PBlock(address), range).expect("valid");
        prop_assert_eq!((read, header.crc(), header.generation), (node, crc, generation));
    }

    #[test]
    fn inner_nodes_come_back(node in inners(), level in 1..10u16) {
        let (block, crc) = node.encode(LAYER, PBlock(1 << 43), 1, level);
        let (read, header) = InnerNode::decode(&block[..], PBlock(1 << 43), level, WHOLE).expect("valid");
        prop_assert_eq!((read, header.crc(), header.level), (node, crc, level));
    }

    #[test]
    fn records_come_back(list in prop::collection::vec(records(), 1..8)) {
        let mut block = Box::new([0; BLOCK_SIZE]);
        let mut used = JOURNAL_HEADER_BYTES;
        let mut kept = Vec::new();
        for record in list {
            let Some(len) = encode_one(&record, salt(), &mut block[used..]) else { break };
            used += len;
            kept.push(record);
        }
        prop_assert!(!kept.is_empty());
        prop_assert_eq!(decode_records(&block[..], salt()), kept);
    }

    #[test]
    fn random_bytes_decode_to_nothing_wrong(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        decode_as_anything(&block_of(&bytes), PBlock(0))?;
    }

    #[test]
    fn random_bodies_decode_to_nothing_wrong(
        body in prop::collection::vec(prop_oneof![4 => Just(0u8), 2 => any::<u8>(), 1 => 0..4u8], 0..600),
        magic in 0..3usize,
        level in 0..2u16,
    ) {
        let magic = [Magic::Superblock, Magic::Node, Magic::Journal][magic];
        let mut block = header::empty_block();
        block[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(&body);
        let header = Header::new(magic, LAYER, PBlock(0), 0, if magic == Magic::Node { level } else { 0 });
        header.seal(magic, &mut block[..], HEADER_BYTES + body.len());
        decode_as_anything(&block, PBlock(0))?;
    }

    /// Valid structures with a few bytes changed and the checksum made right again.
    #[test]
    fn changed_structures_decode_to_nothing_wrong(
        kind in 0..5usize,
        changes in prop::collection::vec((8..400usize, prop_oneof![any::<u8>(), 0..4u8, Just(0xff)]), 1..6),
    ) {
        let blocks = [encoded(&head()), encoded(&sealed()), leaf_block(), inner_block(), journal(&[record(9)]).0];
        let mut block = blocks[kind].clone();
        for (at, byte) in changes {
            block[at] = byte;
        }
        reseal(&mut block[..]);
        let address = if kind < 2 { Superblock::slot(GENERATION) } else { ADDRESS };
        decode_as_anything(&block, address)?;
    }
}

#[test]
fn an_error_names_no_raw_bytes_of_the_file() {
    // Control characters of a hostile name are escaped by the error that quotes it.
    let mut sb = sealed();
    sb.sealed = Some(Sealed { name: "a\u{1b}[2Jb".into(), time_ns: 0 });
    let error: Error = sb.encode().expect_err("control character");
    assert!(!error.to_string().contains('\u{1b}'), "{error}");
}
