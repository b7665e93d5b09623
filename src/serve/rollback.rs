//! `rollback` of any image, served or not.

use std::path::{Path, PathBuf};

use super::client::{Connection, text_of};
use super::control::Request;
use super::manage::{waiting_device, writer_of};
use super::open::run;
use super::snapshot::STEP;
use crate::chain::{OpenOptions, OpenReport, SnapshotName, image_file};
use crate::ops::{self, Present, process};
use crate::storage::uring::Uring;
use crate::{Error, Kind, Result};

/// A snapshot that keeps what the disk showed before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptPresent {
    /// Its name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// The identity of its content.
    pub layer_id: String,
}

/// A rollback that was done.
#[derive(Clone, Debug)]
pub struct RollbackDone {
    /// `None`: nothing had changed since the last snapshot, or the present was not wanted.
    pub kept: Option<KeptPresent>,
    /// The identity of the new head.
    pub layer_id: String,
    /// The size of the disk now, in bytes.
    pub virtual_size: u64,
    /// What the users of a served disk should know.
    pub note: Option<String>,
    /// What opening the image did, if nobody served it.
    pub report: Option<OpenReport>,
}

/// Makes the disk `image` show its snapshot `name` again. `options` are for writing.
///
/// # Errors
/// As [`ops::rollback()`]; `InUse` while somebody has the disk open, or while its device waits for the next daemon.
pub fn rollback(
    image: &Path,
    name: &SnapshotName,
    present: Present,
    options: &OpenOptions,
) -> Result<RollbackDone> {
    let path = image_file(&Uring, image)?;
    match writer_of(&path)? {
        Some(socket) => served(image, &socket, name, present),
        None => offline(path, name, present, options),
    }
}

fn offline(
    path: PathBuf,
    name: &SnapshotName,
    present: Present,
    options: &OpenOptions,
) -> Result<RollbackDone> {
    refuse_waiting(&path)?;
    let (name, options) = (name.clone(), options.clone());
    let done = run(async move {
        ops::rollback(&Uring, &path, &name, present, &options, process::is_mount_point).await
    })?;
    let kept = done.kept.map(|kept| KeptPresent {
        name: kept.sb.sealed.as_ref().map_or_else(String::new, |sealed| sealed.name.clone()),
        path: kept.path,
        layer_id: kept.sb.layer.to_string(),
    });
    Ok(RollbackDone {
        kept,
        layer_id: done.sb.layer.to_string(),
        virtual_size: done.sb.virtual_size,
        note: None,
        report: Some(done.report),
    })
}

/// A device that waits for the next daemon has users that know the disk as it is.
pub(super) fn refuse_waiting(path: &Path) -> Result<()> {
    match waiting_device(path) {
        None => Ok(()),
        Some(device) => {
            let text =
                format!("its device {device} waits for the next daemon, with users that know the disk");
            Err(Error::new(Kind::InUse, text).at(path).hint(format!("cowdisk stop {device}")))
        }
    }
}

fn served(image: &Path, socket: &Path, name: &SnapshotName, present: Present) -> Result<RollbackDone> {
    let request = Request {
        name: Some(name.as_str().to_owned()),
        discard: present == Present::Discard,
        ..Request::new("rollback")
    };
    let answer = Connection::open(socket, STEP)?.call(&request).map_err(|e| match e.path() {
        Some(_) => e,
        None => e.at(image),
    })?;
    let kept = match answer.get("kept").filter(|kept| kept.is_object()) {
        Some(kept) => Some(KeptPresent {
            name: text_of(kept, "name", image)?,
            path: text_of(kept, "path", image)?.into(),
            layer_id: text_of(kept, "layer_id", image)?,
        }),
        None => None,
    };
    Ok(RollbackDone {
        kept,
        layer_id: text_of(&answer, "layer_id", image)?,
        virtual_size: answer.get("virtual_size").and_then(serde_json::Value::as_u64).unwrap_or(0),
        note: text_of(&answer, "note", image).ok(),
        report: None,
    })
}
