//! Files on io_uring.
#![expect(unsafe_code, reason = "open, fcntl, fallocate and stat calls; each block states why it holds")]

use std::ffi::{CStr, CString};
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use io_uring::{opcode, types};

use super::{Done, File, FileId, FileKind, IoBuf, IoVecs, Lock, Meta, OpenHow, Storage};
use crate::format::BootId;
use crate::runtime::{self, Op, Payload};
use crate::storage::host::FileSystem;

/// The host's file systems through io_uring. Operations run on the ring of the thread that starts them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uring;

/// An open file.
#[derive(Clone, Debug)]
pub struct UringFile {
    fd: Arc<OwnedFd>,
}

/// A running file operation.
#[derive(Debug)]
pub struct FileOp(Op);

impl Future for FileOp {
    type Output = Done;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        Pin::new(&mut self.0).poll(cx).map(|output| {
            let result = output.result();
            let vecs = match output.payload {
                Payload::Vecs(vecs) => vecs,
                _ => IoVecs::new(),
            };
            Done { result, vecs }
        })
    }
}

impl UringFile {
    /// The descriptor, for callers that pass it to the kernel (registered files, locks shown in `status`).
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn target(&self) -> types::Fd {
        types::Fd(self.fd())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "buffers are bounded by limits.rs, far below 4 GiB")]
impl File for UringFile {
    type Op = FileOp;

    fn read(&self, buf: IoBuf, pos: u64) -> FileOp {
        let (address, len) = (buf.as_ptr(), buf.len() as u32);
        let entry = match buf.entry() {
            None => opcode::Read::new(self.target(), address, len).offset(pos).build(),
            Some(index) => opcode::ReadFixed::new(self.target(), address, len, index).offset(pos).build(),
        };
        FileOp(runtime::submit(entry, Payload::Buf(buf)))
    }

    fn write(&self, vecs: IoVecs, pos: u64) -> FileOp {
        let entry = match (vecs.raw(), vecs.entry()) {
            ([one], Some(index)) => {
                let (address, len) = (one.iov_base.cast_const().cast(), one.iov_len as u32);
                opcode::WriteFixed::new(self.target(), address, len, index).offset(pos).build()
            }
            ([one], None) => {
                opcode::Write::new(self.target(), one.iov_base.cast(), one.iov_len as u32).offset(pos).build()
            }
            (raw, _) => {
                opcode::Writev::new(self.target(), raw.as_ptr(), raw.len() as u32).offset(pos).build()
            }
        };
        FileOp(runtime::submit(entry, Payload::Vecs(vecs)))
    }

    fn sync_data(&self) -> FileOp {
        let entry = opcode::Fsync::new(self.target()).flags(types::FsyncFlags::DATASYNC).build();
        FileOp(runtime::submit(entry, Payload::None))
    }

    fn allocate(&self, pos: u64, len: u64) -> FileOp {
        let entry = opcode::Fallocate::new(self.target(), len).offset(pos).mode(0).build();
        FileOp(runtime::submit(entry, Payload::None))
    }

    fn punch(&self, pos: u64, len: u64) -> FileOp {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let entry = opcode::Fallocate::new(self.target(), len).offset(pos).mode(mode).build();
        FileOp(runtime::submit(entry, Payload::None))
    }

    fn meta(&self) -> io::Result<Meta> {
        let file = self.borrow_std();
        let mut meta = to_meta(&file.metadata()?);
        if meta.kind == FileKind::BlockDevice {
            use std::io::Seek;
            meta.len = (&*file).seek(io::SeekFrom::End(0))?;
        }
        Ok(meta)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.borrow_std().set_len(len)
    }

    fn try_lock(&self, lock: Lock) -> io::Result<bool> {
        let range = whole_file(lock);
        // SAFETY: the struct lives over the call. Open-file-description locks need l_pid = 0, as it is.
        if unsafe { libc::fcntl(self.fd(), libc::F_OFD_SETLK, &range) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Ok(false),
            _ => Err(error),
        }
    }

    fn is_locked(&self, lock: Lock) -> io::Result<bool> {
        let mut range = whole_file(lock);
        // SAFETY: the kernel reads and writes the struct, which lives over the call.
        if unsafe { libc::fcntl(self.fd(), libc::F_OFD_GETLK, &mut range) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(i32::from(range.l_type) != libc::F_UNLCK)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.borrow_std().set_permissions(fs::Permissions::from_mode(mode))
    }

    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        std::os::unix::fs::fchown(&*self.fd, Some(uid), Some(gid))
    }

