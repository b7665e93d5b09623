//! Operations in flight: what begins at their issue and happens at their completion.

use std::io;
use std::sync::Arc;

use super::OpKind;
use super::effect::{self, Piece};
use super::fault::FaultKind;
use super::file::Cell;
use super::hook::{Event, When};
use super::pages::{PAGE, Part, SECTOR, at};
use super::state::{Description, State};
use crate::storage::{Done, IoBuf, IoVecs};

/// An operation as its caller asks for it.
#[derive(Debug)]
pub(super) enum Request {
    Read(IoBuf, u64),
    Write(IoVecs, u64),
    Sync,
    Allocate(u64, u64),
    Punch(u64, u64),
}

/// What an operation in flight will do.
#[derive(Debug)]
pub(super) enum Running {
    Read(IoBuf),
    Write {
        pieces: Vec<Piece>,
        len: usize,
    },
    /// Covers what had landed, by number, at the issue.
    Sync {
        upto: u64,
    },
    Allocate,
    Punch,
    /// Nothing: the request makes no sense.
    Refused(i32),
}

/// An operation in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) index: u64,
    pub(super) ino: u64,
    pub(super) op: OpKind,
    pub(super) what: Running,
    pub(super) pos: u64,
    pub(super) len: u64,
    pub(super) cell: Arc<Cell>,
    description: u64,
    fault: Option<FaultKind>,
    vecs: IoVecs,
}

impl InFlight {
    pub(super) fn event(&self, state: &State, when: When) -> Event {
        let path = state.description(self.description).path.clone();
        Event { when, index: self.index, op: self.op, path, pos: self.pos, len: self.len }
    }
}

/// EINVAL for what a file opened direct cannot do.
fn check_aligned(description: &Description, pos: u64, bufs: &[IoBuf]) -> Option<i32> {
    let odd = |n: u64| !n.is_multiple_of(SECTOR);
    let bad = odd(pos) || bufs.iter().any(|buf| odd(buf.len() as u64) || odd(buf.as_ptr() as u64));
    (description.direct && bad).then_some(libc::EINVAL)
}

impl State {
    /// Counts an operation and copies what it writes.
    pub(super) fn begin(&mut self, id: u64, request: Request) -> InFlight {
        let upto = self.landed;
        let (op, pos, len, mut what, vecs) = match request {
            Request::Read(buf, pos) => {
                (OpKind::Read, pos, buf.len() as u64, Running::Read(buf), IoVecs::new())
            }
            Request::Write(vecs, pos) => {
                let (pieces, len) = (effect::capture(&vecs, pos), vecs.len());
                (OpKind::Write, pos, len as u64, Running::Write { pieces, len }, vecs)
            }
            Request::Sync => (OpKind::Sync, 0, 0, Running::Sync { upto }, IoVecs::new()),
            Request::Allocate(pos, len) => (OpKind::Allocate, pos, len, Running::Allocate, IoVecs::new()),
            Request::Punch(pos, len) => (OpKind::Punch, pos, len, Running::Punch, IoVecs::new()),
        };
        if let Some(errno) = self.refusal(id, &what, pos, len, &vecs) {
            what = Running::Refused(errno);
        }
        let (index, fault) = self.count(op);
        let description = self.descriptions.get_mut(&id).expect("the caller holds a handle");
        description.in_flight += 1;
        let (ino, cell) = (description.ino, Arc::default());
        InFlight { index, ino, op, what, pos, len, cell, description: id, fault, vecs }
    }

    /// Why the kernel would refuse a request.
    fn refusal(&self, id: u64, what: &Running, pos: u64, len: u64, vecs: &IoVecs) -> Option<i32> {
        let description = self.description(id);
        let past_end = pos >= self.inode(description.ino).visible.len;
        match what {
            Running::Write { .. } | Running::Allocate | Running::Punch if !description.write => {
                Some(libc::EBADF)
            }
            _ if pos.checked_add(len).is_none_or(|end| end > i64::MAX as u64) => Some(libc::EFBIG),
            Running::Allocate | Running::Punch if len == 0 => Some(libc::EINVAL),
            Running::Write { .. } => check_aligned(description, pos, vecs.bufs()),
            Running::Read(buf) if !past_end => check_aligned(description, pos, std::slice::from_ref(buf)),
            _ => None,
        }
    }

    /// Does what an operation does, as far as its fault lets it.
    pub(super) fn end(&mut self, mut running: InFlight) -> Done {
        let vecs = std::mem::take(&mut running.vecs);
        let result = match running.fault.map(|fault| (fault, fault.error())) {
            Some((FaultKind::Late, Some(error))) => {
                self.delay(&mut running);
                Err(error)
            }
            Some((fault, Some(error))) => {
                self.fail(&running, fault);
                Err(error)
            }
            _ => self.carry_out(&mut running),
        };
        self.settle(running.description, false);
        Done { result, vecs }
    }

