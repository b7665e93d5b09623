//! What a run has done, to be printed: a test of nothing passes, too.

use std::fmt;

/// Sums over a run.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    pub images: u64,
    /// Daemons killed under load.
    pub kills: u64,
    /// Those of them that had requests in flight.
    pub kills_in_flight: u64,
    /// Daemons killed while they started, which often is while they recovered.
    pub kills_at_start: u64,
    /// Snapshots killed while they were taken.
    pub kills_in_snapshot: u64,
    /// Daemons ended by SIGTERM under load.
    pub terminated: u64,
    /// Writes, discards and write-zeroes that were acknowledged, and found after the end of the daemon.
    pub acknowledged: u64,
    /// Those in flight at the end of a daemon, found whole or not at all.
    pub in_flight: u64,
    pub reads: u64,
    pub flushes: u64,
    /// Daemons that found the image not closed, those of them that had records to replay, and these.
    pub recoveries: u64,
    pub replays: u64,
    pub records_replayed: u64,
    /// Superblocks written under load: checkpoints, each of which gives journal blocks free.
    pub checkpoints: u64,
    pub snapshots: u64,
    pub checks: u64,
}

impl Counts {
    /// Nothing that the run is there for happened never. A short run proves nothing.
    pub fn assert_not_empty(&self, kills: u64) {
        if kills >= 100 {
            let all = [
                self.kills_in_flight,
                self.kills_at_start,
                self.kills_in_snapshot,
                self.terminated,
                self.acknowledged,
                self.in_flight,
                self.reads,
                self.replays,
                self.checkpoints,
                self.snapshots,
                self.checks,
            ];
            assert!(all.iter().all(|&count| count > 0), "something never happened: {self:?}");
            assert!(self.kills_in_flight > kills / 4, "few kills hit anything: {self:?}");
            assert!(self.replays > kills / 4, "few kills left anything to replay: {self:?}");
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { images, kills, kills_in_flight, kills_at_start, kills_in_snapshot, .. } = self;
        writeln!(
            f,
            "{kills} kills on {images} images, {kills_in_flight} of them with requests in flight; {kills_at_start} \
             more of starting daemons, {kills_in_snapshot} of snapshots; {} by SIGTERM",
            self.terminated
        )?;
        writeln!(
            f,
            "{} acknowledged changes found, {} in flight found whole or not at all; {} reads right; {} flushes",
            self.acknowledged, self.in_flight, self.reads, self.flushes
        )?;
        write!(
            f,
            "{} recoveries, {} of them replayed {} records; {} checkpoints under load; {} snapshots exact; {} checks \
             clean",
            self.recoveries,
            self.replays,
            self.records_replayed,
            self.checkpoints,
            self.snapshots,
            self.checks
        )
    }
}
