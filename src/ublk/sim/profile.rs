//! Which driver it is: what each version knows.

use crate::ublk::uapi::{Command, admin, flag, io, param};

/// A kernel's version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Version(pub u16, pub u16);

/// A machine and its driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Profile {
    /// The kernel.
    pub version: Version,
    /// Whether it takes raw numbers; from 6.4 they can be left out when it is built.
    pub raw_numbers: bool,
    /// CPUs, and so queues at most.
    pub cpus: u16,
    /// Tags of a queue that there is memory for.
    pub tags: u16,
}

const FEATURES: [(u64, Version); 21] = [
    (flag::SUPPORT_ZERO_COPY, Version(6, 0)),
    (flag::URING_CMD_COMP_IN_TASK, Version(6, 0)),
    (flag::NEED_GET_DATA, Version(6, 0)),
    (flag::USER_RECOVERY, Version(6, 1)),
    (flag::USER_RECOVERY_REISSUE, Version(6, 1)),
    (flag::UNPRIVILEGED_DEV, Version(6, 3)),
    (flag::CMD_IOCTL_ENCODE, Version(6, 4)),
    (flag::USER_COPY, Version(6, 5)),
    (flag::ZONED, Version(6, 6)),
    (flag::USER_RECOVERY_FAIL_IO, Version(6, 13)),
    (flag::UPDATE_SIZE, Version(6, 16)),
    (flag::AUTO_BUF_REG, Version(6, 16)),
    (flag::QUIESCE, Version(6, 16)),
    (flag::PER_IO_DAEMON, Version(6, 16)),
    (flag::BUF_REG_OFF_DAEMON, Version(6, 17)),
    (flag::BATCH_IO, Version(7, 0)),
    (flag::INTEGRITY, Version(7, 0)),
    (flag::SAFE_STOP_DEV, Version(7, 0)),
    (flag::NO_AUTO_PART_SCAN, Version(7, 0)),
    (flag::SHMEM_ZC, Version(7, 1)),
    (flag::IO_DESC_SIZE, Version(7, 3)),
];

/// What a device has, asked for or not.
const FORCED: u64 = flag::CMD_IOCTL_ENCODE
    | flag::URING_CMD_COMP_IN_TASK
    | flag::PER_IO_DAEMON
    | flag::BUF_REG_OFF_DAEMON
    | flag::SAFE_STOP_DEV;

const PARAMS: [(u32, Version); 7] = [
    (param::BASIC, Version(6, 0)),
    (param::DISCARD, Version(6, 0)),
    (param::DEVT, Version(6, 2)),
    (param::ZONED, Version(6, 6)),
    (param::DMA_ALIGN, Version(6, 14)),
    (param::SEGMENT, Version(6, 15)),
    (param::INTEGRITY, Version(7, 0)),
];

const ADMIN: [(Command, Version); 16] = [
    (admin::GET_QUEUE_AFFINITY, Version(6, 0)),
    (admin::GET_DEV_INFO, Version(6, 0)),
    (admin::ADD_DEV, Version(6, 0)),
    (admin::DEL_DEV, Version(6, 0)),
    (admin::START_DEV, Version(6, 0)),
    (admin::STOP_DEV, Version(6, 0)),
    (admin::SET_PARAMS, Version(6, 0)),
    (admin::GET_PARAMS, Version(6, 0)),
    (admin::START_USER_RECOVERY, Version(6, 1)),
    (admin::END_USER_RECOVERY, Version(6, 1)),
    (admin::GET_DEV_INFO2, Version(6, 3)),
    (admin::GET_FEATURES, Version(6, 5)),
    (admin::DEL_DEV_ASYNC, Version(6, 9)),
    (admin::UPDATE_SIZE, Version(6, 16)),
    (admin::QUIESCE_DEV, Version(6, 16)),
    (admin::TRY_STOP_DEV, Version(7, 0)),
];

const IO: [Command; 3] = [io::FETCH_REQ, io::COMMIT_AND_FETCH_REQ, io::NEED_GET_DATA];

impl Profile {
    /// The driver of kernel `major.minor` on a machine of two CPUs.
    pub const fn of(major: u16, minor: u16) -> Profile {
        Profile { version: Version(major, minor), raw_numbers: true, cpus: 2, tags: 4096 }
    }

    pub(super) fn is(&self, major: u16, minor: u16) -> bool {
        self.version >= Version(major, minor)
    }

    /// The answer to GET_FEATURES.
    pub fn features(&self) -> u64 {
        let known = FEATURES.iter().filter(|(_, since)| self.version >= *since);
        known.fold(0, |all, (bit, _)| all | bit)
    }

    /// The flags of a device for which `asked` were asked for.
    pub(super) fn negotiate(&self, asked: u64) -> u64 {
        let known = self.features();
        let forced = if self.is(6, 5) { FORCED } else { FORCED & !flag::URING_CMD_COMP_IN_TASK };
        let mut given = asked & known | forced & known;
        if !self.is(6, 15) {
            given &= !flag::SUPPORT_ZERO_COPY;
        }
        if given & flag::USER_COPY != 0 {
            given &= !flag::NEED_GET_DATA;
        }
        given
    }

    pub(super) fn param_types(&self) -> u32 {
        let known = PARAMS.iter().filter(|(_, since)| self.version >= *since);
        known.fold(0, |all, (bit, _)| all | bit)
    }

    /// True if numbers of this form are looked at at all.
    pub(super) fn takes(&self, number: u32) -> bool {
        if number < 256 { self.raw_numbers || !self.is(6, 4) } else { self.is(6, 4) }
    }

    /// The admin command `number`.
    pub(super) fn admin(&self, number: u32) -> Option<Command> {
        let known = ADMIN.iter().filter(|(_, since)| self.version >= *since);
        known.map(|(command, _)| *command).find(|command| [command.raw, command.encoded].contains(&number))
    }

    /// The queue's command `number`.
    pub(super) fn io(&self, number: u32) -> Option<Command> {
        let numbers = |command: &&Command| [command.raw, command.encoded].contains(&number);
        IO.iter().find(numbers).copied().filter(|_| self.takes(number))
    }
}
