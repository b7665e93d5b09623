//! The scenarios of `tests/vm` in virtual machines with real ublk, on an old and on the newest kernel.
//!
//! Each test boots a machine, which takes a minute under emulation, and the first one downloads the
//! kernels: so they are ignored unless asked for, with `cargo test --release --test vm -- --ignored`.
//! `tests/vm/run` does the work; here its verdict is checked once more, against what the guest printed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A machine of two emulated processors keeps a small host busy: one at a time.
static MACHINE: Mutex<()> = Mutex::new(());

fn machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The program under test: the one that cargo built for these tests, unless `COWDISK_BIN` names another.
fn program() -> PathBuf {
    std::env::var_os("COWDISK_BIN").map_or_else(|| env!("CARGO_BIN_EXE_cowdisk").into(), PathBuf::from)
}

fn harness(script: &str, arguments: &[&str]) -> Output {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm").join(script))
        .args(arguments)
        .env("COWDISK_BIN", program())
        .output()
        .expect("the harness is a script that can be run")
}

fn count(output: &str, prefix: &str) -> usize {
    output.lines().filter(|line| line.starts_with(prefix)).count()
}

#[track_caller]
fn assert_passed(output: &Output, last_word: &str) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let passed = count(&stdout, "ok ");
    let result = format!("{last_word} pass {passed} fail 0");
    eprintln!("{stdout}");
    assert!(output.status.success(), "{}\n{stderr}", output.status);
    assert!(passed >= 1 && count(&stdout, "not ok") == 0, "not all checks passed");
    assert_eq!(stdout.lines().last(), Some(result.as_str()), "the result does not match the checks");
}

#[track_caller]
fn run(kernel: &str, scenario: &str) {
    let _machine = machine();
    assert_passed(&harness("run", &[kernel, scenario]), "VM-RESULT");
}

macro_rules! scenarios {
    ($($kernel:ident: $($scenario:ident)*;)*) => {$(
        mod $kernel {$(
            #[test]
            #[ignore = "boots a virtual machine: tests/vm/run"]
            fn $scenario() {
                super::run(stringify!($kernel), stringify!($scenario));
            }
        )*}
    )*};
}

// Not on the old kernel: starts. There START_DEV itself looks for partitions, and a daemon that is killed meanwhile can
// never end: it waits for the worker that waits for an answer of the disk, which nobody can give as long as it has not ended.
// From 6.18 on the look comes later.
scenarios! {
    old: kernel smoke life recover kills recoveries sigterm upgrade stop cycles queues copymodes features ondeath
        errors partitions snapshots shapes filesystems names reboot;
    new: kernel smoke life recover kills recoveries starts sigterm upgrade stop cycles queues copymodes features ondeath
        errors partitions snapshots shapes filesystems names reboot;
}

/// The harness sees every way to fail that we could think of.
#[test]
#[ignore = "boots a virtual machine: tests/vm/run"]
fn harness_can_fail() {
    let _machine = machine();
    assert_passed(&harness("selftest", &["old"]), "SELFTEST");
}
