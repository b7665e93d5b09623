//! `serve --detach`: a daemon that runs by itself, and its parent, which starts it again if it dies.
//!
//! Three processes: the command that the user runs, which ends as soon as the disk is ready; the *keeper*, its child in a
//! session of its own; and the daemon, the keeper's child, a plain `cowdisk serve`. The keeper does nothing but wait: it
//! hands on the ready line, writes down what the daemon says, and starts it again when a signal ends it (a bug aborts the
//! process). The new daemon takes up the waiting device, or the same NBD socket.
//!
//! Nothing is started again after an end that somebody wanted, after wrong usage, or when a temporary disk's daemon has
//! died: what was written to it is gone, and its users must not see it change back.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::logfile::LogFile;
use super::notify::VARIABLES;
use super::start::Plan;
use super::sys::{self, Signal, Signals};
use super::{Mode, ServeOptions};
use crate::{Error, Result};

/// A daemon that dies sooner has not got anywhere.
const QUICK: Duration = Duration::from_secs(10);
/// Quick deaths in a row after which it is given up.
const MOST_DEATHS: u32 = 5;
/// Pause before the first new start; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest line of the daemon that is looked at as one.
const MAX_LINE: u64 = 16 << 10;
/// Lines that are kept until there is a log.
const MAX_EARLY_LINES: usize = 256;
/// Exit status for wrong usage.
const USAGE: i32 = 64;

/// Starts the keeper, with `arguments` for this program, and waits until the disk is ready: then `ready` gets the line
/// that says so. Gives the exit status; if the start failed that is the daemon's, which has said why on stderr.
///
/// # Errors
/// The keeper cannot be started.
pub fn detach(arguments: &[OsString], ready: impl FnOnce(&str)) -> Result<u8> {
    let mut command = this_program(arguments)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    for name in VARIABLES {
        command.env_remove(name);
    }
    sys::detach(&mut command);
    let fail = |e| Error::io("start the parent of the daemon", e);
    let mut keeper = command.spawn().map_err(fail)?;
    let mut line = String::new();
    if let Some(stdout) = keeper.stdout.take() {
        BufReader::new(stdout.take(MAX_LINE)).read_line(&mut line).map_err(fail)?;
    }
    match line.strip_suffix('\n') {
        Some(line) => {
            ready(line);
            Ok(0)
        }
        None => Ok(super::command::exit_code(keeper.wait().map_err(fail)?)),
    }
}

