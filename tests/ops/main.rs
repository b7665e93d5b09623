//! Operations on images, on the simulated disk.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and prints what it counted")]

mod death;
mod delete;
mod elsewhere;
mod machine;
mod opens;
mod rollback;
mod snapshot;
