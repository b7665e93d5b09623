//! Images for tests: made by the command, filled through the library, damaged byte by byte.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowdisk::chain::{Access, ImageQueue, OpenOptions, open_chain};
use cowdisk::device::Queue;
use cowdisk::format::{HEADER_BYTES, LeafNode, Superblock, TreeRoot};
use cowdisk::ops::process;
use cowdisk::runtime::{RingOptions, Runtime, spawn};
use cowdisk::storage::IoBuf;
use cowdisk::storage::uring::Uring;
use cowdisk::units::{BLOCK_SIZE, PBlock};

use crate::run::run;

pub(crate) const BLOCK: u64 = BLOCK_SIZE as u64;
/// The smallest journal: hostile files stay small.
pub(crate) const JOURNAL: &str = "256k";
/// First block behind that journal.
pub(crate) const AREA: u64 = 66;

/// Makes the image `dir/name` of 1 MiB with a small journal.
pub(crate) fn make(dir: &Path, name: &str) -> PathBuf {
    run(dir, ["create", name, "--size", "1M", "--journal-size", JOURNAL]).ok();
    dir.join(name)
}

/// A change of a disk.
#[derive(Clone, Copy)]
pub(crate) enum Change {
    /// First block, number of blocks, what they are filled with.
    Write(u64, u64, u8),
    /// First block, number of blocks.
    Discard(u64, u64),
}

/// How an image is left.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum End {
    Closed,
    /// As after the death of the process.
    Killed,
    /// So too, with nothing flushed.
    Dropped,
}

/// Changes the disk `path`.
pub(crate) fn change(path: &Path, changes: &[Change], end: End) {
    let real = fs::canonicalize(path).unwrap();
    let (path, changes) = (real.clone(), changes.to_vec());
    Runtime::new(RingOptions::default()).unwrap().block_on(async move {
        // A process that is not there, so that nobody takes a killed image for one in use.
        let mut holder = process::holder("");
        holder.pid = u32::MAX;
        let options = OpenOptions { alive: |_| false, ..OpenOptions::new(Access::Write(holder)) };
        let (image, _) = open_chain(&Uring, &path, &options).await.unwrap();
        let image = Arc::new(image);
        let queue = ImageQueue::new(image.clone());
        drop(spawn(queue.clone().runner()));
        let (growth, ring) = (image.clone(), image.clone());
        drop(spawn(async move { growth.run_growth().await }));
        drop(spawn(async move { ring.run_ring_growth().await }));
        for change in changes {
            match change {
                Change::Write(first, blocks, fill) => {
                    let buf = IoBuf::from_slice(&vec![fill; (blocks * BLOCK) as usize]);
                    queue.write(first * BLOCK, buf, false).await.unwrap();
                }
                Change::Discard(first, blocks) => {
                    queue.discard(first * BLOCK, blocks * BLOCK, false).await.unwrap();
                }
            }
        }
        if end == End::Closed {
            queue.close();
            image.close().await.unwrap();
        } else if end == End::Killed {
            queue.flush().await.unwrap();
        }
    });
    if end != End::Closed {
        leave_as_dead(&real);
    }
}

/// The whole disk that the image `path` shows. Without its lock: a command that another test starts at this moment holds
/// for an instant what this process has just let go.
pub(crate) fn read_disk(path: &Path) -> Vec<u8> {
    let path = fs::canonicalize(path).unwrap();
    Runtime::new(RingOptions::default()).unwrap().block_on(async move {
        let options = OpenOptions::new(Access::Read { lock: false });
        let (image, _) = open_chain(&Uring, &path, &options).await.unwrap();
        let buf = IoBuf::zeroed(image.geometry().size as usize);
        ImageQueue::new(Arc::new(image)).read(0, buf.clone()).await.unwrap();
        buf.to_vec()
    })
}

/// This process still has the image open, and its lock: another file of the same content takes its place.
fn leave_as_dead(path: &Path) {
    let copy = path.with_file_name("copy");
    fs::copy(path, &copy).unwrap();
    let inode = fs::metadata(&copy).unwrap().ino();
    patch_superblock(&copy, |sb| sb.inode = inode);
    fs::rename(&copy, path).unwrap();
}

/// Both superblock slots.
pub(crate) fn superblocks(path: &Path) -> [Superblock; 2] {
    let bytes = fs::read(path).unwrap();
    let slot = |i: usize| Superblock::decode(&bytes[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE], PBlock(i as u64));
    [slot(0).unwrap(), slot(1).unwrap()]
}

/// The newest superblock.
pub(crate) fn superblock(path: &Path) -> Superblock {
    superblocks(path).into_iter().max_by_key(|sb| sb.generation).unwrap()
}

/// Changes the newest superblock; its checksum is right again.
pub(crate) fn patch_superblock(path: &Path, patch: impl FnOnce(&mut Superblock)) {
    let mut sb = superblock(path);
    let address = Superblock::slot(sb.generation);
    patch(&mut sb);
    write_superblock(path, address, &sb);
}

/// Changes both superblock slots in the same way; their checksums are right again.
pub(crate) fn patch_superblocks(path: &Path, patch: impl Fn(&mut Superblock)) {
    for mut sb in superblocks(path) {
        let address = Superblock::slot(sb.generation);
        patch(&mut sb);
        write_superblock(path, address, &sb);
    }
}

/// Writes a superblock that the library would refuse to encode.
fn write_superblock(path: &Path, address: PBlock, sb: &Superblock) {
    let mut slot = fs::read(path).unwrap()[address.pos() as usize..][..BLOCK_SIZE].to_vec();
    let body = bincode::serialize(sb).unwrap();
    let end = HEADER_BYTES + body.len();
    slot[HEADER_BYTES..end].copy_from_slice(&body);
    slot[end..].fill(0);
    slot[8..12].copy_from_slice(&(end as u32).to_le_bytes());
    seal(&mut slot);
    overwrite(path, address.pos(), &slot);
}

/// Changes raw bytes of both superblock slots; their checksums are right again.
pub(crate) fn patch_slots(path: &Path, patch: impl Fn(&mut [u8])) {
    let bytes = fs::read(path).unwrap();
    for (i, slot) in bytes.chunks(BLOCK_SIZE).take(2).enumerate() {
        let mut slot = slot.to_vec();
        patch(&mut slot);
        seal(&mut slot);
        overwrite(path, i as u64 * BLOCK, &slot);
    }
}

/// Makes the checksum of a superblock right.
fn seal(slot: &mut [u8]) {
    let mut hasher = crc32fast::Hasher::new_with_initial(crc32fast::hash(b"cowdisk superblock"));
    hasher.update(&slot[8..]);
    slot[4..8].copy_from_slice(&hasher.finalize().to_le_bytes());
}

/// Puts `leaf` into block `at` and makes it the tree.
pub(crate) fn plant(path: &Path, at: u64, leaf: &LeafNode) {
    let sb = superblock(path);
    let (block, crc) = leaf.encode(sb.layer, PBlock(at), sb.generation);
    overwrite(path, at * BLOCK, &block[..]);
    patch_superblock(path, |sb| sb.root = TreeRoot { pblock: PBlock(at), crc, height: 1 });
}

pub(crate) fn overwrite(path: &Path, pos: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, pos).unwrap();
}

/// Where the first block of `fill` is in the file.
pub(crate) fn find_block(path: &Path, fill: u8) -> u64 {
    let bytes = fs::read(path).unwrap();
    let at = bytes.chunks_exact(BLOCK_SIZE).position(|b| b.iter().all(|&x| x == fill));
    at.unwrap() as u64 * BLOCK
}
