//! Random requests, and a server that dies again and again: killed anywhere between its first admin command and its
//! last, or leaving on purpose. No acknowledged write is lost, no request is lost or ended twice, no tag is lost, and
//! no user ever sees an error.

use std::cell::RefCell;
use std::rc::Rc;

use cowdisk::device::Disk;
use cowdisk::storage::sim::{JoinHandle, Rng};
use cowdisk::ublk::sim::{Counts, Machine, Mutation, Profile, Server, SimBlock};
use cowdisk::ublk::uapi::{flag, io_flag};
use cowdisk::ublk::{
    CopyMode, Device, RecoverOptions, StartOptions, State, list_devices_on, remove_waiting_on,
};

use super::model::{Fault, Ram, SECTOR};
use super::{profiles, setting};

const TAG: u64 = 0x7461_6721;
const ID: u32 = 0;
const MAX_IO: u32 = 8192;
/// What each user has of the disk.
const SHARE: usize = 32 << 10;
const USERS: usize = 6;
/// All of them; what a driver does not have becomes the first.
pub const MODES: [CopyMode; 3] = [CopyMode::AtFetch, CopyMode::GetData, CopyMode::UserCopy];
/// The disk.
pub const DISK_BYTES: u64 = (USERS * SHARE) as u64;

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub profile: Profile,
    pub seed: u64,
    pub copy: CopyMode,
    /// The disk moves most data without seeing it, and its users want whole blocks mostly.
    pub unseen: bool,
    pub fault: Option<Fault>,
    /// What goes wrong between the server and the driver, on purpose.
    pub mutation: Option<Mutation>,
    /// Servers that die before the last one.
    pub kills: u64,
    /// Requests of each user.
    pub requests: u64,
}

/// What happened in runs.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum {
    pub runs: u64,
    pub kills: u64,
    pub in_start: u64,
    pub left: u64,
    pub taken_up: u64,
    pub steps: u64,
    pub counts: Counts,
}

impl Sum {
    pub fn add(&mut self, other: &Sum) {
        self.runs += other.runs;
        self.kills += other.kills;
        self.in_start += other.in_start;
        self.left += other.left;
        self.taken_up += other.taken_up;
        self.steps += other.steps;
        let (sum, more) = (&mut self.counts, &other.counts);
        sum.requests += more.requests;
        sum.delivered += more.delivered;
        sum.reissued += more.reissued;
        sum.ended += more.ended;
        sum.admin += more.admin;
        sum.io += more.io;
        sum.get_data += more.get_data;
        sum.user_copies += more.user_copies;
        sum.unseen += more.unseen;
    }
}

/// As a daemon does it: takes up what waits, removes what never started, starts anew.
fn serve<D: Disk>(server: &Server, disk: &D, plan: &Plan, sum: &mut Sum) -> cowdisk::Result<Device<Server>> {
    let found = list_devices_on(server)?.into_iter().find(|device| device.tag == TAG);
    match found {
        Some(device) if device.state != State::Dead => {
            let device = Device::recover_on(
                server,
                disk,
                &RecoverOptions { device_id: device.id, tag: TAG, ..RecoverOptions::default() },
            )?;
            sum.taken_up += 1;
            return Ok(device);
        }
        Some(device) => remove_waiting_on(server, device.id, TAG, true)?,
        None => {}
    }
    let options = StartOptions {
        device_id: Some(ID),
        queues: 1 + (plan.seed % 2) as u16,
        depth: [1, 2, 4, 16][(plan.seed / 2 % 4) as usize],
        max_io: MAX_IO,
        tag: TAG,
        copy: Some(plan.copy),
        ..StartOptions::default()
    };
    Device::start_on(server, disk, &options)
}

