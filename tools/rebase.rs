//! `cowdisk rebase`

use std::path::PathBuf;

use clap::ValueEnum;
use cowdisk::error::{Error, Kind, Result, printable};
use cowdisk::ops::{self, BaseFormat, RebaseOptions};
use cowdisk::storage::uring::Uring;
use serde::Serialize;

use crate::engine;
use crate::output::{Output, beside};

/// Tell a disk that what it stands on lies elsewhere now
///
/// The base must be the one that the disk was made on. Of a raw base the time stamp may have changed, as a copy's does: its
/// size and a sample of its content are compared.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk rebase vm.cow --base /srv/golden/debian.raw
  cowdisk rebase vm.cow --base ../golden/debian@v1.cow")]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    /// Where its base is
    #[arg(long, value_name = "FILE")]
    base: PathBuf,
    /// Format of the base [default: that of the one before]
    #[arg(long, value_enum, value_name = "FORMAT")]
    base_format: Option<Format>,
    /// Also if the content is another one: then the disk's is too, where it was not written
    #[arg(long)]
    force: bool,
    /// Say what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Raw,
    Qcow2,
    Cow,
}

#[derive(Serialize)]
struct Done {
    image: String,
    layer: String,
    base: String,
    forced: bool,
    dry_run: bool,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let format = match args.base_format {
        Some(Format::Qcow2) => {
            let text = "qcow2 bases are not supported by this version";
            return Err(Error::new(Kind::Unsupported, text).at(&args.base));
        }
        Some(Format::Raw) => Some(BaseFormat::Raw),
        Some(Format::Cow) => Some(BaseFormat::Cow),
        None => None,
    };
    let search = engine::search();
    let options = RebaseOptions { format, force: args.force, dry_run: args.dry_run, search };
    let (image, base) = (args.image.clone(), args.base.clone());
    let done = engine::run(async move { ops::rebase(&Uring, &image, &base, &options).await });
    let done = done.map_err(|e| match e.kind() {
        Kind::ParentChanged if e.hint_text().is_none() => {
            let (image, base) = (args.image.display(), args.base.display());
            e.hint(format!("cowdisk rebase '{image}' --base '{base}' --force"))
        }
        _ => e,
    })?;
    let layer = beside(&args.image, &done.layer).to_string_lossy().into_owned();
    let base = args.base.to_string_lossy().into_owned();
    if done.forced {
        out.note(format!("{}: its base is another one than it was made on", args.image.display()));
    }
    if out.json() {
        let image = args.image.to_string_lossy().into_owned();
        out.object(&Done { image, layer, base, forced: done.forced, dry_run: args.dry_run })?;
    } else if args.dry_run {
        out.line(printable(&format!("{layer}: would stand on {base}")))?;
    }
    Ok(0)
}
