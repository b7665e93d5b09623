//! The command, from outside: what it prints, how it exits, what it leaves on disk.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod check;
mod create;
mod delete;
mod doctor;
mod dry_run;
mod fork;
#[expect(dead_code, reason = "shared with the tests of hostile images")]
mod image;
mod info;
mod list;
mod map;
mod places;
mod rebase;
mod resize;
mod rollback;
mod run;
mod snapshot;
