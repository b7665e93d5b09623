//! A caller's function that sees every operation begin and end.
//!
//! It belongs to the thread that set it: it need not be `Send`, and fires for operations of that thread.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{OpKind, SimDisk};

/// Which end of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// It has been counted and is in flight; nothing of it is visible.
    Issue,
    /// What it does is visible (or it failed); its caller does not know yet.
    Completion,
}

/// The beginning or the end of an operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Which of the two.
    pub when: When,
    /// The operation index: operations issued before this one.
    pub index: u64,
    /// What it is.
    pub op: OpKind,
    /// The path it was given; for file operations, the one the file was opened with.
    pub path: Arc<Path>,
    /// First byte, or the new length of `SetLen`; 0 where there is none.
    pub pos: u64,
    /// Bytes asked for; 0 where there are none.
    pub len: u64,
}

/// Called without any lock held, and not for operations that it starts on the same disk itself.
pub type Hook = Box<dyn FnMut(&SimDisk, Event)>;

thread_local! {
    /// The hooks of this thread by disk; `None` while one runs.
    static HOOKS: RefCell<BTreeMap<u64, Option<Hook>>> = const { RefCell::new(BTreeMap::new()) };
}

/// Sets or removes the hook of a disk.
pub(super) fn set(disk: u64, hook: Option<Hook>) {
    // Dropped outside of the borrow: what a hook holds may be the last handle of another disk with a hook.
    let old = HOOKS.try_with(|hooks| match hook {
        Some(hook) => hooks.borrow_mut().insert(disk, Some(hook)),
        None => hooks.borrow_mut().remove(&disk),
    });
    drop(old);
}

/// Calls the hook of a disk, if it has one and is not running it.
pub(super) fn call(disk: &SimDisk, event: impl FnOnce() -> Event) {
    let id = disk.id();
    let taken = HOOKS.with(|hooks| hooks.borrow_mut().get_mut(&id).and_then(Option::take));
    let Some(mut hook) = taken else { return };
    hook(disk, event());
    let unused = HOOKS.with(|hooks| match hooks.borrow_mut().get_mut(&id) {
        Some(slot @ None) => slot.replace(hook),
        // Replaced or removed while it ran.
        _ => Some(hook),
    });
    drop(unused);
}
