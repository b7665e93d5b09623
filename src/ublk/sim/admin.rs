//! Admin commands. Each is asked again and again until it has an answer, so it may block.

use std::time::Duration;

use super::block::Bio;
use super::state::{Dev, Stage, State};
use crate::ublk::uapi::{
    Command, CtrlDevInfo, FEATURES_LEN, MAX_NR_QUEUES, MAX_QUEUE_DEPTH, NO_DEVICE, NO_QUEUE, ParamBasic,
    ParamDevt, ParamDiscard, Params, admin, flag, op, param, state,
};

/// Device numbers, as GET_PARAMS gives them.
const CHAR_MAJOR: u32 = 240;
const DISK_MAJOR: u32 = 259;
/// A page.
const PAGE: u32 = 4096;
const PAGE_SHIFT: u8 = 12;

/// A command under way.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) pid: u32,
    pub(super) privileged: bool,
    pub(super) number: u32,
    pub(super) device: u32,
    pub(super) queue: u16,
    pub(super) data: u64,
    /// The path of the character device in front of the rest.
    pub(super) path: Vec<u8>,
    /// What lies at the command's address: as much as the sender says, without the path.
    pub(super) bytes: Vec<u8>,
    pub(super) result: Option<i32>,
    /// When it gives up.
    pub(super) deadline: Option<Duration>,
    /// How far it is.
    pub(super) step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Step {
    #[default]
    Begin,
    /// The disk is there; the kernel reads its first sectors.
    Scan(u64),
    /// The disk is gone; somebody has the character device.
    Gone,
}

type Answer = Option<i32>;

const fn no(errno: i32) -> Answer {
    Some(-errno)
}

impl State {
    pub(super) fn call(&mut self, call: Call) -> u64 {
        self.counts.admin += 1;
        *self.sent.entry(call.number).or_default() += 1;
        let id = self.number();
        self.calls.insert(id, call);
        self.go_on(id);
        id
    }

    /// Goes on with a command; `false` if it waits for something that has not come.
    pub(super) fn go_on(&mut self, id: u64) -> bool {
        let Some(mut call) = self.calls.remove(&id) else { return false };
        let before = call.step;
        if call.result.is_none() {
            call.result = self.execute(&mut call);
        }
        let moved = call.result.is_some() || call.step != before;
        self.calls.insert(id, call);
        moved
    }

    fn execute(&mut self, call: &mut Call) -> Answer {
        let profile = self.profile;
        if !call.privileged {
            return no(libc::EPERM);
        }
        if profile.is(6, 4) && !profile.takes(call.number) {
            return no(libc::EOPNOTSUPP);
        }
        let command = profile.admin(call.number).filter(|_| profile.takes(call.number));
        match command {
            Some(admin::ADD_DEV) => return Some(self.add(call)),
            Some(admin::GET_FEATURES) => {
                return Some(answer(call, &profile.features().to_ne_bytes(), FEATURES_LEN));
            }
            _ => {}
        }
        let known = self.devices.contains_key(&call.device);
        match command {
            // The number of a deleted device is free when its last reference is gone.
            Some(admin::DEL_DEV) if !known && call.step == Step::Gone => Some(0),
            // From 6.3 the device is looked for first.
            None if known || !profile.is(6, 3) => no(libc::EOPNOTSUPP),
            _ if !known => no(libc::ENODEV),
            Some(command) if !self.may_have(command, call) => no(libc::EINVAL),
            Some(command) => self.of_device(command, call),
            None => no(libc::EOPNOTSUPP),
        }
    }

