//! A simulated ublk driver, for tests and fuzz targets (feature `sim`).
//!
//! A [`Machine`] has the driver of a kernel that its [`Profile`] names, processes that serve devices
//! ([`Server`], which is what [`super::driver::Driver`] asks for), and users of the disks. The same code that serves
//! on the real driver runs on it: [`super::Device`], its queues, recovery, stop, leave. All of it runs on one thread.
//! [`Machine::step`] does one thing: polls a task of a user or of a server's queue, or lets the driver do something
//! (deliver a request, go on with an admin command, notice a death). Which one follows from the seed. The server's
//! first thread is ordinary code that blocks: whenever it waits, the machine steps until it need not wait any longer.
//! So a process can die anywhere ([`Machine::kill_in`]): its tasks are dropped, and its first thread unwinds out of
//! the call that it waits in.
//!
//! **Simulated**, from `Documentation/block/ublk.rst` and the driver's source:
//! * admin commands with their checks and errors: unknown flags and parameter groups are cleared in silence, queues and
//!   depth lowered; START_DEV and END_USER_RECOVERY wait for all fetches, STOP_DEV for all requests, DEL_DEV for the
//!   last reference; raw and encoded numbers, and which version knows which command, flag and group;
//! * commands of queues: who may send what when, and the errno otherwise; NEED_GET_DATA; USER_COPY;
//! * the block layer: a request has a tag from its delivery to its end; short counts are sent again; errnos that the
//!   block layer does not know become EIO; a user's requests are cut at the disk's limits; no FLUSH without
//!   VOLATILE_CACHE;
//! * the death of a server, noticed some time later, with each set of recovery flags;
//! * before 6.15: the process that maps first is the only one that may map, until a recovery.
//!
//! **Not simulated**: memory (data is copied when the driver hands it over or takes it), what partitions there are,
//! processes of other namespaces, unprivileged devices beyond EPERM and their paths, zero copy and the other data paths that the server does not
//! speak (their flags are negotiated as the driver does it), zones, integrity, batches, and the driver's bugs.

mod admin;
mod block;
mod copy;
mod files;
mod handles;
mod io;
mod machine;
mod profile;
mod server;
mod state;
mod user;

pub use block::Bio;
pub use files::{SimChar, SimDescriptors, SimOp};
pub use handles::{SimAdmin, SimNode, SimThread};
pub use io::Mutation;
pub use machine::Machine;
pub use profile::{Profile, Version};
pub use server::Server;
pub use state::{Counts, ThreadId};
pub use user::SimBlock;
