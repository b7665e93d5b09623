//! What a superblock may say. Bytes are patched and sealed again, so that the ranges are what refuses them.

use super::*;

const SLOT: PBlock = PBlock(0);

fn decode(block: &Block) -> crate::Result<Superblock> {
    Superblock::decode(&block[..], SLOT)
}

fn refused(block: &Block, at: usize, bytes: &[u8], text: &str) {
    assert_refused(decode(&patched(block, at, bytes)), Kind::Corrupt, text, SLOT);
}

fn accepted(block: &Block, at: usize, bytes: &[u8]) -> Superblock {
    decode(&patched(block, at, bytes)).unwrap_or_else(|e| panic!("{bytes:02x?} at {at}: {e}"))
}

#[test]
fn unknown_incompatible_bits_are_named() {
    let block = encoded(&head());
    for (bits, named) in
        [(2u64, "features 1 "), (1 << 63 | 1 << 5, "features 5, 63 "), (1 << 32, "features 32 ")]
    {
        assert_refused(decode(&patched(&block, 48, &bits.to_le_bytes())), Kind::Unsupported, named, SLOT);
    }
    // They are found although nothing behind them can be decoded.
    let mut block = patched(&block, 48, &[8]);
    block[56..1000].fill(0xff);
    block[8..12].copy_from_slice(&1000u32.to_le_bytes());
    reseal(&mut block[..]);
    assert_refused(decode(&block), Kind::Unsupported, "features 3 ", SLOT);
}

#[test]
fn other_unknown_bits_are_kept() {
    let block = encoded(&head());
    assert!(!decode(&block).expect("valid").forces_read_only());
    let sb = accepted(&block, 56, &(1u64 << 40).to_le_bytes());
    assert_eq!((sb.ro_compat, sb.forces_read_only()), (1 << 40, true));
    let sb = accepted(&block, 64, &u64::MAX.to_le_bytes());
    assert_eq!((sb.compat, sb.forces_read_only()), (u64::MAX, false));
    assert_eq!(decode(&encoded(&sb)).expect("valid"), sb);
}

#[test]
fn no_checksums_of_data_is_a_feature_and_a_kind() {
    let mut sb = head();
    sb.without_checksums();
    sb.checksums = ChecksumKind::None { boot: BootId([0xb0; 16]) };
    let block = encoded(&sb);
    assert_eq!(decode(&block).expect("valid"), sb);
    assert!(!sb.checksums.protects());
    refused(&block, 48, &0u64.to_le_bytes(), "with incompatible features 0x0");
    refused(&encoded(&head()), 48, &1u64.to_le_bytes(), "checksums Crc32 with incompatible features 0x1");
    refused(&block, 80, &2u32.to_le_bytes(), "cannot be decoded");
}

#[test]
fn sizes_out_of_range_are_refused() {
    let block = encoded(&head());
    for size in [0u32, 1, 511, 512, 4095, 8192, 1 << 31, u32::MAX] {
        refused(&block, 72, &size.to_le_bytes(), &format!("block_size {size}"));
    }
    for size in [0u32, 1, 511, 513, 1024, 2048, 8192, 1 << 31] {
        refused(&block, 76, &size.to_le_bytes(), &format!("sector_size {size}"));
    }
    for size in [0u64, 1, 511, 513, (1 << 52) + 512, 1 << 63, u64::MAX, u64::MAX - 511] {
        refused(&block, 100, &size.to_le_bytes(), &format!("virtual_size {size}"));
    }
    assert_eq!(accepted(&block, 100, &512u64.to_le_bytes()).virtual_blocks(), 1);
    assert_eq!(accepted(&block, 100, &(1u64 << 52).to_le_bytes()).virtual_blocks(), 1 << 40);
    let mut sb = head();
    sb.sector_size = 4096;
    refused(&encoded(&sb), 100, &(4096u64 + 512).to_le_bytes(), "virtual_size 4608");
    refused(&block, 80, &1u32.to_le_bytes(), "cannot be decoded");
}

