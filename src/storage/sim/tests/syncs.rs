//! What a sync promises for a power loss, and what it does not.

use std::collections::BTreeSet;

use super::*;
use crate::storage::sim::{Crash, Executor, Fault, FaultKind, Faults, OpKind};

/// The first byte of the file after each of many power losses.
fn survivors(disk: &SimDisk) -> BTreeSet<Option<u8>> {
    let after = |seed| disk.crash(Crash::PowerLoss, seed).read_file(FILE).unwrap().first().copied();
    SEEDS.map(after).collect()
}

#[test]
fn a_synced_write_is_always_there_and_another_one_sometimes() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 1, 4096);
    assert_eq!(survivors(&disk), BTreeSet::from([None, Some(0), Some(1)]));
    sync(&disk, &file);
    assert_eq!(survivors(&disk), BTreeSet::from([Some(1)]));
    for seed in SEEDS {
        assert_eq!(disk.crash(Crash::PowerLoss, seed).read_file(FILE).unwrap(), [1; 4096], "seed {seed}");
    }
}

#[test]
fn a_sync_covers_what_had_completed_when_it_was_issued() {
    let (disk, file) = disk_with_file();
    let _before = file.write(bytes(1, 512), 0);
    let _during = file.write(bytes(2, 512), 512);
    disk.complete(0);
    let _sync = file.sync_data();
    // The second write ends while the sync runs.
    disk.complete(0);
    disk.complete(0);
    assert_eq!(disk.in_flight(), 0);
    let mut seen = BTreeSet::new();
    for seed in SEEDS {
        let content = disk.crash_with(Crash::PowerLoss, seed, PURE).read_file(FILE).unwrap();
        assert_eq!(content[..512], [1; 512], "seed {seed}");
        seen.insert(content.get(512).copied());
    }
    assert_eq!(seen, BTreeSet::from([None, Some(0), Some(2)]));
    sync(&disk, &file);
    for seed in SEEDS {
        assert_eq!(disk.crash(Crash::PowerLoss, seed).read_file(FILE).unwrap().len(), 1024, "seed {seed}");
    }
}

#[test]
fn a_sync_in_flight_promises_nothing() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 1, 512);
    let _sync = file.sync_data();
    assert!(survivors(&disk).contains(&None));
}

#[test]
fn a_sync_of_one_file_says_nothing_about_another() {
    let (disk, file) = disk_with_file();
    disk.put_file("other", b"");
    let other = open(&disk, "other");
    write(&disk, &file, 0, 1, 512);
    sync(&disk, &other);
    assert!(survivors(&disk).contains(&None));
}

#[test]
fn a_sync_covers_punches_sizes_and_allocations() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 1, 16_384);
    sync(&disk, &file);
    disk.block_on(file.punch(0, 4096)).result.unwrap();
    file.set_len(8192).unwrap();
    disk.block_on(file.allocate(8192, 8192)).result.unwrap();
    assert_eq!(survivors(&disk), BTreeSet::from([Some(0), Some(1)]));
    sync(&disk, &file);
    let mut expected = vec![0; 16_384];
    expected[4096..8192].fill(1);
    for seed in SEEDS {
        let after = disk.crash(Crash::PowerLoss, seed);
        assert_eq!(after.read_file(FILE).unwrap(), expected, "seed {seed}");
        assert_eq!(after.meta(Path::new(FILE)).unwrap().allocated, 12_288);
    }
}

/// The failed sync of a disk whose file holds a durable 1 and, unsynced, a 2.
fn failed_sync(seed: u64) -> (SimDisk, SimFile) {
    let disk = SimDisk::new(seed);
    disk.put_file(FILE, &[1; 512]);
    let file = open(&disk, FILE);
    write(&disk, &file, 0, 2, 512);
    let fail = Fault { at: 1, kind: FaultKind::Eio, sticky: false, only: Some(OpKind::Sync) };
    disk.set_faults(Faults { fail: Some(fail), budget: None });
    assert_eq!(disk.block_on(file.sync_data()).result.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(disk.fault_hits(), 1);
    (disk, file)
}

#[test]
fn a_failed_sync_forgets_and_its_retry_lies() {
    let mut fates = BTreeSet::new();
    for seed in SEEDS {
        let (disk, file) = failed_sync(seed);
        sync(&disk, &file);
        assert_eq!(disk.read_file(FILE).unwrap(), [2; 512], "what was written stays visible");
        let fate = survivors(&disk);
        assert_eq!(fate.len(), 1, "the sync has decided, seed {seed}");
        fates.extend(fate);
    }
    assert_eq!(fates, BTreeSet::from([Some(1), Some(2)]));
}

#[test]
fn writes_after_a_failed_sync_become_durable() {
    for seed in SEEDS {
        let (disk, file) = failed_sync(seed);
        write(&disk, &file, 512, 3, 512);
        sync(&disk, &file);
        let content = disk.crash(Crash::PowerLoss, seed).read_file(FILE).unwrap();
        assert_eq!(content[512..], [3; 512], "seed {seed}");
    }
}

/// Writers and a syncer at random: whatever was acknowledged before a sync was issued survives it.
#[test]
fn syncs_hold_under_concurrency() {
    for seed in SEEDS {
        let (disk, file) = disk_with_file();
        let executor = Executor::new(&disk, seed);
        let acknowledged = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        for task in 0..3_u64 {
            let (file, acknowledged) = (file.clone(), acknowledged.clone());
            executor.spawn(async move {
                for i in 0..5 {
                    let block = task * 5 + i;
                    file.write(bytes(1 + block as u8, 512), block * 512).await.result.unwrap();
                    acknowledged.borrow_mut().push(block);
                }
            });
        }
        let covered = executor.block_on(async {
            disk.pause(std::time::Duration::ZERO).await;
            let covered = acknowledged.borrow().clone();
            file.sync_data().await.result.unwrap();
            covered
        });
        for crash in 0..20 {
            let content = disk.crash(Crash::PowerLoss, crash).read_file(FILE).unwrap();
            for &block in &covered {
                let sector = &content[block as usize * 512..][..512];
                assert_eq!(sector, [1 + block as u8; 512], "seed {seed}, crash {crash}, block {block}");
            }
        }
    }
}
