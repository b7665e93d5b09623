//! What a directory can do for images in it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::sys;
use super::{Finding, Level};
use crate::error::printable;
use crate::storage::host::{FileSystem, Medium};
use crate::storage::uring::Uring;
use crate::storage::{File as _, IoBuf, Lock, OpenHow, Storage};
use crate::units::BLOCK_SIZE;

/// Bytes of the file that things are tried on.
const PROBE_BYTES: usize = 1 << 20;
/// Less free space than this is worth a word: a journal and a step of growth.
const LITTLE_SPACE: u64 = 256 << 20;

/// Looks at `dir`, without symbolic links, by making files in it that go again.
pub(super) fn examine(dir: &Path, findings: &mut Vec<Finding>) {
    match FileSystem::of(dir) {
        Ok(found) => findings.extend([file_system(found, dir), free_space(found)]),
        Err(e) => findings.push(unknown("filesystem", "the file system cannot be asked", &e)),
    }
    let probe = match Probe::make(dir) {
        Ok(probe) => probe,
        Err(e) => {
            findings.push(Finding::new(
                ("directory", Level::Failed),
                format!("no file can be made in {}: {e}", printable(&dir.to_string_lossy())),
                "images grow there, and snapshots are new files beside them",
                "run as its owner, or give a directory that can be written to",
            ));
            return;
        }
    };
    findings
        .push(Finding::ok("directory", format!("{} can be written to", printable(&dir.to_string_lossy()))));
    // Everything with a name first: what is left needs none.
    findings.push(hard_links(&probe));
    findings.push(locks(&probe));
    let reflink = reflink(&probe);
    findings.push(direct_io(&probe));
    let file = probe.unnamed();
    findings.push(reservation(&file));
    findings.push(hole_punching(&file));
    findings.push(reflink);
}

fn unknown(check: &'static str, what: &str, error: &io::Error) -> Finding {
    Finding::new(
        (check, Level::Limited),
        format!("{what}: {error}"),
        "it cannot be said whether images work there",
        "try another directory",
    )
}

fn file_system(found: FileSystem, dir: &Path) -> Finding {
    const CHECK: &str = "filesystem";
    let (name, medium) = found.kind();
    let what = format!("{} is on {name}", printable(&dir.to_string_lossy()));
    match medium {
        Medium::Disk => Finding::ok(CHECK, what),
        Medium::Memory => Finding::new(
            (CHECK, Level::Limited),
            format!("{what}, which is memory"),
            "images there are gone after a restart, and their space is taken from RAM and swap",
            "use it for throw-away disks only",
        ),
        Medium::Network => Finding::new(
            (CHECK, Level::Limited),
            format!("{what}, a network file system"),
            "locks and flushed data are as good as its server; a server that goes away stops the disk, and memory \
             pressure can hang a machine that swaps or writes back through it",
            "mount it `hard` and without `nolock` or `local_lock`, and let no second host open an image",
        ),
        Medium::Unknown => Finding::new(
            (CHECK, Level::Note),
            format!("{what} ({:#x}), of which nothing more is known", found.magic),
            "a flush is only as durable as its server makes it",
            "find out what is below it",
        ),
    }
}

fn free_space(found: FileSystem) -> Finding {
    let what = format!("{} MiB are free", found.free_bytes >> 20);
    if found.free_bytes >= LITTLE_SPACE {
        return Finding::ok("free_space", what);
    }
    Finding::new(
        ("free_space", Level::Limited),
        what,
        "writes to a disk fail with ENOSPC, or wait, when its file cannot grow",
        "make room",
    )
}

/// A file that goes when this does.
#[derive(Debug)]
struct Probe {
    path: PathBuf,
    file: Option<File>,
}

impl Probe {
    fn make(dir: &Path) -> io::Result<Probe> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = dir.join(format!(".cowdisk-doctor-{:016x}", u64::from_ne_bytes(random)));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Probe { path, file: Some(file) })
    }

    /// Another name beside it.
    fn beside(&self) -> PathBuf {
        self.path.with_extension("2")
    }

    /// The file, which has no name any more.
    fn unnamed(mut self) -> File {
        let Some(file) = self.file.take() else { unreachable!("it is taken only here") };
        file
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Somebody else removed it, or nothing can be done.
        let _ = fs::remove_file(&self.path);
    }
}

fn hard_links(probe: &Probe) -> Finding {
    let other = probe.beside();
    match fs::hard_link(&probe.path, &other) {
        Ok(()) => {
            let _ = fs::remove_file(&other);
            Finding::ok("hard_links", "hard links work")
        }
        Err(e) => Finding::new(
            ("hard_links", Level::Limited),
            format!("hard links do not work: {e}"),
            "a snapshot gives the head's file a second name; without links no snapshot can be taken",
            "keep images that are to have snapshots on another file system",
        ),
    }
}

/// An exclusive lock must be seen through another open file.
fn locks(probe: &Probe) -> Finding {
    let open = || Uring.open(&probe.path, OpenHow { write: true, direct: false, regular_only: true });
    let seen = || {
        let (first, second) = (open()?, open()?);
        Ok(first.try_lock(Lock::Exclusive)? && second.is_locked(Lock::Shared)?)
    };
    let message = match seen() {
        Ok(true) => return Finding::ok("locks", "locks work"),
        Ok(false) => "a lock is not seen by others".to_owned(),
        Err(e) => {
            let e: io::Error = e;
            format!("locks do not work: {e}")
        }
    };
    Finding::new(
        ("locks", Level::Failed),
        message,
        "two daemons that write one image destroy it, and nothing else keeps them apart",
        "mount the file system with locks, or use another one",
    )
}

