//! `cowdisk serve`

use cowdisk::error::{Error, Kind, Result};

use crate::output::Output;

/// Not yet.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args, _out: &Output) -> Result<u8> {
    Err(Error::new(Kind::Unsupported, "not yet"))
}
