//! What the layers say that take part in a join (format-spec.md 9.1): two sealed neighbours becoming one.

use serde::{Deserialize, Serialize};

use super::{LayerId, valid_snapshot_name};
use crate::limits::{MAX_DISK_BYTES, MAX_FILE_NAME_BYTES};
use crate::units::{BLOCK, VBlock};

/// The part of a layer in a join that is under way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Joining {
    /// The two layers below this one become one: the layer `result` is this one's parent too. Written before anything else
    /// of a join, and taken away last.
    Above {
        /// Identity of what comes out.
        result: LayerId,
        /// The lower one of the two.
        lower: LayerId,
        /// Name of its file, beside this one.
        file: String,
        /// Its snapshot name; may be empty.
        name: String,
    },
    /// The upper layer takes what it lacks from the parent, the layer `source`: it has all of that in front of `next`.
    TakesLower {
        /// The parent.
        source: LayerId,
        /// First block that is not here yet.
        next: VBlock,
    },
    /// The lower layer, which goes: what its child has taken is not here any more.
    GoesUp,
    /// The lower layer takes what its child, the layer `source`, has: all of that in front of `next` is here, and the child
    /// is not asked for it any more.
    TakesUpper {
        /// The child.
        source: LayerId,
        /// First block that is not here yet.
        next: VBlock,
    },
    /// The upper layer, which goes: what its parent has taken is not here any more.
    GoesDown,
}

impl Joining {
    /// A block behind every disk: everything has been taken.
    pub const ALL: VBlock = VBlock(MAX_DISK_BYTES / BLOCK);

    /// True if what the layer holds in its own blocks, its tree names them all the same, may be gone.
    pub fn is_source(&self) -> bool {
        matches!(self, Joining::GoesUp | Joining::GoesDown)
    }

    /// True if the layer is no snapshot any more, or not yet: only the other layer of the join stands on it.
    pub fn is_condemned(&self) -> bool {
        matches!(self, Joining::GoesUp)
            || matches!(self, Joining::TakesUpper { next, .. } if *next < Joining::ALL)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Joining::Above { file, name, .. } => {
                let is_name = !file.is_empty() && file.len() <= MAX_FILE_NAME_BYTES;
                if !is_name || file.contains(['/', '\0']) || file == "." || file == ".." {
                    return Err("the file of a join is no name of a file".into());
                }
                if !name.is_empty() && !valid_snapshot_name(name) {
                    return Err(format!("snapshot name {name:?} of a join"));
                }
                Ok(())
            }
            Joining::TakesLower { next, .. } | Joining::TakesUpper { next, .. } if *next > Joining::ALL => {
                Err(format!("block {} of a join", next.0))
            }
            _ => Ok(()),
        }
    }
}
