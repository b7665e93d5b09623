//! Which features to ask for, and what to make of the answer.
//!
//! The driver clears flags that it does not know without a word, and sets some that it always has. So: ask for
//! what GET_FEATURES offers (everything, where that command is missing), and take what ADD_DEV gives back as the
//! truth, unless it changes how data moves in a way this server does not speak.

use std::fmt;
use std::str::FromStr;

use super::uapi::flag;
use crate::{Error, Kind, Result};

/// A set of `UBLK_F_*` bits.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(pub u64);

/// Commands that no feature stands for, as bits that the driver never has, so that [`FeatureChoice`] can leave them out.
pub(super) mod command {
    /// [`super::super::uapi::admin::GET_DEV_INFO2`].
    pub(in super::super) const GET_DEV_INFO2: u64 = 1 << 62;
    /// [`super::super::uapi::admin::DEL_DEV_ASYNC`].
    pub(in super::super) const DEL_DEV_ASYNC: u64 = 1 << 63;
    /// All of them.
    pub(super) const ALL: u64 = GET_DEV_INFO2 | DEL_DEV_ASYNC;
}

/// Who copies the data of requests between the kernel's memory and the server's, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyMode {
    /// The driver: a write's before the server hears of it, a read's when it is committed. Into and out of a buffer that
    /// each tag has.
    AtFetch,
    /// The driver: a write's when the server has heard of it and asks, in one more round trip (NEED_GET_DATA).
    GetData,
    /// The server, with a system call for each request (USER_COPY), by way of memory that the requests of a queue share.
    UserCopy,
}

impl CopyMode {
    /// What is used if nobody wants another one and the driver has it: memory is bounded by what runs at once, and in
    /// speed it could not be told from the others (one system call more, no pinning of the server's pages).
    pub(super) const BEST: CopyMode = CopyMode::UserCopy;

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

/// What becomes of the disk when its server dies or leaves, until there is another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnDeath {
    /// It stays; its requests wait, also those that the server had (6.1). Before, it goes.
    #[default]
    Wait,
    /// It stays; its requests fail (6.13).
    Fail,
    /// It goes, and its requests fail.
    Remove,
}

impl OnDeath {
    /// The features that it needs. Only legal sets of recovery flags (see [`legal`]).
    const fn features(self) -> u64 {
        match self {
            OnDeath::Wait => flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE | flag::QUIESCE,
            OnDeath::Fail => flag::USER_RECOVERY | flag::USER_RECOVERY_FAIL_IO | flag::QUIESCE,
            OnDeath::Remove => 0,
        }
    }
}

/// Features that a start insists on, and those that it does without: so that each can be tested, and what the server does
/// where the driver does not have it, on one and the same driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FeatureChoice {
    /// It fails if the driver does not have one of them.
    pub on: Features,
    /// It does as if the driver did not have them.
    pub off: Features,
}

impl FromStr for FeatureChoice {
    type Err = String;

    /// Reads `+NAME,-NAME`, with names of the header (`UBLK_F_NAME`).
    fn from_str(text: &str) -> std::result::Result<FeatureChoice, String> {
        let mut choice = FeatureChoice::default();
        for part in text.split(',') {
            let sign = part.chars().next().filter(|sign| ['+', '-'].contains(sign));
            let name = part.get(1..).unwrap_or_default();
            let bit = NAMES.iter().find(|(known, _)| *known == name).map(|(_, bit)| *bit);
            match (sign, bit) {
                (Some('-'), Some(bit)) => choice.off.0 |= bit,
                (Some(_), Some(bit)) if bit & SPOKEN == 0 => {
                    return Err(format!("{name} is nothing that this server can be told to use"));
                }
                (Some(_), Some(bit)) => choice.on.0 |= bit,
                (None, _) => return Err(format!("`{part}` has no + or - in front")),
                (_, None) => return Err(format!("there is no feature `{name}`")),
            }
        }
        if choice.on.0 & choice.off.0 != 0 {
            return Err("a feature cannot be both on and off".into());
        }
        Ok(choice)
    }
}

/// What is worth having, where the driver has it, beside what goes with [`CopyMode`] and [`OnDeath`].
///
/// Not used: PER_IO_DAEMON (always on: tags of a queue may have several threads, ours has one), BATCH_IO (one command for
/// the commits of many tags, where the ring already submits all commands of a turn with one system call), BUF_REG_OFF_DAEMON,
/// SUPPORT_ZERO_COPY and SHMEM_ZC (AUTO_BUF_REG does the same without a command for each request, or without clients that
/// share memory).
const WANTED: u64 = flag::URING_CMD_COMP_IN_TASK
    | flag::CMD_IOCTL_ENCODE
    | flag::UPDATE_SIZE
    | flag::SAFE_STOP_DEV
    | flag::NO_AUTO_PART_SCAN;

