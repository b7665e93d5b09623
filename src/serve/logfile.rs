//! The log of a daemon that runs by itself: lines with their time, in two files of a bounded size.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::calendar::utc;
use crate::error::printable;

/// Bytes of a file after which the next one is begun; the one before is kept.
const MAX_BYTES: u64 = 1 << 20;

/// An open log.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl LogFile {
    /// Goes on with the log at `path`.
    pub(super) fn open(path: &Path) -> io::Result<LogFile> {
        let how = libc::O_NOFOLLOW;
        let file = File::options().create(true).append(true).mode(0o640).custom_flags(how).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, bytes })
    }

    /// Adds a line.
    pub(super) fn line(&mut self, text: &str) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let line =
            format!("{} {}\n", utc(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)), printable(text));
        // A log that cannot be written to stops nobody.
        if self.file.write_all(line.as_bytes()).is_ok() {
            self.bytes += line.len() as u64;
        }
        if self.bytes > MAX_BYTES {
            self.rotate();
        }
    }

    fn rotate(&mut self) {
        let rotated = fs::rename(&self.path, self.path.with_extension("log.1"));
        if let Ok(next) = rotated.and_then(|()| LogFile::open(&self.path)) {
            *self = next;
        }
    }

    /// Removes the log.
    pub(super) fn remove(self) {
        for path in [self.path.with_extension("log.1"), self.path] {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_continued_bounded_and_has_one_line_for_each_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        LogFile::open(&path).unwrap().line("first\nstill first");
        let mut log = LogFile::open(&path).unwrap();
        log.line("second");
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 2 && lines[0].ends_with(" UTC first\\nstill first"), "{text}");
        let long = "x".repeat(4000);
        for _ in 0..1000 {
            log.line(&long);
        }
        let sizes: Vec<u64> =
            ["x.log", "x.log.1"].map(|n| fs::metadata(dir.path().join(n)).unwrap().len()).into();
        assert!(sizes.iter().all(|&bytes| bytes <= MAX_BYTES + 5000), "{sizes:?}");
        log.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
