//! `check`: is what is on disk consistent? It never writes, and one damaged structure does not end it.

mod data;
mod findings;
mod layer;
mod used;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use findings::{Code, Finding, Findings, Severity, Status};

use super::walk::{Below, Link, parent_of};
use crate::error::{Error, Kind, Result};
use crate::format::Parent;
use crate::storage::Storage;

/// What to check.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// Read every data block and compare its checksum.
    pub data: bool,
    /// Check the layers below too, and that each is what its child was made on.
    pub chain: bool,
    /// Further directories to look for parents in.
    pub search: Vec<PathBuf>,
}

/// The result.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// The worst finding.
    pub status: Status,
    /// What was found.
    pub findings: Findings,
    /// Blocks of 4 KiB that were read and verified.
    pub blocks_checked: u64,
    /// Blocks of data that were read and have no checksum: what they hold is not known to be right.
    pub blocks_unverified: u64,
}

/// Checks the layer file `path`, which is real (see [`super::locate`]). Without [`CheckOptions::chain`] no other layer is
/// opened.
///
/// # Errors
/// `InUse` if the image is open for writing; not a layer at all; what the host says when the file is opened.
pub async fn check<S: Storage>(storage: &S, path: &Path, options: &CheckOptions) -> Result<CheckReport> {
    let mut findings = Findings::default();
    let (mut blocks_checked, mut blocks_unverified) = (0, 0);
    let mut next = Some(path.to_path_buf());
    let mut seen = BTreeSet::new();
    while let Some(path) = next.take() {
        let top = seen.is_empty();
        let checked = layer::check_layer(storage, &path, options.data, top, &mut findings).await;
        let checked = match checked {
            Err(e) if !top => {
                findings.add(Finding::of(Code::Unfinished, &path, &e));
                break;
            }
            checked => checked?,
        };
        blocks_checked += checked.blocks;
        blocks_unverified += checked.unverified;
        let Some(sb) = checked.sb.filter(|_| options.chain) else { break };
        seen.insert(sb.layer);
        next = below(storage, &Link { path, sb }, &options.search, &mut seen, &mut findings).await;
    }
    Ok(CheckReport { status: findings.status(), findings, blocks_checked, blocks_unverified })
}

/// The layer below `child`. A foreign base has been compared with what it was.
async fn below<S: Storage>(
    storage: &S,
    child: &Link,
    search: &[PathBuf],
    seen: &mut BTreeSet<crate::format::LayerId>,
    findings: &mut Findings,
) -> Option<PathBuf> {
    match parent_of(storage, child, search, seen).await {
        Ok(Below::Nothing | Below::Base(_)) => None,
        Ok(Below::Layer(parent)) => {
            // Its root is recorded once it is sealed: then no open will seal it, and none goes through.
            let was_sealed = matches!(child.sb.parent, Parent::Layer { root_crc: Some(_), .. });
            if parent.sb.sealed.is_none() && was_sealed {
                let text = "the parent is not sealed any more: its newest superblock is lost";
                findings.add(Finding::new(Code::ParentChanged, &parent.path, text));
            } else if parent.sb.sealed.is_none() {
                let text = "the parent is not sealed: a snapshot was broken off, the next open for writing finishes it";
                findings.add(Finding::new(Code::ParentUnsealed, &parent.path, text));
            }
            Some(parent.path)
        }
        Err(e) => {
            findings.add(parent_finding(&child.path, &e));
            None
        }
    }
}

fn parent_finding(child: &Path, error: &Error) -> Finding {
    let code = match error.kind() {
        Kind::ParentMissing => Code::ParentMissing,
        Kind::ParentChanged => Code::ParentChanged,
        Kind::Corrupt => Code::Chain,
        _ => Code::Unfinished,
    };
    Finding::of(code, error.path().unwrap_or(child), error)
}
