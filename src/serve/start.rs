//! From an open image to a disk that clients can reach.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use parking_lot::Mutex;

use super::background::Background;
use super::below::ublk_devices_below;
use super::control::{self, Control, Report, SocketAccess, VERSION};
use super::daemon::{Event, Wires};
use super::disk::ImageDisk;
use super::frontend::{Frontend, FrontendKind, SocketOwner};
use super::latency::DiskTimes;
use super::open::{OpenRequest, file_id, locate, overlay_path};
use super::registry::{self, Entry, Identity, Registry};
use super::session::Session;
use super::status::ImageStatus;
use super::{Mode, ServeOptions, client, links, sys};
use crate::chain::{Image, split_name};
use crate::error::printable;
use crate::ops::process;
use crate::storage::uring::Uring;
use crate::ublk::{self, DeviceInfo, State};
use crate::{Error, Kind, Result};

/// What is decided before the image is opened.
#[derive(Debug)]
pub(super) struct Plan {
    /// The file to serve, without symbolic links.
    pub(super) path: PathBuf,
    /// A random number of this start.
    pub(super) tag: u64,
    pub(super) kind: FrontendKind,
    mode: Mode,
    begun: Instant,
    registry: Registry,
    control: PathBuf,
    nbd: PathBuf,
}

impl Plan {
    /// Finds the file, and names for what belongs to it.
    pub(super) fn make(options: &ServeOptions) -> Result<Plan> {
        let begun = Instant::now();
        let registry = Registry::open()?;
        refuse_own_disk(&options.image, &registry)?;
        let path = resolve(options)?;
        let tag = options.keeper.map_or_else(random_tag, Ok)?;
        let stem = registry::stem(&path, options.mode, tag);
        let control = registry.dir().join(format!("{stem}.sock"));
        let nbd = registry.dir().join(format!("{stem}.nbd"));
        let (kind, mode) = (FrontendKind::choose(options), options.mode);
        Ok(Plan { path, tag, kind, mode, begun, registry, control, nbd })
    }

    /// The log of a daemon that has a keeper.
    pub(super) fn log_path(&self) -> PathBuf {
        self.control.with_extension("log")
    }

    /// True if the names that belong to it come from the image alone.
    pub(super) fn is_writer(&self) -> bool {
        self.mode == Mode::Write
    }

    pub(super) fn open_request(&self, options: &ServeOptions) -> OpenRequest {
        let overlay = (options.mode == Mode::Temporary).then(|| overlay_path(&self.path, self.tag));
        OpenRequest {
            path: self.path.clone(),
            mode: options.mode,
            cache_bytes: options.cache_bytes,
            search: options.search.clone(),
            holder: process::holder(&self.control.to_string_lossy()),
            overlay,
            force: options.force,
        }
    }

    fn entry(&self, options: &ServeOptions, image: &Image<Uring>, tag: u64) -> Result<Entry> {
        let stem = || self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // The disk that the user named; a temporary one is a fork of it.
        let chain = image.chain();
        let named = &chain.layers[usize::from(options.mode == Mode::Temporary)].sb;
        let identity = Identity {
            path: &self.path,
            file: file_id(image, options.mode)?,
            disk_id: named.disk.to_string(),
            mode: options.mode,
            name: options.name.clone().unwrap_or_else(stem),
            tag,
        };
        let host = process::holder("").host;
        let mut entry = Entry::new(identity, host, self.kind.name(), self.control.clone());
        entry.log = options.keeper.map(|_| self.log_path());
        Ok(entry)
    }
}

/// The file that `options` name.
fn resolve(options: &ServeOptions) -> Result<PathBuf> {
    if options.mode == Mode::Write && split_name(&options.image)?.1.is_some() {
        let shown = printable(&options.image.to_string_lossy());
        let error =
            Error::new(Kind::Usage, "a snapshot is served read-only or temporarily").at(&options.image);
        return Err(error.hint(format!("cowdisk serve --temporary '{shown}'")));
    }
    locate(&options.image, &options.search)
}

/// Before anything is read of an image that lies on its own disk, which waits for a daemon of it: nobody would answer.
fn refuse_own_disk(image: &Path, registry: &Registry) -> Result<()> {
    let Ok(path) = std::fs::canonicalize(image) else { return Ok(()) };
    let below = ublk_devices_below(&path);
    let is_own = |entry: &Entry| entry.is_of(&path) && entry.device_id.is_some_and(|id| below.contains(&id));
    match registry.entries().into_iter().find(is_own) {
        Some(entry) if !client::answers(&entry) => Err(on_its_own_disk(&path, &entry.place)),
        _ => Ok(()),
    }
}

