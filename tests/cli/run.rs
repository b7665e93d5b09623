//! Running the binary.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing here takes longer, whatever it is given.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

/// The command, in `dir`.
pub(crate) fn cowdisk<A: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowdisk"));
    command.args(args).current_dir(dir).env_remove("COWDISK_PATH").stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run<A: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = A>) -> Ran {
    finish(cowdisk(dir, args))
}

/// Runs `command` to its end.
pub(crate) fn finish(command: Command) -> Ran {
    let said = format!("{command:?}");
    let ran = finish_within(command, PATIENCE);
    assert!(ran.took < PATIENCE, "{said} hung");
    ran
}

/// Runs `command` to its end, which is a violent one after `patience`.
pub(crate) fn finish_within(mut command: Command, patience: Duration) -> Ran {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let watch = Watch::over(&child, patience);
    let mut stderr = Vec::new();
    err.read_to_end(&mut stderr).unwrap();
    let stdout = reader.join().unwrap();
    let status = child.wait().unwrap();
    let took = start.elapsed();
    watch.end();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: status.code(), stdout: text(stdout), stderr: text(stderr), took }
}

/// Ends a command that hangs, so that the test fails instead of hanging too.
struct Watch(std::sync::mpsc::Sender<()>);

impl Watch {
    fn over(child: &Child, patience: Duration) -> Watch {
        let (sender, ended) = std::sync::mpsc::channel();
        let pid = child.id().to_string();
        std::thread::spawn(move || {
            if ended.recv_timeout(patience) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").args(["-9", &pid]).status();
            }
        });
        Watch(sender)
    }

    fn end(self) {
        // The watcher may have given up.
        let _ = self.0.send(());
    }
}

impl Ran {
    /// Asserts success; gives what was printed.
    #[track_caller]
    pub(crate) fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.stdout
    }

    /// Asserts a failure with this status and a message with this in it, and nothing on stdout.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, fragment: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.contains(fragment), "no {fragment:?} in {self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
    }

    /// What was printed, as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// The code of the JSON error.
    #[track_caller]
    pub(crate) fn error_code(&self) -> String {
        let value: Value = serde_json::from_str(&self.stderr).unwrap();
        let error = &value["error"];
        assert!(error["message"].is_string() && error.get("path").is_some(), "{value}");
        error["code"].as_str().unwrap().to_owned()
    }
}

/// The keys of an object, sorted.
#[track_caller]
pub(crate) fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// All files of a directory with their content, to see that nothing changed.
pub(crate) fn content_of(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
    let named = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
    files.map(|p| (named(&p), fs::read(&p).unwrap())).collect()
}