    fn of_device(&mut self, command: Command, call: &mut Call) -> Answer {
        match command {
            admin::GET_QUEUE_AFFINITY => Some(self.affinity(call)),
            admin::GET_DEV_INFO | admin::GET_DEV_INFO2 => {
                Some(answer(call, &self.devices[&call.device].info.to_bytes(), CtrlDevInfo::SIZE))
            }
            admin::SET_PARAMS => Some(self.set_params(call)),
            admin::GET_PARAMS => Some(self.get_params(call)),
            admin::START_DEV => self.start(call),
            admin::STOP_DEV => self.stop(call),
            admin::TRY_STOP_DEV if self.devices[&call.device].openers > 0 => no(libc::EBUSY),
            admin::TRY_STOP_DEV => self.stop(call),
            admin::DEL_DEV | admin::DEL_DEV_ASYNC => self.delete(call, command == admin::DEL_DEV_ASYNC),
            admin::START_USER_RECOVERY => Some(self.start_recovery(call)),
            admin::END_USER_RECOVERY => self.end_recovery(call),
            admin::UPDATE_SIZE => Some(self.update_size(call)),
            admin::QUIESCE_DEV => self.quiesce(call),
            _ => no(libc::EOPNOTSUPP),
        }
    }

    /// An ordinary user's device must be named by its path; GET_DEV_INFO2 names any.
    fn may_have(&self, command: Command, call: &Call) -> bool {
        let dev = &self.devices[&call.device];
        let needs_path = dev.has(flag::UNPRIVILEGED_DEV) || command == admin::GET_DEV_INFO2;
        !needs_path || call.path == format!("/dev/ublkc{}", call.device).into_bytes()
    }

    fn dev(&mut self, call: &Call) -> &mut Dev {
        self.devices.get_mut(&call.device).expect("looked up by `execute`")
    }

    fn add(&mut self, call: &mut Call) -> i32 {
        let Some(mut info) = read::<{ CtrlDevInfo::SIZE }>(call).map(|bytes| CtrlDevInfo::from_bytes(&bytes))
        else {
            return -libc::EINVAL;
        };
        let recovery = flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE | flag::USER_RECOVERY_FAIL_IO;
        let legal = [
            0,
            flag::USER_RECOVERY,
            flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE,
            flag::USER_RECOVERY | flag::USER_RECOVERY_FAIL_IO,
        ];
        let bad = call.queue != NO_QUEUE
            || info.dev_id != call.device
            || info.nr_hw_queues == 0
            || info.queue_depth == 0
            || self.profile.is(6, 13) && !legal.contains(&(info.flags & recovery))
            || self.profile.is(6, 16) && info.flags & (flag::QUIESCE | flag::USER_RECOVERY) == flag::QUIESCE;
        if bad {
            return -libc::EINVAL;
        }
        let id = match info.dev_id {
            NO_DEVICE => (0..).find(|id| !self.devices.contains_key(id)).unwrap_or(0),
            id if self.devices.contains_key(&id) => return -libc::EEXIST,
            id => id,
        };
        info = CtrlDevInfo {
            dev_id: id,
            state: state::DEAD,
            ublksrv_pid: -1,
            flags: self.profile.negotiate(info.flags),
            nr_hw_queues: info.nr_hw_queues.min(MAX_NR_QUEUES).min(self.profile.cpus),
            queue_depth: info.queue_depth.min(MAX_QUEUE_DEPTH).min(self.profile.tags),
            max_io_buf_bytes: info.max_io_buf_bytes / PAGE * PAGE,
            owner_uid: 0,
            owner_gid: 0,
            ..info
        };
        self.devices.insert(id, Dev::new(info));
        answer(call, &info.to_bytes(), CtrlDevInfo::SIZE)
    }

    fn affinity(&mut self, call: &mut Call) -> i32 {
        let (cpus, queues) = (self.profile.cpus, self.dev(call).info.nr_hw_queues);
        let Ok(queue) = u16::try_from(call.data) else { return -libc::EINVAL };
        let room = call.bytes.len();
        if queue >= queues || room * 8 < usize::from(cpus) || !room.is_multiple_of(8) {
            return -libc::EINVAL;
        }
        call.bytes.fill(0);
        for cpu in (0..cpus).filter(|cpu| cpu % queues == queue) {
            call.bytes[usize::from(cpu / 8)] |= 1 << (cpu % 8);
        }
        0
    }

