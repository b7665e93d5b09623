//! The NBD frontend: serves disks to network block device clients, fixed newstyle.
//!
//! It knows requests and nothing of images. The protocol is the public one of NetworkBlockDevice/nbd,
//! `doc/proto.md`; comments name its sections. Clients are not trusted: everything they send is bounded by
//! [`limits`].

mod connection;
mod export;
mod handshake;
pub mod limits;
mod listener;
pub mod options;
mod outbox;
pub mod protocol;
mod server;
mod service;
mod slots;
mod stats;
mod stream;
mod worker;

pub use export::{Export, Exports};
pub use listener::Address;
pub use server::{Server, ServerOptions};
pub use service::Service;
pub use stats::{Counters, OpStats, Stats};
pub use stream::{End, Stream};
