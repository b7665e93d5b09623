//! A foreign base: found by a hint, served only if it is the file the layer was made on.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Error, Kind, Result};
use crate::format::{ForeignFormat, Parent, PathHints};
use crate::storage::{File, IoBuf, OpenHow, Storage, read_up_to};
use crate::units::{BLOCK, BLOCK_SIZE, blocks_for};

/// Blocks that are sampled.
const SAMPLES: u64 = 16;

/// An open raw base.
#[derive(Clone, Debug)]
pub struct Base<F> {
    /// The file, buffered: forks of one base share the page cache.
    pub file: F,
    /// Its size in bytes when the layer was made; what is behind reads as zeros.
    pub size: u64,
}

/// SHA-256 over up to 16 blocks spread over the file, each after its index, and the file's size (format-spec.md 3.2).
pub async fn sample<F: File>(file: &F, size: u64) -> std::io::Result<[u8; 32]> {
    let blocks = blocks_for(size);
    let count = blocks.min(SAMPLES);
    let mut hasher = Sha256::new();
    let buf = IoBuf::zeroed(BLOCK_SIZE);
    for i in 0..count {
        let index = if blocks <= SAMPLES { i } else { i * (blocks - 1) / (SAMPLES - 1) };
        let len = (size - index * BLOCK).min(BLOCK) as usize;
        let read = read_up_to(file, buf.slice(0..len), index * BLOCK).await?;
        hasher.update(index.to_le_bytes());
        hasher.update(buf.slice(0..read).to_vec());
    }
    hasher.update(size.to_le_bytes());
    Ok(hasher.finalize().into())
}

/// Describes the raw file `path` as a parent.
///
/// # Errors
/// Not a regular file, or what the host says.
pub async fn describe_raw<S: Storage>(storage: &S, path: &Path, hints: PathHints) -> Result<(Parent, u64)> {
    let file = open_regular(storage, path)?;
    let meta = file.meta().map_err(|e| Error::io("stat", e).at(path))?;
    let sample = sample(&file, meta.len).await.map_err(|e| Error::io("read base", e).at(path))?;
    let parent = Parent::Foreign {
        format: ForeignFormat::Raw,
        size: meta.len,
        mtime_ns: meta.mtime_ns,
        sample,
        hints,
    };
    Ok((parent, meta.len))
}

/// Opens the base that `parent` describes at `path`. Nothing of it is served before size, time and content agree.
///
/// # Errors
/// `ParentChanged` with what differs.
pub async fn open_base<S: Storage>(storage: &S, path: &Path, parent: &Parent) -> Result<Base<S::File>> {
    let Parent::Foreign { format: ForeignFormat::Raw, size, mtime_ns, sample: expected, .. } = parent else {
        return Err(Error::new(Kind::ParentChanged, "not a foreign base").at(path));
    };
    let file = open_regular(storage, path)?;
    let meta = file.meta().map_err(|e| Error::io("stat", e).at(path))?;
    let changed = |what: String| {
        let error = Error::new(Kind::ParentChanged, format!("the base is not what it was: {what}")).at(path);
        Err(error)
    };
    if meta.len != *size {
        return changed(format!("size {} instead of {size}", meta.len));
    }
    if meta.mtime_ns != *mtime_ns {
        return changed(format!("modification time {} ns instead of {mtime_ns} ns", meta.mtime_ns));
    }
    let now = sample(&file, *size).await.map_err(|e| Error::io("read base", e).at(path))?;
    if now != *expected {
        return changed("its content differs".into());
    }
    Ok(Base { file, size: *size })
}

fn open_regular<S: Storage>(storage: &S, path: &Path) -> Result<S::File> {
    let how = OpenHow { write: false, direct: false, regular_only: true };
    storage.open(path, how).map_err(|e| Error::io("open base", e).at(path))
}
