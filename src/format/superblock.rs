//! The superblock (format-spec.md 3): two slots, the valid one with the higher generation wins.

use serde::{Deserialize, Serialize};

use super::header::{HEADER_BYTES, Header, Magic, empty_block};
use super::{BootId, DiskId, FORMAT_VERSION, Joining, LayerId, codec};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::units::{BLOCK, BLOCK_SIZE, PBlock, SECTOR, Seq, blocks_for};

/// Data blocks have no checksums: [`ChecksumKind::None`].
pub const INCOMPAT_NO_CHECKSUMS: u64 = 1 << 0;
/// Incompatible features this version knows; a file with any other bit is refused.
pub const FEATURES_INCOMPAT: u64 = INCOMPAT_NO_CHECKSUMS;
/// Features without which a file may still be read; with any other bit it is opened read-only.
pub const FEATURES_RO_COMPAT: u64 = 0;
/// Features that may be ignored.
pub const FEATURES_COMPAT: u64 = 0;

/// Blocks of the file that hold the two slots.
const SLOTS: u64 = 2;

/// How data blocks are protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ChecksumKind {
    /// CRC-32 (IEEE) of each 4 KiB block, kept in the map.
    Crc32,
    /// Not at all. What the data of a record is worth after a crash then follows from whether the kernel that it was
    /// written under still runs (O2).
    None {
        /// The boot that the layer was last opened for writing in.
        boot: BootId,
    },
}

impl ChecksumKind {
    /// True if each data block has a checksum in the map.
    pub fn protects(self) -> bool {
        self == ChecksumKind::Crc32
    }
}

/// A run of blocks in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Area {
    /// First block.
    pub first: PBlock,
    /// Number of blocks.
    pub blocks: u64,
}

/// The extent tree's root. Its checksum names the whole content of the layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TreeRoot {
    /// The root node; 0 in an empty tree.
    pub pblock: PBlock,
    /// The root node's checksum; 0 in an empty tree.
    pub crc: u32,
    /// Levels: 0 an empty tree, 1 a leaf as root.
    pub height: u32,
}

/// Where to look for a parent. Hints only find, identity decides.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PathHints {
    /// Path relative to the child's directory; may be empty.
    pub relative: String,
    /// Absolute path; may be empty.
    pub absolute: String,
}

/// Format of a base that is not ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ForeignFormat {
    /// A raw disk image.
    Raw,
}

/// What a layer stands on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Parent {
    /// Nothing: holes read as zeros.
    None,
    /// Another layer.
    Layer {
        /// Its identity.
        layer: LayerId,
        /// The checksum of its tree root, once it is sealed.
        root_crc: Option<u32>,
        /// Where it was.
        hints: PathHints,
    },
    /// A file of another format.
    Foreign {
        /// Its format, as the user named it.
        format: ForeignFormat,
        /// Its size in bytes.
        size: u64,
        /// Its modification time, nanoseconds since 1970.
        mtime_ns: i64,
        /// SHA-256 over 16 sampled blocks (format-spec.md 3.2).
        sample: [u8; 32],
        /// Where it was.
        hints: PathHints,
    },
}

/// What a sealed layer says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sealed {
    /// The snapshot's name; empty for a layer without one.
    pub name: String,
    /// When it was taken, nanoseconds since 1970.
    pub time_ns: i64,
}

/// Who has the image open for writing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its host's name.
    pub host: String,
    /// Its control socket; may be empty.
    pub socket: String,
}

/// The decoded superblock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Superblock {
    /// Identity of the layer; stands in the header.
    #[serde(skip)]
    pub layer: LayerId,
    /// Counter of superblock writes; stands in the header.
    #[serde(skip)]
    pub generation: u64,
    /// Bits of [`FEATURES_INCOMPAT`].
    pub incompat: u64,
    /// Bits of [`FEATURES_RO_COMPAT`].
    pub ro_compat: u64,
    /// Bits of [`FEATURES_COMPAT`].
    pub compat: u64,
    /// 4096.
    pub block_size: u32,
    /// Logical sector size: 512 or 4096.
    pub sector_size: u32,
    /// Protection of data blocks.
    pub checksums: ChecksumKind,
    /// Identity of the disk.
    pub disk: DiskId,
    /// Size of the virtual disk in bytes; a multiple of the sector size.
    pub virtual_size: u64,
    /// When the layer was made, nanoseconds since 1970.
    pub created_ns: i64,
    /// Inode of the file when it was last opened for writing: a copy has another one.
    pub inode: u64,
    /// Counter of openings for writing; salts journal records.
    pub epoch: u64,
    /// First block of data and nodes; everything in front of it is superblock and journal.
    pub block_area: PBlock,
    /// The journal: one area, or none in a sealed layer.
    pub areas: Vec<Area>,
    /// The extent tree.
    pub root: TreeRoot,
    /// Every record up to this number is in the tree.
    pub cut: Seq,
    /// Every record up to this number was durable when this was written.
    pub durable: Seq,
    /// Blocks from here on have never been allocated. Never lowered.
    pub high_water: PBlock,
    /// What it stands on.
    pub parent: Parent,
    /// Set when the layer is immutable.
    pub sealed: Option<Sealed>,
    /// Set while the layer is open for writing; still set after a crash.
    pub holder: Option<Holder>,
    /// Set while the layer takes part in a join.
    pub joining: Option<Joining>,
}

