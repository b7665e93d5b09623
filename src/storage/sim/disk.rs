//! The handle of a simulated disk: what tests do to it from outside.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::crash::{Crash, CrashOptions};
use super::fault::{FaultState, Faults};
use super::file::SimOp;
use super::flight::Request;
use super::hook::{self, Event, Hook, When};
use super::page::mix;
use super::pages::Content;
use super::state::{Inode, State};
use super::{Executor, OpKind};
use crate::storage::FileKind;

/// Tells the hooks of different disks apart, and nothing else.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    id: u64,
    seed: u64,
    state: Mutex<State>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        hook::set(self.id, None);
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("seed", &self.shared.seed).field("ops", &self.ops()).finish()
    }
}

impl SimDisk {
    /// A disk without files. `seed` decides over the results of faults and over `random`.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk::from_state(seed, State::new(seed))
    }

    pub(super) fn from_state(seed: u64, state: State) -> SimDisk {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        SimDisk { shared: Arc::new(Shared { id, seed, state: Mutex::new(state) }) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }

    pub(super) fn id(&self) -> u64 {
        self.shared.id
    }

    /// Puts a durable file there, replacing another one of that name.
    ///
    /// # Panics
    /// If the path cannot name a file.
    pub fn put_file(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        self.put(path.as_ref(), FileKind::Regular, Content::from_bytes(bytes), None);
    }

    /// Puts a durable thing that is no regular file there: a directory, FIFO or the like, or, with the content of
    /// the file that was there, a block device.
    ///
    /// # Panics
    /// If the path cannot name a file.
    pub fn put_special(&self, path: impl AsRef<Path>, kind: FileKind) {
        let old = self.read_file(path.as_ref()).unwrap_or_default();
        self.put(path.as_ref(), kind, Content::from_bytes(&old), None);
    }

    /// Puts a durable symbolic link there.
    ///
    /// # Panics
    /// If the path cannot name a file.
    pub fn symlink(&self, path: impl AsRef<Path>, target: impl AsRef<Path>) {
        self.put(path.as_ref(), FileKind::Other, Content::default(), Some(target.as_ref()));
    }

    fn put(&self, path: &Path, kind: FileKind, content: Content, target: Option<&Path>) {
        let mut state = self.state();
        let path = state.resolve(path, false).expect("a path that can name a file");
        let now_ns = state.now_ns();
        let inode = Inode { target: target.map(Path::to_owned), ..Inode::new(kind, 0o644, content, now_ns) };
        let ino = state.add_inode(inode);
        state.names.put(path, ino);
        state.forget_unreachable();
    }

    /// The visible content of a file, those of unreadable sectors too.
    pub fn read_file(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let state = self.state();
        let ino = state.lookup(&state.resolve(path.as_ref(), true).ok()?).ok()?;
        Some(state.inode(ino).visible.bytes())
    }

    /// A number that follows from what a program can see now: the names, and the bytes of the files behind them. Two
    /// disks with different numbers differ; which space is reserved, and what is durable, does not count.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint_of(|_| true)
    }

    /// As [`SimDisk::fingerprint`], of the files that `wanted` names.
    pub fn fingerprint_of(&self, wanted: impl Fn(&Path) -> bool) -> u64 {
        let state = self.state();
        let files = state.names.visible().filter(|(name, _)| wanted(name));
        let files = files.map(|(name, ino)| (name, ino, state.inode(ino).visible.print()));
        files.fold(0, |sum, (name, ino, print)| {
            let name =
                name.as_os_str().as_encoded_bytes().iter().fold(sum, |sum, byte| mix(sum, u64::from(*byte)));
            mix(mix(name, ino), print)
        })
    }

    /// Which run of the machine this is: a power loss ends one, the death of a process does not.
    pub fn boot(&self) -> u64 {
        self.state().boot
    }

    /// Other machines have the file system too, or not.
    pub fn set_shared(&self, shared: bool) {
        self.state().shared = shared;
    }

    /// Operations issued so far on files and directories: the index of the next one.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// Operations in flight.
    pub fn in_flight(&self) -> usize {
        self.state().in_flight.len()
    }

    /// Where the operation `index` is among those in flight.
    pub(super) fn position(&self, index: u64) -> Option<usize> {
        self.state().in_flight.iter().position(|running| running.index == index)
    }

    /// The index of the `nth` operation in flight.
    pub(super) fn index_in_flight(&self, nth: usize) -> u64 {
        self.state().in_flight[nth].index
    }

    /// The disk as the next process or the next boot finds it, with the default [`CrashOptions`].
    #[must_use]
    pub fn crash(&self, kind: Crash, seed: u64) -> SimDisk {
        self.crash_with(kind, seed, CrashOptions::default())
    }

    /// The disk as the next process or the next boot finds it. This one does not change. The new disk has no open
    /// files, locks, faults and hooks, and counts its operations from 0.
    #[must_use]
    pub fn crash_with(&self, kind: Crash, seed: u64, options: CrashOptions) -> SimDisk {
        SimDisk::from_state(seed, self.state().crash(kind, seed, options))
    }

    /// Bytes allocated by all files: what [`Faults::budget`] limits.
    pub fn allocated(&self) -> u64 {
        self.state().used_bytes()
    }

    /// Sets the faults; their count starts now.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = FaultState::new(faults);
    }

    /// Operations that a fault has hit since [`SimDisk::set_faults`]. 0 after a run: its faults lie past its end.
    pub fn fault_hits(&self) -> u64 {
        self.state().faults.hits
    }

    /// Sets the function that sees every operation begin and end. See [`Hook`].
    pub fn set_hook(&self, hook: Option<Hook>) {
        hook::set(self.id(), hook);
    }

    /// Runs `future` on an executor of its own, seeded by the disk.
    ///
    /// # Panics
    /// If it can never end.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        Executor::new(self, self.shared.seed).block_on(future)
    }

    /// Ends one operation in flight, counted in the order of issue.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn complete(&self, nth: usize) {
        let mut state = self.state();
        let running = state.in_flight.remove(nth);
        let (cell, event) = (running.cell.clone(), running.event(&state, When::Completion));
        let done = state.end(running);
        drop(state);
        hook::call(self, || event);
        cell.finish(done);
    }

    /// Starts an operation on an open file.
    pub(super) fn issue(&self, description: u64, request: Request) -> SimOp {
        let mut state = self.state();
        let running = state.begin(description, request);
        let (cell, event) = (running.cell.clone(), running.event(&state, When::Issue));
        state.in_flight.push(running);
        drop(state);
        hook::call(self, || event);
        SimOp::new(cell)
    }

    /// Does an operation that nobody waits for: it begins and ends here.
    pub(super) fn at_once<T>(
        &self,
        op: OpKind,
        path: &Path,
        pos: u64,
        act: impl FnOnce(&mut State, io::Result<()>) -> io::Result<T>,
    ) -> io::Result<T> {
        let path: Arc<Path> = path.into();
        let (index, fault) = self.state().count(op);
        let event = |when| Event { when, index, op, path: path.clone(), pos, len: 0 };
        hook::call(self, || event(When::Issue));
        let fault = fault.and_then(super::FaultKind::error).map_or(Ok(()), Err);
        let result = act(&mut self.state(), fault);
        hook::call(self, || event(When::Completion));
        result
    }
}

impl State {
    /// Gives an operation its index, and its fault if it is to have one.
    pub(super) fn count(&mut self, op: OpKind) -> (u64, Option<super::FaultKind>) {
        self.ops += 1;
        (self.ops - 1, self.faults.strike(op))
    }
}