#[test]
fn places_out_of_range_are_refused() {
    let sb = head();
    let block = encoded(&sb);
    let area = sb.block_area.0;
    // block_area, then areas, root, cut, durable, high_water.
    for first in [0u64, 1, area - 1, area + 1000 + 1, 2 + (1 << 18) + 1, u64::MAX] {
        let text = if first == area - 1 { "record area" } else { "" };
        refused(&block, 132, &first.to_le_bytes(), text);
    }
    for count in [0u64, 2, 4, 5, 1 << 32, u64::MAX] {
        refused(&block, 140, &count.to_le_bytes(), "");
    }
    for (first, blocks) in
        [(0u64, 256u64), (1, 256), (3, 256), (2, 257), (2, 63), (u64::MAX, 256), (2, u64::MAX)]
    {
        let bytes = [first.to_le_bytes(), blocks.to_le_bytes()].concat();
        refused(&block, 148, &bytes, &format!("record area {first} + {blocks}"));
    }
    accepted(&block, 148, &[3u64.to_le_bytes(), 255u64.to_le_bytes()].concat());
    accepted(&block, 148, &[2u64.to_le_bytes(), 64u64.to_le_bytes()].concat());
    for root in [0u64, 1, 2, area - 1, area + 1000, u64::MAX] {
        refused(&block, 164, &root.to_le_bytes(), &format!("root {root}"));
    }
    accepted(&block, 164, &area.to_le_bytes());
    for height in [0u32, 11, u32::MAX] {
        refused(&block, 176, &height.to_le_bytes(), &format!("height {height}"));
    }
    assert_eq!(accepted(&block, 176, &10u32.to_le_bytes()).root.height, 10);
    refused(&block, 180, &4002u64.to_le_bytes(), "durable_seq 4001 below cut 4002");
    refused(&block, 188, &3999u64.to_le_bytes(), "durable_seq 3999 below cut 4000");
    for mark in [0u64, area - 1, (1 << 42) + 1, u64::MAX] {
        refused(&block, 196, &mark.to_le_bytes(), &format!("high_water {mark}"));
    }
    accepted(&block, 196, &(1u64 << 42).to_le_bytes());
}

/// Nothing in a sealed layer but its blocks says where its block area may begin.
#[test]
fn the_block_area_of_a_sealed_layer_is_bounded() {
    let most = 2 + (limits::MAX_JOURNAL_BYTES >> 12);
    for (area, good) in [(0, false), (1, false), (2, true), (3, true), (most, true), (most + 1, false)] {
        let sb = Superblock {
            block_area: PBlock(area),
            root: TreeRoot { pblock: PBlock(most + 1), ..sealed().root },
            high_water: PBlock(most + 2),
            ..sealed()
        };
        assert_eq!(sb.encode().is_ok(), good, "{area}");
    }
}

#[test]
fn counters_out_of_reach_are_refused() {
    let most = limits::MAX_COUNTER;
    let largest = Superblock { generation: most, epoch: most, cut: Seq(most), durable: Seq(most), ..head() };
    assert_eq!(Superblock::decode(&encoded(&largest)[..], PBlock(0)).expect("in range"), largest);
    type Set = fn(&mut Superblock, u64);
    let with: [(&str, Set); 4] = [
        ("generation", |sb, n| sb.generation = n),
        ("epoch", |sb, n| sb.epoch = n),
        ("cut", |sb, n| (sb.cut, sb.durable) = (Seq(n), Seq(n))),
        ("durable_seq", |sb, n| sb.durable = Seq(n)),
    ];
    for (name, set) in with {
        for n in [most + 1, u64::MAX] {
            let mut sb = head();
            set(&mut sb, n);
            let error = sb.encode().expect_err("out of reach");
            assert!(error.message().contains(&format!("{name} {n}")), "{error}");
        }
    }
}

#[test]
fn an_empty_tree_has_no_root() {
    let mut sb = head();
    sb.root = TreeRoot::default();
    let block = encoded(&sb);
    refused(&block, 164, &sb.block_area.0.to_le_bytes(), "height 0");
    refused(&block, 172, &[1], "height 0");
}

#[test]
fn a_sealed_layer_has_no_journal_and_a_head_has_one() {
    for mut sb in [head(), sealed()] {
        let good = encoded(&sb);
        sb.sealed = match sb.sealed {
            Some(_) => None,
            None => Some(Sealed { name: String::new(), time_ns: 0 }),
        };
        let error = sb.encode().expect_err("areas do not fit");
        assert!(error.message().contains("record areas"), "{error}");
        // The option byte flipped in the encoding, for one without the fields behind it.
        if sb.sealed.is_some() {
            let at = good.iter().rposition(|&b| b != 0).expect("bytes");
            let holder = 1 + 4 + 8 + "host".len() + 8 + "/run/cowdisk/a.sock".len();
            refused(&good, at + 1 - holder - 1, &[2], "cannot be decoded");
        }
    }
}

