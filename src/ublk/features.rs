//! Which features to ask for, and what to make of the answer.
//!
//! The driver clears flags that it does not know without a word, and sets some that it always has. So: ask for
//! what GET_FEATURES offers (everything, where that command is missing), and take what ADD_DEV gives back as the
//! truth, unless it changes how data moves in a way this server does not speak.

use std::fmt;

use super::uapi::flag;
use crate::{Error, Kind, Result};

/// A set of `UBLK_F_*` bits.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(pub u64);

/// Who copies the data of requests between the kernel's memory and the server's, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CopyMode {
    /// The driver: a write's before the server hears of it, a read's when it is committed. Into and out of a buffer that
    /// each tag has.
    #[default]
    AtFetch,
    /// The driver: a write's when the server has heard of it and asks, in one more round trip (NEED_GET_DATA).
    GetData,
    /// The server, with a system call for each request (USER_COPY), by way of memory that the requests of a queue share.
    UserCopy,
}

impl CopyMode {
    /// What `features` make of it.
    pub const fn of(features: Features) -> CopyMode {
        if features.has(flag::USER_COPY) {
            CopyMode::UserCopy
        } else if features.has(flag::NEED_GET_DATA) {
            CopyMode::GetData
        } else {
            CopyMode::AtFetch
        }
    }

    /// The feature that it needs.
    pub(super) const fn feature(self) -> Features {
        Features(match self {
            CopyMode::AtFetch => 0,
            CopyMode::GetData => flag::NEED_GET_DATA,
            CopyMode::UserCopy => flag::USER_COPY,
        })
    }
}

/// What is worth having, where the driver has it.
const WANTED: Features = Features(
    flag::URING_CMD_COMP_IN_TASK
        | flag::USER_RECOVERY
        | flag::USER_RECOVERY_REISSUE
        | flag::CMD_IOCTL_ENCODE
        | flag::UPDATE_SIZE
        | flag::QUIESCE
        | flag::SAFE_STOP_DEV
        | flag::NO_AUTO_PART_SCAN,
);

/// Flags that change what a fetch delivers or a commit expects, in ways that this server does not speak.
const FOREIGN: Features = Features(
    flag::SUPPORT_ZERO_COPY
        | flag::UNPRIVILEGED_DEV
        | flag::ZONED
        | flag::USER_RECOVERY_FAIL_IO
        | flag::AUTO_BUF_REG
        | flag::BATCH_IO
        | flag::INTEGRITY
        | flag::SHMEM_ZC
        | flag::IO_DESC_SIZE,
);

const NAMES: [(&str, u64); 21] = [
    ("SUPPORT_ZERO_COPY", flag::SUPPORT_ZERO_COPY),
    ("URING_CMD_COMP_IN_TASK", flag::URING_CMD_COMP_IN_TASK),
    ("NEED_GET_DATA", flag::NEED_GET_DATA),
    ("USER_RECOVERY", flag::USER_RECOVERY),
    ("USER_RECOVERY_REISSUE", flag::USER_RECOVERY_REISSUE),
    ("UNPRIVILEGED_DEV", flag::UNPRIVILEGED_DEV),
    ("CMD_IOCTL_ENCODE", flag::CMD_IOCTL_ENCODE),
    ("USER_COPY", flag::USER_COPY),
    ("ZONED", flag::ZONED),
    ("USER_RECOVERY_FAIL_IO", flag::USER_RECOVERY_FAIL_IO),
    ("UPDATE_SIZE", flag::UPDATE_SIZE),
    ("AUTO_BUF_REG", flag::AUTO_BUF_REG),
    ("QUIESCE", flag::QUIESCE),
    ("PER_IO_DAEMON", flag::PER_IO_DAEMON),
    ("BUF_REG_OFF_DAEMON", flag::BUF_REG_OFF_DAEMON),
    ("BATCH_IO", flag::BATCH_IO),
    ("INTEGRITY", flag::INTEGRITY),
    ("SAFE_STOP_DEV", flag::SAFE_STOP_DEV),
    ("NO_AUTO_PART_SCAN", flag::NO_AUTO_PART_SCAN),
    ("SHMEM_ZC", flag::SHMEM_ZC),
    ("IO_DESC_SIZE", flag::IO_DESC_SIZE),
];