/// One request after the other on a part of the disk that is all its own, so that it knows what it must read.
async fn user(
    block: SimBlock,
    index: usize,
    mut rng: Rng,
    requests: u64,
    blocks: bool,
) -> Result<(), String> {
    let base = index * SHARE;
    let mut model = vec![0_u8; SHARE];
    for number in 0..requests {
        let sectors = SHARE / SECTOR;
        let mut first = rng.index(sectors);
        let mut count = 1 + rng.index((sectors - first).min(40));
        if blocks && number % 4 > 0 {
            (first, count) = (first / 8 * 8, count.next_multiple_of(8).min(sectors - first / 8 * 8));
        }
        let range = first * SECTOR..(first + count) * SECTOR;
        let (pos, len) = ((base + range.start) as u64, range.len() as u64);
        let fua = if rng.chance(1, 4) { io_flag::FUA } else { 0 };
        let hint = 1 << (8 + rng.below(4));
        let (what, ended) = match rng.below(10) {
            0..4 => {
                let stamp = rng.draw().to_ne_bytes();
                model[range].chunks_mut(8).for_each(|bytes| bytes.copy_from_slice(&stamp));
                let data = &model[first * SECTOR..(first + count) * SECTOR];
                ("write", block.write(pos, data, fua | hint).await)
            }
            4..7 => {
                let read = block.read(pos, len).await;
                if read.as_ref().is_ok_and(|bytes| *bytes != model[range]) {
                    return Err(format!(
                        "user {index}, request {number}: read something else at {pos}+{len}"
                    ));
                }
                ("read", read.map(drop))
            }
            7 => ("flush", block.flush().await),
            8 => {
                model[range].fill(0);
                ("discard", block.discard(pos, len).await)
            }
            _ => {
                model[range].fill(0);
                (
                    "zeroes",
                    block.write_zeroes(pos, len, fua | if hint > 600 { io_flag::NOUNMAP } else { 0 }).await,
                )
            }
        };
        if let Err(errno) = ended {
            return Err(format!("user {index}, request {number}: {what} at {pos}+{len} failed with {errno}"));
        }
    }
    match block.read(base as u64, SHARE as u64).await {
        Ok(bytes) if bytes == model => Ok(()),
        Ok(_) => Err(format!("user {index}: its part differs at the end")),
        Err(errno) => Err(format!("user {index}: its part cannot be read at the end: {errno}")),
    }
}

pub type Users = RefCell<Vec<JoinHandle<Result<(), String>>>>;

fn spawn_users(machine: &Machine, users: &Users, plan: &Plan) {
    let mut rng = Rng::new(plan.seed ^ 0x5555);
    for index in 0..USERS {
        let block = machine.open(ID).expect("the device was just started");
        users.borrow_mut().push(machine.user(user(block, index, rng.split(), plan.requests, plan.unseen)));
    }
}

/// How a server's life ends, if it is not killed.
#[derive(PartialEq, Eq)]
pub enum End {
    /// The users are done; the device is stopped and gone.
    Stopped,
    /// It left the device to the next server.
    Left,
}

/// The life of one server.
pub fn life<D: Disk>(
    server: &Server,
    machine: &Machine,
    disk: &D,
    plan: &Plan,
    users: &Users,
    leave: Option<u64>,
    sum: &mut Sum,
) -> Result<End, String> {
    let mut device = serve(server, disk, plan, sum).map_err(|e| format!("start: {e}"))?;
    if users.borrow().is_empty() {
        spawn_users(machine, users, plan);
    }
    let leave = leave.map(|steps| machine.steps() + steps);
    while !users.borrow().iter().all(JoinHandle::is_finished) {
        if leave.is_some_and(|at| machine.steps() >= at) {
            device.leave_waiting().map_err(|e| format!("leave: {e}"))?;
            return Ok(End::Left);
        }
        let before = machine.steps();
        server.work(1);
        if machine.steps() - before == 1 && !moves(machine, users) {
            return Err(format!("nothing happens any more: {:?}", machine.tags(ID)));
        }
    }
    server.work(100_000);
    let (queues, depth) = device.shape();
    let tags = machine.tags(ID);
    if tags != (usize::from(queues) * usize::from(depth), 0) {
        return Err(format!("a tag is lost: {tags:?} of {queues}x{depth}"));
    }
    device.stop(false).map_err(|e| format!("stop: {e}"))?;
    Ok(End::Stopped)
}

