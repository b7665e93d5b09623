//! `rollback` of images that are being served.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::bench::{Bench, Daemon};
use crate::client::{Client, write};
use crate::wait_until;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

fn filled(fill: u8) -> Vec<u8> {
    vec![fill; BLOCK as usize]
}

/// Fills the blocks 0 and 1000, by a client that has gone when this returns.
fn fill(daemon: &Daemon, fill: u8) {
    let mut client = daemon.connect();
    for block in [0, 1000] {
        assert_eq!(client.call(&write(0, block * BLOCK, &filled(fill), 1)), 0);
    }
    client.disconnect();
}

/// What the blocks 0 and 1000 are filled with.
fn shown(client: &mut Client) -> (u8, u8) {
    let mut one = |block: u64| {
        let bytes = client.read(block * BLOCK, BLOCK as u32);
        assert!(bytes.iter().all(|b| *b == bytes[0]), "block {block} is mixed");
        bytes[0]
    };
    (one(0), one(1000))
}

fn look(daemon: &Daemon) -> (u8, u8) {
    let mut client = daemon.connect();
    let found = shown(&mut client);
    client.disconnect();
    found
}

#[test]
fn a_served_disk_goes_back_and_forth() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow", "--queues", "2"]);
    fill(&daemon, 1);
    bench.run(["snapshot", "vm.cow@s1"]).expect(0);
    fill(&daemon, 2);
    let inode = fs::metadata(&image).unwrap().ino();
    let back = bench.run(["rollback", "vm.cow@s1"]).expect(0);
    assert_eq!((back.stdout.as_str(), back.stderr.as_str()), ("vm.cow@rollback-1\n", ""));
    assert_ne!(fs::metadata(&image).unwrap().ino(), inode);
    assert_eq!(look(&daemon), (1, 1));
    // The present was kept, and nothing has changed since.
    assert_eq!(bench.run(["rollback", "vm.cow@rollback-1"]).expect(0).stdout, "");
    assert_eq!(look(&daemon), (2, 2));
    fill(&daemon, 3);
    let json = bench.run(["--json", "rollback", "vm.cow@s1"]).expect(0).json();
    assert_eq!((&json["name"], &json["kept"]["name"]), (&"s1".into(), &"rollback-2".into()), "{json}");
    assert_eq!(json["kept"]["path"], "vm@rollback-2.cow");
    let info = bench.run(["--json", "info", "vm.cow"]).expect(0).json();
    assert_eq!(json["layer_id"], info["layer_id"]);
    // It goes on from there: snapshots, forks, and the death of the daemon.
    fill(&daemon, 4);
    bench.run(["snapshot", "vm.cow@s2"]).expect(0);
    fill(&daemon, 5);
    assert_eq!(bench.status(&image)["layers"], 3);
    daemon.kill();
    let daemon = bench.serve(["vm.cow"]);
    assert_eq!(look(&daemon), (5, 5));
    daemon.terminate();
    bench.run(["check", "vm.cow", "--data", "--chain"]).expect(0);
    for (name, fill) in [("s1", 1), ("rollback-1", 2), ("rollback-2", 3), ("s2", 4)] {
        let daemon = bench.serve([&format!("vm.cow@{name}"), "--read-only"]);
        assert_eq!(look(&daemon), (fill, fill), "{name}");
        daemon.terminate();
    }
}

#[test]
fn what_is_discarded_is_given_back_at_once() {
    let bench = Bench::new();
    bench.image("vm.cow", 64 * MIB);
    let daemon = bench.serve(["vm.cow", "--queues", "2"]);
    fill(&daemon, 1);
    bench.run(["snapshot", "vm.cow@s1"]).expect(0);
    // A client on each queue.
    let mut clients = [daemon.connect(), daemon.connect()];
    for (at, client) in clients.iter_mut().enumerate() {
        for i in 0..8 {
            let pos = (at as u64 * 8 + i) * MIB;
            assert_eq!(client.call(&write(0, pos, &vec![7; MIB as usize], i)), 0);
        }
    }
    clients.iter_mut().for_each(Client::disconnect);
    bench.run(["rollback", "--discard", "vm.cow@s1"]).expect(0);
    assert_eq!(bench.names(""), ["run", "vm.cow", "vm@s1.cow"]);
    // As long as a process has a removed file open, its blocks are not free.
    let open = || fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let removed = || {
        let links = open().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        links.filter(|link| link.to_string_lossy().ends_with("cow (deleted)")).count()
    };
    wait_until("the old head is closed", || removed() == 0);
    assert_eq!(look(&daemon), (1, 1));
    daemon.terminate();
    bench.run(["check", "vm.cow", "--data", "--chain"]).expect(0);
}

