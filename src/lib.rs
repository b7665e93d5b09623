//! cowdisk: a copy-on-write, snapshotting virtual disk for Linux.
//!
//! An image is a chain of layer files: a writable head on sealed layers on an optional base. The engine
//! (`format` to `chain`) is asynchronous and generic over [`storage::Storage`]; the frontends ([`ublk`], [`nbd`])
//! know requests and nothing of images; [`serve`] joins the two.

pub mod error;
pub mod journal;
pub mod layer;
pub mod limits;
pub mod map;
pub mod rules;
pub mod space;
pub mod sync;
pub mod units;

pub mod calendar;
pub mod chain;
pub mod device;
pub mod doctor;
pub mod format;
pub mod nbd;
pub mod ops;
pub mod runtime;
pub mod serve;
pub mod storage;
pub mod ublk;

pub use error::{Error, Kind, Result};
