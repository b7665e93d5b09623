//! `cowdisk fork`

use std::path::PathBuf;

use cowdisk::error::{Result, printable};
use cowdisk::ops::PlannedImage;
use cowdisk::serve;
use serde::Serialize;

use crate::output::{Output, beside};
use crate::plan::{Dry, say};
use crate::snapshot::recovered;
use crate::{engine, size};

/// Make new disks that begin as another disk is now, in milliseconds
///
/// They stand on a snapshot of IMAGE: the one named, or one that is taken now, unless nothing has changed since the last
/// one. Nothing else is written beside IMAGE, and what all of them share is there once.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk fork golden.cow job-1.cow job-2.cow
  cowdisk fork vm.cow@before-upgrade test.cow
  cowdisk fork golden.cow big.cow --size 100G")]
pub(crate) struct Args {
    /// The image, its snapshot, or a sealed file
    #[arg(value_name = "IMAGE[@NAME]")]
    image: PathBuf,
    /// The files to make
    #[arg(value_name = "NEW", required = true)]
    new: Vec<PathBuf>,
    /// Size of the new disks; that of IMAGE if left out (bytes, or with k, M, G, T)
    #[arg(long, value_parser = size::sectors)]
    size: Option<u64>,
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Listed {
    parent: String,
    snapshot_taken: bool,
    forks: Vec<One>,
    #[serde(flatten)]
    plan: Option<Dry>,
}

#[derive(Serialize)]
struct One {
    path: String,
    disk_id: Option<String>,
    layer_id: Option<String>,
    virtual_size: u64,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    if args.dry_run {
        return plan(&args, out);
    }
    let forked = serve::fork(&args.image, &args.new, args.size, &engine::to_write())?;
    if let Some(text) = forked.report.as_ref().and_then(recovered) {
        out.note(format!("{}: {text}", args.image.display()));
    }
    let shown = |given: &PathBuf, made: &PathBuf| beside(given, made).to_string_lossy().into_owned();
    let list = args.new.iter().zip(&forked.made);
    if out.json() {
        let one = |(given, (path, sb)): (&PathBuf, &(PathBuf, _))| {
            let sb: &cowdisk::format::Superblock = sb;
            One {
                path: shown(given, path),
                disk_id: Some(sb.disk.to_string()),
                layer_id: Some(sb.layer.to_string()),
                virtual_size: sb.virtual_size,
            }
        };
        let parent = shown(&args.image, &forked.parent);
        let forks = list.map(one).collect();
        out.object(&Listed { parent, snapshot_taken: forked.taken, forks, plan: None })?;
        return Ok(0);
    }
    for (given, (path, _)) in list {
        out.line(printable(&shown(given, path)))?;
    }
    Ok(0)
}

fn plan(args: &Args, out: &Output) -> Result<u8> {
    let planned = serve::plan_fork(&args.image, &args.new, args.size, &engine::to_write())?;
    let parent = beside(&args.image, &planned.parent).to_string_lossy().into_owned();
    let one = |(given, made): (&PathBuf, &PlannedImage)| One {
        path: beside(given, &made.path).to_string_lossy().into_owned(),
        disk_id: None,
        layer_id: None,
        virtual_size: made.virtual_size,
    };
    let forks: Vec<One> = args.new.iter().zip(&planned.made).map(one).collect();
    if out.json() {
        let plan = Some(planned.cost.into());
        out.object(&Listed { parent, snapshot_taken: planned.taken, forks, plan })?;
        return Ok(0);
    }
    if planned.taken {
        out.line(printable(&format!("the snapshot {parent} would be taken")))?;
    }
    for One { path, virtual_size, .. } in forks {
        let size = size::human(virtual_size);
        out.line(printable(&format!("{path} ({size}) would be made on {parent}")))?;
    }
    say(out, planned.cost)?;
    Ok(0)
}
