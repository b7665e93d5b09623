//! A live rollback's switch: a head on another chain takes the place of the head and of everything below it.
//!
//! A snapshot's switch keeps what the disk shows; this one changes it, so nobody may have the disk open. The frontend sees to
//! that; here all blocks are locked, so that a request that comes all the same is done before the switch or behind it. The
//! new chain is opened beside the one that is in use, with caches of its own: nothing that was looked up in one of them is
//! ever taken for the other's, and all of the old one goes when the queues have seen the new one.

use std::path::Path;
use std::sync::Arc;

use super::image::Image;
use super::layers::{Chain, ChainLayer};
use super::locks::RangeLock;
use super::open::open_parents;
use super::switch::NoSnapshots;
use crate::error::Result;
use crate::layer::{Caches, Head, lock_head, recover_head};
use crate::limits::MAX_DISK_BYTES;
use crate::map::LayerTag;
use crate::storage::Storage;
use crate::units::{VBlock, blocks_for};

/// A chain that waits to take the place of the image's.
#[derive(Debug)]
pub struct NewChain<S: Storage> {
    chain: Chain<S>,
    head: Arc<Head<S>>,
}

impl<S: Storage> NewChain<S> {
    /// The size of its disk in bytes.
    pub fn size(&self) -> u64 {
        self.chain.geometry().size
    }
}

/// The right to put another chain in the place of the image's, and later the hold. Dropped before
/// [`Replacement::switch`] it leaves the image as it was.
#[derive(Debug)]
pub struct Replacement<'a, S: Storage> {
    image: &'a Image<S>,
    /// The head that is there.
    pub old: Arc<Head<S>>,
    alone: Option<RangeLock<'a>>,
    _head_stays: NoSnapshots<'a, S>,
}

impl<S: Storage> Image<S> {
    /// Begins a replacement: no snapshot or resize comes in between, and all layers below the head are sealed.
    ///
    /// # Errors
    /// The image is open read-only; the last snapshot cannot be sealed.
    pub async fn begin_replacement(&self) -> Result<Replacement<'_, S>> {
        let head_stays = self.without_snapshots().await?;
        let Some(old) = self.head() else { unreachable!("it is open for writing") };
        Ok(Replacement { image: self, old, alone: None, _head_stays: head_stays })
    }
}

impl<S: Storage> Replacement<'_, S> {
    /// Opens the empty layer `temporary` as a head, and everything that it stands on. `path`: the name that it will have;
    /// `search`: further directories to look for parents in.
    ///
    /// # Errors
    /// As an open of the image would have them. The layer is not in use then.
    pub async fn prepare(
        &self,
        temporary: &Path,
        path: &Path,
        search: &[std::path::PathBuf],
    ) -> Result<NewChain<S>> {
        let storage = self.old.storage();
        let Some(me) = self.old.superblock().holder else {
            unreachable!("a head that is open names its holder");
        };
        let caches: Caches = self.old.caches().another();
        let mut locked = lock_head(storage, temporary, &me, &|_| true).await?;
        locked.space = self.image.space;
        locked.readers = self.image.readers.clone();
        let tag = LayerTag(self.old.tag().0 + 1);
        let (head, _) = recover_head(storage, path, locked, tag, &caches, me, None).await?;
        head.find_holes().await?;
        let head = Arc::new(head);
        let sb = head.superblock();
        let mut layers =
            vec![ChainLayer { reader: head.reader.clone(), size: sb.virtual_size, sb, pending: None }];
        let (base_path, base) = open_parents(storage, search, &caches, &mut layers).await?.unzip();
        let layers = layers.into_iter().map(Arc::new).collect();
        let chain = Chain { head: Some(head.clone()), sealing: None, layers, base, base_path, caches };
        Ok(NewChain { chain, head })
    }

    /// Waits for requests that write, and keeps new ones waiting until the switch, or until this is dropped.
    pub async fn hold(&mut self) {
        let all = VBlock(0)..VBlock(blocks_for(MAX_DISK_BYTES));
        self.alone = Some(self.image.locks().lock(all, true).await);
    }

    /// Puts `new` in the place of the chain. What the old head has is left to itself.
    pub async fn switch(&self, new: NewChain<S>) {
        let NewChain { chain, head } = new;
        // A checkpoint of the old head comes to its end; another one does not begin.
        let turn = self.old.checkpoint_turn().await;
        self.image.chain.store(Arc::new(chain));
        // Not before: whoever is told looks for the new head.
        self.old.journal.moved();
        self.image.snapshots.only_head(head);
        self.old.abandon().await;
        drop(turn);
    }
}
