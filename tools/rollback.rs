//! `cowdisk rollback`

use std::path::PathBuf;

use cowdisk::chain::split_snapshot;
use cowdisk::error::{Result, printable};
use cowdisk::ops::Present;
use cowdisk::serve;
use serde::Serialize;

use crate::engine;
use crate::output::{Output, beside};
use crate::snapshot::recovered;

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
}

#[derive(Serialize)]
struct Done {
    image: String,
    name: String,
    layer_id: String,
    virtual_size: u64,
    kept: Option<Kept>,
}

#[derive(Serialize)]
struct Kept {
    name: String,
    path: String,
    layer_id: String,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let (image, name) = split_snapshot(&args.snapshot)?;
    let present = if args.discard { Present::Discard } else { Present::Keep };
    let done = serve::rollback(&image, &name, present, &engine::to_write())?;
    for text in done.report.as_ref().and_then(recovered).into_iter().chain(done.note) {
        out.note(format!("{}: {text}", image.display()));
    }
    let kept = done.kept.map(|kept| Kept {
        name: kept.name,
        path: beside(&image, &kept.path).to_string_lossy().into_owned(),
        layer_id: kept.layer_id,
    });
    if out.json() {
        out.object(&Done {
            image: image.to_string_lossy().into_owned(),
            name: name.as_str().to_owned(),
            layer_id: done.layer_id,
            virtual_size: done.virtual_size,
            kept,
        })?;
    } else if let Some(kept) = kept {
        out.line(printable(&format!("{}@{}", image.display(), kept.name)))?;
    }
    Ok(0)
}
