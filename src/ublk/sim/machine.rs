//! The machine: its driver, its processes and its users, one step at a time.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Profile;
use super::io::Mutation;
use super::server::{Process, Server};
use super::state::{Counts, Shared, Stage};
use super::user::SimBlock;
use crate::storage::sim::{Executor, JoinHandle, Rng, SimDisk};
use crate::ublk::DeviceInfo;
use crate::ublk::uapi::{Command, Params};

/// What one step takes: so that a wait with a bound ends even if something always happens.
const STEP: Duration = Duration::from_micros(100);

/// A machine with a ublk driver. Clones are the same machine.
#[derive(Clone)]
pub struct Machine(Rc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    users: Executor,
    processes: RefCell<Vec<Rc<Process>>>,
    rng: RefCell<Rng>,
    seed: u64,
    next_pid: Cell<u32>,
    steps: Cell<u64>,
    /// Who dies, and before which step.
    kill: Cell<Option<(u32, u64)>>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("seed", &self.0.seed).field("steps", &self.steps()).finish()
    }
}

impl Machine {
    /// A machine without devices; what happens on it follows from `seed`.
    pub fn new(profile: Profile, seed: u64) -> Machine {
        let mut rng = Rng::new(seed);
        let users = Executor::new(&SimDisk::new(0), rng.draw());
        Machine(Rc::new(Inner {
            shared: Arc::new(Shared::new(profile, rng.draw())),
            users,
            processes: RefCell::default(),
            rng: RefCell::new(rng),
            seed,
            next_pid: Cell::new(100),
            steps: Cell::new(0),
            kill: Cell::new(None),
        }))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// A new process that may serve a device.
    pub fn boot(&self) -> Server {
        self.boot_on(&SimDisk::new(0))
    }

    /// A new process whose tasks use the files of `disk`.
    pub fn boot_on(&self, disk: &SimDisk) -> Server {
        let pid = self.0.next_pid.replace(self.0.next_pid.get() + 1);
        let executor = Executor::new(disk, self.0.rng.borrow_mut().draw());
        let process = Rc::new(Process::new(pid, executor));
        self.0.shared.state().alive.insert(pid);
        self.0.processes.borrow_mut().push(process.clone());
        Server::new(self.clone(), process)
    }

    /// Adds a user: a task that goes on whatever server comes and goes.
    pub fn user<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        self.0.users.spawn(task)
    }

    /// Opens `/dev/ublkbN`; `None` while there is no such disk.
    pub fn open(&self, id: u32) -> Option<SimBlock> {
        SimBlock::open(&self.0.shared, id)
    }

    /// `server` dies before so many more steps are done.
    pub fn kill_in(&self, steps: u64, server: &Server) {
        self.0.kill.set(Some((server.pid_number(), self.steps() + steps)));
    }

    /// `server` lives, whatever was decided before.
    pub fn spare(&self) {
        self.0.kill.set(None);
    }

    /// Does one thing. `false`: nothing can happen unless time passes, or somebody does something.
    pub fn step(&self) -> bool {
        self.0.steps.set(self.steps() + 1);
        self.0.shared.state().clock += STEP;
        if let Some((pid, _)) = self.0.kill.get().filter(|(_, at)| *at <= self.steps()) {
            self.0.kill.set(None);
            self.kill(pid);
            return true;
        }
        let processes = self.0.processes.borrow().clone();
        let first = self.0.rng.borrow_mut().index(processes.len() + 2);
        let mut order = (0..processes.len() + 2).map(|n| (first + n) % (processes.len() + 2));
        order.any(|who| match who.checked_sub(2) {
            None if who == 0 => self.0.users.step(),
            None => self.0.shared.state().act(),
            Some(index) => {
                let did = processes[index].step();
                if processes[index].has_aborted() {
                    self.kill(processes[index].pid);
                }
                did
            }
        })
    }

    /// Goes on until nothing happens any more, or for so many steps.
    pub fn run(&self, steps: u64) {
        (0..steps).take_while(|_| self.step()).for_each(drop);
    }

    /// Ends a process, with all its threads, at once. The driver notices some time later.
    pub(super) fn kill(&self, pid: u32) {
        let mut processes = self.0.processes.borrow_mut();
        let Some(at) = processes.iter().position(|process| process.pid == pid) else { return };
        let process = processes.remove(at);
        drop(processes);
        self.0.shared.state().process_died(pid);
        process.die();
    }

    /// Time passes in which nothing happens.
    pub(super) fn pass(&self, until: Duration) {
        let mut state = self.0.shared.state();
        state.clock = state.clock.max(until);
    }

    /// Steps that the caller gives away, from 0 on.
    pub(super) fn some_steps(&self) -> u64 {
        self.0.rng.borrow_mut().below(16)
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.0.steps.get()
    }

    /// The seed, for messages.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.0.shared.state().counts
    }

    /// What a server did that no server may do: short counts, ends of requests that were over.
    pub fn broken_rules(&self) -> Vec<String> {
        self.0.shared.state().broken.clone()
    }

    /// How often `command` was sent, raw and encoded.
    pub fn sent(&self, command: Command) -> (u64, u64) {
        let state = self.0.shared.state();
        let count = |number: u32| state.sent.get(&number).copied().unwrap_or(0);
        (count(command.raw), count(command.encoded))
    }

    /// Breaks something between the server and the driver, or nothing any more.
    pub fn mutate(&self, mutation: Option<Mutation>) {
        self.0.shared.state().mutation = mutation;
    }

    /// A device, without asking the driver as a process would.
    pub fn device(&self, id: u32) -> Option<DeviceInfo> {
        self.0.shared.state().devices.get(&id).map(|dev| dev.info.into())
    }

    /// True if somebody has looked for partitions since the disk is there.
    pub fn has_read_partitions(&self, id: u32) -> bool {
        self.0.shared.state().devices.get(&id).is_some_and(|dev| dev.partitions_read)
    }

    /// The parameters of a device.
    pub fn params(&self, id: u32) -> Option<Params> {
        self.0.shared.state().devices.get(&id).map(|dev| dev.params)
    }

    /// Tags that are fetched and wait for a request, and requests that are not over, of a device.
    pub fn tags(&self, id: u32) -> (usize, usize) {
        let state = self.0.shared.state();
        let Some(dev) = state.devices.get(&id) else { return (0, 0) };
        let tags = dev.queues.iter().flat_map(|queue| &queue.tags);
        (tags.filter(|tag| matches!(tag.stage, Stage::Idle(_))).count(), dev.busy())
    }
}