/// What this server makes use of.
const SPOKEN: u64 = WANTED
    | OnDeath::Wait.features()
    | OnDeath::Fail.features()
    | CopyMode::GetData.feature().0
    | CopyMode::UserCopy.feature().0
    | flag::AUTO_BUF_REG;

/// Flags that change what a fetch delivers or a commit expects, in ways that this server does not speak.
const FOREIGN: Features = Features(
    flag::SUPPORT_ZERO_COPY
        | flag::UNPRIVILEGED_DEV
        | flag::ZONED
        | flag::BATCH_IO
        | flag::INTEGRITY
        | flag::SHMEM_ZC
        | flag::IO_DESC_SIZE,
);

const NAMES: [(&str, u64); 23] = [
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
    ("GET_DEV_INFO2", command::GET_DEV_INFO2),
    ("DEL_DEV_ASYNC", command::DEL_DEV_ASYNC),
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

/// What a start wants of the driver.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Wish {
    /// `None`: the best that the driver has.
    pub(super) copy: Option<CopyMode>,
    pub(super) on_death: OnDeath,
    pub(super) choice: FeatureChoice,
    /// The disk need not see most of its data.
    pub(super) unseen: bool,
}

impl Wish {
    /// The flags to send with ADD_DEV. `offered` is the answer to GET_FEATURES, if the driver has that command (6.5).
    /// Fails if the driver does not offer what the wish insists on.
    pub(super) fn ask(&self, offered: Option<Features>) -> Result<Features> {
        let FeatureChoice { on, off } = self.choice;
        let offered = offered.unwrap_or(Features(!command::ALL));
        self.check(offered)?;
        // With both the driver takes the second.
        let get_data = on.has(flag::NEED_GET_DATA);
        let copy = if get_data { CopyMode::GetData } else { self.copy.unwrap_or(CopyMode::BEST) };
        // Whoever moves what it does not see copies what it must see.
        let unseen = if self.unseen && copy == CopyMode::UserCopy { flag::AUTO_BUF_REG } else { 0 };
        let wanted = WANTED | copy.feature().0 | self.on_death.features() | unseen | on.0;
        let mut ask = wanted & !off.0 & offered.0;
        if ask & flag::USER_COPY == 0 {
            ask &= !flag::AUTO_BUF_REG;
        }
        if ask & flag::USER_RECOVERY == 0 {
            ask &= !(OnDeath::Wait.features() | OnDeath::Fail.features());
        }
        if legal(ask) {
            return Ok(Features(ask));
        }
        let message = format!("recovery features that do not go together: {:?}", Features(ask & RECOVERY));
        Err(Error::new(Kind::Usage, message))
    }

    /// Checks that `have`, of the driver or the device, has what the wish insists on.
    pub(super) fn check(&self, have: Features) -> Result<()> {
        if self.on_death == OnDeath::Fail && !have.has(flag::USER_RECOVERY_FAIL_IO) {
            let message = "the ublk driver cannot keep a disk whose requests fail (Linux 6.13)";
            return Err(Error::new(Kind::Unsupported, message).hint("--on-death remove"));
        }
        let missing = Features(self.choice.on.0 & !have.0);
        if missing != Features::default() {
            let message = format!("the ublk driver does not have {missing:?}");
            return Err(Error::new(Kind::Unsupported, message));
        }
        Ok(())
    }
}

const RECOVERY: u64 = flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE | flag::USER_RECOVERY_FAIL_IO;

/// True for the four sets of recovery flags that the driver takes.
const fn legal(flags: u64) -> bool {
    const WAIT: u64 = flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE;
    const FAIL: u64 = flag::USER_RECOVERY | flag::USER_RECOVERY_FAIL_IO;
    matches!(flags & RECOVERY, 0 | flag::USER_RECOVERY | WAIT | FAIL)
}

