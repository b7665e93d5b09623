//! A disk that is being served: waits for a reason to end, and ends.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::background::Background;
use super::command::Running;
use super::control::Control;
use super::daemon::{Event, StopRequest};
use super::frontend::Frontend;
use super::notify::Notifier;
use super::registry::{Entry, Registry};
use super::{Log, ServeOptions};
use crate::error::printable;
use crate::storage::FileId;
use crate::{Error, Kind, Result};

/// Time between two looks whether somebody else has ended the device.
const LOOK: Duration = Duration::from_secs(1);
/// Time that those who still use the disk have when the command has ended.
const AFTER_COMMAND: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// Time for a checkpoint before the requests are made to wait.
const EARLY: Duration = Duration::from_secs(10);
/// Time for the answer to reach the client of a stop.
const TELL: Duration = Duration::from_secs(2);

/// A running daemon.
#[derive(Debug)]
pub(super) struct Session {
    /// `None` once it has ended.
    pub(super) frontend: Option<Frontend>,
    pub(super) background: Background,
    pub(super) control: Control,
    pub(super) registry: Registry,
    pub(super) entry: Entry,
    pub(super) events: Receiver<Event>,
    pub(super) log: Log,
    pub(super) notifier: Arc<Notifier>,
    /// Since when requests wait for the next daemon.
    pub(super) left: Option<Instant>,
}

/// How a daemon ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The frontend is gone.
    Gone,
    /// The device waits for the next daemon.
    Waiting,
}

impl Session {
    /// Serves until there is a reason to end; the exit status.
    pub(super) fn run(mut self, options: &ServeOptions, ready: impl FnOnce(&str)) -> Result<u8> {
        self.notifier.ready(&self.entry.path, &self.entry.place);
        if options.command.is_empty() {
            ready(&self.entry.place);
            return self.until_told();
        }
        let variable = self.frontend.as_ref().map_or("", Frontend::variable);
        match Running::start(&options.command, (variable, &self.entry.place)) {
            Ok(running) => self.while_running(running),
            Err(e) => {
                let end = self.end_after_command();
                let _ = self.close(end);
                Err(e)
            }
        }
    }

    /// Without a command: until a signal or a client says so.
    fn until_told(mut self) -> Result<u8> {
        let mut refused = false;
        loop {
            match self.events.recv_timeout(LOOK) {
                Ok(Event::Signal(signal)) if signal.number != libc::SIGCHLD => {
                    if let Some(end) = self.end_by_signal(refused) {
                        return self.close(end).map(|()| 0);
                    }
                    refused = true;
                }
                Ok(Event::Stop(request)) => match self.stop(request.force) {
                    Ok(()) => return self.close_and_tell(&request).map(|()| 0),
                    Err(e) => tell(&request, Err(e)),
                },
                Ok(event) => self.note(event),
                Err(RecvTimeoutError::Timeout) if self.ended_by_others() => {
                    return self.close(End::Gone).map(|()| 0);
                }
                _ => {}
            }
        }
    }

    /// With a command: until it ends.
    fn while_running(mut self, mut running: Running) -> Result<u8> {
        loop {
            match self.events.recv_timeout(LOOK) {
                Ok(Event::Signal(signal)) if signal.number != libc::SIGCHLD => running.forward(signal),
                Ok(Event::Stop(request)) if !request.force => {
                    let error = Error::new(Kind::InUse, "it is served for a command that runs");
                    tell(&request, Err(error.at(&self.entry.place)));
                }
                Ok(Event::Stop(request)) => {
                    running.send(libc::SIGTERM);
                    match self.stop(true) {
                        Ok(()) => {
                            let code = 128 + libc::SIGTERM as u8;
                            return self.close_and_tell(&request).map(|()| code);
                        }
                        Err(e) => tell(&request, Err(e)),
                    }
                }
                Ok(event) => self.note(event),
                Err(_) => {}
            }
            if let Some(code) = running.ended()? {
                let end = self.end_after_command();
                return self.close(end).map(|()| code);
            }
        }
    }

    /// What happens to a disk that goes on being served.
    fn note(&mut self, event: Event) {
        match event {
            Event::NewHead(file) => self.new_head(file),
            // Whoever asked may have gone.
            Event::Users(what, answer) => {
                let asked = self.frontend.as_ref().map_or(Ok(None), |frontend| frontend.users(what));
                let stop = || format!("cowdisk stop '{}'", printable(&self.entry.path));
                let _ = answer.send(asked.map_err(|e| match e.hint_text() {
                    Some(_) => e,
                    None => e.hint(stop()),
                }));
            }
            Event::MayShrink(answer) => {
                let _ = answer.send(self.frontend.as_ref().map_or(Ok(()), Frontend::may_shrink));
            }
            Event::Resized(size, answer) => {
                let _ = answer.send(self.frontend.as_ref().and_then(|frontend| frontend.resized(size)));
            }
            Event::Opened(_) | Event::Signal(_) | Event::Stop(_) => {}
        }
    }

