//! Snapshots of any images, served or not, at one instant.
//!
//! Those that nobody serves are opened here first: as long as they are open nothing changes in them. The daemons of the
//! others are asked to prepare, then to hold, and when all of them hold, to cut. A daemon whose client goes away before the
//! cut goes on as if nothing had been asked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::client::{Connection, text_of};
use super::control::Request;
use super::manage::writer_of;
use super::open::run;
use crate::chain::{OpenOptions, OpenReport, SnapshotName, image_file};
use crate::ops::{OfflineSnapshot, process};
use crate::storage::uring::Uring;
use crate::{Error, Result};

/// Time for one step of a snapshot. The longest one may be that the last snapshot is still being sealed.
pub(super) const STEP: Duration = Duration::from_secs(300);

/// A snapshot that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its file.
    pub path: PathBuf,
    /// The identity of its content.
    pub layer_id: String,
    /// What opening the image did, if nobody served it.
    pub report: Option<OpenReport>,
}

/// An image that is about to be cut.
enum Ready {
    Served(PathBuf, Connection),
    Offline(Box<OfflineSnapshot<Uring>>),
}

/// Takes a snapshot of each image, all at one instant. `options` are for writing.
///
/// # Errors
/// If one cannot be taken, none is; unless that shows only behind the instant: then the error says which are there.
pub fn snapshot(wanted: &[(PathBuf, SnapshotName)], options: &OpenOptions) -> Result<Vec<Taken>> {
    let mut images = Vec::new();
    for (image, name) in wanted {
        let path = image_file(&Uring, image)?;
        images.push(Wanted { socket: writer_of(&path)?, path, name: name.clone() });
    }
    let options = options.clone();
    run(async move { take(&images, &options).await })
}

/// An image, and the control socket of the daemon that serves it, if one does.
struct Wanted {
    path: PathBuf,
    name: SnapshotName,
    socket: Option<PathBuf>,
}

async fn take(images: &[Wanted], options: &OpenOptions) -> Result<Vec<Taken>> {
    let mut ready = Vec::new();
    for image in images {
        match prepare(image, options).await {
            Ok(prepared) => ready.push(prepared),
            Err(e) => {
                leave(ready).await;
                return Err(e);
            }
        }
    }
    for step in &ready {
        if let Ready::Served(path, connection) = step
            && let Err(e) = connection.call(&Request::new("hold"))
        {
            let e = e.at(path);
            leave(ready).await;
            return Err(e);
        }
    }
    cut(ready).await
}

async fn prepare(image: &Wanted, options: &OpenOptions) -> Result<Ready> {
    let Wanted { path, name, socket } = image;
    if let Some(socket) = socket {
        let connection = Connection::open(socket, STEP)?;
        let request = Request { name: Some(name.as_str().to_owned()), ..Request::new("snapshot") };
        connection.call(&request).map_err(|e| e.at(path))?;
        return Ok(Ready::Served(path.clone(), connection));
    }
    let opened = OfflineSnapshot::open(&Uring, path, name, options, process::is_mount_point).await?;
    Ok(Ready::Offline(Box::new(opened)))
}

/// Nothing was taken. The daemons notice by themselves.
async fn leave(ready: Vec<Ready>) {
    for image in ready {
        if let Ready::Offline(opened) = image {
            // Why nothing was taken is what matters.
            let _ = opened.leave().await;
        }
    }
}

/// First the daemons, whose disks wait.
async fn cut(ready: Vec<Ready>) -> Result<Vec<Taken>> {
    let mut answers = Vec::new();
    for image in &ready {
        answers.push(match image {
            Ready::Served(path, connection) => {
                Some(connection.call(&Request::new("cut")).map_err(|e| e.at(path)))
            }
            Ready::Offline(_) => None,
        });
    }
    let mut taken = Vec::new();
    let mut failed = None;
    for (image, answer) in ready.into_iter().zip(answers) {
        let result = match (image, answer) {
            (Ready::Served(path, _), Some(Ok(answer))) => served(&path, &answer),
            (_, Some(Err(e))) => Err(e),
            (Ready::Offline(opened), _) => opened.take().await.map(|snapshot| Taken {
                path: snapshot.path,
                layer_id: snapshot.sb.layer.to_string(),
                report: Some(snapshot.report),
            }),
            (Ready::Served(..), None) => unreachable!("every daemon was asked"),
        };
        match result {
            Ok(one) => taken.push(one),
            Err(e) => failed = Some(failed.unwrap_or(e)),
        }
    }
    let Some(error) = failed else { return Ok(taken) };
    if taken.is_empty() {
        return Err(error);
    }
    let there: Vec<_> = taken.iter().map(|t: &Taken| t.path.to_string_lossy().into_owned()).collect();
    let text = format!("{}; but these snapshots were taken: {}", error.message(), there.join(", "));
    let partial = Error::new(error.kind(), text);
    Err(match error.path() {
        Some(path) => partial.at(path),
        None => partial,
    })
}

fn served(image: &Path, answer: &serde_json::Value) -> Result<Taken> {
    let path = text_of(answer, "path", image)?.into();
    Ok(Taken { path, layer_id: text_of(answer, "layer_id", image)?, report: None })
}
