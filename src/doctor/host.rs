//! The machine: driver, io_uring, limits, permissions.

use std::fs;
use std::io;
use std::path::Path;

use io_uring::{IoUring, Probe, opcode};

use super::kernel::{Release, known_trouble};
use super::{Finding, Level, sys};
use crate::runtime::{RingOptions, Runtime, thread};
use crate::ublk::uapi::flag;
use crate::ublk::{Control, Features};
use crate::{Error, Kind};

const CONTROL: &str = "/dev/ublk-control";
/// What the buffers of a device with default settings need, and some more for the rest of the process.
const LOCKED_BYTES: u64 = 64 << 20;
/// One for each layer of a chain and each client, and some more.
const OPEN_FILES: u64 = 1024;
/// The number of the first PID namespace (`PROC_PID_INIT_INO` of the kernel's `linux/proc_ns.h`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The kernel's release, as `uname -r` prints it.
pub(super) fn release() -> String {
    read("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// Looks at everything; gives the names of the ublk driver's features.
pub(super) fn examine(release: &str, findings: &mut Vec<Finding>) -> Option<Vec<String>> {
    findings.extend(io_uring());
    let version = read("/proc/version").unwrap_or_default();
    let parsed = Release::parse(release, &version);
    let driver = Driver::find(release, version.contains("Ubuntu"));
    findings.push(driver.finding());
    let features = if driver == Driver::Usable { ask(findings) } else { None };
    if features.is_some() {
        findings
            .extend([device_limit(), locked_memory(), io_flusher(), device_nodes()].into_iter().flatten());
    }
    findings.extend(open_files(sys::open_files()));
    let trouble = match parsed {
        // What is wrong with a driver that is not there bothers nobody.
        Some(_) if matches!(driver, Driver::Missing { .. }) => Vec::new(),
        Some(release) => known_trouble(release, in_pid_namespace()),
        None => Vec::new(),
    };
    if trouble.is_empty() {
        findings.push(Finding::ok("kernel", format!("Linux {release}")));
    }
    findings.extend(trouble);
    features.map(Features::names)
}

/// What stands between this process and the ublk driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Driver {
    Usable,
    /// It is there; this process may not open it.
    Forbidden(i32),
    /// It is a module that is not loaded.
    NotLoaded,
    /// The kernel was built without it, or its modules are not installed.
    Missing {
        ubuntu: bool,
    },
}

impl Driver {
    fn find(release: &str, ubuntu: bool) -> Driver {
        match fs::File::options().read(true).write(true).open(CONTROL) {
            Ok(_) => Driver::Usable,
            Err(e) if e.kind() != io::ErrorKind::NotFound => Driver::Forbidden(e.raw_os_error().unwrap_or(0)),
            Err(_) if has_module(&Path::new("/lib/modules").join(release)) => Driver::NotLoaded,
            Err(_) => Driver::Missing { ubuntu },
        }
    }

    fn finding(self) -> Finding {
        const CHECK: &str = "ublk";
        const WHY: &str = "without the ublk driver disks are served over NBD only: no block device of their own, and no \
                           disk that outlives its daemon";
        let limited = |what: String, hint: &str| Finding::new((CHECK, Level::Limited), what, WHY, hint);
        match self {
            Driver::Usable => Finding::ok(CHECK, "the ublk driver is there"),
            Driver::Forbidden(errno) => limited(
                format!("{CONTROL} cannot be opened: {}", io::Error::from_raw_os_error(errno)),
                "run as root; in a container give it the device and CAP_SYS_ADMIN",
            ),
            Driver::NotLoaded => limited(
                "the ublk driver is not loaded".into(),
                "modprobe ublk_drv, and a line `ublk_drv` in /etc/modules-load.d/cowdisk.conf",
            ),
            Driver::Missing { ubuntu: true } => limited(
                "the ublk driver is not installed".into(),
                "apt install linux-modules-extra-$(uname -r), then modprobe ublk_drv",
            ),
            Driver::Missing { ubuntu: false } => limited(
                "this kernel has no ublk driver".into(),
                "use a kernel with CONFIG_BLK_DEV_UBLK, and its modules installed; or `--frontend nbd`",
            ),
        }
    }
}

/// True if the kernel's list of modules, or of what would be one, has the driver.
fn has_module(dir: &Path) -> bool {
    let lists = ["modules.dep", "modules.builtin"].map(|name| fs::read_to_string(dir.join(name)));
    lists.iter().flatten().any(|list| list.contains("/ublk_drv.ko"))
}

/// Asks the driver for its features.
fn ask(findings: &mut Vec<Finding>) -> Option<Features> {
    const CHECK: &str = "ublk_features";
    let why = "the device would be served with less than this version of cowdisk can do";
    let hint = "update the kernel";
    match Control::open() {
        Ok(control) => {
            let features = control.features();
            findings.push(match features {
                Some(features) => features_finding(features),
                None => Finding::new(
                    (CHECK, Level::Note),
                    "the driver does not tell its features (before Linux 6.5)",
                    why,
                    hint,
                ),
            });
            Some(features.unwrap_or_default())
        }
        Err(e) => {
            findings.push(control_failed(&e));
            None
        }
    }
}

fn control_failed(error: &Error) -> Finding {
    let hint = match error.kind() {
        Kind::Permission => "run as root; in a container give it CAP_SYS_ADMIN",
        _ => "look into the kernel's log",
    };
    let why = "no device can be made; `auto` would choose ublk here and fail";
    Finding::new(("ublk_features", Level::Limited), error.to_string(), why, hint)
}

/// What the lack of a feature costs.
fn features_finding(features: Features) -> Finding {
    const CHECK: &str = "ublk_features";
    let names = features.names().join(" ");
    if !features.has(flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE) {
        let what = format!("the driver has no recovery: {names}");
        let why = "the disk goes with its daemon: its users get EIO when the daemon dies or is restarted";
        return Finding::new((CHECK, Level::Limited), what, why, "use Linux 6.1 or later");
    }
    if !features.has(flag::QUIESCE) {
        let what = format!("the driver has no QUIESCE (before Linux 6.16): {names}");
        let why = "while a daemon is replaced requests wait a little longer";
        return Finding::new((CHECK, Level::Note), what, why, "nothing: cowdisk does without");
    }
    Finding::ok(CHECK, format!("the driver has {names}"))
}

/// Makes a ring, and asks which operations it knows.
fn io_uring() -> Vec<Finding> {
    let setting = read("/proc/sys/kernel/io_uring_disabled").and_then(|text| text.parse().ok());
    let made = Runtime::new(RingOptions { entries: 8 }).map(drop);
    let ring = ring_finding(setting, made.err().map(|e| e.raw_os_error().unwrap_or(0)));
    let failed = ring.level == Level::Failed;
    let mut findings = vec![ring];
    if !failed {
        findings.extend(missing_operations());
    }
    findings
}

/// `setting`: `kernel.io_uring_disabled`; `errno`: why no ring could be made.
fn ring_finding(setting: Option<u8>, errno: Option<i32>) -> Finding {
    const CHECK: &str = "io_uring";
    let Some(errno) = errno else { return Finding::ok(CHECK, "io_uring can be used") };
    let why = "all of cowdisk's I/O goes through io_uring";
    let failed = |what: String, hint: &str| Finding::new((CHECK, Level::Failed), what, why, hint);
    match (errno, setting) {
        (libc::EPERM, Some(2)) => failed(
            "io_uring is turned off (kernel.io_uring_disabled = 2)".into(),
            "sysctl kernel.io_uring_disabled=0",
        ),
        (libc::EPERM, Some(1)) => failed(
            "io_uring is for the administrator and one group (kernel.io_uring_disabled = 1)".into(),
            "run as root, or join the group whose number is in kernel.io_uring_group",
        ),
        (libc::EPERM | libc::EACCES, _) => failed(
            "io_uring is forbidden here, by a seccomp filter or a security module".into(),
            "in a container allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile",
        ),
        (libc::ENOSYS, _) => failed(
            "there is no io_uring here".into(),
            "use a kernel with CONFIG_IO_URING; a container's seccomp profile may hide it",
        ),
        (libc::ENOMEM, _) => failed(
            "io_uring may lock no more memory".into(),
            "raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)",
        ),
        _ => failed(
            format!("io_uring does not work: {}", io::Error::from_raw_os_error(errno)),
            "look into the kernel's log",
        ),
    }
}

/// The operations that files, sockets and ublk need.
const OPERATIONS: [(u8, &str); 12] = [
    (opcode::Nop::CODE, "NOP"),
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::Timeout::CODE, "TIMEOUT"),
    (opcode::AsyncCancel2::CODE, "ASYNC_CANCEL"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::UringCmd16::CODE, "URING_CMD"),
];

