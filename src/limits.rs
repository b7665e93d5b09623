//! Every bound in one place: what comes from a file or a client is compared with these before anything is
//! allocated, and every loop, queue and chain stops at one of them.

use crate::units::BLOCK;

/// Largest virtual disk: 4 PiB.
pub const MAX_DISK_BYTES: u64 = 1 << 52;
/// Smallest virtual disk: one sector.
pub const MIN_DISK_BYTES: u64 = 512;

/// True if there can be a disk of `size` bytes in sectors of `sector` bytes.
pub const fn is_disk_size(size: u64, sector: u64) -> bool {
    size >= MIN_DISK_BYTES && size <= MAX_DISK_BYTES && size.is_multiple_of(sector)
}

/// Largest layer file: 16 PiB; a larger block address in a file is damage.
pub const MAX_FILE_BLOCKS: u64 = (1 << 54) / BLOCK;
/// Blocks of a layer file whose holes are used again (64 TiB), so that the memory for them is bounded.
pub const MAX_REUSED_BLOCKS: u64 = 1 << 34;
/// Smallest journal ring, in bytes.
pub const MIN_JOURNAL_BYTES: u64 = 256 * 1024;
/// Largest journal ring, in bytes.
pub const MAX_JOURNAL_BYTES: u64 = 1 << 30;
/// Journal ring of a new image, in bytes.
pub const DEFAULT_JOURNAL_BYTES: u64 = 64 << 20;
/// The ring is reserved on the host in pieces of this many bytes as it is first used.
pub const JOURNAL_RESERVE_BYTES: u64 = 1 << 20;
/// Layers in one chain.
pub const MAX_CHAIN: usize = 4096;
/// Largest record number, epoch and generation: counting on from there never wraps.
pub const MAX_COUNTER: u64 = 1 << 62;
/// Levels of an extent tree. 2^40 blocks with 60 entries a node need 7.
pub const MAX_TREE_HEIGHT: u8 = 10;
/// Blocks one data write of a batch may cover (1 MiB).
pub const MAX_BATCH_BLOCKS: usize = 256;
/// Requests in one batch.
pub const MAX_BATCH_REQUESTS: usize = 128;
/// Largest request that is one atomic write, in bytes.
pub const MAX_REQUEST_BYTES: u64 = 1 << 20;
/// Numbers a record may list as not yet settled.
pub const MAX_UNSETTLED: usize = 256;
/// Bytes of extents and checksums in one record: what a journal block has beside a full unsettled list.
pub const MAX_RECORD_BYTES: usize = 2900;
/// Queues of an image.
pub const MAX_QUEUES: usize = 64;
/// Longest path hint stored in a superblock, in bytes.
pub const MAX_PATH_BYTES: usize = 1024;
/// Longest name of a file, in bytes, as Linux has it.
pub const MAX_FILE_NAME_BYTES: usize = 255;
/// Longest snapshot name, in bytes.
pub const MAX_NAME_BYTES: usize = 100;
/// Longest host name and control socket path stored in a superblock, in bytes.
pub const MAX_HOLDER_BYTES: usize = 256;
/// Data of the requests that one ublk queue has running, in bytes, where the server copies it. A queue with many tags has a
/// block for each of them.
pub const UBLK_POOL_BYTES: usize = 2 << 20;
/// Default budget of the span and node caches together, in bytes.
pub const DEFAULT_CACHE_BYTES: u64 = 32 << 20;
/// Smallest cache budget, in bytes.
pub const MIN_CACHE_BYTES: u64 = 1 << 20;