fn on_its_own_disk(file: &Path, device: &str) -> Error {
    let text = format!("it lies on its own disk, {device}, which waits for a daemon of it");
    let hint = format!("unmount what hides the image, or cowdisk stop --force {device}");
    Error::new(Kind::InUse, text).at(file).hint(hint)
}

/// Not 0, which other servers' devices have.
pub(super) fn random_tag() -> Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| Error::io("read random bytes", std::io::Error::other(e)))?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}

/// Brings the open image to its clients. If that fails the image is closed again.
pub(super) fn start(
    options: &ServeOptions,
    plan: Plan,
    image: Arc<Image<Uring>>,
    background: Background,
    (wires, events): (Wires, Receiver<Event>),
) -> Result<Session> {
    let starting = Starting { options, plan: &plan, image: &image, wires: &wires, times: Arc::default() };
    match starting.run() {
        Ok(Started { frontend, control, entry }) => Ok(Session {
            frontend: Some(frontend),
            background,
            control,
            registry: plan.registry,
            entry,
            events,
            log: wires.log,
            notifier: wires.notifier,
            left: None,
        }),
        Err(e) => {
            // The first error is the one to tell; without a clean close the next open recovers.
            let _ = background.close();
            Err(e)
        }
    }
}

struct Starting<'a> {
    options: &'a ServeOptions,
    plan: &'a Plan,
    image: &'a Arc<Image<Uring>>,
    wires: &'a Wires,
    times: Arc<DiskTimes>,
}

struct Started {
    frontend: Frontend,
    control: Control,
    entry: Entry,
}

