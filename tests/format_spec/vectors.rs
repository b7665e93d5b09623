//! Each vector: its values encode to exactly its bytes, and its bytes decode to its values.

use cowdisk::format::{
    Area, BootId, ChecksumKind, Child, DiskId, ForeignFormat, Holder, InnerNode, Joining, JournalBlock,
    LayerId, LeafExtent, LeafNode, Parent, PathHints, Place, RecordExtent, RecordRef, Resize, Salt, Sealed,
    Superblock, TreeRoot, decode_records, encode_record,
};
use cowdisk::units::{PBlock, Seq, VBlock};

use super::doc::{Vector, dump, vector_texts};
use super::values::Values;

const NAMES: [&str; 14] = [
    "salts",
    "header",
    "superblock-new",
    "superblock-full",
    "superblock-foreign",
    "superblock-plain",
    "superblock-joining",
    "leaf",
    "inner",
    "journal-block",
    "record",
    "record-resize",
    "sample-small",
    "sample-large",
];

/// A bytewise CRC-32 from the document's words, independent of the code's.
fn crc32(parts: &[&[u8]]) -> u32 {
    let mut crc = 0xffff_ffff_u32;
    for byte in parts.concat() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    crc ^ 0xffff_ffff
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, stated: &T) -> Result<(), String> {
    if found == stated {
        Ok(())
    } else {
        Err(format!("{what}: the code gives\n{found:#?}\nthe document\n{stated:#?}"))
    }
}

fn same_bytes(found: &[u8], stated: &[u8]) -> Result<(), String> {
    if found == stated { Ok(()) } else { Err(format!("the code writes\n{}", dump(found))) }
}

fn check(vector: &Vector) -> Result<(), String> {
    let values = Values::new(&vector.values)?;
    let v = &values;
    let bytes = &vector.bytes;
    match vector.name.as_str() {
        "salts" => salts(v)?,
        "header" => header(v, bytes)?,
        "leaf" => leaf(v, bytes)?,
        "inner" => inner(v, bytes)?,
        "journal-block" => journal_block(v, bytes)?,
        "record" | "record-resize" => record(v, bytes)?,
        "sample-small" | "sample-large" => sample(v)?,
        name if name.starts_with("superblock-") => superblock(v, bytes)?,
        name => return Err(format!("unknown vector {name}")),
    }
    values.all_used()
}

fn salts(v: &Values) -> Result<(), String> {
    for kind in ["superblock", "node", "journal"] {
        same(kind, &crc32(&[format!("cowdisk {kind}").as_bytes()]), &v.num(kind)?)?;
    }
    let (layer, epoch) = (v.hex::<16>("layer")?, v.num::<u64>("epoch")?);
    same("record", &crc32(&[b"cowdisk record", &layer, &epoch.to_le_bytes()]), &v.num("record")?)?;
    same("check value", &crc32(&[b"123456789"]), &v.num("check value")?)
}

