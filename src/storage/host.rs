//! What the kernel says of a file system.
#![expect(unsafe_code, reason = "statfs; the block states why it holds")]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A kind of file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Medium {
    /// Of this machine.
    Disk,
    /// Gone with this machine.
    Memory,
    /// Several machines have it.
    Network,
    /// It may be anything.
    Unknown,
}

/// Magic numbers of `linux/magic.h` and of the file systems themselves.
const FILE_SYSTEMS: [(u32, &str, Medium); 25] = [
    (0xef53, "ext2/3/4", Medium::Disk),
    (0x5846_5342, "xfs", Medium::Disk),
    (0x9123_683e, "btrfs", Medium::Disk),
    (0xf2f5_2010, "f2fs", Medium::Disk),
    (0xca45_1a4e, "bcachefs", Medium::Disk),
    (0x2fc1_2fc1, "zfs", Medium::Disk),
    (0x7461_636f, "ocfs2", Medium::Network),
    (0x0116_1970, "gfs2", Medium::Network),
    (0x794c_7630, "overlayfs", Medium::Disk),
    (0x4d44, "vfat", Medium::Disk),
    (0x2011_bab0, "exfat", Medium::Disk),
    (0x7366_746e, "ntfs", Medium::Disk),
    (0xf15f, "ecryptfs", Medium::Disk),
    (0x0102_1994, "tmpfs", Medium::Memory),
    (0x8584_58f6, "ramfs", Medium::Memory),
    (0x6969, "nfs", Medium::Network),
    (0x517b, "smb", Medium::Network),
    (0xff53_4d42, "cifs", Medium::Network),
    (0xfe53_4d42, "smb2", Medium::Network),
    (0x00c3_6400, "ceph", Medium::Network),
    (0x5346_414f, "afs", Medium::Network),
    (0x6b41_4653, "afs", Medium::Network),
    (0x0102_1997, "9p", Medium::Network),
    (0x0bd0_0bd0, "lustre", Medium::Network),
    (0x6573_5546, "fuse", Medium::Unknown),
];

/// What `statfs` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSystem {
    /// Its magic number (`linux/magic.h`).
    pub magic: u32,
    /// Bytes that this user may still use.
    pub free_bytes: u64,
}

impl FileSystem {
    /// That of `path`.
    ///
    /// # Errors
    /// What the host says.
    pub fn of(path: &Path) -> io::Result<FileSystem> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut info = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: the name is a live C string, and the kernel fills the structure if it answers 0.
        let info = unsafe {
            if libc::statfs(name.as_ptr(), info.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            info.assume_init()
        };
        // The magic numbers have 32 bits, in a field whose width and sign depend on the machine.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "32 bits by definition")]
        let magic = info.f_type as u32;
        let block = u64::try_from(info.f_bsize).unwrap_or(0);
        Ok(FileSystem { magic, free_bytes: info.f_bavail.saturating_mul(block) })
    }

    /// Its name, and what it is.
    pub fn kind(&self) -> (&'static str, Medium) {
        let known = FILE_SYSTEMS.iter().find(|(magic, ..)| *magic == self.magic);
        known.map_or(("unknown", Medium::Unknown), |&(_, name, medium)| (name, medium))
    }

    /// Whether another machine may have it too. (What FUSE serves may be anything; what has no name here is a disk's.)
    pub fn may_be_shared(&self) -> bool {
        match self.kind() {
            (_, Medium::Network) => true,
            (name, Medium::Unknown) => name == "fuse",
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_machines_may_have() {
        let shared = |magic| FileSystem { magic, free_bytes: 0 }.may_be_shared();
        assert!(shared(0x6969) && shared(0xff53_4d42) && shared(0x7461_636f), "nfs, cifs, ocfs2");
        assert!(shared(0x6573_5546), "fuse");
        assert!(!shared(0xef53) && !shared(0x0102_1994) && !shared(1), "ext4, tmpfs, unknown");
    }

    #[test]
    fn a_path_that_is_not_there_has_none() {
        let error = FileSystem::of(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(FileSystem::of(Path::new("/")).unwrap().magic > 0);
    }
}
