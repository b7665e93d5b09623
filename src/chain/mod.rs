//! The image: a head on sealed layers on an optional base. Requests become runs, runs become bytes.

mod background;
mod base;
mod image;
mod locks;
mod names;
mod open;
mod queue;
mod read;
mod resolve;
mod write;

pub use base::{Base, describe_raw, open_base, sample};
pub use image::{ChainLayer, Counters, Image, OpCounts};
pub use names::{SnapshotName, snapshot_path, split_name};
pub use open::{Access, OpenOptions, OpenReport, find_parent, hints_between, open_chain, open_over};
pub use queue::ImageQueue;
