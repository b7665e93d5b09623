//! `fork` of any image, served or not.

use std::path::{Path, PathBuf};

use super::client::{Connection, text_of};
use super::control::Request;
use super::manage::writer_of;
use super::open::run;
use super::snapshot::STEP;
use crate::chain::{OpenOptions, OpenReport, SnapshotName, image_file, split_name};
use crate::format::Superblock;
use crate::ops::{self, process};
use crate::storage::uring::Uring;
use crate::{Error, Kind, Result};

/// New disks.
#[derive(Clone, Debug)]
pub struct Forked {
    /// The sealed layer that they stand on.
    pub parent: PathBuf,
    /// It was made for them.
    pub taken: bool,
    /// What opening the image for that did, if nobody served it.
    pub report: Option<OpenReport>,
    /// The files and headers of the new disks.
    pub made: Vec<(PathBuf, Superblock)>,
}

/// What the new disks are to stand on.
struct Below {
    path: PathBuf,
    taken: bool,
    report: Option<OpenReport>,
}

/// Makes the disks `new` on `IMAGE@NAME`, or on a sealed file, or on a snapshot of `IMAGE` that is taken now unless
/// nothing has changed since the last one. `size` in bytes, or that of what they stand on. `options` are for writing.
///
/// # Errors
/// As [`super::snapshot()`] and [`ops::fork`]. A snapshot that was taken stays.
pub fn fork(given: &Path, new: &[PathBuf], size: Option<u64>, options: &OpenOptions) -> Result<Forked> {
    refuse_existing(new)?;
    let Below { path, taken, report } = below(given, options)?;
    let (parent, new) = (path.clone(), new.to_vec());
    let made = run(async move { ops::fork(&Uring, &path, &new, size).await })?;
    Ok(Forked { parent, taken, report, made })
}

pub(super) fn refuse_existing(new: &[PathBuf]) -> Result<()> {
    match new.iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(there) => Err(Error::new(Kind::Exists, "it exists").at(there)),
        None => Ok(()),
    }
}

fn below(given: &Path, options: &OpenOptions) -> Result<Below> {
    let found = |path| Below { path, taken: false, report: None };
    let (given_to, search) = (given.to_owned(), options.search.clone());
    if split_name(given)?.1.is_some() {
        return run(async move { ops::locate(&Uring, &given_to, &search).await }).map(found);
    }
    let image = image_file(&Uring, given)?;
    if let Some(socket) = writer_of(&image)? {
        return served(&image, &socket, options);
    }
    let path = image.clone();
    if let Some(last) = run(async move { ops::unchanged_since(&Uring, &path, &search).await })? {
        return Ok(found(last));
    }
    let (name, options) = (unused_name(&image, options)?, options.clone());
    let taken =
        run(async move { ops::snapshot(&Uring, &image, &name, &options, process::is_mount_point).await })?;
    Ok(Below { path: taken.path, taken: true, report: Some(taken.report) })
}

/// Has the daemon of `image` take a snapshot, and waits until it is sealed: only then can anything stand on it.
fn served(image: &Path, socket: &Path, options: &OpenOptions) -> Result<Below> {
    let connection = Connection::open(socket, STEP)?;
    let call = |request: &Request| connection.call(request).map_err(|e| e.at(image));
    let name = Some(unused_name(image, options)?.as_str().to_owned());
    let mut answer = call(&Request { name, if_changed: true, ..Request::new("snapshot") })?;
    let taken = answer.get("unchanged").is_none();
    if taken {
        call(&Request::new("hold"))?;
        answer = call(&Request::new("cut"))?;
        call(&Request::new("sealed"))?;
    }
    Ok(Below { path: text_of(&answer, "path", image)?.into(), taken, report: None })
}

/// A name that no snapshot of the image has, as far as its chain can be followed.
pub(super) fn unused_name(image: &Path, options: &OpenOptions) -> Result<SnapshotName> {
    let (path, search) = (image.to_owned(), options.search.clone());
    let chain = run(async move { ops::info_chain(&Uring, &path, &search).await });
    let layers = chain.map(|(layers, _)| layers).unwrap_or_default();
    let taken: Vec<String> =
        layers.into_iter().filter_map(|layer| layer.sb.sealed).map(|sealed| sealed.name).collect();
    ops::unused_snapshot_name(&Uring, image, "fork", &taken)
}
