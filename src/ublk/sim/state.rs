//! The driver's memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::Profile;
use super::admin::Call;
use super::block::Request;
use super::io::Mutation;
use crate::storage::IoBuf;
use crate::storage::sim::Rng;
use crate::ublk::uapi::{CtrlDevInfo, IoDesc, Params, flag, io_result, state};

/// A thread of a simulated process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ThreadId {
    /// Its process.
    pub pid: u32,
    /// Its number in it; 0 is the one that does admin commands.
    pub thread: u32,
}

/// What happened, for a test's line of counts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Requests of users.
    pub requests: u64,
    /// Times that a request was handed to a server.
    pub delivered: u64,
    /// Requests that were handed to another server after the first one's death.
    pub reissued: u64,
    /// Requests that were ended; never more than once each.
    pub ended: u64,
    /// Requests that were ended because their server had died.
    pub failed_by_death: u64,
    /// Admin commands.
    pub admin: u64,
    /// Commands of queues.
    pub io: u64,
    /// Commands of queues that were refused.
    pub refused: u64,
    /// Round trips for the data of writes.
    pub get_data: u64,
    /// Data of requests that servers copied.
    pub user_copies: u64,
    /// Reads and writes whose data servers have not copied, but moved by way of a buffer table.
    pub unseen: u64,
    /// Character devices let go of, by an end or a death.
    pub released: u64,
}

/// Where a tag is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// Not fetched since the device, or the queue, is new.
    New,
    /// Fetched; the operation waits for a request.
    Idle(u64),
    /// A request is with the server.
    Serving,
    /// The server was told that a write wants a buffer.
    Asking,
    /// The server has answered that.
    Getting(u64),
    /// Taken away.
    Aborted,
}

#[derive(Debug)]
pub(super) struct Tag {
    pub(super) stage: Stage,
    pub(super) request: Option<u64>,
    pub(super) buf: Option<IoBuf>,
    pub(super) daemon: Option<ThreadId>,
}

impl Tag {
    const fn new() -> Tag {
        Tag { stage: Stage::New, request: None, buf: None, daemon: None }
    }
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) tags: Vec<Tag>,
    pub(super) descs: Vec<IoDesc>,
    pub(super) fetched: u16,
    /// Requests that have no tag, oldest first.
    pub(super) waiting: VecDeque<u64>,
}

impl Queue {
    fn new(depth: u16) -> Queue {
        let tags = (0..depth).map(|_| Tag::new()).collect();
        Queue {
            tags,
            descs: vec![IoDesc::default(); usize::from(depth)],
            fetched: 0,
            waiting: VecDeque::new(),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        usize::from(self.fetched) == self.tags.len()
    }

    /// As if nobody had ever fetched. Requests in flight must have been taken off before.
    pub(super) fn reset(&mut self) {
        self.fetched = 0;
        self.tags.iter_mut().for_each(|tag| *tag = Tag::new());
    }

    pub(super) fn busy(&self) -> usize {
        self.waiting.len() + self.tags.iter().filter(|tag| tag.request.is_some()).count()
    }
}

#[derive(Debug)]
pub(super) struct Dev {
    pub(super) info: CtrlDevInfo,
    pub(super) params: Params,
    pub(super) queues: Vec<Queue>,
    /// The open file of `/dev/ublkcN`.
    pub(super) opened: Option<u64>,
    /// The process that has mapped descriptors; before 6.15 no other one may.
    pub(super) mapped_by: Option<u32>,
    /// `/dev/ublkbN` is there.
    pub(super) disk: bool,
    /// No request comes in any more.
    pub(super) stopping: bool,
    /// QUIESCE_DEV: requests stay outside.
    pub(super) canceling: bool,
    /// The number is free when the last reference goes.
    pub(super) deleted: bool,
    pub(super) openers: u32,
    /// Somebody has looked for partitions.
    pub(super) partitions_read: bool,
}

impl Dev {
    pub(super) fn new(info: CtrlDevInfo) -> Dev {
        Dev {
            info,
            params: Params::default(),
            queues: (0..info.nr_hw_queues).map(|_| Queue::new(info.queue_depth)).collect(),
            opened: None,
            mapped_by: None,
            disk: false,
            stopping: false,
            canceling: false,
            deleted: false,
            openers: 0,
            partitions_read: false,
        }
    }

    pub(super) fn has(&self, bits: u64) -> bool {
        self.info.flags & bits == bits
    }

    pub(super) fn is_live(&self) -> bool {
        self.info.state == state::LIVE
    }

    /// Waits for a new server.
    pub(super) fn is_recoverable(&self) -> bool {
        [state::QUIESCED, state::FAIL_IO].contains(&self.info.state)
    }

    pub(super) fn all_fetched(&self) -> bool {
        self.queues.iter().all(Queue::is_ready)
    }

    pub(super) fn busy(&self) -> usize {
        self.queues.iter().map(Queue::busy).sum()
    }