fn missing_operations() -> Option<Finding> {
    const CHECK: &str = "io_uring_operations";
    let mut probe = Probe::new();
    let asked = IoUring::new(2).and_then(|ring| ring.submitter().register_probe(&mut probe));
    if let Err(e) = asked {
        let why = "operations that it lacks would fail only when they are needed";
        let what = format!("io_uring does not tell its operations: {e}");
        return Some(Finding::new((CHECK, Level::Note), what, why, "use Linux 6.1 or later"));
    }
    let lacks = OPERATIONS.iter().filter(|(code, _)| !probe.is_supported(*code));
    let lacks: Vec<&str> = lacks.map(|(_, name)| *name).collect();
    if lacks.is_empty() {
        return Some(Finding::ok(CHECK, "io_uring has all operations that are needed"));
    }
    let what = format!("io_uring lacks {}", lacks.join(", "));
    // Only ublk needs URING_CMD.
    let level = if lacks == ["URING_CMD"] { Level::Limited } else { Level::Failed };
    Some(Finding::new((CHECK, level), what, "requests that need them fail", "use Linux 6.1 or later"))
}

/// `ublks_max` bounds all devices before 6.15, and those of ordinary users since.
fn device_limit() -> Option<Finding> {
    let most: usize = read("/sys/module/ublk_drv/parameters/ublks_max")?.parse().ok()?;
    let now = fs::read_dir("/sys/class/ublk-char").map_or(0, Iterator::count);
    Some(device_limit_finding(now, most))
}

