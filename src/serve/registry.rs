//! What is served on this host: one small file for each served image, in the runtime directory.
//!
//! A file is written before its device is started, so that no crash leaves a device that nobody knows, and removed
//! after the device is gone. It outlives its daemon as long as a device waits for the next one. Files are replaced
//! whole (a temporary name, then rename), and changed only under the lock of the directory.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Mode, links, sys};
use crate::storage::FileId;
use crate::ublk::{self, DeviceInfo};
use crate::{Error, Kind, Result};

/// Version of the files.
const VERSION: u32 = 1;
/// Where root's daemons are found.
const SYSTEM_DIR: &str = "/run/cowdisk";
/// Names a directory to be used instead.
const VARIABLE: &str = "COWDISK_RUNTIME_DIR";
/// Largest file that is looked at, in bytes.
const MAX_BYTES: u64 = 64 << 10;
/// Entries in a directory that are looked at.
const MAX_ENTRIES: usize = 65_536;
/// Bytes of a path's hash that make a name.
const KEY_BYTES: usize = 12;

/// A served image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    version: u32,
    /// The image, without symbolic links, for people.
    pub path: String,
    /// The hash of the real path.
    key: String,
    /// Device number of the file.
    dev: u64,
    /// Inode number of the file.
    ino: u64,
    /// Identity of the disk.
    pub disk_id: String,
    /// How it is served.
    pub mode: Mode,
    /// Its name, for links and lists.
    pub name: String,
    /// The daemon, and the host it runs on.
    pub pid: u32,
    /// See `pid`.
    pub host: String,
    /// The random tag of the start, as 16 hexadecimal digits. A waiting device is found by it and by nothing else.
    tag: String,
    /// `ublk` or `nbd`.
    pub frontend: String,
    /// The N of `/dev/ublkbN`, once it is known.
    pub device_id: Option<u32>,
    /// Where clients find it: the device, or the NBD server's URI. Empty before it is ready.
    pub place: String,
    /// The control socket.
    pub socket: PathBuf,
    /// The daemon has left the device to the next one.
    pub waiting: bool,
    /// The device's links below `/dev/cowdisk` that the daemon has made.
    #[serde(default)]
    pub links: Vec<String>,
    /// The log, if the daemon has a keeper.
    #[serde(default)]
    pub log: Option<PathBuf>,
}

/// What of an entry never changes.
#[derive(Clone, Debug)]
pub(super) struct Identity<'a> {
    pub(super) path: &'a Path,
    pub(super) file: FileId,
    pub(super) disk_id: String,
    pub(super) mode: Mode,
    pub(super) name: String,
    pub(super) tag: u64,
}

impl Entry {
    pub(super) fn new(identity: Identity<'_>, host: String, frontend: &str, socket: PathBuf) -> Entry {
        Entry {
            version: VERSION,
            path: identity.path.to_string_lossy().into_owned(),
            key: key(identity.path),
            dev: identity.file.dev,
            ino: identity.file.ino,
            disk_id: identity.disk_id,
            mode: identity.mode,
            name: identity.name,
            pid: std::process::id(),
            host,
            tag: format!("{:016x}", identity.tag),
            frontend: frontend.into(),
            device_id: None,
            place: String::new(),
            socket,
            waiting: false,
            links: Vec::new(),
            log: None,
        }
    }

    /// The image is in another file now.
    pub(super) fn set_file(&mut self, file: FileId) {
        (self.dev, self.ino) = (file.dev, file.ino);
    }

    /// The tag of the device's start.
    pub fn tag(&self) -> u64 {
        u64::from_str_radix(&self.tag, 16).unwrap_or(0)
    }