    fn carry_out(&mut self, running: &mut InFlight) -> io::Result<usize> {
        self.fit_budget(running)?;
        if running.fault == Some(FaultKind::Short) && running.len > SECTOR {
            running.len = SECTOR * (1 + self.rng.below(running.len.div_ceil(SECTOR) - 1));
        }
        match &mut running.what {
            Running::Refused(errno) => return Err(io::Error::from_raw_os_error(*errno)),
            Running::Read(buf) => return self.read(running.ino, buf, running.pos, at(running.len)),
            Running::Sync { upto } => {
                let upto = *upto;
                self.inode_mut(running.ino).sync(upto);
            }
            Running::Write { pieces, len } => {
                *len = at(running.len);
                effect::cut(pieces, *len);
                return self.write(running);
            }
            Running::Allocate | Running::Punch => {
                if let Some(effect) = self.effect_of(running) {
                    self.land(running.ino, effect);
                }
            }
        }
        Ok(0)
    }

    fn read(&self, ino: u64, buf: &IoBuf, pos: u64, len: usize) -> io::Result<usize> {
        self.inode(ino).visible.read(pos, len, |done, part| match part {
            Part::Bytes(bytes) => buf.by_kernel().copy_from(done, bytes),
            Part::Zeros(n) => buf.by_kernel().zero(done..done + n),
        })
    }

    fn write(&mut self, running: &mut InFlight) -> io::Result<usize> {
        let n = at(running.len);
        let visible = &self.inode(running.ino).visible;
        if let Running::Write { pieces, .. } = &running.what
            && pieces.iter().any(|piece| visible.is_bad(piece.page, piece.shared_mask()))
        {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if running.fault == Some(FaultKind::Lost) || n == 0 {
            return Ok(n);
        }
        if let Some(mut effect) = self.effect_of(running) {
            if let Some(FaultKind::Misdirected(by)) = running.fault {
                effect.misdirect(by);
            }
            self.land(running.ino, effect);
        }
        Ok(n)
    }

    /// Lets an operation that was reported as failed go on, with nobody waiting for it.
    fn delay(&mut self, running: &mut InFlight) {
        let what = std::mem::replace(&mut running.what, Running::Refused(libc::EIO));
        let (cell, vecs) = (Arc::default(), IoVecs::new());
        if let Some(description) = self.descriptions.get_mut(&running.description) {
            description.in_flight += 1;
        }
        self.in_flight.push(InFlight { what, cell, vecs, fault: None, ..*running });
    }

    /// What a failed operation leaves behind.
    fn fail(&mut self, running: &InFlight, fault: FaultKind) {
        if matches!(fault, FaultKind::Eintr | FaultKind::Eagain) && running.op != OpKind::Sync {
            return;
        }
        match &running.what {
            Running::Sync { .. } => {
                let mut rng = self.rng.split();
                self.inode_mut(running.ino).fail_sync(&mut rng);
            }
            Running::Write { .. } => {
                if let Some(effect) = self.effect_of(running) {
                    let num = self.rng.below(8);
                    let mut effect = effect.torn(&mut self.rng, num, num > 0);
                    if fault == FaultKind::Enospc || self.faults.faults.budget.is_some() {
                        let visible = &self.inode(running.ino).visible;
                        effect.patches.retain(|patch| !visible.is_hole(patch.page));
                    }
                    self.land(running.ino, effect);
                }
            }
            _ => {}
        }
    }

    /// ENOSPC if an operation needs more than is left of the budget. A write may do the part that fits.
    fn fit_budget(&mut self, running: &mut InFlight) -> io::Result<()> {
        let free = self.free_pages();
        let visible = &self.inode(running.ino).visible;
        let mut fits = running.len;
        match &running.what {
            Running::Write { pieces, .. } => {
                let full = pieces.iter().filter(|piece| visible.is_hole(piece.page)).nth(at(free));
                fits = full.map_or(fits, |piece| (piece.page * PAGE).saturating_sub(running.pos));
            }
            Running::Allocate => {
                let pages = running.pos / PAGE..(running.pos + running.len).div_ceil(PAGE);
                fits = if visible.holes(pages) > free { 0 } else { fits };
            }
            _ => return Ok(()),
        }
        if fits < running.len && (fits < SECTOR || self.rng.chance(1, 2)) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        running.len = fits;
        Ok(())
    }
}
