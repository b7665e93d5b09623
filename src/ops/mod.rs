//! What commands do to images: they return values and print nothing.

pub mod process;
