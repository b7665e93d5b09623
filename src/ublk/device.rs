//! The life of a device, as its server sees it: start, serve, and then stop or leave.
//!
//! ADD_DEV, SET_PARAMS, every queue's thread fetches all its tags, START_DEV. To end it: STOP_DEV, the threads see
//! ABORT and close their rings, DEL_DEV. Or the server goes and the disk stays, without one, until the next server
//! takes it up (see [`super::RecoverOptions`]).

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

use parking_lot::Mutex;

use super::control::Control;
use super::driver::{CharDevice, Driver};
use super::features::{self, CopyMode, FeatureChoice, Features, OnDeath, Wish, command};
use super::kernel::Kernel;
use super::mailbox::Order;
use super::queue::{Commands, QueueSpec, QueueThread};
use super::stats::Stats;
use super::uapi::{CtrlDevInfo, MAX_IO_BYTES, MAX_NR_QUEUES, MAX_QUEUE_DEPTH, NO_DEVICE, flag};
use super::{bounds, node, params};
use crate::device::Disk;
use crate::units::SECTOR;
use crate::{Error, Kind, Result};

/// Memory for the tags of one device, at most.
const MAX_BUFFER_BYTES: u64 = 4 << 30;
/// Buffers are whole pages of every machine that there is.
const BUFFER_STEP: u32 = 4096;

/// How to start a device.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// The N of `/dev/ublkbN`; `None`: the first that is free.
    pub device_id: Option<u32>,
    /// Queues, one thread each; the driver lowers it to the number of CPUs.
    pub queues: u16,
    /// Requests that a queue takes at once.
    pub depth: u16,
    /// Largest request in bytes: a multiple of 4096. Each tag has a buffer of that size if the driver copies.
    pub max_io: u32,
    /// A random number of this start. The driver keeps it over the death of the server, and only who knows it may
    /// take the device up: the id says nothing, another device may have it by then.
    pub tag: u64,
    /// What becomes of the disk when this process dies.
    pub on_death: OnDeath,
    /// Who copies data, and when, where the driver has that; `None`: the best that it has.
    pub copy: Option<CopyMode>,
    /// Features that must be used, or must not.
    pub features: FeatureChoice,
}

impl Default for StartOptions {
    fn default() -> Self {
        StartOptions {
            device_id: None,
            queues: 1,
            depth: 64,
            max_io: 128 << 10,
            tag: 0,
            on_death: OnDeath::default(),
            copy: None,
            features: FeatureChoice::default(),
        }
    }
}

impl StartOptions {
    fn check(&self) -> Result<()> {
        let bytes = u64::from(self.queues) * u64::from(self.depth) * u64::from(self.max_io);
        let wrong = if !(1..=MAX_NR_QUEUES).contains(&self.queues) {
            format!("{} queues (1 to {MAX_NR_QUEUES})", self.queues)
        } else if !(1..=MAX_QUEUE_DEPTH).contains(&self.depth) {
            format!("a depth of {} (1 to {MAX_QUEUE_DEPTH})", self.depth)
        } else if !(BUFFER_STEP..=MAX_IO_BYTES).contains(&self.max_io)
            || !self.max_io.is_multiple_of(BUFFER_STEP)
        {
            format!("requests of {} bytes (a multiple of {BUFFER_STEP}, up to {MAX_IO_BYTES})", self.max_io)
        } else if bytes > MAX_BUFFER_BYTES {
            format!("buffers of {bytes} bytes together (up to {MAX_BUFFER_BYTES})")
        } else {
            return Ok(());
        };
        Err(Error::new(Kind::Usage, format!("ublk cannot have {wrong}")))
    }

    const fn wish(&self, unseen: bool) -> Wish {
        Wish { copy: self.copy, on_death: self.on_death, choice: self.features, unseen }
    }

    fn request(&self, features: Features) -> CtrlDevInfo {
        CtrlDevInfo {
            nr_hw_queues: self.queues,
            queue_depth: self.depth,
            max_io_buf_bytes: self.max_io,
            dev_id: self.device_id.unwrap_or(NO_DEVICE),
            flags: features.0,
            ublksrv_flags: self.tag,
            ..CtrlDevInfo::default()
        }
    }
}