    fn set_params(&mut self, call: &mut Call) -> i32 {
        let known = self.profile.param_types();
        let Some((len, types)) = params_head(call) else { return -libc::EINVAL };
        if types == 0 {
            return -libc::EINVAL;
        }
        let dev = self.dev(call);
        if dev.disk || dev.is_live() {
            return -libc::EACCES;
        }
        let mut bytes = Params::default().to_bytes();
        let len = len.min(Params::SIZE);
        bytes[..len].copy_from_slice(&call.bytes[..len]);
        let mut params = Params::from_bytes(&bytes);
        params.types &= known;
        params.len = u32::try_from(len).unwrap_or(0);
        let good = are_valid(&params, dev.info.max_io_buf_bytes);
        if !good {
            params.types = 0;
        }
        dev.params = params;
        if good { 0 } else { -libc::EINVAL }
    }

    fn get_params(&mut self, call: &mut Call) -> i32 {
        let devt = self.profile.param_types() & param::DEVT != 0;
        let Some((len, _)) = params_head(call) else { return -libc::EINVAL };
        let id = call.device;
        let dev = self.dev(call);
        let mut params = dev.params;
        if devt {
            let (disk_major, disk_minor) = if dev.disk { (DISK_MAJOR, id) } else { (0, 0) };
            params.devt = ParamDevt { char_major: CHAR_MAJOR, char_minor: id, disk_major, disk_minor };
            params.types |= param::DEVT;
        }
        let len = len.min(Params::SIZE);
        call.bytes[..len].copy_from_slice(&params.to_bytes()[..len]);
        0
    }

    fn start(&mut self, call: &mut Call) -> Answer {
        let pid = i32::try_from(call.data & 0xffff_ffff).unwrap_or(-1);
        if let Step::Scan(read) = call.step {
            let over = self.requests.get(&read).is_none_or(|request| request.result.is_some());
            if over {
                self.requests.remove(&read);
            }
            return over.then_some(0);
        }
        let dev = self.dev(call);
        if pid <= 0 {
            return no(libc::EINVAL);
        }
        if !dev.all_fetched() {
            return None;
        }
        if dev.disk || dev.is_live() {
            return no(libc::EEXIST);
        }
        if dev.params.types & param::BASIC == 0 {
            return no(libc::EINVAL);
        }
        (dev.disk, dev.stopping, dev.canceling) = (true, false, false);
        (dev.info.state, dev.info.ublksrv_pid) = (state::LIVE, pid);
        dev.partitions_read = !dev.has(flag::NO_AUTO_PART_SCAN);
        if dev.has(flag::NO_AUTO_PART_SCAN) {
            return Some(0);
        }
        let sectors = 1 << (dev.params.basic.logical_bs_shift.max(9) - 9);
        let scan = Bio { op_flags: op::READ, sectors, ..Bio::default() };
        call.step = Step::Scan(self.submit(call.device, 0, scan));
        None
    }

    fn stop(&mut self, call: &mut Call) -> Answer {
        let id = call.device;
        let dev = self.dev(call);
        if dev.info.state == state::DEAD && !dev.disk {
            return Some(0);
        }
        dev.stopping = true;
        if dev.is_recoverable() {
            // Nobody is there to drain: what waits fails.
            self.server_died(id);
        } else if dev.canceling {
            // Its server lives and has no tags.
            let waiting: Vec<u64> = dev.queues.iter_mut().flat_map(|queue| queue.waiting.drain(..)).collect();
            waiting.into_iter().for_each(|number| self.end(number, Err(libc::EIO)));
        }
        if self.dev(call).busy() > 0 {
            return None;
        }
        let dev = self.dev(call);
        (dev.disk, dev.canceling) = (false, false);
        (dev.info.state, dev.info.ublksrv_pid) = (state::DEAD, -1);
        self.abort_idle(id);
        Some(0)
    }

    fn delete(&mut self, call: &mut Call, at_once: bool) -> Answer {
        if call.step == Step::Begin {
            self.stop(call)?;
            self.dev(call).deleted = true;
            call.step = Step::Gone;
        }
        self.forget_deleted();
        if at_once || !self.devices.contains_key(&call.device) { Some(0) } else { None }
    }

    /// Frees the numbers of deleted devices that nobody refers to.
    pub(super) fn forget_deleted(&mut self) {
        self.devices.retain(|_, dev| !dev.deleted || dev.opened.is_some() || dev.openers > 0);
    }

