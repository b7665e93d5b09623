//! A live snapshot's switch: another head takes the place of the head while requests run, and the old one is sealed.
//!
//! What the names on disk must be by then is told in `ops`. Here is what happens to requests. The new head stands ready,
//! empty. Its predecessor is committed, so that the second commit is short; then no record is formed any more, those that
//! have a number are settled, all of it is committed, and the chain becomes the one with the new head. Whatever was held
//! goes there. A crash before that moment finds an empty head on a parent with everything that was acknowledged; a crash
//! behind it finds the parent complete, since nothing of it was only in flight.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use super::image::Image;
use super::layers::{Chain, ChainLayer};
#[cfg(feature = "sim")]
use super::locks::RangeLocks;
use crate::error::{Error, Kind, Result};
use crate::format::{Sealed, Superblock};
use crate::layer::{Finish, Head, LayerReader, lock_head, recover_head};
use crate::limits::MAX_CHAIN;
use crate::map::LayerTag;
use crate::runtime::sync::Monitor;
use crate::storage::{File, Lock, OpenHow, Storage};

/// What snapshots of an image share.
#[derive(Debug)]
pub(super) struct State<S: Storage> {
    seal: Monitor<Seal<S>>,
    heads: Monitor<Heads<S>>,
    /// What requests would lock after a switch if the locks did not survive it.
    #[cfg(feature = "sim")]
    pub(super) other_locks: RangeLocks,
}

#[derive(Debug)]
enum Seal<S: Storage> {
    /// All layers below the head are sealed.
    Done,
    /// A snapshot or a resize is under way.
    Taking,
    /// The last head is to be sealed.
    Wanted(Arc<Job<S>>),
    /// It could not be, and is tried again when asked for.
    Failed(Arc<Job<S>>, Kind, String),
    /// The image is closed.
    Ended,
}

/// A head that is to be sealed.
#[derive(Debug)]
struct Job<S: Storage> {
    old: Arc<Head<S>>,
    /// Its name now.
    path: PathBuf,
    sealed: Sealed,
    /// The head above it.
    new: Arc<Head<S>>,
}

/// Who needs background tasks: the head, and the one before it until it is sealed. In ascending order.
#[derive(Debug)]
struct Heads<S: Storage> {
    live: Vec<Arc<Head<S>>>,
    ended: bool,
}

/// A head that waits to take the place of the head.
#[derive(Debug)]
pub struct NewHead<S: Storage> {
    head: Head<S>,
}

/// A snapshot that is under way: the right to take it, and later the hold. Dropped before [`LiveSnapshot::switch`] it
/// leaves the image as it was.
#[derive(Debug)]
pub struct LiveSnapshot<'a, S: Storage> {
    image: &'a Image<S>,
    chain: Arc<Chain<S>>,
    /// The head that is there.
    pub old: Arc<Head<S>>,
    switched: bool,
}

impl<S: Storage> State<S> {
    pub(super) fn new(head: Option<Arc<Head<S>>>) -> State<S> {
        State {
            seal: Monitor::new(Seal::Done),
            heads: Monitor::new(Heads { ended: head.is_none(), live: head.into_iter().collect() }),
            #[cfg(feature = "sim")]
            other_locks: RangeLocks::default(),
        }
    }

    /// No further head comes.
    pub(super) fn end(&self) {
        self.heads.update(|heads| heads.ended = true);
        self.seal.update(|seal| *seal = Seal::Ended);
    }

    /// The only head from now on: no one is to be sealed.
    pub(super) fn only_head(&self, head: Arc<Head<S>>) {
        self.heads.update(|heads| heads.live = vec![head]);
    }

    /// Waits until there is another head than the one with `tag`; gives its tag. `None`: no further one comes.
    pub(super) async fn another_head(&self, tag: Option<LayerTag>) -> Option<LayerTag> {
        let newest = self.heads.wait(|heads| {
            let newest = heads.live.last().map(|head| head.tag());
            (heads.ended || newest != tag).then_some(if heads.ended { None } else { newest })
        });
        newest.await
    }

    /// Waits until every layer below the head is sealed, and has `then` decide what comes next.
    async fn when_sealed<R>(&self, then: impl Fn(&mut Seal<S>) -> R) -> Result<R> {
        let done = self.seal.wait(|seal| match seal {
            Seal::Done => Some(Ok(then(seal))),
            Seal::Taking | Seal::Wanted(_) => None,
            Seal::Failed(_, kind, why) => Some(Err(Error::new(*kind, why.clone()))),
            Seal::Ended => Some(Err(Error::new(Kind::NotFound, "the image is closed"))),
        });
        done.await
    }
}

impl<S: Storage> Image<S> {
    /// Waits until the snapshot that was taken last is sealed.
    ///
    /// # Errors
    /// Why it cannot be; it is tried again with every [`Image::tick`].
    pub async fn sealed(&self) -> Result<()> {
        self.snapshots.when_sealed(|_| ()).await
    }