impl Features {
    /// True if all bits of `bits` are in the set.
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Names of the set's bits; unknown ones as `bit N`.
    pub fn names(self) -> Vec<String> {
        let known = NAMES.iter().fold(0, |all, (_, bit)| all | bit);
        let names = NAMES.iter().filter(|(_, bit)| self.has(*bit)).map(|(name, _)| (*name).to_owned());
        let unknown = (0..64).filter(|n| self.0 & !known & 1 << n != 0).map(|n| format!("bit {n}"));
        names.chain(unknown).collect()
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.names().join("|"))
    }
}

/// The flags to send with ADD_DEV. `offered` is the answer to GET_FEATURES, if the driver has that command (6.5).
///
/// Only {}, {USER_RECOVERY}, and {USER_RECOVERY, REISSUE} of the recovery flags are sent, all of them legal.
pub(super) fn ask(offered: Option<Features>, recovery: bool, copy: CopyMode) -> Features {
    let mut ask = (WANTED.0 | copy.feature().0) & offered.map_or(u64::MAX, |f| f.0);
    if !recovery || ask & flag::USER_RECOVERY == 0 {
        ask &= !(flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE | flag::QUIESCE);
    }
    Features(ask)
}

/// Checks the flags of a device, as ADD_DEV or GET_DEV_INFO gave them back.
pub(super) fn accept(given: Features) -> Result<Features> {
    let foreign = Features(given.0 & FOREIGN.0);
    if foreign != Features::default() {
        let message = format!("the ublk device has features that this server does not speak: {foreign:?}");
        return Err(Error::new(Kind::Unsupported, message));
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offered_is_asked_for() {
        let old = Features(0x3ff);
        assert_eq!(ask(Some(old), true, CopyMode::AtFetch).0, 0b101_1010);
        assert_eq!(ask(Some(old), true, CopyMode::GetData).0, 0b101_1110);
        assert_eq!(ask(Some(Features::default()), true, CopyMode::GetData).0, 0);
        assert!(ask(Some(old), true, CopyMode::UserCopy).has(flag::USER_COPY));
        assert_eq!(ask(None, true, CopyMode::AtFetch), WANTED);
    }

    #[test]
    fn recovery_flags_go_together() {
        let no_recovery = Features(!flag::USER_RECOVERY);
        for flags in [ask(Some(no_recovery), true, CopyMode::AtFetch), ask(None, false, CopyMode::AtFetch)] {
            assert_eq!(flags.0 & (flag::USER_RECOVERY_REISSUE | flag::QUIESCE), 0);
            assert!(flags.has(flag::CMD_IOCTL_ENCODE));
        }
        let plain = ask(Some(Features(!flag::USER_RECOVERY_REISSUE)), true, CopyMode::AtFetch);
        assert!(plain.has(flag::USER_RECOVERY) && !plain.has(flag::USER_RECOVERY_REISSUE));
    }

    #[test]
    fn what_the_driver_adds_by_itself_is_accepted_and_another_data_path_is_not() {
        let added = WANTED.0
            | flag::URING_CMD_COMP_IN_TASK
            | flag::PER_IO_DAEMON
            | flag::BUF_REG_OFF_DAEMON
            | 1 << 40;
        assert_eq!(accept(Features(added)).unwrap(), Features(added));
        let e = accept(Features(flag::ZONED | flag::QUIESCE)).unwrap_err();
        assert_eq!(e.kind(), Kind::Unsupported);
        assert!(e.to_string().ends_with(": ZONED"), "{e}");
    }

    #[test]
    fn unknown_bits_have_a_name() {
        assert_eq!(format!("{:?}", Features(flag::QUIESCE | 1 << 50)), "QUIESCE|bit 50");
    }
}
