//! `cowdisk doctor`

use std::path::PathBuf;

use cowdisk::doctor::{self, Finding, Level, Report};
use cowdisk::error::{Result, printable};

use crate::output::Output;

/// Exit status if this machine runs cowdisk with less than there could be.
const WITH_LIMITS: u8 = 2;

/// Find out whether this machine, and a directory, can run cowdisk
#[derive(clap::Args)]
#[command(after_help = "\
Looks at the ublk driver, io_uring, limits and permissions of this process, and with PATH at what
its directory can do. Leaves nothing behind. Exit status: 0 yes, 2 with limits, 1 no.

Examples:
  cowdisk doctor
  cowdisk doctor /srv/images")]
pub(crate) struct Args {
    /// A directory for images, or an image in it
    path: Option<PathBuf>,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let report = doctor::examine(args.path.as_deref())?;
    if out.json() {
        out.object(&report)?;
    } else {
        print(&report, out)?;
    }
    Ok(match report.verdict {
        Level::Ok | Level::Note => 0,
        Level::Limited => WITH_LIMITS,
        Level::Failed => 1,
    })
}

fn print(report: &Report, out: &Output) -> Result<()> {
    for Finding { level, message, why, hint, .. } in &report.findings {
        out.line(format!("{:8} {}", level.name(), printable(message)))?;
        for (word, text) in [("why", why.map(str::to_owned)), ("try", hint.clone())] {
            if let Some(text) = text {
                out.line(format!("         {word}: {}", printable(&text)))?;
            }
        }
    }
    out.line(match report.verdict {
        Level::Ok | Level::Note => "yes",
        Level::Limited => "yes, with limits",
        Level::Failed => "no",
    })
}
