//! The command that an image is served for.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};

use super::notify::VARIABLES;
use super::sys::{self, Signal};
use crate::{Error, Result};

/// A running command.
#[derive(Debug)]
pub(super) struct Running(Child);

impl Running {
    /// Starts `command`, which has at least its program's name, with `variable` in its environment.
    pub(super) fn start(command: &[OsString], variable: (&str, &str)) -> Result<Running> {
        let Some((program, arguments)) = command.split_first() else {
            unreachable!("an empty command is no command");
        };
        let mut command = Command::new(program);
        command.args(arguments).env(variable.0, variable.1);
        for name in VARIABLES {
            command.env_remove(name);
        }
        sys::unblock_signals(&mut command);
        Ok(Running(command.spawn().map_err(|e| Error::io("start the command", e).at(program))?))
    }

    /// Its exit status, once it has ended, as a shell tells it: 128 and the signal's number if a signal ended it.
    pub(super) fn ended(&mut self) -> Result<Option<u8>> {
        let status = self.0.try_wait().map_err(|e| Error::io("wait for the command", e))?;
        Ok(status.map(exit_code))
    }

    /// Hands a signal on. One from the terminal has reached it already.
    pub(super) fn forward(&self, signal: Signal) {
        if !signal.to_group {
            self.send(signal.number);
        }
    }

    pub(super) fn send(&self, number: i32) {
        // It was not waited for yet, so the number is its own; if it has ended nothing is lost.
        let _ = sys::send_signal(self.0.id(), number);
    }
}

/// As a shell tells it: 128 and the signal's number if a signal ended it.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str) -> Option<u8> {
        let command = ["sh", "-c", script].map(OsString::from);
        let mut running = Running::start(&command, ("COWDISK_URI", "a b")).unwrap();
        running.0.wait().unwrap();
        running.ended().unwrap()
    }

    #[test]
    fn a_command_ends_as_a_shell_tells_it() {
        assert_eq!(run("exit 7"), Some(7));
        assert_eq!(run("kill -TERM $$"), Some(143));
        assert_eq!(run("[ \"$COWDISK_URI\" = 'a b' ]"), Some(0));
    }

    #[test]
    fn a_command_that_is_not_there_is_named() {
        let error = Running::start(&["/no/such".into()], ("A", "b")).unwrap_err();
        assert!(error.to_string().starts_with("/no/such: start the command: "), "{error}");
    }
}
