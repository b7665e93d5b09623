//! The simulated disk and the seeded executor: the ground that crash tests, model tests and fuzz targets stand on.
//!
//! A [`SimDisk`] keeps, for every file, what is visible, what is durable and each completed operation in between,
//! and the operations in flight. [`SimDisk::crash`] makes from that the disk that the next process, or the next
//! boot, finds. An [`Executor`] runs tasks and completes operations in an order drawn from its seed. Everything
//! follows from the seeds: there is no clock, no address and no unordered map in here.
//!
//! Beyond the contract of [`crate::storage`], deliberately unkind where a real system may be:
//! * operations complete in any order, and the size of a file survives apart from its data;
//! * every directory operation survives alone; a rename between two directories is two of them;
//! * sectors that were being rewritten during a power loss may hold garbage;
//! * files opened direct refuse what is not aligned to 512 bytes (EINVAL).

mod crash;
mod disk;
mod effect;
mod exec;
mod fault;
mod file;
mod flight;
mod hook;
mod names;
mod page;
mod pages;
mod path;
mod rng;
mod rot;
mod space;
mod state;
#[cfg(test)]
mod tests;

pub use crash::{Crash, CrashOptions};
pub use disk::SimDisk;
pub use exec::{Executor, JoinHandle, spawn};
pub use fault::{Fault, FaultKind, Faults};
pub use file::{SimFile, SimOp};
pub use hook::{Event, Hook, When};
pub use rng::Rng;

/// The kind of an operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum OpKind {
    /// `File::read`.
    Read,
    /// `File::write`.
    Write,
    /// `File::sync_data`.
    Sync,
    /// `File::allocate`.
    Allocate,
    /// `File::punch`.
    Punch,
    /// `File::set_len`.
    SetLen,
    /// `File::set_mode` and `File::set_owner`.
    Attr,
    /// `Storage::open`.
    Open,
    /// `Storage::create`.
    Create,
    /// `Storage::link`.
    Link,
    /// `Storage::rename`.
    Rename,
    /// `Storage::unlink`.
    Unlink,
    /// `Storage::sync_dir`.
    SyncDir,
}
