//! The ublk server on the simulated driver: users with any descriptor, servers that start, recover, leave, stop and die
//! in any order, and other processes with any admin command. Nothing panics, nothing hangs, every request is answered
//! exactly once, and the server never commits what no server may.

use arbitrary::{Arbitrary, Unstructured};
use cowdisk::storage::sim::JoinHandle;
use cowdisk::ublk::driver::{Admin, AdminCall, Driver};
use cowdisk::ublk::sim::{Bio, Machine, Profile, Server};
use cowdisk::ublk::uapi::{NO_QUEUE, admin};
use cowdisk::ublk::{
    CopyMode, Device, FeatureChoice, OnDeath, RecoverOptions, StartOptions, State, list_devices_on,
    remove_waiting_on,
};
use std::time::Duration;

use crate::ram::Ram;

const SIZE: u64 = 256 << 10;
const TAG: u64 = 5;
const MAX_ACTS: usize = 60;

#[derive(Arbitrary, Clone, Debug)]
enum Act {
    /// A user's request: anything.
    Hostile {
        op_flags: u32,
        sector: u64,
        sectors: u32,
        data: u8,
    },
    /// A user's request on the disk.
    Request {
        op: u8,
        flags: u8,
        sector: u16,
        sectors: u8,
    },
    Steps(u16),
    /// The server starts, or takes up what waits.
    Serve {
        kill: Option<u16>,
    },
    Leave {
        kill: Option<u16>,
    },
    Stop {
        force: bool,
        kill: Option<u16>,
    },
    Kill,
    /// Another process sends an admin command; `known`: of those that there are.
    Admin {
        known: bool,
        number: u32,
        device: u8,
        queue: u16,
        data: u32,
        bytes: Vec<u8>,
    },
    /// Another process removes the device, if nobody serves it.
    Remove {
        force: bool,
    },
}

#[derive(Arbitrary, Clone, Debug)]
struct Input {
    seed: u16,
    kernel: u8,
    raw_numbers: bool,
    queues: u8,
    depth: u8,
    copy: u8,
    on_death: u8,
    acts: Vec<Act>,
}

/// What came of an input.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Came {
    kernel: u8,
    requests: u64,
    failed: u64,
    reissued: u64,
    kills: u64,
}

type User = JoinHandle<Result<Vec<u8>, i32>>;

struct World {
    machine: Machine,
    disk: Ram,
    options: StartOptions,
    server: Option<Server>,
    device: Option<Device<Server>>,
    users: Vec<User>,
    came: Came,
}

impl World {
    fn new(input: &Input) -> World {
        const KERNELS: [(u16, u16); 8] = [(6, 0), (6, 1), (6, 4), (6, 9), (6, 12), (6, 16), (7, 0), (7, 3)];
        let kernel = input.kernel % 8;
        let (major, minor) = KERNELS[usize::from(kernel)];
        let profile = Profile { raw_numbers: input.raw_numbers, ..Profile::of(major, minor) };
        let copies = [CopyMode::AtFetch, CopyMode::GetData, CopyMode::UserCopy][usize::from(input.copy % 3)];
        let on_death = [OnDeath::Wait, OnDeath::Fail, OnDeath::Remove][usize::from(input.on_death % 3)];
        World {
            machine: Machine::new(profile, u64::from(input.seed)),
            disk: Ram::new(SIZE, u64::from(input.seed)),
            options: StartOptions {
                device_id: Some(0),
                queues: u16::from(input.queues % 3 + 1),
                depth: u16::from(input.depth % 8 + 1),
                max_io: 8192,
                tag: TAG,
                on_death,
                copy: Some(copies),
                features: FeatureChoice::default(),
            },
            server: None,
            device: None,
            users: Vec::new(),
            came: Came { kernel, ..Came::default() },
        }
    }

    fn user(&mut self, bio: Bio) {
        if let Some(block) = self.machine.open(0) {
            self.users.push(self.machine.user(async move { block.submit(bio).await }));
        }
    }

    /// Runs `act` in the server's process, which may die on the way.
    fn with_server<T>(
        &mut self,
        kill: Option<u16>,
        act: impl FnOnce(&Server, &mut Option<Device<Server>>) -> T,
    ) {
        let Some(server) = self.server.clone() else { return };
        match kill {
            Some(steps) => self.machine.kill_in(u64::from(steps % 2048), &server),
            None => self.machine.spare(),
        }
        let device = &mut self.device;
        let _ = server.run(|server| act(server, device));
        self.machine.spare();
        if !server.is_running() {
            self.end_server();
        }
    }

