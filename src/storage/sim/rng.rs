//! The one source of chance: a seed gives the same run on every machine.

/// A small generator (SplitMix64). Good enough to pick schedules and sectors, and for nothing else.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `seed`; neighbouring seeds give unrelated numbers.
    pub const fn new(seed: u64) -> Rng {
        Rng(seed ^ 0x6a09_e667_f3bc_c908)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "nothing to choose from");
        self.draw() % n
    }

    /// A generator of its own.
    #[must_use]
    pub fn split(&mut self) -> Rng {
        Rng::new(self.draw())
    }

    /// An index into a list of `len` entries, which must not be empty.
    #[expect(clippy::cast_possible_truncation, reason = "less than a usize")]
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True `num` times out of `den`.
    pub fn chance(&mut self, num: u64, den: u64) -> bool {
        self.below(den) < num
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let number = self.draw().to_le_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
    }

    /// A bit mask of 8 with each bit set `num` times out of 8.
    pub(super) fn mask(&mut self, num: u64) -> u8 {
        (0..8).fold(0, |mask, bit| if self.chance(num, 8) { mask | 1 << bit } else { mask })
    }

    /// Shuffles `list`.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.index(i + 1));
        }
    }
}
