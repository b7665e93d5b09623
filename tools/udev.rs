//! `cowdisk udev`, for `packaging/60-cowdisk.rules`.

use std::path::PathBuf;

use cowdisk::error::{Kind, Result};
use cowdisk::serve;
use serde_json::json;

use crate::output::Output;

/// Print the names of a device, as udev's IMPORT{program} takes them
#[derive(clap::Args)]
#[command(hide = true)]
pub(crate) struct Args {
    /// /dev/ublkbN
    node: PathBuf,
}

pub(crate) fn run(args: Args, out: &Output) -> Result<u8> {
    let names = match serve::names_of(&args.node) {
        // Somebody else's device, or one that is just being started: udev is told again when it is ready.
        Err(e) if e.kind() == Kind::NotFound => serve::DeviceNames::default(),
        other => other?,
    };
    if out.json() {
        out.object(&json!({ "name": names.name, "disk_id": names.disk_id }))?;
        return Ok(0);
    }
    for (key, value) in [("COWDISK_NAME", names.name), ("COWDISK_DISK_ID", names.disk_id)] {
        if let Some(value) = value {
            out.line(format!("{key}={value}"))?;
        }
    }
    Ok(0)
}
