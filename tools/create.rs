//! `cowdisk create`

use std::path::PathBuf;

use clap::ValueEnum;
use cowdisk::error::{Error, Kind, Result, printable};
use cowdisk::ops::{BaseFormat, CreateOptions, create, plan_create};
use cowdisk::storage::uring::Uring;
use serde::Serialize;

use crate::output::{Output, beside};
use crate::plan::{Dry, say};
use crate::{engine, size};

/// Make a new image
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk create vm.cow --size 20G
  cowdisk create vm.cow --base debian.raw --base-format raw
  cowdisk create test.cow --base golden@v1.cow")]
pub(crate) struct Args {
    /// The file to make
    image: PathBuf,
    /// Size of the disk; the base's if left out (bytes, or with k, M, G, T)
    #[arg(long, value_parser = size::sectors)]
    size: Option<u64>,
    /// What the disk holds at first; it is never written to
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Format of the base: it is never guessed [default: cow, a sealed layer]
    #[arg(long, value_enum, value_name = "FORMAT", requires = "base")]
    base_format: Option<Format>,
    /// Logical sector size of the disk: 512 or 4096 [default: 512, or the base's]
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(["512", "4096"]))]
    sector_size: Option<String>,
    /// Checksums of data: with `none` damaged data is not found, and a flush takes two barriers
    #[arg(long, value_enum, default_value_t = Checksums::On)]
    checksums: Checksums,
    /// Size of the journal, 256k to 1G [default: 64M]
    #[arg(long, value_name = "SIZE", value_parser = size::sectors)]
    journal_size: Option<u64>,
    /// Replace an existing file, unless it is in use
    #[arg(long)]
    force: bool,
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Raw,
    Qcow2,
    Cow,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Checksums {
    On,
    None,
}

#[derive(Serialize)]
struct Created {
    path: String,
    disk_id: Option<String>,
    layer_id: Option<String>,
    virtual_size: u64,
    #[serde(flatten)]
    plan: Option<Dry>,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let (path, image) = (args.image.clone(), args.image.clone());
    let dry_run = args.dry_run;
    let options = options(args)?;
    if dry_run {
        return plan(path, options, out);
    }
    let (made, sb) = engine::run(async move { create(&Uring, &path, &options).await })?;
    let shown = beside(&image, &made).to_string_lossy().into_owned();
    if out.json() {
        out.object(&Created {
            path: shown,
            disk_id: Some(sb.disk.to_string()),
            layer_id: Some(sb.layer.to_string()),
            virtual_size: sb.virtual_size,
            plan: None,
        })?;
    } else {
        out.line(printable(&shown))?;
    }
    Ok(0)
}

fn plan(image: PathBuf, options: CreateOptions, out: &Output) -> Result<u8> {
    let given = image.clone();
    let planned = engine::run(async move { plan_create(&Uring, &given, &options).await })?;
    let path = beside(&image, &planned.path).to_string_lossy().into_owned();
    let virtual_size = planned.virtual_size;
    if out.json() {
        let plan = Some(planned.cost.into());
        out.object(&Created { path, disk_id: None, layer_id: None, virtual_size, plan })?;
        return Ok(0);
    }
    out.line(printable(&format!("{path} ({}) would be made", size::human(virtual_size))))?;
    say(out, planned.cost)?;
    Ok(0)
}

fn options(args: Args) -> Result<CreateOptions> {
    let not_yet = |what: &str| Err(Error::new(Kind::Unsupported, format!("{what}: not yet")).at(&args.image));
    let format = match args.base_format {
        None | Some(Format::Cow) => BaseFormat::Cow,
        Some(Format::Raw) => BaseFormat::Raw,
        Some(Format::Qcow2) => return not_yet("--base-format qcow2"),
    };
    Ok(CreateOptions {
        size: args.size,
        base: args.base.map(|path| (path, format)),
        sector_size: args.sector_size.and_then(|s| s.parse().ok()),
        journal: args.journal_size,
        no_checksums: args.checksums == Checksums::None,
        force: args.force,
    })
}
