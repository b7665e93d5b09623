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
    match std::fs::canonicalize(&shown) {
        Ok(real) if real == made => shown,
        _ => made.to_path_buf(),
    }
}

/// A time for people: `2026-01-31 23:59:59 UTC`.
pub(crate) fn time(ns: i64) -> String {
    let seconds = ns.div_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01 in the proleptic Gregorian calendar; eras have 146,097 days.
    let z = days + 719_468;
    let (era, day) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (year + era * 400 + month / 10, (month + 2) % 12 + 1);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(time(951_827_696 * 1_000_000_000), "2000-02-29 12:34:56 UTC");
        assert_eq!(time(1_767_225_599 * 1_000_000_000), "2025-12-31 23:59:59 UTC");
        assert_eq!(time(-1), "1969-12-31 23:59:59 UTC");
    }
}
