//! Running the asynchronous engine from a command.

use std::path::{Path, PathBuf};

use cowdisk::chain::{Access, OpenOptions};
use cowdisk::error::{Error, Result};
use cowdisk::ops::{self, process};
use cowdisk::runtime::{RingOptions, Runtime};
use cowdisk::storage::uring::Uring;

/// Runs `future` to its end on the calling thread.
///
/// # Errors
/// The host has no io_uring, or what `future` says.
pub(crate) fn run<T: 'static>(future: impl Future<Output = Result<T>> + 'static) -> Result<T> {
    let runtime =
        Runtime::new(RingOptions::default()).map_err(|e| Error::io("set up io_uring on this host", e))?;
    runtime.block_on(future)
}

/// The real file of `IMAGE` or `IMAGE@NAME`, which is to be read now.
///
/// # Errors
/// As [`ops::locate`].
pub(crate) async fn locate(given: &Path) -> Result<PathBuf> {
    let path = ops::locate(&Uring, given, &search()).await?;
    ops::settle(&Uring, &path, process::is_gone).await?;
    Ok(path)
}

/// Opens that write nothing, and look for parents in `COWDISK_PATH` too.
pub(crate) fn to_read() -> OpenOptions {
    options(Access::Read { lock: true })
}

/// Opens for writing by this process.
pub(crate) fn to_write() -> OpenOptions {
    options(Access::Write(process::holder("")))
}

fn options(access: Access) -> OpenOptions {
    OpenOptions { search: search(), alive: process::is_alive, ..OpenOptions::new(access) }
}

/// The directories of `COWDISK_PATH`.
pub(crate) fn search() -> Vec<PathBuf> {
    let path = std::env::var_os("COWDISK_PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|p| !p.as_os_str().is_empty()).collect()
}
