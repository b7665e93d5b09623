//! `create`: a new image, empty or on a base.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::process;
use super::resize::with_growth;
use crate::chain::{
    Access, ImageQueue, OpenOptions, describe_raw, hints_between, open_chain, unused_temporary,
};
use crate::error::{Error, Kind, Result};
use crate::format::{Joining, Parent, PathHints, Superblock};
use crate::layer::{self, NewLayer, read_slots, sync_sealed};
use crate::limits;
use crate::storage::{File, FileKind, Lock, Meta, OpenHow, Storage, sync_directory_of};
use crate::units::BLOCK;

/// Permission bits of a new file, before the umask.
const MODE: u32 = 0o666;

/// The format of a base. It is always named, never guessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BaseFormat {
    /// A sealed layer.
    #[default]
    Cow,
    /// A raw disk image.
    Raw,
}

/// What the new image is to be.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Size of the disk in bytes; `None`: the base's.
    pub size: Option<u64>,
    /// What it stands on.
    pub base: Option<(PathBuf, BaseFormat)>,
    /// 512 or 4096; `None`: that of a cow base, or 512.
    pub sector_size: Option<u32>,
    /// Bytes of the journal; `None`: the default.
    pub journal: Option<u64>,
    /// Data has no checksums.
    pub no_checksums: bool,
    /// Replace a file of that name, unless it is in use.
    pub force: bool,
}

/// Makes the image `path`. It appears there complete and durable, or not at all. Gives its file and superblock.
///
/// # Errors
/// `Usage` for sizes out of range, `Exists`, `InUse`, whatever is wrong with the base, what the host says.
pub async fn create<S: Storage>(
    storage: &S,
    path: &Path,
    options: &CreateOptions,
) -> Result<(PathBuf, Superblock)> {
    let path = real_place(storage, path)?;
    // Held until the new file has taken the old one's place.
    let replaced = take_over(storage, &path, options.force).await?;
    let (new, border) = describe(storage, &path, options, replaced.as_ref().map(|(_, meta)| meta)).await?;
    let temporary = unused_temporary(storage, &path)?;
    let file = layer::create(storage, &temporary, &new).await?;
    let finished = match border {
        Some(border) => zero_behind(storage, &temporary, border).await,
        None => Ok(()),
    };
    let placed = finished.and_then(|()| put_in_place(storage, &temporary, &path, replaced.is_some()));
    if placed.is_err() {
        // Ours: it was made with O_EXCL.
        let _ = storage.unlink(&temporary);
    }
    placed?;
    Ok((path.clone(), read_slots(&file, &path).await?.newest))
}

/// Where a new image goes: the directory without symbolic links, and a name that an image may have.
pub(super) fn real_place<S: Storage>(storage: &S, path: &Path) -> Result<PathBuf> {
    let bad = |why: &str| Err(Error::new(Kind::BadName, why).at(path));
    let Some(name) = path.file_name() else { return bad("not a name for a file") };
    let Some(text) = name.to_str() else { return bad("the name is not valid UTF-8") };
    if text.contains('@') {
        return bad("`@` in a name is for snapshots: a new image has none");
    }
    if path.to_string_lossy().ends_with('/') {
        return bad("not a name for a file");
    }
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let dir = storage.canonical(dir).map_err(|e| Error::io("find the directory", e).at(dir))?;
    let place = dir.join(name);
    // A symbolic link to a file stands for that file.
    Ok(storage.canonical(&place).unwrap_or(place))
}

/// The file that is to be replaced, locked; `None`: there is none.
pub(super) async fn take_over<S: Storage>(
    storage: &S,
    path: &Path,
    force: bool,
) -> Result<Option<(S::File, Meta)>> {
    let Ok(meta) = storage.meta(path) else { return Ok(None) };
    if !force || meta.kind != FileKind::Regular {
        let what = if meta.kind == FileKind::Regular { "it exists" } else { "it exists and is not a file" };
        return Err(Error::new(Kind::Exists, what).at(path));
    }
    let how = OpenHow { write: true, direct: false, regular_only: true };
    let file = storage.open(path, how).map_err(|e| Error::io("open", e).at(path))?;
    if !file.try_lock(Lock::Exclusive).map_err(|e| Error::io("lock", e).at(path))? {
        return Err(super::in_use(&file, path).await);
    }
    let meta = file.meta().map_err(|e| Error::io("stat", e).at(path))?;
    Ok(Some((file, meta)))
}

/// What a layer's last block holds behind the end of its disk may be anything: a larger disk on it gets zeros there.
async fn zero_behind<S: Storage>(storage: &S, path: &Path, border: u64) -> Result<()> {
    let open = OpenOptions::new(Access::Write(process::holder("")));
    let (image, _) = open_chain(storage, path, &open).await?;
    let image = Arc::new(image);
    let work = async {
        let queue = ImageQueue::new(image.clone());
        let done = queue.zero_behind(border).await;
        queue.close();
        let closed = image.close().await;
        done.and(closed)
    };
    with_growth(&image, work).await
}

