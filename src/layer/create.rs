//! Making a layer file.

use std::path::Path;

use super::slots::write_slot;
use crate::error::{Error, Result};
use crate::format::{DiskId, LayerId, Parent, Superblock};
use crate::limits;
use crate::storage::{File, Storage};

/// What a new layer is to be.
#[derive(Clone, Debug)]
pub struct NewLayer {
    /// The disk it belongs to; `None`: a new disk.
    pub disk: Option<DiskId>,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// 512 or 4096.
    pub sector_size: u32,
    /// Bytes of the journal ring.
    pub journal: u64,
    /// Each data block has a checksum.
    pub checksums: bool,
    /// What it stands on.
    pub parent: Parent,
    /// Permission bits of the file.
    pub mode: u32,
    /// Owner and group; `None`: the caller's.
    pub owner: Option<(u32, u32)>,
}

impl NewLayer {
    /// An empty disk of this size.
    pub fn empty(virtual_size: u64) -> NewLayer {
        NewLayer {
            disk: None,
            virtual_size,
            sector_size: 512,
            journal: limits::DEFAULT_JOURNAL_BYTES,
            checksums: true,
            parent: Parent::None,
            mode: 0o600,
            owner: None,
        }
    }
}

/// A new random identity.
///
/// # Errors
/// What the host says.
pub fn random_id<S: Storage>(storage: &S) -> Result<[u8; 16]> {
    let mut id = [0; 16];
    storage.random(&mut id).map_err(|e| Error::io("read random bytes", e))?;
    Ok(id)
}

/// Makes the file `path` with an empty layer, durable but for its name: the caller syncs the directory. A file that
/// could not be finished is removed.
///
/// # Errors
/// `Exists` if the name is taken; anything the host says.
pub async fn create<S: Storage>(storage: &S, path: &Path, new: &NewLayer) -> Result<S::File> {
    let file = storage.create(path, new.mode).map_err(|e| Error::io("create", e).at(path))?;
    match fill(storage, &file, new).await {
        Ok(()) => Ok(file),
        Err(e) => {
            // The name is ours: it was made with O_EXCL above.
            let _ = storage.unlink(path);
            Err(e.at(path))
        }
    }
}

async fn fill<S: Storage>(storage: &S, file: &S::File, new: &NewLayer) -> Result<()> {
    if let Some((uid, gid)) = new.owner {
        file.set_owner(uid, gid).map_err(|e| Error::io("set owner", e))?;
    }
    let layer = LayerId(random_id(storage)?);
    let disk = match new.disk {
        Some(disk) => disk,
        None => DiskId(random_id(storage)?),
    };
    let mut sb = Superblock::new_layer(layer, disk, new.virtual_size, new.sector_size, new.journal);
    if !new.checksums {
        sb.without_checksums();
    }
    sb.parent = new.parent.clone();
    sb.created_ns = storage.now_ns();
    sb.inode = file.meta().map_err(|e| Error::io("stat", e))?.id.ino;
    file.set_len(sb.block_area.pos()).map_err(|e| Error::io("set the size", e))?;
    // Both slots, so that a slot that does not verify always means a torn or damaged one.
    write_slot(file, &sb).await?;
    sb.generation += 1;
    write_slot(file, &sb).await?;
    file.sync_data().await.result.map_err(|e| Error::io("fdatasync", e))?;
    Ok(())
}
