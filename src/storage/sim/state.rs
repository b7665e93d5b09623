//! What a simulated disk knows: inodes, names, open files and operations in flight.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::effect::Effect;
use super::fault::FaultState;
use super::flight::{InFlight, Running};
use super::names::Names;
use super::pages::Content;
use super::rng::Rng;
use crate::storage::{FileId, FileKind, Lock, Meta};

/// The device number of simulated files.
const DEVICE: u64 = 0x51;
/// Where the clock starts: some day in 2023.
const EPOCH_NS: i64 = 1_700_000_000_000_000_000;
/// What one look at the clock takes.
const TICK_NS: i64 = 1_000;

/// A completed operation that is not durable yet.
#[derive(Clone, Debug)]
pub(super) struct Landed {
    /// Its place in the order of completion, over all files.
    pub(super) number: u64,
    pub(super) effect: Arc<Effect>,
}

/// A file, apart from its names.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) kind: FileKind,
    /// Where a symbolic link leads.
    pub(super) target: Option<PathBuf>,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) mtime_ns: i64,
    pub(super) visible: Content,
    /// What a power loss leaves for sure.
    pub(super) durable: Content,
    /// What leads from `durable` to `visible`, in order, unless a sync has failed.
    pub(super) unsynced: Vec<Landed>,
    /// A sync has failed: visible bytes may be neither durable nor on their way.
    pub(super) forgetful: bool,
}

/// An open file description.
#[derive(Clone, Debug)]
pub(super) struct Description {
    pub(super) ino: u64,
    pub(super) path: Arc<Path>,
    pub(super) write: bool,
    pub(super) direct: bool,
    pub(super) lock: Option<Lock>,
    pub(super) in_flight: u64,
    /// The last handle has gone; the description, and its lock, go with the last operation.
    pub(super) closed: bool,
}

/// All of a disk.
#[derive(Debug)]
pub(super) struct State {
    pub(super) rng: Rng,
    pub(super) clock_ns: i64,
    /// Counts the power losses.
    pub(super) boot: u64,
    /// Other machines have it too.
    pub(super) shared: bool,
    pub(super) ops: u64,
    /// Operations that changed a file so far.
    pub(super) landed: u64,
    pub(super) next_ino: u64,
    pub(super) next_description: u64,
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) names: Names,
    pub(super) descriptions: BTreeMap<u64, Description>,
    /// In the order of issue.
    pub(super) in_flight: Vec<InFlight>,
    pub(super) faults: FaultState,
}

impl Inode {
    pub(super) fn new(kind: FileKind, mode: u32, content: Content, now_ns: i64) -> Inode {
        Inode {
            kind,
            target: None,
            mode,
            owner: (0, 0),
            mtime_ns: now_ns,
            visible: content.clone(),
            durable: content,
            unsynced: Vec::new(),
            forgetful: false,
        }
    }

    /// A sync issued when `upto` operations had landed returns: those are durable now.
    pub(super) fn sync(&mut self, upto: u64) {
        let covered = self.unsynced.partition_point(|landed| landed.number <= upto);
        if covered == self.unsynced.len() && !self.forgetful {
            self.unsynced.clear();
            self.durable = self.visible.clone();
            return;
        }
        for landed in self.unsynced.drain(..covered) {
            landed.effect.apply(&mut self.durable);
        }
    }

    /// A sync fails: each change that is not durable becomes so or not, and the page cache calls all of it clean.
    pub(super) fn fail_sync(&mut self, rng: &mut Rng) {
        self.forgetful = true;
        for landed in std::mem::take(&mut self.unsynced) {
            match rng.below(3) {
                0 => {}
                1 => landed.effect.apply(&mut self.durable),
                _ => landed.effect.torn(rng, 4, true).apply(&mut self.durable),
            }
        }
        let len = self.durable.len;
        self.durable.set_len(len);
    }
}

impl State {
    pub(super) fn new(seed: u64) -> State {
        State {
            rng: Rng::new(seed),
            clock_ns: EPOCH_NS,
            boot: 1,
            shared: false,
            ops: 0,
            landed: 0,
            next_ino: 2,
            next_description: 0,
            inodes: BTreeMap::new(),
            names: Names::default(),
            descriptions: BTreeMap::new(),
            in_flight: Vec::new(),
            faults: FaultState::default(),
        }
    }

    pub(super) const fn now_ns(&mut self) -> i64 {
        self.clock_ns += TICK_NS;
        self.clock_ns
    }

    pub(super) fn add_inode(&mut self, inode: Inode) -> u64 {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.inodes.insert(ino, inode);
        ino
    }

    /// The inode of an open file or of a name.
    pub(super) fn inode(&self, ino: u64) -> &Inode {
        self.inodes.get(&ino).expect("inodes stay while a name or a description leads to them")
    }