fn reflink(probe: &Probe) -> Finding {
    let other = probe.beside();
    let cloned = File::options().write(true).create_new(true).open(&other).and_then(|to| {
        let _ = fs::remove_file(&other);
        probe.file.as_ref().map_or(Ok(()), |from| sys::clone_file(from, &to))
    });
    match cloned {
        Ok(()) => Finding::ok("reflink", "files can share their blocks (reflink)"),
        Err(_) => Finding::new(
            ("reflink", Level::Note),
            "files cannot share their blocks (no reflink)",
            "a copy of an image costs its whole size; forks and snapshots do not need it",
            "nothing; xfs and btrfs have it",
        ),
    }
}

/// On an open file of its own: what is found out afterwards does not need O_DIRECT.
fn direct_io(probe: &Probe) -> Finding {
    const CHECK: &str = "direct_io";
    let opened = File::options().read(true).write(true).open(&probe.path);
    let alignment = opened.as_ref().ok().and_then(sys::direct_alignment);
    let tried = opened.and_then(|file| {
        sys::set_direct(&file)?;
        sys::write(&file, &IoBuf::zeroed(BLOCK_SIZE))
    });
    let why =
        "without O_DIRECT every write goes through the page cache: twice the memory, and less speed at depth";
    let hint = "use ext4 or xfs; on btrfs `chattr +C` on the directory, before the image is made";
    match (tried, alignment) {
        (Ok(()), None) => Finding::ok(CHECK, "O_DIRECT works in blocks of 4096 bytes"),
        (Ok(()), Some((memory, position))) => {
            Finding::ok(CHECK, format!("O_DIRECT works, aligned to {position} bytes (memory: {memory})"))
        }
        (Err(_), Some((_, position))) if position as usize > BLOCK_SIZE => {
            let what = format!(
                "O_DIRECT needs positions aligned to {position} bytes, and cowdisk's blocks have 4096"
            );
            Finding::new((CHECK, Level::Failed), what, "reads and writes of an image fail there", hint)
        }
        (Err(e), _) => {
            Finding::new((CHECK, Level::Limited), format!("O_DIRECT does not work: {e}"), why, hint)
        }
    }
}

fn reservation(file: &File) -> Finding {
    match sys::allocate(file, PROBE_BYTES as i64) {
        Ok(()) => Finding::ok("fallocate", "space can be reserved (fallocate)"),
        Err(e) => Finding::new(
            ("fallocate", Level::Limited),
            format!("space cannot be reserved (fallocate): {e}"),
            "a full host is noticed only by the write that fails",
            "keep room free, or use another file system",
        ),
    }
}

/// What was punched must be gone from the count of allocated blocks.
fn hole_punching(file: &File) -> Finding {
    let tried = || {
        sys::write(file, &IoBuf::zeroed(PROBE_BYTES))?;
        file.sync_data()?;
        let before = file.metadata()?.blocks();
        sys::punch(file, PROBE_BYTES as i64)?;
        file.sync_data()?;
        Ok(file.metadata()?.blocks() < before)
    };
    let message = match tried() {
        Ok(true) => return Finding::ok("hole_punching", "holes can be punched"),
        Ok(false) => "a hole that is punched frees nothing".to_owned(),
        Err(e) => {
            let e: io::Error = e;
            format!("holes cannot be punched: {e}")
        }
    };
    Finding::new(
        ("hole_punching", Level::Limited),
        message,
        "what a guest discards is used again, but never given back to the host",
        "nothing, if images may stay at their largest size",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(magic: u32) -> Level {
        file_system(FileSystem { magic, free_bytes: 0 }, Path::new("/x")).level
    }

    #[test]
    fn file_systems_are_told_by_their_numbers() {
        assert_eq!(level(0xef53), Level::Ok);
        assert_eq!(level(0x6969), Level::Limited);
        assert_eq!(level(0xff53_4d42), Level::Limited);
        assert_eq!(level(0x0102_1994), Level::Limited);
        assert_eq!(level(0x6573_5546), Level::Note);
        assert_eq!(level(1), Level::Note);
    }

    #[test]
    fn little_space_is_said() {
        let at = |free_bytes| free_space(FileSystem { magic: 0, free_bytes }).level;
        assert_eq!((at(LITTLE_SPACE - 1), at(LITTLE_SPACE)), (Level::Limited, Level::Ok));
    }

    #[test]
    fn a_directory_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut findings = Vec::new();
        examine(dir.path(), &mut findings);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let checks: Vec<_> = findings.iter().map(|f| f.check).collect();
        let all = [
            "filesystem",
            "free_space",
            "directory",
            "hard_links",
            "locks",
            "direct_io",
            "fallocate",
            "hole_punching",
            "reflink",
        ];
        assert_eq!(checks, all);
        assert!(findings.iter().all(|f| f.level == Level::Ok || f.why.is_some() && f.hint.is_some()));
    }
}
