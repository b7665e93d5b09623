//! One layer file: create, open and recover, write, checkpoint, seal.

mod batch;
mod below;
mod checkpoint;
mod commit;
mod create;
mod editor;
mod head;
mod open;
mod reader;
mod slots;
mod zero;

pub use batch::{Batch, QueueSpace, WriteItem, Written};
pub use checkpoint::Finish;
pub use create::{NewLayer, create, random_id};
pub use editor::Editor;
pub use head::{Head, HeadStats};
pub use open::{
    LockedLayer, Opened, Recovery, finish_seal, install, lock_head, open_read_only, recover_head,
    sync_sealed, while_dying, writable,
};
pub use reader::{Caches, LayerReader};
pub use slots::{Slots, read_slots, write_slot};
