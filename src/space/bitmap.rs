//! A set of blocks as bits, in chunks that are stored only where they are mixed.

use std::ops::Range;

const WORDS: usize = 512;
/// Blocks of a chunk: 128 MiB of file.
const CHUNK: u64 = WORDS as u64 * 64;

#[derive(Clone, Debug, Default)]
enum Chunk {
    #[default]
    None,
    All,
    Some(Box<[u64; WORDS]>, u32),
}

/// A set of block numbers. 4 KiB of memory for each mixed 128 MiB of file, 16 bytes for any other.
#[derive(Clone, Debug, Default)]
pub struct Bitmap {
    chunks: Vec<Chunk>,
    count: u64,
}

impl Bitmap {
    /// Blocks in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// True if `block` is in the set.
    pub fn contains(&self, block: u64) -> bool {
        match self.chunks.get((block / CHUNK) as usize) {
            None | Some(Chunk::None) => false,
            Some(Chunk::All) => true,
            Some(Chunk::Some(words, _)) => {
                let bit = block % CHUNK;
                words[(bit / 64) as usize] >> (bit % 64) & 1 == 1
            }
        }
    }

    /// Adds blocks; gives how many were new.
    pub fn insert(&mut self, blocks: Range<u64>) -> u64 {
        self.change(blocks, true)
    }

    /// Removes blocks; gives how many were there.
    pub fn remove(&mut self, blocks: Range<u64>) -> u64 {
        self.change(blocks, false)
    }

    fn change(&mut self, blocks: Range<u64>, to: bool) -> u64 {
        let mut changed = 0;
        let mut next = blocks.start;
        while next < blocks.end {
            let index = (next / CHUNK) as usize;
            let end = ((next / CHUNK + 1) * CHUNK).min(blocks.end);
            if self.chunks.len() <= index {
                if !to {
                    break;
                }
                self.chunks.resize_with(index + 1, Chunk::default);
            }
            changed += self.chunks[index].change(next % CHUNK..next % CHUNK + (end - next), to);
            next = end;
        }
        if to {
            self.count += changed
        } else {
            self.count -= changed
        }
        changed
    }

    /// The first run of the set at or behind `from`, at most `max` blocks long.
    pub fn next_run(&self, from: u64, max: u64) -> Option<Range<u64>> {
        let start = self.next_set(from)?;
        let mut end = start;
        while end - start < max {
            let Some(chunk) = self.chunks.get((end / CHUNK) as usize) else { break };
            let bit = end % CHUNK;
            let (run, stops) = chunk.ones_from(bit);
            end += run;
            if stops {
                break;
            }
        }
        Some(start..end.min(start.saturating_add(max)))
    }

    fn next_set(&self, from: u64) -> Option<u64> {
        let mut bit = from % CHUNK;
        for (index, chunk) in self.chunks.iter().enumerate().skip((from / CHUNK) as usize) {
            if let Some(found) = chunk.next_set(bit) {
                return Some(index as u64 * CHUNK + found);
            }
            bit = 0;
        }
        None
    }
}

impl Chunk {
    fn change(&mut self, bits: Range<u64>, to: bool) -> u64 {
        let whole = bits == (0..CHUNK);
        match self {
            Chunk::All if to => return 0,
            Chunk::None if !to => return 0,
            Chunk::None if whole => {
                *self = Chunk::All;
                return CHUNK;
            }
            Chunk::All if whole => {
                *self = Chunk::None;
                return CHUNK;
            }
            Chunk::None => *self = Chunk::Some(Box::new([0; WORDS]), 0),
            Chunk::All => *self = Chunk::Some(Box::new([u64::MAX; WORDS]), CHUNK as u32),
            Chunk::Some(..) => {}
        }
        let Chunk::Some(words, set) = self else { unreachable!("made mixed above") };
        let changed = change_words(words, bits, to);
        *set = if to { *set + changed } else { *set - changed };
        match u64::from(*set) {
            0 => *self = Chunk::None,
            CHUNK => *self = Chunk::All,
            _ => {}
        }
        u64::from(changed)
    }

    fn next_set(&self, from: u64) -> Option<u64> {
        match self {
            Chunk::None => None,
            Chunk::All => Some(from),
            Chunk::Some(words, _) => {
                let mut mask = u64::MAX << (from % 64);
                for (i, word) in words.iter().enumerate().skip((from / 64) as usize) {
                    if word & mask != 0 {
                        return Some(i as u64 * 64 + u64::from((word & mask).trailing_zeros()));
                    }
                    mask = u64::MAX;
                }
                None
            }
        }
    }

