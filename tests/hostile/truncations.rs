//! Every length that a cut-off file can have.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use cowdisk::chain::{Access, OpenOptions, open_chain};
use cowdisk::error::Kind;
use cowdisk::format::Holder;
use cowdisk::ops::{CheckOptions, Status, check, info};
use cowdisk::storage::sim::SimDisk;
use tempfile::tempdir;

use crate::attack::attack;
use crate::image::{Change, End, change, make};

/// Bytes up to which every length is tried: both superblocks and the first block of the ring.
const FRONT: usize = 12 << 10;
const SECTOR: usize = 512;
/// Steps in the front that are no part of any border.
const STEP: usize = 61;
/// Both superblocks.
const LEAST: usize = 8192;

/// An image with data, a tree, and records in its journal.
fn whole(dir: &Path) -> Vec<u8> {
    let path = make(dir, "vm.cow");
    change(&path, &[Change::Write(0, 3, 1), Change::Write(9, 1, 2)], End::Closed);
    change(&path, &[Change::Write(20, 3, 1), Change::Discard(40, 9)], End::Killed);
    let mut bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    // Without what was reserved ahead and never written.
    let used = bytes.iter().rposition(|&b| b != 0).unwrap() + 1;
    bytes.truncate(used.next_multiple_of(4096));
    bytes
}

/// Does `work` for each length, on all processors, in a directory for each of them.
fn each(lengths: &[usize], work: impl Fn(&Path, usize) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let dir = tempdir().unwrap();
                while let Some(&length) = lengths.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(dir.path(), length);
                }
            });
        }
    });
}

/// One command on one length: it is refused by name if nothing can be left, and whatever it says, it changes nothing.
fn attack_length(dir: &Path, bytes: &[u8], args: &[&str], writes: bool) {
    let (path, length) = (dir.join("vm.cow"), bytes.len());
    fs::write(&path, bytes).unwrap();
    let (ran, wrong) = attack(dir, args);
    assert_eq!(wrong, None, "{length} bytes, {args:?}: {ran:?}");
    if length < LEAST {
        assert!(matches!(ran.code, Some(1 | 2)), "{length} bytes, {args:?}: {ran:?}");
        let says = format!("vm.cow: not a cowdisk layer: {length} bytes are too few");
        assert!(ran.stderr.contains(&says) || ran.stdout.contains(&says), "{args:?}: {ran:?}");
    }
    if length < LEAST || !writes {
        assert!(fs::read(&path).unwrap() == bytes, "{length} bytes: {args:?} changed something");
    }
}

/// What is run on a length, and whether it writes.
type Command = (&'static [&'static str], bool);
const CHECK: Command = (&["check", "--data", "vm.cow"], false);
const SERVE: Command = (&["serve", "vm.cow", "--frontend", "nbd", "--", "true"], true);
const OTHERS: [Command; 3] =
    [(&["info", "vm.cow"], false), (&["map", "vm.cow"], false), (&["bench", "vm.cow", "-c", "64"], false)];

#[test]
fn every_sector_and_more_of_the_front_by_the_program() {
    let whole = whole(tempdir().unwrap().path());
    let mut lengths: Vec<usize> = (0..=whole.len()).step_by(SECTOR).collect();
    lengths.extend((0..FRONT).step_by(STEP));
    lengths.extend([1, 4, 47, 48, 511, 4095, 4097, 8191, 8193, whole.len() - 1]);
    let runs = AtomicUsize::new(0);
    each(&lengths, |dir, length| {
        let all = length <= FRONT || length.is_multiple_of(4096);
        let others = OTHERS.into_iter().filter(|_| all);
        for (args, writes) in [CHECK, SERVE].into_iter().chain(others) {
            attack_length(dir, &whole[..length], args, writes);
            runs.fetch_add(1, Ordering::Relaxed);
        }
    });
    println!("truncations: {} lengths, {} runs of the program", lengths.len(), runs.into_inner());
}

/// What the program's commands are made of, at every length of the front: there are too many for a process each.
#[test]
fn every_length_of_the_front_by_every_command() {
    let whole = whole(tempdir().unwrap().path());
    let path = Path::new("/vm.cow");
    for length in 0..=FRONT {
        let disk = SimDisk::new(length as u64);
        disk.put_file(path, &whole[..length]);
        let reports =
            disk.block_on(check(&disk, path, &CheckOptions { data: true, ..CheckOptions::default() }));
        let me = Holder { pid: 1, host: "x".into(), socket: String::new() };
        let read = disk.block_on(open_chain(&disk, path, &OpenOptions::new(Access::Read { lock: true })));
        let facts = disk.block_on(info(&disk, path));
        let write = OpenOptions { alive: |_| false, ..OpenOptions::new(Access::Write(me)) };
        if length < LEAST {
            for error in [read.map(drop), facts.map(drop)].into_iter().map(Result::unwrap_err) {
                assert_eq!(error.kind(), Kind::Corrupt, "{length}: {error}");
            }
            // Without the magic it is no layer at all.
            let corrupt = reports.map_or_else(|e| e.kind() == Kind::Corrupt, |r| r.status == Status::Corrupt);
            assert!(corrupt, "{length}");
            assert_eq!(disk.block_on(open_chain(&disk, path, &write)).unwrap_err().kind(), Kind::Corrupt);
            assert_eq!(disk.read_file(path).unwrap(), &whole[..length]);
        } else {
            // The superblocks are whole: what the rest lacks is for the check to find.
            facts.unwrap();
            assert!(reports.unwrap().findings.total() > 0, "{length}");
            drop(read);
            drop(disk.block_on(open_chain(&disk, path, &write)));
        }
    }
    println!("truncations: {} lengths, each by info, check and two ways of opening", FRONT + 1);
}
