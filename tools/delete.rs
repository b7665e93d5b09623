//! `cowdisk delete`

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cowdisk::chain::{SnapshotName, split_snapshot};
use cowdisk::error::{Error, Kind, Result, printable};
use cowdisk::ops::{self, CHUNK_BYTES, DeletePlan, Work, process};
use cowdisk::serve;
use cowdisk::storage::uring::Uring;
use cowdisk::units::blocks_for;
use serde::Serialize;

use crate::output::{Output, beside};
use crate::snapshot::recovered;
use crate::{engine, size};

/// Delete snapshots: the disk and its other snapshots stay as they are
///
/// What is still needed of a snapshot moves into the layer above it, or that one into the snapshot's file, whichever is less;
/// its space is given back as it moves. A snapshot that another disk stands on is left alone. Broken off, by Ctrl-C or
/// otherwise, everything can be used as before, and the same command goes on where it stopped.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk delete vm.cow@before-upgrade
  cowdisk delete --dry-run vm.cow@monday vm.cow@tuesday
  cowdisk delete --rate 100M vm.cow@monday")]
pub(crate) struct Args {
    /// The image and the snapshot's name
    #[arg(value_name = "IMAGE@NAME", required = true)]
    snapshots: Vec<PathBuf>,
    /// Say what would happen, and the bytes needed and freed; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Move at most so many bytes a second, as 100M
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    rate: Option<u64>,
}

fn rate(text: &str) -> std::result::Result<u64, String> {
    match size::bytes(text)? {
        0 => Err("nothing would move".into()),
        bytes => Ok(bytes),
    }
}

#[derive(Serialize)]
struct Done {
    deleted: Vec<One>,
}

#[derive(Serialize)]
struct One {
    image: String,
    name: String,
    freed_bytes: u64,
}

#[derive(Serialize)]
struct Plans {
    would_delete: Vec<Plan>,
}

#[derive(Serialize)]
struct Plan {
    image: String,
    name: String,
    path: String,
    into: Option<String>,
    moved_bytes: u64,
    needed_bytes: u64,
    freed_bytes: u64,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let wanted = args.snapshots.iter().map(|given| split_snapshot(given)).collect::<Result<Vec<_>>>()?;
    if args.dry_run {
        return plan(&wanted, out);
    }
    let stop = serve::interrupted().map_err(|e| Error::io("wait for signals", e))?;
    let mut deleted = Vec::new();
    for (image, name) in &wanted {
        let done = delete(image, name, args.rate, &stop).map_err(|e| explained(e, image, name))?;
        if let Some(text) = recovered(&done.report) {
            out.note(format!("{}: {text}", image.display()));
        }
        deleted.push(One { image: shown(image), name: name.as_str().to_owned(), freed_bytes: done.freed });
    }
    if out.json() {
        out.object(&Done { deleted })?;
    }
    Ok(0)
}

fn delete(
    image: &Path,
    name: &SnapshotName,
    rate: Option<u64>,
    stop: &Arc<AtomicBool>,
) -> Result<ops::Deleted> {
    let (image, name, stop) = (image.to_owned(), name.clone(), stop.clone());
    engine::run(async move {
        let progress = Progress::new(&image, &name).await;
        let go_on = |path: &Path| match stop.load(Ordering::Relaxed) {
            true => Err(ops::stopped(path)),
            false => Ok(()),
        };
        let moved = |bytes| progress.moved(bytes);
        let work = Work { chunk_blocks: blocks_for(CHUNK_BYTES), rate, go_on: &go_on, moved: &moved };
        let options = engine::to_write();
        ops::delete(&Uring, &image, &name, &options, process::is_mount_point, &work).await
    })
}

/// Says what to do about an image that is being served, and how to go on.
fn explained(error: Error, image: &Path, name: &SnapshotName) -> Error {
    let (image, served) = (image.display(), error.message().starts_with("in use"));
    let again = |error: Error| error.hint(format!("cowdisk delete '{image}@{}'", name.as_str()));
    match error.kind() {
        _ if error.hint_text().is_some() => error,
        Kind::InUse if error.message().starts_with("stopped") => again(error),
        Kind::InUse if served => error.hint(format!("cowdisk stop '{image}'")),
        Kind::NoSpace => again(error),
        Kind::NotFound => error.hint(format!("cowdisk list '{image}'")),
        _ => error,
    }
}

fn plan(wanted: &[(PathBuf, SnapshotName)], out: &Output) -> Result<u8> {
    let mut plans = Vec::new();
    for (image, name) in wanted {
        let (path, of) = (image.clone(), name.clone());
        let planned =
            engine::run(async move { ops::plan_delete(&Uring, &path, &of, &engine::search()).await });
        let plan = planned.map_err(|e| explained(e, image, name))?;
        if !out.json() {
            out.line(printable(&in_words(image, name, &plan)))?;
        }
        plans.push(Plan {
            image: shown(image),
            name: name.as_str().to_owned(),
            path: shown(&beside(image, &plan.path)),
            into: plan.moves.map(|(_, into)| shown(&beside(image, &into))),
            moved_bytes: plan.moved,
            needed_bytes: plan.needed,
            freed_bytes: plan.freed,
        });
    }
    if out.json() {
        out.object(&Plans { would_delete: plans })?;
    }
    Ok(0)
}

fn in_words(image: &Path, name: &SnapshotName, plan: &DeletePlan) -> String {
    let what = match &plan.moves {
        None => format!("would remove {}", shown(&beside(image, &plan.path))),
        Some((_, into)) => {
            let (moved, into) = (size::human(plan.moved), shown(&beside(image, into)));
            format!("would move up to {moved} into {into}, needs {} free", size::human(plan.needed))
        }
    };
    format!("{}@{}: {what}, frees {}", image.display(), name.as_str(), size::human(plan.freed))
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A line on the terminal that tells how far it is.
struct Progress {
    /// What is moved in all, at most; 0: nobody looks.
    total: u64,
    moved: Rc<Cell<u64>>,
}

impl Progress {
    async fn new(image: &Path, name: &SnapshotName) -> Progress {
        let mut total = 0;
        if std::io::stderr().is_terminal()
            && let Ok(plan) = ops::plan_delete(&Uring, image, name, &engine::search()).await
        {
            total = plan.moved;
        }
        Progress { total, moved: Rc::default() }
    }

    fn moved(&self, bytes: u64) {
        let before = self.moved.replace(self.moved.get() + bytes);
        let percent = |moved: u64| moved.saturating_mul(100).checked_div(self.total).map(|p| p.min(100));
        if let Some(now) = percent(self.moved.get())
            && percent(before) != Some(now)
        {
            let bar = "#".repeat(now as usize / 4);
            // Nobody to tell: nothing to do about it.
            let _ = write!(std::io::stderr(), "\r[{bar:25}] {now:3} % of {}", size::human(self.total));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.total > 0 && self.moved.get() > 0 {
            let _ = writeln!(std::io::stderr());
        }
    }
}
