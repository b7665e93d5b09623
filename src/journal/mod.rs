//! The journal: numbers, records beside the data, one-barrier commits, and replay.
//!
//! Rules W, C, J, O2 of the design (format-spec.md 6 and 7). A record may reach the disk before, after or instead
//! of its data; it carries the checksums of what it maps, so no order between the two is needed. Where data has no
//! checksums, the layer gives an order (N), and a commit is only complete when it is on record ([`OnRecord`]).

mod commit;
mod hold;
mod lanes;
mod replay;
mod state;

pub use commit::{OnRecord, SyncFailed};
pub use lanes::{Content, Formed, Lanes};
pub use replay::{Later, LeftOut, Replay, Scan, replay, scan};
pub use state::{Freeze, Journal, JournalStart, JournalStats, NotFormed};

#[cfg(test)]
mod tests;
