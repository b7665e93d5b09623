//! What the fuzz targets do, each in a module: a function of bytes that panics on a finding.

pub mod damage;
pub mod image;
pub mod journal;
pub mod model;
pub mod operations;
pub mod stream;
pub mod ublk;

/// The model of the crash tests.
#[path = "../../tests/crash/oracle.rs"]
#[allow(clippy::unwrap_used, reason = "as in the tests")]
pub mod oracle;

/// The disk of the ublk tests.
#[path = "../../tests/ublk/model.rs"]
#[allow(clippy::unwrap_used, dead_code, reason = "as in the tests")]
pub mod ram;
