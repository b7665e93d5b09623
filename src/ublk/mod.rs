//! The ublk frontend: a [`crate::device::Disk`] as `/dev/ublkbN`, served from this process.
//!
//! The kernel's side is described in its `Documentation/block/ublk.rst` and declared in `linux/ublk_cmd.h`. Two
//! planes meet here. The *control plane* ([`Control`]) sends admin commands to `/dev/ublk-control` on a small ring
//! of its own; they may block in the kernel, so no queue thread ever sends one, and each has a bound in time. The
//! *data plane* is one thread, ring and executor per queue (`queue`): for each tag one long-lived task fetches a
//! request, runs it on the disk's [`crate::device::Queue`], and commits the result together with the next fetch; its data
//! goes through memory that the tag has or that the queue lends it (`data`).
//!
//! What lies below the server is behind one trait ([`driver::Driver`]): the kernel's driver (`kernel`), or a simulated
//! one (`sim`, feature `sim`), on which the same server runs in one thread, in an order drawn from a seed.
//!
//! [`Device`] is the life of a device as its server sees it. What other processes need (who waits, remove it)
//! is in `inspect`.

mod control;
mod data;
mod device;
pub mod driver;
mod features;
mod inspect;
pub mod kernel;
mod mailbox;
mod node;
mod params;
mod queue;
mod recovery;
mod request;
#[cfg(feature = "sim")]
pub mod sim;
mod stats;
pub mod uapi;

pub use control::Control;
pub use device::{Device, StartOptions};
pub use features::{CopyMode, FeatureChoice, Features, OnDeath};
pub use inspect::{
    DeviceInfo, State, device_info, device_info_on, find_device, list_devices, list_devices_on,
    remove_waiting, remove_waiting_on,
};
pub use kernel::{Kernel, openers};
pub use recovery::RecoverOptions;
pub use stats::{OpCounts, Stats};

/// How long each step may take before it fails with its name. Generous: they exist so that nothing hangs for
/// ever, not to judge speed.
mod bounds {
    use std::time::Duration;

    /// An admin command that only reads or stores something.
    pub(super) const QUICK: Duration = Duration::from_secs(10);
    /// START_DEV and END_USER_RECOVERY: wait for all fetches; the first also reads the partition table.
    pub(super) const START: Duration = Duration::from_secs(60);
    /// STOP_DEV waits for every request in flight.
    pub(super) const STOP: Duration = Duration::from_secs(60);
    /// DEL_DEV waits for the last reference to `/dev/ublkcN`.
    pub(super) const DELETE: Duration = Duration::from_secs(30);
    /// START_USER_RECOVERY answers EBUSY until the old server is gone with all its I/O.
    pub(super) const OLD_SERVER: Duration = Duration::from_secs(60);
    /// A server that is alive that long while its device is LIVE is not about to die.
    pub(super) const ALIVE: Duration = Duration::from_secs(3);
    /// QUIESCE_DEV: until every queue has an idle tag (also sent to the driver, in milliseconds).
    pub(super) const QUIESCE: Duration = Duration::from_secs(2);
    /// Requests in flight when the server is asked to leave.
    pub(super) const DRAIN: Duration = Duration::from_secs(60);
    /// A queue thread makes its ring and buffers, fetches, or ends.
    pub(super) const THREAD: Duration = Duration::from_secs(30);
    /// `/dev/ublkcN` and `/dev/ublkbN` appear (devtmpfs at once, udev later).
    pub(super) const NODE: Duration = Duration::from_secs(10);
    /// The kernel reads the partition table.
    pub(super) const PARTITIONS: Duration = Duration::from_secs(2);
    /// Between two looks at something that has no event.
    pub(super) const POLL: Duration = Duration::from_millis(10);
}
