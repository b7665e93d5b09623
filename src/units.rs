//! Units as types: sectors, bytes and blocks never meet without a named conversion.
//!
//! A *sector* is 512 bytes whatever the disk's logical sector size (it appears only in the ublk interface); a
//! *block* is 4 KiB, the unit of mapping, checksums and copy-on-write. A [`VBlock`] is a block of the virtual
//! disk, a [`PBlock`] one of a layer file (file offset / 4096). Everything else is bytes.

use serde::{Deserialize, Serialize};

/// Bytes in a block.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] for arithmetic on positions.
pub const BLOCK: u64 = BLOCK_SIZE as u64;
/// Bytes in a sector of the ublk interface.
pub const SECTOR: u64 = 512;
/// Blocks in a span, the unit in which a chain is resolved and cached: 512 KiB.
pub const SPAN_BLOCKS: u64 = 128;

/// A block of the virtual disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct VBlock(pub u64);

/// A block of a layer file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct PBlock(pub u64);

/// The number of a journal record; numbers grow by one for each record formed, across all queues.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Seq(pub u64);

/// A span of the virtual disk: blocks `[128 * n, 128 * (n + 1))`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Span(pub u64);

impl VBlock {
    /// The block that holds byte `pos`.
    pub const fn holding(pos: u64) -> VBlock {
        VBlock(pos / BLOCK)
    }
    /// First byte of the block.
    pub const fn pos(self) -> u64 {
        self.0 * BLOCK
    }
    /// The span that the block lies in.
    pub const fn span(self) -> Span {
        Span(self.0 / SPAN_BLOCKS)
    }
    /// Index of the block within its span, `0..128`.
    pub const fn in_span(self) -> u8 {
        (self.0 % SPAN_BLOCKS) as u8
    }
    /// The block `blocks` further on.
    pub const fn plus(self, blocks: u64) -> VBlock {
        VBlock(self.0 + blocks)
    }
}

impl PBlock {
    /// First byte of the block in the layer file.
    pub const fn pos(self) -> u64 {
        self.0 * BLOCK
    }
    /// The block `blocks` further on.
    pub const fn plus(self, blocks: u64) -> PBlock {
        PBlock(self.0 + blocks)
    }
}

impl Seq {
    /// The next number.
    pub const fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl Span {
    /// First block of the span.
    pub const fn first(self) -> VBlock {
        VBlock(self.0 * SPAN_BLOCKS)
    }
}

/// Blocks needed to hold `bytes`.
pub const fn blocks_for(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK)
}

/// True if `pos` and `len` both lie on block borders.
pub const fn block_aligned(pos: u64, len: u64) -> bool {
    pos.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_meet_at_the_borders() {
        assert_eq!(VBlock::holding(4095), VBlock(0));
        assert_eq!(VBlock::holding(4096), VBlock(1));
        assert_eq!(VBlock(127).span(), Span(0));
        assert_eq!(VBlock(128).span(), Span(1));
        assert_eq!(VBlock(129).in_span(), 1);
        assert_eq!(Span(3).first(), VBlock(384));
        assert_eq!(blocks_for(1), 1);
        assert_eq!(blocks_for(4096), 1);
        assert_eq!(blocks_for(4097), 2);
        assert!(block_aligned(8192, 4096));
        assert!(!block_aligned(512, 4096));
    }
}
