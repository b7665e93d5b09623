//! The error of the whole project: a small kind to match on, and the place where it happened.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, for callers that must decide; the names are the `code` of `--json` errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Kind {
    /// Another process holds the image, or the device is open.
    InUse,
    /// The file to be made is there already.
    Exists,
    /// A file, snapshot or device does not exist.
    NotFound,
    /// A layer's parent cannot be found.
    ParentMissing,
    /// A layer's parent is there but is not what the layer was made on.
    ParentChanged,
    /// A structure or a data block fails verification.
    Corrupt,
    /// The host has no space left.
    NoSpace,
    /// A feature, format or option this version does not know or cannot do here.
    Unsupported,
    /// The operating system refused access.
    Permission,
    /// A name or path that cannot be used.
    BadName,
    /// Wrong use: an argument outside its range.
    Usage,
    /// The layer stopped accepting writes after a failed sync or journal write.
    Poisoned,
    /// Any other input/output error.
    Io,
}

impl Kind {
    /// The stable `code` printed by `--json`.
    pub const fn code(self) -> &'static str {
        match self {
            Kind::InUse => "in_use",
            Kind::Exists => "exists",
            Kind::NotFound => "not_found",
            Kind::ParentMissing => "parent_missing",
            Kind::ParentChanged => "parent_changed",
            Kind::Corrupt => "corrupt",
            Kind::NoSpace => "no_space",
            Kind::Unsupported => "unsupported",
            Kind::Permission => "permission",
            Kind::BadName | Kind::Usage => "bad_name",
            Kind::Poisoned | Kind::Io => "io",
        }
    }

    /// The errno a guest or client gets for it.
    pub const fn errno(self) -> i32 {
        match self {
            Kind::NoSpace => libc::ENOSPC,
            Kind::Unsupported => libc::EOPNOTSUPP,
            Kind::Usage | Kind::BadName => libc::EINVAL,
            Kind::Permission => libc::EPERM,
            _ => libc::EIO,
        }
    }
}

/// An error with its place: which file, at which byte, doing what.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    path: Option<PathBuf>,
    offset: Option<u64>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    hint: Option<String>,
}

/// The result of nearly everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `message` says what was found or could not be done.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), path: None, offset: None, source: None, hint: None }
    }

    /// An operating system error while doing `what`; the kind follows from the errno.
    pub fn io(what: impl Into<String>, source: io::Error) -> Error {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Kind::NoSpace,
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => Kind::Permission,
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV) => Kind::NotFound,
            Some(libc::EEXIST) => Kind::Exists,
            Some(libc::EBUSY | libc::ETXTBSY) => Kind::InUse,
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => Kind::Unsupported,
            Some(libc::ENAMETOOLONG | libc::ELOOP) => Kind::BadName,
            _ => Kind::Io,
        };
        Error { source: Some(Box::new(source)), ..Error::new(kind, what) }
    }

    /// A structure that does not verify.
    pub fn corrupt(message: impl Into<String>) -> Error {
        Error::new(Kind::Corrupt, message)
    }

    /// Names the file, unless a place nearer to the cause did.
    #[must_use]
    pub fn at(mut self, path: impl AsRef<Path>) -> Error {
        self.path.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }

    /// Names the byte offset in the file, unless a place nearer to the cause did.
    #[must_use]
    pub fn offset(mut self, offset: u64) -> Error {
        self.offset.get_or_insert(offset);
        self
    }

    /// The command to try next, printed as `try: COMMAND`.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// What to match on.
    pub const fn kind(&self) -> Kind {
        self.kind
    }
    /// The file it happened in.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
    /// The byte it happened at.
    pub const fn at_offset(&self) -> Option<u64> {
        self.offset
    }
    /// What to try next.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
    /// The message with offset and cause, without the path.
    pub fn message(&self) -> String {
        self.text(self.offset)
    }
    /// The message with its cause, without its place.
    pub fn without_place(&self) -> String {
        self.text(None)
    }

    fn text(&self, offset: Option<u64>) -> String {
        let mut text = self.message.clone();
        if let Some(offset) = offset {
            text.push_str(&format!(" at offset {offset}"));
        }
        if let Some(source) = &self.source {
            text.push_str(&format!(": {source}"));
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", printable(&path.to_string_lossy()))?;
        }
        f.write_str(&printable(&self.message()))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn std::error::Error + 'static))
    }
}

/// `text` with control characters escaped: names come from files that strangers made.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_place_stays() {
        let e = Error::corrupt("node checksum").at("/a").offset(8192).at("/b").offset(1);
        assert_eq!(e.to_string(), "/a: node checksum at offset 8192");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\u{1b}[2J\n"), "a\\u{1b}[2J\\n");
    }

    #[test]
    fn errno_decides_the_kind() {
        let e = Error::io("write", io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!((e.kind(), e.kind().errno()), (Kind::NoSpace, libc::ENOSPC));
    }
}
