//! `cowdisk check`

use std::path::PathBuf;

use cowdisk::error::{Result, printable};
use cowdisk::ops::{self, CheckOptions, CheckReport, Severity, Status};
use cowdisk::storage::uring::Uring;
use serde::Serialize;

use crate::engine;
use crate::output::Output;

/// Look for damage; nothing is written
///
/// Exit status: 0 consistent, 2 corrupt, 3 only harmless findings (a journal to replay, leftover files), 1 the check
/// could not be finished, 75 the image is in use.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  cowdisk check vm.cow
  cowdisk check --data --chain vm.cow
  cowdisk check --json vm.cow@before-upgrade | jq .findings")]
pub(crate) struct Args {
    /// An image, or its snapshot as IMAGE@NAME
    image: PathBuf,
    /// Read every data block and compare its checksum
    #[arg(long)]
    data: bool,
    /// Check the layers below too; otherwise no other file is opened
    #[arg(long)]
    chain: bool,
}

#[derive(Serialize)]
struct Report {
    status: &'static str,
    findings: Vec<Finding>,
    findings_total: u64,
    blocks_checked: u64,
    /// Blocks of data without checksums that were read.
    blocks_unverified: u64,
}

#[derive(Serialize)]
struct Finding {
    code: &'static str,
    layer: String,
    /// Byte in the file.
    offset: Option<u64>,
    /// Block of 4 KiB of the disk.
    vblock: Option<u64>,
    /// Bytes of the disk.
    length: Option<u64>,
    snapshots: Vec<String>,
    files: Vec<String>,
    message: String,
    repairable: bool,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let Args { image, data, chain } = args;
    let report = engine::run(async move {
        let path = engine::locate(&image).await?;
        ops::check(&Uring, &path, &CheckOptions { data, chain, search: engine::search() }).await
    })?;
    if out.json() {
        out.object(&report_of(&report))?;
    } else {
        lines(&report, data, out)?;
    }
    Ok(match report.status {
        Status::Clean => 0,
        Status::Incomplete => 1,
        Status::Corrupt => 2,
        Status::Harmless => 3,
    })
}

fn report_of(report: &CheckReport) -> Report {
    Report {
        status: report.status.name(),
        findings: report.findings.kept().iter().map(finding).collect(),
        findings_total: report.findings.total(),
        blocks_checked: report.blocks_checked,
        blocks_unverified: report.blocks_unverified,
    }
}

fn finding(f: &ops::Finding) -> Finding {
    Finding {
        code: f.code.name(),
        layer: f.layer.to_string_lossy().into_owned(),
        offset: f.offset,
        vblock: f.vblock.map(|v| v.0),
        length: f.length,
        snapshots: Some(f.snapshot.clone()).filter(|s| !s.is_empty()).into_iter().collect(),
        files: Vec::new(),
        message: f.message.clone(),
        repairable: f.repairable(),
    }
}

fn lines(report: &CheckReport, data: bool, out: &Output) -> Result<()> {
    let findings = &report.findings;
    for f in findings.kept() {
        let severity = match f.code.severity() {
            Severity::Harmless => "harmless",
            Severity::Incomplete => "incomplete",
            Severity::Corrupt => "corrupt",
        };
        let layer = printable(&f.layer.to_string_lossy());
        let mut text = format!("{severity}: {layer}: {}", printable(&f.message));
        if let Some(offset) = f.offset {
            text.push_str(&format!(" at offset {offset}"));
        }
        if let (Some(block), Some(length)) = (f.vblock, f.length) {
            text.push_str(&format!(" (disk bytes {} + {length})", block.pos()));
        }
        out.text(format!("{text} [{}]\n", f.code.name()))?;
    }
    let more = findings.total() - findings.kept().len() as u64;
    if more > 0 {
        out.line(format!("{more} more findings"))?;
    }
    let what = if data { "blocks read and verified" } else { "blocks of metadata read and verified" };
    if report.blocks_unverified > 0 {
        let count = report.blocks_unverified;
        out.line(format!("{count} blocks of data have no checksums: they were read, and may hold anything"))?;
    }
    out.line(format!("{}: {} {what}", report.status.name(), report.blocks_checked))
}