    /// Keeps snapshots from beginning until the result is dropped; waits for one that is under way, and for its seal.
    ///
    /// # Errors
    /// The image is open read-only; the last snapshot cannot be sealed.
    pub(super) async fn without_snapshots(&self) -> Result<NoSnapshots<'_, S>> {
        self.chain().writable()?;
        self.snapshots.when_sealed(|seal| *seal = Seal::Taking).await?;
        Ok(NoSnapshots(&self.snapshots))
    }

    /// Begins a live snapshot: the only one, and after the last one is sealed (one unsealed parent at most).
    ///
    /// # Errors
    /// The image is open read-only; its chain is as long as it may be; the last snapshot cannot be sealed.
    pub async fn begin_snapshot(&self) -> Result<LiveSnapshot<'_, S>> {
        // Whether there is a head never changes; which one it is may, while this waits.
        self.chain().writable()?;
        self.snapshots.when_sealed(|seal| *seal = Seal::Taking).await?;
        let chain = self.chain();
        let Some(old) = chain.head.clone() else { unreachable!("there was one") };
        let snapshot = LiveSnapshot { image: self, chain, old, switched: false };
        if snapshot.chain.layers.len() >= MAX_CHAIN {
            let text = format!("the chain has {MAX_CHAIN} layers, and may not be longer");
            return Err(Error::new(Kind::Unsupported, text).at(self.path()));
        }
        Ok(snapshot)
    }

    /// Seals heads that live snapshots leave behind, until the image is closed.
    pub async fn run_seals(&self) {
        loop {
            let next = self.snapshots.seal.wait(|seal| match seal {
                Seal::Wanted(job) => Some(Some(job.clone())),
                Seal::Ended => Some(None),
                _ => None,
            });
            let Some(job) = next.await else { return };
            let outcome = self.seal(&job).await;
            self.snapshots.seal.update(|seal| {
                *seal = match outcome {
                    Ok(()) => Seal::Done,
                    Err(e) => {
                        let _ = self.failed(&e, None);
                        Seal::Failed(job, e.kind(), e.to_string())
                    }
                }
            });
        }
    }

    /// Has the seal tried again that has failed. `true`: one is still to come.
    pub(super) fn retry_seal(&self) -> bool {
        let failed = self.snapshots.seal.with(|seal| matches!(seal, Seal::Failed(..)));
        if failed {
            self.snapshots.seal.update(|seal| match std::mem::replace(seal, Seal::Done) {
                Seal::Failed(job, ..) => {
                    job.new.stands_on_unsealed();
                    *seal = Seal::Wanted(job);
                }
                other => *seal = other,
            });
        }
        self.snapshots.seal.with(|seal| matches!(seal, Seal::Wanted(_) | Seal::Failed(..)))
    }

    async fn seal(&self, job: &Job<S>) -> Result<()> {
        let result = job.old.seal(job.sealed.clone()).await.map_err(|e| e.at(&job.path));
        let sb = job.old.superblock();
        if let Err(e) = result {
            if sb.sealed.is_none() {
                job.new.below_has_failed(&e, job.old.journal.poisoned().is_some());
                return Err(e);
            }
            // It is immutable; only its space or its write bits are as they were.
            let _ = self.failed(&e, None);
        }
        let root = sb.root.crc;
        self.replace_sealing(sealed_layer(job, sb));
        job.new.below_is_sealed(root);
        self.snapshots.heads.with(|heads| heads.live.retain(|head| head.tag() > job.old.tag()));
        Ok(())
    }

    /// The chain with the sealed `layer`.
    fn replace_sealing(&self, layer: ChainLayer<S::File>) {
        let chain = self.chain();
        let layers = chain.with_layer(layer);
        self.chain.store(Arc::new(Chain { sealing: None, layers, ..(*chain).clone() }));
    }

    /// Runs `work` for the head, and for each one that takes its place, until the image is closed.
    pub(super) async fn for_each_head<W: Future<Output = ()>>(&self, work: impl Fn(Arc<Head<S>>) -> W) {
        let mut running: Vec<Pin<Box<W>>> = Vec::new();
        let mut served: Option<LayerTag> = None;
        poll_fn(|cx| {
            let ended = loop {
                let last = served;
                let next = self.snapshots.heads.wait(|heads| {
                    let next = heads.live.iter().find(|head| Some(head.tag()) > last).cloned();
                    (next.is_some() || heads.ended).then_some(next)
                });
                match pin!(next).poll(cx) {
                    Poll::Pending => break false,
                    Poll::Ready(None) => break true,
                    Poll::Ready(Some(head)) => {
                        served = Some(head.tag());
                        running.push(Box::pin(work(head)));
                    }
                }
            };
            running.retain_mut(|work| work.as_mut().poll(cx).is_pending());
            if ended && running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// A sealed layer is read through the page cache, which all its readers share. Where it cannot be opened anew (somebody
/// moves it about), the open file must do.
fn sealed_layer<S: Storage>(job: &Job<S>, sb: Superblock) -> ChainLayer<S::File> {
    let own = &job.old.reader.file;
    // From the writer's lock to a reader's. There is nobody who could be in the way.
    let _ = own.try_lock(Lock::Shared);
    let file = open_anew(job.old.storage(), &job.path, own).unwrap_or_else(|| own.clone());
    let reader = LayerReader::new(&job.path, file, job.old.tag(), &sb, job.old.caches());
    ChainLayer { reader: Arc::new(reader), size: sb.virtual_size, sb, pending: None }
}

fn open_anew<S: Storage>(storage: &S, path: &Path, own: &S::File) -> Option<S::File> {
    let how = OpenHow { write: false, direct: false, regular_only: true };
    let file = storage.open(path, how).ok()?;
    let same = file.meta().ok()?.id == own.meta().ok()?.id;
    (same && file.try_lock(Lock::Shared).ok()?).then_some(file)
}

/// As long as it lives, the head stays the head.
#[derive(Debug)]
pub(super) struct NoSnapshots<'a, S: Storage>(&'a State<S>);

impl<S: Storage> Drop for NoSnapshots<'_, S> {
    fn drop(&mut self) {
        self.0.seal.update(|seal| *seal = Seal::Done);
    }
}

impl<S: Storage> LiveSnapshot<'_, S> {
    /// The size of the disk in bytes. It stays until the switch.
    pub fn size(&self) -> u64 {
        self.chain.geometry().size
    }

    /// Opens the empty layer `temporary` as a head that can take the place of the one there is. `path`: the name that it
    /// will have by then.
    ///
    /// # Errors
    /// What the host says. The layer is not in use then.
    pub async fn prepare(&self, temporary: &Path, path: &Path) -> Result<NewHead<S>> {
        let storage = self.old.storage();
        let Some(me) = self.old.superblock().holder else {
            unreachable!("a head that is open names its holder");
        };
        let mut locked = lock_head(storage, temporary, &me, &|_| true).await?;
        locked.space = self.image.space;
        locked.readers = self.image.readers.clone();
        let tag = LayerTag(self.old.tag().0 + 1);
        let (head, _) = recover_head(storage, path, locked, tag, self.old.caches(), me, None).await?;
        head.find_holes().await?;
        head.stands_on_unsealed();
        Ok(NewHead { head })
    }

    /// Makes everything so far durable, so that the hold is short; then holds back what has no number yet, and makes the
    /// rest durable too. From here on until [`LiveSnapshot::switch`] requests wait.
    ///
    /// # Errors
    /// The layer is poisoned, or a write has failed and no checkpoint could be made behind it.
    pub async fn hold(&self) -> Result<()> {
        let old = &self.old;
        // A checkpoint that builds its tree on this thread would make the hold long.
        let turn = old.checkpoint_turn().await;
        old.journal.commit_unless_failed(old.journal.acked()).await.map_err(|e| e.at(old.path()))?;
        old.journal.hold();
        let failed = old.journal.in_flight_settled().await.map_err(|e| e.at(old.path()))?;
        drop(turn);
        if failed {
            old.checkpoint(Finish::Running).await?;
        }
        old.commit(old.journal.acked(), async || old.write_evidence().await).await
    }

    /// Puts `new` in the place of the head, whose file is at `path` by now, and has that one sealed.
    pub fn switch(mut self, new: NewHead<S>, path: PathBuf, sealed: Sealed) {
        let old = self.old.clone();
        let new = Arc::new(new.head);
        let sb = new.superblock();
        let top = ChainLayer { reader: new.reader.clone(), size: sb.virtual_size, sb, pending: None };
        let mut layers = Vec::with_capacity(self.chain.layers.len() + 1);
        layers.push(Arc::new(top));
        layers.extend(self.chain.layers.iter().cloned());
        let (head, sealing) = (Some(new.clone()), Some(old.clone()));
        self.image.chain.store(Arc::new(Chain { head, sealing, layers, ..(*self.chain).clone() }));
        // Not before: whoever is told looks for the new head.
        old.journal.moved();
        self.switched = true;
        let snapshots = &self.image.snapshots;
        snapshots.heads.update(|heads| heads.live = vec![old.clone(), new.clone()]);
        snapshots.seal.update(|seal| *seal = Seal::Wanted(Arc::new(Job { old, path, sealed, new })));
    }
}

impl<S: Storage> Drop for LiveSnapshot<'_, S> {
    fn drop(&mut self) {
        if !self.switched {
            self.old.journal.release_hold();
            self.image.snapshots.seal.update(|seal| *seal = Seal::Done);
        }
    }
}
