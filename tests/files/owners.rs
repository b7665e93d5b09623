//! Images that belong to somebody else: owner, mode and access list are kept by whatever makes a new file.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use crate::bench::{Bench, Ended};
use crate::{assert_disk, disk, fill, need_root};

const USER: u32 = 12345;
const GROUP: u32 = 54321;

fn access(bench: &Bench, name: &str) -> (u32, u32, u32) {
    let meta = fs::metadata(bench.path(name)).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

/// Every command that puts a new head in the place of the old one keeps its access, as does the layer that was sealed,
/// without its write bits.
#[test]
fn what_root_does_to_somebodys_disk_leaves_it_theirs() {
    need_root();
    for served in [false, true] {
        let bench = Bench::new();
        disk(&bench, "vm.cow");
        for (name, mode) in [("vm.cow", 0o660), ("vm@s1.cow", 0o440), ("vm@s2.cow", 0o440)] {
            chown(bench.path(name), Some(USER), Some(GROUP)).unwrap();
            fs::set_permissions(bench.path(name), Permissions::from_mode(mode)).unwrap();
        }
        let daemon = served.then(|| bench.serve(["vm.cow"]));
        if let Some(daemon) = &daemon {
            fill(daemon, 4);
        }
        bench.run(["snapshot", "vm.cow@s3"]).expect(0);
        bench.run(["rollback", "vm.cow@s1"]).expect(0);
        bench.run(["rollback", "vm.cow@s3", "--discard"]).expect(0);
        bench.run(["resize", "vm.cow", "+1M"]).expect(0);
        let sealed = |name: &str| access(&bench, name) == (USER, GROUP, 0o440);
        assert_eq!(access(&bench, "vm.cow"), (USER, GROUP, 0o660), "served: {served}");
        crate::wait_until("the snapshot is sealed", || sealed("vm@s3.cow"));
        daemon.into_iter().for_each(|daemon| drop(daemon.terminate()));
        assert_eq!(access(&bench, "vm.cow"), (USER, GROUP, 0o660), "served: {served}");
        bench.run(["check", "vm.cow", "--data", "--chain"]).expect(0);
    }
}

#[test]
fn an_ordinary_user_has_disks_and_not_those_of_others() {
    need_root();
    let bench = Bench::new();
    // The program must be within the user's reach, which the place where it was built may not be.
    let program = bench.path("cowdisk");
    fs::copy(env!("CARGO_BIN_EXE_cowdisk"), &program).unwrap();
    fs::set_permissions(bench.path(""), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    disk(&bench, "roots.cow");
    for name in ["roots.cow", "roots@s1.cow", "roots@s2.cow"] {
        let mode = if name == "roots.cow" { 0o600 } else { 0o400 };
        fs::set_permissions(bench.path(name), Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(bench.path("home")).unwrap();
    chown(bench.path("home"), Some(USER), Some(GROUP)).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--regid", &GROUP.to_string(), "--clear-groups"]);
        command
            .arg(&program)
            .args(args)
            .current_dir(bench.path(""))
            .env("COWDISK_RUNTIME_DIR", bench.path("home/run"));
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended {
            code: output.status.code().unwrap(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    };
    run(&["create", "home/vm.cow", "--size", "16M"]).expect(0);
    run(&["bench", "home/vm.cow", "-w", "-c", "10"]).expect(0);
    run(&["snapshot", "home/vm.cow@s1"]).expect(0);
    run(&["fork", "home/vm.cow@s1", "home/fork.cow"]).expect(0);
    run(&["bench", "home/vm.cow", "-w", "-c", "10"]).expect(0);
    run(&["rollback", "home/vm.cow@s1"]).expect(0);
    run(&["check", "home/vm.cow", "--data", "--chain"]).expect(0);
    for name in ["vm.cow", "vm@s1.cow", "fork.cow", "vm@rollback-1.cow"] {
        let (uid, gid, _) = access(&bench, &format!("home/{name}"));
        assert_eq!((uid, gid), (USER, GROUP), "{name}");
    }
    // Not to be read, written, or stood on.
    let before = bench.names("");
    for args in [
        &["info", "roots.cow"][..],
        &["check", "roots.cow"],
        &["snapshot", "roots.cow@mine"],
        &["rollback", "roots.cow@s1"],
        &["fork", "roots.cow@s1", "home/stolen.cow"],
        &["create", "home/stolen.cow", "--base", "roots@s1.cow"],
        &["create", "stolen.cow", "--size", "1M"],
    ] {
        let refused = run(args);
        assert_eq!(refused.code, 1, "{args:?}: {refused:?}");
        assert!(refused.stderr.contains("ermission denied"), "{args:?}: {refused:?}");
    }
    assert_eq!(bench.names(""), before);
    fs::set_permissions(bench.path("roots.cow"), Permissions::from_mode(0o600)).unwrap();
    assert_disk(&bench, "roots.cow");
    assert!(bench.content("home/vm.cow@s1", 64) == bench.content("home/vm.cow", 64));
}
