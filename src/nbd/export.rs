//! What a server offers: named disks.

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;

use super::limits::MAX_STRING;
use crate::device::Disk;
use crate::{Error, Kind, Result};

/// A disk under a name.
#[derive(Clone, Debug)]
pub struct Export<D: Disk> {
    /// What clients ask for; `""` is the default export. At most 4096 bytes, no control characters.
    pub name: String,
    /// For people, shown by clients that list exports; at most 4096 bytes, may be empty.
    pub description: String,
    /// The disk.
    pub disk: D,
}

/// The exports of a server. Clones share one list; exports may come and go while it serves.
pub struct Exports<D: Disk>(Arc<RwLock<Vec<Arc<Export<D>>>>>);

impl<D: Disk> Clone for Exports<D> {
    fn clone(&self) -> Self {
        Exports(self.0.clone())
    }
}

impl<D: Disk> Default for Exports<D> {
    fn default() -> Self {
        Exports(Arc::default())
    }
}

impl<D: Disk> fmt::Debug for Exports<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.read().iter().map(|export| &export.name)).finish()
    }
}

impl<D: Disk> Exports<D> {
    /// A list with these exports.
    ///
    /// # Errors
    /// As [`Exports::add`].
    pub fn new(exports: Vec<Export<D>>) -> Result<Exports<D>> {
        let list = Exports::default();
        for export in exports {
            list.add(export)?;
        }
        Ok(list)
    }

    /// Adds an export; the next client that asks for its name gets it.
    ///
    /// # Errors
    /// `Exists` if the name is taken; `BadName` if name or description cannot be sent to clients.
    pub fn add(&self, export: Export<D>) -> Result<()> {
        if export.name.len() > MAX_STRING || export.description.len() > MAX_STRING {
            return Err(Error::new(Kind::BadName, format!("export names have at most {MAX_STRING} bytes")));
        }
        if export.name.chars().any(char::is_control) {
            let message = format!("export name {:?} has control characters", export.name);
            return Err(Error::new(Kind::BadName, message));
        }
        let mut list = self.0.write();
        if list.iter().any(|other| other.name == export.name) {
            return Err(Error::new(Kind::Exists, format!("there is an export {:?} already", export.name)));
        }
        list.push(Arc::new(export));
        Ok(())
    }

    /// Takes an export off the list; `false` if there is none of that name. Connections that use it go on.
    pub fn remove(&self, name: &str) -> bool {
        let mut list = self.0.write();
        let before = list.len();
        list.retain(|export| export.name != name);
        list.len() < before
    }

    /// Number of exports.
    pub fn len(&self) -> usize {
        self.0.read().len()
    }

    /// True without any export.
    pub fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Export<D>>> {
        self.0.read().iter().find(|export| export.name == name).cloned()
    }

    pub(super) fn get(&self, index: usize) -> Option<Arc<Export<D>>> {
        self.0.read().get(index).cloned()
    }

    pub(super) fn contains(&self, export: &Arc<Export<D>>) -> bool {
        self.0.read().iter().any(|other| Arc::ptr_eq(other, export))
    }
}