#[test]
fn a_disk_that_somebody_uses_stays() {
    let bench = Bench::new();
    bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow"]);
    fill(&daemon, 1);
    bench.run(["snapshot", "vm.cow@s1"]).expect(0);
    fill(&daemon, 2);
    let mut client = daemon.connect();
    let before = bench.names("");
    let refused = bench.run(["rollback", "vm.cow@s1"]).expect(75);
    assert!(refused.stderr.contains("a client is connected"), "{refused:?}");
    assert!(refused.stderr.contains("try: cowdisk stop '") && refused.stdout.is_empty(), "{refused:?}");
    let refused = bench.run(["--json", "rollback", "--discard", "vm.cow@s1"]).expect(75);
    assert!(refused.stderr.contains("\"in_use\""), "{refused:?}");
    assert_eq!(bench.names(""), before);
    assert_eq!(shown(&mut client), (2, 2));
    assert_eq!(client.call(&write(0, 0, &filled(2), 9)), 0);
    client.disconnect();
    for (name, code, fragment) in [("none", 1, "no snapshot \"none\""), ("@", 64, "a snapshot is called")] {
        let refused = bench.run(["rollback", &format!("vm.cow@{name}").replace("@@", "")]).expect(code);
        assert!(refused.stderr.contains(fragment), "{refused:?}");
    }
    assert_eq!(bench.names(""), before);
    assert_eq!(look(&daemon), (2, 2));
    daemon.terminate();
    for mode in ["--read-only", "--temporary"] {
        let daemon = bench.serve(["vm.cow", mode]);
        bench.run(["rollback", "vm.cow@s1"]).expect(75);
        assert_eq!(look(&daemon), (2, 2), "{mode}");
        daemon.terminate();
    }
    assert_eq!(bench.names(""), before);
}

#[test]
fn a_disk_has_the_size_again_that_it_had() {
    let bench = Bench::new();
    bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow"]);
    fill(&daemon, 1);
    bench.run(["snapshot", "vm.cow@s1"]).expect(0);
    bench.run(["resize", "vm.cow", "32M"]).expect(0);
    fill(&daemon, 2);
    for (name, size) in [("s1", 16 * MIB), ("rollback-1", 32 * MIB), ("s1", 16 * MIB)] {
        let json = bench.run(["--json", "rollback", &format!("vm.cow@{name}")]).expect(0).json();
        assert_eq!(json["virtual_size"], size);
        let mut client = Client::connect(&daemon.socket());
        assert_eq!(client.begin(false, "").0, size, "{name}");
        client.disconnect();
        assert_eq!(bench.status("vm.cow")["virtual_size"], size);
    }
    daemon.terminate();
}

