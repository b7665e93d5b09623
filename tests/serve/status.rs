//! `status`: times, errors with what to do, and Prometheus' format.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use cowdisk::nbd::protocol::{Command, error};
use serde_json::Value;

use crate::bench::Bench;
use crate::client::{request, write};

const MIB: u64 = 1 << 20;
const KINDS: [&str; 5] = ["read", "write", "flush", "discard", "write_zeroes"];

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn each_request_is_timed_once() {
    let bench = Bench::new();
    bench.image("vm.cow", 64 * MIB);
    let daemon = bench.serve(["vm.cow", "--queues", "2"]);
    for connection in 0..3 {
        let mut client = daemon.connect();
        for i in 0..10 {
            assert_eq!(client.call(&write(0, i * 4096, &[1; 4096], i)), 0);
            client.read(i * 4096, 4096);
        }
        assert_eq!(client.call(&request(Command::Flush, 0, 0, 0, connection)), 0);
        assert_eq!(client.call(&request(Command::Trim, 0, 0, 4096, connection)), 0);
        assert_eq!(client.call(&request(Command::WriteZeroes, 0, 0, 4096, connection)), 0);
        client.disconnect();
    }
    let status = bench.status("vm.cow");
    for kind in KINDS {
        let latency = &status["latencies"][kind];
        assert_eq!(latency["count"], status["requests"][kind], "{kind}");
        let buckets: Vec<u64> = latency["buckets"].as_array().unwrap().iter().map(number).collect();
        assert_eq!(buckets.iter().sum::<u64>(), number(&latency["count"]), "{kind}");
        let quantiles = ["p50_us", "p99_us", "p999_us"].map(|key| number(&latency[key]));
        assert!(quantiles[0] > 0 && quantiles.is_sorted() && number(&latency["sum_ns"]) > 0, "{latency}");
    }
    assert_eq!((&status["latencies"]["write"]["count"], &status["running"]), (&30.into(), &0.into()));
    let people = bench.run(["status"]).expect(0).stdout;
    assert!(people.contains("  writes p50 ") && people.contains("  flushes p50 "), "{people}");
    daemon.terminate();
}

#[test]
fn an_error_names_the_range_of_the_disk_and_what_to_do() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 64 * MIB);
    let daemon = bench.serve(["vm.cow"]);
    let pattern = [0xa5; 4096];
    assert_eq!(daemon.connect().call(&write(0, 5 * 4096, &pattern, 1)), 0);
    daemon.terminate();
    let bytes = fs::read(&image).unwrap();
    let at = bytes.chunks_exact(4096).position(|block| block == pattern).unwrap();
    File::options().write(true).open(&image).unwrap().write_all_at(b"damage", at as u64 * 4096).unwrap();

    let daemon = bench.serve(["vm.cow"]);
    let mut client = daemon.connect();
    assert_eq!(client.read(0, 4096), [0; 4096]);
    bench.run(["status", "vm.cow"]).expect(0);
    assert_eq!(client.call(&request(Command::Read, 0, 4 * 4096, 8192, 1)), error::EIO);
    let status = bench.run(["status", "vm.cow", "--json"]).expect(2).json();
    let image = &status["images"][0];
    let found = &image["errors"][0];
    assert_eq!((image["state"].as_str(), found["code"].as_str()), (Some("ok"), Some("corrupt")));
    assert_eq!(
        (&found["operation"], number(&found["start"]), number(&found["length"])),
        (&"read".into(), 16384, 8192)
    );
    let hint = found["hint"].as_str().unwrap();
    assert!(hint.starts_with("cowdisk check --data '"), "{hint}");
    let people = bench.run(["status", "vm.cow"]).expect(2).stdout;
    assert!(people.contains("error: read of bytes 16384-24575: "), "{people}");
    assert!(people.contains(&format!("    try: {hint}\n")), "{people}");
    daemon.terminate();
}

/// Samples by name with labels, after the rules of the format were checked.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'));
    let (mut samples, mut families) = (BTreeMap::new(), BTreeSet::new());
    let (mut family, mut kind) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(families.insert(name.to_owned()) && !help.is_empty(), "{name} twice");
            family = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap();
            assert!(name == family && ["gauge", "counter", "histogram"].contains(&of), "{line}");
            kind = of.to_owned();
        } else {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} in {family}"));
            let allowed: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(allowed.contains(&suffix) && name.ends_with("_total") == (kind == "counter"), "{line}");
            assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{line} twice");
        }
    }
    samples
}

#[test]
fn prometheus_gets_what_it_can_read() {
    let bench = Bench::new();
    assert_eq!(parse(&bench.run(["status", "--prometheus"]).expect(0).stdout)["cowdisk_images"], 0.0);
    let odd = bench.image("a \"b\\c.cow", 64 * MIB);
    let second = bench.image("second.cow", 64 * MIB);
    let first = bench.serve([&odd]);
    let others = [bench.serve(["second.cow", "--read-only"]), bench.serve(["second.cow", "--read-only"])];
    let mut client = first.connect();
    for i in 0..20 {
        assert_eq!(client.call(&write(0, i * 4096, &[1; 4096], i)), 0);
    }
    let samples = parse(&bench.run(["status", "--prometheus"]).expect(0).stdout);
    assert_eq!(samples["cowdisk_images"], 3.0);
    let escaped = odd.to_str().unwrap().replace('\\', "\\\\").replace('"', "\\\"");
    let labels = format!("image=\"{escaped}\",device=\"{}\"", first.uri);
    let sample = |name: &str, more: &str| samples[&format!("{name}{{{labels}{more}}}")];
    let write = ",operation=\"write\"";
    assert_eq!(sample("cowdisk_requests_total", write), 20.0);
    assert_eq!(sample("cowdisk_request_bytes_total", write), 81920.0);
    assert_eq!(sample("cowdisk_state", ",state=\"ok\""), 1.0);
    assert_eq!(sample("cowdisk_state", ",state=\"waiting\""), 0.0);

    let histogram = "cowdisk_request_duration_seconds";
    let prefix = format!("{histogram}_bucket{{{labels}{write},le=\"");
    let mut buckets: Vec<(f64, f64)> = samples
        .iter()
        .filter_map(|(name, &count)| Some((name.strip_prefix(&prefix)?, count)))
        .map(|(le, count)| (le.trim_end_matches("\"}").parse().unwrap(), count))
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(buckets.is_sorted_by_key(|bucket| bucket.1), "{buckets:?}");
    assert_eq!(buckets.last(), Some(&(f64::INFINITY, 20.0)));
    assert_eq!(sample(&format!("{histogram}_count"), write), 20.0);
    let sum = sample(&format!("{histogram}_sum"), write);
    let enough = buckets.iter().find(|bucket| bucket.1 == 20.0).unwrap().0;
    assert!(sum > 0.0 && sum <= enough * 20.0, "{sum} and {buckets:?}");

    let readers =
        samples.keys().filter(|name| name.starts_with("cowdisk_layers{") && name.contains("second.cow"));
    assert_eq!(readers.count(), 2, "two daemons of {second:?}");
    let one = parse(&bench.run(["status", &first.uri, "--prometheus"]).expect(0).stdout);
    assert_eq!(one["cowdisk_images"], 1.0);
    bench.run(["status", "missing.cow", "--prometheus"]).expect(1);
    bench.run(["status", "--prometheus", "--json"]).expect(64);
    first.terminate();
    for other in others {
        other.terminate();
    }
}
