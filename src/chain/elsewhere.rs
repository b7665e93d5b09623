//! Images that another machine may have open.

use std::path::Path;

use super::open::{Access, OpenOptions};
use crate::error::{Error, Kind, Result, printable};
use crate::format::Superblock;
use crate::storage::Storage;

/// Makes sure that the layer `sb` at `path`, whose lock is held here, was not left open by another machine that has the
/// file system too: locks need not reach so far, and its daemon may still be writing.
///
/// # Errors
/// `InUse` with the machine, unless `options` say that it may be taken; what the host says.
pub fn refuse_open_elsewhere<S: Storage>(
    storage: &S,
    path: &Path,
    sb: &Superblock,
    options: &OpenOptions,
) -> Result<()> {
    let (Some(holder), Access::Write(me)) = (&sb.holder, &options.access) else { return Ok(()) };
    if options.force || holder.host == me.host {
        return Ok(());
    }
    if !storage.is_shared(path).map_err(|e| Error::io("ask for the file system", e).at(path))? {
        return Ok(());
    }
    let host = printable(&holder.host);
    let text = format!(
        "process {} of the machine {host:?} has not closed it, and may be running there: machines share this file system",
        holder.pid
    );
    let shown = printable(&path.to_string_lossy());
    let hint = format!("make sure that nothing serves it on {host}, then: cowdisk serve '{shown}' --force");
    Err(Error::new(Kind::InUse, text).at(path).hint(hint))
}