    /// The image's path names another file now: whoever looks for the image by its file must find it.
    fn new_head(&mut self, file: FileId) {
        self.entry.set_file(file);
        if let Err(e) = self.registry.store(&self.entry) {
            self.log.say(&e.to_string());
        }
    }

    /// Ends the frontend. If it refuses it goes on serving.
    fn stop(&mut self, force: bool) -> Result<()> {
        let Some(frontend) = self.frontend.take() else { return Ok(()) };
        match frontend.stop(force) {
            Ok(()) => Ok(()),
            Err((Some(frontend), e)) => {
                self.frontend = Some(frontend);
                Err(e)
            }
            Err((None, e)) => {
                self.log.say(&e.to_string());
                Ok(())
            }
        }
    }

    /// SIGTERM: an unused device goes, one in use waits for the next daemon. `None`: neither can be done now.
    fn end_by_signal(&mut self, again: bool) -> Option<End> {
        let waits = self.frontend.as_ref().is_some_and(Frontend::can_wait);
        let server = matches!(self.frontend, Some(Frontend::Nbd(_)));
        match self.stop(server || again && !waits) {
            Ok(()) => Some(End::Gone),
            Err(e) if waits && e.kind() == Kind::InUse => self.leave(),
            Err(e) => {
                self.log.say(&format!(
                    "{e}: it cannot be left to another daemon; a second signal ends it all the same"
                ));
                None
            }
        }
    }

    fn leave(&mut self) -> Option<End> {
        let frontend = self.frontend.as_ref()?;
        self.background.fold_early(EARLY);
        self.left = Some(Instant::now());
        match frontend.leave_waiting() {
            Ok(()) => {}
            // There is no way back: the next daemon finds what was acknowledged.
            Err(e) => self.log.say(&e.to_string()),
        }
        Some(End::Waiting)
    }

    fn end_after_command(&mut self) -> End {
        let end = Instant::now() + AFTER_COMMAND;
        loop {
            let late = Instant::now() >= end;
            let waits = self.frontend.as_ref().is_some_and(Frontend::can_wait);
            match self.stop(late && !waits) {
                Ok(()) => return End::Gone,
                Err(e) if late => {
                    self.log.say(&format!("{e}: the device is left waiting for the next daemon"));
                    return self.leave().unwrap_or(End::Gone);
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    fn ended_by_others(&mut self) -> bool {
        let ended = self.frontend.as_ref().is_some_and(Frontend::ended);
        if ended {
            self.log.say(&format!("{}: somebody else removed the device", self.entry.place));
            if let Err(e) = self.stop(true) {
                self.log.say(&e.to_string());
            }
        }
        ended
    }

    /// Commits and closes the image, and takes back what this daemon had put where others look.
    fn close(mut self, end: End) -> Result<()> {
        self.unlist(end);
        let closed = self.background.close();
        if let Some(left) = self.left {
            let time = left.elapsed().as_millis();
            let place = &self.entry.place;
            self.log.say(&format!("{place}: left to the next daemon; requests wait since {time} ms"));
        }
        closed
    }

    fn close_and_tell(mut self, request: &StopRequest) -> Result<()> {
        self.unlist(End::Gone);
        let result = self.background.close();
        let answer = match &result {
            Ok(()) => Ok(()),
            Err(e) => Err(Error::new(e.kind(), e.to_string())),
        };
        tell(request, answer);
        result
    }

    /// While the image is still locked: whoever opens it next writes an entry of the same name.
    fn unlist(&mut self, end: End) {
        self.notifier.stopping();
        let listed = match end {
            End::Gone => self.registry.remove(&self.entry),
            End::Waiting => {
                self.entry.waiting = true;
                self.registry.store(&self.entry)
            }
        };
        if let Err(e) = listed {
            self.log.say(&e.to_string());
        }
        self.control.close();
    }
}

/// Answers a client, and waits until it has been told.
fn tell(request: &StopRequest, result: Result<()>) {
    if request.answer.send(result).is_ok() {
        // A client that has gone away needs no answer.
        let _ = request.told.recv_timeout(TELL);
    }
}
