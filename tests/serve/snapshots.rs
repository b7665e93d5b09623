//! Snapshots of images that are being served: taken under load, exact, at one instant, or not at all.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::bench::Bench;
use crate::client::write;
use crate::load::{BLOCKS, Load, Log, stamp};
use crate::wait_until;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

#[test]
fn snapshots_under_load_are_exact_and_survive_kills() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let (log, connections) = (Arc::new(Log::default()), 3);
    let mut taken = Vec::new();
    for round in 0..3 {
        let daemon = bench.serve(["vm.cow", "--queues", "2"]);
        let load = Load::start(&daemon, &log, connections, round);
        for i in 0..8 {
            let name = format!("vm.cow@r{round}s{i}");
            let begin = log.now();
            let ended = bench.run(["snapshot", &name]).expect(0);
            taken.push((name, begin, log.now()));
            assert_eq!(ended.stdout, format!("vm@r{round}s{i}.cow\n"), "{ended:?}");
            let written = log.writes.lock().unwrap().len();
            wait_until("the load goes on", || log.writes.lock().unwrap().len() > written + 100);
        }
        // The image is found by its path, under which there is another file by now.
        assert_eq!(bench.status(&image)["layers"], 1 + 8 * (round + 1));
        daemon.kill();
        load.end();
    }
    bench.run(["check", "vm.cow", "--data", "--chain"]).expect(3);
    assert!(bench.serve(["vm.cow"]).terminate().stderr.contains("it was not closed"));
    bench.run(["check", "vm.cow", "--data", "--chain"]).expect(0);
    for (name, begin, end) in &taken {
        let bytes = bench.content(name, connections * BLOCKS);
        log.judge(name, &bytes, *begin, *end);
    }
    let now = log.now();
    log.judge("the disk", &bench.content("vm.cow", connections * BLOCKS), now, now);
    assert_eq!(taken.len(), 24);
}

#[test]
fn several_images_are_cut_at_one_instant() {
    let bench = Bench::new();
    for name in ["a.cow", "b.cow", "c.cow"] {
        bench.image(name, 16 * MIB);
    }
    let daemons = [bench.serve(["a.cow"]), bench.serve(["b.cow"])];
    let (mut a, mut b) = (daemons[0].connect(), daemons[1].connect());
    let stop = Arc::new(AtomicBool::new(false));
    let until = stop.clone();
    // Each number is on the first disk before it goes to the second one.
    let writer = std::thread::spawn(move || {
        let mut number = 0;
        while !until.load(Ordering::Relaxed) {
            number += 1;
            for client in [&mut a, &mut b] {
                assert_eq!(client.call(&write(0, 0, &stamp(0, number), number)), 0);
            }
        }
        number
    });
    for i in 0..10 {
        let names = [format!("a.cow@s{i}"), format!("b.cow@s{i}"), format!("c.cow@s{i}")];
        let ended = bench.run(["snapshot", &names[0], &names[1], &names[2]]).expect(0);
        assert_eq!(ended.stdout, format!("a@s{i}.cow\nb@s{i}.cow\nc@s{i}.cow\n"));
    }
    stop.store(true, Ordering::Relaxed);
    let last = writer.join().unwrap();
    daemons.into_iter().for_each(|daemon| drop(daemon.terminate()));
    let mut before = 0;
    for i in 0..10 {
        let number = |image: &str| {
            let bytes = bench.content(&format!("{image}.cow@s{i}"), 1);
            u64::from_le_bytes(bytes[..8].try_into().unwrap())
        };
        let (a, b) = (number("a"), number("b"));
        assert!(b <= a && a <= b + 1, "snapshot {i}: {a} on one disk, {b} on the other");
        assert!(before <= a && a <= last);
        before = a;
        assert_eq!(number("c"), 0);
    }
}

#[test]
fn what_cannot_be_taken_leaves_everything_as_it_was() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 16 * MIB);
    bench.image("other.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow"]);
    let mut client = daemon.connect();
    let mut written = 0;
    let mut goes_on = || {
        written += 1;
        assert_eq!(client.call(&write(0, 0, &stamp(0, written), written)), 0);
    };
    goes_on();
    bench.run(["snapshot", "vm.cow@s1"]).expect(0);
    let ended = bench.run(["--json", "snapshot", "vm.cow@s1"]).expect(1);
    assert!(ended.stderr.contains("\"exists\"") && ended.stderr.contains("vm@s1.cow"), "{ended:?}");
    goes_on();
    // None of several is taken if one cannot be.
    bench.run(["snapshot", "other.cow@s2", "vm.cow@s1"]).expect(1);
    bench.run(["snapshot", "vm.cow@s3", "missing.cow@s3"]).expect(1);
    goes_on();
    // Somebody moves the image away while it is served.
    std::fs::rename(&image, bench.path("moved.cow")).unwrap();
    std::fs::copy(bench.path("other.cow"), &image).unwrap();
    let ended = bench.run(["--json", "snapshot", "vm.cow@s4"]);
    assert_ne!(ended.code, 0, "{ended:?}");
    std::fs::rename(bench.path("moved.cow"), &image).unwrap();
    goes_on();
    bench.run(["snapshot", "vm.cow@s5"]).expect(0);
    goes_on();
    let names = bench.names("");
    assert_eq!(names, ["other.cow", "run", "vm.cow", "vm@s1.cow", "vm@s5.cow"]);
    let temporary = bench.serve(["other.cow", "--temporary"]);
    bench.run(["snapshot", "other.cow@t"]).expect(75);
    drop(temporary.terminate());
    drop(daemon.terminate());
    for (name, number) in [("vm.cow@s1", 1), ("vm.cow@s5", 4), ("vm.cow", 5)] {
        assert_eq!(bench.content(name, 1), stamp(0, number), "{name}");
    }
}