/// False if users wait and the machine has nothing to do.
fn moves(machine: &Machine, users: &Users) -> bool {
    machine.step() || users.borrow().iter().all(JoinHandle::is_finished)
}

/// A whole run. The error is what a test has to find.
pub fn run(plan: &Plan) -> Result<Sum, String> {
    let machine = Machine::new(plan.profile, plan.seed);
    machine.mutate(plan.mutation);
    run_on(&machine, plan).map_err(|e| format!("{e} (kernel {:?}, seed {})", plan.profile.version, plan.seed))
}

fn run_on(machine: &Machine, plan: &Plan) -> Result<Sum, String> {
    let disk = Ram::new(DISK_BYTES, plan.seed).with_fault(plan.fault).with_unseen(plan.unseen);
    let users: Rc<Users> = Rc::default();
    let mut rng = Rng::new(plan.seed ^ 0xdead);
    let mut sum = Sum { runs: 1, ..Sum::default() };
    for number in 0..=plan.kills {
        let server = machine.boot();
        let last = number == plan.kills;
        let leaves = !last && rng.chance(1, 5);
        let most = 1 << (6 + rng.below(8));
        let steps = rng.below(most);
        if last || leaves {
            machine.spare()
        } else {
            machine.kill_in(steps, &server)
        }
        let started = !users.borrow().is_empty();
        let end = server
            .run(|server| life(server, machine, &disk, plan, &users, leaves.then_some(steps), &mut sum));
        server.exit();
        match end {
            None => {
                sum.kills += 1;
                sum.in_start += u64::from(!started && users.borrow().is_empty());
            }
            Some(end) => match end? {
                End::Left => sum.left += 1,
                End::Stopped => break,
            },
        }
    }
    judge(machine, &users)?;
    sum.steps = machine.steps();
    sum.counts = machine.counts();
    Ok(sum)
}

/// What must be true when all is over.
pub fn judge(machine: &Machine, users: &Users) -> Result<(), String> {
    for user in users.borrow().iter() {
        user.try_take().ok_or("a user is not done")??;
    }
    machine.run(100_000);
    if let Some(broken) = machine.broken_rules().first() {
        return Err(format!("the server broke a rule: {broken}"));
    }
    let counts = machine.counts();
    if counts.refused > 0 {
        return Err(format!("the driver refused {} commands of queues", counts.refused));
    }
    if counts.requests != counts.ended {
        return Err(format!("{} requests, {} ends", counts.requests, counts.ended));
    }
    if machine.device(ID).is_some() {
        return Err("the device is still there".to_owned());
    }
    Ok(())
}

/// Runs with every kernel of `profiles`, and all copy modes.
fn runs(profiles: impl Iterator<Item = Profile>, seeds: u64, kills: u64) -> Sum {
    let mut sum = Sum::default();
    for profile in profiles {
        for seed in 0..seeds {
            let copy = MODES[(seed % 3) as usize];
            let (unseen, fault, mutation) = (seed % 5 == 2, None, None);
            let plan = Plan { profile, seed, copy, unseen, fault, mutation, kills, requests: 40 };
            sum.add(&run(&plan).unwrap());
        }
    }
    sum
}

fn recovers(profile: &Profile) -> bool {
    profile.features() & flag::USER_RECOVERY_REISSUE != 0
}

#[test]
fn servers_die_and_no_user_notices() {
    let seeds = setting("COWDISK_UBLK_SEEDS", 60);
    let sum = runs(profiles().filter(recovers), seeds, 6);
    let Counts { requests, delivered, reissued, io, admin, get_data, user_copies, .. } = sum.counts;
    println!(
        "ublk: {} runs on 6 drivers, {} kills ({} before the first request), {} times left, {} taken up; \
         {requests} requests, each ended once, {delivered} deliveries, {reissued} of them again, {get_data} asked for \
         data, {user_copies} copies by servers; {admin} admin and {io} queue commands, {} steps",
        sum.runs, sum.kills, sum.in_start, sum.left, sum.taken_up, sum.steps
    );
    assert!(sum.kills > 3 * seeds && sum.left > 0 && sum.in_start > 0 && sum.taken_up > 0);
    assert!(reissued > 0 && get_data > 0 && user_copies > 0);
}

