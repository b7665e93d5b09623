//! What `status` says of a served image.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::latency::Latencies;
use super::registry::Entry;
use crate::Kind;
use crate::chain::{Failure, Image, OpCounts};
use crate::layer::HeadStats;
use crate::storage::uring::Uring;
use crate::units::BLOCK;

/// How an image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All well.
    Ok,
    /// The host has no space left: writes fail with ENOSPC, or soon will.
    Full,
    /// A write or sync of metadata failed: nothing is written any more, reads go on.
    Poisoned,
    /// No daemon serves it, and its device holds (or, if so wished, fails) all requests until the next one does.
    Waiting,
}

impl State {
    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Full => "full",
            State::Poisoned => "poisoned",
            State::Waiting => "waiting",
        }
    }
}

/// Counts by kind of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ByKind {
    /// Reads.
    pub read: u64,
    /// Writes.
    pub write: u64,
    /// Flushes.
    pub flush: u64,
    /// Discards.
    pub discard: u64,
    /// Write-zeroes.
    pub write_zeroes: u64,
}

/// An error that a request or a background task met.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// What kind of error it is, as the `code` of errors in JSON.
    pub code: Option<String>,
    /// The request that failed: `read`, `write`, `flush`, `discard` or `write_zeroes`.
    pub operation: Option<String>,
    /// Its first byte on the disk.
    pub start: Option<u64>,
    /// Its length in bytes.
    pub length: Option<u64>,
    /// What happened, and where.
    pub message: String,
    /// What to do about it, where something can be done.
    pub hint: Option<String>,
}

impl Trouble {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Trouble {
        Trouble {
            code: None,
            operation: None,
            start: None,
            length: None,
            message: message.into(),
            hint: Some(hint.into()),
        }
    }

    /// A failed request of the image `path`.
    fn of(failure: &Failure, path: &str) -> Trouble {
        let place = failure.place.filter(|place| place.length > 0);
        Trouble {
            code: Some(failure.kind.code().into()),
            operation: failure.place.map(|place| place.operation.into()),
            start: place.map(|place| place.start),
            length: place.map(|place| place.length),
            message: failure.message.clone(),
            hint: remedy(failure.kind, path),
        }
    }
}

/// What to do about an error of this kind.
fn remedy(kind: Kind, path: &str) -> Option<String> {
    match kind {
        Kind::Corrupt => Some(format!("cowdisk check --data '{path}'")),
        Kind::NoSpace => Some("make room on the filesystem of the image".into()),
        Kind::Io => Some("look for errors of the storage below the image in the kernel's log".into()),
        Kind::Poisoned => Some("look after the storage below the image, then stop and serve it again".into()),
        _ => None,
    }
}

/// The journal ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// The same in percent.
    pub fill_percent: u64,
    /// Newest record number acknowledged.
    pub acked: u64,
    /// Newest record number known durable.
    pub durable: u64,
}

/// The caches, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CacheStatus {
    /// What they may hold together.
    pub budget_bytes: u64,
    /// Tree nodes.
    pub node_bytes: u64,
    /// Resolved spans.
    pub span_bytes: u64,
}

/// The space of the writable layer, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SpaceStatus {
    /// The block area below the high-water mark.
    pub file_bytes: u64,
    /// Free, and still allocated on the host.
    pub free_bytes: u64,
    /// Free, and given back to the host.
    pub punched_bytes: u64,
    /// Freed, and waiting for the reuse rule.
    pub limbo_bytes: u64,
    /// The free space of earlier sessions is known.
    pub holes_known: bool,
    /// The host had no space at the last try to grow.
    pub full: bool,
}

/// A served image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ImageStatus {
    /// The image, without symbolic links.
    pub path: String,
    /// Identity of the disk.
    pub disk_id: String,
    /// Its name.
    pub name: String,
    /// `write`, `read_only` or `temporary`.
    pub mode: super::Mode,
    /// The daemon; `None`: there is none.
    pub pid: Option<u32>,
    /// The daemon's host.
    pub host: String,
    /// `ublk` or `nbd`.
    pub frontend: String,
    /// `/dev/ublkbN`, or the URI of the NBD server.
    pub device: String,
    /// How it is.
    pub state: State,
    /// Why it is not `ok`.
    pub reason: Option<Trouble>,
    /// Size of the disk in bytes.
    pub virtual_size: Option<u64>,
    /// Seconds since the daemon was ready.
    pub seconds: Option<u64>,
    /// Requests since then.
    pub requests: Option<ByKind>,
    /// Bytes of these.
    pub bytes: Option<ByKind>,
    /// Those of them that failed.
    pub failed: Option<ByKind>,
    /// Requests that run now.
    #[serde(default)]
    pub running: Option<u64>,
    /// Reads and writes whose data went by without being copied.
    #[serde(default)]
    pub zero_copy: Option<u64>,
    /// How long requests took.
    #[serde(default)]
    pub latencies: Option<Latencies>,
    /// The last errors, oldest first.
    pub errors: Vec<Trouble>,
    /// Long-running work.
    pub jobs: Vec<Job>,
    /// The daemon's log file.
    pub log: Option<String>,
    /// The journal of the writable layer.
    pub journal: Option<JournalStatus>,
    /// Blocks changed since the last checkpoint.
    pub pending_blocks: Option<u64>,
    /// The caches.
    pub caches: Option<CacheStatus>,
    /// The space of the writable layer.
    pub space: Option<SpaceStatus>,
    /// Layers in the chain.
    pub layers: Option<u64>,
    /// The foreign base.
    pub base: Option<String>,
}