#[test]
fn texts_are_bounded_when_written_and_when_read() {
    let long = "x".repeat(limits::MAX_PATH_BYTES + 1);
    let hints =
        |relative: &str, absolute: &str| PathHints { relative: relative.into(), absolute: absolute.into() };
    let with_hints =
        |hints| Superblock { parent: Parent::Layer { layer: LAYER, root_crc: None, hints }, ..head() };
    let name = |name: &str| Superblock { sealed: Some(Sealed { name: name.into(), time_ns: 0 }), ..sealed() };
    let holder = |host: &str, socket: &str| Superblock {
        holder: Some(Holder { pid: 1, host: host.into(), socket: socket.into() }),
        ..head()
    };
    let h = "h".repeat(limits::MAX_HOLDER_BYTES + 1);
    let mut base = sealed();
    let Parent::Foreign { size, .. } = &mut base.parent else { panic!("a base") };
    *size = 1 << 52;
    let largest_base = base.clone();
    let Parent::Foreign { size, .. } = &mut base.parent else { panic!("a base") };
    *size += 1;
    let bad = [
        (with_hints(hints(&long, "")), "parent path"),
        (with_hints(hints("", &long)), "parent path"),
        (with_hints(hints("a\0b", "")), "parent path"),
        (with_hints(hints("", "\0")), "parent path"),
        (name(&"n".repeat(limits::MAX_NAME_BYTES + 1)), "snapshot name"),
        (name("a/b"), "snapshot name"),
        (name("a@b"), "snapshot name"),
        (name("-a"), "snapshot name"),
        (name(".a"), "snapshot name"),
        (name("~a"), "snapshot name"),
        (name("a\u{7f}"), "snapshot name"),
        (name("a\nb"), "snapshot name"),
        (holder(&h, ""), "holder"),
        (holder("", &h), "holder"),
        (base, "base size"),
    ];
    for (sb, text) in bad {
        let error = sb.encode().expect_err(text);
        assert_eq!(error.kind(), Kind::BadName, "{error}");
        assert!(error.message().contains(text), "{error}");
        // Another program may have written it.
        let mut block = header::empty_block();
        let used = HEADER_BYTES + codec::encode(&sb, &mut block[HEADER_BYTES..]).expect("it fits");
        let header = Header::new(Magic::Superblock, sb.layer, SLOT, sb.generation, 0);
        header.seal(Magic::Superblock, &mut block[..], used);
        assert_refused(decode(&block), Kind::Corrupt, text, SLOT);
    }
    let longest = [
        with_hints(hints(&long[1..], &long[1..])),
        name(&"ä".repeat(limits::MAX_NAME_BYTES / 2)),
        name("a.b ~c-"),
        name(""),
        holder(&h[1..], &h[1..]),
        largest_base,
    ];
    for sb in longest {
        assert_eq!(decode(&encoded(&sb)).expect("in range"), sb);
    }
}

#[test]
fn the_largest_superblock_fits() {
    let text = |n: usize| "x".repeat(n);
    let mut sb = sealed();
    let Parent::Foreign { hints, .. } = &mut sb.parent else { panic!("a base") };
    *hints = PathHints { relative: text(limits::MAX_PATH_BYTES), absolute: text(limits::MAX_PATH_BYTES) };
    sb.sealed = Some(Sealed { name: text(limits::MAX_NAME_BYTES), time_ns: i64::MIN });
    let long = text(limits::MAX_HOLDER_BYTES);
    sb.holder = Some(Holder { pid: u32::MAX, host: long.clone(), socket: long });
    assert_eq!(decode(&encoded(&sb)).expect("valid"), sb);
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let broken: [fn(&mut Superblock); 6] = [
        |sb| sb.durable = Seq(1),
        |sb| sb.virtual_size = 100,
        |sb| sb.high_water = PBlock(3),
        |sb| sb.areas.clear(),
        |sb| sb.root.height = 11,
        |sb| sb.block_size = 512,
    ];
    for change in broken {
        let mut sb = head();
        change(&mut sb);
        assert_eq!(sb.encode().expect_err("out of range").kind(), Kind::Corrupt);
    }
}

#[test]
fn a_new_layer_is_valid() {
    for journal in [limits::MIN_JOURNAL_BYTES, limits::DEFAULT_JOURNAL_BYTES, limits::MAX_JOURNAL_BYTES] {
        for (size, sector) in [(512, 512), (4096, 4096), (limits::MAX_DISK_BYTES, 4096)] {
            let sb = Superblock::new_layer(LAYER, DISK, size, sector, journal);
            assert_eq!(Superblock::slot(sb.generation), PBlock(1));
            assert_eq!(Superblock::decode(&encoded(&sb)[..], PBlock(1)).expect("valid"), sb);
            let ring = sb.ring().expect("a head has one");
            assert_eq!((ring.blocks * 4096, ring.first.plus(ring.blocks)), (journal, sb.block_area));
        }
    }
}
