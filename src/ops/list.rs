//! `list`: the disks in some places, their snapshots and forks, and what nobody needs. Reads superblocks, and of layers that
//! nobody changes their trees. Takes shared locks only for those.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::map::hidden;
use super::walk::{Below, Link, parent_of, read_superblock};
use crate::chain::{OpenOptions, image_file, open_chain};
use crate::error::{Error, Kind, Result};
use crate::format::{DiskId, Joining, LayerId, Magic, Parent};
use crate::storage::{File, FileId, FileKind, IoBuf, Meta, OpenHow, Storage};
use crate::units::BLOCK_SIZE;

/// What is in some places.
#[derive(Debug, Default)]
pub struct Listing {
    /// Disks by path; those of which only snapshots are there come last.
    pub disks: Vec<Disk>,
    /// Sealed layers in the places that no disk there needs: path and bytes allocated. `None`: a chain cannot be followed
    /// to its end, so that it cannot be told.
    pub unused: Option<Vec<(PathBuf, u64)>>,
    /// Why chains cannot be followed, and layers not be read.
    pub problems: Vec<Error>,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// Its identity.
    pub id: DiskId,
    /// Its head; `None`: only snapshots are there.
    pub path: Option<PathBuf>,
    /// Bytes allocated to the head.
    pub head_bytes: u64,
    /// What the head stands on, if that is another disk's layer, or a base.
    pub stands_on: Option<PathBuf>,
    /// Its snapshots, the newest first; also those that rollbacks have kept.
    pub snapshots: Vec<SnapshotEntry>,
}

/// A snapshot of a disk.
#[derive(Clone, Debug)]
pub struct SnapshotEntry {
    /// Its name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Identity of its content.
    pub layer: LayerId,
    /// When it was taken, nanoseconds since 1970.
    pub created_ns: i64,
    /// Layers of its chain, itself included.
    pub depth: usize,
    /// Bytes that deleting it would free. `None`: not known while the layer above is in use, or it cannot be deleted,
    /// as several layers stand on it, or another disk's.
    pub exclusive: Option<u64>,
    /// The heads of disks that need it, its own left out.
    pub used_by: Vec<PathBuf>,
    /// It is being deleted, and cannot be used any more.
    pub condemned: bool,
}

/// A layer that was found.
#[derive(Clone, Debug)]
struct Found {
    link: Link,
    allocated: u64,
    /// It is in one of the places, not only in a chain that begins there.
    in_place: bool,
    depth: usize,
    used_by: BTreeSet<PathBuf>,
    exclusive: Option<u64>,
}

/// Lists what is in `places`: directories, or images, of which their directory is looked through for what belongs to them.
/// `options` are for reading.
///
/// # Errors
/// A place that is not there, or is no image. What is wrong with other files is listed.
pub async fn list<S: Storage>(storage: &S, places: &[PathBuf], options: &OpenOptions) -> Result<Listing> {
    let mut all =
        Collector { storage, options, found: Vec::new(), files: HashMap::new(), problems: Vec::new() };
    let mut wanted = Vec::new();
    for place in places {
        let real = storage.canonical(place).map_err(|e| Error::io("open", e).at(place))?;
        let meta = storage.meta(&real).map_err(|e| Error::io("open", e).at(place))?;
        if meta.kind == FileKind::Directory {
            wanted.push(None);
            all.directory(&real).await?;
        } else {
            let image = image_file(storage, place)?;
            wanted.push(Some(read_superblock(storage, &image).await?.disk));
            all.directory(image.parent().unwrap_or(Path::new(""))).await?;
        }
    }
    let whole = all.chains().await;
    all.exclusive().await;
    let Collector { found, problems, .. } = all;
    let only = wanted.into_iter().collect::<Option<Vec<DiskId>>>();
    Ok(arrange(&found, only.as_deref(), whole, problems))
}

struct Collector<'a, S: Storage> {
    storage: &'a S,
    options: &'a OpenOptions,
    found: Vec<Found>,
    /// Where each file is in `found`, whatever its names are.
    files: HashMap<FileId, usize>,
    problems: Vec<Error>,
}