    /// Length of the run of ones from `bit` on within the chunk, and whether it stops before the chunk's end.
    fn ones_from(&self, bit: u64) -> (u64, bool) {
        match self {
            Chunk::None => (0, true),
            Chunk::All => (CHUNK - bit, false),
            Chunk::Some(words, _) => {
                let mut at = bit;
                while at < CHUNK {
                    let ones = u64::from((words[(at / 64) as usize] >> (at % 64)).trailing_ones());
                    at += ones;
                    if !at.is_multiple_of(64) || ones == 0 {
                        return (at - bit, true);
                    }
                }
                (CHUNK - bit, false)
            }
        }
    }
}

fn change_words(words: &mut [u64; WORDS], bits: Range<u64>, to: bool) -> u32 {
    let mut changed = 0;
    let mut next = bits.start;
    while next < bits.end {
        let end = ((next / 64 + 1) * 64).min(bits.end);
        let mask = (u64::MAX >> (64 - (end - next))) << (next % 64);
        let word = &mut words[(next / 64) as usize];
        changed += if to { (!*word & mask).count_ones() } else { (*word & mask).count_ones() };
        *word = if to { *word | mask } else { *word & !mask };
        next = end;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn whole_chunks_take_no_words() {
        let mut map = Bitmap::default();
        assert_eq!(map.insert(0..3 * CHUNK), 3 * CHUNK);
        assert!(map.chunks.iter().all(|c| matches!(c, Chunk::All)));
        assert_eq!(map.next_run(5, u64::MAX), Some(5..3 * CHUNK));
        assert_eq!(map.remove(CHUNK..2 * CHUNK), CHUNK);
        assert_eq!(map.next_run(0, u64::MAX), Some(0..CHUNK));
        assert_eq!(map.next_run(CHUNK, 7), Some(2 * CHUNK..2 * CHUNK + 7));
        assert_eq!(map.insert(CHUNK..2 * CHUNK), CHUNK);
        assert!(matches!(map.chunks[1], Chunk::All));
        assert!(map.contains(CHUNK) && map.contains(3 * CHUNK - 1) && !map.contains(3 * CHUNK));
        assert_eq!(map.remove(0..2 * CHUNK), 2 * CHUNK);
        assert!(!map.contains(CHUNK - 1) && map.contains(2 * CHUNK));
    }

    #[test]
    fn a_chunk_is_stored_only_while_it_is_mixed() {
        let mut map = Bitmap::default();
        let words = |map: &Bitmap| map.chunks.iter().filter(|c| matches!(c, Chunk::Some(..))).count();
        assert_eq!((map.insert(0..3 * CHUNK), map.insert(0..2 * CHUNK)), (3 * CHUNK, 0), "there already");
        // A part of a whole one.
        assert_eq!((map.remove(100..200), words(&map), map.count()), (100, 1, 3 * CHUNK - 100));
        assert!(map.contains(99) && !map.contains(100) && !map.contains(199) && map.contains(200));
        assert_eq!(map.next_run(150, u64::MAX), Some(200..3 * CHUNK), "over the border of a mixed chunk");
        // It has been whole again, and empty.
        assert_eq!((map.insert(50..250), words(&map)), (100, 0));
        assert_eq!((map.remove(0..10), map.remove(10..CHUNK), words(&map)), (10, CHUNK - 10, 0));
        assert_eq!((map.remove(0..CHUNK), map.count()), (0, 2 * CHUNK), "gone already");
        assert_eq!(map.next_run(0, 5), Some(CHUNK..CHUNK + 5));
        // Removing as much as is missing does not make it whole.
        assert_eq!((map.insert(0..CHUNK - 10), map.remove(5..15)), (CHUNK - 10, 10));
        assert_eq!((map.contains(7), words(&map)), (false, 1));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(ops in prop::collection::vec((any::<bool>(), 0u64..2 * CHUNK, 1u64..300), 1..50)) {
            let mut map = Bitmap::default();
            let mut model = BTreeSet::new();
            for (add, start, len) in ops {
                let before = model.len();
                let changed = if add {
                    model.extend(start..start + len);
                    map.insert(start..start + len)
                } else {
                    (start..start + len).for_each(|b| { model.remove(&b); });
                    map.remove(start..start + len)
                };
                prop_assert_eq!(changed, model.len().abs_diff(before) as u64);
                prop_assert_eq!(map.count(), model.len() as u64);
            }
            let mut found = BTreeSet::new();
            let mut next = 0;
            while let Some(run) = map.next_run(next, 100) {
                prop_assert!(!run.is_empty() && run.end - run.start <= 100);
                next = run.end;
                found.extend(run);
            }
            prop_assert_eq!(&found, &model);
            prop_assert!((0..3 * CHUNK).all(|b| map.contains(b) == model.contains(&b)));
        }
    }
}
