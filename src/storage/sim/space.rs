//! The name space of a simulated disk as the engine sees it.

use std::io;
use std::path::{Path, PathBuf};
use std::task::Poll;
use std::time::Duration;

use super::OpKind;
use super::disk::SimDisk;
use super::file::SimFile;
use super::pages::Content;
use super::state::{Inode, State};
use crate::format::BootId;
use crate::storage::{FileKind, Meta, OpenHow, Storage};

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl State {
    /// The inode that `open` opens.
    fn find(&self, path: &Path, how: OpenHow) -> io::Result<u64> {
        let path = self.resolve(path, !how.regular_only)?;
        if how.regular_only && self.is_dir(&path) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let ino = self.lookup(&path)?;
        let inode = self.inode(ino);
        match inode.kind {
            _ if inode.target.is_some() => Err(error(libc::ELOOP)),
            FileKind::Regular => Ok(ino),
            _ if how.regular_only => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
            FileKind::BlockDevice => Ok(ino),
            // Where a real open would wait for the other end of a FIFO.
            FileKind::Directory | FileKind::Other => Err(error(libc::ENXIO)),
        }
    }

    fn create(&mut self, path: &Path, mode: u32) -> io::Result<u64> {
        let path = self.resolve(path, false)?;
        self.check_free(&path)?;
        let now_ns = self.now_ns();
        let ino = self.add_inode(Inode::new(FileKind::Regular, mode & 0o7777, Content::default(), now_ns));
        self.names.change(vec![(path, Some(ino))]);
        Ok(ino)
    }

    fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.resolve(from, false)?, self.resolve(to, false)?);
        let ino = self.lookup(&from)?;
        self.check_free(&to)?;
        self.names.change(vec![(to, Some(ino))]);
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.resolve(from, false)?, self.resolve(to, false)?);
        let ino = self.lookup(&from)?;
        if self.is_dir(&to) {
            return Err(error(libc::EISDIR));
        }
        // Two names of one file: rename(2) does nothing.
        if self.names.get(&to) != Some(ino) {
            self.names.rename(from, to, ino);
        }
        Ok(())
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        let path = self.resolve(path, false)?;
        self.lookup(&path)?;
        self.names.change(vec![(path, None)]);
        Ok(())
    }

    fn sync_dir(&mut self, dir: &Path, fault: io::Result<()>) -> io::Result<()> {
        let dir = self.directory(dir)?;
        let State { names, rng, .. } = self;
        match &fault {
            Ok(()) => names.sync(&dir, || true),
            Err(_) => names.sync(&dir, || rng.chance(1, 2)),
        }
        self.forget_unreachable();
        fault
    }

    /// The directory that a path names. It need not be there: nobody makes directories.
    fn directory(&self, dir: &Path) -> io::Result<PathBuf> {
        let dir = self.resolve(dir, true)?;
        if self.is_dir(&dir) || self.names.get(&dir).is_none() { Ok(dir) } else { Err(error(libc::ENOTDIR)) }
    }
}

impl Storage for SimDisk {
    type File = SimFile;

    fn open(&self, path: &Path, how: OpenHow) -> io::Result<SimFile> {
        let description = self.at_once(OpKind::Open, path, 0, |state, fault| {
            fault?;
            let ino = state.find(path, how)?;
            Ok(state.open(ino, path, how.write, how.direct))
        });
        description.map(|description| SimFile::new(self, description))
    }

    fn create(&self, path: &Path, mode: u32) -> io::Result<SimFile> {
        let description = self.at_once(OpKind::Create, path, 0, |state, fault| {
            fault?;
            let ino = state.create(path, mode)?;
            Ok(state.open(ino, path, true, true))
        });
        description.map(|description| SimFile::new(self, description))
    }

    fn meta(&self, path: &Path) -> io::Result<Meta> {
        let state = self.state();
        let path = state.resolve(path, true)?;
        match state.names.get(&path) {
            Some(ino) => Ok(state.meta(ino)),
            None if state.is_dir(&path) => Ok(State::meta_of_dir()),
            None => Err(error(libc::ENOENT)),
        }
    }

    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        let state = self.state();
        let path = state.resolve(path, true)?;
        if state.is_dir(&path) || state.names.get(&path).is_some() {
            Ok(path)
        } else {
            Err(error(libc::ENOENT))
        }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.at_once(OpKind::Link, to, 0, |state, fault| fault.and_then(|()| state.link(from, to)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.at_once(OpKind::Rename, to, 0, |state, fault| fault.and_then(|()| state.rename(from, to)))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.at_once(OpKind::Unlink, path, 0, |state, fault| fault.and_then(|()| state.unlink(path)))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.at_once(OpKind::SyncDir, dir, 0, |state, fault| state.sync_dir(dir, fault))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        Ok(state.names.list(&state.directory(dir)?))
    }

    /// Lets every other task go first, once; the clock moves on.
    async fn pause(&self, duration: Duration) {
        self.state().clock_ns += i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX / 4);
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    fn now_ns(&self) -> i64 {
        self.state().now_ns()
    }

    fn boot_id(&self) -> BootId {
        BootId(u128::from(self.boot()).to_le_bytes())
    }

    fn is_shared(&self, _: &Path) -> io::Result<bool> {
        Ok(self.state().shared)
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        self.state().rng.fill(bytes);
        Ok(())
    }
}