impl Superblock {
    /// The slot that a generation is written to.
    pub fn slot(generation: u64) -> PBlock {
        PBlock(generation % SLOTS)
    }

    /// First block behind superblock slots and a ring of `journal` bytes.
    pub fn block_area_for(journal: u64) -> PBlock {
        PBlock(SLOTS + blocks_for(journal))
    }

    /// The journal ring.
    pub fn ring(&self) -> Option<Area> {
        self.areas.first().copied()
    }

    /// The block for slot `self.generation % 2`.
    ///
    /// # Errors
    /// [`Kind::BadName`] if a path or name cannot be stored, or all together do not fit a block; `Corrupt` if
    /// [`Superblock::decode`] would refuse it, so that such a one never reaches a disk.
    pub fn encode(&self) -> Result<Box<[u8; BLOCK_SIZE]>> {
        self.check_texts().map_err(|what| Error::new(Kind::BadName, format!("superblock: {what}")))?;
        self.check()?;
        let mut block = empty_block();
        let body = codec::encode(self, &mut block[HEADER_BYTES..]);
        let used =
            body.ok_or_else(|| Error::new(Kind::BadName, "names and paths do not fit the superblock"))?;
        let address = Superblock::slot(self.generation);
        let header = Header::new(Magic::Superblock, self.layer, address, self.generation, 0);
        header.seal(Magic::Superblock, &mut block[..], HEADER_BYTES + used);
        Ok(block)
    }

    /// Verifies and decodes slot `address` (0 or 1).
    pub fn decode(block: &[u8], address: PBlock) -> Result<Superblock> {
        let (header, body) = Header::open(Magic::Superblock, block, address)?;
        // Feature bits come first in the body, so that a file of a later version is refused by their number and
        // not by a field it has and we do not know.
        check_features(body).map_err(|e| e.offset(address.pos()))?;
        let mut sb: Superblock = codec::decode(body, "superblock").map_err(|e| e.offset(address.pos()))?;
        sb.layer = header.layer;
        sb.generation = header.generation;
        sb.check().map_err(|e| e.offset(address.pos()))?;
        if Superblock::slot(sb.generation) != address {
            let text =
                format!("superblock: generation {} does not belong into slot {}", sb.generation, address.0);
            return Err(Error::corrupt(text).offset(address.pos()));
        }
        Ok(sb)
    }

    fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::corrupt(format!("superblock: {what}")));
        if self.block_size as usize != BLOCK_SIZE {
            return bad(format!("block_size {} (only {BLOCK_SIZE} exists)", self.block_size));
        }
        if !matches!(self.sector_size, 512 | 4096) {
            return bad(format!("sector_size {}", self.sector_size));
        }
        if !limits::is_disk_size(self.virtual_size, self.sector_size.into()) {
            return bad(format!("virtual_size {}", self.virtual_size));
        }
        let counters = [
            ("generation", self.generation),
            ("epoch", self.epoch),
            ("cut", self.cut.0),
            ("durable_seq", self.durable.0),
        ];
        if let Some((name, value)) = counters.into_iter().find(|c| c.1 > limits::MAX_COUNTER) {
            return bad(format!("{name} {value}"));
        }
        if self.durable < self.cut {
            return bad(format!("durable_seq {} below cut {}", self.durable.0, self.cut.0));
        }
        if (self.incompat & INCOMPAT_NO_CHECKSUMS == 0) != self.checksums.protects() {
            return bad(format!(
                "checksums {:?} with incompatible features {:#x}",
                self.checksums, self.incompat
            ));
        }
        self.check_places().or_else(bad)?;
        self.check_texts().or_else(bad)
    }

    fn check_places(&self) -> std::result::Result<(), String> {
        // Version 1 knows one area in an unsealed layer and none in a sealed one.
        if self.areas.len() != usize::from(self.sealed.is_none()) {
            return Err(format!("{} record areas", self.areas.len()));
        }
        if self.block_area.0 < SLOTS || self.block_area.0 > SLOTS + blocks_for(limits::MAX_JOURNAL_BYTES) {
            return Err(format!("block_area {}", self.block_area.0));
        }
        for area in &self.areas {
            let end = area.first.0.checked_add(area.blocks);
            if area.first.0 < SLOTS
                || area.blocks < blocks_for(limits::MIN_JOURNAL_BYTES)
                || end.is_none_or(|end| end > self.block_area.0)
            {
                return Err(format!("record area {} + {}", area.first.0, area.blocks));
            }
        }
        if self.high_water < self.block_area || self.high_water.0 > limits::MAX_FILE_BLOCKS {
            return Err(format!("high_water {}", self.high_water.0));
        }
        let root = &self.root;
        let good = match root.height {
            0 => root.pblock.0 == 0 && root.crc == 0,
            h => {
                h <= u32::from(limits::MAX_TREE_HEIGHT)
                    && root.pblock >= self.block_area
                    && root.pblock < self.high_water
            }
        };
        if good { Ok(()) } else { Err(format!("root {} height {}", root.pblock.0, root.height)) }
    }

    fn check_texts(&self) -> std::result::Result<(), String> {
        let hints = match &self.parent {
            Parent::None => None,
            Parent::Layer { hints, .. } => Some(hints),
            Parent::Foreign { hints, size, .. } => {
                if *size > limits::MAX_DISK_BYTES {
                    return Err(format!("base size {size}"));
                }
                Some(hints)
            }
        };
        for text in hints.into_iter().flat_map(|h| [&h.relative, &h.absolute]) {
            if text.len() > limits::MAX_PATH_BYTES || text.contains('\0') {
                return Err("parent path is too long or holds a zero byte".into());
            }
        }
        if let Some(sealed) = &self.sealed
            && !sealed.name.is_empty()
            && !valid_snapshot_name(&sealed.name)
        {
            return Err(format!(
                "snapshot name {:?} is too long or has characters that are not allowed",
                sealed.name
            ));
        }
        let long = |text: &String| text.len() > limits::MAX_HOLDER_BYTES;
        if self.holder.as_ref().is_some_and(|h| long(&h.host) || long(&h.socket)) {
            return Err("holder is too long".into());
        }
        self.check_joining()
    }

    fn check_joining(&self) -> std::result::Result<(), String> {
        match &self.joining {
            None => Ok(()),
            // Whoever goes, or takes from its child, is immutable but for the join.
            Some(joining)
                if self.sealed.is_none()
                    && !matches!(joining, Joining::Above { .. } | Joining::TakesLower { .. }) =>
            {
                Err("a layer that is not sealed cannot take this part in a join".into())
            }
            Some(joining) => joining.check(),
        }
    }

    /// True if this program may not write to the layer: it has read-only compatible features unknown here.
    pub fn forces_read_only(&self) -> bool {
        self.ro_compat & !FEATURES_RO_COMPAT != 0
    }

    /// A superblock for a new, empty layer at generation 1.
    pub fn new_layer(
        layer: LayerId,
        disk: DiskId,
        virtual_size: u64,
        sector_size: u32,
        journal: u64,
    ) -> Superblock {
        let block_area = Superblock::block_area_for(journal);
        Superblock {
            layer,
            generation: 1,
            incompat: 0,
            ro_compat: 0,
            compat: 0,
            block_size: BLOCK_SIZE as u32,
            sector_size,
            checksums: ChecksumKind::Crc32,
            disk,
            virtual_size,
            created_ns: 0,
            inode: 0,
            epoch: 0,
            block_area,
            areas: vec![Area { first: PBlock(SLOTS), blocks: blocks_for(journal) }],
            root: TreeRoot::default(),
            cut: Seq(0),
            durable: Seq(0),
            high_water: block_area,
            parent: Parent::None,
            sealed: None,
            holder: None,
            joining: None,
        }
    }

    /// Takes the checksums away from the data of a layer that has none yet.
    pub fn without_checksums(&mut self) {
        self.incompat |= INCOMPAT_NO_CHECKSUMS;
        self.checksums = ChecksumKind::None { boot: BootId::default() };
    }

    /// Blocks of the virtual disk, the last one perhaps partly outside of it.
    pub fn virtual_blocks(&self) -> u64 {
        blocks_for(self.virtual_size)
    }
}

/// True if a snapshot may be called `name`: it is part of a file's name and of `IMAGE@NAME`.
pub fn valid_snapshot_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= limits::MAX_NAME_BYTES
        && !name.starts_with(['.', '-', '~'])
        && !name.chars().any(|c| c == '/' || c == '@' || c.is_control())
}

fn check_features(body: &[u8]) -> Result<()> {
    let bits = body.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).unwrap_or_default();
    let unknown = bits & !FEATURES_INCOMPAT;
    if unknown == 0 {
        return Ok(());
    }
    let numbers: Vec<String> = (0..64).filter(|n| unknown >> n & 1 == 1).map(|n| n.to_string()).collect();
    let text = format!(
        "superblock: incompatible features {} are unknown to format version {FORMAT_VERSION} of this program",
        numbers.join(", ")
    );
    Err(Error::new(Kind::Unsupported, text))
}

const _: () = assert!(BLOCK.is_multiple_of(SECTOR));
