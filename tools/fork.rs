//! `cowdisk fork`

use std::path::PathBuf;

use cowdisk::error::{Result, printable};
use cowdisk::serve;
use serde::Serialize;

use crate::output::{Output, beside};
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
}

#[derive(Serialize)]
struct Listed {
    parent: String,
    snapshot_taken: bool,
    forks: Vec<One>,
}

#[derive(Serialize)]
struct One {
    path: String,
    disk_id: String,
    layer_id: String,
    virtual_size: u64,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
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
                disk_id: sb.disk.to_string(),
                layer_id: sb.layer.to_string(),
                virtual_size: sb.virtual_size,
            }
        };
        let parent = shown(&args.image, &forked.parent);
        out.object(&Listed { parent, snapshot_taken: forked.taken, forks: list.map(one).collect() })?;
        return Ok(0);
    }
    for (given, (path, _)) in list {
        out.line(printable(&shown(given, path)))?;
    }
    Ok(0)
}
