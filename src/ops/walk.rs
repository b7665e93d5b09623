//! Finding things by reading superblocks only: the files of a chain, a snapshot by its name. No locks are taken.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::chain::{
    SnapshotName, check_parent, find_foreign, find_parent, image_file, open_base, snapshot_path, split_name,
};
use crate::error::{Error, Kind, Result, printable};
use crate::format::{LayerId, Parent, Superblock};
use crate::layer::read_slots;
use crate::limits::MAX_CHAIN;
use crate::storage::{OpenHow, Storage};

/// Entries of a directory that are looked into for a snapshot's name.
const MAX_LOOKED_AT: usize = 10_000;

/// A layer in a chain.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its real file.
    pub path: PathBuf,
    /// Its newest superblock.
    pub sb: Superblock,
}

/// A chain, found by its superblocks.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The layers, the top one first.
    pub layers: Vec<Link>,
    /// The foreign base.
    pub base: Option<PathBuf>,
}

/// Reads the newest superblock of the layer `path`.
///
/// # Errors
/// Not a regular file, not a layer, or damaged, with path and offset.
pub async fn read_superblock<S: Storage>(storage: &S, path: &Path) -> Result<Superblock> {
    let how = OpenHow { write: false, direct: false, regular_only: true };
    let file = storage.open(path, how).map_err(|e| Error::io("open", e).at(path))?;
    Ok(read_slots(&file, path).await?.newest)
}

/// Finds the parents of the layer `top`, whose superblock is `sb`, down to the base. Each must be what its child was
/// made on.
///
/// # Errors
/// `ParentMissing`, `ParentChanged`, `Corrupt` for a circle.
pub async fn walk<S: Storage>(storage: &S, top: &Path, sb: Superblock, search: &[PathBuf]) -> Result<Chain> {
    let mut seen = BTreeSet::from([sb.layer]);
    let mut chain = Chain { layers: vec![Link { path: top.to_path_buf(), sb }], base: None };
    while let Some(child) = chain.layers.last() {
        match parent_of(storage, child, search, &mut seen).await? {
            Below::Nothing => break,
            Below::Base(path) => {
                chain.base = Some(path);
                break;
            }
            Below::Layer(link) => chain.layers.push(*link),
        }
    }
    Ok(chain)
}

/// What a layer stands on.
#[derive(Debug)]
pub(super) enum Below {
    Nothing,
    Base(PathBuf),
    Layer(Box<Link>),
}

/// One step of [`walk`]; `seen` holds the layers above.
pub(super) async fn parent_of<S: Storage>(
    storage: &S,
    child: &Link,
    search: &[PathBuf],
    seen: &mut BTreeSet<LayerId>,
) -> Result<Below> {
    match &child.sb.parent {
        Parent::None => Ok(Below::Nothing),
        parent @ Parent::Foreign { hints, .. } => {
            let at = find_foreign(storage, &child.path, hints, search)?;
            open_base(storage, &at, parent).await?;
            Ok(Below::Base(at))
        }
        Parent::Layer { layer, .. } => {
            if !seen.insert(*layer) {
                return Err(Error::corrupt("the chain of parents is a circle").at(&child.path));
            }
            if seen.len() > MAX_CHAIN {
                let text = format!("the chain of parents is longer than {MAX_CHAIN}");
                return Err(Error::new(Kind::Unsupported, text).at(&child.path));
            }
            let (path, sb) = find_parent(storage, &child.path, &child.sb, search).await?;
            check_parent(&child.sb, &sb).map_err(|e| e.at(&path))?;
            Ok(Below::Layer(Box::new(Link { path, sb })))
        }
    }
}

/// The real file of `IMAGE` or `IMAGE@NAME`: a snapshot is looked up in the image's chain, then beside it.
///
/// # Errors
/// `NotFound`, `BadName`, or why the image cannot be read.
pub async fn locate<S: Storage>(storage: &S, given: &Path, search: &[PathBuf]) -> Result<PathBuf> {
    let (image, name) = split_name(given)?;
    let image = image_file(storage, &image)?;
    match name {
        None => Ok(image),
        Some(name) => find_snapshot(storage, &image, &name, search).await,
    }
}

/// The file of snapshot `name` of the real file `image`.
///
/// # Errors
/// `NotFound`, or why the image cannot be read.
pub async fn find_snapshot<S: Storage>(
    storage: &S,
    image: &Path,
    name: &SnapshotName,
    search: &[PathBuf],
) -> Result<PathBuf> {
    let sb = read_superblock(storage, image).await?;
    let disk = sb.disk;
    let is_it = |sb: &Superblock| sb.sealed.as_ref().is_some_and(|s| s.name == name.as_str());
    let mut seen = BTreeSet::from([sb.layer]);
    let mut link = Link { path: image.to_path_buf(), sb };
    // A chain that cannot be followed to its end may still have the snapshot above that place, or beside the image.
    while let Ok(Below::Layer(parent)) = parent_of(storage, &link, search, &mut seen).await {
        if is_it(&parent.sb) {
            return Ok(parent.path);
        }
        link = *parent;
    }
    for candidate in beside(storage, image, name) {
        let Ok(real) = image_file(storage, &candidate) else { continue };
        if let Ok(sb) = read_superblock(storage, &real).await
            && sb.disk == disk
            && is_it(&sb)
        {
            return Ok(real);
        }
    }
    let text = format!("it has no snapshot {:?}", printable(name.as_str()));
    Err(Error::new(Kind::NotFound, text).at(image))
}

/// Files beside `image` that may be its snapshot `name`: the one that is called so, then all snapshots' files.
fn beside<S: Storage>(storage: &S, image: &Path, name: &SnapshotName) -> Vec<PathBuf> {
    let dir = image.parent().unwrap_or(Path::new(""));
    let mut places = vec![snapshot_path(image, name)];
    let names = storage.list(dir).unwrap_or_default();
    places.extend(names.iter().filter(|n| n.contains('@')).take(MAX_LOOKED_AT).map(|n| dir.join(n)));
    places
}
