//! Can this machine, and this directory, run cowdisk: for `cowdisk doctor`, before anything else is done.
//!
//! Everything is found out by trying it where that does no harm; what only a kernel's release tells is in [`kernel`]. Facts are
//! gathered by functions that touch the host, and judged by pure ones.

mod host;
mod kernel;
mod place;
mod sys;

pub use kernel::{Release, known_trouble};

use std::path::Path;

use serde::Serialize;

use crate::{Error, Kind, Result};

/// How a finding bears on the answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is missing.
    Note,
    /// It works, with less than there could be.
    Limited,
    /// It does not work.
    Failed,
}

impl Level {
    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Limited => "limited",
            Level::Failed => "failed",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What was looked at: a stable name.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// Why it matters; `None` if all is well.
    pub why: Option<&'static str>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Finding {
        Finding { check, level: Level::Ok, message: message.into(), why: None, hint: None }
    }

    fn new(
        (check, level): (&'static str, Level),
        message: impl Into<String>,
        why: &'static str,
        hint: impl Into<String>,
    ) -> Finding {
        Finding { check, level, message: message.into(), why: Some(why), hint: Some(hint.into()) }
    }
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// The worst of all levels.
    pub verdict: Level,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// What GET_FEATURES offers; `None` where the ublk driver cannot be asked.
    pub ublk_features: Option<Vec<String>>,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
}

/// Looks at this machine, and at the directory that `path` is or lies in. Leaves nothing behind.
///
/// # Errors
/// `path` does not exist or cannot be looked at.
pub fn examine(path: Option<&Path>) -> Result<Report> {
    let kernel = host::release();
    let mut findings = Vec::new();
    let ublk_features = host::examine(&kernel, &mut findings);
    if let Some(path) = path {
        place::examine(&directory_of(path)?, &mut findings);
    }
    let verdict = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    Ok(Report { verdict, kernel, ublk_features, findings })
}

/// The real directory: images lie beside the file that a link leads to.
fn directory_of(path: &Path) -> Result<std::path::PathBuf> {
    let real = std::fs::canonicalize(path).map_err(|e| Error::io("look for it", e).at(path))?;
    if real.is_dir() {
        return Ok(real);
    }
    let parent = real.parent().map(Path::to_path_buf);
    parent.ok_or_else(|| Error::new(Kind::BadName, "it lies in no directory").at(path))
}
