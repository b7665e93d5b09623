//! An image on a file system that another machine has too.

use std::process::{Command, Stdio};

use crate::bench::Bench;
use crate::{MIB, fill, need_root, sh, shown};

/// A directory that FUSE serves, until this is dropped.
struct Shared<'a>(&'a Bench);

impl<'a> Shared<'a> {
    fn mount(bench: &'a Bench) -> Shared<'a> {
        sh(&bench.path(""), "mkdir below net && bindfs below net");
        Shared(bench)
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path("net")).status();
    }
}

/// Runs `cowdisk` as on a machine of another name.
fn elsewhere(bench: &Bench, args: &[&str]) -> (Option<i32>, String) {
    let cowdisk = bench.cowdisk(args);
    let mut command = Command::new("unshare");
    command.args(["--uts", "sh", "-euc", "hostname elsewhere; exec \"$@\"", "sh"]);
    command.arg(cowdisk.get_program()).args(cowdisk.get_args());
    for (name, value) in cowdisk.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.current_dir(cowdisk.get_current_dir().unwrap()).stdin(Stdio::null());
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_another_machine_left_open_is_taken_by_force_alone() {
    need_root();
    let bench = Bench::new();
    let shared = Shared::mount(&bench);
    let image = "net/vm.cow";
    bench.image(image, 16 * MIB);
    let daemon = bench.serve([image]);
    fill(&daemon, 7);
    daemon.kill();
    let (code, told) = elsewhere(&bench, &["snapshot", "net/vm.cow@s1"]);
    assert_eq!(code, Some(75), "{told}");
    assert!(told.contains("has not closed it") && told.contains("--force"), "{told}");
    let (code, told) = elsewhere(&bench, &["serve", "--frontend", "nbd", image, "--", "true"]);
    assert_eq!(code, Some(75), "{told}");
    assert_eq!(shown(&bench, image), 7);
    // What it says to do.
    let (code, told) = elsewhere(&bench, &["serve", "--frontend", "nbd", image, "--force", "--", "true"]);
    assert_eq!(code, Some(0), "{told}");
    let (code, told) = elsewhere(&bench, &["snapshot", "net/vm.cow@s1"]);
    assert_eq!(code, Some(0), "closed by now: {told}");
    assert_eq!(shown(&bench, "net/vm.cow@s1"), 7);
    drop(shared);
}
