//! The control socket of a daemon: one JSON object per line in each direction.
//!
//! | request                                      | answer                                                            |
//! |----------------------------------------------|-------------------------------------------------------------------|
//! | `{"v":1,"command":"status"}`                 | one object                                                        |
//! | `{"v":1,"command":"stop","force":false}`     | `{"v":1,"stopped":true}`, when the image is closed                |
//! | `{"v":1,"command":"snapshot","name":"s1"}`   | `{"v":1,"prepared":true}`: everything is ready, requests go on    |
//! | then `{"v":1,"command":"hold"}`              | `{"v":1,"held":true}`: all is durable, requests wait              |
//! | then `{"v":1,"command":"cut"}`               | `{"v":1,"path":…,"layer_id":…}`: the snapshot is taken            |
//! | then, or not, `{"v":1,"command":"sealed"}`   | `{"v":1,"sealed":true}`: its file does not change any more        |
//! | `{"v":1,"command":"resize","size":{"to":N}}` | `{"v":1,"from":…,"to":…,"data_cut":…,"note":…}`, when it is durable |
//!
//! With `"if_changed":true` a snapshot of a disk on which nothing was changed since the last one is not taken:
//! `{"v":1,"unchanged":true,"path":…}`, with the file of the last one.
//!
//! `"size":{"by":N}` makes the disk larger by N bytes. Without `"force":true` nothing is cut; with `"dry_run":true` nothing
//! is changed. `note` is null, or what the users of the disk should know.
//!
//! Anything that fails is answered with `{"v":1,"error":{…}}`. A snapshot that its client leaves half done, by closing
//! the connection or by taking too long, was none. Clients are not trusted with more than the socket's permissions say:
//! lines, connections and waiting times are bounded.

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::daemon::{Event, StopRequest, Users};
use super::jobs::{Jobs, Plan, Step, Talk};
use crate::chain::SnapshotName;
use crate::ops::{NewSize, Present, ResizeOptions, Resized};
use crate::runtime::net::{self, Direction};
use crate::{Error, Kind, Result};

/// Version of the protocol.
pub(super) const VERSION: u32 = 1;
const COMMANDS: [&str; 10] = [
    "status",
    "stop",
    "snapshot",
    "hold",
    "cut",
    "sealed",
    "resize",
    "rollback",
    "plan_snapshot",
    "plan_rollback",
];
/// Longest request in bytes.
const MAX_LINE: u64 = 64 << 10;
/// Connections at once; further ones are closed.
const MAX_CONNECTIONS: usize = 16;
/// How long a client may take for a request, or to read its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) v: u32,
    pub(super) command: String,
    #[serde(default)]
    pub(super) force: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) if_changed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<NewSize>,
    #[serde(default)]
    pub(super) dry_run: bool,
    #[serde(default)]
    pub(super) discard: bool,
}

impl Request {
    pub(super) fn new(command: &str) -> Request {
        Request {
            v: VERSION,
            command: command.into(),
            force: false,
            name: None,
            if_changed: false,
            size: None,
            dry_run: false,
            discard: false,
        }
    }
}

/// An error as it travels, and as `--json` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct WireError {
    pub(super) code: String,
    pub(super) path: Option<String>,
    pub(super) message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<String>,
    /// It has the code of bad names, and another exit status.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) usage: bool,
}

impl From<&Error> for WireError {
    fn from(error: &Error) -> WireError {
        let path = error.path().map(|path| path.to_string_lossy().into_owned());
        WireError {
            code: error.kind().code().into(),
            path,
            message: error.message(),
            hint: error.hint_text().map(str::to_owned),
            usage: error.kind() == Kind::Usage,
        }
    }
}

