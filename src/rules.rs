//! The rules of the crash protocol by name, and a switch that takes one of them away.
//!
//! Only tests can throw the switch (feature `sim`): the crash tests must find a violation for every rule that is
//! missing, or they prove nothing. Without the feature [`holds`] is `true` at compile time. The rules are those of
//! `format-spec.md`; the code that keeps one asks for it by name.

/// A rule, or a part of one that can be broken alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// W1: space is reserved before a number is given; every number gets its record.
    Reserve,
    /// W2: an install never replaces an extent of a higher number.
    Numbers,
    /// W3: a request that is not aligned holds its blocks alone.
    Locks,
    /// W4: the record of a failed data write stays unsettled.
    Unsettled,
    /// W4: a failed journal write poisons.
    JournalPoison,
    /// C1: what a commit covers is fixed when its fdatasync is issued.
    Target,
    /// A failed fdatasync poisons.
    SyncPoison,
    /// J1: a journal block whose records a commit covers is not rewritten in place.
    Rewrite,
    /// J1: a commit waits for rewrites in flight.
    RewriteWait,
    /// J2: a freeze closes the open journal blocks.
    CloseBlocks,
    /// K: nodes and data are durable before the superblock that names them is written.
    NodesFirst,
    /// K: the superblock is durable before the ring and the old nodes are released.
    SuperblockFirst,
    /// K: what belongs to a freeze is decided by number, not by time.
    FreezeByNumber,
    /// K: all numbers up to the cut are settled before they are folded.
    SettledFirst,
    /// K: a checkpoint that broke off hands its changes to the next one.
    KeepFrozen,
    /// R(a): a freed block is used again only after its record is durable, on durable record.
    Evidence,
    /// R(b): a freed block is used again only after those who looked it up have read it.
    Readers,
    /// A fill of the span cache from an older root is refused.
    CacheFill,
    /// Blocks are zeroed ahead before they are handed out, not after.
    ZeroFirst,
    /// O1: what a dead process wrote is synced before it is read.
    SyncFirst,
    /// O1: a sealed parent is synced before a child records its root.
    SyncParent,
    /// Without checksums: a record gets its number when its data is written.
    DataFirst,
    /// Without checksums: a commit ends when it is on durable record what is durable.
    TwoBarriers,
    /// Without checksums: a later record counts only if the kernel still runs that its data was written under.
    SameBoot,
    /// O2: a later record counts only if its data matches its checksums.
    DataMatches,
    /// O2: a later record counts only if the lower numbers that it does not list are applied.
    LowerNumbers,
    /// O2: records up to the largest durable number must all be there.
    DurableThere,
    /// O3: a read error is not a mismatch.
    ReadErrors,
    /// O4: recovery allocates above every block that a record names.
    AboveRecords,
    /// O4: nothing goes into the ring, and nothing is served, before the checkpoint that ends recovery is durable.
    OpenedFirst,
    /// Snapshot: the directory is synced between the link and the rename.
    DirectorySync,
    /// Snapshot: while the head is switched no record is formed, and those with a number are settled and committed.
    Hold,
    /// Snapshot: the block locks survive the switch.
    LocksSurvive,
    /// Resize: its record zeroes everything behind the smaller one of both ends.
    ZeroBehind,
    /// Resize: the rest of the block that holds that end is zeroed by the same record.
    ZeroRest,
    /// Resize: who has waited for a block lock looks again whether the disk is still so large.
    LookAgain,
    /// Resize: it is durable before it is acknowledged.
    DurableResize,
    /// K: a superblock's size is that of its cut.
    SizeOfCut,
    /// Join: the layer above says that it takes the result before anything else changes.
    JoinNote,
    /// Join: what was copied, and the tree that names it, is durable before the superblock.
    JoinData,
    /// Join: the superblock is durable before what only the one before it needs is given back or used again.
    JoinSuperblock,
    /// Join: the names are durable before the note above goes.
    JoinNames,
    /// Join: what lies behind the end of a smaller lower layer stays zeros.
    JoinEnd,
    /// Join: the lower layer is nobody's parent any more but the upper one's.
    Condemned,
}

impl Rule {
    /// Those of a disk that is written to.
    pub const ALL: [Rule; 38] = [
        Rule::Reserve,
        Rule::Numbers,
        Rule::Locks,
        Rule::Unsettled,
        Rule::JournalPoison,
        Rule::Target,
        Rule::SyncPoison,
        Rule::Rewrite,
        Rule::RewriteWait,
        Rule::CloseBlocks,
        Rule::NodesFirst,
        Rule::SuperblockFirst,
        Rule::FreezeByNumber,
        Rule::SettledFirst,
        Rule::KeepFrozen,
        Rule::Evidence,
        Rule::Readers,
        Rule::CacheFill,
        Rule::ZeroFirst,
        Rule::SyncFirst,
        Rule::SyncParent,
        Rule::DataFirst,
        Rule::TwoBarriers,
        Rule::SameBoot,
        Rule::DataMatches,
        Rule::LowerNumbers,
        Rule::DurableThere,
        Rule::ReadErrors,
        Rule::AboveRecords,
        Rule::OpenedFirst,
        Rule::DirectorySync,
        Rule::Hold,
        Rule::LocksSurvive,
        Rule::ZeroBehind,
        Rule::ZeroRest,
        Rule::LookAgain,
        Rule::DurableResize,
        Rule::SizeOfCut,
    ];
    /// Those of joining two layers, which no request notices.
    pub const OF_JOINS: [Rule; 6] = [
        Rule::JoinNote,
        Rule::JoinData,
        Rule::JoinSuperblock,
        Rule::JoinNames,
        Rule::JoinEnd,
        Rule::Condemned,
    ];
}

/// True: the rule is kept.
#[cfg(not(feature = "sim"))]
#[inline(always)]
pub const fn holds(_: Rule) -> bool {
    true
}

/// True unless a test has taken the rule away on this thread.
#[cfg(feature = "sim")]
pub fn holds(rule: Rule) -> bool {
    BROKEN.get() != Some(rule)
}

#[cfg(feature = "sim")]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

/// Takes `rule` away from everything that runs on this thread until the result is dropped.
#[cfg(feature = "sim")]
#[must_use]
pub fn without(rule: Rule) -> impl Drop {
    struct Back(Option<Rule>);
    impl Drop for Back {
        fn drop(&mut self) {
            BROKEN.set(self.0);
        }
    }
    Back(BROKEN.replace(Some(rule)))
}
