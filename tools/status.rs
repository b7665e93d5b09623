//! `cowdisk status`

use std::ffi::OsString;

use cowdisk::error::{Result, printable};
use cowdisk::serve::{self, ByKind, ImageStatus, State};
use serde::Serialize;

use crate::output::Output;
use crate::{engine, size};

/// Exit status if something needs a human.
const ATTENTION: u8 = 2;

/// Show what is served, and how it is
#[derive(clap::Args)]
#[command(after_help = "\
Exit status: 0 all well, 2 something needs a human (poisoned, full, waiting), 1 IMAGE is not served.

Examples:
  cowdisk status
  cowdisk status vm.cow --json")]
pub(crate) struct Args {
    /// IMAGE, or DEVICE: /dev/ublkbN, its number, or the URI of an NBD server
    #[arg(value_name = "IMAGE|DEVICE")]
    target: Option<OsString>,
}

#[derive(Serialize)]
struct Report {
    images: Vec<ImageStatus>,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let images = serve::status(args.target.as_deref(), &engine::search())?;
    let well = images.iter().all(|image| image.state == State::Ok);
    let report = Report { images };
    if out.json() {
        out.object(&report)?;
    } else {
        for image in &report.images {
            print(image, out)?;
        }
    }
    Ok(if well { 0 } else { ATTENTION })
}

fn print(image: &ImageStatus, out: &Output) -> Result<()> {
    let line = |text: String| out.line(printable(&text));
    let pid = image.pid.map_or_else(String::new, |pid| format!("  pid {pid}"));
    line(format!("{}  {}  {}{pid}", image.path, image.state.name(), image.device))?;
    if let Some(reason) = &image.reason {
        line(format!("  {}", reason.message))?;
        if let Some(hint) = &reason.hint {
            line(format!("  try: {hint}"))?;
        }
    }
    let (Some(requests), Some(bytes)) = (&image.requests, &image.bytes) else { return Ok(()) };
    line(format!("  {}", counts(requests, bytes)))?;
    if let (Some(journal), Some(caches)) = (&image.journal, &image.caches) {
        let cached = size::human(caches.node_bytes + caches.span_bytes);
        line(format!("  journal {} % full, {cached} cached", journal.fill_percent))?;
    }
    for job in &image.jobs {
        line(format!("  job {}", job.job))?;
    }
    for error in &image.errors {
        line(format!("  error: {}", error.message))?;
    }
    Ok(())
}

fn counts(requests: &ByKind, bytes: &ByKind) -> String {
    let moved = |count: u64, name: &str, bytes: u64| format!("{count} {name} ({})", size::human(bytes));
    [
        moved(requests.read, "reads", bytes.read),
        moved(requests.write, "writes", bytes.write),
        format!("{} flushes", requests.flush),
        moved(requests.discard, "discards", bytes.discard),
        moved(requests.write_zeroes, "zeroed", bytes.write_zeroes),
    ]
    .join(", ")
}
