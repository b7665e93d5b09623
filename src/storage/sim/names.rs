//! The name space: what is visible, what is durable, and the changes in between.
//!
//! Paths are absolute here. A directory exists as soon as something is asked of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::rng::Rng;

/// A name and the inode it stands for from then on, or nothing.
pub(super) type Change = (PathBuf, Option<u64>);

/// A directory operation that is not durable yet. It is kept or lost as one.
#[derive(Clone, Debug)]
pub(super) struct DirOp {
    dir: PathBuf,
    changes: Vec<Change>,
}

/// All names. A change holds what it does, not how it came about: a rename that survives alone still makes its
/// new name, although the creation of the old one was lost.
#[derive(Clone, Default, Debug)]
pub(super) struct Names {
    visible: Arc<BTreeMap<PathBuf, u64>>,
    durable: Arc<BTreeMap<PathBuf, u64>>,
    pending: Vec<Arc<DirOp>>,
}

/// The directory of a path.
fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn apply(names: &mut Arc<BTreeMap<PathBuf, u64>>, changes: &[Change]) {
    let names = Arc::make_mut(names);
    for (name, ino) in changes {
        match ino {
            Some(ino) => names.insert(name.clone(), *ino),
            None => names.remove(name),
        };
    }
}

impl Names {
    /// The inode of a name.
    pub(super) fn get(&self, path: &Path) -> Option<u64> {
        self.visible.get(path).copied()
    }

    /// All names, sorted, with their inodes.
    pub(super) fn visible(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.visible.iter().map(|(name, ino)| (name.as_path(), *ino))
    }

    /// Adds a name that is durable at once.
    pub(super) fn put(&mut self, path: PathBuf, ino: u64) {
        let change = [(path, Some(ino))];
        apply(&mut self.visible, &change);
        apply(&mut self.durable, &change);
    }

    /// Makes changes, all in the same directory, visible; they are durable after the next sync of it.
    pub(super) fn change(&mut self, changes: Vec<Change>) {
        apply(&mut self.visible, &changes);
        if let Some((name, _)) = changes.first() {
            self.pending.push(Arc::new(DirOp { dir: parent(name).to_path_buf(), changes }));
        }
    }

    /// Renames. Between two directories the old name may survive beside the new one, or neither.
    pub(super) fn rename(&mut self, from: PathBuf, to: PathBuf, ino: u64) {
        if parent(&from) == parent(&to) {
            self.change(vec![(from, None), (to, Some(ino))]);
        } else {
            self.change(vec![(to, Some(ino))]);
            self.change(vec![(from, None)]);
        }
    }

    /// Makes the changes in a directory durable, those that `keep` says; forgets about all of them.
    pub(super) fn sync(&mut self, dir: &Path, mut keep: impl FnMut() -> bool) {
        let durable = &mut self.durable;
        self.pending.retain(|op| {
            if op.dir == dir && keep() {
                apply(durable, &op.changes);
            }
            op.dir != dir
        });
    }

    /// Names of an inode.
    pub(super) fn links(&self, ino: u64) -> u64 {
        self.visible.values().filter(|&&other| other == ino).count() as u64
    }

    /// True if something is below `path`.
    pub(super) fn has_children(&self, path: &Path) -> bool {
        let after = (Bound::Excluded(path), Bound::Unbounded);
        self.visible.range::<Path, _>(after).next().is_some_and(|(name, _)| name.starts_with(path))
    }

    /// The names in a directory, sorted.
    pub(super) fn list(&self, dir: &Path) -> Vec<String> {
        let inside = self.visible.keys().filter_map(|name| name.strip_prefix(dir).ok());
        let first =
            inside.filter_map(|rest| rest.components().next()?.as_os_str().to_str().map(str::to_owned));
        first.collect::<BTreeSet<String>>().into_iter().collect()
    }

    /// Inodes that a name leads to, now or after some crash.
    pub(super) fn reachable(&self) -> BTreeSet<u64> {
        let pending = self.pending.iter().flat_map(|op| op.changes.iter().filter_map(|(_, ino)| *ino));
        self.visible.values().chain(self.durable.values()).copied().chain(pending).collect()
    }

    /// The names after a power loss: any of the changes that are not durable.
    pub(super) fn after_power_loss(&self, rng: &mut Rng) -> Names {
        let (plan, chosen) = (rng.below(6), rng.index(self.pending.len().max(1)));
        let mut names = self.durable.clone();
        for (i, op) in self.pending.iter().enumerate() {
            let keep = match plan {
                0 => false,
                1 => true,
                2 => i == chosen,
                3 => i != chosen,
                4 => i < chosen,
                _ => rng.chance(1, 2),
            };
            if keep {
                apply(&mut names, &op.changes);
            }
        }
        Names { visible: names.clone(), durable: names, pending: Vec::new() }
    }
}
