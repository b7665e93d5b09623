//! The image: a head on sealed layers on an optional base. Requests become runs, runs become bytes.

mod background;
mod base;
mod elsewhere;
mod image;
mod kin;
mod layers;
mod leftovers;
mod locks;
mod names;
mod open;
mod queue;
mod read;
mod replace;
mod resize;
mod resolve;
mod switch;
mod write;

pub use base::{Base, describe_raw, open_base, sample};
pub use elsewhere::refuse_open_elsewhere;
pub use image::{Counters, FailedRequest, Failure, Image, OpCounts};
pub use kin::{check_parent, condemned, is_parent};
pub use layers::{Chain, ChainLayer};
pub use leftovers::{Leftovers, find_leftovers};
#[cfg(feature = "shuttle")]
pub use locks::{RangeLock, RangeLocks};
pub use names::{
    SnapshotName, image_file, is_temporary, nameless_path, snapshot_path, split_name, split_snapshot,
    unused_temporary,
};
pub use open::{
    Access, OpenOptions, OpenReport, find_foreign, find_parent, hints_between, open_chain, open_over,
    refuse_snapshot_name,
};
pub use queue::ImageQueue;
pub use replace::{NewChain, Replacement};
pub use switch::{LiveSnapshot, NewHead};
