//! Each table: its fields, in its order, stand at its offsets with its sizes in what the code writes.

use cowdisk::format::{
    Area, BootId, ChecksumKind, Child, DiskId, ForeignFormat, Holder, INNER_CAPACITY, InnerNode, Joining,
    JournalBlock, LayerId, LeafExtent, LeafNode, MAX_EXTENT_BLOCKS, MAX_LEAF_START, MAX_ZERO_BLOCKS, Parent,
    PathHints, Place, RecordExtent, RecordRef, Resize, Salt, Sealed, Superblock, TreeRoot, encode_record,
};
use cowdisk::limits;
use cowdisk::units::{BLOCK, PBlock, Seq, VBlock};

use super::doc::{Rows, tables};

const LAYER: LayerId = LayerId(*b"0123456789abcdef");
const DISK: DiskId = DiskId(*b"ABCDEFGHIJKLMNOP");

/// Bytes of a field as section 1.2 has them.
trait Stored {
    fn stored(&self) -> Vec<u8>;
}

macro_rules! integers {
    ($($t:ty)*) => { $(impl Stored for $t {
        fn stored(&self) -> Vec<u8> {
            self.to_le_bytes().to_vec()
        }
    })* };
}
integers!(u8 u16 u32 u64 i64);

impl Stored for [u8] {
    fn stored(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Stored for str {
    fn stored(&self) -> Vec<u8> {
        [&(self.len() as u64).to_le_bytes(), self.as_bytes()].concat()
    }
}

type Fields<'a> = &'a [(&'a str, Vec<u8>)];

/// Compares a table with the structure that begins at `block[at]`; gives the byte behind it.
fn compare(name: &str, rows: &Rows, block: &[u8], at: usize, fields: Fields<'_>) -> usize {
    let stated: Vec<&str> = rows.iter().map(|r| r["field"].as_str()).collect();
    let known: Vec<&str> = fields.iter().map(|(field, _)| *field).collect();
    assert_eq!(stated, known, "fields of table {name}");
    let mut next = rows[0]["offset"].parse::<usize>().expect("a table begins at a number");
    let mut variable = false;
    for (row, (field, expected)) in rows.iter().zip(fields) {
        let what = format!("table {name}, {field}");
        match row["offset"].as_str() {
            "…" => assert!(variable, "{what}: everything in front of it has a fixed size"),
            offset => assert_eq!((offset.parse(), variable), (Ok(next), false), "{what}: offset"),
        }
        match row["size"].as_str() {
            "8 + n" => {
                assert_eq!(row["type"], "`string`", "{what}");
                variable = true;
            }
            "1 or 5" => {
                assert_eq!(row["type"], "option of `u32`", "{what}");
                variable = true;
            }
            size => {
                assert_eq!(size.parse(), Ok(expected.len()), "{what}: size");
                let of_type = match row["type"].as_str() {
                    "enum" => 4,
                    "header" => 48,
                    "`u8`" => 1,
                    "`u16`" => 2,
                    "`u32`" => 4,
                    "`u64`" | "`i64`" => 8,
                    array => {
                        let n = array.strip_prefix("`[u8; ").and_then(|a| a.strip_suffix("]`"));
                        n.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{what}: type {array}"))
                    }
                };
                assert_eq!(of_type, expected.len(), "{what}: type");
            }
        }
        assert_eq!(&block[at + next..at + next + expected.len()], expected, "{what}: bytes at {}", at + next);
        next += expected.len();
    }
    at + next
}

fn sample_superblock(parent: Parent) -> Superblock {
    let mut sb = Superblock::new_layer(LAYER, DISK, 512 * 0x1_2345, 512, 0x40 * BLOCK);
    sb.generation = 0x0102_0304_0506_0708;
    (sb.incompat, sb.ro_compat, sb.compat) = (0x11_22, 0x33_44_55, 0x66_77_88_99);
    sb.created_ns = -0x7766_5544_3322_1100;
    sb.inode = 0x1122_3344_5566_7788;
    sb.epoch = 0x99aa_bbcc;
    sb.block_area = PBlock(0x77);
    sb.areas = vec![Area { first: PBlock(3), blocks: 0x41 }];
    sb.root = TreeRoot { pblock: PBlock(0x123), crc: 0xfeed_f00d, height: 9 };
    (sb.cut, sb.durable) = (Seq(0x7a7b_7c7d_7e7f), Seq(0x7a7b_7c7d_7e80));
    sb.high_water = PBlock(0x3ff_ffff_fffe);
    sb.parent = parent;
    sb
}

/// Compares the fixed part, the area if there is one, and the tail; gives the byte where the parent's fields begin.
fn compare_superblock(sb: &Superblock, block: &[u8], parent: u32) -> usize {
    let all = tables();
    let end = compare(
        "superblock",
        &all["superblock"],
        block,
        0,
        &[
            ("incompat", sb.incompat.stored()),
            ("ro_compat", sb.ro_compat.stored()),
            ("compat", sb.compat.stored()),
            ("block_size", sb.block_size.stored()),
            ("sector_size", sb.sector_size.stored()),
            ("checksums", u32::from(!sb.checksums.protects()).stored()),
            ("disk", sb.disk.0.stored()),
            ("virtual_size", sb.virtual_size.stored()),
            ("created_ns", sb.created_ns.stored()),
            ("inode", sb.inode.stored()),
            ("epoch", sb.epoch.stored()),
            ("block_area", sb.block_area.0.stored()),
            ("area_count", (sb.areas.len() as u64).stored()),
        ],
    );
    let end = sb.areas.iter().fold(end, |end, area| {
        let fields = [("first", area.first.0.stored()), ("blocks", area.blocks.stored())];
        compare("area", &all["area"], block, end, &fields)
    });
    compare(
        "superblock-tail",
        &all["superblock-tail"],
        block,
        end,
        &[
            ("root_pblock", sb.root.pblock.0.stored()),
            ("root_crc", sb.root.crc.stored()),
            ("root_height", sb.root.height.stored()),
            ("cut", sb.cut.0.stored()),
            ("durable", sb.durable.0.stored()),
            ("high_water", sb.high_water.0.stored()),
            ("parent", parent.stored()),
        ],
    )
}

fn used(block: &[u8]) -> usize {
    u32::from_le_bytes(block[8..12].try_into().expect("four bytes")) as usize
}

#[test]
fn superblock_without_options() {
    let sb = sample_superblock(Parent::None);
    let block = sb.encode().expect("valid");
    let end = compare_superblock(&sb, &block[..], 0);
    assert_eq!(
        (&block[end..end + 3], end + 3),
        (&[0, 0, 0][..], used(&block[..])),
        "three options, then the end"
    );
}

/// The boot id stands behind the kind, and everything else as much further.
#[test]
fn superblock_without_checksums() {
    let boot: [u8; 16] = std::array::from_fn(|i| i as u8 + 0x30);
    let mut sb = sample_superblock(Parent::None);
    sb.incompat |= 1;
    sb.checksums = ChecksumKind::None { boot: BootId(boot) };
    let mut block = sb.encode().expect("valid").to_vec();
    assert_eq!(compare("plain", &tables()["plain"], &block, 84, &[("boot", boot.stored())]), 100);
    block.drain(84..100);
    let end = compare_superblock(&sb, &block, 0);
    assert_eq!(end + 3 + 16, used(&block));
}

#[test]
fn superblock_sealed_on_a_layer() {
    for root_crc in [None, Some(0x0bad_cafe)] {
        let hints = PathHints { relative: "relative".into(), absolute: "/absolute/é".into() };
        let parent = Parent::Layer { layer: LayerId([0x5a; 16]), root_crc, hints: hints.clone() };
        let mut sb = sample_superblock(parent);
        sb.areas.clear();
        sb.sealed = Some(Sealed { name: "name".into(), time_ns: 0x4142_4344_4546_4748 });
        sb.holder = Some(Holder { pid: 0x5152_5354, host: "host".into(), socket: "/socket".into() });
        let block = sb.encode().expect("valid");
        let all = tables();
        let end = compare_superblock(&sb, &block[..], 1);
        let option = root_crc.map_or(vec![0], |crc: u32| [&[1][..], &crc.to_le_bytes()].concat());
        let fields = [
            ("layer", [0x5a; 16].stored()),
            ("root_crc", option),
            ("relative", hints.relative.stored()),
            ("absolute", hints.absolute.stored()),
        ];
        let end = compare("parent-layer", &all["parent-layer"], &block[..], end, &fields);
        let fields = [
            ("present", 1u8.stored()),
            ("name", "name".stored()),
            ("time_ns", 0x4142_4344_4546_4748_i64.stored()),
        ];
        let end = compare("sealed", &all["sealed"], &block[..], end, &fields);
        let fields = [
            ("present", 1u8.stored()),
            ("pid", 0x5152_5354_u32.stored()),
            ("host", "host".stored()),
            ("socket", "/socket".stored()),
        ];
        let end = compare("holder", &all["holder"], &block[..], end, &fields);
        assert_eq!((block[end], end + 1), (0, used(&block[..])));
    }
}

#[test]
fn superblock_in_a_join() {
    let source = LayerId([0x3c; 16]);
    let (file, name) = ("file".to_owned(), "name".to_owned());
    let above = Joining::Above { result: LayerId([0x3d; 16]), lower: source, file, name };
    let next = VBlock(0x00ab_cdef_0123);
    let parts = [
        above,
        Joining::TakesLower { source, next },
        Joining::GoesUp,
        Joining::TakesUpper { source, next },
        Joining::GoesDown,
    ];
    for (part, joining) in (0u32..).zip(parts) {
        let mut sb = sample_superblock(Parent::None);
        sb.areas.clear();
        sb.sealed = Some(Sealed { name: String::new(), time_ns: 0 });
        sb.joining = Some(joining.clone());
        let block = sb.encode().expect("valid");
        let all = tables();
        // Behind the sealed option, without a name, and no holder.
        let at = compare_superblock(&sb, &block[..], 0) + 1 + 8 + 8 + 1;
        let fields = [("present", 1u8.stored()), ("part", part.stored())];
        let at = compare("joining", &all["joining"], &block[..], at, &fields);
        let end = match joining {
            Joining::Above { .. } => {
                let fields = [
                    ("result", [0x3d; 16].stored()),
                    ("lower", [0x3c; 16].stored()),
                    ("file", "file".stored()),
                    ("name", "name".stored()),
                ];
                compare("joining-above", &all["joining-above"], &block[..], at, &fields)
            }
            Joining::TakesLower { .. } | Joining::TakesUpper { .. } => {
                let fields = [("source", [0x3c; 16].stored()), ("next", next.0.stored())];
                compare("joining-takes", &all["joining-takes"], &block[..], at, &fields)
            }
            Joining::GoesUp | Joining::GoesDown => at,
        };
        assert_eq!(end, used(&block[..]));
    }
}

#[test]
fn superblock_on_a_foreign_base() {
    let hints = PathHints { relative: "r".into(), absolute: "/a".into() };
    let sample = std::array::from_fn(|i| i as u8 + 0x80);
    let parent = Parent::Foreign {
        format: ForeignFormat::Raw,
        size: 0x0001_0203_0405_0607,
        mtime_ns: -0x0102_0304_0506_0708,
        sample,
        hints: hints.clone(),
    };
    let sb = sample_superblock(parent);
    let block = sb.encode().expect("valid");
    let end = compare_superblock(&sb, &block[..], 2);
    let fields = [
        ("format", 0u32.stored()),
        ("size", 0x0001_0203_0405_0607_u64.stored()),
        ("mtime_ns", (-0x0102_0304_0506_0708_i64).stored()),
        ("sample", sample.stored()),
        ("relative", hints.relative.stored()),
        ("absolute", hints.absolute.stored()),
    ];
    let end = compare("parent-foreign", &tables()["parent-foreign"], &block[..], end, &fields);
    assert_eq!(end + 3, used(&block[..]));
}

fn compare_header(block: &[u8], magic: &[u8; 4], level: u16, address: PBlock, generation: u64) {
    let fields = [
        ("magic", magic.stored()),
        ("crc", block[4..8].to_vec()),
        ("length", (used(block) as u32).stored()),
        ("version", 1u16.stored()),
        ("level", level.stored()),
        ("layer", LAYER.0.stored()),
        ("address", address.0.stored()),
        ("generation", generation.stored()),
    ];
    assert_eq!(compare("header", &tables()["header"], block, 0, &fields), 48);
}

#[test]
fn nodes() {
    let all = tables();
    let extents = vec![
        LeafExtent {
            vblock: VBlock(0x12_3456_789a),
            blocks: 2,
            place: Place::Data(PBlock(0x3ab)),
            crc_index: 0,
        },
        LeafExtent { vblock: VBlock(0x12_3456_99aa), blocks: 0x0789_abcd, place: Place::Zero, crc_index: 2 },
    ];
    let leaf = LeafNode { extents, crcs: vec![0x0a0b_0c0d, 0x1a1b_1c1d] };
    let (block, crc) = leaf.encode(LAYER, PBlock(0x55aa), 0x1234_5678_9abc);
    compare_header(&block[..], b"COWN", 0, PBlock(0x55aa), 0x1234_5678_9abc);
    assert_eq!(block[4..8], crc.to_le_bytes());
    let fields = [("base", 0x12_3456_789a_u64.stored()), ("extent_count", 2u64.stored())];
    let end = compare("leaf", &all["leaf"], &block[..], 0, &fields);
    let fields = [("start", 0u32.stored()), ("blocks", 2u16.stored()), ("place", 0x3ab_u64.stored())];
    let end = compare("leaf-extent", &all["leaf-extent"], &block[..], end, &fields);
    let fields = [
        ("start", 0x2110_u32.stored()),
        ("blocks", 0xabcd_u16.stored()),
        ("place", (1 << 60 | 0x0789_u64).stored()),
    ];
    let end = compare("leaf-extent", &all["leaf-extent"], &block[..], end, &fields);
    let crcs = [2u64.stored(), 0x0a0b_0c0d_u32.stored(), 0x1a1b_1c1d_u32.stored()].concat();
    assert_eq!((&block[end..end + 16], end + 16), (&crcs[..], used(&block[..])));

    let child = Child { first: VBlock(0x98_7654_3210), pblock: PBlock(0x200), crc: 0xabcd_ef01 };
    let inner = InnerNode { children: vec![child; 3] };
    let (block, _) = inner.encode(LAYER, PBlock(0x55ab), 77, 0x0908);
    compare_header(&block[..], b"COWN", 0x0908, PBlock(0x55ab), 77);
    let mut end = compare("inner", &all["inner"], &block[..], 0, &[("child_count", 3u64.stored())]);
    for _ in 0..3 {
        let fields = [
            ("first", child.first.0.stored()),
            ("pblock", child.pblock.0.stored()),
            ("crc", child.crc.stored()),
        ];
        end = compare("child", &all["child"], &block[..], end, &fields);
    }
    assert_eq!(end, used(&block[..]));
}

#[test]
fn journal() {
    let all = tables();
    let mut block = [0; 4096];
    let header = JournalBlock { layer: LAYER, epoch: 0x0102_0304_0506_0708, generation: 0x1112_1314 };
    header.encode(PBlock(0x99), &mut block);
    compare_header(&block, b"COWJ", 0, PBlock(0x99), 0x1112_1314);
    assert_eq!(used(&block), 56);
    let fields = [("header", block[..48].to_vec()), ("epoch", header.epoch.stored())];
    let start = compare("journal-block", &all["journal-block"], &block, 0, &fields);

    let (seq, durable) = (Seq(0x2122_2324_2526), Seq(0x2122_2324_2500));
    let unsettled = [3, 0x1234];
    let extents = [
        RecordExtent { vblock: VBlock(0x31_3233_3435), place: Place::Data(PBlock(0x411)), blocks: 1 },
        RecordExtent { vblock: VBlock(0x36_3738_393a), place: Place::Zero, blocks: 0x5152_5354 },
    ];
    let (unsettled, crcs) = (&unsettled[..], &[0x6162_6364][..]);
    let resize = Some(Resize { size: 0x7172_7374_7600, zero_from: VBlock(0x7_1727_3747) });
    let record = RecordRef { seq, durable, unsettled, extents: &extents, crcs, resize };
    let len = encode_record(&record, Salt::new(LAYER, 5), &mut block[start..]).expect("it fits");
    let crc = block[start + 4..start + 8].to_vec();
    let fields = [
        ("length", (len as u32).stored()),
        ("crc", crc),
        ("seq", seq.0.stored()),
        ("durable", durable.0.stored()),
        ("unsettled_count", 2u64.stored()),
    ];
    let end = compare("record", &all["record"], &block, start, &fields);
    let lists = [3u32.stored(), 0x1234_u32.stored(), 3u64.stored()].concat();
    assert_eq!(block[end..end + lists.len()], lists);
    let mut end = end + lists.len();
    for (vblock, place, blocks) in
        [(0x31_3233_3435_u64, 0x411_u64, 1_u32), (0x36_3738_393a, 1 << 60, 0x5152_5354)]
    {
        let fields = [("vblock", vblock.stored()), ("place", place.stored()), ("blocks", blocks.stored())];
        end = compare("record-extent", &all["record-extent"], &block, end, &fields);
    }
    let fields = [
        ("zero_from", 0x7_1727_3747_u64.stored()),
        ("size", (2 << 60 | 0x7172_7374_7600_u64).stored()),
        ("none", 0u32.stored()),
    ];
    end = compare("record-resize", &all["record-resize"], &block, end, &fields);
    let crcs = [1u64.stored(), 0x6162_6364_u32.stored()].concat();
    assert_eq!((&block[end..end + 12], end + 12), (&crcs[..], start + len));
}

#[test]
fn limits_are_the_stated_ones() {
    let known: [(&str, u64); 17] = [
        ("smallest virtual disk, bytes", limits::MIN_DISK_BYTES),
        ("largest virtual disk, bytes", limits::MAX_DISK_BYTES),
        ("vblocks", limits::MAX_DISK_BYTES / BLOCK),
        ("pblocks in a file", limits::MAX_FILE_BLOCKS),
        ("smallest ring, bytes", limits::MIN_JOURNAL_BYTES),
        ("largest ring, bytes", limits::MAX_JOURNAL_BYTES),
        ("record number, generation, epoch", limits::MAX_COUNTER),
        ("levels of a tree", limits::MAX_TREE_HEIGHT.into()),
        ("children of an inner node", INNER_CAPACITY as u64),
        ("blocks of a data extent in a leaf", MAX_EXTENT_BLOCKS.into()),
        ("blocks of a zero extent in a leaf", MAX_ZERO_BLOCKS.into()),
        ("distance of an extent from its leaf's base", MAX_LEAF_START),
        ("unsettled numbers of a record", limits::MAX_UNSETTLED as u64),
        ("layers in a chain", limits::MAX_CHAIN as u64),
        ("path hint, bytes", limits::MAX_PATH_BYTES as u64),
        ("snapshot name, bytes", limits::MAX_NAME_BYTES as u64),
        ("host name or socket path of a holder, bytes", limits::MAX_HOLDER_BYTES as u64),
    ];
    let stated: Vec<(String, u64)> =
        tables()["limits"].iter().map(|r| (r["limit"].clone(), value(&r["value"]))).collect();
    assert_eq!(stated, known.map(|(name, value)| (name.to_owned(), value)));
}

/// `65535`, `2^52` or `2^32 - 1`.
fn value(text: &str) -> u64 {
    let (power, less) = text.split_once(" - ").unwrap_or((text, "0"));
    let number = |t: &str| t.parse::<u64>().unwrap_or_else(|_| panic!("limit {text}"));
    let power = power.split_once('^').map_or_else(|| number(power), |(b, e)| number(b).pow(number(e) as u32));
    power - number(less)
}

#[test]
fn no_table_is_left_unread() {
    let known = [
        "area",
        "child",
        "header",
        "holder",
        "inner",
        "joining",
        "joining-above",
        "joining-takes",
        "journal-block",
        "leaf",
        "leaf-extent",
        "limits",
        "parent-foreign",
        "parent-layer",
        "plain",
        "record",
        "record-extent",
        "record-resize",
        "sealed",
        "superblock",
        "superblock-tail",
    ];
    assert_eq!(tables().into_keys().collect::<Vec<_>>(), known);
}
