//! Every way in which a daemon ends, but for its death.

use cowdisk::nbd::protocol::Command;
use serde_json::Value;

use crate::bench::{Bench, is_clean};
use crate::client::{request, write};

const MIB: u64 = 1 << 20;

#[test]
fn sigterm_closes_cleanly_and_keeps_what_was_written() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    for signal in ["TERM", "INT", "HUP"] {
        let mut daemon = bench.serve([&image]);
        let mut client = daemon.connect();
        assert_eq!(client.call(&write(0, 4096, signal.repeat(512).as_bytes()[..1024].as_ref(), 1)), 0);
        client.disconnect();
        daemon.signal(signal);
        let ended = daemon.wait().expect(0);
        assert_eq!((ended.stdout, ended.stderr), (String::new(), String::new()));
        assert!(is_clean(&image), "after {signal}");
        assert_eq!(bench.names("run"), ["lock"], "a daemon that ended leaves nothing behind");

        let daemon = bench.serve([&image]);
        let bytes = daemon.connect().read(4096, 1024);
        assert_eq!(&bytes[..signal.len()], signal.as_bytes());
        daemon.terminate();
    }
}

#[test]
fn sigterm_does_not_wait_for_clients_that_stay() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let daemon = bench.serve([&image]);
    let mut client = daemon.connect();
    for i in 0..64 {
        assert_eq!(client.call(&write(0, i * 4096, &[7; 4096], i)), 0);
    }
    daemon.terminate();
    assert!(is_clean(&image));
}

#[test]
fn stop_waits_for_the_last_client_unless_it_is_forced() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let mut daemon = bench.serve([&image]);
    let client = daemon.connect();
    let refused = bench.stop([&image]).expect(75);
    assert!(refused.stderr.contains("a client is connected"), "{refused:?}");
    let json = bench.run(["stop", "vm.cow", "--json"]).expect(75);
    let error: Value = serde_json::from_str(&json.stderr).unwrap();
    assert_eq!(error["error"]["code"], "in_use");
    bench.stop(["vm.cow", "--force"]).expect(0);
    // When stop returns the image is free.
    assert!(is_clean(&image));
    daemon.wait().expect(0);
    drop(client);
    bench.stop(["vm.cow"]).expect(1);

    let mut daemon = bench.serve([&image]);
    let uri = daemon.uri.clone();
    let stopped = bench.run(["stop", &uri, "--json"]).expect(0).json();
    assert_eq!((stopped["device"].as_str(), stopped["waited"].as_bool()), (Some(&*uri), Some(false)));
    daemon.wait().expect(0);
}

#[test]
fn status_tells_what_is_served() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    bench.run(["status", "vm.cow"]).expect(1);
    assert_eq!(bench.run(["status", "--json"]).expect(0).json()["images"], Value::Array(vec![]));
    let missing = bench.run(["status", "none.cow", "--json"]).expect(1);
    assert!(missing.stderr.contains("\"code\":\"not_found\""), "{missing:?}");

    let daemon = bench.serve(["vm.cow", "--name", "my disk", "--cache-size", "8M"]);
    let mut client = daemon.connect();
    assert_eq!(client.call(&write(0, 0, &[1; 8192], 1)), 0);
    assert_eq!(client.read(0, 4096), [1; 4096]);
    assert_eq!(client.call(&request(Command::Flush, 0, 0, 0, 2)), 0);
    assert_eq!(client.call(&request(Command::Trim, 0, 0, 4096, 3)), 0);
    let status = bench.status("vm.cow");
    let text = |key: &str| status[key].as_str().map(str::to_owned);
    assert_eq!(text("path").as_deref(), image.to_str());
    assert_eq!(text("state").as_deref(), Some("ok"));
    assert_eq!(text("mode").as_deref(), Some("write"));
    assert_eq!(text("name").as_deref(), Some("my disk"));
    assert_eq!(text("device").as_deref(), Some(&*daemon.uri));
    assert_eq!(status["pid"], daemon.pid());
    assert_eq!(text("disk_id").map(|id| id.len()), Some(36));
    assert_eq!(status["virtual_size"], 64 * MIB);
    let requests = &status["requests"];
    assert_eq!((&requests["read"], &requests["write"]), (&Value::from(1), &Value::from(1)));
    assert_eq!((&requests["flush"], &requests["discard"]), (&Value::from(1), &Value::from(1)));
    assert_eq!(status["bytes"]["write"], 8192);
    assert_eq!(status["errors"], Value::Array(vec![]));
    assert!(status["jobs"].is_array() && status["log"].is_null());
    assert_eq!(status["caches"]["budget_bytes"], 8 * MIB);
    assert!(status["journal"]["used_bytes"].as_u64().unwrap() > 0);
    for target in [daemon.uri.as_str(), "vm.cow"] {
        let people = bench.run(["status", target]).expect(0).stdout;
        assert!(people.contains("vm.cow  ok  nbd+unix") && people.contains("1 writes (8.0 KiB)"), "{people}");
    }
    daemon.terminate();
    bench.run(["status", "vm.cow"]).expect(1);
}

#[test]
fn a_second_writer_is_told_who_the_first_is() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let daemon = bench.serve([&image]);
    let pid = format!("process {}", daemon.pid());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let link = bench.path("link.cow");
    std::os::unix::fs::symlink("vm.cow", &link).unwrap();
    for args in [&["serve", "vm.cow"][..], &["serve", "link.cow"], &["serve", "vm.cow", "--read-only"]] {
        let refused = bench.run(args).expect(75);
        assert!(refused.stderr.contains(&pid) && refused.stderr.contains(host.trim()), "{refused:?}");
        assert_eq!(refused.stdout, "");
    }
    // The first one did not notice.
    assert_eq!(bench.status("vm.cow")["pid"], daemon.pid());
    assert_eq!(daemon.connect().read(0, 512), [0; 512]);
    daemon.terminate();
}

#[test]
fn bad_usage_is_64_and_touches_nothing() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let before = std::fs::read(&image).unwrap();
    let snapshot = bench.run(["serve", "vm.cow@s1"]).expect(64);
    assert!(snapshot.stderr.contains("try: cowdisk serve --temporary 'vm.cow@s1'"), "{snapshot:?}");
    for args in [
        &["serve"][..],
        &["serve", "vm.cow", "--queues", "0"],
        &["serve", "vm.cow", "--depth", "5000"],
        &["serve", "vm.cow", "--cache-size", "1k"],
        &["serve", "vm.cow", "--cache-size", "x"],
        &["serve", "vm.cow", "--nbd", "vm.sock"],
        &["serve", "vm.cow", "--name", "a/b"],
        &["serve", "vm.cow", "--read-only", "--temporary"],
        &["stop"],
    ] {
        bench.run(args).expect(64);
    }
    assert_eq!(std::fs::read(&image).unwrap(), before);
}
