//! Blocks of a layer file: which are free, which may be used again, which go back to the host.
//!
//! Free space is derived, never stored. Above the high-water mark everything is free; below it a background walk
//! of the tree finds the holes (until it is done, nothing below is allocated). A block that a record or checkpoint
//! frees rests in limbo until rule R lets it go.

mod allocator;
mod bitmap;
mod limbo;
mod readers;

pub use allocator::{BlockRun, Reserve, Space, SpaceOptions, SpaceStats};
pub use bitmap::Bitmap;
pub use limbo::Limbo;
pub use readers::{ReadGuard, Readers};
