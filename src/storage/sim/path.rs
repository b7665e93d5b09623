//! Paths of the simulated name space: relative ones start at the root, symbolic links are followed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::state::State;
use crate::storage::FileKind;

/// Symbolic links in one path, as Linux has it.
const MAX_LINKS: u32 = 40;
/// Longest name, as Linux has it.
const MAX_NAME: usize = 255;

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn check_name(name: &OsStr) -> io::Result<()> {
    if name.as_bytes().contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if name.len() > MAX_NAME { Err(error(libc::ENAMETOOLONG)) } else { Ok(()) }
}

/// The components still to walk, last first; `..` stays, for it means the directory that a link led to.
fn components(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    let mut parts: Vec<OsString> = parts.map(|part| part.as_os_str().to_owned()).collect();
    parts.reverse();
    parts
}

impl State {
    /// The absolute path without symbolic links; `follow` says whether the last component is followed too.
    /// It need not exist.
    pub(super) fn resolve(&self, path: &Path, follow: bool) -> io::Result<PathBuf> {
        let mut todo = components(path);
        let mut links = 0;
        let mut here = PathBuf::from("/");
        while let Some(part) = todo.pop() {
            if part == ".." {
                here.pop();
                continue;
            }
            check_name(&part)?;
            // A leading "/" in a link's target starts over, which is what `join` does.
            let next = here.join(&part);
            let inode = self.names.get(&next).and_then(|ino| self.inodes.get(&ino));
            match inode {
                Some(inode) if inode.target.is_some() && (follow || !todo.is_empty()) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(error(libc::ELOOP));
                    }
                    todo.extend(inode.target.iter().flat_map(|target| components(target)));
                }
                Some(inode) if inode.kind != FileKind::Directory && !todo.is_empty() => {
                    return Err(error(libc::ENOTDIR));
                }
                _ => here = next,
            }
        }
        Ok(here)
    }

    /// True for the root, for directories that were put there, and for whatever something lies below.
    pub(super) fn is_dir(&self, path: &Path) -> bool {
        let put = self.names.get(path).and_then(|ino| self.inodes.get(&ino));
        path == Path::new("/")
            || put.is_some_and(|inode| inode.kind == FileKind::Directory)
            || self.names.has_children(path)
    }

    /// The inode that a resolved path names; EISDIR for a directory, ENOENT for nothing.
    pub(super) fn lookup(&self, path: &Path) -> io::Result<u64> {
        if self.is_dir(path) {
            return Err(error(libc::EISDIR));
        }
        self.names.get(path).ok_or_else(|| error(libc::ENOENT))
    }

    /// EEXIST if a resolved path is taken.
    pub(super) fn check_free(&self, path: &Path) -> io::Result<()> {
        if self.is_dir(path) || self.names.get(path).is_some() { Err(error(libc::EEXIST)) } else { Ok(()) }
    }
}
