//! Counters of a device, written by its queue threads and read by anybody.

use std::sync::atomic::{AtomicU64, Ordering};

use super::uapi::op;

/// Requests of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpCounts {
    /// Requests ended.
    pub requests: u64,
    /// Bytes of the requests that succeeded.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// Requests of a device since this server took it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// READ.
    pub read: OpCounts,
    /// WRITE.
    pub write: OpCounts,
    /// FLUSH.
    pub flush: OpCounts,
    /// DISCARD.
    pub discard: OpCounts,
    /// WRITE_ZEROES.
    pub write_zeroes: OpCounts,
    /// Whatever else the kernel sends; refused.
    pub other: OpCounts,
    /// Being executed now.
    pub in_flight: u64,
}

#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

/// The counters of one queue, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct QueueStats {
    counters: [Counter; 6],
    in_flight: AtomicU64,
}

const fn slot(op_flags: u32) -> usize {
    match op_flags & op::MASK {
        op::READ => 0,
        op::WRITE => 1,
        op::FLUSH => 2,
        op::DISCARD => 3,
        op::WRITE_ZEROES => 4,
        _ => 5,
    }
}

impl QueueStats {
    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A request ended; `bytes` is its length if it succeeded.
    pub(super) fn end(&self, op_flags: u32, bytes: Option<u64>) {
        let counter = &self.counters[slot(op_flags)];
        counter.requests.fetch_add(1, Ordering::Relaxed);
        match bytes {
            Some(bytes) => counter.bytes.fetch_add(bytes, Ordering::Relaxed),
            None => counter.errors.fetch_add(1, Ordering::Relaxed),
        };
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn add_to(&self, sum: &mut Stats) {
        let Stats { read, write, flush, discard, write_zeroes, other, in_flight } = sum;
        for (counter, sum) in self.counters.iter().zip([read, write, flush, discard, write_zeroes, other]) {
            sum.requests += counter.requests.load(Ordering::Relaxed);
            sum.bytes += counter.bytes.load(Ordering::Relaxed);
            sum.errors += counter.errors.load(Ordering::Relaxed);
        }
        *in_flight += self.in_flight.load(Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_add_up() {
        let (a, b) = (QueueStats::default(), QueueStats::default());
        a.begin();
        a.end(op::WRITE, Some(4096));
        b.begin();
        b.begin();
        b.end(op::WRITE | 1 << 13, None);
        let mut sum = Stats::default();
        a.add_to(&mut sum);
        b.add_to(&mut sum);
        assert_eq!(sum.write, OpCounts { requests: 2, bytes: 4096, errors: 1 });
        assert_eq!((sum.read, sum.in_flight), (OpCounts::default(), 1));
    }
}
