//! Operations on images, on the simulated disk.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it counted"
)]

mod machine;
mod snapshot;
