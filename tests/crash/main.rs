//! The engine on the simulated disk, crashed at every operation, judged by a model.
//!
//! Sequences of operations run on a small image; at the beginning and end of every storage operation the disk is
//! crashed (death of the process, loss of power, and one after the other), recovered, and compared with what the
//! promises of the design allow. Every failure names the seed and the operation index that reproduce it.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints its counts"
)]

mod explore;
mod faults;
mod mutations;
mod oracle;
mod pair;
mod plain;
mod sequences;
mod space;
mod world;

/// Recoveries are many small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