    fn start_recovery(&mut self, call: &mut Call) -> i32 {
        let resets_itself = self.profile.is(6, 15);
        let dev = self.dev(call);
        if !dev.has(flag::USER_RECOVERY) {
            return -libc::EINVAL;
        }
        if !resets_itself && !dev.queues.iter().any(super::state::Queue::is_ready) {
            return -libc::EINVAL;
        }
        if dev.opened.is_some() || !dev.is_recoverable() {
            return -libc::EBUSY;
        }
        dev.queues.iter_mut().for_each(super::state::Queue::reset);
        dev.mapped_by = None;
        0
    }

    fn end_recovery(&mut self, call: &mut Call) -> Answer {
        let pid = i32::try_from(call.data & 0xffff_ffff).unwrap_or(-1);
        let dev = self.dev(call);
        if !dev.has(flag::USER_RECOVERY) || pid <= 0 {
            return no(libc::EINVAL);
        }
        if !dev.all_fetched() {
            return None;
        }
        if !dev.is_recoverable() {
            return no(libc::EBUSY);
        }
        (dev.info.state, dev.info.ublksrv_pid, dev.canceling) = (state::LIVE, pid, false);
        Some(0)
    }

    fn update_size(&mut self, call: &mut Call) -> i32 {
        let sectors = call.data;
        let dev = self.dev(call);
        if !dev.has(flag::UPDATE_SIZE) {
            return -libc::EOPNOTSUPP;
        }
        if !dev.disk {
            return -libc::ENODEV;
        }
        dev.params.basic.dev_sectors = sectors;
        0
    }

    fn quiesce(&mut self, call: &mut Call) -> Answer {
        let (now, id) = (self.clock, call.device);
        let dev = self.dev(call);
        if !dev.has(flag::QUIESCE) {
            return no(libc::EOPNOTSUPP);
        }
        if !dev.disk {
            return no(libc::ENODEV);
        }
        if !dev.is_live() {
            return no(libc::EBUSY);
        }
        dev.canceling = true;
        let idle =
            |queue: &super::state::Queue| queue.tags.iter().any(|tag| matches!(tag.stage, Stage::Idle(_)));
        if dev.queues.iter().all(idle) {
            self.abort_idle(id);
            return Some(0);
        }
        let deadline = *call.deadline.get_or_insert(now + Duration::from_millis(call.data));
        if now < deadline {
            return None;
        }
        self.dev(call).canceling = false;
        no(libc::EBUSY)
    }
}

/// Fills the sender's buffer.
fn answer(call: &mut Call, bytes: &[u8], needed: usize) -> i32 {
    if call.bytes.len() < needed {
        return -libc::EINVAL;
    }
    call.bytes[..needed].copy_from_slice(&bytes[..needed]);
    0
}

fn read<const N: usize>(call: &Call) -> Option<[u8; N]> {
    call.bytes.get(..N)?.try_into().ok()
}

/// `len` and `types` of parameters, if the buffer holds what they say.
fn params_head(call: &Call) -> Option<(usize, u32)> {
    let head: [u8; 8] = read(call)?;
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (len, types) = (word(0) as usize, word(4));
    (call.bytes.len() > head.len() && len > 0 && len <= call.bytes.len()).then_some((len, types))
}

/// `ublk_validate_params`.
fn are_valid(params: &Params, max_io: u32) -> bool {
    let Params { types, basic, discard, .. } = params;
    let ParamBasic { logical_bs_shift: logical, physical_bs_shift: physical, max_sectors, .. } = *basic;
    let ParamDiscard { discard_granularity, max_discard_sectors, max_discard_segments, .. } = *discard;
    let basic_is_good = types & param::BASIC != 0
        && (9..=PAGE_SHIFT).contains(&logical)
        && logical <= physical
        && max_sectors <= max_io >> 9;
    let discard_is_good = types & param::DISCARD == 0
        || discard_granularity != 0 && (max_discard_sectors == 0 || max_discard_segments == 1);
    basic_is_good && discard_is_good && types & param::DEVT == 0
}