/// Long-running work in a daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Job {
    /// What it is.
    pub job: String,
}

impl ImageStatus {
    /// What is known of an image without asking its daemon.
    pub(super) fn of_entry(entry: &Entry, state: State) -> ImageStatus {
        ImageStatus {
            path: entry.path.clone(),
            disk_id: entry.disk_id.clone(),
            name: entry.name.clone(),
            mode: entry.mode,
            pid: (state != State::Waiting).then_some(entry.pid),
            host: entry.host.clone(),
            frontend: entry.frontend.clone(),
            device: entry.place.clone(),
            state,
            reason: None,
            virtual_size: None,
            seconds: None,
            requests: None,
            bytes: None,
            failed: None,
            running: None,
            zero_copy: None,
            latencies: None,
            errors: Vec::new(),
            jobs: Vec::new(),
            log: entry.log.as_ref().map(|log| log.to_string_lossy().into_owned()),
            journal: None,
            pending_blocks: None,
            caches: None,
            space: None,
            layers: None,
            base: None,
        }
    }

    /// True if something needs a human: a state, or damage that was found.
    pub fn needs_attention(&self) -> bool {
        let damaged = |error: &Trouble| error.code.as_deref() == Some(Kind::Corrupt.code());
        self.state != State::Ok || self.errors.iter().any(damaged)
    }

    /// An image whose device waits; `fails`: not so its requests.
    pub(super) fn waiting(entry: &Entry, fails: bool) -> ImageStatus {
        let what = if fails { "fails" } else { "holds" };
        let message = format!("no daemon serves it; its device {what} all requests until one does");
        let reason = Trouble::new(message, format!("cowdisk serve '{}'", entry.path));
        ImageStatus { reason: Some(reason), ..ImageStatus::of_entry(entry, State::Waiting) }
    }

    /// An open image, as its daemon sees it.
    pub(super) fn of_image(
        entry: &Entry,
        image: &Arc<Image<Uring>>,
        cache_bytes: u64,
        seconds: u64,
    ) -> ImageStatus {
        let counters = &image.counters;
        let sum = |of: fn(&OpCounts) -> u64| ByKind {
            read: of(&counters.read),
            write: of(&counters.write),
            flush: of(&counters.flush),
            discard: of(&counters.discard),
            write_zeroes: of(&counters.zero),
        };
        let chain = image.chain();
        let head = chain.head.as_ref().map(|head| head.stats());
        let (state, reason) = judge(image, head.as_ref());
        let (node_bytes, span_bytes) = image.cache_bytes();
        let walking = head.is_some_and(|stats| !stats.space.holes_known);
        let jobs = [(walking, "find_free_space"), (chain.sealing.is_some(), "seal_snapshot")];
        let jobs = jobs.into_iter().filter(|(running, _)| *running).map(|(_, job)| Job { job: job.into() });
        ImageStatus {
            reason,
            virtual_size: Some(image.geometry().size),
            seconds: Some(seconds),
            requests: Some(sum(|of| of.requests.load(Ordering::Relaxed))),
            bytes: Some(sum(|of| of.bytes.load(Ordering::Relaxed))),
            failed: Some(sum(|of| of.errors.load(Ordering::Relaxed))),
            zero_copy: Some(counters.unseen.load(Ordering::Relaxed)),
            errors: image.failures().iter().map(|failure| Trouble::of(failure, &entry.path)).collect(),
            jobs: jobs.collect(),
            journal: head.as_ref().map(journal),
            pending_blocks: head.map(|stats| stats.pending as u64),
            caches: Some(CacheStatus { budget_bytes: cache_bytes, node_bytes, span_bytes }),
            space: head.as_ref().map(space),
            layers: Some(chain.layers.len() as u64),
            base: chain.base_path.as_ref().map(|path| path.to_string_lossy().into_owned()),
            ..ImageStatus::of_entry(entry, state)
        }
    }
}

fn judge(image: &Image<Uring>, stats: Option<&HeadStats>) -> (State, Option<Trouble>) {
    let poisoned = image.head().and_then(|head| head.journal.poisoned());
    if let Some(message) = poisoned {
        let hint = "look after the storage below the image, then stop and serve it again";
        return (State::Poisoned, Some(Trouble::new(message, hint)));
    }
    if stats.is_some_and(|stats| stats.space.full) {
        let hint = "make room on its filesystem; nothing else needs to be done";
        return (State::Full, Some(Trouble::new("the host has no space left for the image", hint)));
    }
    (State::Ok, None)
}

fn journal(stats: &HeadStats) -> JournalStatus {
    let journal = &stats.journal;
    JournalStatus {
        size_bytes: journal.ring_blocks as u64 * BLOCK,
        used_bytes: journal.used_blocks as u64 * BLOCK,
        fill_percent: (journal.used_blocks * 100 / journal.ring_blocks.max(1)) as u64,
        acked: journal.acked.0,
        durable: journal.durable.0,
    }
}

fn space(stats: &HeadStats) -> SpaceStatus {
    let space = &stats.space;
    SpaceStatus {
        file_bytes: space.file_blocks * BLOCK,
        free_bytes: space.free_blocks * BLOCK,
        punched_bytes: space.punched_blocks * BLOCK,
        limbo_bytes: space.limbo_blocks * BLOCK,
        holes_known: space.holes_known,
        full: space.full,
    }
}