fn superblock(v: &Values, bytes: &[u8]) -> Result<(), String> {
    let hints = || -> Result<PathHints, String> {
        Ok(PathHints { relative: v.quoted("parent relative")?, absolute: v.quoted("parent absolute")? })
    };
    let parent = match v.text("parent")?.as_str() {
        "none" => Parent::None,
        "layer" => Parent::Layer {
            layer: LayerId(v.hex("parent layer")?),
            root_crc: if v.has("parent root_crc") { Some(v.num("parent root_crc")?) } else { None },
            hints: hints()?,
        },
        "foreign, raw" => Parent::Foreign {
            format: ForeignFormat::Raw,
            size: v.num("parent size")?,
            mtime_ns: v.num("parent mtime_ns")?,
            sample: v.hex("parent sample")?,
            hints: hints()?,
        },
        other => return Err(format!("parent {other}")),
    };
    let sealed = match v.has("sealed name") {
        true => Some(Sealed { name: v.quoted("sealed name")?, time_ns: v.num("sealed time_ns")? }),
        false => None,
    };
    let holder = match v.has("holder pid") {
        true => Some(Holder {
            pid: v.num("holder pid")?,
            host: v.quoted("holder host")?,
            socket: v.quoted("holder socket")?,
        }),
        false => None,
    };
    let joining = match v.has("joining") {
        true => Some(joining(v)?),
        false => None,
    };
    let mut areas = Vec::new();
    if v.has("area first") {
        areas.push(Area { first: PBlock(v.num("area first")?), blocks: v.num("area blocks")? });
    }
    // Whatever `new_layer` sets is set again here, from the document.
    let mut sb = Superblock::new_layer(LayerId([0; 16]), DiskId([0; 16]), 512, 512, 1 << 20);
    sb.layer = LayerId(v.hex("layer")?);
    sb.generation = v.num("generation")?;
    (sb.incompat, sb.ro_compat, sb.compat) = (v.num("incompat")?, v.num("ro_compat")?, v.num("compat")?);
    (sb.block_size, sb.sector_size) = (v.num("block_size")?, v.num("sector_size")?);
    sb.disk = DiskId(v.hex("disk")?);
    (sb.virtual_size, sb.created_ns) = (v.num("virtual_size")?, v.num("created_ns")?);
    (sb.inode, sb.epoch) = (v.num("inode")?, v.num("epoch")?);
    (sb.block_area, sb.areas) = (PBlock(v.num("block_area")?), areas);
    let pblock = PBlock(v.num("root_pblock")?);
    sb.root = TreeRoot { pblock, crc: v.num("root_crc")?, height: v.num("root_height")? };
    (sb.cut, sb.durable) = (Seq(v.num("cut")?), Seq(v.num("durable")?));
    sb.high_water = PBlock(v.num("high_water")?);
    (sb.parent, sb.sealed, sb.holder, sb.joining) = (parent, sealed, holder, joining);
    sb.checksums = match v.text("checksums")?.as_str() {
        "crc32" => ChecksumKind::Crc32,
        "none" => ChecksumKind::None { boot: BootId(v.hex("boot")?) },
        other => return Err(format!("checksums {other}")),
    };
    let encoded = sb.encode().map_err(|e| e.to_string())?;
    same_bytes(&encoded[..], bytes)?;
    sealed_with("superblock", bytes, 4096)?;
    let decoded = Superblock::decode(bytes, Superblock::slot(sb.generation)).map_err(|e| e.to_string())?;
    same("superblock", &decoded, &sb)
}

fn joining(v: &Values) -> Result<Joining, String> {
    same("joining", &v.text("joining")?.as_str(), &"above")?;
    Ok(Joining::Above {
        result: LayerId(v.hex("joining result")?),
        lower: LayerId(v.hex("joining lower")?),
        file: v.quoted("joining file")?,
        name: v.quoted("joining name")?,
    })
}

/// The checksum in `bytes` is the one of section 1.3.
fn sealed_with(kind: &str, bytes: &[u8], end: usize) -> Result<(), String> {
    let stored = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
    same("checksum", &crc32(&[format!("cowdisk {kind}").as_bytes(), &bytes[8..end]]), &stored)
}

/// The header of the vector `inner`.
fn header(v: &Values, bytes: &[u8]) -> Result<(), String> {
    let text = vector_texts().into_iter().find(|(name, _)| name == "inner").expect("there is one").1;
    same_bytes(&Vector::parse("inner", &text)?.bytes[..48], bytes)?;
    let mut expected = v.quoted("magic")?.into_bytes();
    expected.extend(v.num::<u32>("crc")?.to_le_bytes());
    expected.extend(v.num::<u32>("length")?.to_le_bytes());
    expected.extend(v.num::<u16>("version")?.to_le_bytes());
    expected.extend(v.num::<u16>("level")?.to_le_bytes());
    expected.extend(v.hex::<16>("layer")?);
    expected.extend(v.num::<u64>("address")?.to_le_bytes());
    expected.extend(v.num::<u64>("generation")?.to_le_bytes());
    same_bytes(&expected, bytes)
}

