//! `resize` of any image, served or not.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::client::Connection;
use super::control::Request;
use super::manage::{waiting_device, writer_of};
use super::open::run;
use super::snapshot::STEP;
use crate::chain::{OpenOptions, OpenReport, image_file};
use crate::ops::{self, NewSize, ResizeOptions, Resized};
use crate::storage::uring::Uring;
use crate::{Error, Kind, Result};

/// What a resize did.
#[derive(Clone, Debug)]
pub struct ResizeDone {
    /// The sizes.
    pub resized: Resized,
    /// What the users of a served disk should know.
    pub note: Option<String>,
    /// What opening the image did, if nobody served it.
    pub report: Option<OpenReport>,
}

/// Gives the disk `image` another size. `open` is for writing, or, for a dry run, for reading.
///
/// # Errors
/// `Usage` for a size that cannot be, or if something would be cut and that was not wanted; `InUse` if something would be
/// cut off a device that somebody has open, or that waits for the next daemon; as [`ops::resize`].
pub fn resize(image: &Path, options: ResizeOptions, open: &OpenOptions) -> Result<ResizeDone> {
    let path = image_file(&Uring, image)?;
    match writer_of(&path)? {
        Some(socket) => served(image, &socket, options),
        None => offline(path, options, open.clone()),
    }
}

fn offline(path: PathBuf, options: ResizeOptions, open: OpenOptions) -> Result<ResizeDone> {
    if let Some(device) = waiting_device(&path) {
        let at = path.clone();
        let sb = run(async move { ops::read_superblock(&Uring, &at).await })?;
        if options.size.of(sb.virtual_size, sb.sector_size)? < sb.virtual_size && !options.dry_run {
            let text =
                format!("its device {device} waits for the next daemon, with users that know the old size");
            return Err(Error::new(Kind::InUse, text)
                .at(&path)
                .hint("cowdisk serve, or cowdisk stop --force"));
        }
    }
    let (resized, report) = run(async move { ops::resize(&Uring, &path, &options, &open).await })?;
    Ok(ResizeDone { resized, note: None, report: Some(report) })
}

/// The daemon's answer.
#[derive(Deserialize)]
struct Answer {
    #[serde(flatten)]
    resized: Resized,
    note: Option<String>,
}

/// The daemon is first asked what there is to do: what the user must be told is told by this process.
fn served(image: &Path, socket: &Path, options: ResizeOptions) -> Result<ResizeDone> {
    let connection = Connection::open(socket, STEP)?;
    let call = |size: NewSize, dry_run: bool| -> Result<Answer> {
        let request = Request { size: Some(size), force: options.shrink, dry_run, ..Request::new("resize") };
        let answer = connection.call(&request).map_err(|e| e.at(image))?;
        serde_json::from_value(answer)
            .map_err(|e| Error::new(Kind::Unsupported, format!("the daemon's answer: {e}")).at(socket))
    };
    let mut answer = call(options.size, true)?;
    if !options.dry_run {
        answer.resized.allowed(image, options.shrink)?;
        answer = call(NewSize::To(answer.resized.to), false)?;
    }
    Ok(ResizeDone { resized: answer.resized, note: answer.note, report: None })
}
