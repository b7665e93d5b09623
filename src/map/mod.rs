//! From blocks of the disk to blocks of a layer: the pending map in RAM, the extent tree on disk, and the caches.

mod build;
mod leaves;
mod nodes;
mod pending;
mod ranges;
mod spans;
mod tree;

pub use build::{Built, NodeSink, build, most_nodes};
pub use nodes::{LayerTag, Node, NodeCache};
pub use pending::{Change, Freed, Mapped, PendingMap, Slot};
pub use spans::{Run, RunSource, SpanCache, SpanRuns};
pub use tree::{Step, Tree, Visit, Walker};

#[cfg(test)]
mod tests;