fn leaf(v: &Values, bytes: &[u8]) -> Result<(), String> {
    let (layer, address, generation) =
        (LayerId(v.hex("layer")?), PBlock(v.num("address")?), v.num("generation")?);
    let mut node = LeafNode::default();
    for e in v.extents()? {
        let data = matches!(e.place, Place::Data(_));
        same("checksums of an extent", &e.crcs.len(), &if data { e.blocks as usize } else { 0 })?;
        let crc_index = node.crcs.len() as u32;
        node.extents.push(LeafExtent { vblock: e.vblock, blocks: e.blocks, place: e.place, crc_index });
        node.crcs.extend(e.crcs);
    }
    if !node.extents.is_sorted_by_key(|e| e.vblock) {
        return Err("the extents are not in order".into());
    }
    let range = VBlock(v.num("range start")?)..VBlock(v.num("range end")?);
    let (block, crc) = node.encode(layer, address, generation);
    same_bytes(&block[..], bytes)?;
    sealed_with("node", bytes, 4096)?;
    let (decoded, header) = LeafNode::decode(bytes, address, range.clone()).map_err(|e| e.to_string())?;
    same("leaf", &decoded, &node)?;
    same("crc", &header.crc(), &crc)?;
    same("layer", &(header.layer, header.generation, header.level), &(layer, generation, 0))?;
    // The range is stated as tight as it can be.
    for tighter in [range.start.plus(1)..range.end, range.start..VBlock(range.end.0 - 1)] {
        if LeafNode::decode(bytes, address, tighter).is_ok() {
            return Err("the range is wider than the extents".into());
        }
    }
    Ok(())
}

fn inner(v: &Values, bytes: &[u8]) -> Result<(), String> {
    let (layer, address, generation) =
        (LayerId(v.hex("layer")?), PBlock(v.num("address")?), v.num("generation")?);
    let level = v.num("level")?;
    let mut node = InnerNode::default();
    while v.has(&format!("child {}", node.children.len())) {
        let [first, pblock, crc] = v.list::<u64>(&format!("child {}", node.children.len()))?[..] else {
            return Err("a child is three numbers".into());
        };
        let crc = u32::try_from(crc).map_err(|e| e.to_string())?;
        node.children.push(Child { first: VBlock(first), pblock: PBlock(pblock), crc });
    }
    let (block, crc) = node.encode(layer, address, generation, level);
    same_bytes(&block[..], bytes)?;
    sealed_with("node", bytes, 4096)?;
    let whole = VBlock(0)..VBlock(1 << 40);
    let (decoded, header) = InnerNode::decode(bytes, address, level, whole).map_err(|e| e.to_string())?;
    same("inner node", &decoded, &node)?;
    same("header", &(header.crc(), header.layer, header.generation), &(crc, layer, generation))
}

fn journal_block(v: &Values, bytes: &[u8]) -> Result<(), String> {
    let address = PBlock(v.num("address")?);
    let header = JournalBlock {
        layer: LayerId(v.hex("layer")?),
        generation: v.num("generation")?,
        epoch: v.num("epoch")?,
    };
    let mut block = [0; 4096];
    header.encode(address, &mut block);
    same_bytes(&block[..56], bytes)?;
    sealed_with("journal", bytes, 56)?;
    block[56..].fill(0xee);
    let decoded = JournalBlock::decode(&block, address).map_err(|e| e.to_string())?;
    same("journal block", &decoded, &header)
}

