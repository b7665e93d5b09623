//! The other side of the control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::control::{Request, VERSION, WireError};
use super::registry::Entry;
use crate::{Error, Kind, Result};

/// A daemon that lives answers at once; one whose disk hangs may take its time.
const ANSWER: Duration = Duration::from_secs(30);
/// A stop drains requests, commits and closes.
const STOP: Duration = Duration::from_secs(300);
/// Largest answer in bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// True if the entry's daemon lives: somebody listens on its socket, if only for others.
pub(super) fn answers(entry: &Entry) -> bool {
    match UnixStream::connect(&entry.socket) {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

/// Asks for the state; [`Kind::NotFound`] if nobody listens.
pub(super) fn status(socket: &Path) -> Result<Value> {
    Ok(call(socket, "status", false, ANSWER)?.0)
}

/// Asks the daemon to end; returns when it has ended.
pub(super) fn stop(socket: &Path, force: bool) -> Result<()> {
    let (_, mut connection) = call(socket, "stop", force, STOP)?;
    // The end of the connection is the end of the process, and of its lock on the image.
    match connection.read(&mut [0]) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        Err(e) => Err(Error::io("the daemon has stopped serving, but does not end", e).at(socket)),
    }
}

fn call(socket: &Path, command: &str, force: bool, patience: Duration) -> Result<(Value, UnixStream)> {
    let connection = UnixStream::connect(socket).map_err(|e| refused(e).at(socket))?;
    let fail = |e| Error::io("the daemon does not answer", e).at(socket);
    connection.set_read_timeout(Some(patience)).map_err(fail)?;
    connection.set_write_timeout(Some(patience)).map_err(fail)?;
    let request = Request { v: VERSION, command: command.into(), force };
    let line = serde_json::to_string(&request).map_err(|e| fail(std::io::Error::other(e)))?;
    (&connection).write_all(format!("{line}\n").as_bytes()).map_err(fail)?;
    let mut answer = Vec::new();
    BufReader::new(&connection).take(MAX_ANSWER).read_until(b'\n', &mut answer).map_err(fail)?;
    if answer.is_empty() {
        return Err(Error::new(Kind::NotFound, "the daemon ended without an answer").at(socket));
    }
    let value: Value = serde_json::from_slice(&answer).map_err(|e| fail(std::io::Error::other(e)))?;
    match value.get("error") {
        Some(error) => Err(serde_json::from_value::<WireError>(error.clone())
            .map_or_else(|_| Error::new(Kind::Io, error.to_string()), Error::from)),
        None => Ok((value, connection)),
    }
}

/// Nobody listens: that is not found. Anything else is an error of its own.
fn refused(source: std::io::Error) -> Error {
    match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            Error::new(Kind::NotFound, "no daemon answers")
        }
        _ => Error::io("connect to the daemon", source),
    }
}
