//! Commits: one fdatasync covers data and records together (rule C). One runs at a time; whoever arrives while it
//! runs takes the next one, and those who wait share it.

use super::state::{Gate, Journal, State};
use crate::error::{Error, Result};
use crate::rules::{self, Rule};
use crate::storage::File;
use crate::units::Seq;

/// A sync did not happen.
#[derive(Debug)]
pub enum SyncFailed {
    /// A record up to this number, which it would have covered, has failed: a checkpoint must settle it first (W4).
    NeedsCheckpoint(Seq),
    /// The layer is poisoned.
    Poisoned(Error),
}

/// How far it is on durable record that a number is durable (R, N2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnRecord {
    /// A durable record or superblock tells it.
    Yes,
    /// This record tells it, and is not durable yet.
    In(Seq),
    /// No record does.
    No,
}

enum Turn {
    Durable,
    Mine(Seq),
}

/// Gives the turn back also if the future that held it is dropped.
struct TurnGuard<'a, F>(&'a Journal<F>);

impl<F> Drop for TurnGuard<'_, F> {
    fn drop(&mut self) {
        self.0.state.update(|s| {
            s.sync.running = false;
            s.sync.target = None;
            s.sync.aborted |= !s.sync.began;
        });
    }
}

impl<F: File> Journal<F> {
    /// Makes everything up to `need` durable; nothing is done if it is.
    pub async fn commit(&self, need: Seq) -> Result<()> {
        loop {
            match self.sync(need, |s| s.acked, false).await {
                Ok(()) => return Ok(()),
                Err(SyncFailed::Poisoned(e)) => return Err(e),
                // Up to the target, which may be above `need`: the next turn would meet the same failure at once.
                Err(SyncFailed::NeedsCheckpoint(target)) => self.failures_settled(target).await?,
            }
        }
    }

    /// As [`Journal::commit`], for whoever keeps checkpoints from beginning: where a record has failed, which only one of
    /// them settles, nothing is done.
    pub async fn commit_unless_failed(&self, need: Seq) -> Result<()> {
        match self.sync(need, |s| s.acked, false).await {
            Err(SyncFailed::Poisoned(e)) => Err(e),
            Ok(()) | Err(SyncFailed::NeedsCheckpoint(_)) => Ok(()),
        }
    }

    /// Whether recovery would find that everything up to `need` is durable. Records that change nothing do not count.
    pub async fn on_record(&self, need: Seq) -> Result<OnRecord> {
        self.state.wait(|s| s.on_record(need)).await
    }

    /// A checkpoint's fdatasync: whatever has completed becomes durable. `cut` is its freeze.
    pub async fn sync_for_checkpoint(&self, cut: Seq) -> Result<()> {
        // One above anything: a checkpoint's sync is never "durable already".
        match self.sync(Seq(u64::MAX), |_| cut, true).await {
            Ok(()) => Ok(()),
            Err(SyncFailed::Poisoned(e)) => Err(e),
            Err(SyncFailed::NeedsCheckpoint(_)) => unreachable!("a checkpoint settles failures itself"),
        }
    }

    /// Waits for the turn, then for everything up to the target to be settled, then syncs.
    async fn sync(
        &self,
        need: Seq,
        pick: impl Fn(&State) -> Seq,
        checkpoint: bool,
    ) -> Result<(), SyncFailed> {
        loop {
            let turn = self.state.wait(|s| take_turn(s, need, &pick)).await.map_err(SyncFailed::Poisoned)?;
            let Turn::Mine(target) = turn else { return Ok(()) };
            let guard = TurnGuard(self);
            self.state.wait(|s| may_start(s, target, checkpoint)).await?;
            let result = self.file.sync_data().await.result;
            if let Err(e) = result {
                // The kernel has dropped the error and perhaps the pages: a retry would succeed and mean nothing.
                if rules::holds(Rule::SyncPoison) {
                    self.poison(&format!("fdatasync failed: {e}"));
                }
            } else {
                self.state.with(|s| {
                    s.sync.done = s.sync.started;
                    let target = if rules::holds(Rule::Target) { target } else { s.acked };
                    if s.all_settled(target) {
                        s.set_durable(target);
                    }
                });
            }
            drop(guard);
            if checkpoint {
                return self.check_alive().map_err(SyncFailed::Poisoned);
            }
        }
    }

    async fn failures_settled(&self, target: Seq) -> Result<()> {
        let seen = self.state.with(|s| s.checkpoints.begun);
        self.want_checkpoint();
        self.state
            .wait(|s| match s.check_alive() {
                Err(e) => Some(Err(e)),
                Ok(()) if s.failed.iter().all(|f| *f > target) => Some(Ok(())),
                Ok(()) => s.checkpoints.broke_off_since(seen).map(Err),
            })
            .await
    }
}

impl State {
    fn on_record(&self, need: Seq) -> Option<Result<OnRecord>> {
        let need = need.min(self.newest_change);
        // All that was acknowledged in a head that has moved was on record by then.
        if self.evidence >= need || self.gate == Gate::Moved {
            return Some(Ok(OnRecord::Yes));
        }
        if let Err(e) = self.check_alive() {
            return Some(Err(e));
        }
        match self.carried.iter().find(|(_, durable)| *durable >= need) {
            None => Some(Ok(OnRecord::No)),
            // Not yet settled: a commit of it would find nothing to do.
            Some((first, _)) => (self.acked >= *first).then_some(Ok(OnRecord::In(*first))),
        }
    }
}

fn take_turn(s: &mut State, need: Seq, pick: impl Fn(&State) -> Seq) -> Option<Result<Turn>> {
    if s.gate == Gate::Moved && need <= s.durable {
        return Some(Ok(Turn::Durable));
    }
    if let Err(e) = s.check_alive() {
        return Some(Err(e));
    }
    if s.durable >= need {
        return Some(Ok(Turn::Durable));
    }
    if s.sync.running {
        return None;
    }
    s.sync.running = true;
    s.sync.began = false;
    // C1: the target is fixed now; what is acknowledged from here on waits for the next sync. From here on no block
    // with a record up to the target is rewritten in place; rewrites begun before are waited for.
    let target = pick(s);
    s.sync.target = Some(target);
    s.sync.phase ^= 1;
    Some(Ok(Turn::Mine(target)))
}

fn may_start(s: &mut State, target: Seq, checkpoint: bool) -> Option<Result<(), SyncFailed>> {
    if let Err(e) = s.check_alive() {
        return Some(Err(SyncFailed::Poisoned(e)));
    }
    let before = s.sync.phase ^ 1;
    let wait = rules::holds(Rule::RewriteWait);
    if wait && (s.sync.rewrites[before] > 0 || (s.sync.aborted && s.sync.rewrites[s.sync.phase] > 0)) {
        return None;
    }
    if !checkpoint && s.failed.iter().any(|f| *f <= target) {
        return Some(Err(SyncFailed::NeedsCheckpoint(target)));
    }
    let ready = if checkpoint { s.settled_or_failed(target) } else { s.all_settled(target) };
    ready.then(|| {
        s.sync.started += 1;
        s.sync.began = true;
        s.sync.aborted = false;
        Ok(())
    })
}
