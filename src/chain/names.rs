//! Names of images and snapshots: `vm.cow`, `vm.cow@s1`, and the file `vm@s1.cow`.

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::limits::MAX_NAME_BYTES;
use crate::storage::{FileKind, Storage};

/// A valid snapshot name.
#[derive(Clone, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// Checks `name`: 1 to 100 bytes, no `/`, `@` or control characters, not beginning with `.`, `-` or `~`.
    pub fn new(name: &str) -> Result<SnapshotName> {
        let bad = |why: &str| {
            let text = format!("snapshot name {:?}: {why}", crate::error::printable(name));
            Err(Error::new(Kind::BadName, text))
        };
        if name.is_empty() {
            return bad("it is empty");
        }
        if name.len() > MAX_NAME_BYTES {
            return bad("it is longer than 100 bytes");
        }
        if name.starts_with(['.', '-', '~']) {
            return bad("it begins with `.`, `-` or `~`");
        }
        if name.contains(['/', '@']) || name.chars().any(char::is_control) {
            return bad("it holds `/`, `@` or a control character");
        }
        Ok(SnapshotName(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Splits `path@NAME`: only the last component, at its last `@`. A path that has its `@` in front of an extension
/// (`vm@s1.cow`) is a file's name and stays whole.
pub fn split_name(given: &Path) -> Result<(PathBuf, Option<SnapshotName>)> {
    let file = given.file_name().and_then(|f| f.to_str()).unwrap_or_default();
    let Some((stem, name)) = file.rsplit_once('@') else { return Ok((given.to_path_buf(), None)) };
    if stem.is_empty() {
        return Err(Error::new(Kind::BadName, "no image in front of `@`").at(given));
    }
    // `vm@s1.cow`: the file of snapshot s1 itself. `vm.cow@s1`: the snapshot s1 of vm.cow.
    if is_snapshot_file(stem, name) {
        return Ok((given.to_path_buf(), None));
    }
    Ok((given.with_file_name(stem), Some(SnapshotName::new(name).map_err(|e| e.at(given))?)))
}

/// The image and the name in `IMAGE@NAME`, or in the snapshot's own path `stem@NAME.extension`.
///
/// # Errors
/// `Usage` if no snapshot is named, `BadName`.
pub fn split_snapshot(given: &Path) -> Result<(PathBuf, SnapshotName)> {
    let (image, name) = split_name(given)?;
    if let Some(name) = name {
        return Ok((image, name));
    }
    let file = given.file_name().and_then(|f| f.to_str()).unwrap_or_default();
    let Some((stem, rest)) = file.rsplit_once('@') else {
        return Err(Error::new(Kind::Usage, "a snapshot is called IMAGE@NAME").at(given));
    };
    let (name, extension) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let name = SnapshotName::new(name).map_err(|e| e.at(given))?;
    Ok((given.with_file_name(format!("{stem}.{extension}")), name))
}

fn is_snapshot_file(stem: &str, name: &str) -> bool {
    !stem.contains('.') && name.contains('.')
}

/// The file of snapshot `name` of `image`: `@NAME` goes before the extension.
pub fn snapshot_path(image: &Path, name: &SnapshotName) -> PathBuf {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy();
    let file = match image.extension() {
        Some(ext) => format!("{stem}@{}.{}", name.0, ext.to_string_lossy()),
        None => format!("{stem}@{}", name.0),
    };
    image.with_file_name(file)
}

/// Numbers that are tried for a layer without a name.
const MAX_NAMELESS: usize = 2 * crate::limits::MAX_CHAIN;

/// A free file for a sealed layer of `image` that is no snapshot: `vm@~1.cow`, which no snapshot can be called.
///
/// # Errors
/// All are taken.
pub fn nameless_path<S: Storage>(storage: &S, image: &Path) -> Result<PathBuf> {
    let paths = (1..=MAX_NAMELESS).map(|n| snapshot_path(image, &SnapshotName(format!("~{n}"))));
    paths
        .into_iter()
        .find(|path| storage.meta(path).is_err())
        .ok_or_else(|| Error::new(Kind::Exists, "it has all the layers that it may have").at(image))
}

/// Marks a file that is being made.
const TEMPORARY: &str = ".cowdisk-";
/// Bytes of the name that a temporary name repeats: file systems end at 255.
const MAX_REPEATED: usize = 200;

/// Everything of a temporary name for `file` but its random end.
fn temporary_prefix(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let end = (0..=name.len().min(MAX_REPEATED)).rev().find(|&i| name.is_char_boundary(i)).unwrap_or(0);
    format!(".{}{TEMPORARY}", &name[..end])
}

/// Where a file is made that will become `file`: beside it, under a name that nobody else uses.
fn temporary_path(file: &Path, random: [u8; 4]) -> PathBuf {
    file.with_file_name(format!("{}{:08x}", temporary_prefix(file), u32::from_be_bytes(random)))
}

/// A [`temporary_path`] that nobody else uses.
///
/// # Errors
/// The system has no random bytes.
pub fn unused_temporary<S: Storage>(storage: &S, file: &Path) -> Result<PathBuf> {
    let mut random = [0; 4];
    storage.random(&mut random).map_err(|e| Error::io("read random bytes", e))?;
    Ok(temporary_path(file, random))
}

/// True if `name` is one that [`temporary_path`] gives for `file`.
pub fn is_temporary(name: &str, file: &Path) -> bool {
    let random = name.strip_prefix(&*temporary_prefix(file));
    random.is_some_and(|r| r.len() == 8 && r.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The real file of the image `path`: symbolic links followed, and it is a regular file.
///
/// # Errors
/// `NotFound`, `BadName` for anything but a regular file, or what the host says. Nothing is opened.
pub fn image_file<S: Storage>(storage: &S, path: &Path) -> Result<PathBuf> {
    let real = storage.canonical(path).map_err(|e| Error::io("open", e).at(path))?;
    let meta = storage.meta(&real).map_err(|e| Error::io("open", e).at(path))?;
    let what = match meta.kind {
        FileKind::Regular => return Ok(real),
        FileKind::Directory => "a directory",
        FileKind::BlockDevice => "a block device",
        FileKind::Other => "a FIFO, socket or device",
    };
    Err(Error::new(Kind::BadName, format!("not an image: it is {what}")).at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_component_is_split_at_its_last_at() {
        let split = |p: &str| split_name(Path::new(p)).map(|(p, n)| (p, n.map(|n| n.0)));
        assert_eq!(split("a@b/vm.cow").unwrap(), ("a@b/vm.cow".into(), None));
        assert_eq!(split("a@b/vm.cow@s1").unwrap(), ("a@b/vm.cow".into(), Some("s1".into())));
        assert_eq!(split("vm@s1.cow").unwrap(), ("vm@s1.cow".into(), None));
        assert_eq!(split("vm.cow@2026.01").unwrap(), ("vm.cow".into(), Some("2026.01".into())));
        assert!(split("vm.cow@").is_err());
        assert!(split("@s1").is_err());
    }

    #[test]
    fn a_snapshots_file_names_image_and_snapshot() {
        let split = |p: &str| split_snapshot(Path::new(p)).map(|(p, n)| (p, n.0));
        assert_eq!(split("a/vm.cow@s1").unwrap(), ("a/vm.cow".into(), "s1".into()));
        assert_eq!(split("a/vm@s1.cow").unwrap(), ("a/vm.cow".into(), "s1".into()));
        assert_eq!(split("vm@2026.01.cow").unwrap(), ("vm.cow".into(), "2026.01".into()));
        assert_eq!(split("vm@s1").unwrap(), ("vm".into(), "s1".into()));
        assert!(split("a@b/vm.cow").is_err());
        assert!(split("vm@.cow").is_err());
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in ["", "a/b", "a@b", ".a", "-a", "~a", "a\nb", &"x".repeat(101)] {
            assert!(SnapshotName::new(bad).is_err(), "{bad:?}");
        }
        assert!(SnapshotName::new(&"x".repeat(100)).is_ok());
        let name = SnapshotName::new("s 1").unwrap();
        assert_eq!(snapshot_path(Path::new("/d/vm.cow"), &name), Path::new("/d/vm@s 1.cow"));
        assert_eq!(snapshot_path(Path::new("disk"), &name), Path::new("disk@s 1"));
    }

    #[test]
    fn temporary_names_are_told_from_others() {
        let file = Path::new("/d/vm.cow");
        let temporary = temporary_path(file, [0, 1, 2, 0xff]);
        assert_eq!(temporary, Path::new("/d/.vm.cow.cowdisk-000102ff"));
        assert!(is_temporary(".vm.cow.cowdisk-000102ff", file));
        for other in [".vm.cow.cowdisk-", ".vm.cow.cowdisk-000102f", ".a.cow.cowdisk-000102ff", "vm.cow"] {
            assert!(!is_temporary(other, file), "{other}");
        }
        let long = temporary_path(Path::new(&"ü".repeat(127)), [0; 4]);
        assert!(long.as_os_str().len() <= 255);
    }
}
