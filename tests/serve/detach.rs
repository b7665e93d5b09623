//! `serve --detach`: a daemon that runs by itself, and its parent, which starts it again.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::bench::{Bench, Ended, is_clean};
use crate::client::{Client, write};
use crate::wait_until;

const MIB: u64 = 1 << 20;

/// A detached daemon and its parent; both end with the test.
struct Detached<'a> {
    bench: &'a Bench,
    uri: String,
    keeper: u32,
}

impl<'a> Detached<'a> {
    fn start(bench: &'a Bench, args: &[&str]) -> Detached<'a> {
        let args = ["serve", "--detach", "--frontend", "nbd"].iter().chain(args);
        let ended = bench.run(args).expect(0);
        let uri = ended.stdout.trim_end().strip_prefix("ready ").unwrap().to_owned();
        assert_eq!(ended.stdout.lines().count(), 1);
        let status = bench.status(&uri);
        let keeper = parent_of(status["pid"].as_u64().unwrap()).unwrap();
        Detached { bench, uri, keeper }
    }

    fn status(&self) -> Value {
        self.bench.status(&self.uri)
    }

    fn pid(&self) -> u64 {
        self.status()["pid"].as_u64().unwrap()
    }

    fn log(&self) -> PathBuf {
        PathBuf::from(self.status()["log"].as_str().unwrap())
    }

    fn connect(&self) -> Client {
        let mut client = Client::connect(self.uri.strip_prefix("nbd+unix:///?socket=").unwrap().as_ref());
        client.begin(false, "");
        client
    }

    /// Kills the daemon, and waits until another one serves in its place.
    fn kill_and_wait(&self) {
        let before = self.pid();
        kill("-KILL", before);
        wait_until("another daemon serves", || {
            let again = self.bench.run(["status", &self.uri, "--json"]);
            again.code == 0 && again.json()["images"][0]["pid"].as_u64().unwrap() != before
        });
    }

    fn wait_for_keeper(&self) {
        wait_until("the parent ends", || parent_of(self.keeper.into()).is_none());
    }
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        // The parent first, or it would start another one. It ends its daemon.
        let _ = Command::new("kill").arg(self.keeper.to_string()).output();
        let _ = self.bench.stop([&self.uri, "--force"]);
    }
}

fn kill(signal: &str, pid: u64) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// The parent of a process that lives.
fn parent_of(pid: u64) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    fields.next().filter(|&state| state != "Z")?;
    fields.next()?.parse().ok()
}

fn contains(path: &PathBuf, text: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|log| log.contains(text))
}

#[test]
fn it_returns_when_the_disk_is_ready_and_stop_ends_it_for_good() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let daemon = Detached::start(&bench, &["vm.cow", "--queues", "2", "--name", "x"]);
    assert_eq!(daemon.connect().call(&write(0, 0, &[1; 4096], 1)), 0);
    let status = daemon.status();
    assert_eq!((status["state"].as_str(), status["name"].as_str()), (Some("ok"), Some("x")));
    let log = daemon.log();
    assert!(contains(&log, "serves") && contains(&log, &daemon.uri));
    let people = bench.run(["status", "vm.cow"]).expect(0).stdout;
    assert!(people.contains(&format!("  log {}\n", log.display())), "{people}");
    bench.stop(["vm.cow", "--force"]).expect(0);
    daemon.wait_for_keeper();
    assert!(contains(&log, "ended with status 0"));
    assert!(is_clean(&image));
    let name = log.file_name().unwrap().to_str().unwrap();
    assert_eq!(bench.names("run"), [name, "lock"], "only the log is left");
}

