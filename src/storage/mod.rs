//! The only door to files.
//!
//! Two implementations: [`uring`] for production and `sim` (feature `sim`) for tests. What they promise, and
//! what the engine may rely on:
//!
//! * A completed write is visible to every later read of the file and survives the death of the process.
//! * After [`File::sync_data`] returned, every write that had *completed before it was issued* survives power
//!   loss, together with the file size needed to read it. Nothing else survives for sure: of unsynced writes any
//!   subset of 512-byte sectors may remain.
//! * A failed `sync_data` leaves the fate of all unsynced writes unknown for ever; it must not be retried.
//! * A name made or changed in a directory survives power loss after [`Storage::sync_dir`] of that directory.
//! * Operations start when they are created, not when they are first polled, and run to their end also if the
//!   future is dropped.

mod arena;
mod buf;
mod exact;
pub mod host;
#[cfg(feature = "sim")]
pub mod sim;
pub mod uring;

pub use arena::{Arena, PageRun};
pub use buf::{BUF_ALIGN, IoBuf, IoVecs};
pub use exact::{finish_read, finish_write, read_exact, read_up_to, write_all};

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::BootId;

/// What an operation gives back: its result and, for writes, the buffer list for the next use.
#[derive(Debug)]
pub struct Done {
    /// Bytes moved (0 for operations that move none), or the error.
    pub result: io::Result<usize>,
    /// The list given to [`File::write`].
    pub vecs: IoVecs,
}

/// An open file. Clones share one open file description (and so its lock).
pub trait File: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// A running operation; bound to the thread that started it.
    type Op: Future<Output = Done> + Unpin + 'static;

    /// Reads into `buf` from byte `pos`; 0 at or past the end; may be short.
    fn read(&self, buf: IoBuf, pos: u64) -> Self::Op;
    /// Writes the buffers at byte `pos`; may be short.
    fn write(&self, vecs: IoVecs, pos: u64) -> Self::Op;
    /// fdatasync.
    fn sync_data(&self) -> Self::Op;
    /// fallocate without KEEP_SIZE: space for `[pos, pos + len)`, extending the file if needed; the bytes read as
    /// before, or zero.
    fn allocate(&self, pos: u64, len: u64) -> Self::Op;
    /// Gives `[pos, pos + len)` back to the host; it reads as zeros.
    fn punch(&self, pos: u64, len: u64) -> Self::Op;

    /// Facts of the open file.
    fn meta(&self) -> io::Result<Meta>;
    /// ftruncate.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Tries to take (or change) the lock of the open file description; `false`: somebody else holds it.
    fn try_lock(&self, lock: Lock) -> io::Result<bool>;
    /// True if another open file description holds a lock that excludes `lock`. Takes none.
    fn is_locked(&self, lock: Lock) -> io::Result<bool>;
    /// Sets permission bits.
    fn set_mode(&self, mode: u32) -> io::Result<()>;
    /// Sets the owner.
    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()>;
    /// Gives the file the owner, group, permission bits, access list and security label of `from`.
    fn copy_access(&self, from: &Self) -> io::Result<()>;
}

/// The lock of an open file description. Held until the last clone goes, and, with io_uring, until the last
/// operation in flight of a killed process has landed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lock {
    /// Readers of a sealed layer.
    Shared,
    /// The one writer.
    Exclusive,
}

/// The kind of a directory entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// FIFO, socket, character device, symbolic link.
    Other,
}

/// Facts of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Device and inode: the same for the same file.
    pub id: FileId,
    /// Kind of file.
    pub kind: FileKind,
    /// Size in bytes (of a block device too).
    pub len: u64,
    /// Bytes allocated on the host.
    pub allocated: u64,
    /// Time of the last change, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names of the file.
    pub links: u64,
}

/// Identity of a file on this host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// How to open an existing file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenHow {
    /// Open for writing too.
    pub write: bool,
    /// Bypass the page cache where the filesystem can (else buffered, in silence).
    pub direct: bool,
    /// Refuse a symbolic link as the last component, and anything that is not a regular file. Never blocks on a
    /// FIFO or device.
    pub regular_only: bool,
}

/// A file system name space. Directory operations are rare and synchronous; each is a crash point.
pub trait Storage: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// Its files.
    type File: File;

    /// Opens an existing file.
    fn open(&self, path: &Path, how: OpenHow) -> io::Result<Self::File>;
    /// Makes a new file for reading and writing (EEXIST if the name is taken), direct as in [`OpenHow::direct`].
    fn create(&self, path: &Path, mode: u32) -> io::Result<Self::File>;
    /// Facts of what the path names, following symbolic links.
    fn meta(&self, path: &Path) -> io::Result<Meta>;
    /// The path without symbolic links.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf>;
    /// A second name for a file; EEXIST if taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames, replacing.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// fsync of a directory.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Waits for about this long (simulated: not at all), for bounded retries on the control path.
    fn pause(&self, duration: std::time::Duration) -> impl Future<Output = ()>;
    /// Nanoseconds since 1970.
    fn now_ns(&self) -> i64;
    /// Which run of the kernel this is; all zeros if that cannot be told.
    fn boot_id(&self) -> BootId;
    /// Whether another machine may have the file system of `path` too, so that locks may not keep it out.
    fn is_shared(&self, path: &Path) -> io::Result<bool>;
    /// Fills `bytes` from the system's random source.
    fn random(&self, bytes: &mut [u8]) -> io::Result<()>;
}

/// Makes the names in the directory of `path` durable.
///
/// # Errors
/// What the host says, with the directory.
pub fn sync_directory_of<S: Storage>(storage: &S, path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new(""));
    storage.sync_dir(dir).map_err(|e| Error::io("sync directory", e).at(dir))
}
