//! The life of a daemon, from the command line to its exit status.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::background::Background;
use super::jobs::Jobs;
use super::notify::{self, Notifier};
use super::open::{self, OpenRequest, Opened};
use super::pulse::Pulse;
use super::start::{Plan, start};
use super::sys::{Signal, Signals};
use super::{Log, ServeOptions};
use crate::error::printable;
use crate::runtime::thread;
use crate::storage::FileId;
use crate::{Error, Kind, Result};

/// What a daemon waits for.
#[derive(Debug)]
pub(super) enum Event {
    /// The image is open, or cannot be opened.
    Opened(Box<Result<Opened>>),
    /// A signal came.
    Signal(Signal),
    /// A client wants the image to be stopped.
    Stop(StopRequest),
    /// A snapshot was taken: the image's path names another file now.
    NewHead(FileId),
    /// The disk is to lose its end: may it?
    MayShrink(Sender<Result<()>>),
    /// The disk is to become another one: about those who have it open. The answer is what a client should know.
    Users(Users, Sender<Result<Option<String>>>),
    /// The disk has another size in bytes; the answer is what a client should know of its device.
    Resized(u64, Sender<Option<String>>),
}

/// About those who have the disk open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Users {
    /// Are there any? Then [`Kind::InUse`] names them.
    Look,
    /// Are there any? If not, none comes, as far as the frontend can see to that, until they are let in again.
    KeepAway {
        /// The disk gets another size.
        resizes: bool,
    },
    /// They may come again: to what the disk was before, or to another disk, perhaps with another size.
    LetIn(Option<Option<u64>>),
}

/// A client's wish.
#[derive(Debug)]
pub(super) struct StopRequest {
    /// Also if somebody uses the disk.
    pub(super) force: bool,
    /// Takes the answer.
    pub(super) answer: Sender<Result<()>>,
    /// Says that the client has been told.
    pub(super) told: Receiver<()>,
}

/// What the parts of a daemon tell each other, and the world, with.
#[derive(Clone, Debug)]
pub(super) struct Wires {
    pub(super) log: Log,
    pub(super) events: Sender<Event>,
    pub(super) jobs: Jobs,
    pub(super) notifier: Arc<Notifier>,
    /// Asks the threads that serve, where a service manager watches over them.
    pub(super) pulse: Option<Arc<Pulse>>,
}

/// A recovery that takes longer is none: the service manager may end it.
const LONGEST_OPEN: Duration = Duration::from_secs(3600);

/// Serves an image until there is a reason to end; gives the exit status. `ready` is called once, with the place where
/// clients find the disk.
///
/// For a process of its own: it takes over signals and what happens in a panic.
///
/// # Errors
/// Whatever keeps the image from being opened, served or closed; [`Kind::InUse`] if somebody else has it.
pub fn serve(options: &ServeOptions, log: &Log, ready: impl FnOnce(&str)) -> Result<u8> {
    abort_on_panic();
    check(options)?;
    // Before threads and rings are made, which inherit it: a guest's write must not wait for memory that waits for it. Where
    // it is forbidden the threads of a device say so.
    let _ = thread::set_io_flusher();
    let mut signals = Signals::take().map_err(|e| Error::io("take over signals", e))?;
    let (sender, events) = channel();
    let plan = Plan::make(options)?;
    let request = plan.open_request(options);
    let (opened, signalled) = (sender.clone(), sender.clone());
    let notifier = Arc::new(Notifier::from_environment());
    let pulse = notifier.is_watched().then(Arc::default);
    let wires = Wires { log: log.clone(), events: sender, jobs: Jobs::default(), notifier, pulse };
    // Nobody listens any more only when the process ends.
    let background = Background::start(request.clone(), wires.clone(), move |result| {
        let _ = opened.send(Event::Opened(Box::new(result)));
    })?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while let Ok(signal) = signals.next() {
                let _ = signalled.send(Event::Signal(signal));
            }
        })
        .map_err(|e| Error::io("cannot start a thread", e))?;
    wires.notifier.status("opening the image");
    let opened = match wait_for_open(&events, &request, &wires.notifier) {
        Ok(opened) => opened,
        Err(Broken::Error(e)) => return Err(e),
        Err(Broken::Signal(number)) => return Ok(128 + u8::try_from(number).unwrap_or(0)),
    };
    if let Some(line) = open::describe(&opened.report, options.mode) {
        log.say(&format!("{}: {line}", printable(&plan.path.to_string_lossy())));
    }
    let session = start(options, plan, opened.image, background, (wires, events))?;
    session.run(options, ready)
}

/// Why nothing is served.
enum Broken {
    Error(Error),
    Signal(i32),
}

fn wait_for_open(
    events: &Receiver<Event>,
    request: &OpenRequest,
    notifier: &Notifier,
) -> std::result::Result<Opened, Broken> {
    let begin = Instant::now();
    loop {
        match events.recv_timeout(notify::EXTENSION / 3) {
            Ok(Event::Opened(result)) => return result.map_err(Broken::Error),
            Ok(Event::Signal(signal)) if signal.number != libc::SIGCHLD => {
                // What was begun is as after a crash at this point: the next open goes on from there.
                if let Some(overlay) = &request.overlay {
                    let _ = std::fs::remove_file(overlay);
                }
                return Err(Broken::Signal(signal.number));
            }
            Err(RecvTimeoutError::Timeout) if begin.elapsed() < LONGEST_OPEN => notifier.extend(),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Broken::Error(Error::new(Kind::Io, "the background thread ended early")));
            }
        }
    }
}

fn check(options: &ServeOptions) -> Result<()> {
    let least = crate::limits::MIN_CACHE_BYTES;
    if options.cache_bytes < least {
        return Err(Error::new(Kind::Usage, format!("--cache-size must be at least {least} bytes")));
    }
    let most = crate::limits::MAX_QUEUES;
    if !(1..=most).contains(&usize::from(options.queues)) {
        return Err(Error::new(Kind::Usage, format!("--queues must be 1 to {most}")));
    }
    if !(1..=4096).contains(&options.depth) {
        return Err(Error::new(Kind::Usage, "--depth must be 1 to 4096"));
    }
    Ok(())
}

/// A thread that panics inside a living process would let the disk's users wait for ever. A dead process is followed by
/// the next daemon, which recovers the image and takes up the device.
fn abort_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        eprintln!("cowdisk: this is a bug; the process aborts, so that the next one can take over");
        std::process::abort();
    }));
}