    pub(super) fn inode_mut(&mut self, ino: u64) -> &mut Inode {
        self.inodes.get_mut(&ino).expect("inodes stay while a name or a description leads to them")
    }

    /// Makes an effect visible and remembers that it is not durable.
    pub(super) fn land(&mut self, ino: u64, effect: Effect) {
        self.landed += 1;
        let (number, now_ns) = (self.landed, self.now_ns());
        let inode = self.inode_mut(ino);
        effect.apply(&mut inode.visible);
        inode.mtime_ns = now_ns;
        inode.unsynced.push(Landed { number, effect: Arc::new(effect) });
    }

    /// Pages that may still be allocated.
    pub(super) fn free_pages(&self) -> u64 {
        let Some(budget) = self.faults.faults.budget else { return u64::MAX };
        budget.saturating_sub(self.used_bytes()) / super::pages::PAGE
    }

    /// Bytes allocated by files that have a name or are open.
    pub(super) fn used_bytes(&self) -> u64 {
        let open = |ino| self.descriptions.values().any(|description| description.ino == ino);
        let taken = self.inodes.iter().filter(|(ino, _)| self.names.links(**ino) > 0 || open(**ino));
        taken.map(|(_, inode)| inode.visible.allocated_bytes()).sum()
    }

    pub(super) fn open(&mut self, ino: u64, path: &Path, write: bool, direct: bool) -> u64 {
        let description =
            Description { ino, path: path.into(), write, direct, lock: None, in_flight: 0, closed: false };
        self.next_description += 1;
        self.descriptions.insert(self.next_description, description);
        self.next_description
    }

    pub(super) fn description(&self, id: u64) -> &Description {
        self.descriptions.get(&id).expect("a description lives as long as its handles and operations")
    }

    /// The last handle of a description has gone, or one of its operations has ended.
    pub(super) fn settle(&mut self, id: u64, closing: bool) {
        let description = self.descriptions.get_mut(&id).expect("settled once for each handle and operation");
        description.closed |= closing;
        description.in_flight -= u64::from(!closing);
        if description.closed && description.in_flight == 0 {
            self.descriptions.remove(&id);
            self.forget_unreachable();
        }
    }

    /// Frees inodes that no name, not even after a crash, and no open file leads to.
    pub(super) fn forget_unreachable(&mut self) {
        let mut reachable = self.names.reachable();
        reachable.extend(self.descriptions.values().map(|description| description.ino));
        self.inodes.retain(|ino, _| reachable.contains(ino));
    }

    /// OFD lock: any number of shared ones, or one exclusive, over the descriptions of an inode.
    pub(super) fn try_lock(&mut self, id: u64, lock: Lock) -> io::Result<bool> {
        if lock == Lock::Exclusive && !self.description(id).write {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let blocked = self.is_locked(id, lock);
        if let Some(description) = self.descriptions.get_mut(&id).filter(|_| !blocked) {
            description.lock = Some(lock);
        }
        Ok(!blocked)
    }

    /// True if another description of the same inode holds a lock that excludes `lock`.
    pub(super) fn is_locked(&self, id: u64, lock: Lock) -> bool {
        let ino = self.description(id).ino;
        let others = self.descriptions.iter().filter(|(other, held)| **other != id && held.ino == ino);
        others.filter_map(|(_, held)| held.lock).any(|held| (held, lock) != (Lock::Shared, Lock::Shared))
    }

    pub(super) fn meta(&self, ino: u64) -> Meta {
        let inode = self.inode(ino);
        Meta {
            id: FileId { dev: DEVICE, ino },
            kind: inode.kind,
            len: inode.visible.len,
            allocated: inode.visible.allocated_bytes(),
            mtime_ns: inode.mtime_ns,
            mode: inode.mode,
            uid: inode.owner.0,
            gid: inode.owner.1,
            links: self.names.links(ino),
        }
    }

    /// Facts of a directory that nobody put there.
    pub(super) const fn meta_of_dir() -> Meta {
        Meta {
            id: FileId { dev: DEVICE, ino: 1 },
            kind: FileKind::Directory,
            len: 0,
            allocated: 0,
            mtime_ns: EPOCH_NS,
            mode: 0o755,
            uid: 0,
            gid: 0,
            links: 2,
        }
    }

    /// What an operation in flight would do if it ended now.
    pub(super) fn effect_of(&self, running: &InFlight) -> Option<Effect> {
        let inode = self.inode(running.ino);
        Some(match &running.what {
            Running::Read(_) | Running::Sync { .. } | Running::Refused(_) => return None,
            Running::Write { pieces, len, .. } => {
                Effect::write(pieces, running.pos, *len as u64, &inode.visible)
            }
            Running::Allocate => Effect::allocate(running.pos, running.len),
            Running::Punch => Effect::punch(running.pos, running.len, &inode.visible, &inode.durable),
        })
    }
}
