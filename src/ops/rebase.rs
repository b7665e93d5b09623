//! `rebase`: what a disk stands on lies elsewhere now, or has another time stamp. Only the note of it changes, in the layer
//! that has it: the lowest one of the disk, or the one whose parent cannot be found.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::create::{BaseFormat, sealed_parent};
use super::walk::{Below, Link, parent_of, read_superblock};
use crate::chain::{check_parent, describe_raw, hints_between, image_file, is_parent};
use crate::error::{Error, Kind, Result};
use crate::format::{Joining, Parent, Superblock};
use crate::layer::Editor;
use crate::storage::Storage;

/// How a disk is put on another base.
#[derive(Clone, Debug, Default)]
pub struct RebaseOptions {
    /// The format of the base; `None`: that of the one before.
    pub format: Option<BaseFormat>,
    /// Also if the content is another one.
    pub force: bool,
    /// Nothing is changed.
    pub dry_run: bool,
    /// Further directories to look for parents in.
    pub search: Vec<PathBuf>,
}

/// What a rebase did, or would do.
#[derive(Clone, Debug)]
pub struct Rebased {
    /// The layer that says what the disk stands on.
    pub layer: PathBuf,
    /// What it says now.
    pub parent: Parent,
    /// It is another content than before: by force.
    pub forced: bool,
}

/// Notes that what the disk `image`, which nobody has open, stands on is the file `base`.
///
/// # Errors
/// `ParentChanged` for another content, `Usage` for a disk that stands on nothing or a format that it does not stand on,
/// `InUse`, or why a file cannot be read. Nothing has changed then.
pub async fn rebase<S: Storage>(
    storage: &S,
    image: &Path,
    base: &Path,
    options: &RebaseOptions,
) -> Result<Rebased> {
    let image = image_file(storage, image)?;
    let base = image_file(storage, base)?;
    let layer = lowest(storage, &image, &options.search).await?;
    let hints = hints_between(&layer.path, &base);
    if hints.absolute.is_empty() && hints.relative.is_empty() {
        return Err(Error::new(Kind::BadName, "a base's path must be valid UTF-8, and not so long").at(&base));
    }
    let (parent, forced) = match format(&layer, options)? {
        BaseFormat::Raw => {
            let (parent, _) = describe_raw(storage, &base, hints).await?;
            let same = same_content(&layer.sb.parent, &parent);
            (parent, accept(same, &base, options)?)
        }
        BaseFormat::Cow => {
            let (parent, sb) = sealed_parent(storage, &base, hints).await?;
            if sb.layer == layer.sb.layer {
                return Err(Error::new(Kind::BadName, "a layer cannot stand on itself").at(&base));
            }
            let same = same_layer(&layer.sb, &sb);
            (parent, accept(same, &base, options)?)
        }
    };
    let rebased = Rebased { layer: layer.path.clone(), parent: parent.clone(), forced };
    if options.dry_run {
        return Ok(rebased);
    }
    let meta = storage.meta(&layer.path).map_err(|e| Error::io("stat", e).at(&layer.path))?;
    if meta.links > 1 {
        let text = format!("its file has {} names, and the others would change with it", meta.links);
        return Err(Error::new(Kind::InUse, text).at(&layer.path));
    }
    // The journal of a head that was not closed stays as it is.
    let mut editor = Editor::open_unclosed(storage, &layer.path).await?;
    if editor.sb.parent != layer.sb.parent || editor.sb.joining != layer.sb.joining {
        return Err(Error::new(Kind::InUse, "it changed meanwhile").at(&layer.path));
    }
    editor.note(|sb| sb.parent = parent).await?;
    editor.twin().await?;
    Ok(rebased)
}

/// The first layer from the top that has no parent of its own disk to be found.
async fn lowest<S: Storage>(storage: &S, image: &Path, search: &[PathBuf]) -> Result<Link> {
    let sb = read_superblock(storage, image).await?;
    let disk = sb.disk;
    let mut seen = BTreeSet::from([sb.layer]);
    let mut link = Link { path: image.to_path_buf(), sb };
    while let Ok(Below::Layer(parent)) = parent_of(storage, &link, search, &mut seen).await {
        if parent.sb.disk != disk {
            break;
        }
        link = *parent;
    }
    match &link.sb.joining {
        // Its parent is one of two, and soon a third one.
        Some(Joining::Above { .. } | Joining::TakesLower { .. }) => {
            Err(super::join_first(&link.sb, &link.path))
        }
        _ => Ok(link),
    }
}

/// The format of the base: what the layer stands on says it, unless it is to be another one.
fn format(layer: &Link, options: &RebaseOptions) -> Result<BaseFormat> {
    let now = match layer.sb.parent {
        Parent::None => {
            return Err(Error::new(Kind::Usage, "it stands on nothing").at(&layer.path));
        }
        Parent::Layer { .. } => BaseFormat::Cow,
        Parent::Foreign { .. } => BaseFormat::Raw,
    };
    match options.format {
        Some(other) if other != now && !options.force => {
            let text = "it stands on a base of another format, so the content cannot be compared";
            Err(Error::new(Kind::ParentChanged, text).at(&layer.path))
        }
        format => Ok(format.unwrap_or(now)),
    }
}

/// Compares a raw base with what was known of it. Its time stamp may differ.
fn same_content(old: &Parent, new: &Parent) -> Result<(), String> {
    let (Parent::Foreign { size: a, sample: x, .. }, Parent::Foreign { size: b, sample: y, .. }) = (old, new)
    else {
        return Err("it is a raw file, and not a layer".into());
    };
    if a != b {
        return Err(format!("size {b} instead of {a}"));
    }
    if x == y { Ok(()) } else { Err("its content differs".into()) }
}

/// Compares a layer with the one that `child` names.
fn same_layer(child: &Superblock, base: &Superblock) -> Result<(), String> {
    let Parent::Layer { layer, .. } = &child.parent else {
        return Err("it is a layer, and not a raw file".into());
    };
    if !is_parent(child, base) {
        return Err(format!("it is layer {}, not {layer}", base.layer));
    }
    check_parent(child, base).map_err(|e| e.message())
}

/// Gives whether it is another one, by force.
fn accept(same: Result<(), String>, base: &Path, options: &RebaseOptions) -> Result<bool> {
    match same {
        Ok(()) => Ok(false),
        Err(_) if options.force => Ok(true),
        Err(what) => {
            let text = format!("it is not the base that the disk was made on: {what}");
            Err(Error::new(Kind::ParentChanged, text).at(base))
        }
    }
}