fn record(v: &Values, bytes: &[u8]) -> Result<(), String> {
    let (layer, epoch) = (v.hex("layer")?, v.num::<u64>("epoch")?);
    let salt = Salt::new(LayerId(layer), epoch);
    let mut extents = Vec::new();
    let mut crcs: Vec<u32> = Vec::new();
    for e in v.extents()? {
        let data = matches!(e.place, Place::Data(_));
        same("checksums of an extent", &e.crcs.len(), &if data { e.blocks as usize } else { 0 })?;
        extents.push(RecordExtent { vblock: e.vblock, place: e.place, blocks: e.blocks });
        crcs.extend(e.crcs);
    }
    let seq = v.num::<u64>("seq")?;
    let unsettled = v.list::<u64>("unsettled")?;
    let unsettled: Option<Vec<u32>> =
        unsettled.iter().map(|u| seq.checked_sub(*u).and_then(|d| u32::try_from(d).ok())).collect();
    let unsettled = unsettled.ok_or("an unsettled number above the record's")?;
    let durable = Seq(v.num("durable")?);
    let resize = match v.has("resize size") {
        true => Some(Resize { size: v.num("resize size")?, zero_from: VBlock(v.num("resize zero_from")?) }),
        false => None,
    };
    let record =
        RecordRef { seq: Seq(seq), durable, unsettled: &unsettled, extents: &extents, crcs: &crcs, resize };
    let mut block = [0; 4096];
    let len = encode_record(&record, salt, &mut block[56..]).ok_or("the record does not fit")?;
    same_bytes(&block[56..56 + len], bytes)?;
    let stored = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
    let body_len = (bytes.len() as u64 - 8).to_le_bytes();
    let sum = crc32(&[b"cowdisk record", &layer, &epoch.to_le_bytes(), &body_len, &bytes[8..]]);
    same("checksum", &sum, &stored)?;
    let [decoded] = &decode_records(&block, salt)[..] else {
        return Err("the record does not decode".into());
    };
    same("numbers", &(decoded.seq, decoded.durable), &(record.seq, record.durable))?;
    same("unsettled", &decoded.unsettled, &unsettled)?;
    same("extents", &decoded.extents, &extents)?;
    same("checksums", &decoded.crcs, &crcs)?;
    same("resize", &decoded.resize, &resize)
}

/// Section 3.2 on a file whose byte i is (i + i / 4096) mod 251.
fn sample(v: &Values) -> Result<(), String> {
    use sha2::Digest;
    same("content", &v.text("byte i")?.as_str(), &"(i + i / 4096) mod 251")?;
    let size = v.num::<u64>("size")?;
    let blocks = size.div_ceil(4096);
    let numbers: Vec<u64> =
        if blocks <= 16 { (0..blocks).collect() } else { (0..16).map(|i| i * (blocks - 1) / 15).collect() };
    same("blocks", &numbers, &v.list("blocks")?)?;
    let mut hash = sha2::Sha256::new();
    for number in numbers {
        hash.update(number.to_le_bytes());
        let bytes = number * 4096..size.min((number + 1) * 4096);
        hash.update(bytes.map(|i| ((i + i / 4096) % 251) as u8).collect::<Vec<u8>>());
    }
    hash.update(size.to_le_bytes());
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    same("sha-256", &hex, &v.text("sample")?)
}

#[test]
fn every_vector_agrees_with_the_code() {
    let texts = vector_texts();
    let names: Vec<&str> = texts.iter().map(|(name, _)| name.as_str()).collect();
    let mut failed = String::new();
    for (name, text) in &texts {
        if let Err(e) = Vector::parse(name, text).and_then(|v| check(&v)) {
            failed.push_str(&format!("\n{name}: {e}\n"));
        }
    }
    assert!(failed.is_empty(), "{failed}");
    assert_eq!(names, NAMES);
}

/// The test above can fail: no character of a value or of a byte can be changed without it.
#[test]
fn no_character_of_a_vector_is_idle() {
    let mut changed = 0;
    for (name, text) in vector_texts() {
        let mut in_value = true;
        for (at, c) in text.char_indices() {
            match c {
                '=' => in_value = true,
                '\n' => in_value = text[at..].starts_with("\n0") || text[at..].starts_with("\n--"),
                _ => {}
            }
            if !in_value || !c.is_ascii_hexdigit() {
                continue;
            }
            let other = if c == '1' { '2' } else { '1' };
            let mut text = text.clone();
            text.replace_range(at..at + 1, &other.to_string());
            let result = Vector::parse(&name, &text).and_then(|v| check(&v));
            assert!(result.is_err(), "{name}: '{c}' at {at} may as well be '{other}'");
            changed += 1;
        }
    }
    assert!(changed > 3000, "only {changed} characters");
}
