//! Running the program against a hostile image: in bounded memory, watched.
#![expect(unsafe_code, reason = "a limit for the child, set between fork and exec")]

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use crate::run::{Ran, cowdisk, finish_within};

/// The bound for a hostile image.
const LIMIT: Duration = Duration::from_secs(2);
/// Bytes of address space: what is mapped, used or not, the program itself included.
const ADDRESS_SPACE: u64 = 256 << 20;

/// Runs a command in `dir`. Gives what is wrong whatever the command was to do.
pub(crate) fn attack<A: AsRef<OsStr>>(dir: &Path, args: &[A]) -> (Ran, Option<&'static str>) {
    let mut command = cowdisk(dir, args);
    command.env("COWDISK_RUNTIME_DIR", dir.join("run")).env_remove("RUST_BACKTRACE");
    let limit = libc::rlimit { rlim_cur: ADDRESS_SPACE, rlim_max: ADDRESS_SPACE };
    // SAFETY: setrlimit is safe to be called after fork; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_AS, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let ran = finish_within(command, LIMIT);
    let printed = format!("{}{}", ran.stdout, ran.stderr);
    let wrong = if ran.took >= LIMIT {
        Some("it took too long")
    } else if printed.contains("panicked") {
        Some("it panicked")
    } else if !matches!(ran.code, Some(0..=3)) {
        Some("it ended in another way than by a status of its own")
    } else if printed.chars().any(|c| c != '\n' && c.is_control()) {
        Some("it printed control characters")
    } else {
        None
    };
    (ran, wrong)
}
