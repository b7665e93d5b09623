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
    ];
    for (args, fragment) in cases {
        run(dir.path(), ["bench", "vm.cow"].iter().chain(*args)).fails(64, fragment);
    }
    assert_eq!(content_of(dir.path()), before);
}