impl From<WireError> for Error {
    fn from(wire: WireError) -> Error {
        let kind = match wire.code.as_str() {
            "in_use" => Kind::InUse,
            "not_found" => Kind::NotFound,
            "unsupported" => Kind::Unsupported,
            "permission" => Kind::Permission,
            "no_space" => Kind::NoSpace,
            "corrupt" => Kind::Corrupt,
            "exists" => Kind::Exists,
            "bad_name" if wire.usage => Kind::Usage,
            "bad_name" => Kind::BadName,
            "parent_missing" => Kind::ParentMissing,
            "parent_changed" => Kind::ParentChanged,
            _ => Kind::Io,
        };
        let mut error = Error::new(kind, wire.message);
        if let Some(hint) = wire.hint {
            error = error.hint(hint);
        }
        match wire.path {
            Some(path) => error.at(path),
            None => error,
        }
    }
}

/// Who may use the socket: whoever may write the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketAccess {
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
}

/// What a status request is answered with.
pub(super) type Report = Arc<dyn Fn() -> Value + Send + Sync>;

/// The listening socket of this daemon.
#[derive(Debug)]
pub(super) struct Control {
    path: PathBuf,
    listener: Arc<OwnedFd>,
}

impl Control {
    /// Listens at `path`. A socket that is there is a dead daemon's: the caller holds the image's lock, or the name is
    /// one that nobody else uses.
    pub(super) fn listen(
        path: PathBuf,
        access: SocketAccess,
        report: Report,
        (events, jobs): (Sender<Event>, Jobs),
    ) -> Result<Control> {
        let fail = |e| Error::io("cannot make the control socket", e).at(&path);
        let listener = bind(&path, access).map_err(fail)?;
        let accepting = UnixListener::from(listener.try_clone().map_err(fail)?);
        let server = Arc::new(Server { report, events, jobs, open: AtomicUsize::new(0) });
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || server.run(&accepting))
            .map_err(fail)?;
        Ok(Control { path, listener: Arc::new(listener) })
    }

    /// Refuses clients from now on. Those that are connected stay until the process ends.
    pub(super) fn close(&self) {
        // It is gone if somebody cleaned up; nothing depends on it.
        let _ = fs::remove_file(&self.path);
        net::shut_down(&self.listener, Direction::Receive);
    }
}

fn bind(path: &Path, access: SocketAccess) -> io::Result<OwnedFd> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let fd = net::bind_unix(path)?;
    // Nobody can connect before `listen`, and nobody else can put anything into the runtime directory.
    let (uid, gid) = access.owner;
    match std::os::unix::fs::lchown(path, Some(uid), Some(gid)) {
        // Only root can give it away: then it stays with whoever serves.
        Err(e) if e.kind() != io::ErrorKind::PermissionDenied => return Err(e),
        _ => {}
    }
    // Its owner may always use it, also where the image is write-protected.
    fs::set_permissions(path, Permissions::from_mode(access.mode & 0o666 | 0o600))?;
    net::listen(&fd)?;
    Ok(fd)
}

struct Server {
    report: Report,
    events: Sender<Event>,
    jobs: Jobs,
    open: AtomicUsize,
}

