//! `format-spec.md` and the code say the same: its vectors are what the code writes and reads, its tables name the
//! offsets and sizes that the code uses.

mod doc;
mod tables;
mod values;
mod vectors;
