//! The hold at a snapshot's switch: for a moment no record is formed, until the head is another one.

use super::state::{Gate, Journal};
use crate::error::Result;
use crate::rules::{self, Rule};

impl<F> Journal<F> {
    /// From now on no record is given a number, until [`Journal::release_hold`] or [`Journal::moved`].
    pub fn hold(&self) {
        if rules::holds(Rule::Hold) {
            self.state.with(|s| s.gate = Gate::Held);
        }
    }

    /// Waits for all records that have a number. Gives whether one of them has failed: what its blocks hold after a crash
    /// is certain only once a checkpoint is behind it (W4).
    ///
    /// # Errors
    /// The layer is poisoned.
    pub async fn in_flight_settled(&self) -> Result<bool> {
        let settled = self.state.wait(|s| match s.check_alive() {
            Err(e) => Some(Err(e)),
            Ok(()) if !rules::holds(Rule::Hold) => Some(Ok(false)),
            Ok(()) => (s.unsettled.len() == s.failed.len()).then(|| Ok(!s.failed.is_empty())),
        });
        settled.await
    }

    /// Everything goes on as before the hold.
    pub fn release_hold(&self) {
        self.state.update(|s| {
            if s.gate == Gate::Held {
                s.gate = Gate::Open;
            }
        });
    }

    /// True from [`Journal::moved`] on.
    pub fn has_moved(&self) -> bool {
        self.state.with(|s| s.gate == Gate::Moved)
    }

    /// Another head has taken this one's place: what is held goes there. All that was acknowledged is durable.
    pub fn moved(&self) {
        self.state.update(|s| s.gate = Gate::Moved);
    }
}