impl Starting<'_> {
    fn run(&self) -> Result<Started> {
        clean_up(&self.plan.registry);
        let waiting = self.find_waiting()?;
        let tag = waiting.as_ref().map_or(self.plan.tag, |(_, device)| device.tag);
        let entry = Arc::new(Mutex::new(self.plan.entry(self.options, self.image, tag)?));
        let socket = self.socket_owner()?;
        let Wires { log, events, jobs, notifier, pulse } = self.wires;
        let control = Control::listen(
            self.plan.control.clone(),
            socket,
            self.report(&entry),
            (events.clone(), jobs.clone()),
        )?;
        let result = match &waiting {
            Some((_, device)) => self.recover(device),
            None => self.start_new(&entry, socket),
        };
        let frontend = match result {
            Ok(frontend) => frontend,
            Err(e) => {
                control.close();
                // A waiting device's entry stays as the last daemon left it.
                if waiting.is_none() {
                    let _ = self.plan.registry.remove(&entry.lock());
                }
                return Err(e);
            }
        };
        if self.plan.kind == FrontendKind::Ublk
            && let Err(e) = sys::lock_memory()
        {
            log.say(&format!("{}: {}", frontend.place(), not_locked(&e)));
        }
        for warning in frontend.warnings() {
            log.say(&format!("{}: {warning}", frontend.place()));
        }
        let entry = {
            let mut entry = entry.lock();
            entry.device_id = frontend.device_id();
            entry.place = frontend.place();
            for line in self.plan.registry.store_with_links(&mut entry)? {
                log.say(&format!("{}: {line}", entry.place));
            }
            entry.clone()
        };
        links::tell_udev(&entry.place);
        if let Some(pulse) = pulse {
            notifier.watch(pulse.clone())?;
        }
        Ok(Started { frontend, control, entry })
    }

    fn recover(&self, device: &DeviceInfo) -> Result<Frontend> {
        let frontend = Frontend::recover_ublk(&self.disk(device.depth), self.options, device)?;
        let time = self.plan.begun.elapsed().as_millis();
        self.wires
            .log
            .say(&format!("{}: taken up {time} ms after the start of this daemon", frontend.place()));
        Ok(frontend)
    }

    /// Known before it exists: a crash leaves no device that nobody looks after.
    fn start_new(&self, entry: &Mutex<Entry>, socket: SocketAccess) -> Result<Frontend> {
        self.plan.registry.store(&entry.lock())?;
        let disk = self.disk(self.options.depth);
        match self.plan.kind {
            FrontendKind::Ublk => Frontend::start_ublk(&disk, self.options, self.plan.tag),
            FrontendKind::Nbd => {
                let owner = (sys::user_id() == 0).then_some(socket.owner);
                let socket = SocketOwner { mode: socket.mode, owner };
                Frontend::start_nbd(&disk, self.options, &self.plan.nbd, socket)
            }
        }
    }

    fn disk(&self, depth: u16) -> ImageDisk {
        let disk = ImageDisk::new(self.image.clone(), usize::from(depth));
        disk.watched(self.wires.pulse.clone()).timed(self.times.clone())
    }

    /// Sockets have the image's owner, group and mode: whoever may write the image may control it.
    fn socket_owner(&self) -> Result<SocketAccess> {
        let path = &self.plan.path;
        let meta = std::fs::metadata(path).map_err(|e| Error::io("stat", e).at(path))?;
        Ok(SocketAccess { mode: meta.mode() & 0o666 | 0o600, owner: (meta.uid(), meta.gid()) })
    }

    fn report(&self, entry: &Arc<Mutex<Entry>>) -> Report {
        // Weak: when the image is closed its file, and with it the lock, goes at once, whoever is still connected.
        let (entry, image, times) = (entry.clone(), Arc::downgrade(self.image), self.times.clone());
        let (cache_bytes, begin) = (self.options.cache_bytes, Instant::now());
        Arc::new(move || {
            let Some(image) = image.upgrade() else { return control::ending() };
            let entry = entry.lock().clone();
            let (latencies, running) = times.report();
            let mut status = ImageStatus::of_image(&entry, &image, cache_bytes, begin.elapsed().as_secs());
            (status.latencies, status.running) = (Some(latencies), Some(running));
            let mut value = serde_json::to_value(status).unwrap_or_default();
            if let Some(object) = value.as_object_mut() {
                object.insert("v".into(), VERSION.into());
            }
            value
        })
    }

    /// The device of an earlier daemon that waits for this image. It is known by the path and the tag of its start; ids
    /// inside the file are the same in a copy.
    fn find_waiting(&self) -> Result<Option<(Entry, DeviceInfo)>> {
        let path = &self.plan.path;
        let file = file_id(self.image, self.options.mode)?;
        for entry in self.plan.registry.entries() {
            let ours = entry.is_of(path);
            // A writer has the lock, so whoever wrote the entry is gone; readers may be many.
            let alive = self.options.mode != Mode::Write && client::answers(&entry);
            if entry.mode != self.options.mode || alive || !(ours || entry.is_of_file(file)) {
                continue;
            }
            if let Some(device) = entry.device()? {
                self.check_waiting(&entry, &device, ours)?;
                return Ok(Some((entry, device)));
            }
        }
        Ok(None)
    }

    /// Serving the image in another way would change the disk under those who have the waiting device open.
    fn check_waiting(&self, entry: &Entry, device: &DeviceInfo, ours: bool) -> Result<()> {
        let node = format!("/dev/ublkb{}", device.id);
        let stop = format!("cowdisk stop {node}");
        let in_use = |text: String| Err(Error::new(Kind::InUse, text).at(&node).hint(stop.clone()));
        if !ours {
            return in_use(format!("it waits for a daemon of this file, under the name {}", entry.path));
        }
        if self.plan.kind != FrontendKind::Ublk {
            return in_use("it waits for a daemon of this image, which an NBD server is not".into());
        }
        if self.options.device_id.is_some_and(|id| id != device.id) {
            return in_use("it waits for a daemon of this image, under this number and no other".into());
        }
        let chain = self.image.chain();
        let files = chain.layers.iter().map(|layer| &layer.reader.path).chain(&chain.base_path);
        for file in files {
            if ublk_devices_below(file).contains(&device.id) {
                return Err(on_its_own_disk(file, &node));
            }
        }
        let disk = self.image.superblock().disk.to_string();
        if entry.disk_id != disk {
            return in_use(format!("it waits for disk {}, and the file is disk {disk} now", entry.disk_id));
        }
        Ok(())
    }
}

/// Forgets daemons that are gone and left nothing behind. As far as possible: it only makes lists shorter.
pub(super) fn clean_up(registry: &Registry) {
    for entry in registry.entries() {
        // Asked last: a thousand daemons would all wake up whenever one of them starts.
        if process::is_alive(entry.pid) || client::answers(&entry) {
            continue;
        }
        let gone = match entry.device() {
            Ok(None) => true,
            // Without a disk: its start was never finished, or nobody removed it after its end.
            Ok(Some(device)) if device.state == State::Dead => {
                ublk::remove_waiting(device.id, device.tag, true).is_ok()
            }
            _ => false,
        };
        if gone {
            let _ = registry.remove(&entry);
            remove_sockets(&entry.socket);
        }
    }
}

/// Memory that could not be locked: the limit is what stops all but root.
fn not_locked(error: &std::io::Error) -> String {
    let what = format!("its memory may be swapped out: {error}");
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN) => {
            format!(
                "{what}; raise the limit of locked memory (ulimit -l, LimitMEMLOCK=infinity) or give it CAP_IPC_LOCK"
            )
        }
        _ => what,
    }
}

fn remove_sockets(control: &Path) {
    for socket in [control.to_owned(), control.with_extension("nbd")] {
        let _ = std::fs::remove_file(socket);
    }
}
