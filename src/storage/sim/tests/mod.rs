//! What the simulated disk promises, each promise with a test that can fail.

mod crashes;
mod executor;
mod faults;
mod files;
mod names;
mod process;
mod rot;
mod syncs;

use std::path::Path;

use super::{CrashOptions, SimDisk, SimFile};
use crate::storage::{File, IoBuf, IoVecs, OpenHow, Storage, read_exact, write_all};

/// Seeds of a test: enough that a choice among a dozen never misses one.
const SEEDS: std::ops::Range<u64> = 0..400;

/// Crashes that lose things and make no garbage.
const PURE: CrashOptions = CrashOptions { tear_rewrites: false, unreadable: false };

const FILE: &str = "disk";

/// True if `check` is for every seed.
fn always(check: impl FnMut(u64) -> bool) -> bool {
    let mut seeds = SEEDS;
    seeds.all(check)
}

/// A disk with one open, empty, durable file.
fn disk_with_file() -> (SimDisk, SimFile) {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, b"");
    let file = open(&disk, FILE);
    (disk, file)
}

fn open(disk: &SimDisk, path: &str) -> SimFile {
    disk.open(Path::new(path), OpenHow { write: true, ..OpenHow::default() }).unwrap()
}

fn bytes(fill: u8, len: usize) -> IoVecs {
    IoVecs::one(IoBuf::from_slice(&vec![fill; len]))
}

/// Writes `len` times `fill` and waits for it.
fn write(disk: &SimDisk, file: &SimFile, pos: u64, fill: u8, len: usize) {
    disk.block_on(write_all(file, bytes(fill, len), pos)).0.unwrap();
}

fn sync(disk: &SimDisk, file: &SimFile) {
    disk.block_on(file.sync_data()).result.unwrap();
}

fn read(disk: &SimDisk, file: &SimFile, pos: u64, len: usize) -> Vec<u8> {
    let buf = IoBuf::zeroed(len);
    disk.block_on(read_exact(file, buf.clone(), pos)).unwrap();
    buf.to_vec()
}

/// The byte that fills each sector of a file; panics at a sector of several.
fn sectors(content: &[u8]) -> Vec<u8> {
    let uniform = |sector: &[u8]| {
        assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector of two writes: {sector:?}");
        sector[0]
    };
    content.chunks(512).map(uniform).collect()
}
