//! For tests and fuzz targets: checksums made good again after damage, so that what lies behind them is reached.

use super::LayerId;
use super::header::{HEADER_BYTES, Magic, checksum};
use super::record::{JOURNAL_HEADER_BYTES, Salt};
use crate::units::BLOCK_SIZE;

/// Makes the checksums of a block match its content, if it begins with one of our magics. Journal records are
/// sealed for the layer and epoch that the block's header names.
pub fn reseal(block: &mut [u8]) {
    if block.len() != BLOCK_SIZE {
        return;
    }
    let magic =
        [Magic::Superblock, Magic::Node, Magic::Journal].into_iter().find(|m| block.starts_with(&m.bytes()));
    match magic {
        None => {}
        Some(Magic::Journal) => {
            reseal_records(block);
            seal(Magic::Journal, &mut block[..JOURNAL_HEADER_BYTES]);
        }
        Some(magic) => seal(magic, block),
    }
}

fn seal(magic: Magic, bytes: &mut [u8]) {
    let crc = checksum(magic, bytes);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn reseal_records(block: &mut [u8]) {
    let mut layer = [0; 16];
    layer.copy_from_slice(&block[16..32]);
    let epoch = u64::from_le_bytes(*block[HEADER_BYTES..].first_chunk().expect("the block is longer"));
    let salt = Salt::new(LayerId(layer), epoch);
    let mut at = JOURNAL_HEADER_BYTES;
    while let Some(len) = block[at..].first_chunk::<4>().map(|b| u32::from_le_bytes(*b) as usize) {
        if len < 8 || at + len > block.len() {
            return;
        }
        let crc = salt.checksum(&block[at + 8..at + len]);
        block[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        at += len;
    }
}
