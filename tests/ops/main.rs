//! Operations on images, on the simulated disk.

mod machine;
mod snapshot;
