//! Injected faults: one operation (or every one from then on) fails, and a budget of disk space.

use std::io;

use super::OpKind;

/// What goes wrong. Set with [`super::SimDisk::set_faults`], which starts the count anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// A failing operation.
    pub fail: Option<Fault>,
    /// Bytes of allocated pages over all files; writes and allocations that need more get ENOSPC, or do what
    /// fits. Holes cost nothing, `allocate` reserves.
    pub budget: Option<u64>,
}

/// A failing operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Which one: 1 is the next that `kind` can hit and `only` allows.
    pub at: u64,
    /// How it fails.
    pub kind: FaultKind,
    /// Every later one fails too.
    pub sticky: bool,
    /// Count only operations of this kind.
    pub only: Option<OpKind>,
}

/// How an operation fails. A failed write may have landed in part; a failed sync leaves each unsynced change
/// durable or not, and forgets that it was not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// EIO.
    Eio,
    /// EIO of a write that lands all the same, whole and some time later: until then it stays in flight, and the
    /// hook sees it end a second time.
    Late,
    /// ENOSPC, for operations that may need space.
    Enospc,
    /// EINTR; nothing was done.
    Eintr,
    /// EAGAIN; nothing was done.
    Eagain,
    /// Fewer bytes than asked for, at least one sector, of a read or write.
    Short,
    /// A write that reports success and is not there.
    Lost,
    /// A write that reports success and landed this many bytes (a multiple of 4096) further on.
    Misdirected(u64),
}

impl FaultKind {
    /// The error of kinds that have one.
    pub(super) fn error(self) -> Option<io::Error> {
        let errno = match self {
            FaultKind::Eio | FaultKind::Late => libc::EIO,
            FaultKind::Enospc => libc::ENOSPC,
            FaultKind::Eintr => libc::EINTR,
            FaultKind::Eagain => libc::EAGAIN,
            FaultKind::Short | FaultKind::Lost | FaultKind::Misdirected(_) => return None,
        };
        Some(io::Error::from_raw_os_error(errno))
    }

    /// True if an operation of this kind can fail so.
    const fn fits(self, op: OpKind) -> bool {
        match self {
            FaultKind::Eio | FaultKind::Eintr | FaultKind::Eagain => true,
            FaultKind::Enospc => !matches!(op, OpKind::Read | OpKind::Open | OpKind::Attr | OpKind::Unlink),
            FaultKind::Short => matches!(op, OpKind::Read | OpKind::Write),
            FaultKind::Late | FaultKind::Lost | FaultKind::Misdirected(_) => matches!(op, OpKind::Write),
        }
    }
}

/// The faults of a disk and what they have hit so far.
#[derive(Clone, Default, Debug)]
pub(super) struct FaultState {
    pub(super) faults: Faults,
    matched: u64,
    pub(super) hits: u64,
}

impl FaultState {
    pub(super) fn new(faults: Faults) -> FaultState {
        assert!(faults.fail.is_none_or(|fail| fail.at > 0), "operations are counted from 1");
        FaultState { faults, ..FaultState::default() }
    }

    /// Counts an operation at its issue; the way it fails, if it does.
    pub(super) fn strike(&mut self, op: OpKind) -> Option<FaultKind> {
        let fail = self.faults.fail.filter(|fail| fail.only.is_none_or(|only| only == op))?;
        if !fail.kind.fits(op) {
            return None;
        }
        self.matched += 1;
        let hit = self.matched == fail.at || (fail.sticky && self.matched > fail.at);
        self.hits += u64::from(hit);
        hit.then_some(fail.kind)
    }
}