/// A disk that this process serves as `/dev/ublkbN`.
///
/// Dropping it stops nothing: when the process ends the device waits for the next server (or, without recovery,
/// goes). [`Device::stop`] removes it.
#[derive(Debug)]
pub struct Device<K: Driver = Kernel> {
    pub(super) driver: K,
    pub(super) info: CtrlDevInfo,
    /// Features that are not used, though the device may have them.
    off: Features,
    pub(super) control: Mutex<Control<K>>,
    pub(super) threads: Vec<QueueThread<K>>,
    pub(super) node: PathBuf,
    pub(super) warnings: Vec<String>,
}

impl Device {
    /// Makes a new device that serves `disk`. When this returns `/dev/ublkbN` can be opened.
    pub fn start<D: Disk>(disk: &D, options: &StartOptions) -> Result<Device> {
        Device::start_on(&Kernel, disk, options)
    }
}

impl<K: Driver> Device<K> {
    /// [`Device::start`] on the machine of `driver`.
    pub fn start_on<D: Disk>(driver: &K, disk: &D, options: &StartOptions) -> Result<Device<K>> {
        options.check()?;
        // What the disk cannot be is said before there is a device.
        params::build(&disk.geometry(), options.max_io)?;
        let mut control = Control::open_on(driver)?;
        control.leave_out(options.features.off);
        let wish = options.wish(disk.moves_unseen());
        let flags = wish.ask(control.features())?;
        let info = control.add_device(&options.request(flags))?;
        let mut device = Device::new(driver.clone(), control, info, options.features.off);
        let wanted = options.copy.map_or(0, |copy| copy.feature().0);
        let lacks = wanted & !(device.features().0 | options.features.off.0);
        if lacks != 0 {
            device.warnings.push(format!("the ublk driver does not have {:?}", Features(lacks)));
        }
        match wish.check(device.features()).and_then(|()| device.bring_up(disk)) {
            Ok(()) => Ok(device),
            Err(e) => {
                // The first error is the one to report.
                let _ = device.stop(true);
                Err(e)
            }
        }
    }

    pub(super) fn new(driver: K, control: Control<K>, info: CtrlDevInfo, off: Features) -> Device<K> {
        let node = node::block_node(info.dev_id);
        let control = Mutex::new(control);
        Device { driver, info, off, control, threads: Vec::new(), node, warnings: Vec::new() }
    }

    fn bring_up<D: Disk>(&mut self, disk: &D) -> Result<()> {
        let id = self.info.dev_id;
        features::accept(self.features())?;
        let params = params::build(&disk.geometry(), self.info.max_io_buf_bytes)?;
        self.control.get_mut().set_params(id, &params)?;
        params::check_read_back(&params, &self.control.get_mut().params(id)?)?;
        self.prepare_threads(disk)?;
        self.attach_threads()?;
        // Before 6.18 this looks for partitions, with the driver's mutex held and on a worker of this process: killed in the
        // middle of it the process cannot end, and the device cannot be taken up, until the machine starts anew.
        self.control.get_mut().start(id)?;
        let node = node::wait_for_disk(&self.driver, id)?;
        // QUIESCE came right after the driver learned to notice the death of its server by itself, and before it left the
        // look for partitions to others.
        if self.control.get_mut().knows(flag::QUIESCE) {
            self.wish("partitions", self.driver.read_partitions(&node));
        } else if self.features().has(flag::USER_RECOVERY) {
            self.wish("io_timeout (recovery may take 30 seconds)", self.driver.shorten_timeout(id));
        }
        Ok(())
    }

    /// Something that is not vital.
    pub(super) fn wish(&mut self, what: &str, result: std::io::Result<()>) {
        self.warnings.extend(result.err().map(|e| format!("{what}: {e}")));
    }

