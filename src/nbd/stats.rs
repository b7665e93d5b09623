//! Counters of a server, for `status`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::protocol::Command;

/// What clients asked for since the server started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// READ.
    pub read: OpStats,
    /// WRITE.
    pub write: OpStats,
    /// FLUSH.
    pub flush: OpStats,
    /// TRIM.
    pub trim: OpStats,
    /// WRITE_ZEROES.
    pub write_zeroes: OpStats,
    /// Unknown commands; all of them are errors.
    pub unknown: OpStats,
    /// Connections accepted and served.
    pub connections: u64,
    /// Connections closed at once because there were too many.
    pub rejected: u64,
    /// Connections closed because the client broke the protocol.
    pub violations: u64,
}

/// One kind of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpStats {
    /// Requests that were answered, well or not.
    pub requests: u64,
    /// Bytes of the successful ones.
    pub bytes: u64,
    /// Requests answered with an error.
    pub errors: u64,
}

#[derive(Debug, Default)]
struct OpCounters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl OpCounters {
    fn add_to(&self, sum: &mut OpStats) {
        sum.requests += self.requests.load(Relaxed);
        sum.bytes += self.bytes.load(Relaxed);
        sum.errors += self.errors.load(Relaxed);
    }
}

/// The counters of one queue's thread: several threads do not write to the same cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    ops: [OpCounters; 6],
    pub(super) connections: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) violations: AtomicU64,
}

impl Counters {
    /// One answered request of `bytes` bytes.
    pub(super) fn answered(&self, command: Command, bytes: u32, failed: bool) {
        let op = &self.ops[match command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Flush => 2,
            Command::Trim => 3,
            Command::WriteZeroes => 4,
            Command::Disconnect | Command::Unknown(_) => 5,
        }];
        op.requests.fetch_add(1, Relaxed);
        if failed {
            op.errors.fetch_add(1, Relaxed);
        } else {
            op.bytes.fetch_add(u64::from(bytes), Relaxed);
        }
    }

    /// Adds these counters to `sum`.
    pub fn add_to(&self, sum: &mut Stats) {
        let [read, write, flush, trim, write_zeroes, unknown] = &self.ops;
        read.add_to(&mut sum.read);
        write.add_to(&mut sum.write);
        flush.add_to(&mut sum.flush);
        trim.add_to(&mut sum.trim);
        write_zeroes.add_to(&mut sum.write_zeroes);
        unknown.add_to(&mut sum.unknown);
        sum.connections += self.connections.load(Relaxed);
        sum.rejected += self.rejected.load(Relaxed);
        sum.violations += self.violations.load(Relaxed);
    }
}