fn device_limit_finding(now: usize, most: usize) -> Finding {
    let what = format!("{now} of {most} ublk devices (ublks_max) are in use");
    if now < most {
        return Finding::ok("ublks_max", what);
    }
    let why = "before Linux 6.15 no further device can be made, and since then none by an ordinary user";
    let hint = "echo 1024 > /sys/module/ublk_drv/parameters/ublks_max, or `options ublk_drv ublks_max=1024` in \
                /etc/modprobe.d";
    Finding::new(("ublks_max", Level::Limited), what, why, hint)
}

/// CAP_IPC_LOCK, by its number in `linux/capability.h`.
const IPC_LOCK: u32 = 14;

fn locked_memory() -> Option<Finding> {
    let status = read("/proc/self/status")?;
    Some(locked_memory_finding(sys::locked_memory(), has_capability(&status, IPC_LOCK)))
}

fn locked_memory_finding(limit: u64, unlimited: bool) -> Finding {
    if unlimited || limit >= LOCKED_BYTES {
        return Finding::ok("locked_memory", "the daemon may lock its memory");
    }
    Finding::new(
        ("locked_memory", Level::Limited),
        format!("only {} KiB of memory may be locked", limit >> 10),
        "a daemon whose memory is swapped out can wait for a disk that it serves itself",
        "give it CAP_IPC_LOCK, or raise the limit (ulimit -l, LimitMEMLOCK=infinity)",
    )
}

/// True if the text of `/proc/PID/status` names the effective capability `number`.
fn has_capability(status: &str, number: u32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> number & 1 == 1)
}

/// Sets it for this thread of a process that ends soon: only a try tells.
fn io_flusher() -> Option<Finding> {
    const CHECK: &str = "io_flusher";
    let Err(e) = thread::set_io_flusher() else {
        return Some(Finding::ok(CHECK, "reclaim of memory knows the daemon (PR_SET_IO_FLUSHER)"));
    };
    Some(Finding::new(
        (CHECK, Level::Limited),
        format!("PR_SET_IO_FLUSHER does not work: {e}"),
        "under memory pressure the daemon can wait for writeback to the disk that it serves itself",
        "give it CAP_SYS_RESOURCE",
    ))
}