    /// The ublk device of this start; `None` if there is none, or none any more.
    ///
    /// # Errors
    /// Whatever keeps this process from asking the driver.
    pub(super) fn device(&self) -> Result<Option<DeviceInfo>> {
        if self.frontend != "ublk" {
            return Ok(None);
        }
        match ublk::list_devices() {
            Ok(devices) => Ok(devices.into_iter().find(|device| device.tag == self.tag())),
            // Without the driver there are no devices.
            Err(e) if e.kind() == Kind::Unsupported => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// False only if its device is known to be gone.
    fn may_have_a_device(&self) -> bool {
        !matches!(self.device(), Ok(None))
    }

    /// True if it serves the file at the real path `path`.
    pub(super) fn is_of(&self, path: &Path) -> bool {
        self.key == key(path)
    }

    /// True if it serves this file, under whatever name.
    pub(super) fn is_of_file(&self, file: FileId) -> bool {
        (self.dev, self.ino) == (file.dev, file.ino)
    }
}

/// Names of files and sockets: a writer's come from the path alone, for there is only one; readers of one image may be
/// many.
pub(super) fn stem(path: &Path, mode: Mode, tag: u64) -> String {
    match mode {
        Mode::Write => key(path),
        Mode::ReadOnly | Mode::Temporary => format!("{}-{tag:016x}", key(path)),
    }
}

fn key(path: &Path) -> String {
    let hash = Sha256::digest(path.as_os_str().as_bytes());
    hash.iter().take(KEY_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

/// The runtime directory of this process's user.
#[derive(Clone, Debug)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// Opens the directory and makes it if need be.
    ///
    /// # Errors
    /// It cannot be made, or belongs to somebody else.
    pub(super) fn open() -> Result<Registry> {
        let (dir, mode) = own_dir();
        make(&dir, mode).map_err(|e| Error::io("cannot use the runtime directory", e).at(&dir))?;
        Ok(Registry { dir })
    }

    /// The directory, whether it is there or not: for looking.
    pub(super) fn of_this_user() -> Registry {
        Registry { dir: own_dir().0 }
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes `entry`, in the place of an earlier one of the same name.
    pub(super) fn store(&self, entry: &Entry) -> Result<()> {
        let _lock = self.lock()?;
        self.write(entry)
    }

    /// Makes the links of the device of `entry`, those that no other device has, and writes the entry with them. Says
    /// which links it could not make.
    pub(super) fn store_with_links(&self, entry: &mut Entry) -> Result<Vec<String>> {
        let _lock = self.lock()?;
        let others: Vec<Entry> = self.entries().into_iter().filter(|other| other.tag != entry.tag).collect();
        let refused = links::name_device(Path::new(links::DIR), entry, &others, Entry::may_have_a_device);
        self.write(entry)?;
        Ok(refused)
    }

    /// Under the lock.
    fn write(&self, entry: &Entry) -> Result<()> {
        let path = self.file_of(entry);
        let text = serde_json::to_vec_pretty(entry).map_err(|e| Error::io("encode", io::Error::other(e)))?;
        replace(&path, &text).map_err(|e| Error::io("write", e).at(&path))
    }

    /// Removes `entry`, unless another start has taken its place meanwhile.
    pub(super) fn remove(&self, entry: &Entry) -> Result<()> {
        let _lock = self.lock()?;
        let path = self.file_of(entry);
        let ours = |now: &Entry| (now.pid, &now.tag) == (entry.pid, &entry.tag);
        if !load(&path).is_some_and(|now| ours(&now)) {
            return Ok(());
        }
        // Whoever wants the names next finds no entry that claims them.
        links::remove(Path::new(links::DIR), &entry.links, &entry.place);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", e).at(&path)),
            _ => Ok(()),
        }
    }

    /// All entries, of this user and of root's daemons, each with the directory that it is in.
    pub(super) fn all() -> Vec<(Registry, Entry)> {
        let own = own_dir().0;
        let mut dirs = vec![own.clone()];
        if own != Path::new(SYSTEM_DIR) && std::env::var_os(VARIABLE).is_none() {
            dirs.push(SYSTEM_DIR.into());
        }
        let registries = dirs.into_iter().map(|dir| Registry { dir });
        registries.flat_map(|r| r.entries().into_iter().map(move |entry| (r.clone(), entry))).collect()
    }

    /// The entries of this directory, by path.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten().take(MAX_ENTRIES);
        let named =
            files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
        let mut entries: Vec<Entry> = named.filter_map(|path| load(&path)).collect();
        entries.sort_by(|a, b| (&a.path, &a.tag).cmp(&(&b.path, &b.tag)));
        entries
    }

    fn file_of(&self, entry: &Entry) -> PathBuf {
        let stem = match entry.mode {
            Mode::Write => entry.key.clone(),
            Mode::ReadOnly | Mode::Temporary => format!("{}-{}", entry.key, entry.tag),
        };
        self.dir.join(format!("{stem}.json"))
    }

    /// Held until the file is dropped.
    fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let open = || {
            let file = File::options().create(true).append(true).mode(0o600).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().map_err(|e: io::Error| Error::io("lock", e).at(&path))
    }
}

/// The directory of this user, and its permission bits.
fn own_dir() -> (PathBuf, u32) {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = variable(VARIABLE) {
        return (dir, 0o700);
    }
    let user = sys::user_id();
    if user == 0 {
        return (SYSTEM_DIR.into(), 0o755);
    }
    match variable("XDG_RUNTIME_DIR") {
        Some(dir) => (dir.join("cowdisk"), 0o700),
        None => (format!("/tmp/cowdisk-{user}").into(), 0o700),
    }
}

/// Makes `dir`, or checks that it is one in which nobody else can put anything.
fn make(dir: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(dir) {
        // Not what the umask left of it.
        Ok(()) => fs::set_permissions(dir, Permissions::from_mode(mode))?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
    }
    let meta = fs::symlink_metadata(dir)?;
    if !meta.is_dir() || meta.uid() != sys::user_id() || meta.mode() & 0o022 != 0 {
        let what = "it is not a directory that only this user can write to";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    Ok(())
}

/// Puts a new file in the place of `path`, whole.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    // Left by a process of the same number that died.
    let _ = fs::remove_file(&temporary);
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(&temporary)?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}

/// Reads an entry; a file that is none, or of another version, is not there.
fn load(path: &Path) -> Option<Entry> {
    let how = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    if how.metadata().ok()?.len() > MAX_BYTES {
        return None;
    }
    let entry: Entry = serde_json::from_reader(io::BufReader::new(how)).ok()?;
    (entry.version == VERSION).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry { dir: dir.path().to_owned() };
        (dir, registry)
    }

    fn entry(path: &str, mode: Mode, tag: u64) -> Entry {
        let identity = Identity {
            path: Path::new(path),
            file: FileId { dev: 1, ino: 2 },
            disk_id: "d".into(),
            mode,
            name: "n".into(),
            tag,
        };
        Entry::new(identity, "host".into(), "nbd", "/s".into())
    }

    #[test]
    fn an_entry_is_replaced_whole_and_removed_by_its_owner_only() {
        let (_dir, registry) = registry();
        let first = entry("/a/vm.cow", Mode::Write, 7);
        registry.store(&first).unwrap();
        let second = entry("/a/vm.cow", Mode::Write, u64::MAX);
        registry.store(&second).unwrap();
        registry.remove(&first).unwrap();
        assert_eq!(registry.entries(), std::slice::from_ref(&second));
        assert_eq!(second.tag(), u64::MAX);
        registry.remove(&second).unwrap();
        registry.remove(&second).unwrap();
        assert_eq!(registry.entries(), []);
    }

    #[test]
    fn an_image_has_one_writer_and_any_number_of_readers() {
        let (_dir, registry) = registry();
        let all = [(Mode::Write, 1), (Mode::ReadOnly, 2), (Mode::ReadOnly, 3), (Mode::Temporary, 4)];
        for (mode, tag) in all {
            registry.store(&entry("/a b/vm@x/vm.cow", mode, tag)).unwrap();
        }
        let found = registry.entries();
        assert_eq!(found.len(), all.len());
        assert!(found.iter().all(|e| e.is_of(Path::new("/a b/vm@x/vm.cow")) && !e.is_of(Path::new("/a"))));
        let tags: Vec<u64> = found.iter().map(Entry::tag).collect();
        assert_eq!(tags, [1, 2, 3, 4]);
    }

    #[test]
    fn what_is_no_entry_is_not_there() {
        let (dir, registry) = registry();
        fs::write(dir.path().join("x.json"), "{").unwrap();
        fs::write(dir.path().join("y.json"), "{\"version\":1}").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("z.json")).unwrap();
        fs::create_dir(dir.path().join("d.json")).unwrap();
        assert_eq!(registry.entries(), []);
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        make(&open, 0o700).unwrap();
        make(&open, 0o700).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        assert_eq!(make(&open, 0o700).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert_eq!(
            make(&dir.path().join("link"), 0o700).unwrap_err().kind(),
            io::ErrorKind::PermissionDenied
        );
    }
}