impl<S: Storage> Collector<'_, S> {
    /// Finds the layers in `dir`.
    async fn directory(&mut self, dir: &Path) -> Result<()> {
        let mut names = self.storage.list(dir).map_err(|e| Error::io("read directory", e).at(dir))?;
        names.sort_unstable();
        // What is being made has a hidden name.
        for name in names.iter().filter(|name| !name.starts_with('.')) {
            // A link's file belongs to the disks here, but lies elsewhere.
            let Ok(path) = self.storage.canonical(&dir.join(name)) else { continue };
            let in_place = path.parent() == Some(dir);
            let Ok(meta) = self.storage.meta(&path) else { continue };
            if meta.kind != FileKind::Regular {
                continue;
            }
            match read_superblock(self.storage, &path).await {
                Ok(sb) => {
                    let at = self.add(Link { path, sb }, &meta);
                    self.found[at].in_place |= in_place;
                }
                Err(e) if self.is_layer(&path).await => self.problems.push(e),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Adds a layer, once, whatever its names are. Gives where it is.
    fn add(&mut self, link: Link, meta: &Meta) -> usize {
        *self.files.entry(meta.id).or_insert_with(|| {
            self.found.push(Found {
                link,
                allocated: meta.allocated,
                in_place: false,
                depth: 0,
                used_by: BTreeSet::new(),
                exclusive: None,
            });
            self.found.len() - 1
        })
    }

    /// True if one of the superblock slots was a layer's.
    async fn is_layer(&self, path: &Path) -> bool {
        let how = OpenHow { write: false, direct: false, regular_only: true };
        let Ok(file) = self.storage.open(path, how) else { return true };
        for slot in 0..2 {
            let buf = IoBuf::zeroed(BLOCK_SIZE);
            let read = file.read(buf.clone(), slot * BLOCK_SIZE as u64).await;
            if read.result.is_ok() && buf.to_vec().starts_with(&Magic::Superblock.bytes()) {
                return true;
            }
        }
        false
    }

    /// Follows every chain from its top. Gives whether all of them lead to their ends.
    async fn chains(&mut self) -> bool {
        let mut whole = self.problems.is_empty();
        for top in self.tops() {
            let top = self.found[top].link.clone();
            let mut seen = BTreeSet::from([top.sb.layer]);
            let head = top.sb.sealed.is_none().then(|| top.path.clone());
            let mut links = vec![top];
            while let Some(child) = links.last() {
                match parent_of(self.storage, child, &self.options.search, &mut seen).await {
                    Ok(Below::Layer(parent)) => links.push(*parent),
                    Ok(Below::Nothing | Below::Base(_)) => break,
                    Err(e) => {
                        // Behind a base there is nothing that could be needed.
                        whole &= matches!(child.sb.parent, Parent::Foreign { .. });
                        self.problems.push(e);
                        break;
                    }
                }
            }
            self.belongs_to(links, head.as_deref());
        }
        whole
    }

    /// The layers on which no other one stands, by their places.
    fn tops(&self) -> Vec<usize> {
        let parents = parents(&self.found);
        let is_top =
            |found: &Found| found.link.sb.sealed.is_none() || !parents.contains(&found.link.sb.layer);
        (0..self.found.len()).filter(|at| is_top(&self.found[*at])).collect()
    }

    /// Notes that the chain `links` needs its layers, and under which names it finds them.
    fn belongs_to(&mut self, links: Vec<Link>, head: Option<&Path>) {
        let len = links.len();
        for (i, link) in links.into_iter().enumerate() {
            let Ok(meta) = self.storage.meta(&link.path) else { continue };
            let path = link.path.clone();
            let at = self.add(link, &meta);
            let found = &mut self.found[at];
            found.link.path = path;
            found.depth = len - i;
            found.used_by.extend(head.map(Path::to_path_buf));
        }
    }

    /// Finds out what deleting each snapshot would free: all of it if nothing stands on it, or else what the only layer
    /// above it hides.
    async fn exclusive(&mut self) {
        let mut above: HashMap<LayerId, Vec<(LayerId, DiskId)>> = HashMap::new();
        for Found { link, .. } in &self.found {
            if let Some(parent) = parent(link) {
                above.entry(parent).or_default().push((link.sb.layer, link.sb.disk));
            }
        }
        let mut freed: HashMap<LayerId, u64> = HashMap::new();
        for top in self.tops() {
            let Found { link: top, allocated, .. } = self.found[top].clone();
            if top.sb.sealed.is_some() {
                freed.insert(top.sb.layer, allocated);
            }
            self.hidden_in(&top, &above, &mut freed).await;
        }
        for found in &mut self.found {
            found.exclusive = freed.get(&found.link.sb.layer).copied();
        }
    }

    /// What is hidden in the layers of the chain `top`, where one layer of the same disk is above.
    async fn hidden_in(
        &mut self,
        top: &Link,
        above: &HashMap<LayerId, Vec<(LayerId, DiskId)>>,
        freed: &mut HashMap<LayerId, u64>,
    ) {
        let mut opened = open_chain(self.storage, &top.path, self.options).await;
        if let Err(e) = &opened
            && e.kind() == Kind::InUse
            && let Ok(Below::Layer(next)) =
                parent_of(self.storage, top, &self.options.search, &mut BTreeSet::new()).await
        {
            // Of a head that is being served nothing can be said, but of those below it.
            opened = open_chain(self.storage, &next.path, self.options).await;
        }
        // Why a chain cannot be opened is known from following it.
        let Ok((image, _)) = opened else { return };
        let chain = image.chain();
        for (i, pair) in chain.layers.windows(2).enumerate() {
            let [upper, lower] = [&pair[0].sb, &pair[1].sb];
            let only = above.get(&lower.layer).is_some_and(|above| *above == [(upper.layer, lower.disk)]);
            if !only || freed.contains_key(&lower.layer) {
                continue;
            }
            match hidden(&chain, i).await {
                Ok(bytes) => _ = freed.insert(lower.layer, bytes),
                Err(e) => self.problems.push(e),
            }
        }
    }
}

/// The layers on which others stand.
fn parents(found: &[Found]) -> HashSet<LayerId> {
    found.iter().filter_map(|found| parent(&found.link)).collect()
}

fn parent(link: &Link) -> Option<LayerId> {
    match link.sb.parent {
        Parent::Layer { layer, .. } => Some(layer),
        Parent::None | Parent::Foreign { .. } => None,
    }
}

/// Puts what was found into disks; with `only`, those disks and what stands on them.
fn arrange(found: &[Found], only: Option<&[DiskId]>, whole: bool, problems: Vec<Error>) -> Listing {
    let parents = parents(found);
    // Without the parent of a snapshot that was broken off before its seal.
    let is_head = |f: &&Found| f.link.sb.sealed.is_none() && !parents.contains(&f.link.sb.layer);
    let heads: Vec<&Found> = found.iter().filter(is_head).collect();
    // The disks of the layers that a head needs.
    let below = |head: &Found| -> HashSet<DiskId> {
        let needs = |f: &&Found| f.used_by.contains(&head.link.path);
        found.iter().filter(needs).map(|f| f.link.sb.disk).collect()
    };
    let wanted = |disk: DiskId| only.is_none_or(|only| only.contains(&disk));
    let mut disks = Vec::new();
    for head in &heads {
        if wanted(head.link.sb.disk) || only.is_some() && below(head).into_iter().any(wanted) {
            disks.push(disk(head.link.sb.disk, Some(head), found));
        }
    }
    let with_heads: HashSet<DiskId> = heads.iter().map(|head| head.link.sb.disk).collect();
    let mut without: Vec<DiskId> = Vec::new();
    for found in found.iter().filter(|f| f.in_place && f.link.sb.sealed.is_some()) {
        let id = found.link.sb.disk;
        if !with_heads.contains(&id) && !without.contains(&id) && wanted(id) {
            without.push(id);
        }
    }
    disks.extend(without.into_iter().map(|id| disk(id, None, found)));
    let is_unused = |f: &&Found| f.in_place && f.link.sb.sealed.is_some() && f.used_by.is_empty();
    let of_these = found.iter().filter(is_unused).filter(|f| wanted(f.link.sb.disk));
    let unused = of_these.map(|f| (f.link.path.clone(), f.allocated)).collect();
    Listing { disks, unused: whole.then_some(unused), problems }
}

fn disk(id: DiskId, head: Option<&Found>, found: &[Found]) -> Disk {
    let path = head.map(|head| head.link.path.clone());
    let entry = |f: &Found| {
        let sealed = f.link.sb.sealed.as_ref()?;
        let used_by = f.used_by.iter().filter(|user| Some(*user) != path.as_ref()).cloned().collect();
        Some(SnapshotEntry {
            name: sealed.name.clone(),
            path: f.link.path.clone(),
            layer: f.link.sb.layer,
            created_ns: sealed.time_ns,
            depth: f.depth,
            exclusive: f.exclusive,
            used_by,
            condemned: f.link.sb.joining.as_ref().is_some_and(Joining::is_condemned),
        })
    };
    let mut snapshots: Vec<SnapshotEntry> =
        found.iter().filter(|f| f.link.sb.disk == id).filter_map(entry).collect();
    // Those of one moment by their place in the chain.
    snapshots.sort_by_key(|s| std::cmp::Reverse((s.created_ns, s.depth)));
    let stands_on = head.and_then(|head| stands_on(head, found));
    Disk { id, path, head_bytes: head.map_or(0, |head| head.allocated), stands_on, snapshots }
}

/// The first layer below the head that is another disk's; of a disk on a base that one, as recorded.
fn stands_on(head: &Found, found: &[Found]) -> Option<PathBuf> {
    let mut needed: Vec<&Found> = found.iter().filter(|f| f.used_by.contains(&head.link.path)).collect();
    needed.sort_by_key(|f| std::cmp::Reverse(f.depth));
    if let Some(other) = needed.iter().find(|f| f.link.sb.disk != head.link.sb.disk) {
        return Some(other.link.path.clone());
    }
    match &needed.last().map_or(&head.link.sb, |last| &last.link.sb).parent {
        Parent::Foreign { hints, .. } | Parent::Layer { hints, .. } if !hints.absolute.is_empty() => {
            Some(PathBuf::from(&hints.absolute))
        }
        Parent::None | Parent::Foreign { .. } | Parent::Layer { .. } => None,
    }
}
