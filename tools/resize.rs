//! `cowdisk resize`

use std::path::PathBuf;

use cowdisk::chain::split_name;
use cowdisk::error::{Error, Kind, Result};
use cowdisk::ops::{NewSize, ResizeOptions, Resized};
use cowdisk::serve;
use serde::Serialize;

use crate::output::Output;
use crate::snapshot::recovered;
use crate::{engine, size};

/// Make the disk larger or smaller
///
/// What is new reads as zeros, what is cut is gone. Snapshots keep the size that they had. An image that is being served
/// goes on meanwhile: NBD clients see the new size when they connect again, a block device grows under its users where
/// the driver can tell them. A device that is open does not lose its end. Neither partitions nor filesystems are changed:
/// make them smaller before the disk, and larger after it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk resize vm.cow 40G
  cowdisk resize vm.cow +10G
  cowdisk resize vm.cow 8G --shrink --dry-run")]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    /// The new size, or with + how much more (bytes, or with k, M, G, T)
    #[arg(value_name = "[+]SIZE", value_parser = new_size)]
    size: NewSize,
    /// Also if the disk loses its end, with what is there
    #[arg(long)]
    shrink: bool,
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Shown {
    path: String,
    old_size: u64,
    virtual_size: u64,
    cut_bytes: u64,
    cut_data_bytes: u64,
    dry_run: bool,
    note: Option<String>,
}

fn new_size(text: &str) -> std::result::Result<NewSize, String> {
    match text.strip_prefix('+') {
        Some(more) => size::sectors(more).map(NewSize::By),
        None => size::sectors(text).map(NewSize::To),
    }
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let Args { image, size, shrink, dry_run } = args;
    if split_name(&image)?.1.is_some() {
        return Err(Error::new(Kind::Usage, "a snapshot keeps the size that it has").at(&image));
    }
    let open = if dry_run { engine::to_read() } else { engine::to_write() };
    let done = serve::resize(&image, ResizeOptions { size, shrink, dry_run }, &open)?;
    let shown = image.display();
    if let Some(text) = done.report.as_ref().and_then(recovered).filter(|_| !dry_run) {
        out.note(format!("{shown}: {text}"));
    }
    if let Some(note) = &done.note {
        out.note(format!("{shown}: {note}"));
    }
    let Resized { from, to, data_cut } = done.resized;
    let cut = from.saturating_sub(to);
    if out.json() {
        let path = image.to_string_lossy().into_owned();
        let (old_size, virtual_size) = (from, to);
        let (cut_bytes, cut_data_bytes) = (cut, data_cut);
        out.object(&Shown {
            path,
            old_size,
            virtual_size,
            cut_bytes,
            cut_data_bytes,
            dry_run,
            note: done.note,
        })?;
        return Ok(0);
    }
    let would = if dry_run { "would become" } else { "->" };
    out.line(format!("{} ({from} bytes) {would} {} ({to} bytes)", size::human(from), size::human(to)))?;
    if cut > 0 {
        let verb = if dry_run { "would be cut" } else { "cut" };
        out.line(format!("{} {verb}, of which {} held data", size::human(cut), size::human(data_cut)))?;
    }
    Ok(0)
}
