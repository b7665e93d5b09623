//! The two superblock slots.

use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::format::Superblock;
use crate::storage::{File, IoBuf, IoVecs, read_up_to, write_all};
use crate::units::{BLOCK, BLOCK_SIZE, PBlock};

/// What the slots hold.
#[derive(Debug)]
pub struct Slots {
    /// The valid one with the higher generation.
    pub newest: Superblock,
    /// The other one, if it verifies.
    pub older: Option<Superblock>,
    /// Both verify. Otherwise one was torn by a crash, or is damaged; the journal tells which.
    pub both_valid: bool,
    /// What is wrong with the other slot.
    pub damage: Option<Error>,
}

/// Reads both slots and takes the newest valid one.
///
/// # Errors
/// `Unsupported` for a later format, `Corrupt` if no slot verifies or both have one generation, with the path.
pub async fn read_slots<F: File>(file: &F, path: &Path) -> Result<Slots> {
    let short = |bytes: u64| {
        let text = format!("not a cowdisk layer: {bytes} bytes are too few for its superblocks");
        Error::corrupt(text).at(path)
    };
    // Not even read: there are files without length, like /proc/kmsg, whose readers wait for ever.
    let len = file.meta().map_err(|e| Error::io("stat", e).at(path))?.len;
    if len < 2 * BLOCK {
        return Err(short(len));
    }
    let buf = IoBuf::zeroed(2 * BLOCK_SIZE);
    let read =
        read_up_to(file, buf.clone(), 0).await.map_err(|e| Error::io("read superblock", e).at(path))?;
    if read < 2 * BLOCK_SIZE {
        return Err(short(read as u64));
    }
    let bytes = buf.to_vec();
    let (first, second) = bytes.split_at(BLOCK_SIZE);
    let slots = [Superblock::decode(first, PBlock(0)), Superblock::decode(second, PBlock(1))];
    match slots {
        [Ok(a), Ok(b)] if a.layer != b.layer && !renamed(&a, &b) => {
            Err(Error::corrupt("superblock: the two slots belong to different layers").at(path))
        }
        [Ok(a), Ok(b)] => {
            let (newest, older) = if a.generation > b.generation { (a, b) } else { (b, a) };
            Ok(Slots { newest, older: Some(older), both_valid: true, damage: None })
        }
        // A later format is refused whole: its other slot may be older and look like ours.
        [Err(e), _] | [_, Err(e)] if e.kind() == Kind::Unsupported => Err(e.at(path)),
        [Ok(newest), Err(e)] => one_slot(newest, second, e.at(path)).map_err(|e| e.at(path)),
        [Err(e), Ok(newest)] => one_slot(newest, first, e.at(path)).map_err(|e| e.at(path)),
        [Err(e), Err(_)] if bytes.starts_with(b"COWD") => Err(e.at(path)),
        [Err(_), Err(_)] => Err(Error::corrupt("not a cowdisk layer: no valid superblock").at(path)),
    }
}

/// For the only superblock that verifies, and the bytes of the other slot. They may be a superblock that belongs where the
/// valid one stands, and is newer: a write went astray, and what it has overwritten may have been the newest one.
fn one_slot(valid: Superblock, other: &[u8], damage: Error) -> Result<Slots> {
    match Superblock::decode(other, Superblock::slot(valid.generation)) {
        Ok(Superblock { generation, .. }) if generation > valid.generation => Err(Error::corrupt(format!(
            "superblock: generation {generation} stands in the wrong slot, the newest one may be gone"
        ))),
        _ => Ok(Slots { newest: valid, older: None, both_valid: false, damage: Some(damage) }),
    }
}

/// True if one superblock may be the other's next with a new layer id: of the same file, one generation on. Anything
/// else is one that was written to the wrong file.
fn renamed(a: &Superblock, b: &Superblock) -> bool {
    a.generation.abs_diff(b.generation) == 1 && a.created_ns == b.created_ns
}

/// Writes the slot of `sb.generation`; not durable before the next sync.
pub async fn write_slot<F: File>(file: &F, sb: &Superblock) -> Result<()> {
    let block = sb.encode()?;
    let pos = Superblock::slot(sb.generation).pos();
    let (result, _) = write_all(file, IoVecs::one(IoBuf::from_slice(&block[..])), pos).await;
    result.map_err(|e| Error::io("write superblock", e).offset(pos))
}