    /// Starts a thread for each queue; when this returns they need nothing more than the character device.
    pub(super) fn prepare_threads<D: Disk>(&mut self, disk: &D) -> Result<()> {
        let (copy, unseen) = (self.copy_mode(), self.features().has(flag::AUTO_BUF_REG));
        let control = self.control.get_mut();
        let commands = Commands::new(|command| control.encode(command));
        let CtrlDevInfo { dev_id: device, queue_depth: depth, nr_hw_queues, max_io_buf_bytes, .. } =
            self.info;
        let mut answers = Vec::new();
        for index in 0..nr_hw_queues {
            let cpus = control.queue_affinity(device, index)?;
            let max_io = max_io_buf_bytes as usize;
            let spec = QueueSpec { device, index, depth, max_io, copy, unseen, cpus, commands };
            let (thread, answer) = QueueThread::spawn(&self.driver, disk, spec)?;
            self.threads.push(thread);
            answers.push(answer);
        }
        for (thread, answer) in self.threads.iter().zip(&answers) {
            self.warnings.extend(thread.answer(&self.driver, answer)??);
        }
        Ok(())
    }

    /// Opens the character device and has every tag fetched.
    ///
    /// The descriptors are mapped last: before 6.15 the driver binds the device to the process that maps first, and
    /// forgets it only in a recovery of a device with a fetched queue. A server that died in between would leave a
    /// device that nobody can take up.
    pub(super) fn attach_threads(&mut self) -> Result<()> {
        let char_device = node::open_char(&self.driver, self.info.dev_id)?;
        let answers: Vec<_> = self.threads.iter().map(|thread| thread.fetch(char_device.clone())).collect();
        for (thread, answer) in self.threads.iter().zip(&answers) {
            thread.answer(&self.driver, answer)??;
        }
        for (thread, index) in self.threads.iter().zip(0..) {
            thread.map(&self.driver, char_device.map(index, self.info.queue_depth)?)?;
        }
        Ok(())
    }

    /// The N of `/dev/ublkbN`.
    pub const fn id(&self) -> u32 {
        self.info.dev_id
    }
    /// `/dev/ublkbN`.
    pub fn node(&self) -> &Path {
        &self.node
    }
    /// The tag of the device's start.
    pub const fn tag(&self) -> u64 {
        self.info.ublksrv_flags
    }
    /// What was negotiated.
    pub const fn features(&self) -> Features {
        Features(self.info.flags)
    }
    /// Who copies data, and when.
    pub const fn copy_mode(&self) -> CopyMode {
        CopyMode::of(self.features())
    }
    /// Queues and tags of each, as the driver made them.
    pub const fn shape(&self) -> (u16, u16) {
        (self.info.nr_hw_queues, self.info.queue_depth)
    }
    /// True if the disk outlives this process, and requests in flight are delivered again to the next server, or fail as
    /// was wanted.
    pub const fn outlives_its_server(&self) -> bool {
        let features = self.features();
        features.has(flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE)
            || features.has(flag::USER_RECOVERY | flag::USER_RECOVERY_FAIL_IO)
    }
    /// True if the device has `bits` and they are not left out.
    const fn uses(&self, bits: u64) -> bool {
        self.features().has(bits) && self.off.0 & bits == 0
    }
    /// What could not be had and makes the server weaker under memory pressure, for the log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The counters of all queues.
    pub fn stats(&self) -> Stats {
        let mut sum = Stats::default();
        for thread in &self.threads {
            thread.stats.add_to(&mut sum);
        }
        sum
    }

    /// True when no queue is served any more: somebody else stopped the device.
    pub fn ended(&self) -> bool {
        self.threads.iter().all(QueueThread::is_finished)
    }

    /// Tells the users of the disk that it has `bytes` bytes now.
    ///
    /// # Errors
    /// `Unsupported` before Linux 6.16: the device keeps its size.
    pub fn update_size(&self, bytes: u64) -> Result<()> {
        if !self.uses(flag::UPDATE_SIZE) {
            let message = "this ublk driver cannot tell its users of another size";
            return Err(Error::new(Kind::Unsupported, message).at(&self.node));
        }
        self.control.lock().update_size(self.info.dev_id, bytes / SECTOR)
    }