impl Server {
    fn run(self: Arc<Self>, listener: &UnixListener) {
        while let Ok((client, _)) = listener.accept() {
            if self.open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
                self.open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let server = self.clone();
            let serve = move || {
                // A client that breaks off is none of our business.
                let _ = server.serve(&client);
                server.open.fetch_sub(1, Ordering::Relaxed);
            };
            if std::thread::Builder::new().name("client".into()).spawn(serve).is_err() {
                self.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn serve(&self, client: &UnixStream) -> io::Result<()> {
        client.set_read_timeout(Some(PATIENCE))?;
        client.set_write_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(client);
        let mut snapshot = None;
        loop {
            let mut line = Vec::new();
            (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Ok(());
            }
            match parse(&line) {
                Ok(request) if request.command == "stop" => return self.stop(client, request.force),
                Ok(request) if request.command == "status" => send(client, &(self.report)())?,
                Ok(request) if request.command == "resize" => {
                    send(client, &self.resize(&request).unwrap_or_else(|e| failed(&e)))?;
                }
                Ok(request) if request.command.starts_with("plan_") => {
                    send(client, &self.plan(&request).unwrap_or_else(|e| failed(&e)))?;
                }
                Ok(request) if request.command == "rollback" => {
                    send(client, &self.rollback(&request).unwrap_or_else(|e| failed(&e)))?;
                }
                Ok(request) => match self.snapshot(&request, &mut snapshot) {
                    Ok(answer) => send(client, &answer)?,
                    Err(e) => {
                        snapshot = None;
                        send(client, &failed(&e))?;
                    }
                },
                Err(e) => send(client, &failed(&e))?,
            }
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
        }
    }

    /// One step of a snapshot.
    fn snapshot(&self, request: &Request, talk: &mut Option<Talk>) -> Result<Value> {
        match (request.command.as_str(), &talk) {
            ("snapshot", _) => {
                let name = SnapshotName::new(request.name.as_deref().unwrap_or_default())?;
                talk.insert(self.jobs.snapshot(name, request.if_changed)).wait(Step::Prepare)
            }
            ("hold", Some(talk)) => talk.wait(Step::Hold),
            ("cut", Some(talk)) => talk.wait(Step::Cut),
            ("sealed", Some(talk)) => talk.wait(Step::Seal),
            (command, _) => {
                Err(Error::new(Kind::Usage, format!("{command:?} is not what comes next in a snapshot")))
            }
        }
    }

    /// Looks what there is to do, asks the session if something would be cut, does it, and has the frontend told.
    fn resize(&self, request: &Request) -> Result<Value> {
        let size = request.size.ok_or_else(|| Error::new(Kind::Usage, "a resize needs a size"))?;
        let plan = self.jobs.resize(ResizeOptions { size, shrink: request.force, dry_run: true })?;
        if request.dry_run {
            return Ok(resized(plan, None));
        }
        if plan.to < plan.from {
            let (answer, answered) = channel();
            self.ask(Event::MayShrink(answer), &answered)??;
        }
        let options = ResizeOptions { size: NewSize::To(plan.to), shrink: request.force, dry_run: false };
        let done = self.jobs.resize(options)?;
        let (answer, answered) = channel();
        let note = self.ask(Event::Resized(done.to, answer), &answered)?;
        Ok(resized(done, note))
    }

    /// What a snapshot or a rollback would do.
    fn plan(&self, request: &Request) -> Result<Value> {
        let name = SnapshotName::new(request.name.as_deref().unwrap_or_default())?;
        let what = match request.command.as_str() {
            "plan_rollback" => {
                self.users(Users::Look)?;
                Plan::Rollback(name, present(request))
            }
            _ => Plan::Snapshot(name, request.if_changed),
        };
        self.jobs.plan(what)
    }

    /// Makes everything ready, has the frontend keep users away, and goes back if there are none.
    fn rollback(&self, request: &Request) -> Result<Value> {
        let name = SnapshotName::new(request.name.as_deref().unwrap_or_default())?;
        let present = present(request);
        self.users(Users::Look)?;
        let talk = self.jobs.rollback(name, present);
        let ready = talk.wait(Step::Prepare)?;
        let resized = ready.get("resized").and_then(Value::as_u64);
        self.users(Users::KeepAway { resizes: resized.is_some() })?;
        let done = talk.wait(Step::Hold).and_then(|_| talk.wait(Step::Cut));
        if done.is_err() {
            let _ = self.users(Users::LetIn(None));
        }
        let mut done = done?;
        done["note"] = self.users(Users::LetIn(Some(resized)))?.into();
        Ok(done)
    }

    /// Asks the session for something that concerns those who have the disk open; gives what they should know.
    fn users(&self, what: Users) -> Result<Option<String>> {
        let (answer, answered) = channel();
        self.ask(Event::Users(what, answer), &answered)?
    }

    /// Has the session answer.
    fn ask<T>(&self, event: Event, answered: &Receiver<T>) -> Result<T> {
        self.events.send(event).map_err(|_| is_ending())?;
        answered.recv().map_err(|_| is_ending())
    }

    /// Hands the request to the daemon and answers when it is done. After a stop the connection stays open until the
    /// process has ended, and with it the image's lock: its end tells the client.
    fn stop(&self, mut client: &UnixStream, force: bool) -> io::Result<()> {
        let (answer, answered) = channel();
        let (told, done) = channel();
        let sent = self.events.send(Event::Stop(StopRequest { force, answer, told: done }));
        let result = match sent {
            Ok(()) => answered.recv().unwrap_or_else(|_| Err(is_ending())),
            Err(_) => Err(is_ending()),
        };
        match &result {
            Ok(()) => send(client, &json!({ "v": VERSION, "stopped": true }))?,
            Err(e) => send(client, &failed(e))?,
        }
        let _ = told.send(());
        if result.is_ok() {
            client.set_read_timeout(None)?;
            // Until the client has seen the answer and closes.
            while client.read(&mut [0])? > 0 {}
        }
        Ok(())
    }
}

fn present(request: &Request) -> Present {
    if request.discard { Present::Discard } else { Present::Keep }
}

fn resized(done: Resized, note: Option<String>) -> Value {
    let Resized { from, to, data_cut } = done;
    json!({ "v": VERSION, "from": from, "to": to, "data_cut": data_cut, "note": note })
}

fn parse(line: &[u8]) -> Result<Request> {
    let request: Request =
        serde_json::from_slice(line).map_err(|e| Error::new(Kind::Usage, format!("not a request: {e}")))?;
    if request.v != VERSION || !COMMANDS.contains(&request.command.as_str()) {
        let text = format!("version {} of command {:?} is not known here", request.v, request.command);
        return Err(Error::new(Kind::Unsupported, text));
    }
    Ok(request)
}

pub(super) fn is_ending() -> Error {
    Error::new(Kind::NotFound, "the daemon is ending")
}

/// The answer when it is too late for any other.
pub(super) fn ending() -> Value {
    failed(&is_ending())
}

fn failed(error: &Error) -> Value {
    json!({ "v": VERSION, "error": WireError::from(error) })
}

fn send(mut client: &UnixStream, value: &Value) -> io::Result<()> {
    client.write_all(format!("{value}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_a_version_and_a_command() {
        let stop = parse(b"{\"v\":1,\"command\":\"stop\",\"force\":true}\n").unwrap();
        assert_eq!(stop, Request { force: true, ..Request::new("stop") });
        assert!(!parse(b"{\"v\":1,\"command\":\"status\"}").unwrap().force);
        for bad in [&b"{}"[..], b"", b"[]", b"{\"v\":2,\"command\":\"stop\"}", b"{\"v\":1,\"command\":\"x\"}"]
        {
            assert!(parse(bad).is_err());
        }
    }

    #[test]
    fn errors_keep_kind_and_place_on_their_way() {
        for kind in [Kind::InUse, Kind::BadName, Kind::Usage, Kind::NoSpace, Kind::Io] {
            let sent = Error::new(kind, "mounted on /mnt").at("/dev/ublkb0");
            let back = Error::from(WireError::from(&sent));
            assert_eq!((back.kind(), back.to_string()), (sent.kind(), sent.to_string()));
        }
    }

    #[test]
    fn clients_are_served_until_they_go_and_nonsense_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (events, requests) = channel();
        let meta = std::os::unix::fs::MetadataExt::uid(&fs::metadata(dir.path()).unwrap());
        let access = SocketAccess { mode: 0o640, owner: (meta, meta) };
        let report: Report = Arc::new(|| json!({ "state": "ok" }));
        let control = Control::listen(path.clone(), access, report, (events, Jobs::default())).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);

        let client = UnixStream::connect(&path).unwrap();
        let mut lines = BufReader::new(&client).lines();
        (&client).write_all(b"{\"v\":1,\"command\":\"status\"}\nnonsense\n").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "{\"state\":\"ok\"}");
        assert!(lines.next().unwrap().unwrap().contains("\"code\":\"bad_name\""));

        (&client).write_all(b"{\"v\":1,\"command\":\"stop\"}\n").unwrap();
        let Event::Stop(stop) = requests.recv().unwrap() else { panic!("a stop was asked for") };
        stop.answer.send(Err(Error::new(Kind::InUse, "open"))).unwrap();
        assert!(lines.next().unwrap().unwrap().contains("\"code\":\"in_use\""));
        stop.told.recv().unwrap();

        control.close();
        assert!(!path.exists() && UnixStream::connect(&path).is_err());
    }
}
