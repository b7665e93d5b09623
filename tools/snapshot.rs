//! `cowdisk snapshot`

use std::path::PathBuf;

use cowdisk::chain::{OpenReport, SnapshotName, image_file, split_snapshot};
use cowdisk::error::{Error, Kind, Result, printable};
use cowdisk::serve;
use cowdisk::storage::uring::Uring;
use serde::Serialize;

use crate::engine;
use crate::output::{Output, beside};

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
}

#[derive(Serialize)]
struct Listed {
    snapshots: Vec<One>,
}

#[derive(Serialize)]
struct One {
    image: String,
    name: String,
    path: String,
    layer_id: String,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let wanted = args.snapshots.iter().map(|given| split_snapshot(given)).collect::<Result<Vec<_>>>()?;
    refuse_one_image_twice(&wanted)?;
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
            layer_id: snapshot.layer_id,
        });
    }
    if out.json() {
        out.object(&Listed { snapshots: taken })?;
    }
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
