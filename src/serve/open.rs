//! Opening what is to be served: the image itself, only to read, or under an overlay that vanishes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Mode;
use crate::chain::{Access, Image, OpenOptions, OpenReport, open_chain, open_over};
use crate::error::printable;
use crate::format::{Holder, Parent, PathHints};
use crate::layer::{self, NewLayer};
use crate::ops::{self, process};
use crate::runtime::{RingOptions, Runtime};
use crate::storage::uring::Uring;
use crate::storage::{File, FileId, Storage};
use crate::{Error, Kind, Result};

/// What to open, and how.
#[derive(Clone, Debug)]
pub(super) struct OpenRequest {
    /// The file, without symbolic links.
    pub(super) path: PathBuf,
    pub(super) mode: Mode,
    /// Bytes for the caches.
    pub(super) cache_bytes: u64,
    /// Further directories to look for parents in.
    pub(super) search: Vec<PathBuf>,
    /// This process, with its control socket.
    pub(super) holder: Holder,
    /// The overlay of [`Mode::Temporary`]; see [`overlay_path`].
    pub(super) overlay: Option<PathBuf>,
    /// Also if another machine may have it open.
    pub(super) force: bool,
}

/// An open image.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) image: Arc<Image<Uring>>,
    pub(super) report: OpenReport,
}

/// Opens the image; recovers it if it is opened for writing.
pub(super) async fn open(request: OpenRequest) -> Result<Opened> {
    let access = match request.mode {
        Mode::Write => Access::Write(request.holder.clone()),
        // A temporary image writes to its overlay alone.
        Mode::ReadOnly | Mode::Temporary => Access::Read { lock: true },
    };
    let options = OpenOptions {
        cache_bytes: request.cache_bytes,
        search: request.search.clone(),
        alive: process::is_alive,
        force: request.force,
        ..OpenOptions::new(access)
    };
    if request.mode != Mode::Write {
        // A daemon that was just killed keeps its lock until its last write has landed.
        ops::settle(&Uring, &request.path, process::is_gone).await?;
    }
    let (image, report) = match &request.overlay {
        None => open_chain(&Uring, &request.path, &options).await?,
        Some(overlay) => open_temporary(&request, overlay, &options).await?,
    };
    Ok(Opened { image: Arc::new(image), report })
}

async fn open_temporary(
    request: &OpenRequest,
    overlay: &Path,
    options: &OpenOptions,
) -> Result<(Image<Uring>, OpenReport)> {
    let below = ops::read_superblock(&Uring, &request.path).await?;
    let mut size = below.virtual_size;
    // A resize may stand in the journal, which is read when the image is opened.
    for _ in 0..2 {
        let new = NewLayer {
            sector_size: below.sector_size,
            parent: Parent::Layer { layer: below.layer, root_crc: None, hints: PathHints::default() },
            ..NewLayer::empty(size)
        };
        let (image, report) = open_overlay(request, overlay, options, &new).await?;
        let chain = image.chain();
        let now = &chain.layers[1];
        if (now.sb.layer, now.size) == (below.layer, size) {
            return Ok((image, report));
        }
        size = now.size;
    }
    Err(Error::new(Kind::InUse, "it changed while it was opened").at(&request.path))
}

async fn open_overlay(
    request: &OpenRequest,
    overlay: &Path,
    options: &OpenOptions,
    new: &NewLayer,
) -> Result<(Image<Uring>, OpenReport)> {
    drop(layer::create(&Uring, overlay, new).await?);
    let opened = open_over(&Uring, overlay, &request.path, options, &request.holder).await;
    // From here on only this process knows it, and it ends with this process. The name is ours, made just now.
    let removed = Uring.unlink(overlay).map_err(|e| Error::io("remove", e).at(overlay));
    let opened = opened?;
    removed.map(|()| opened)
}

