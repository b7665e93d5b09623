//! `cowdisk status`

use std::ffi::OsString;

use cowdisk::error::{Result, printable};
use cowdisk::serve::{self, ByKind, ImageStatus, Latencies, Trouble};
use serde::Serialize;

use crate::output::Output;
use crate::{engine, size};

/// Exit status if something needs a human.
const ATTENTION: u8 = 2;

/// Show what is served, and how it is
#[derive(clap::Args)]
#[command(after_help = "\
Exit status: 0 all well, 2 something needs a human (poisoned, full, waiting, damage was found),
1 IMAGE is not served.

Examples:
  cowdisk status
  cowdisk status vm.cow --json
  cowdisk status --prometheus > /var/lib/prometheus/node-exporter/cowdisk.prom")]
pub(crate) struct Args {
    /// IMAGE, or DEVICE: /dev/ublkbN, its number, or the URI of an NBD server
    #[arg(value_name = "IMAGE|DEVICE")]
    target: Option<OsString>,
    /// In Prometheus' text format, for a text-file collector
    #[arg(long, conflicts_with = "json")]
    prometheus: bool,
}

#[derive(Serialize)]
struct Report {
    images: Vec<ImageStatus>,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let images = serve::status(args.target.as_deref(), &engine::search())?;
    let well = !images.iter().any(ImageStatus::needs_attention);
    let report = Report { images };
    if args.prometheus {
        out.text(serve::prometheus(&report.images))?;
        out.flush()?;
    } else if out.json() {
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
    if let Some(log) = &image.log {
        line(format!("  log {log}"))?;
    }
    let (Some(requests), Some(bytes)) = (&image.requests, &image.bytes) else { return Ok(()) };
    line(format!("  {}", counts(requests, bytes)))?;
    for text in image.latencies.iter().flat_map(latencies) {
        line(format!("  {text}"))?;
    }
    if let (Some(journal), Some(caches)) = (&image.journal, &image.caches) {
        let cached = size::human(caches.node_bytes + caches.span_bytes);
        line(format!("  journal {} % full, {cached} cached", journal.fill_percent))?;
    }
    for job in &image.jobs {
        line(format!("  job {}", job.job))?;
    }
    for error in &image.errors {
        line(format!("  error: {}{}", range(error), error.message))?;
        if let Some(hint) = &error.hint {
            line(format!("    try: {hint}"))?;
        }
    }
    Ok(())
}

/// Which request met an error.
fn range(error: &Trouble) -> String {
    match (&error.operation, error.start, error.length) {
        (Some(operation), Some(start), Some(length)) => {
            format!("{operation} of bytes {start}-{}: ", start + length - 1)
        }
        (Some(operation), ..) => format!("{operation}: "),
        _ => String::new(),
    }
}

/// One line for each kind of request that there was.
fn latencies(all: &Latencies) -> Vec<String> {
    let kinds = [
        ("reads", &all.read),
        ("writes", &all.write),
        ("flushes", &all.flush),
        ("discards", &all.discard),
        ("zeroed", &all.write_zeroes),
    ];
    let some = kinds.into_iter().filter(|(_, latency)| latency.count > 0);
    some.map(|(name, l)| format!("{name} p50 {} us, p99 {} us, p99.9 {} us", l.p50_us, l.p99_us, l.p999_us))
        .collect()
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
