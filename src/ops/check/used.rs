//! Which blocks of a file are in use: to find those that are used twice, in bounded memory whatever a file claims.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::space::Bitmap;

/// Blocks of one chunk: 128 MiB of file, at most 4 KiB of memory.
const CHUNK: u64 = 32_768;
/// Chunks that are kept: 160 MiB of memory, 5 TiB of file if every part of it is partly used.
const MAX_CHUNKS: usize = 40_000;

/// A set of blocks.
#[derive(Debug, Default)]
pub(super) struct Used {
    chunks: BTreeMap<u64, Bitmap>,
    full: bool,
}

impl Used {
    /// Adds blocks; `false` if one of them was there.
    pub(super) fn insert(&mut self, blocks: Range<u64>) -> bool {
        let mut all_new = true;
        let mut next = blocks.start;
        while next < blocks.end {
            let (chunk, first) = (next / CHUNK, next % CHUNK);
            let count = (CHUNK - first).min(blocks.end - next);
            if self.chunks.len() >= MAX_CHUNKS && !self.chunks.contains_key(&chunk) {
                self.full = true;
            } else {
                all_new &= self.chunks.entry(chunk).or_default().insert(first..first + count) == count;
            }
            next += count;
        }
        all_new
    }

    /// True if some blocks could not be kept.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_use_is_found_across_chunks() {
        let mut used = Used::default();
        assert!(used.insert(CHUNK - 2..CHUNK + 2));
        assert!(used.insert(0..CHUNK - 2));
        assert!(!used.insert(CHUNK + 1..CHUNK + 5));
        assert!(used.insert(u64::MAX / 2..u64::MAX / 2 + 1));
        assert!(!used.is_full());
    }
}
