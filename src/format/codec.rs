//! bincode, in this file only: fixed-width little-endian integers, bounded, no trailing bytes.
//!
//! With these options a struct is the concatenation of its fields; a `Vec` or `String` is its length as a u64 and
//! then its elements; an `Option` is one byte (0 or 1) and then the value; an enum is its variant as a u32 and then
//! its fields.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::units::BLOCK;

fn options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(BLOCK)
        .reject_trailing_bytes()
}

/// Writes `value` to the front of `out`; gives the bytes used. `None`: it does not fit.
pub(super) fn encode<T: Serialize>(value: &T, out: &mut [u8]) -> Option<usize> {
    let len = usize::try_from(options().serialized_size(value).ok()?).ok()?;
    let front = out.get_mut(..len)?;
    options().serialize_into(front, value).ok()?;
    Some(len)
}

/// Reads a value that fills `bytes` exactly.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    options().deserialize(bytes).map_err(|e| Error::corrupt(format!("{what}: cannot be decoded: {e}")))
}
