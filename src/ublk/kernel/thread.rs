//! A queue's thread: a ring, memory, and a process that ends if it panics.

use std::io;
use std::thread::JoinHandle;

use crate::runtime::{RingOptions, Runtime, thread};
use crate::storage::IoBuf;
use crate::ublk::driver::{QueueHandle, QueueMain, Ready, ThreadSpec};
use crate::{Error, Result};

/// A running thread.
#[derive(Debug)]
pub struct QueueThreadHandle(JoinHandle<()>);

impl QueueHandle for QueueThreadHandle {
    fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    fn join(self) {
        // It cannot have panicked: that aborts the process.
        let _ = self.0.join();
    }
}

/// A panic in a queue's thread must not leave a living process behind: its users would hang for ever. A dead one
/// is followed by the next server.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "cowdisk: a queue thread panicked: the process aborts, so that the next server can take over"
            );
            std::process::abort();
        }
    }
}

pub(super) fn start<M: QueueMain>(spec: ThreadSpec, main: M) -> io::Result<QueueThreadHandle> {
    let builder = std::thread::Builder::new().name(spec.name.clone());
    let thread = builder.spawn(move || {
        let _guard = AbortOnPanic;
        match prepare(&spec) {
            // Mapping and character device go with the last task, before the ring: then DEL_DEV can end.
            Ok((runtime, ready)) => runtime.block_on(async move { main.run(ready).await }),
            Err(e) => main.failed(e),
        }
    })?;
    Ok(QueueThreadHandle(thread))
}

/// Everything that can fail or take time, before the first fetch. Reclaim first: rings and their workers inherit it.
fn prepare(spec: &ThreadSpec) -> Result<(Runtime, Ready)> {
    let mut warnings = Vec::new();
    let mut wish = |what: &str, result: io::Result<()>| {
        if let Err(e) = result {
            warnings.push(format!("queue {}: {what}: {e}", spec.queue));
        }
    };
    wish("PR_SET_IO_FLUSHER", thread::set_io_flusher());
    wish("pinning to the queue's CPUs", thread::pin_within(&spec.cpus).map(drop));
    let buffers = IoBuf::zeroed(spec.buffer_bytes);
    wish("locking of buffers", thread::lock_once_used(&buffers));
    let entries = spec.operations.next_power_of_two().clamp(64, 8192);
    let what = || format!("io_uring_setup for ublk queue {}", spec.queue);
    let runtime = Runtime::new(RingOptions { entries }).map_err(|e| Error::io(what(), e))?;
    if spec.entries > 0 {
        let what = || format!("a buffer table for ublk queue {}", spec.queue);
        runtime.make_entries(spec.entries).map_err(|e| Error::io(what(), e))?;
    }
    let entries = IoBuf::entries(spec.entries, spec.max_io);
    Ok((runtime, Ready { buffers, entries, warnings }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    const CHILD: &str = "COWDISK_TEST_CHILD";

    /// True in a process that a test has made by [`again`].
    fn is_child() -> bool {
        std::env::var_os(CHILD).is_some()
    }

    /// Runs the test `name` of this module once more, in a process of its own.
    fn again(name: &str) -> Command {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", &format!("ublk::kernel::thread::tests::{name}")]).env(CHILD, "1");
        child.stdout(Stdio::piped()).stderr(Stdio::piped());
        child
    }

    #[test]
    fn a_panic_in_a_queue_thread_aborts_the_process() {
        if is_child() {
            let panicking = std::thread::spawn(|| {
                let _guard = AbortOnPanic;
                panic!("as the test wants it");
            });
            let _ = panicking.join();
            return;
        }
        let child = again("a_panic_in_a_queue_thread_aborts_the_process").output().unwrap();
        assert_eq!(child.status.signal(), Some(libc::SIGABRT));
    }

    /// A queue goes on without: the daemon says so, and what it costs.
    #[test]
    fn memory_that_may_not_be_locked_is_a_warning() {
        if is_child() {
            // Enough for the ring, which is locked too.
            thread::limit_locking(1 << 20);
            let spec = ThreadSpec {
                name: "q".into(),
                queue: 3,
                cpus: vec![0xff; 128],
                operations: 8,
                buffer_bytes: 4 << 20,
                entries: 0,
                max_io: 4096,
            };
            let (_, ready) = prepare(&spec).unwrap();
            assert_eq!(ready.buffers.len(), 4 << 20);
            let locking: Vec<_> = ready.warnings.iter().filter(|w| w.contains("locking")).collect();
            assert!(
                matches!(locking[..], [one] if one.starts_with("queue 3: locking of buffers: ")),
                "{locking:?}"
            );
            return;
        }
        let child = again("memory_that_may_not_be_locked_is_a_warning").output().unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
    }
}
