//! The header that every self-contained structure begins with (format-spec.md 2).

use serde::{Deserialize, Serialize};

use super::{FORMAT_VERSION, LayerId, codec};
use crate::error::{Error, Result};
use crate::units::{BLOCK_SIZE, PBlock};

/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = 48;
/// The checksum covers everything behind itself.
const CRC_END: usize = 8;

/// The kind of a structure: its first four bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Magic {
    /// `COWD`, blocks 0 and 1.
    Superblock,
    /// `COWN`, a node of the extent tree.
    Node,
    /// `COWJ`, a block of the journal ring.
    Journal,
}

impl Magic {
    /// The bytes in the file.
    pub const fn bytes(self) -> [u8; 4] {
        match self {
            Magic::Superblock => *b"COWD",
            Magic::Node => *b"COWN",
            Magic::Journal => *b"COWJ",
        }
    }
    /// Its name in errors.
    pub const fn name(self) -> &'static str {
        match self {
            Magic::Superblock => "superblock",
            Magic::Node => "tree node",
            Magic::Journal => "journal block",
        }
    }
    /// Bytes that the checksum seals: a whole block, or of a journal block the part in front of the records.
    const fn sealed_bytes(self) -> usize {
        match self {
            Magic::Superblock | Magic::Node => BLOCK_SIZE,
            Magic::Journal => HEADER_BYTES + 8,
        }
    }
    /// What every checksum of this kind starts from, so that no structure passes for another.
    fn salt(self) -> u32 {
        crc32fast::hash(match self {
            Magic::Superblock => b"cowdisk superblock",
            Magic::Node => b"cowdisk node",
            Magic::Journal => b"cowdisk journal",
        })
    }
}

/// Who a structure says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    magic: [u8; 4],
    crc: u32,
    /// Bytes used, header included.
    length: u32,
    version: u16,
    /// Of a node: its level above the leaves. Otherwise 0.
    pub level: u16,
    /// The layer when the structure was written.
    pub layer: LayerId,
    /// The block of the file it was written to.
    pub address: PBlock,
    /// The superblock generation it was written for.
    pub generation: u64,
}

impl Header {
    /// A header for `magic` at `address`.
    pub fn new(magic: Magic, layer: LayerId, address: PBlock, generation: u64, level: u16) -> Header {
        Header {
            magic: magic.bytes(),
            crc: 0,
            length: 0,
            version: FORMAT_VERSION,
            level,
            layer,
            address,
            generation,
        }
    }

    /// The stored checksum.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// Puts the header in front of the body that stands in `block[48..used]` and seals all of `block` with the
    /// checksum, which it gives back. A superblock or node seals a whole block, a journal header only itself.
    pub(super) fn seal(mut self, magic: Magic, block: &mut [u8], used: usize) -> u32 {
        debug_assert!(used >= HEADER_BYTES && used <= block.len());
        self.length = u32::try_from(used).expect("a structure is within one block");
        let written = codec::encode(&self, block);
        assert_eq!(written, Some(HEADER_BYTES), "a header has a fixed size");
        self.crc = checksum(magic, block);
        block[4..8].copy_from_slice(&self.crc.to_le_bytes());
        self.crc
    }

    /// Verifies `block` (magic, checksum, version, address, padding) and gives header and body.
    pub(super) fn open(magic: Magic, block: &[u8], address: PBlock) -> Result<(Header, &[u8])> {
        let name = magic.name();
        let at = |e: Error| e.offset(address.pos());
        let fail = |what: String| Err(at(Error::corrupt(format!("{name}: {what}"))));
        let Some(head) = block.get(..HEADER_BYTES).filter(|_| block.len() == magic.sealed_bytes()) else {
            return fail("cut off".into());
        };
        let header: Header = codec::decode(head, name).map_err(at)?;
        if header.magic != magic.bytes() {
            return fail(format!("magic is {:02x?}, not {:02x?}", header.magic, magic.bytes()));
        }
        let sum = checksum(magic, block);
        if header.crc != sum {
            return fail(format!("checksum is {sum:08x}, stored {:08x}", header.crc));
        }
        if header.version != FORMAT_VERSION {
            let text =
                format!("{name}: format version {} (this program knows {FORMAT_VERSION})", header.version);
            return Err(at(Error::new(crate::Kind::Unsupported, text)));
        }
        if header.address != address {
            return fail(format!(
                "it was written for block {}, found in block {}",
                header.address.0, address.0
            ));
        }
        if header.level != 0 && magic != Magic::Node {
            return fail(format!("level {}", header.level));
        }
        let used = header.length as usize;
        let Some(body) = block.get(HEADER_BYTES..used) else {
            return fail(format!("length {used} is out of range"));
        };
        if block.get(used..).is_none_or(|rest| rest.iter().any(|&b| b != 0)) {
            return fail("bytes behind its end are not zero".into());
        }
        Ok((header, body))
    }
}

pub(super) fn checksum(magic: Magic, block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(magic.salt());
    hasher.update(block.get(CRC_END..).unwrap_or_default());
    hasher.finalize()
}

/// A block to encode into.
pub(super) fn empty_block() -> Box<[u8; BLOCK_SIZE]> {
    Box::new([0; BLOCK_SIZE])
}
