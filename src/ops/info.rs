//! `info`: what a layer's superblock says, without locks, also while the image is in use.

use std::path::{Path, PathBuf};

use super::walk::{Chain, walk};
use crate::error::{Error, Result};
use crate::format::{FEATURES_COMPAT, FEATURES_RO_COMPAT, Holder, Superblock};
use crate::layer::read_slots;
use crate::storage::{File, Lock, Meta, OpenHow, Storage};

/// Facts of one layer file.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// The real file.
    pub path: PathBuf,
    /// Its newest superblock.
    pub sb: Superblock,
    /// Both superblock slots verify, and nobody has it open for writing or died over it.
    pub clean: bool,
    /// Who has it open for writing.
    pub in_use_by: Option<Holder>,
    /// Facts of the file.
    pub meta: Meta,
}

impl LayerInfo {
    /// Names of the features that the layer has.
    pub fn features(&self) -> Vec<String> {
        let data = if self.sb.checksums.protects() { "crc32" } else { "no_data_checksums" };
        let mut names = vec![data.to_owned()];
        let sets = [
            ("compat", self.sb.compat, FEATURES_COMPAT),
            ("ro_compat", self.sb.ro_compat, FEATURES_RO_COMPAT),
        ];
        for (set, bits, known) in sets {
            let unknown = (0..64).filter(|n| (bits & !known) >> n & 1 == 1);
            names.extend(unknown.map(|n| format!("unknown_{set}_{n}")));
        }
        names
    }
}

/// Reads the facts of the layer file `path`. Opens no other file.
///
/// # Errors
/// Not a regular file, not a layer, or damaged, with path and offset.
pub async fn info<S: Storage>(storage: &S, path: &Path) -> Result<LayerInfo> {
    let how = OpenHow { write: false, direct: false, regular_only: true };
    let file = storage.open(path, how).map_err(|e| Error::io("open", e).at(path))?;
    // Before the superblock: who closes the image in between leaves a clean one, which is then what is shown.
    let locked = file.is_locked(Lock::Shared).map_err(|e| Error::io("look at the lock", e).at(path))?;
    let slots = read_slots(&file, path).await?;
    let meta = file.meta().map_err(|e| Error::io("stat", e).at(path))?;
    let sb = slots.newest;
    let clean = slots.both_valid && sb.holder.is_none();
    let in_use_by = sb.holder.clone().filter(|holder| locked || !super::process::is_here(holder));
    Ok(LayerInfo { path: path.to_path_buf(), sb, clean, in_use_by, meta })
}

/// Reads the facts of the layer file `path` and of every layer below it, the top one first, and where the foreign base
/// is.
///
/// # Errors
/// As [`info`], and what is wrong with the chain.
pub async fn info_chain<S: Storage>(
    storage: &S,
    path: &Path,
    search: &[PathBuf],
) -> Result<(Vec<LayerInfo>, Option<PathBuf>)> {
    let top = info(storage, path).await?;
    let Chain { layers, base } = walk(storage, path, top.sb.clone(), search).await?;
    let mut infos = vec![top];
    for link in layers.iter().skip(1) {
        infos.push(info(storage, &link.path).await?);
    }
    Ok((infos, base))
}