/// A client of the control socket.
struct Talk(UnixStream);

impl Talk {
    fn new(bench: &Bench, image: &Path) -> Talk {
        let names = bench.names("run");
        let socket = names.iter().find(|name| name.ends_with(".sock")).unwrap();
        assert!(image.exists());
        let stream = UnixStream::connect(bench.path("run").join(socket)).unwrap();
        stream.set_read_timeout(Some(crate::PATIENCE)).unwrap();
        Talk(stream)
    }

    fn call(&mut self, request: &Value) -> Value {
        self.0.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(&self.0).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }
}

#[test]
fn a_client_that_goes_away_leaves_no_snapshot_and_no_held_disk() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow"]);
    let mut client = daemon.connect();
    assert_eq!(client.call(&write(0, 0, &stamp(0, 1), 1)), 0);
    let snapshot = json!({ "v": 1, "command": "snapshot", "name": "s1" });
    let (hold, cut) = (json!({ "v": 1, "command": "hold" }), json!({ "v": 1, "command": "cut" }));
    for held in [false, true] {
        let mut talk = Talk::new(&bench, &image);
        assert_eq!(talk.call(&snapshot)["prepared"], true);
        assert!(bench.path("vm@s1.cow").exists());
        if held {
            assert_eq!(talk.call(&hold)["held"], true);
        }
        drop(talk);
        // It waits only as long as the daemon needs to notice.
        assert_eq!(client.call(&write(0, 0, &stamp(0, 2), 2)), 0);
        wait_until("the names are put back", || !bench.path("vm@s1.cow").exists());
        assert_eq!(bench.names(""), ["run", "vm.cow"]);
    }
    // Steps in a wrong order, and a name that is none.
    let mut talk = Talk::new(&bench, &image);
    for wrong in [&hold, &cut, &json!({ "v": 1, "command": "snapshot", "name": "a/b" })] {
        assert!(talk.call(wrong)["error"]["code"].is_string(), "{wrong}");
    }
    // A daemon that ends gives a snapshot up that is not cut.
    assert_eq!(talk.call(&snapshot)["prepared"], true);
    daemon.terminate();
    assert_eq!(bench.names(""), ["run", "vm.cow"]);
    assert_eq!(bench.content("vm.cow", 1), stamp(0, 2));
}

#[test]
fn a_copy_of_a_disk_whose_snapshot_was_broken_off_is_a_disk() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow"]);
    let mut client = daemon.connect();
    assert_eq!(client.call(&write(0, 0, &stamp(0, 1), 1)), 0);
    let mut talk = Talk::new(&bench, &image);
    assert_eq!(talk.call(&json!({ "v": 1, "command": "snapshot", "name": "s1" }))["prepared"], true);
    // The head's name is that of the new head already, and what is written goes to the old one.
    assert_eq!(client.call(&write(0, 0, &stamp(0, 2), 2)), 0);
    daemon.kill();
    std::fs::create_dir(bench.path("copy")).unwrap();
    for name in ["vm.cow", "vm@s1.cow"] {
        std::fs::copy(bench.path(name), bench.path("copy").join(name)).unwrap();
    }
    for name in ["copy/vm.cow", "vm.cow"] {
        let daemon = bench.serve([name]);
        assert_eq!(daemon.connect().read(0, BLOCK as u32), stamp(0, 2), "{name}");
        daemon.terminate();
        bench.run(["check", name, "--data", "--chain"]).expect(0);
    }
}

#[test]
fn a_served_disk_is_forked_and_both_go_on() {
    let bench = Bench::new();
    bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow"]);
    let mut client = daemon.connect();
    let mut put = |number: u64| assert_eq!(client.call(&write(0, 0, &stamp(0, number), number)), 0);
    put(1);
    let fork = |new: &str| bench.run(["--json", "fork", "vm.cow", new]).expect(0).json();
    let first = fork("a.cow");
    assert_eq!(
        (&first["snapshot_taken"], first["parent"].as_str()),
        (&true.into(), Some("vm@fork-1.cow")),
        "{first}"
    );
    let again = fork("b.cow");
    assert_eq!((&again["snapshot_taken"], &again["parent"]), (&false.into(), &first["parent"]));
    put(2);
    assert_eq!(fork("c.cow")["parent"].as_str(), Some("vm@fork-2.cow"));
    let forks = ["a.cow", "b.cow", "c.cow"].map(|name| (name, bench.serve([name])));
    for (number, (_, daemon)) in (3..).zip(&forks) {
        let mut client = daemon.connect();
        let begun = if number == 5 { 2 } else { 1 };
        assert_eq!(client.read(0, BLOCK as u32), stamp(0, begun));
        assert_eq!(client.call(&write(0, 0, &stamp(0, number), number)), 0);
    }
    put(6);
    forks.into_iter().for_each(|(_, daemon)| drop(daemon.terminate()));
    daemon.terminate();
    for (name, number) in [("a.cow", 3), ("b.cow", 4), ("c.cow", 5), ("vm.cow", 6), ("vm.cow@fork-2", 2)] {
        assert_eq!(bench.content(name, 1), stamp(0, number), "{name}");
        bench.run(["check", name, "--data", "--chain"]).expect(0);
    }
}