#[test]
fn a_start_that_fails_is_the_callers_failure() {
    let bench = Bench::new();
    bench.image("vm.cow", 64 * MIB);
    fs::write(bench.path("bad.cow"), vec![0; 1 << 20]).unwrap();
    let daemon = bench.serve(["vm.cow"]);
    for (image, code) in [("missing.cow", 1), ("bad.cow", 1), ("vm.cow", 75)] {
        for json in [&[][..], &["--json"]] {
            let plain = ["serve", image, "--frontend", "nbd"].into_iter().chain(json.iter().copied());
            let Ended { stderr, .. } = bench.run(plain).expect(code);
            let detached =
                ["serve", image, "--frontend", "nbd", "--detach"].into_iter().chain(json.iter().copied());
            let ended = bench.run(detached).expect(code);
            assert_eq!((ended.stdout.as_str(), ended.stderr), ("", stderr), "{image}");
        }
    }
    bench.run(["serve", "vm.cow", "--detach", "--", "true"]).expect(64);
    daemon.terminate();
    assert_eq!(bench.names("run"), ["lock"]);
}

#[test]
fn a_daemon_that_dies_is_followed_by_another_at_the_same_place() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    for mode in [&["vm.cow"][..], &["vm.cow", "--read-only"]] {
        let daemon = Detached::start(&bench, mode);
        let writes = mode.len() == 1;
        for round in 0..2 {
            if writes {
                assert_eq!(daemon.connect().call(&write(0, round * 4096, &[7; 4096], 1)), 0);
            }
            let log = daemon.log();
            daemon.kill_and_wait();
            assert_eq!(daemon.log(), log);
            assert_eq!(daemon.connect().read(round * 4096, 4096), [7; 4096]);
            assert!(contains(&log, "died by signal 9; started again in"));
            assert!(contains(&log, "serves it again"));
            assert_eq!(contains(&log, "it was not closed: 1 records replayed"), writes);
        }
        // Told to end, it ends, and nobody starts it again.
        let log = daemon.log();
        kill("-TERM", daemon.pid());
        daemon.wait_for_keeper();
        bench.run(["status", "vm.cow"]).expect(1);
        assert_eq!(log.exists(), writes, "a reader's log goes with it");
        assert!(is_clean(&image));
    }
}

#[test]
fn the_parent_ends_its_daemon() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let daemon = Detached::start(&bench, &["vm.cow"]);
    kill("-TERM", daemon.keeper.into());
    daemon.wait_for_keeper();
    bench.run(["status", "vm.cow"]).expect(1);
    assert!(is_clean(&image));
}

#[test]
fn a_daemon_that_dies_again_and_again_is_given_up() {
    let bench = Bench::new();
    bench.image("vm.cow", 64 * MIB);
    let daemon = Detached::start(&bench, &["vm.cow"]);
    let log = daemon.log();
    let mut killed = Vec::new();
    wait_until("the parent gives up", || {
        let found = bench.run(["status", "vm.cow", "--json"]);
        let pid = (found.code == 0).then(|| found.json()["images"][0]["pid"].as_u64().unwrap());
        if let Some(pid) = pid.filter(|pid| !killed.contains(pid)) {
            kill("-KILL", pid);
            killed.push(pid);
        }
        parent_of(daemon.keeper.into()).is_none()
    });
    assert!(killed.len() >= 5, "{killed:?}");
    assert!(contains(&log, "given up after 5 deaths") && contains(&log, "try: cowdisk serve --detach '"));
    bench.run(["status", "vm.cow"]).expect(1);
}

#[test]
fn a_daemon_that_nobody_waits_for_any_more_ends() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let (reader, writer) = std::io::pipe().unwrap();
    // As if the command that the user had started were interrupted: its parent goes on, and finds nobody to tell.
    drop(reader);
    let mut keeper = bench.cowdisk(["serve", "vm.cow", "--frontend", "nbd", "--keep=7"]);
    let mut keeper = keeper.stdout(writer).spawn().unwrap();
    let mut status = None;
    wait_until("the parent ends", || {
        status = keeper.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0));
    bench.run(["status", "vm.cow"]).expect(1);
    assert!(is_clean(&image));
}

#[test]
fn a_temporary_disk_is_not_served_again() {
    let bench = Bench::new();
    bench.image("vm.cow", 64 * MIB);
    let daemon = Detached::start(&bench, &["vm.cow", "--temporary"]);
    let log = daemon.log();
    kill("-KILL", daemon.pid());
    daemon.wait_for_keeper();
    assert!(contains(&log, "what was written to the temporary disk is gone"));
    bench.run(["status", "vm.cow"]).expect(1);
}
