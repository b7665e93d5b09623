//! Images in a directory of their own, and daemons that do not outlive their test.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use cowdisk::chain::{Access, open_chain};
use cowdisk::layer::{self, NewLayer};
use cowdisk::runtime::{RingOptions, Runtime};
use cowdisk::storage::uring::Uring;
use serde_json::Value;

use crate::client::Client;
use crate::wait_until;

/// A directory with images and a runtime directory.
pub struct Bench {
    dir: tempfile::TempDir,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    #[track_caller]
    pub fn expect(self, code: i32) -> Ended {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Standard output as one JSON object.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl Bench {
    pub fn new() -> Bench {
        Bench { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The names in a directory of the bench, sorted.
    pub fn names(&self, dir: impl AsRef<Path>) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(dir)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A new, empty image; its directory is made.
    pub fn image(&self, name: impl AsRef<Path>, size: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let at = path.clone();
        in_runtime(async move {
            let new = NewLayer { journal: 4 << 20, ..NewLayer::empty(size) };
            layer::create(&Uring, &at, &new).await.unwrap();
        });
        path
    }

    /// `cowdisk ARGS…`, not yet started.
    pub fn cowdisk<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        self.command(&[], args)
    }

    fn command<A: AsRef<OsStr>>(&self, by: &[&str], args: impl IntoIterator<Item = A>) -> Command {
        let words: Vec<&str> = by.iter().copied().chain([env!("CARGO_BIN_EXE_cowdisk")]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("COWDISK_RUNTIME_DIR", self.path("run"));
        command
    }

    /// Runs `cowdisk ARGS…` to its end.
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ended {
        self.run_by(&[], args)
    }

    /// As [`Bench::run`], by a program that becomes the one that its further arguments name.
    pub fn run_by<A: AsRef<OsStr>>(&self, by: &[&str], args: impl IntoIterator<Item = A>) -> Ended {
        let output = self.command(by, args).output().unwrap();
        Ended {
            code: code(output.status),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// `cowdisk stop ARGS…`
    pub fn stop<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ended {
        self.run(std::iter::once("stop".into()).chain(args.into_iter().map(|a| a.as_ref().to_owned())))
    }

    /// The status of the one image `target`, which must be served.
    #[track_caller]
    pub fn status(&self, target: impl AsRef<OsStr>) -> Value {
        let json = self.run([OsStr::new("status"), target.as_ref(), OsStr::new("--json")]).expect(0).json();
        json["images"][0].clone()
    }

    /// The first blocks of `target`, served read-only.
    pub fn content(&self, target: &str, blocks: u64) -> Vec<u8> {
        let daemon = self.serve([target, "--read-only"]);
        let bytes = daemon.connect().read(0, (blocks * 4096) as u32);
        daemon.terminate();
        bytes
    }

    /// Serves over NBD, and waits until the daemon is ready.
    #[track_caller]
    pub fn serve<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Daemon {
        self.serve_by(&[], args)
    }

    /// As [`Bench::serve`], by a program that becomes the one that its further arguments name.
    #[track_caller]
    pub fn serve_by<A: AsRef<OsStr>>(&self, by: &[&str], args: impl IntoIterator<Item = A>) -> Daemon {
        let args = args.into_iter().map(|a| a.as_ref().to_owned());
        let args = ["serve".into(), "--frontend".into(), "nbd".into()].into_iter().chain(args);
        let mut command = self.command(by, args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let mut daemon = Daemon { child, stdout, uri: String::new() };
        match line.trim_end().strip_prefix("ready ") {
            Some(uri) => daemon.uri = uri.to_owned(),
            None => panic!("not ready: {line:?} {:?}", daemon.wait()),
        }
        daemon
    }
}

/// A running daemon; killed when it is dropped.
pub struct Daemon {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    /// The place that it named.
    pub uri: String,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The socket of the NBD server.
    pub fn socket(&self) -> PathBuf {
        let path = self.uri.strip_prefix("nbd+unix:///?socket=").unwrap();
        assert!(!path.contains('%'), "{path}");
        path.into()
    }

    /// A connection in the transmission phase.
    pub fn connect(&self) -> Client {
        let mut client = Client::connect(&self.socket());
        client.begin(false, "");
        client
    }

    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Dies like a process that is killed.
    pub fn kill(mut self) -> Ended {
        self.child.kill().unwrap();
        self.wait()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> Ended {
        let mut status = None;
        wait_until("the daemon ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).unwrap();
        if let Some(mut pipe) = self.child.stderr.take() {
            pipe.read_to_string(&mut stderr).unwrap();
        }
        Ended { code: code(status.unwrap()), stdout, stderr }
    }

    /// SIGTERM, and a clean end.
    #[track_caller]
    pub fn terminate(mut self) -> Ended {
        self.signal("TERM");
        self.wait().expect(0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(mut pipe) = self.child.stderr.take().filter(|_| std::thread::panicking()) {
            let mut text = String::new();
            let _ = pipe.read_to_string(&mut text);
            eprintln!("the daemon said: {text}");
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap())
}

fn in_runtime<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    Runtime::new(RingOptions::default()).unwrap().block_on(future)
}

/// True if the image was closed cleanly: an open has nothing to recover.
pub fn is_clean(path: &Path) -> bool {
    let path = path.to_owned();
    in_runtime(async move {
        let options = cowdisk::chain::OpenOptions::new(Access::Read { lock: true });
        let (_, report) = open_chain(&Uring, &path, &options).await.unwrap();
        !report.recovery.needed
    })
}

/// Waits until nobody holds the image's lock.
pub fn wait_unlocked(path: &Path) {
    let path = path.to_owned();
    wait_until("the image is unlocked", move || {
        let path = path.clone();
        in_runtime(async move {
            let options = cowdisk::chain::OpenOptions::new(Access::Read { lock: true });
            open_chain(&Uring, &path, &options).await.is_ok()
        })
    });
}

/// A client program; fails with what is to be installed if it is missing.
#[track_caller]
pub fn tool(program: &str, package: &str, args: &[&str], dir: &Path) -> String {
    let output = match Command::new(program).args(args).current_dir(dir).output() {
        Ok(output) => output,
        Err(e) => panic!("this test needs `{program}` ({e}); try: apt-get install {package}"),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{text}{errors}", output.status);
    text
}
