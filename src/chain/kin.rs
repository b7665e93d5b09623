//! Which layer is a child's parent: by identity, also while a join moves what the parent holds (format-spec.md 9.1).

use crate::error::{Error, Kind, Result, printable};
use crate::format::{Joining, Parent, Superblock};
use crate::rules::{self, Rule};

/// True if `parent` is the layer that `child` names, or what a join makes of it. Its content is not compared.
pub fn is_parent(child: &Superblock, parent: &Superblock) -> bool {
    let Parent::Layer { layer, .. } = &child.parent else { return false };
    *layer == parent.layer || is_result(child, parent) || takes_from(parent, child)
}

/// Compares what a parent that [`is_parent`] found says with what `child` knows of it.
///
/// # Errors
/// `ParentChanged`: the content is another one; `Unsupported`: a command that was broken off is deleting it. Both without
/// a path.
pub fn check_parent(child: &Superblock, parent: &Superblock) -> Result<()> {
    let of_the_join = is_result(child, parent) || takes_from(parent, child);
    if let Parent::Layer { root_crc: Some(crc), .. } = child.parent
        && crc != parent.root.crc
        && !of_the_join
    {
        let text = "the parent's content is not what the layer was made on";
        return Err(Error::new(Kind::ParentChanged, text));
    }
    match parent.joining.as_ref().is_some_and(Joining::is_condemned) && rules::holds(Rule::Condemned) {
        true if !of_the_join && !gives_to(parent, child) => Err(condemned(parent)),
        _ => Ok(()),
    }
}

/// The error for a layer that is being deleted, for everybody outside of the join.
pub fn condemned(layer: &Superblock) -> Error {
    let name = layer.sealed.as_ref().map_or("", |sealed| sealed.name.as_str());
    let text = format!("it is being deleted (snapshot {:?}), and not whole any more", printable(name));
    Error::new(Kind::Unsupported, text)
}

/// Up to where `parent` answers for `child`, which stands on it.
pub fn moved_to_parent(child: &Superblock, parent: &Superblock) -> Option<crate::units::VBlock> {
    match &parent.joining {
        Some(Joining::TakesUpper { source, next }) if *source == child.layer => Some(*next),
        _ => None,
    }
}

fn is_result(child: &Superblock, parent: &Superblock) -> bool {
    matches!(&child.joining, Some(Joining::Above { result, .. }) if *result == parent.layer)
}

fn takes_from(parent: &Superblock, child: &Superblock) -> bool {
    moved_to_parent(child, parent).is_some()
}

fn gives_to(parent: &Superblock, child: &Superblock) -> bool {
    matches!(&child.joining, Some(Joining::TakesLower { source, .. }) if *source == parent.layer)
}