/// Clients that come while the disk goes back and forth: each sees one disk, from its first read to its last.
#[test]
fn clients_that_come_meanwhile_see_one_disk() {
    let bench = Bench::new();
    bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow", "--queues", "2"]);
    for number in [1, 2] {
        fill(&daemon, number);
        bench.run(["snapshot", &format!("vm.cow@s{number}")]).expect(0);
    }
    let (stop, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let socket = daemon.socket();
    let (until, count) = (stop.clone(), looks.clone());
    let reader = std::thread::spawn(move || {
        let mut seen = [0u64; 3];
        while !until.load(Ordering::Relaxed) {
            let mut client = Client::connect(&socket);
            client.begin(false, "");
            let found = shown(&mut client);
            assert_eq!(found.0, found.1, "one client has seen two disks");
            seen[usize::from(found.0)] += 1;
            client.disconnect();
            count.fetch_add(1, Ordering::Relaxed);
            // Somebody else must have a chance to find nobody.
            std::thread::yield_now();
        }
        seen
    });
    let mut done = 0;
    wait_until("the disk went back and forth", || {
        let ended = bench.run(["rollback", &format!("vm.cow@s{}", 1 + done % 2)]);
        assert!(ended.code == 0 || ended.code == 75, "{ended:?}");
        done += u64::from(ended.code == 0);
        done >= 10 && looks.load(Ordering::Relaxed) > 50
    });
    stop.store(true, Ordering::Relaxed);
    let seen = reader.join().unwrap();
    println!("rollbacks: {done} done, looks at the first disk and the second: {} and {}", seen[1], seen[2]);
    daemon.terminate();
    bench.run(["check", "vm.cow", "--data", "--chain"]).expect(0);
}

/// A daemon is killed while it goes back: the disk is what it was, or what it was to be.
#[test]
fn kills_in_the_middle_of_a_rollback() {
    let bench = Bench::new();
    bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow"]);
    fill(&daemon, 1);
    bench.run(["snapshot", "vm.cow@s1"]).expect(0);
    daemon.terminate();
    let mut outcomes = [0; 2];
    for round in 0..12u64 {
        let daemon = bench.serve(["vm.cow"]);
        fill(&daemon, 2);
        let mut command = bench.cowdisk(["rollback", "vm.cow@s1"]);
        let mut running = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        // Not a wait for something: the moment of the kill, spread over what a rollback takes.
        std::thread::sleep(std::time::Duration::from_millis(round * 7));
        daemon.kill();
        let ended = running.wait().unwrap();
        let daemon = bench.serve(["vm.cow"]);
        let found = look(&daemon);
        assert!(
            found == (1, 1) || found == (2, 2) && !ended.success(),
            "round {round}: {found:?}, {ended:?}"
        );
        outcomes[usize::from(found.0) - 1] += 1;
        daemon.terminate();
        // A file that was being made has no content that would tell whose it is.
        let check = bench.run(["--json", "check", "vm.cow", "--data", "--chain"]).json();
        let findings = check["findings"].as_array().unwrap();
        assert!(findings.iter().all(|finding| finding["code"] == "leftover_file"), "{check}");
    }
    println!("kills in rollbacks: {} went back, {} did not", outcomes[0], outcomes[1]);
}

/// What a dry run says of a served disk is what then happens, and it changes nothing.
#[test]
fn dry_runs_of_served_disks() {
    let bench = Bench::new();
    bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow"]);
    fill(&daemon, 1);
    bench.run(["snapshot", "vm.cow@s1"]).expect(0);
    let sealed = || fs::metadata(bench.path("vm@s1.cow")).unwrap().permissions().readonly();
    wait_until("the snapshot is sealed", sealed);
    fill(&daemon, 2);
    let files = || {
        let facts = |name: String| {
            let meta = fs::metadata(bench.path(&name)).unwrap();
            (name, meta.ino(), meta.mode())
        };
        bench.names("").into_iter().map(facts).collect::<Vec<_>>()
    };
    let before = files();
    let cases: [(&[&str], &str); 4] = [
        (&["snapshot", "vm.cow@s2"], "/snapshots/0/path"),
        (&["rollback", "vm.cow@s1"], "/kept/name"),
        (&["rollback", "vm.cow@s1", "--discard"], "/virtual_size"),
        (&["fork", "vm.cow", "a.cow"], "/parent"),
    ];
    for (args, key) in cases {
        let dry = bench.run(args.iter().chain([&"--dry-run", &"--json"])).expect(0).json();
        assert_eq!(files(), before, "{args:?}");
        assert!(dry["dry_run"] == true && dry["bytes_needed"].as_u64().unwrap() > 0, "{dry}");
        if args.contains(&"--discard") {
            assert!(dry["bytes_freed"].as_u64().unwrap() >= 8192 && dry["kept"].is_null(), "{dry}");
            continue;
        }
        if args[0] == "fork" {
            let real = bench.run(args.iter().chain([&"--json"])).expect(0).json();
            assert_eq!(dry.pointer(key), real.pointer(key));
        }
        assert!(dry.pointer(key).unwrap().is_string(), "{dry}");
    }
    let mut client = daemon.connect();
    let before = files();
    for args in [["rollback", "vm.cow@s1"], ["rollback", "vm.cow@none"], ["snapshot", "vm.cow@s1"]] {
        let dry = bench.run(args.iter().chain([&"--dry-run"]));
        let real = bench.run(args);
        assert_ne!(real.code, 0, "{args:?}");
        assert_eq!((dry.code, dry.stderr), (real.code, real.stderr), "{args:?}");
    }
    assert_eq!(files(), before);
    assert_eq!(shown(&mut client), (2, 2));
    drop(client);
    daemon.terminate();
}