fn this_program(arguments: &[OsString]) -> Result<Command> {
    let program = std::env::current_exe().map_err(|e| Error::io("find this program", e))?;
    // It may have been replaced meanwhile; what runs is still there under this name.
    let program = if program.exists() { program } else { "/proc/self/exe".into() };
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

/// A random number for the daemons of one keeper.
///
/// # Errors
/// The host has no random bytes.
pub fn new_tag() -> Result<u64> {
    super::start::random_tag()
}

/// The life of a keeper: runs `cowdisk ARGUMENTS`, a `serve` with `options`, again and again. `tell` gets what the
/// daemon says before it is ready, on its stderr, `ready` the line on its stdout; it gives `false` if nobody waits for
/// that any more, and then the daemon ends again. Gives the last daemon's exit status.
///
/// # Errors
/// The image cannot be found, or a process or thread not be started.
pub fn keep(
    options: &ServeOptions,
    arguments: &[OsString],
    tell: impl Fn(&str),
    ready: impl FnOnce(&str) -> bool,
) -> Result<u8> {
    let signals = Signals::take().map_err(|e| Error::io("take over signals", e))?;
    let plan = Plan::make(options)?;
    let (sender, events) = channel();
    watch(signals, sender.clone())?;
    let mut keeper = Keeper {
        arguments,
        temporary: options.mode == Mode::Temporary,
        plan,
        tell,
        ready: Some(ready),
        events,
        sender,
        log: None,
        early: Vec::new(),
        told_to_end: false,
    };
    keeper.run()
}

/// What a keeper waits for.
#[derive(Debug)]
enum Event {
    /// The daemon's line on stdout.
    Ready(String),
    /// A line on its stderr.
    Said(String),
    Signal(Signal),
}

fn watch(mut signals: Signals, events: Sender<Event>) -> Result<()> {
    let run = move || {
        while let Ok(signal) = signals.next() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".into()).spawn(run);
    thread.map(drop).map_err(|e| Error::io("cannot start a thread", e))
}

struct Keeper<'a, T, R> {
    arguments: &'a [OsString],
    temporary: bool,
    plan: Plan,
    tell: T,
    /// Until the first daemon is ready.
    ready: Option<R>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    /// From then on.
    log: Option<LogFile>,
    /// What was said before.
    early: Vec<String>,
    /// Somebody wants this keeper to end.
    told_to_end: bool,
}

/// The end of a daemon.
#[derive(Clone, Copy, Debug)]
struct End {
    status: ExitStatus,
    pid: u32,
    /// It was ready before.
    was_ready: bool,
    lived: Duration,
}

impl<T: Fn(&str), R: FnOnce(&str) -> bool> Keeper<'_, T, R> {
    fn run(&mut self) -> Result<u8> {
        let mut patience = Patience::default();
        loop {
            let end = self.run_daemon()?;
            let code = super::command::exit_code(end.status);
            if self.ready.is_some() {
                return Ok(code);
            }
            if let Some(why) = self.final_end(&end) {
                self.note(&format!("process {} {why}", end.pid));
                self.forget_log(code);
                return Ok(code);
            }
            let Some(pause) = patience.after(end.lived) else {
                let again = format!("cowdisk serve --detach '{}'", self.plan.path.display());
                self.note(&format!(
                    "process {} {}; given up after {MOST_DEATHS} deaths, each within {} s; try: {again}",
                    end.pid,
                    describe(end.status),
                    QUICK.as_secs()
                ));
                return Ok(1);
            };
            self.note(&format!("process {} {}; started again in {pause:?}", end.pid, describe(end.status)));
            if self.pause(pause) {
                self.note("told to end");
                return Ok(0);
            }
        }
    }

    /// Why no further daemon is started; `None`: one is.
    fn final_end(&self, end: &End) -> Option<String> {
        let what = describe(end.status);
        match end.status.code() {
            _ if self.told_to_end => Some(what),
            Some(code) if end.was_ready || code == USAGE => Some(what),
            _ if self.temporary => Some(format!("{what}; what was written to the temporary disk is gone")),
            _ => None,
        }
    }

    /// The log of a daemon whose name nobody else will have goes with it, if all was well.
    fn forget_log(&mut self, code: u8) {
        if code == 0
            && !self.plan.is_writer()
            && let Some(log) = self.log.take()
        {
            log.remove();
        }
    }

    /// Starts a daemon and waits for its end.
    fn run_daemon(&mut self) -> Result<End> {
        let begin = Instant::now();
        let mut command = this_program(self.arguments)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::unblock_signals(&mut command);
        let fail = |e| Error::io("start the daemon", e);
        let mut child = command.spawn().map_err(fail)?;
        let readers = self.read(&mut child)?;
        let pid = child.id();
        let mut was_ready = false;
        let status = loop {
            match self.next() {
                Event::Ready(line) => {
                    was_ready = true;
                    if !self.is_ready(&line, pid) {
                        self.end(pid, libc::SIGTERM);
                    }
                }
                Event::Said(line) => self.said(line),
                Event::Signal(signal) if signal.number == libc::SIGCHLD => {
                    if let Some(status) = child.try_wait().map_err(fail)? {
                        break status;
                    }
                }
                Event::Signal(signal) => self.end(pid, signal.number),
            }
        };
        was_ready |= self.hear_out(readers, pid);
        Ok(End { status, pid, was_ready, lived: begin.elapsed() })
    }

    /// A daemon has ended, and its last words may still be on their way. `true` if it was ready after all.
    fn hear_out(&mut self, readers: Vec<JoinHandle<()>>, pid: u32) -> bool {
        for reader in readers {
            let _ = reader.join();
        }
        let mut was_ready = false;
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Said(line) => self.said(line),
                Event::Ready(line) => {
                    was_ready = true;
                    self.told_to_end |= !self.is_ready(&line, pid);
                }
                Event::Signal(signal) => self.told_to_end |= signal.number != libc::SIGCHLD,
            }
        }
        was_ready
    }

    /// Ends the daemon, which is the process `pid` and was not waited for yet, and this keeper with it.
    fn end(&mut self, pid: u32, signal: i32) {
        self.told_to_end = true;
        // If it has just ended by itself nothing is lost.
        let _ = sys::send_signal(pid, signal);
    }

    fn next(&self) -> Event {
        let Ok(event) = self.events.recv() else { unreachable!("this keeper has a sender itself") };
        event
    }

    fn read(&self, child: &mut Child) -> Result<Vec<JoinHandle<()>>> {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut threads = Vec::new();
        let mut start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(run);
            thread.map(|thread| threads.push(thread)).map_err(|e| Error::io("cannot start a thread", e))
        };
        let sender = self.sender.clone();
        start("stdout", Box::new(move || read_ready(stdout, &sender)))?;
        let sender = self.sender.clone();
        start("stderr", Box::new(move || read_words(stderr, &sender)))?;
        Ok(threads)
    }

    /// The daemon is ready. `false`: for the first time, and nobody waits for it.
    fn is_ready(&mut self, line: &str, pid: u32) -> bool {
        let Some(ready) = self.ready.take() else {
            self.note(&format!("process {pid} serves it again: {line}"));
            return true;
        };
        match LogFile::open(&self.plan.log_path()) {
            Ok(log) => self.log = Some(log),
            Err(e) => (self.tell)(&format!("cowdisk: {}: no log: {e}", self.plan.log_path().display())),
        }
        for early in std::mem::take(&mut self.early) {
            self.note(&early);
        }
        self.note(&format!("process {pid} serves {}: {line}", self.plan.path.display()));
        let wanted = ready(line);
        if !wanted {
            self.note("the command that started it is gone: it is not wanted any more");
        }
        // Whoever waits for the end of the output of the command that started all this shall not wait for us.
        let _ = sys::let_go_of_terminal();
        wanted
    }

    fn said(&mut self, line: String) {
        match &mut self.log {
            Some(log) => log.line(&line),
            None if self.ready.is_none() => {}
            None => {
                (self.tell)(&line);
                if self.early.len() < MAX_EARLY_LINES {
                    self.early.push(line);
                }
            }
        }
    }

    fn note(&mut self, text: &str) {
        if let Some(log) = &mut self.log {
            log.line(text);
        }
    }

    /// Waits; `true` if somebody wants this keeper to end meanwhile.
    fn pause(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Event::Signal(signal)) if signal.number != libc::SIGCHLD => return true,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
    }
}

