//! `bench`

use tempfile::tempdir;

use crate::image::make;
use crate::run::{content_of, keys, run};

#[test]
fn it_counts_what_it_did() {
    let dir = tempdir().unwrap();
    make(dir.path(), "vm.cow");
    let writing = [
        "bench",
        "--json",
        "-w",
        "vm.cow",
        "-c",
        "500",
        "-d",
        "8",
        "--random",
        "1",
        "--flush-interval",
        "50",
    ];
    let result = run(dir.path(), writing).json();
    assert_eq!(keys(&result), ["bytes", "iops", "p50_us", "p999_us", "p99_us", "requests", "seconds"]);
    assert_eq!((&result["requests"], &result["bytes"]), (&500.into(), &(500 * 4096).into()));
    let before = content_of(dir.path());
    let reading =
        ["bench", "--json", "vm.cow", "-c", "300", "-d", "4", "-s", "64k", "-S", "128k", "-o", "4k"];
    assert_eq!(run(dir.path(), reading).json()["bytes"], 300 * 65536);
    assert_eq!(content_of(dir.path()), before, "reading changed something");
    run(dir.path(), ["check", "--data", "vm.cow"]).ok();
}

#[test]
fn wrong_numbers_are_refused() {
    let dir = tempdir().unwrap();
    make(dir.path(), "vm.cow");
    let before = content_of(dir.path());
    let cases: &[(&[&str], &str)] = &[
        (&["-d", "0"], "depth"),
        (&["-d", "100000"], "depth"),
        (&["-c", "0"], "count"),
        (&["-s", "2M"], "size of the disk"),
        (&["-s", "0"], "size 0"),
        (&["-o", "1M"], "within the disk"),
        (&["-s", "100"], "multiple of 512"),
        (&["--flush-interval", "5"], "-w"),
        (&["--no-drain"], "--flush-interval"),
        (&["--queues", "0"], "queues"),
        (&["--queues", "65"], "queues"),
        (&["-c", "3", "--queues", "4"], "queues"),
    ];
    for (args, fragment) in cases {
        run(dir.path(), ["bench", "vm.cow"].iter().chain(*args)).fails(64, fragment);
    }
    assert_eq!(content_of(dir.path()), before);
}

#[test]
fn several_queues_do_the_work_of_one() {
    let dir = tempdir().unwrap();
    make(dir.path(), "vm.cow");
    // 1 MiB: every block once.
    let all = ["bench", "--json", "-w", "vm.cow", "-c", "256", "-d", "4", "-S", "20k", "--queues", "3"];
    let clients = ["--flush-interval", "1", "--no-drain"];
    assert_eq!(run(dir.path(), all.iter().chain(&clients)).json()["requests"], 256);
    let map = run(dir.path(), ["map", "--json", "vm.cow"]).json();
    let data: u64 = map["runs"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| r["state"] == "data")
        .map(|r| r["length"].as_u64().unwrap())
        .sum();
    assert_eq!(data, 1 << 20, "a place was left out, so that another was written twice");
    run(dir.path(), ["check", "--data", "vm.cow"]).ok();
}