    pub(super) fn wants_get_data(&self) -> bool {
        self.has(flag::NEED_GET_DATA)
    }
}

/// A command of a queue on its way back.
#[derive(Debug)]
pub(super) struct OpState {
    pub(super) thread: ThreadId,
    pub(super) result: Option<i32>,
    pub(super) waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct OpenFile {
    pub(super) device: u32,
    pub(super) pid: u32,
    /// Nobody refers to it any more; the driver has not noticed yet.
    pub(super) closed: bool,
}

pub(super) struct State {
    pub(super) profile: Profile,
    pub(super) rng: Rng,
    pub(super) clock: Duration,
    pub(super) devices: BTreeMap<u32, Dev>,
    pub(super) requests: BTreeMap<u64, Request>,
    pub(super) ops: BTreeMap<u64, OpState>,
    pub(super) calls: BTreeMap<u64, Call>,
    pub(super) files: BTreeMap<u64, OpenFile>,
    pub(super) alive: BTreeSet<u32>,
    /// Who waits until results have been seen.
    pub(super) submitters: Vec<Waker>,
    pub(super) broken: Vec<String>,
    pub(super) counts: Counts,
    /// Commands by number, of both kinds.
    pub(super) sent: BTreeMap<u32, u64>,
    pub(super) mutation: Option<Mutation>,
    next: u64,
}

impl State {
    fn new(profile: Profile, seed: u64) -> State {
        State {
            profile,
            rng: Rng::new(seed),
            clock: Duration::ZERO,
            devices: BTreeMap::new(),
            requests: BTreeMap::new(),
            ops: BTreeMap::new(),
            calls: BTreeMap::new(),
            files: BTreeMap::new(),
            alive: BTreeSet::new(),
            submitters: Vec::new(),
            broken: Vec::new(),
            counts: Counts::default(),
            sent: BTreeMap::new(),
            mutation: None,
            next: 0,
        }
    }

    /// A number that nothing else has.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The server did something that no server may do.
    pub(super) fn broke(&mut self, what: String) {
        self.broken.push(what);
    }

    pub(super) fn end_op(&mut self, op: u64, result: i32) {
        // The ring may be gone with its process.
        let Some(state) = self.ops.get_mut(&op) else { return };
        assert!(state.result.is_none(), "two completions of one command");
        state.result = Some(result);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Takes away the idle tags of a device.
    pub(super) fn abort_idle(&mut self, id: u32) {
        let Some(dev) = self.devices.get_mut(&id) else { return };
        let mut ended = Vec::new();
        for tag in dev.queues.iter_mut().flat_map(|queue| &mut queue.tags) {
            if let Stage::Idle(op) = tag.stage {
                tag.stage = Stage::Aborted;
                ended.push(op);
            }
        }
        for op in ended {
            self.end_op(op, io_result::ABORT);
        }
    }

    /// Does one thing that the driver would do by itself. `false`: there is nothing to do.
    pub(super) fn act(&mut self) -> bool {
        let mut choices: Vec<Act> = Vec::new();
        choices
            .extend(self.files.iter().filter(|(_, file)| file.closed).map(|(&file, _)| Act::Release(file)));
        choices.extend(
            self.calls.iter().filter(|(_, call)| call.result.is_none()).map(|(&id, _)| Act::Call(id)),
        );
        for (&id, dev) in &self.devices {
            let live = dev.is_live() && !dev.canceling;
            for (queue, index) in dev.queues.iter().zip(0..) {
                let idle = |tag: &Tag| matches!(tag.stage, Stage::Idle(_));
                if live && !queue.waiting.is_empty() && queue.tags.iter().any(idle) {
                    choices.push(Act::Deliver(id, index));
                }
                let getting = queue.tags.iter().zip(0..);
                let getting = getting.filter(|(tag, _)| matches!(tag.stage, Stage::Getting(_)));
                choices.extend(getting.map(|(_, tag)| Act::GiveData(id, index, tag)));
            }
        }
        while !choices.is_empty() {
            let choice = choices.swap_remove(self.rng.index(choices.len()));
            if self.perform(choice) {
                return true;
            }
        }
        false
    }

    /// `false`: it turned out that there was nothing to do.
    fn perform(&mut self, act: Act) -> bool {
        match act {
            Act::Release(file) => self.release(file),
            Act::Call(id) => return self.go_on(id),
            Act::Deliver(id, queue) => self.deliver(id, queue),
            Act::GiveData(id, queue, tag) => self.give_data(id, queue, tag),
        }
        true
    }

    /// When something will happen by itself though nothing happens now.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let deadlines =
            self.calls.values().filter(|call| call.result.is_none()).filter_map(|call| call.deadline);
        deadlines.filter(|deadline| *deadline > self.clock).min()
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// Notices that a character device was let go of.
    Release(u64),
    /// Goes on with an admin command.
    Call(u64),
    /// Hands a request to a queue.
    Deliver(u32, u16),
    /// Hands the data of a write over, after the server has asked for it.
    GiveData(u32, u16, u16),
}

/// The driver, shared by everything on the machine.
pub(super) struct Shared {
    state: Mutex<State>,
    /// The clock's zero.
    epoch: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    pub(super) fn new(profile: Profile, seed: u64) -> Shared {
        Shared { state: Mutex::new(State::new(profile, seed)), epoch: Instant::now() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn now(&self) -> Instant {
        self.epoch + self.state().clock
    }
}
