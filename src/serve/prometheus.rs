//! The state of served images in Prometheus' text format (version 0.0.4), for a text-file collector.

use std::fmt::Write;

use super::latency::Latency;
use super::status::{ByKind, ImageStatus, State};

/// What a label value or a number is taken from.
type Samples = Vec<(String, String)>;

/// All metrics of `images`.
pub fn prometheus(images: &[ImageStatus]) -> String {
    let mut text = String::new();
    let count = images.len().to_string();
    family(
        &mut text,
        ("cowdisk_images", "gauge", "Images that are served or wait for a daemon."),
        vec![(String::new(), count)],
    );
    for (name, kind, help, samples) in FAMILIES {
        let all: Samples = images.iter().flat_map(samples).collect();
        if !all.is_empty() {
            family(
                &mut text,
                (name, kind, help),
                all.into_iter().map(|(l, v)| (format!("{{{l}}}"), v)).collect(),
            );
        }
    }
    histograms(&mut text, images);
    text
}

type Family = (&'static str, &'static str, &'static str, fn(&ImageStatus) -> Samples);

const FAMILIES: [Family; 20] = [
    ("cowdisk_info", "gauge", "What is served, and how.", |i| {
        let mode =
            serde_json::to_value(i.mode).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let more = [("name", &i.name), ("disk_id", &i.disk_id), ("frontend", &i.frontend), ("mode", &mode)];
        let more = more.map(|(key, value)| format!(",{}", label(key, value))).concat();
        vec![(labels(i) + &more, "1".into())]
    }),
    ("cowdisk_state", "gauge", "1 for the state that the image is in.", |i| {
        [State::Ok, State::Full, State::Poisoned, State::Waiting]
            .map(|state| (with(i, "state", state.name()), u8::from(i.state == state).to_string()))
            .into()
    }),
    ("cowdisk_uptime_seconds", "gauge", "Time since the daemon was ready.", |i| one(i, i.seconds)),
    ("cowdisk_virtual_size_bytes", "gauge", "Size of the disk.", |i| one(i, i.virtual_size)),
    ("cowdisk_layers", "gauge", "Layers in the chain.", |i| one(i, i.layers)),
    ("cowdisk_requests_total", "counter", "Requests ended.", |i| by_kind(i, i.requests)),
    ("cowdisk_request_bytes_total", "counter", "Bytes of requests.", |i| by_kind(i, i.bytes)),
    ("cowdisk_request_errors_total", "counter", "Requests that failed.", |i| by_kind(i, i.failed)),
    ("cowdisk_requests_running", "gauge", "Requests that run now.", |i| one(i, i.running)),
    ("cowdisk_jobs", "gauge", "Long-running work, 1 for each.", |i| {
        i.jobs.iter().map(|job| (with(i, "job", &job.job), "1".into())).collect()
    }),
    ("cowdisk_journal_size_bytes", "gauge", "Size of the journal ring.", |i| {
        one(i, i.journal.map(|j| j.size_bytes))
    }),
    ("cowdisk_journal_used_bytes", "gauge", "Journal ring in use.", |i| {
        one(i, i.journal.map(|j| j.used_bytes))
    }),
    ("cowdisk_pending_blocks", "gauge", "Blocks changed since the last checkpoint.", |i| {
        one(i, i.pending_blocks)
    }),
    ("cowdisk_cache_budget_bytes", "gauge", "What the caches may hold.", |i| {
        one(i, i.caches.map(|c| c.budget_bytes))
    }),
    ("cowdisk_cache_bytes", "gauge", "What the caches hold.", |i| {
        let of = |c: super::status::CacheStatus| [("node", c.node_bytes), ("span", c.span_bytes)];
        let both = i.caches.map(of).into_iter().flatten();
        both.map(|(name, bytes)| (with(i, "cache", name), bytes.to_string())).collect()
    }),
    ("cowdisk_file_bytes", "gauge", "Block area of the head's file.", |i| {
        one(i, i.space.map(|s| s.file_bytes))
    }),
    ("cowdisk_free_bytes", "gauge", "Free in it, and allocated on the host.", |i| {
        one(i, i.space.map(|s| s.free_bytes))
    }),
    ("cowdisk_punched_bytes", "gauge", "Free in it, and given back to the host.", |i| {
        one(i, i.space.map(|s| s.punched_bytes))
    }),
    ("cowdisk_limbo_bytes", "gauge", "Freed in it, and not yet usable.", |i| {
        one(i, i.space.map(|s| s.limbo_bytes))
    }),
    ("cowdisk_host_full", "gauge", "1 if the host had no space for the image.", |i| {
        one(i, i.space.map(|s| u64::from(s.full)))
    }),
];

fn family(text: &mut String, (name, kind, help): (&str, &str, &str), samples: Samples) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

fn histograms(text: &mut String, images: &[ImageStatus]) {
    const NAME: &str = "cowdisk_request_duration_seconds";
    let measured: Vec<_> = images.iter().filter_map(|i| Some((i, i.latencies.as_ref()?))).collect();
    if measured.is_empty() {
        return;
    }
    let _ = writeln!(text, "# HELP {NAME} Time of requests in the daemon.\n# TYPE {NAME} histogram");
    for (image, l) in measured {
        let kinds = [
            ("read", &l.read),
            ("write", &l.write),
            ("flush", &l.flush),
            ("discard", &l.discard),
            ("write_zeroes", &l.write_zeroes),
        ];
        for (operation, latency) in kinds {
            let labels = with(image, "operation", operation);
            let mut below = 0;
            for (bound, bucket) in Latency::bounds_ns().zip(&latency.buckets) {
                below += bucket;
                let _ = writeln!(text, "{NAME}_bucket{{{labels},le=\"{}\"}} {below}", seconds(bound));
            }
            let _ = writeln!(text, "{NAME}_bucket{{{labels},le=\"+Inf\"}} {}", latency.count);
            let _ = writeln!(text, "{NAME}_sum{{{labels}}} {}", seconds(latency.sum_ns));
            let _ = writeln!(text, "{NAME}_count{{{labels}}} {}", latency.count);
        }
    }
}

/// Nanoseconds as seconds, without the noise of floating point.
fn seconds(ns: u64) -> String {
    let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What tells one served image from another: readers of one image differ in their devices.
fn labels(image: &ImageStatus) -> String {
    format!("{},{}", label("image", &image.path), label("device", &image.device))
}

fn with(image: &ImageStatus, key: &str, value: &str) -> String {
    format!("{},{}", labels(image), label(key, value))
}

fn label(key: &str, value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{key}=\"{escaped}\"")
}

fn one(image: &ImageStatus, value: Option<u64>) -> Samples {
    value.map(|value| (labels(image), value.to_string())).into_iter().collect()
}

fn by_kind(image: &ImageStatus, counts: Option<ByKind>) -> Samples {
    let Some(c) = counts else { return Vec::new() };
    [
        ("read", c.read),
        ("write", c.write),
        ("flush", c.flush),
        ("discard", c.discard),
        ("write_zeroes", c.write_zeroes),
    ]
    .map(|(operation, count)| (with(image, "operation", operation), count.to_string()))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_seconds_are_exact() {
        assert_eq!(label("image", "/a\"b\\c\nd"), r#"image="/a\"b\\c\nd""#);
        assert_eq!(seconds(1024), "0.000001024");
        assert_eq!(seconds(1_500_000_000), "1.5");
        assert_eq!((seconds(0), seconds(10_000_000_000)), ("0".into(), "10".into()));
    }

    #[test]
    fn nothing_served_is_a_number_too() {
        let text = prometheus(&[]);
        assert!(text.ends_with("\ncowdisk_images 0\n") && text.lines().count() == 3, "{text}");
    }
}
