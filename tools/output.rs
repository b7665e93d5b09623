//! The only place that prints: results on stdout, everything else on stderr.

use std::cell::Cell;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use cowdisk::error::{Error, Kind, Result, printable};
use serde::Serialize;

/// Where a command's words go.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    json: bool,
    /// Nobody reads stdout any more: that is success.
    closed: Rc<Cell<bool>>,
}

#[derive(Serialize)]
struct JsonError<'a> {
    error: JsonErrorBody<'a>,
}

#[derive(Serialize)]
struct JsonErrorBody<'a> {
    code: &'a str,
    path: Option<String>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

impl Output {
    pub(crate) fn new(json: bool) -> Output {
        Output { json, closed: Rc::default() }
    }

    /// True if results are to be one JSON object.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// True once the reader of stdout has gone: a long listing may stop.
    pub(crate) fn closed(&self) -> bool {
        self.closed.get()
    }

    /// Prints one line of a result, at once. Names in it must have been through [`printable`].
    ///
    /// # Errors
    /// What the host says of stdout; a closed pipe is none.
    pub(crate) fn line(&self, text: impl AsRef<str>) -> Result<()> {
        self.bytes(text.as_ref().as_bytes())?;
        self.bytes(b"\n")?;
        self.flush()
    }

    /// Prints a part of a result, buffered.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(crate) fn text(&self, text: impl AsRef<str>) -> Result<()> {
        self.bytes(text.as_ref().as_bytes())
    }

    /// Prints raw bytes of a result (paths for other programs), buffered.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<()> {
        if self.closed() {
            return Ok(());
        }
        self.written(io::stdout().lock().write_all(bytes))
    }

    /// Hands on what was printed so far.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(crate) fn flush(&self) -> Result<()> {
        if self.closed() {
            return Ok(());
        }
        self.written(io::stdout().lock().flush())
    }

    /// Prints the result of a command as one line of JSON.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(crate) fn object(&self, value: &impl Serialize) -> Result<()> {
        self.line(json(value)?)
    }

    /// Tells the user something that is no result.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        // Nobody to tell: nothing to do about it.
        let _ = writeln!(io::stderr().lock(), "cowdisk: {}", printable(text.as_ref()));
    }

    /// Hands on what another process of ours has said on stderr.
    pub(crate) fn as_is(&self, line: &str) {
        let _ = writeln!(io::stderr().lock(), "{line}");
    }

    /// Prints an error; gives the exit status for it.
    pub(crate) fn fail(&self, error: &Error) -> u8 {
        let mut text = if self.json { json_error(error) } else { format!("cowdisk: {error}") };
        if !self.json
            && let Some(hint) = error.hint_text()
        {
            text.push_str(&format!("\ntry: {}", printable(hint)));
        }
        let _ = writeln!(io::stderr().lock(), "{text}");
        exit_status(error.kind())
    }

    fn written(&self, result: io::Result<()>) -> Result<()> {
        match result {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.closed.set(true),
            Err(e) => return Err(Error::io("write output", e)),
            Ok(()) => {}
        }
        Ok(())
    }
}

/// `value` as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::new(Kind::Io, format!("cannot be put into JSON: {e}")))
}

fn json_error(error: &Error) -> String {
    let body = JsonErrorBody {
        code: error.kind().code(),
        path: error.path().map(|p| p.to_string_lossy().into_owned()),
        message: error.message(),
        hint: error.hint_text(),
    };
    serde_json::to_string(&JsonError { error: body }).unwrap_or_else(|e| e.to_string())
}

fn exit_status(kind: Kind) -> u8 {
    match kind {
        Kind::Usage => crate::USAGE,
        Kind::InUse => crate::BUSY,
        _ => 1,
    }
}

/// How the user would call `made`, a file beside `given`: by the directory that was given, if it leads there.
pub(crate) fn beside(given: &Path, made: &Path) -> PathBuf {
    let Some(name) = made.file_name() else { return made.to_path_buf() };
    let shown = given.with_file_name(name);
    // One that would be made is not there yet.
    let dir = shown.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = || std::fs::canonicalize(dir).map(|dir| dir.join(name));
    match std::fs::canonicalize(&shown).or_else(|_| place()) {
        Ok(real) if real == made => shown,
        _ => made.to_path_buf(),
    }
}