    /// Refuses with [`Kind::InUse`], and names them, while somebody has the device open.
    pub fn is_unused(&self) -> Result<()> {
        let id = self.info.dev_id;
        match self.driver.is_claimed(id) || !self.driver.openers(id).is_empty() {
            true => Err(in_use(&self.driver, id)),
            false => Ok(()),
        }
    }

    /// Has the kernel look for partitions anew: the disk shows other content now. Where it cannot, whoever opens the
    /// device finds the old ones.
    pub fn reread_partitions(&self) {
        let disk = self.driver.open_disk(self.info.dev_id);
        let _ = disk.and_then(|disk| self.driver.read_partitions(&disk));
    }

    /// Refuses with [`Kind::InUse`] if a disk that loses its end would surprise somebody: while the device is open, and
    /// where those who open it later could not be told.
    pub fn may_shrink(&self) -> Result<()> {
        self.is_unused()?;
        if !self.uses(flag::UPDATE_SIZE) {
            let message = "this ublk driver cannot tell its users of another size: stop the device first";
            return Err(Error::new(Kind::InUse, message).at(&self.node));
        }
        Ok(())
    }

    /// Removes the device. Refuses with [`Kind::InUse`], and goes on serving, while somebody has it open, unless
    /// `force`d; then its users get EIO. Not after [`Device::hold_and_drain`].
    pub fn stop(&mut self, force: bool) -> Result<()> {
        let id = self.info.dev_id;
        stop_disk(&self.driver, self.control.get_mut(), id, force, true)?;
        self.end_threads()?;
        delete_disk(self.control.get_mut(), id, force)
    }

    /// Waits for the ends of the threads: they come when the driver has taken all tags away, or had given none.
    pub(super) fn end_threads(&mut self) -> Result<()> {
        let end = self.driver.now() + bounds::THREAD;
        self.threads.drain(..).try_for_each(|thread| thread.join(&self.driver, end))
    }

    /// Gives up on threads after a start that failed: those that have fetched nothing end.
    pub(super) fn abandon(&mut self) {
        for thread in self.threads.drain(..) {
            thread.send(Order::End);
        }
    }

    /// From now on new requests are kept and not touched; returns when those that run are committed. The driver
    /// delivers what was kept to the next server, once this process has ended. There is no way back.
    pub fn hold_and_drain(&self) -> Result<()> {
        let answers = self.order(Order::Hold);
        self.wait_for(answers, "drain")
    }

    /// Makes the device ready for the next server: requests that run are committed, the disk is flushed, new
    /// requests wait. After this the process must exit; the kernel then holds all requests until another process
    /// takes the device up. For the end of a server whose device is open ([`Device::stop`] refused).
    pub fn leave_waiting(&self) -> Result<()> {
        if !self.outlives_its_server() {
            let message = "this ublk driver cannot keep the device without a server".to_owned();
            return Err(Error::new(Kind::Unsupported, message).at(&self.node));
        }
        let parked = self.order(Order::Park);
        self.wait_for(parked, "park")?;
        if self.uses(flag::QUIESCE) {
            // The driver keeps new requests from here on. EBUSY (all tags busy) is no harm: we keep them then.
            let _ = self.control.lock().quiesce(self.info.dev_id);
        }
        self.hold_and_drain()?;
        self.flush()
    }