/// Nodes of new devices appear by themselves only in a devtmpfs.
fn device_nodes() -> Option<Finding> {
    let mounts = read("/proc/self/mounts")?;
    if mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq(["/dev", "devtmpfs"])) {
        return None;
    }
    Some(Finding::new(
        ("device_nodes", Level::Limited),
        "/dev is no devtmpfs",
        "the nodes of new devices do not appear in this container, and serve waits for them in vain",
        "run cowdisk on the host, or mount the host's /dev",
    ))
}

fn open_files(most: u64) -> Option<Finding> {
    (most < OPEN_FILES).then(|| {
        Finding::new(
            ("open_files", Level::Limited),
            format!("a process may have {most} files open"),
            "each layer of a chain and each client is one",
            "raise the limit (ulimit -n, LimitNOFILE=)",
        )
    })
}

fn in_pid_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name != Path::new(FIRST_PID_NAMESPACE))
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_cannot_be_made_has_a_reason() {
        assert_eq!(ring_finding(Some(0), None).level, Level::Ok);
        for (setting, errno, word) in [
            (Some(2), libc::EPERM, "io_uring_disabled = 2"),
            (Some(1), libc::EPERM, "io_uring_disabled = 1"),
            (Some(0), libc::EPERM, "seccomp"),
            (None, libc::EPERM, "seccomp"),
            (None, libc::ENOSYS, "no io_uring"),
            (Some(0), libc::ENOMEM, "lock no more"),
            (Some(0), libc::EIO, "does not work"),
        ] {
            let found = ring_finding(setting, Some(errno));
            assert!(found.level == Level::Failed && found.message.contains(word), "{found:?}");
        }
    }

    #[test]
    fn a_driver_that_is_not_there_is_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_module(dir.path()));
        fs::write(dir.path().join("modules.dep"), "kernel/drivers/block/ublk_drv_x.ko:\n").unwrap();
        assert!(!has_module(dir.path()));
        fs::write(dir.path().join("modules.dep"), "kernel/drivers/block/ublk_drv.ko.xz:\n").unwrap();
        assert!(has_module(dir.path()));
        for (driver, word) in [
            (Driver::NotLoaded, "modprobe ublk_drv"),
            (Driver::Missing { ubuntu: true }, "linux-modules-extra"),
            (Driver::Missing { ubuntu: false }, "CONFIG_BLK_DEV_UBLK"),
            (Driver::Forbidden(libc::EACCES), "root"),
        ] {
            let found = driver.finding();
            assert!(found.level == Level::Limited && found.hint.unwrap().contains(word), "{driver:?}");
        }
        assert_eq!(Driver::Usable.finding().level, Level::Ok);
    }

    #[test]
    fn the_lack_of_a_feature_is_told_by_what_it_costs() {
        assert_eq!(features_finding(Features::default()).level, Level::Limited);
        let recovery = flag::USER_RECOVERY | flag::USER_RECOVERY_REISSUE;
        assert_eq!(features_finding(Features(recovery)).level, Level::Note);
        assert_eq!(features_finding(Features(recovery | flag::QUIESCE)).level, Level::Ok);
    }

    #[test]
    fn limits_are_compared_with_what_is_needed() {
        assert_eq!(device_limit_finding(63, 64).level, Level::Ok);
        assert_eq!(device_limit_finding(64, 64).level, Level::Limited);
        assert_eq!(locked_memory_finding(8 << 20, false).level, Level::Limited);
        assert_eq!(locked_memory_finding(8 << 20, true).level, Level::Ok);
        assert_eq!(locked_memory_finding(LOCKED_BYTES, false).level, Level::Ok);
        assert!(open_files(1023).is_some() && open_files(1024).is_none());
    }

    #[test]
    fn capabilities_are_read_bit_by_bit() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000004000\n";
        assert!(has_capability(status, IPC_LOCK));
        assert!(!has_capability(status, 13) && !has_capability("", 14));
    }
}
