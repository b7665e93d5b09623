//! `cowdisk snapshot`

use std::path::PathBuf;

use cowdisk::chain::{OpenReport, SnapshotName, image_file, split_snapshot};
use cowdisk::error::{Error, Kind, Result, printable};
use cowdisk::ops::{Cost, PlannedSnapshot};
use cowdisk::serve;
use cowdisk::storage::uring::Uring;
use serde::Serialize;

use crate::engine;
use crate::output::{Output, beside};
use crate::plan::{Dry, say};

/// Take a snapshot: the disk as it is now, kept in a read-only file of its own
///
/// The image's path stays the disk. IMAGE@NAME is the snapshot from then on; its file is made beside the image. An image
/// that is being served goes on meanwhile. Several snapshots are of one instant.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk snapshot vm.cow@before-upgrade
  cowdisk snapshot system.cow@monday data.cow@monday")]
pub(crate) struct Args {
    /// The image and the snapshot's name
    #[arg(value_name = "IMAGE@NAME", required = true)]
    snapshots: Vec<PathBuf>,
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Listed {
    snapshots: Vec<One>,
    #[serde(flatten)]
    plan: Option<Dry>,
}

#[derive(Serialize)]
struct One {
    image: String,
    name: String,
    path: String,
    layer_id: Option<String>,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let wanted = args.snapshots.iter().map(|given| split_snapshot(given)).collect::<Result<Vec<_>>>()?;
    refuse_one_image_twice(&wanted)?;
    if args.dry_run {
        return plan(&wanted, out);
    }
    let mut taken = Vec::new();
    for ((image, name), snapshot) in wanted.iter().zip(serve::snapshot(&wanted, &engine::to_write())?) {
        if let Some(text) = snapshot.report.as_ref().and_then(recovered) {
            out.note(format!("{}: {text}", image.display()));
        }
        let path = beside(image, &snapshot.path).to_string_lossy().into_owned();
        if !out.json() {
            out.line(printable(&path))?;
        }
        taken.push(One {
            image: image.to_string_lossy().into_owned(),
            name: name.as_str().to_owned(),
            path,
            layer_id: Some(snapshot.layer_id),
        });
    }
    if out.json() {
        out.object(&Listed { snapshots: taken, plan: None })?;
    }
    Ok(0)
}

fn plan(wanted: &[(PathBuf, SnapshotName)], out: &Output) -> Result<u8> {
    let planned = serve::plan_snapshot(wanted, &engine::to_write())?;
    let cost = planned.iter().fold(Cost::default(), |sum, one| sum.and(one.cost));
    let one = |((image, name), planned): (&(PathBuf, SnapshotName), &PlannedSnapshot)| One {
        image: image.to_string_lossy().into_owned(),
        name: name.as_str().to_owned(),
        path: beside(image, &planned.path).to_string_lossy().into_owned(),
        layer_id: None,
    };
    let snapshots: Vec<One> = wanted.iter().zip(&planned).map(one).collect();
    if out.json() {
        out.object(&Listed { snapshots, plan: Some(cost.into()) })?;
        return Ok(0);
    }
    for One { image, path, .. } in snapshots {
        out.line(printable(&format!("{image} would become {path}, and go on as an overlay on it")))?;
    }
    say(out, cost)?;
    Ok(0)
}

fn refuse_one_image_twice(wanted: &[(PathBuf, SnapshotName)]) -> Result<()> {
    let mut seen = Vec::new();
    for (image, _) in wanted {
        let real = image_file(&Uring, image)?;
        if seen.contains(&real) {
            return Err(Error::new(Kind::Usage, "one snapshot of an image at a time").at(image));
        }
        seen.push(real);
    }
    Ok(())
}

/// What opening the image had to do, in a few words.
pub(crate) fn recovered(report: &OpenReport) -> Option<String> {
    let recovery = &report.recovery;
    recovery.needed.then(|| {
        let (applied, left) = (recovery.applied, recovery.left_out.len());
        format!("recovered: {applied} journal records applied, {left} unacknowledged ones left out")
    })
}