    fn flush(&self) -> Result<()> {
        let (sender, answer) = channel();
        if let Some(thread) = self.threads.first() {
            thread.send(Order::Flush(sender));
        }
        match self.driver.wait(&answer, bounds::DRAIN) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(errno)) => {
                Err(Error::io("flush", std::io::Error::from_raw_os_error(errno.0)).at(&self.node))
            }
            Err(_) => Err(Error::new(Kind::Io, "the disk was not flushed in time").at(&self.node)),
        }
    }

    /// Gives every queue an order; one answer for each.
    fn order(&self, order: impl Fn(Sender<()>) -> Order<K::Char>) -> Vec<Receiver<()>> {
        let give = |thread: &QueueThread<K>| {
            let (sender, answer) = channel();
            thread.send(order(sender));
            answer
        };
        self.threads.iter().map(give).collect()
    }

    fn wait_for(&self, answers: Vec<Receiver<()>>, what: &str) -> Result<()> {
        let end = self.driver.now() + bounds::DRAIN;
        for (index, answer) in answers.into_iter().enumerate() {
            let left = end.saturating_duration_since(self.driver.now());
            // A queue that has ended has nothing left to do.
            if let Err(RecvTimeoutError::Timeout) = self.driver.wait(&answer, left) {
                let message =
                    format!("queue {index} did not {what} within {} seconds", bounds::DRAIN.as_secs());
                return Err(Error::new(Kind::Io, message).at(&self.node));
            }
        }
        Ok(())
    }
}

/// STOP_DEV, which always ends DEAD; without `force` only if nobody has the disk open. `served`: by this process.
pub(super) fn stop_disk<K: Driver>(
    driver: &K,
    control: &mut Control<K>,
    id: u32,
    force: bool,
    served: bool,
) -> Result<()> {
    if force {
        return gone_is_fine(control.stop(id));
    }
    if control.offers(flag::SAFE_STOP_DEV) {
        return match control.try_stop(id) {
            Err(e) if e.kind() == Kind::InUse => Err(in_use(driver, id)),
            other => gone_is_fine(other),
        };
    }
    // An open of a device without a server could wait for it for ever.
    if served && driver.is_claimed(id) || !driver.openers(id).is_empty() {
        return Err(in_use(driver, id));
    }
    gone_is_fine(control.stop(id))
}

/// Removes a stopped device. One that was taken away from its users is not quite gone before the last of them has let
/// go of it, and nobody waits for that.
pub(super) fn delete_disk<K: Driver>(control: &mut Control<K>, id: u32, force: bool) -> Result<()> {
    let may_be_later = force && !control.leaves_out(command::DEL_DEV_ASYNC);
    if may_be_later && gone_is_fine(control.delete_later(id)).is_ok() {
        return Ok(());
    }
    match gone_is_fine(control.delete(id)) {
        // Before 6.9 the driver can only wait; the bound is over.
        Err(e) if force && e.kind() == Kind::Io => Ok(()),
        other => other,
    }
}

fn in_use<K: Driver>(driver: &K, id: u32) -> Error {
    let users = driver.openers(id);
    let message = if users.is_empty() { "the device is open".to_owned() } else { users.join(", ") };
    Error::new(Kind::InUse, message).at(node::block_node(id))
}

/// Somebody else removed the device: what was wanted is there.
fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Device>();
    }

    #[test]
    fn options_have_bounds() {
        let good = StartOptions::default();
        good.check().unwrap();
        for wrong in [
            StartOptions { queues: 0, ..good.clone() },
            StartOptions { depth: 0, ..good.clone() },
            StartOptions { depth: 4097, ..good.clone() },
            StartOptions { max_io: 0, ..good.clone() },
            StartOptions { max_io: 6000, ..good.clone() },
            StartOptions { max_io: 64 << 20, ..good.clone() },
            StartOptions { queues: 64, depth: 4096, max_io: 1 << 20, ..good.clone() },
        ] {
            assert_eq!(wrong.check().unwrap_err().kind(), Kind::Usage, "{wrong:?}");
        }
    }

    #[test]
    fn a_request_says_only_what_the_driver_takes_from_us() {
        let options = StartOptions { device_id: Some(3), tag: 99, ..StartOptions::default() };
        let info = options.request(Features(0x18));
        assert_eq!((info.dev_id, info.ublksrv_flags, info.flags), (3, 99, 0x18));
        assert_eq!((info.state, info.ublksrv_pid, info.owner_uid), (0, 0, 0));
        assert_eq!(StartOptions::default().request(Features(0)).dev_id, u32::MAX);
    }
}
