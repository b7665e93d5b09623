//! `--dry-run` of changes to any image, served or not: a daemon is asked, and says no where it would say no.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::client::{Connection, text_of};
use super::control::Request;
use super::fork::{refuse_existing, unused_name};
use super::manage::writer_of;
use super::open::run;
use super::rollback::refuse_waiting;
use super::snapshot::STEP;
use crate::chain::{OpenOptions, SnapshotName, image_file, split_name};
use crate::ops::{self, Cost, PlannedImage, PlannedRollback, PlannedSnapshot, Present, process};
use crate::storage::uring::Uring;
use crate::{Error, Kind, Result};

/// Forks that would be made.
#[derive(Clone, Debug)]
pub struct PlannedForks {
    /// The sealed layer that they would stand on.
    pub parent: PathBuf,
    /// It would be made for them.
    pub taken: bool,
    /// The new disks.
    pub made: Vec<PlannedImage>,
    /// What all of it would take.
    pub cost: Cost,
}

/// As [`super::snapshot()`], without doing it.
///
/// # Errors
/// Its refusals.
pub fn plan_snapshot(
    wanted: &[(PathBuf, SnapshotName)],
    options: &OpenOptions,
) -> Result<Vec<PlannedSnapshot>> {
    wanted.iter().map(|(image, name)| plan_one(image, name, options)).collect()
}

fn plan_one(image: &Path, name: &SnapshotName, options: &OpenOptions) -> Result<PlannedSnapshot> {
    let path = image_file(&Uring, image)?;
    if let Some(socket) = writer_of(&path)? {
        let answer = ask(&path, &socket, request("plan_snapshot", name))?;
        return Ok(PlannedSnapshot {
            path: text_of(&answer, "path", &path)?.into(),
            cost: cost(&answer, &path)?,
        });
    }
    let (name, options) = (name.clone(), options.clone());
    run(async move { ops::plan_snapshot(&Uring, &path, &name, &options, process::is_mount_point).await })
}

/// As [`super::rollback()`], without doing it.
///
/// # Errors
/// Its refusals.
pub fn plan_rollback(
    image: &Path,
    name: &SnapshotName,
    present: Present,
    options: &OpenOptions,
) -> Result<PlannedRollback> {
    let path = image_file(&Uring, image)?;
    let Some(socket) = writer_of(&path)? else {
        refuse_waiting(&path)?;
        let (name, options) = (name.clone(), options.clone());
        return run(async move {
            ops::plan_rollback(&Uring, &path, &name, present, &options, process::is_mount_point).await
        });
    };
    let wish = Request { discard: present == Present::Discard, ..request("plan_rollback", name) };
    let answer = ask(image, &socket, wish)?;
    let kept = match answer.get("kept").filter(|kept| kept.is_object()) {
        Some(kept) => {
            Some((SnapshotName::new(&text_of(kept, "name", image)?)?, text_of(kept, "path", image)?.into()))
        }
        None => None,
    };
    let virtual_size = answer.get("virtual_size").and_then(Value::as_u64).unwrap_or(0);
    Ok(PlannedRollback { kept, virtual_size, cost: cost(&answer, image)? })
}

/// As [`super::fork()`], without doing it.
///
/// # Errors
/// Its refusals.
pub fn plan_fork(
    given: &Path,
    new: &[PathBuf],
    size: Option<u64>,
    options: &OpenOptions,
) -> Result<PlannedForks> {
    refuse_existing(new)?;
    let below = below(given, options)?;
    let new = new.to_vec();
    let Below { parent, taken, cost } = below;
    let (at, disk) = (parent.clone(), taken);
    let made = run(async move {
        let on = disk.map_or(Ok(at.as_path()), Err);
        ops::plan_fork(&Uring, on, &new, size).await
    })?;
    let cost = made.iter().fold(cost, |sum, one| sum.and(one.cost));
    Ok(PlannedForks { parent, taken: taken.is_some(), made, cost })
}

/// What forks would stand on.
struct Below {
    parent: PathBuf,
    /// It would be taken: a disk of so many bytes, in sectors of so many.
    taken: Option<(u64, u32)>,
    cost: Cost,
}

fn below(given: &Path, options: &OpenOptions) -> Result<Below> {
    let found = |parent| Below { parent, taken: None, cost: Cost::default() };
    let (given_to, search) = (given.to_owned(), options.search.clone());
    if split_name(given)?.1.is_some() {
        return run(async move { ops::locate(&Uring, &given_to, &search).await }).map(found);
    }
    let image = image_file(&Uring, given)?;
    let name = unused_name(&image, options)?;
    if let Some(socket) = writer_of(&image)? {
        let answer = ask(&image, &socket, Request { if_changed: true, ..request("plan_snapshot", &name) })?;
        let parent = PathBuf::from(text_of(&answer, "path", &image)?);
        let number = |key: &str| answer.get(key).and_then(Value::as_u64);
        let Some((size, sector)) = number("virtual_size").zip(number("sector_size")) else {
            return Ok(found(parent));
        };
        let taken = Some((size, u32::try_from(sector).unwrap_or(512)));
        return Ok(Below { parent, taken, cost: cost(&answer, &image)? });
    }
    let path = image.clone();
    if let Some(last) = run(async move { ops::unchanged_since(&Uring, &path, &search).await })? {
        return Ok(found(last));
    }
    let (at, options) = (image.clone(), options.clone());
    let planned =
        run(async move { ops::plan_snapshot(&Uring, &at, &name, &options, process::is_mount_point).await })?;
    let sb = run(async move { ops::read_superblock(&Uring, &image).await })?;
    Ok(Below { parent: planned.path, taken: Some((sb.virtual_size, sb.sector_size)), cost: planned.cost })
}

fn request(command: &str, name: &SnapshotName) -> Request {
    Request { name: Some(name.as_str().to_owned()), ..Request::new(command) }
}

fn ask(image: &Path, socket: &Path, request: Request) -> Result<Value> {
    Connection::open(socket, STEP)?.call(&request).map_err(|e| match e.path() {
        Some(_) => e,
        None => e.at(image),
    })
}

fn cost(answer: &Value, image: &Path) -> Result<Cost> {
    let cost = answer.get("cost").cloned().unwrap_or_default();
    serde_json::from_value(cost)
        .map_err(|e| Error::new(Kind::Unsupported, format!("the daemon's answer: {e}")).at(image))
}
