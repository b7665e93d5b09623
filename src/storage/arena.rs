//! Memory for the data of running requests: a fixed amount, handed out in pages.

use super::{BUF_ALIGN, IoBuf};

const WORD: usize = 64;

/// Pages taken by one request, to be given back.
#[derive(Clone, Copy, Debug)]
pub struct PageRun {
    first: usize,
    count: usize,
}

/// First-fit over a bitmap, from the front: few requests at once keep touching the same few pages.
#[derive(Debug)]
pub struct Arena {
    memory: IoBuf,
    /// A set bit is a page in use.
    used: Box<[u64]>,
}

impl Arena {
    /// Hands out the pages of `memory`.
    pub fn new(memory: IoBuf) -> Arena {
        let words = (memory.len() / BUF_ALIGN).div_ceil(WORD);
        Arena { memory, used: vec![0; words].into() }
    }

    fn pages(&self) -> usize {
        self.memory.len() / BUF_ALIGN
    }

    /// A page-aligned buffer of `len` bytes (1 to all there are), if there is room now.
    pub fn take(&mut self, len: usize) -> Option<(IoBuf, PageRun)> {
        let count = len.div_ceil(BUF_ALIGN);
        let first = self.find(count)?;
        let run = PageRun { first, count };
        self.mark(run, true);
        let start = first * BUF_ALIGN;
        Some((self.memory.slice(start..start + len), run))
    }

    /// Takes pages back. Nobody may use the buffer any more.
    pub fn give_back(&mut self, run: PageRun) {
        self.mark(run, false);
    }

    fn find(&self, count: usize) -> Option<usize> {
        let mut free = 0;
        let mut page = 0;
        while page < self.pages() {
            let word = self.used[page / WORD];
            if page.is_multiple_of(WORD) && word == u64::MAX {
                free = 0;
                page += WORD;
                continue;
            }
            free = if word >> (page % WORD) & 1 == 0 { free + 1 } else { 0 };
            page += 1;
            if free == count {
                return Some(page - count);
            }
        }
        None
    }

    fn mark(&mut self, run: PageRun, used: bool) {
        for page in run.first..run.first + run.count {
            let bit = 1 << (page % WORD);
            let word = &mut self.used[page / WORD];
            assert_eq!(*word & bit == 0, used, "a page has one user");
            *word ^= bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_of_it_can_be_one_buffer_and_not_more() {
        for pages in [1, 63, 64, 65, 512] {
            let bytes = pages * BUF_ALIGN;
            let mut arena = Arena::new(IoBuf::zeroed(bytes));
            assert!(arena.take(bytes + 1).is_none());
            let (all, run) = arena.take(bytes).unwrap();
            assert_eq!(all.len(), bytes);
            assert!(arena.take(1).is_none());
            arena.give_back(run);
            assert!(arena.take(512).is_some());
        }
    }

    proptest! {
        #[test]
        fn buffers_never_overlap_and_all_pages_come_back(
            steps in proptest::collection::vec((1..300_000_usize, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let mut arena = Arena::new(IoBuf::zeroed(2 << 20));
            let mut taken: Vec<(IoBuf, PageRun)> = Vec::new();
            for (len, index, give_back) in steps {
                if give_back && !taken.is_empty() {
                    let (_, run) = taken.swap_remove(index.index(taken.len()));
                    arena.give_back(run);
                    continue;
                }
                let Some((buf, run)) = arena.take(len) else { continue };
                prop_assert_eq!((buf.len(), buf.as_ptr() as usize % BUF_ALIGN), (len, 0));
                let (start, end) = (buf.as_ptr() as usize, buf.as_ptr() as usize + len);
                for (other, _) in &taken {
                    let other_start = other.as_ptr() as usize;
                    prop_assert!(end <= other_start || other_start + other.len() <= start);
                }
                taken.push((buf, run));
            }
            for (_, run) in taken {
                arena.give_back(run);
            }
            prop_assert!(arena.used.iter().all(|word| *word == 0));
        }
    }
}
