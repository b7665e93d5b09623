//! The other side of the control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::control::{Request, WireError};
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
    Connection::open(socket, ANSWER)?.call(&Request::new("status"))
}

/// Asks the daemon to end; returns when it has ended.
pub(super) fn stop(socket: &Path, force: bool) -> Result<()> {
    let mut connection = Connection::open(socket, STOP)?;
    connection.call(&Request { force, ..Request::new("stop") })?;
    // The end of the connection is the end of the process, and of its lock on the image.
    match connection.stream.read_to_end(&mut Vec::new()) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        Err(e) => Err(Error::io("the daemon has stopped serving, but does not end", e).at(socket)),
    }
}

/// A connection to a daemon.
#[derive(Debug)]
pub(super) struct Connection {
    socket: PathBuf,
    stream: UnixStream,
}

impl Connection {
    /// Waits for each answer for as long as `patience`.
    pub(super) fn open(socket: &Path, patience: Duration) -> Result<Connection> {
        let stream = UnixStream::connect(socket).map_err(|e| refused(e).at(socket))?;
        let connection = Connection { socket: socket.to_owned(), stream };
        let set = connection.stream.set_read_timeout(Some(patience));
        set.and_then(|()| connection.stream.set_write_timeout(Some(patience)))
            .map_err(|e| connection.silent(e))?;
        Ok(connection)
    }

    fn silent(&self, source: std::io::Error) -> Error {
        Error::io("the daemon does not answer", source).at(&self.socket)
    }

    /// One request and its answer.
    pub(super) fn call(&self, request: &Request) -> Result<Value> {
        let line = serde_json::to_string(request).map_err(|e| self.silent(std::io::Error::other(e)))?;
        (&self.stream).write_all(format!("{line}\n").as_bytes()).map_err(|e| self.silent(e))?;
        let mut answer = Vec::new();
        let mut reader = BufReader::new(&self.stream).take(MAX_ANSWER);
        reader.read_until(b'\n', &mut answer).map_err(|e| self.silent(e))?;
        if answer.is_empty() {
            return Err(Error::new(Kind::NotFound, "the daemon ended without an answer").at(&self.socket));
        }
        let value: Value =
            serde_json::from_slice(&answer).map_err(|e| self.silent(std::io::Error::other(e)))?;
        match value.get("error") {
            Some(error) => Err(serde_json::from_value::<WireError>(error.clone())
                .map_or_else(|_| Error::new(Kind::Io, error.to_string()), Error::from)),
            None => Ok(value),
        }
    }
}

/// The text `key` of an answer of the daemon of `image`.
///
/// # Errors
/// It is not there: the daemon is of another version.
pub(super) fn text_of(answer: &Value, key: &str, image: &Path) -> Result<String> {
    let text = answer.get(key).and_then(Value::as_str).map(str::to_owned);
    text.ok_or_else(|| {
        Error::new(Kind::Unsupported, "its daemon answers in another way than expected").at(image)
    })
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
