//! Damage to the medium, all of it, one at a time: every bit, every block, every pair of blocks, every lost or
//! misdirected write. The engine must find it or be right in spite of it; wrong data is a failure, whatever `check`
//! says, and so are a panic and a hang.
//!
//! What no reader of the format can find, and what a damage may therefore do without being found:
//!
//! * Damage to what nothing names: free blocks, old tree nodes, the unused tail of a journal block, the ring of a
//!   layer that was closed. The content is the same; `model` has no say in it.
//! * Damage to one superblock slot, if the other one and the journal lead to the same content. Where they would lead
//!   to an older one, blocks of the ring carry a higher generation, and the layer is refused.
//! * Damage to the end of the journal of a layer that was not closed: a record that no later record or superblock
//!   calls durable, and what follows it, is left out. So it looks after a loss of power. The content is then exactly
//!   that of the last record before the damage, which [`model`] computes from the damaged bytes; `older` counts these.
//! * Damage to a raw base: it has no checksums, and is not damaged here. Nor is the content of the data blocks of layers
//!   without checksums; all else of theirs is.
//!
//! `COWDISK_ROT=all` applies everything; otherwise the damage to bits is applied in shares, `COWDISK_SHARE=k/n`, by
//! default one share that changes from day to day. Superblocks are always flipped bit by bit.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints its counts"
)]

mod damage;
mod found;
mod judge;
mod model;
mod reference;
mod script;
mod sweep;