    fn end_server(&mut self) {
        if let Some(server) = self.server.take() {
            server.exit();
            self.came.kills += 1;
        }
        self.device = None;
    }

    fn serve(&mut self, kill: Option<u16>) {
        if self.device.is_some() {
            return;
        }
        self.end_server();
        self.server = Some(self.machine.boot());
        let (disk, options) = (self.disk.clone(), self.options.clone());
        self.with_server(kill, |server, device| {
            let found = list_devices_on(server).unwrap_or_default().into_iter().find(|d| d.tag == TAG);
            *device = match found {
                Some(found) if found.state != State::Dead => {
                    let of = RecoverOptions { device_id: found.id, tag: TAG, ..RecoverOptions::default() };
                    Device::recover_on(server, &disk, &of).ok()
                }
                Some(found) => {
                    let _ = remove_waiting_on(server, found.id, TAG, true);
                    Device::start_on(server, &disk, &options).ok()
                }
                None => Device::start_on(server, &disk, &options).ok(),
            };
        });
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Hostile { op_flags, sector, sectors, data } => {
                self.user(Bio { op_flags, sector, sectors, data: vec![data; usize::from(data) * 64] });
            }
            Act::Request { op, flags, sector, sectors } => {
                let sectors = u32::from(sectors % 16) + 1;
                let op_flags = u32::from(op % 6) | u32::from(flags) << 8;
                let sector = u64::from(sector) % (SIZE / 512);
                self.user(Bio { op_flags, sector, sectors, data: vec![flags; sectors as usize * 512] });
            }
            Act::Steps(steps) => self.machine.run(u64::from(steps % 1024)),
            Act::Serve { kill } => self.serve(kill),
            Act::Leave { kill } => {
                self.with_server(kill, |_, device| device.as_ref().map(Device::leave_waiting));
                self.end_server();
            }
            Act::Stop { force, kill } => self.with_server(kill, |_, device| {
                *device = device.take().and_then(|mut device| device.stop(force).err().map(|_| device));
            }),
            Act::Kill => self.end_server(),
            Act::Admin { known, number, device, queue, data, ref bytes } => {
                let number = if known { 0xc020_7500 | (number % 0x1a) } else { number };
                // The reads among them have another direction.
                let reads = [1, 2, 9, 0x12, 0x13].contains(&(number & 0xff));
                let number = if known && reads { number & 0xbfff_ffff } else { number };
                self.admin(number, u32::from(device % 3), queue, u64::from(data), bytes);
            }
            Act::Remove { force } => {
                let other = self.machine.boot();
                let _ = other.run(|other| remove_waiting_on(other, 0, TAG, force));
                other.exit();
            }
        }
    }

    /// A process that does nothing else.
    fn admin(&mut self, number: u32, device: u32, queue: u16, data: u64, bytes: &[u8]) {
        let other = self.machine.boot();
        let bound = Duration::from_millis(200);
        let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        let path_len = queue % 32;
        let call = AdminCall { number, device, queue, data, send: bytes, len, path_len, bound };
        let _ = other.run(|other| other.open_admin().map(|mut admin| admin.run(&call)));
        other.exit();
    }

    /// Whatever there is is stopped: nobody may wait for ever.
    fn end(&mut self) {
        self.end_server();
        self.machine.run(100_000);
        for device in [0, 1, 2] {
            for command in [admin::STOP_DEV, admin::DEL_DEV] {
                for number in [command.raw, command.encoded] {
                    self.admin(number, device, NO_QUEUE, 0, &[]);
                }
            }
        }
        self.machine.run(100_000);
        let counts = self.machine.counts();
        for (number, user) in self.users.iter().enumerate() {
            assert!(user.is_finished(), "request {number} was never answered");
            self.came.failed += u64::from(user.try_take().is_some_and(|end| end.is_err()));
        }
        assert_eq!(counts.requests, counts.ended, "every request ends once");
        assert_eq!(self.machine.broken_rules(), Vec::<String>::new());
        (self.came.requests, self.came.reissued) = (counts.requests, counts.reissued);
    }
}

/// Runs an input; panics on a finding.
pub fn run(bytes: &[u8]) -> Came {
    let Ok(mut input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) else { return Came::default() };
    input.acts.truncate(MAX_ACTS);
    let mut world = World::new(&input);
    world.serve(None);
    for act in &input.acts {
        world.act(act);
    }
    world.end();
    world.came
}