/// Checks the flags of a device, as ADD_DEV or GET_DEV_INFO gave them back.
pub(super) fn accept(given: Features) -> Result<Features> {
    let mut foreign = Features(given.0 & FOREIGN.0);
    if !given.has(flag::USER_COPY) {
        foreign.0 |= given.0 & flag::AUTO_BUF_REG;
    }
    if foreign != Features::default() {
        let message = format!("the ublk device has features that this server does not speak: {foreign:?}");
        return Err(Error::new(Kind::Unsupported, message));
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Features = Features(!command::ALL);

    fn wish(on_death: OnDeath, choice: &str) -> Wish {
        let choice = if choice.is_empty() { FeatureChoice::default() } else { choice.parse().unwrap() };
        Wish { on_death, choice, ..Wish::default() }
    }

    #[test]
    fn only_what_is_offered_is_asked_for() {
        let old = Some(Features(0x3ff));
        let ask = |copy, offered| Wish { copy: Some(copy), ..Wish::default() }.ask(offered).unwrap();
        assert_eq!(ask(CopyMode::AtFetch, old).0, 0b101_1010);
        assert_eq!(ask(CopyMode::GetData, old).0, 0b101_1110);
        assert_eq!(ask(CopyMode::UserCopy, old).0, 0b1101_1010);
        assert_eq!(Wish::default().ask(old).unwrap().0, 0b1101_1010);
        assert_eq!(ask(CopyMode::GetData, Some(Features::default())).0, 0);
        let all = ask(CopyMode::AtFetch, None);
        assert!(all.has(flag::QUIESCE | flag::NO_AUTO_PART_SCAN) && all.0 & !SPOKEN == 0);
    }

    #[test]
    fn what_need_not_be_seen_is_moved_only_where_the_rest_can_be_copied() {
        let ask = |unseen, copy, choice: &str| {
            let wish = Wish { unseen, copy, ..wish(OnDeath::Wait, choice) };
            wish.ask(None).unwrap().0 & (flag::USER_COPY | flag::AUTO_BUF_REG)
        };
        let (copy, both) = (flag::USER_COPY, flag::USER_COPY | flag::AUTO_BUF_REG);
        assert_eq!(ask(true, None, ""), both);
        assert_eq!(ask(false, None, ""), copy);
        assert_eq!(ask(false, None, "+AUTO_BUF_REG"), both);
        assert_eq!(ask(true, None, "-AUTO_BUF_REG"), copy);
        assert_eq!(ask(true, None, "-USER_COPY"), 0);
        assert_eq!(ask(true, Some(CopyMode::AtFetch), ""), 0);
        assert!(accept(Features(flag::AUTO_BUF_REG)).is_err());
        accept(Features(both)).unwrap();
    }

    #[test]
    fn recovery_flags_go_together() {
        let recovery = |wish: Wish, offered| wish.ask(offered).unwrap().0 & (RECOVERY | flag::QUIESCE);
        let (one, quiesce) = (flag::USER_RECOVERY, flag::QUIESCE);
        let wait = one | flag::USER_RECOVERY_REISSUE | quiesce;
        let fail = one | flag::USER_RECOVERY_FAIL_IO | quiesce;
        assert_eq!(recovery(wish(OnDeath::Wait, ""), None), wait);
        assert_eq!(recovery(wish(OnDeath::Fail, ""), None), fail);
        assert_eq!(recovery(wish(OnDeath::Remove, ""), None), 0);
        assert_eq!(recovery(wish(OnDeath::Wait, "-USER_RECOVERY"), None), 0);
        assert_eq!(recovery(wish(OnDeath::Wait, "-USER_RECOVERY_REISSUE"), None), one | quiesce);
        assert_eq!(recovery(wish(OnDeath::Wait, "-QUIESCE"), None), wait & !quiesce);
        assert_eq!(recovery(wish(OnDeath::Wait, ""), Some(Features(!one))), 0);
        let e = wish(OnDeath::Wait, "+USER_RECOVERY_FAIL_IO").ask(None).unwrap_err();
        assert_eq!(e.kind(), Kind::Usage, "{e}");
    }

    #[test]
    fn what_is_insisted_on_must_be_there() {
        let old = Some(Features(0x1ff));
        let e = wish(OnDeath::Fail, "").ask(old).unwrap_err();
        assert_eq!((e.kind(), e.hint_text()), (Kind::Unsupported, Some("--on-death remove")));
        let e = wish(OnDeath::Wait, "+QUIESCE,+USER_COPY").ask(old).unwrap_err();
        assert!(e.to_string().ends_with("does not have QUIESCE"), "{e}");
        assert!(wish(OnDeath::Wait, "+USER_COPY").ask(old).unwrap().has(flag::USER_COPY));
        assert!(wish(OnDeath::Wait, "+NEED_GET_DATA").ask(old).unwrap().has(flag::NEED_GET_DATA));
        assert!(wish(OnDeath::Wait, "+QUIESCE").check(Features(flag::USER_COPY)).is_err());
    }

    #[test]
    fn choices_are_read_by_name() {
        let parse = |text: &str| text.parse::<FeatureChoice>();
        let both = parse("+USER_COPY,-QUIESCE,-DEL_DEV_ASYNC").unwrap();
        assert_eq!(both.on.0, flag::USER_COPY);
        assert_eq!(both.off.0, flag::QUIESCE | command::DEL_DEV_ASYNC);
        for wrong in ["", "QUIESCE", "+", "+quiesce", "+QUIESCE,-QUIESCE", "+ZONED", "+DEL_DEV_ASYNC", "é"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn commands_are_no_features() {
        assert_eq!(NAMES.iter().fold(0, |all, (_, bit)| all | bit) & command::ALL, command::ALL);
        assert_eq!(ALL.0 & SPOKEN, SPOKEN);
        assert_eq!(wish(OnDeath::Wait, "-GET_DEV_INFO2").ask(None).unwrap().0 & command::ALL, 0);
    }

    #[test]
    fn what_the_driver_adds_by_itself_is_accepted_and_another_data_path_is_not() {
        let added = WANTED | flag::PER_IO_DAEMON | flag::BUF_REG_OFF_DAEMON | 1 << 40;
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
