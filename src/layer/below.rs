//! What a head knows of the layer below it: after a live snapshot that one is not sealed yet.
//!
//! The span cache holds what lies below the pending maps of both. If the head's changes went into its tree before those
//! below it are in theirs, they would be under them. So its checkpoints wait for the seal.

use super::head::Head;
use crate::error::{Error, Kind, Result};
use crate::format::Parent;
use crate::storage::Storage;

/// How the layer below is.
#[derive(Clone, Debug)]
pub(super) enum Below {
    /// Immutable, or there is none.
    Sealed,
    /// About to be sealed.
    Unsealed,
    /// It could not be sealed at the last try.
    Failed(Kind, String),
}

impl<S: Storage> Head<S> {
    /// The layer below is not sealed yet; to be said before the first write.
    pub fn stands_on_unsealed(&self) {
        self.below.update(|below| *below = Below::Unsealed);
    }

    /// The layer below is sealed, and durable: the next superblock names its root.
    pub fn below_is_sealed(&self, root_crc: u32) {
        if let Parent::Layer { root_crc: known, .. } = &mut self.sb.lock().parent {
            *known = Some(root_crc);
        }
        self.below.update(|below| *below = Below::Sealed);
    }

    /// The layer below could not be sealed. `for_good`: nor will it ever be, and what is written here could never be folded.
    pub fn below_has_failed(&self, error: &Error, for_good: bool) {
        if for_good {
            self.journal.poison(&format!("the snapshot below cannot be sealed: {error}"));
        }
        self.below.update(|below| *below = Below::Failed(error.kind(), error.to_string()));
        // Somebody may wait for a checkpoint already; the next one tells why there is none.
        self.journal.want_checkpoint();
    }

    /// Waits for the seal of the layer below.
    ///
    /// # Errors
    /// Why it failed; those who wait for a checkpoint are told too.
    pub(super) async fn below_sealed(&self) -> Result<()> {
        let failed = self.below.wait(|below| match below {
            Below::Unsealed => None,
            Below::Sealed => Some(None),
            Below::Failed(kind, why) => Some(Some(Error::new(*kind, why.clone()))),
        });
        let Some(error) = failed.await else { return Ok(()) };
        self.journal.checkpoint_begins();
        self.journal.checkpoint_broke_off(&error);
        Err(error)
    }
}