    fn copy_access(&self, from: &Self) -> io::Result<()> {
        let meta = from.meta()?;
        self.set_owner(meta.uid, meta.gid)?;
        self.set_mode(meta.mode)?;
        // Behind the mode, which an access list refines.
        for name in [c"system.posix_acl_access", c"security.selinux"] {
            if let Some(value) = xattr(from.fd(), name)? {
                set_xattr(self.fd(), name, &value)?;
            }
        }
        Ok(())
    }
}

impl UringFile {
    /// A `std` file on the same descriptor that does not close it.
    fn borrow_std(&self) -> std::mem::ManuallyDrop<fs::File> {
        // SAFETY: the descriptor is open as long as `self`, and ManuallyDrop keeps this view from closing it.
        std::mem::ManuallyDrop::new(unsafe { fs::File::from_raw_fd(self.fd()) })
    }
}

fn whole_file(lock: Lock) -> libc::flock {
    let kind = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
    };
    // SAFETY: an all-zero flock is valid; it means the whole file.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range
}

/// Largest extended attribute, as Linux has it.
const MAX_XATTR: usize = 64 * 1024;

/// An extended attribute; `None` where there is none, or the file system has no such things.
fn xattr(fd: RawFd, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; MAX_XATTR];
    // SAFETY: the name is a live C string, and at most `value.len()` bytes are written to `value`.
    let len = unsafe { libc::fgetxattr(fd, name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let Ok(len) = usize::try_from(len) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(None),
            _ => Err(error),
        };
    };
    value.truncate(len);
    Ok(Some(value))
}

fn set_xattr(fd: RawFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: the name is a live C string, and `value.len()` bytes of `value` are read.
    let result = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn to_meta(m: &fs::Metadata) -> Meta {
    let kind = match m.file_type() {
        t if t.is_file() => FileKind::Regular,
        t if t.is_dir() => FileKind::Directory,
        t if t.is_block_device() => FileKind::BlockDevice,
        _ => FileKind::Other,
    };
    Meta {
        id: FileId { dev: m.dev(), ino: m.ino() },
        kind,
        len: m.len(),
        allocated: m.blocks() * 512,
        mtime_ns: m.mtime().saturating_mul(1_000_000_000).saturating_add(m.mtime_nsec()),
        mode: m.mode() & 0o7777,
        uid: m.uid(),
        gid: m.gid(),
        links: m.nlink(),
    }
}

fn open_raw(path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the name is a live C string; the result is checked and owned once.
    unsafe {
        let fd = libc::open(name.as_ptr(), flags | libc::O_CLOEXEC, mode);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Turns O_DIRECT on for an open file; `false` where the filesystem cannot (tmpfs).
fn try_direct(fd: &OwnedFd) -> bool {
    // SAFETY: F_GETFL and F_SETFL take and give plain numbers.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        flags >= 0 && libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT) == 0
    }
}

impl Storage for Uring {
    type File = UringFile;

    fn open(&self, path: &Path, how: OpenHow) -> io::Result<UringFile> {
        let mut flags = if how.write { libc::O_RDWR } else { libc::O_RDONLY };
        if how.regular_only {
            // NONBLOCK: a FIFO without a writer must not hang the open; it means nothing for regular files.
            flags |= libc::O_NOFOLLOW | libc::O_NONBLOCK;
        }
        let fd = open_raw(path, flags, 0)?;
        let file = UringFile { fd: Arc::new(fd) };
        if how.regular_only && file.meta()?.kind != FileKind::Regular {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if how.direct {
            try_direct(&file.fd);
        }
        Ok(file)
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<UringFile> {
        let fd = open_raw(path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW, mode)?;
        try_direct(&fd);
        Ok(UringFile { fd: Arc::new(fd) })
    }

    fn meta(&self, path: &Path) -> io::Result<Meta> {
        Ok(to_meta(&fs::metadata(path)?))
    }
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        fs::File::open(dir)?.sync_all()
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }
    async fn pause(&self, duration: Duration) {
        runtime::sleep(duration).await;
    }
    fn now_ns(&self) -> i64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }
    fn boot_id(&self) -> BootId {
        let text = fs::read_to_string(BOOT_ID).unwrap_or_default();
        boot_id_of(text.trim_end()).unwrap_or_default()
    }
    fn is_shared(&self, path: &Path) -> io::Result<bool> {
        Ok(FileSystem::of(path)?.may_be_shared())
    }
    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(io::Error::other)
    }
}

/// Where the kernel names its run: a UUID.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn boot_id_of(uuid: &str) -> Option<BootId> {
    let digits: Vec<u8> = uuid.bytes().filter(|b| *b != b'-').collect();
    let mut id = [0; 16];
    if digits.len() != 2 * id.len() {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(BootId(id))
}

/// Makes a directory that only its owner may enter, if it is not there.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}
