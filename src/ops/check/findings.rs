//! What a check finds: stable codes, each with a severity.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::units::{BLOCK, PBlock, VBlock};

/// Findings that are kept; more are only counted.
const MAX_KEPT: usize = 10_000;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Nothing is lost; the next open for writing sets it right, or it only takes space.
    Harmless,
    /// The check could not look at everything.
    Incomplete,
    /// Something is damaged.
    Corrupt,
}

/// The result of a check: its worst finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Status {
    /// Consistent.
    Clean,
    /// Only harmless findings.
    Harmless,
    /// It could not be finished.
    Incomplete,
    /// Damaged.
    Corrupt,
}

impl Status {
    /// Its stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Clean => "clean",
            Status::Harmless => "harmless",
            Status::Incomplete => "incomplete",
            Status::Corrupt => "corrupt",
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $name:literal, $severity:ident;)*) => {
        /// What was found. The names are stable.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Code { $($(#[$doc])* $code,)* }

        impl Code {
            /// Its stable name.
            pub const fn name(self) -> &'static str {
                match self { $(Code::$code => $name,)* }
            }
            /// How bad it is.
            pub const fn severity(self) -> Severity {
                match self { $(Code::$code => Severity::$severity,)* }
            }
        }
    };
}

codes! {
    /// No superblock can be used.
    Superblock = "superblock", Corrupt;
    /// One of the two superblock slots does not verify; the other one is used.
    SuperblockSlot = "superblock_slot", Harmless;
    /// The journal contradicts the superblock, lacks a record that was durable, or cannot be read.
    Journal = "journal", Corrupt;
    /// The layer was not closed: the next open for writing replays its journal.
    JournalReplay = "journal_replay", Harmless;
    /// A record in the journal was never acknowledged, or lost its flush to a power failure: it will not be applied.
    JournalLeftOut = "journal_left_out", Harmless;
    /// A node of the extent tree cannot be read or does not verify: the mapping of a range of the disk is lost.
    TreeNode = "tree_node", Corrupt;
    /// A block that is referred to lies outside of the block area, or above the high-water mark.
    BlockPlace = "block_place", Corrupt;
    /// A block is used twice.
    BlockShared = "block_shared", Corrupt;
    /// The file ends before a block that is referred to.
    FileShort = "file_short", Corrupt;
    /// An extent lies behind the end of the disk.
    ExtentOutside = "extent_outside", Corrupt;
    /// Data does not match its checksum.
    DataChecksum = "data_checksum", Corrupt;
    /// The host cannot read data.
    DataUnreadable = "data_unreadable", Corrupt;
    /// The parent cannot be found.
    ParentMissing = "parent_missing", Incomplete;
    /// The parent is not what the layer was made on.
    ParentChanged = "parent_changed", Corrupt;
    /// The parent is not sealed yet.
    ParentUnsealed = "parent_unsealed", Harmless;
    /// The chain of parents is a circle.
    Chain = "chain", Corrupt;
    /// A second name of the head, left by a snapshot that was broken off.
    LeftoverName = "leftover_name", Harmless;
    /// A file that was being made, left by a command that was broken off.
    LeftoverFile = "leftover_file", Harmless;
    /// Two layers were being joined when that was broken off. The disk and its snapshots are whole; the next delete ends it.
    JoinUnfinished = "join_unfinished", Harmless;
    /// A layer, or a part of one, could not be checked.
    Unfinished = "unfinished", Incomplete;
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What it is.
    pub code: Code,
    /// The file.
    pub layer: PathBuf,
    /// Byte offset in the file.
    pub offset: Option<u64>,
    /// First block of the disk that it affects.
    pub vblock: Option<VBlock>,
    /// Bytes of the disk that it affects.
    pub length: Option<u64>,
    /// The snapshot that the file is; empty if it is none.
    pub snapshot: String,
    /// In words.
    pub message: String,
}

impl Finding {
    pub(super) fn new(code: Code, layer: &Path, message: impl Into<String>) -> Finding {
        let (layer, message) = (layer.to_path_buf(), message.into());
        Finding { code, layer, offset: None, vblock: None, length: None, snapshot: String::new(), message }
    }

    /// What an error says, at its place in `layer`.
    pub(super) fn of(code: Code, layer: &Path, error: &Error) -> Finding {
        Finding { offset: error.at_offset(), ..Finding::new(code, layer, error.without_place()) }
    }

    pub(super) fn block(mut self, pblock: PBlock) -> Finding {
        self.offset = Some(pblock.pos());
        self
    }

    pub(super) fn affects(mut self, blocks: Range<VBlock>) -> Finding {
        self.vblock = Some(blocks.start);
        self.length = Some(blocks.end.0.saturating_sub(blocks.start.0) * BLOCK);
        self
    }

    /// True if a command can set it right.
    pub fn repairable(&self) -> bool {
        // What an open for writing sets right by itself; all else waits for `repair`.
        self.code.severity() == Severity::Harmless && self.code != Code::LeftoverFile
    }
}

/// What was found, the first [`MAX_KEPT`] of it in detail.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    kept: Vec<Finding>,
    total: u64,
    worst: Option<Severity>,
}

impl Findings {
    pub(super) fn add(&mut self, finding: Finding) {
        self.total += 1;
        self.worst = self.worst.max(Some(finding.code.severity()));
        if self.kept.len() < MAX_KEPT {
            self.kept.push(finding);
        }
    }

    /// Names the snapshot in what was found from `from` on.
    pub(super) fn name_snapshot(&mut self, from: usize, name: &str) {
        for finding in self.kept.iter_mut().skip(from) {
            finding.snapshot = name.to_owned();
        }
    }

    /// The findings that are kept.
    pub fn kept(&self) -> &[Finding] {
        &self.kept
    }

    /// The number of findings, those included that are not kept.
    pub fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn status(&self) -> Status {
        match self.worst {
            None => Status::Clean,
            Some(Severity::Harmless) => Status::Harmless,
            Some(Severity::Incomplete) => Status::Incomplete,
            Some(Severity::Corrupt) => Status::Corrupt,
        }
    }
}
