//! Which record is the last one that counts, worked out anew from the bytes of a file: rule O2 for images whose
//! requests came one after the other, so that no record lists another one as unsettled.

use std::collections::BTreeMap;

use cowdisk::format::{JournalBlock, Place, Record, Salt, Superblock, decode_records};
use cowdisk::units::{PBlock, Seq};

const BLOCK: usize = 4096;

fn block(bytes: &[u8], at: PBlock) -> Option<&[u8]> {
    let start = usize::try_from(at.0).ok()? * BLOCK;
    bytes.get(start..start + BLOCK)
}

/// Without checksums it has been there since before the record, as the machine has not gone down.
fn data_matches(sb: &Superblock, record: &Record, bytes: &[u8]) -> bool {
    if !sb.checksums.protects() {
        return true;
    }
    let mut crcs = record.crcs.iter();
    let places = record.extents.iter().filter_map(|extent| match extent.place {
        Place::Data(first) => Some((0..u64::from(extent.blocks)).map(move |i| first.plus(i))),
        Place::Zero => None,
    });
    places.flatten().all(|at| block(bytes, at).map(crc32fast::hash).as_ref() == crcs.next())
}

/// The newest record that a reader of `bytes` may apply if `sb` was in force; `None` if it must refuse, because a
/// record that others call durable is missing.
pub fn newest(sb: &Superblock, bytes: &[u8]) -> Option<Seq> {
    let salt = Salt::new(sb.layer, sb.epoch);
    let mut records: BTreeMap<Seq, Record> = BTreeMap::new();
    let ring = sb.ring().filter(|_| sb.holder.is_some());
    for at in ring.iter().flat_map(|ring| (0..ring.blocks).map(|i| ring.first.plus(i))) {
        let Some(block) = block(bytes, at) else { continue };
        let header = JournalBlock::decode(block, at).ok();
        if header.is_some_and(|h| h.layer == sb.layer && h.epoch == sb.epoch) {
            records.extend(decode_records(block, salt).into_iter().map(|r| (r.seq, r)));
        }
    }
    let durable = records.values().map(|r| r.durable).max().unwrap_or_default().max(sb.durable);
    let mut newest = sb.cut;
    while let Some(record) = records.get(&newest.next()) {
        if record.seq > durable && !data_matches(sb, record, bytes) {
            break;
        }
        newest = record.seq;
    }
    (newest >= durable).then_some(newest)
}
