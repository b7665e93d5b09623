//! `cowdisk rollback`

use std::path::{Path, PathBuf};

use cowdisk::chain::{SnapshotName, split_snapshot};
use cowdisk::error::{Result, printable};
use cowdisk::ops::Present;
use cowdisk::serve;
use serde::Serialize;

use crate::output::{Output, beside};
use crate::plan::{Dry, say};
use crate::snapshot::recovered;
use crate::{engine, size};

/// Make a disk show one of its snapshots again
///
/// The present is kept as a snapshot, whose name is printed, unless nothing has changed since the last one. A rollback to
/// that one undoes this one. The disk has the size again that it had then. An image may be served meanwhile, but nobody may
/// have the disk open.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk rollback vm.cow@before-upgrade
  cowdisk rollback vm.cow@before-upgrade --discard")]
pub(crate) struct Args {
    /// The image and the snapshot's name
    #[arg(value_name = "IMAGE@NAME")]
    snapshot: PathBuf,
    /// Do not keep the present: everything since the last snapshot is lost
    #[arg(long)]
    discard: bool,
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Done {
    image: String,
    name: String,
    layer_id: Option<String>,
    virtual_size: u64,
    kept: Option<Kept>,
    #[serde(flatten)]
    plan: Option<Dry>,
}

#[derive(Serialize)]
struct Kept {
    name: String,
    path: String,
    layer_id: Option<String>,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let (image, name) = split_snapshot(&args.snapshot)?;
    let present = if args.discard { Present::Discard } else { Present::Keep };
    if args.dry_run {
        return plan(&image, &name, present, out);
    }
    let done = serve::rollback(&image, &name, present, &engine::to_write())?;
    for text in done.report.as_ref().and_then(recovered).into_iter().chain(done.note) {
        out.note(format!("{}: {text}", image.display()));
    }
    let kept = done.kept.map(|kept| Kept {
        name: kept.name,
        path: beside(&image, &kept.path).to_string_lossy().into_owned(),
        layer_id: Some(kept.layer_id),
    });
    if out.json() {
        out.object(&Done {
            image: image.to_string_lossy().into_owned(),
            name: name.as_str().to_owned(),
            layer_id: Some(done.layer_id),
            virtual_size: done.virtual_size,
            kept,
            plan: None,
        })?;
    } else if let Some(kept) = kept {
        out.line(printable(&format!("{}@{}", image.display(), kept.name)))?;
    }
    Ok(0)
}

fn plan(image: &Path, name: &SnapshotName, present: Present, out: &Output) -> Result<u8> {
    let planned = serve::plan_rollback(image, name, present, &engine::to_write())?;
    let kept = planned.kept.map(|(name, path)| Kept {
        name: name.as_str().to_owned(),
        path: beside(image, &path).to_string_lossy().into_owned(),
        layer_id: None,
    });
    let (name, virtual_size) = (name.as_str().to_owned(), planned.virtual_size);
    let shown = image.to_string_lossy().into_owned();
    if out.json() {
        let plan = Some(planned.cost.into());
        out.object(&Done { image: shown, name, layer_id: None, virtual_size, kept, plan })?;
        return Ok(0);
    }
    let size = size::human(virtual_size);
    out.line(printable(&format!("{shown} would show {shown}@{name} ({size})")))?;
    match kept {
        Some(kept) => {
            out.line(printable(&format!(
                "the present would be kept as {shown}@{} ({})",
                kept.name, kept.path
            )))?;
        }
        None if present == Present::Discard => out.line("the present would be lost")?,
        None => out.line("nothing has changed since the last snapshot, and nothing would be kept")?,
    }
    say(out, planned.cost)?;
    Ok(0)
}