#[test]
fn load_without_deaths_on_every_driver() {
    let sum = runs(profiles(), setting("COWDISK_UBLK_SEEDS", 60) / 4, 0);
    println!("ublk: {} runs without deaths on 7 drivers, {} requests", sum.runs, sum.counts.requests);
    assert_eq!((sum.kills, sum.counts.reissued), (0, 0));
}

#[test]
fn a_seed_gives_the_same_run_again() {
    let profile = Profile::of(6, 16);
    let plan = Plan {
        profile,
        seed: 5,
        copy: CopyMode::GetData,
        unseen: false,
        fault: None,
        mutation: None,
        kills: 4,
        requests: 30,
    };
    let (first, second) = (run(&plan).unwrap(), run(&plan).unwrap());
    assert_eq!((first.steps, first.kills, first.counts), (second.steps, second.kills, second.counts));
}

/// What a server does when it is killed at each of its steps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doing {
    Start,
    Recover,
    Leave,
    Stop,
}

/// A server is killed at step `step` of what it does, with requests in flight; the next one must come up, and everybody
/// must find what they wrote. `false`: it was done before.
fn killed_at(doing: Doing, profile: Profile, seed: u64, step: u64) -> Result<bool, String> {
    let copy = MODES[(seed % 3) as usize];
    let plan =
        Plan { profile, seed, copy, unseen: false, fault: None, mutation: None, kills: 0, requests: 12 };
    let machine = Machine::new(profile, seed);
    let (disk, mut sum) = (Ram::new(DISK_BYTES, seed), Sum::default());
    let users: Rc<Users> = Rc::default();
    if doing == Doing::Recover {
        let first = machine.boot();
        first.run(|server| {
            let _device = serve(server, &disk, &plan, &mut sum).unwrap();
            spawn_users(&machine, &users, &plan);
            server.work(300);
        });
        first.exit();
    }
    let victim = machine.boot();
    let kill = || machine.kill_in(step, &victim);
    let survived = victim.run(|server| {
        if matches!(doing, Doing::Start | Doing::Recover) {
            kill();
        }
        let mut device = serve(server, &disk, &plan, &mut sum).unwrap();
        if users.borrow().is_empty() {
            spawn_users(&machine, &users, &plan);
        }
        match doing {
            Doing::Start | Doing::Recover => machine.spare(),
            Doing::Leave => {
                server.work(300);
                kill();
                device.leave_waiting().unwrap();
            }
            Doing::Stop => {
                while !users.borrow().iter().all(JoinHandle::is_finished) {
                    server.work(1);
                }
                kill();
                device.stop(false).unwrap();
            }
        }
    });
    victim.exit();
    machine.spare();
    let last = machine.boot();
    let end = last.run(|server| life(server, &machine, &disk, &plan, &users, None, &mut sum));
    end.expect("nobody kills it")?;
    last.exit();
    judge(&machine, &users)?;
    Ok(survived.is_none())
}

#[test]
fn killed_at_every_step_of_what_it_does() {
    for doing in [Doing::Start, Doing::Recover, Doing::Leave, Doing::Stop] {
        let mut steps = 0;
        for (profile, seed) in profiles().filter(recovers).flat_map(|p| (0..8).map(move |seed| (p, seed))) {
            for step in 0.. {
                match killed_at(doing, profile, seed, step) {
                    Ok(true) => steps += 1,
                    Ok(false) => break,
                    Err(e) => {
                        let kernel = profile.version;
                        panic!("{doing:?} killed at step {step} of kernel {kernel:?}, seed {seed}: {e}")
                    }
                }
            }
        }
        println!("ublk: {doing:?}: killed at each of {steps} steps, on 6 drivers");
        assert!(steps > 200, "{doing:?}: {steps}");
    }
}
