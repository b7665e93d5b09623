//! The bytes of a page, with a fingerprint that is computed once for all files that share them.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use super::pages::PAGE;

type Bytes = [u8; PAGE as usize];

/// The bytes of a page.
#[derive(Clone)]
pub(super) struct Page {
    bytes: Bytes,
    print: OnceLock<u64>,
}

impl Page {
    /// A page of zeros.
    pub(super) const fn zeroed() -> Page {
        Page { bytes: [0; PAGE as usize], print: OnceLock::new() }
    }

    /// A number that follows from the bytes alone; 0 for a page of zeros, which reads like a hole.
    pub(super) fn print(&self) -> u64 {
        *self.print.get_or_init(|| {
            let words = self.bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
            let (mut sum, mut any) = (0, 0);
            for word in words {
                sum = mix(sum, word);
                any |= word;
            }
            if any == 0 { 0 } else { sum | 1 }
        })
    }
}

/// Folds a number into a fingerprint.
pub(super) const fn mix(sum: u64, number: u64) -> u64 {
    let wide = (sum ^ number ^ 0x9e37_79b9_7f4a_7c15) as u128 * 0xd1b5_4a32_d192_ed03;
    ((wide >> 64) as u64) ^ (wide as u64).rotate_left(23)
}

impl Deref for Page {
    type Target = Bytes;
    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

impl DerefMut for Page {
    fn deref_mut(&mut self) -> &mut Bytes {
        self.print.take();
        &mut self.bytes
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("print", &self.print()).finish_non_exhaustive()
    }
}
