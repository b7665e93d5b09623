//! `serve … -- COMMAND`

use std::process::Stdio;

use crate::bench::{Bench, is_clean};
use crate::wait_until;

const MIB: u64 = 1 << 20;

fn serve_for(bench: &Bench, script: &str) -> crate::bench::Ended {
    bench.run(["serve", "vm.cow", "--frontend", "nbd", "--", "sh", "-c", script])
}

#[test]
fn the_commands_status_is_the_daemons() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        let ended = serve_for(&bench, script).expect(code);
        // Its output is its own.
        assert_eq!((&*ended.stdout, &*ended.stderr), ("", ""), "{script}");
        assert!(is_clean(&image), "{script}");
        assert_eq!(bench.names("run"), ["lock"]);
    }
}

#[test]
fn the_command_finds_the_disk() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let script = "qemu-io -f raw -c 'write -P 9 1M 64k' -c flush \"$COWDISK_URI\" && echo \"$COWDISK_URI\"";
    let ended = serve_for(&bench, script).expect(0);
    assert!(ended.stdout.contains("nbd+unix:///?socket="), "{ended:?}");
    serve_for(&bench, "qemu-io -f raw -c 'read -P 9 1M 64k' \"$COWDISK_URI\"").expect(0);
    assert!(is_clean(&image));
}

/// Each layer is an open file, and programs that call select() must not get files above 1024.
#[test]
fn the_daemon_may_have_all_files_open_and_the_command_as_many_as_before() {
    let bench = Bench::new();
    bench.image("vm.cow", 64 * MIB);
    let limited = ["sh", "-c", "ulimit -Sn 77; ulimit -Hn 99; exec \"$0\" \"$@\""];
    let script = "grep 'Max open files' /proc/$PPID/limits /proc/self/limits";
    let args = ["serve", "vm.cow", "--frontend", "nbd", "--", "sh", "-c", script];
    let ended = bench.run_by(&limited, args).expect(0);
    let soft: Vec<&str> =
        ended.stdout.lines().map(|line| line.split_whitespace().rev().nth(2).unwrap()).collect();
    assert_eq!(soft, ["99", "77"], "{ended:?}");
}

#[test]
fn a_command_that_cannot_be_started_is_an_error_and_the_image_is_closed() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let ended = bench.run(["serve", "vm.cow", "--frontend", "nbd", "--", "/no/such program"]).expect(1);
    assert!(ended.stderr.contains("/no/such program: start the command"), "{ended:?}");
    assert!(is_clean(&image));
}

#[test]
fn signals_go_to_the_command_and_stop_is_refused_until_forced() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let script = "trap 'kill $!; touch told; exit 3' TERM; sleep 1000 & touch started; wait";
    let args = ["serve", "vm.cow", "--frontend", "nbd", "--", "sh", "-c", script];
    for force in [false, true] {
        let mut child = bench.cowdisk(args).stdout(Stdio::null()).spawn().unwrap();
        wait_until("the command runs", || bench.path("started").exists());
        bench.stop(["vm.cow"]).expect(75);
        if force {
            bench.stop(["vm.cow", "--force"]).expect(0);
            assert_eq!(child.wait().unwrap().code(), Some(143));
        } else {
            let pid = child.id().to_string();
            assert!(std::process::Command::new("kill").arg(pid).status().unwrap().success());
            assert_eq!(child.wait().unwrap().code(), Some(3));
        }
        assert!(is_clean(&image));
        wait_until("the command was told", || bench.path("told").exists());
        std::fs::remove_file(bench.path("told")).unwrap();
        std::fs::remove_file(bench.path("started")).unwrap();
    }
}
