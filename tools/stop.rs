//! `cowdisk stop`

use std::ffi::OsString;

use cowdisk::error::{Result, printable};
use cowdisk::serve;
use serde_json::json;

use crate::engine;
use crate::output::Output;

/// End the serving of an image
#[derive(clap::Args)]
#[command(after_help = "\
Refuses with exit status 75 while somebody has the disk open. Also removes a device that waits for its
next server.

Examples:
  cowdisk stop vm.cow
  cowdisk stop /dev/ublkb0 --force")]
pub(crate) struct Args {
    /// IMAGE, or DEVICE: /dev/ublkbN, its number, or the URI of an NBD server
    #[arg(value_name = "IMAGE|DEVICE")]
    target: OsString,
    /// Also if somebody has the disk open: they get I/O errors
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let stopped = serve::stop(&args.target, args.force, &engine::search())?;
    if out.json() {
        let serve::Stopped { path, device, waited } = stopped;
        out.object(&json!({ "path": path, "device": device, "waited": waited }))?;
    } else {
        out.line(printable(&format!("stopped {}", stopped.device)))?;
    }
    Ok(0)
}