/// Checks the options and looks at the base. Gives also where a layer below ends that is smaller, within a block.
pub(super) async fn describe<S: Storage>(
    storage: &S,
    path: &Path,
    options: &CreateOptions,
    replaced: Option<&Meta>,
) -> Result<(NewLayer, Option<u64>)> {
    let base = match &options.base {
        None => Base { parent: Parent::None, size: None, sector_size: None },
        Some((base, format)) => {
            let real = crate::chain::image_file(storage, base)?;
            let meta = storage.meta(&real).map_err(|e| Error::io("stat", e).at(&real))?;
            if replaced.is_some_and(|r| r.id == meta.id) {
                return Err(Error::new(Kind::BadName, "an image cannot be its own base").at(base));
            }
            describe_base(storage, path, &real, *format).await?
        }
    };
    let sector_size = options.sector_size.or(base.sector_size).unwrap_or(512);
    let journal = options.journal.unwrap_or(limits::DEFAULT_JOURNAL_BYTES);
    let size = options.size.or(base.size.map(|s| s.next_multiple_of(u64::from(sector_size))));
    let Some(size) = size else {
        return Err(Error::new(Kind::Usage, "a size is needed: --size, or a base that has one"));
    };
    check_numbers(size, sector_size, journal)?;
    let is_layer = matches!(base.parent, Parent::Layer { .. });
    let border = base.size.filter(|end| is_layer && *end < size && !end.is_multiple_of(BLOCK));
    let checksums = !options.no_checksums;
    let new = NewLayer {
        sector_size,
        journal,
        checksums,
        parent: base.parent,
        mode: MODE,
        ..NewLayer::empty(size)
    };
    Ok((new, border))
}

fn check_numbers(size: u64, sector_size: u32, journal: u64) -> Result<()> {
    let usage = |text: String| Err(Error::new(Kind::Usage, text));
    if !matches!(sector_size, 512 | 4096) {
        return usage(format!("sector size {sector_size}: only 512 and 4096 exist"));
    }
    if !(limits::MIN_DISK_BYTES..=limits::MAX_DISK_BYTES).contains(&size) {
        return usage(format!("size {size}: it must be between 512 bytes and 4 PiB"));
    }
    if !size.is_multiple_of(u64::from(sector_size)) {
        return usage(format!("size {size}: not a multiple of the sector size {sector_size}"));
    }
    if !(limits::MIN_JOURNAL_BYTES..=limits::MAX_JOURNAL_BYTES).contains(&journal) {
        return usage(format!("journal size {journal}: it must be between 256k and 1G"));
    }
    if !journal.is_multiple_of(BLOCK) {
        return usage(format!("journal size {journal}: not a multiple of 4096"));
    }
    Ok(())
}

struct Base {
    parent: Parent,
    size: Option<u64>,
    sector_size: Option<u32>,
}

async fn describe_base<S: Storage>(
    storage: &S,
    child: &Path,
    base: &Path,
    format: BaseFormat,
) -> Result<Base> {
    let hints = hints_between(child, base);
    if hints.absolute.is_empty() && hints.relative.is_empty() {
        let text = format!("a base's path must be valid UTF-8 of at most {} bytes", limits::MAX_PATH_BYTES);
        return Err(Error::new(Kind::BadName, text).at(base));
    }
    if format == BaseFormat::Raw {
        let (parent, size) = describe_raw(storage, base, hints).await?;
        return Ok(Base { parent, size: Some(size), sector_size: None });
    }
    let (parent, sb) = sealed_parent(storage, base, hints).await.map_err(|e| match e.kind() {
        Kind::Corrupt => name_the_format(e, child, base),
        _ => e,
    })?;
    Ok(Base { parent, size: Some(sb.virtual_size), sector_size: Some(sb.sector_size) })
}

/// What a new layer says of its parent, the sealed layer `base`, and that one's superblock. It is durable from here on.
///
/// # Errors
/// `InUse` while it is being changed; `Unsupported` if it is not sealed; why it cannot be read.
pub(super) async fn sealed_parent<S: Storage>(
    storage: &S,
    base: &Path,
    hints: PathHints,
) -> Result<(Parent, Superblock)> {
    let how = OpenHow { write: false, direct: false, regular_only: true };
    let file = storage.open(base, how).map_err(|e| Error::io("open base", e).at(base))?;
    if file.is_locked(Lock::Shared).map_err(|e| Error::io("lock", e).at(base))? {
        return Err(super::in_use(&file, base).await);
    }
    let sb = read_slots(&file, base).await?.newest;
    if sb.sealed.is_none() {
        let error = Error::new(Kind::Unsupported, "the base is not sealed: fork a snapshot of it").at(base);
        return Err(error.hint(format!("cowdisk snapshot '{}@NAME'", base.display())));
    }
    if sb.joining.as_ref().is_some_and(|joining| !matches!(joining, Joining::Above { .. })) {
        return Err(super::join_first(&sb, base));
    }
    sync_sealed(&file, base).await?;
    Ok((Parent::Layer { layer: sb.layer, root_crc: Some(sb.root.crc), hints }, sb))
}

fn name_the_format(error: Error, child: &Path, base: &Path) -> Error {
    let (child, base) = (child.display(), base.display());
    error.hint(format!("cowdisk create '{child}' --base '{base}' --base-format raw"))
}

/// Gives the finished file its name. The new name is durable when this is done.
fn put_in_place<S: Storage>(storage: &S, temporary: &Path, path: &Path, replace: bool) -> Result<()> {
    if replace {
        storage.rename(temporary, path).map_err(|e| Error::io("replace", e).at(path))?;
    } else {
        // A link replaces nothing, whatever appeared meanwhile.
        storage.link(temporary, path).map_err(|e| Error::io("create", e).at(path))?;
        if let Err(e) = storage.unlink(temporary) {
            let _ = storage.unlink(path);
            return Err(Error::io("remove", e).at(temporary));
        }
    }
    sync_directory_of(storage, path)
}