/// Where the overlay of a temporary image goes: beside the image, or, if nothing can be made there, where temporary
/// files go.
pub(super) fn overlay_path(image: &Path, tag: u64) -> PathBuf {
    let name = format!(".cowdisk-temporary-{tag:016x}");
    let beside = image.with_file_name(&name);
    // Only a try tells: permission bits know nothing of read-only mounts, capabilities and quotas.
    match std::fs::File::create_new(&beside) {
        Ok(_) => {
            let _ = std::fs::remove_file(&beside);
            beside
        }
        Err(_) => std::env::temp_dir().join(name),
    }
}

/// The real file of `IMAGE` or `IMAGE@NAME`.
pub(super) fn locate(given: &Path, search: &[PathBuf]) -> Result<PathBuf> {
    let (given, search) = (given.to_owned(), search.to_owned());
    run(async move { ops::locate(&Uring, &given, &search).await })
}

/// Runs `future` on the calling thread.
pub(super) fn run<T: 'static>(future: impl Future<Output = Result<T>> + 'static) -> Result<T> {
    let runtime =
        Runtime::new(RingOptions::default()).map_err(|e| Error::io("set up io_uring on this host", e))?;
    runtime.block_on(future)
}

/// The holder that the superblock of `path` names.
pub(super) fn recorded_holder(path: &Path) -> Result<Option<Holder>> {
    let path = path.to_owned();
    run(async move { Ok(ops::read_superblock(&Uring, &path).await?.holder) })
}

/// The identity of the open file that the user named.
pub(super) fn file_id(image: &Image<Uring>, mode: Mode) -> Result<FileId> {
    let chain = image.chain();
    let layer = &chain.layers[usize::from(mode == Mode::Temporary)].reader;
    Ok(layer.file.meta().map_err(|e| Error::io("stat", e).at(&layer.path))?.id)
}

/// What the open did, in one line; nothing if there was nothing to do.
pub(super) fn describe(report: &OpenReport, mode: Mode) -> Option<String> {
    let mut done = Vec::new();
    let recovery = &report.recovery;
    if recovery.needed {
        let verb = if mode == Mode::Write { "replayed" } else { "read from its journal, nothing written" };
        done.push(format!("it was not closed: {} records {verb}", recovery.applied));
        if !recovery.left_out.is_empty() {
            done.push(left_out(report));
        }
    }
    if recovery.torn_slot {
        done.push("a torn superblock was passed over".into());
    }
    if let Some(parent) = &report.sealed_parent {
        done.push(format!("snapshot {} was completed", printable(&parent.to_string_lossy())));
    }
    for name in &report.removed {
        done.push(format!("broken-off snapshot {} was removed", printable(&name.to_string_lossy())));
    }
    (!done.is_empty()).then(|| done.join("; "))
}

/// Ranges named in a message.
const SHOWN_RANGES: usize = 4;

fn left_out(report: &OpenReport) -> String {
    let records = &report.recovery.left_out;
    let ranges = records.iter().flat_map(|record| &record.blocks);
    let shown = ranges.clone().take(SHOWN_RANGES);
    let shown: Vec<String> = shown.map(|r| format!("{}-{}", r.start.pos(), r.end.pos())).collect();
    let more = ranges.count().saturating_sub(SHOWN_RANGES);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} records left out that no flush covered (bytes {}{more})", records.len(), shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::LeftOut;
    use crate::layer::Recovery;
    use crate::units::{Seq, VBlock};

    #[test]
    fn a_clean_open_says_nothing() {
        assert_eq!(describe(&OpenReport::default(), Mode::Write), None);
    }

    #[test]
    fn recovery_is_one_line_with_what_was_left_out() {
        let left_out =
            (0..6).map(|i| LeftOut { seq: Seq(i), blocks: vec![VBlock(i)..VBlock(i + 1)] }).collect();
        let recovery = Recovery { needed: true, applied: 12, left_out, torn_slot: true };
        let report = OpenReport { recovery, ..OpenReport::default() };
        let line = describe(&report, Mode::Write).unwrap();
        for part in ["12 records replayed", "6 records left out", "bytes 0-4096, ", " and 2 more", "torn"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains('\n'));
    }
}