fn read_ready(stdout: Option<ChildStdout>, events: &Sender<Event>) {
    let Some(stdout) = stdout else { return };
    let mut line = String::new();
    if BufReader::new(stdout.take(MAX_LINE)).read_line(&mut line).is_ok() && line.ends_with('\n') {
        let _ = events.send(Event::Ready(line.trim_end_matches('\n').to_owned()));
    }
}

fn read_words(stderr: Option<ChildStderr>, events: &Sender<Event>) {
    let Some(stderr) = stderr else { return };
    let mut reader = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(1..) => {}
            _ => return,
        }
        let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
        if events.send(Event::Said(text)).is_err() {
            return;
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, signal) => format!("died by signal {}", signal.unwrap_or(0)),
    }
}

/// How often a daemon may die.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Patience {
    /// Quick deaths in a row.
    deaths: u32,
}

impl Patience {
    /// The pause before the next start, after a daemon that has lived for so long; `None`: enough is enough.
    fn after(&mut self, lived: Duration) -> Option<Duration> {
        if lived >= QUICK {
            self.deaths = 0;
        }
        self.deaths += 1;
        (self.deaths < MOST_DEATHS).then(|| FIRST_PAUSE * (1 << (self.deaths - 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_deaths_are_paused_after_and_then_given_up_on() {
        let mut patience = Patience::default();
        let quick = Duration::from_secs(1);
        let pauses: Vec<_> = std::iter::from_fn(|| patience.after(quick)).collect();
        assert_eq!(pauses, [100, 200, 400, 800].map(Duration::from_millis));
        let mut patience = Patience::default();
        for _ in 0..100 {
            assert_eq!(patience.after(QUICK), Some(FIRST_PAUSE));
        }
    }

    #[test]
    fn ends_are_told() {
        assert_eq!(describe(ExitStatus::from_raw(9)), "died by signal 9");
        assert_eq!(describe(ExitStatus::from_raw(75 << 8)), "ended with status 75");
    }
}
