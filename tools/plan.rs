//! What `--dry-run` prints, whatever the command.

use cowdisk::error::Result;
use cowdisk::ops::Cost;
use serde::Serialize;

use crate::output::Output;
use crate::size::human;

/// In the result's object.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Dry {
    dry_run: bool,
    bytes_needed: u64,
    bytes_freed: u64,
}

impl From<Cost> for Dry {
    fn from(cost: Cost) -> Dry {
        Dry { dry_run: true, bytes_needed: cost.needed, bytes_freed: cost.freed }
    }
}

/// The last line for people.
pub(crate) fn say(out: &Output, cost: Cost) -> Result<()> {
    out.line(format!("{} would be needed at most, {} freed", human(cost.needed), human(cost.freed)))
}
