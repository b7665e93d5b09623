//! Injected faults, the space budget, and that the loops of `exact` live with them.

use std::collections::BTreeSet;

use super::*;
use crate::storage::sim::{Crash, Executor, Fault, FaultKind, Faults, OpKind};

fn inject(disk: &SimDisk, at: u64, kind: FaultKind, sticky: bool, only: Option<OpKind>) {
    disk.set_faults(Faults { fail: Some(Fault { at, kind, sticky, only }), budget: None });
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn the_nth_operation_fails_once_or_from_then_on() {
    for (sticky, expected) in [(false, [false, true, false, false]), (true, [false, true, true, true])] {
        let (disk, file) = disk_with_file();
        inject(&disk, 2, FaultKind::Eio, sticky, Some(OpKind::Write));
        let failed = |_| {
            sync(&disk, &file);
            disk.block_on(file.write(bytes(1, 512), 0)).result.is_err()
        };
        assert_eq!([0, 1, 2, 3].map(failed), expected);
        assert_eq!(disk.fault_hits(), if sticky { 3 } else { 1 });
        disk.set_faults(Faults::default());
        write(&disk, &file, 0, 1, 512);
        assert_eq!(disk.fault_hits(), 0);
    }
}

#[test]
fn every_kind_of_operation_can_fail() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[0; 512]);
    let file = open(&disk, FILE);
    let (old, new) = (Path::new(FILE), Path::new("new"));
    let fail = |only| inject(&disk, 1, FaultKind::Eio, false, Some(only));
    let check = |only, result: std::io::Result<()>| {
        assert_eq!(errno(result), Some(libc::EIO), "{only:?}");
        assert_eq!(disk.fault_hits(), 1, "{only:?}");
    };
    for only in [OpKind::Read, OpKind::Write, OpKind::Sync, OpKind::Allocate, OpKind::Punch] {
        fail(only);
        let op = match only {
            OpKind::Read => file.read(IoBuf::zeroed(512), 0),
            OpKind::Write => file.write(bytes(1, 512), 0),
            OpKind::Sync => file.sync_data(),
            OpKind::Allocate => file.allocate(0, 4096),
            _ => file.punch(0, 512),
        };
        check(only, disk.block_on(op).result.map(drop));
    }
    let at_once: [(OpKind, &dyn Fn() -> std::io::Result<()>); 8] = [
        (OpKind::SetLen, &|| file.set_len(1)),
        (OpKind::Attr, &|| file.set_mode(1)),
        (OpKind::Open, &|| disk.open(old, OpenHow::default()).map(drop)),
        (OpKind::Create, &|| disk.create(new, 0).map(drop)),
        (OpKind::Link, &|| disk.link(old, new)),
        (OpKind::Rename, &|| disk.rename(old, new)),
        (OpKind::Unlink, &|| disk.unlink(old)),
        (OpKind::SyncDir, &|| disk.sync_dir(Path::new("/"))),
    ];
    for (only, act) in at_once {
        fail(only);
        check(only, act());
    }
    assert_eq!(disk.list(Path::new("/")).unwrap(), [FILE]);
    assert_eq!(file.meta().unwrap().len, 512);
}

#[test]
fn a_failed_write_may_have_landed_in_part() {
    let mut seen = BTreeSet::new();
    for seed in SEEDS {
        let disk = SimDisk::new(seed);
        disk.put_file(FILE, &[9; 1024]);
        let file = open(&disk, FILE);
        inject(&disk, 1, FaultKind::Eio, false, None);
        assert_eq!(errno(disk.block_on(file.write(bytes(1, 1024), 0)).result), Some(libc::EIO));
        seen.insert(sectors(&disk.read_file(FILE).unwrap()));
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn an_interrupted_write_has_done_nothing() {
    for kind in [FaultKind::Eintr, FaultKind::Eagain] {
        let (disk, file) = disk_with_file();
        inject(&disk, 1, kind, false, None);
        assert!(disk.block_on(file.write(bytes(1, 4096), 0)).result.is_err());
        assert!(disk.read_file(FILE).unwrap().is_empty());
    }
}

#[test]
fn short_counts_are_whole_sectors_and_vary() {
    let mut counts = BTreeSet::new();
    for seed in SEEDS {
        let disk = SimDisk::new(seed);
        disk.put_file(FILE, b"");
        let file = open(&disk, FILE);
        inject(&disk, 1, FaultKind::Short, true, None);
        let n = disk.block_on(file.write(bytes(1, 2048), 0)).result.unwrap();
        assert_eq!(disk.read_file(FILE).unwrap(), vec![1; n]);
        counts.insert(n);
        disk.set_faults(Faults::default());
        write(&disk, &file, 0, 2, 2048);
        inject(&disk, 1, FaultKind::Short, true, None);
        let n = disk.block_on(file.read(IoBuf::zeroed(2048), 0)).result.unwrap();
        counts.insert(10_000 + n);
    }
    assert_eq!(counts, BTreeSet::from([512, 1024, 1536, 10_512, 11_024, 11_536]));
}

#[test]
fn whole_transfers_live_with_short_counts_and_interruptions() {
    for seed in 0..100 {
        for (kind, sticky) in
            [(FaultKind::Short, true), (FaultKind::Eintr, false), (FaultKind::Eagain, false)]
        {
            for at in 1..4 {
                let disk = SimDisk::new(seed);
                let file = disk.create(Path::new(FILE), 0o600).unwrap();
                let data: Vec<u8> = (0..16_384_u32).map(|i| (i / 512) as u8 + 1).collect();
                inject(&disk, at, kind, sticky, None);
                let executor = Executor::new(&disk, seed);
                let back = executor.block_on(async {
                    write_all(&file, IoVecs::one(IoBuf::from_slice(&data)), 0).await.0.unwrap();
                    let buf = IoBuf::zeroed(data.len());
                    read_exact(&file, buf.clone(), 0).await.unwrap();
                    buf.to_vec()
                });
                assert_eq!(back, data, "seed {seed}, {kind:?} at {at}");
                // One at the second operation or before has been met by any run.
                assert!(at > 2 || disk.fault_hits() > 0);
            }
        }
    }
}

#[test]
fn an_interruption_without_end_is_an_error() {
    let (disk, file) = disk_with_file();
    inject(&disk, 1, FaultKind::Eintr, true, Some(OpKind::Write));
    let (result, _) = disk.block_on(write_all(&file, bytes(1, 512), 0));
    assert_eq!(errno(result), Some(libc::EINTR));
}

#[test]
fn a_late_write_lands_after_it_has_failed() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[9; 512]);
    let file = open(&disk, FILE);
    inject(&disk, 1, FaultKind::Late, false, None);
    let op = file.write(bytes(1, 512), 0);
    disk.complete(0);
    assert_eq!((disk.in_flight(), disk.read_file(FILE).unwrap()), (1, vec![9; 512]));
    drop(file);
    disk.complete(0);
    assert_eq!((disk.in_flight(), disk.read_file(FILE).unwrap()), (0, vec![1; 512]));
    assert_eq!(errno(disk.block_on(op).result), Some(libc::EIO));
}

#[test]
fn lost_and_misdirected_writes_report_success() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[9; 16_384]);
    let file = open(&disk, FILE);
    inject(&disk, 1, FaultKind::Lost, false, None);
    write(&disk, &file, 0, 1, 4096);
    assert_eq!(disk.read_file(FILE).unwrap(), [9; 16_384]);
    inject(&disk, 1, FaultKind::Misdirected(8192), false, None);
    write(&disk, &file, 0, 1, 4096);
    sync(&disk, &file);
    let content = disk.crash(Crash::PowerLoss, 1).read_file(FILE).unwrap();
    let firsts: Vec<u8> = content.chunks(4096).map(|block| block[0]).collect();
    assert_eq!(firsts, [9, 9, 1, 9]);
}

#[test]
fn a_failed_directory_sync_forgets() {
    let mut seen = BTreeSet::new();
    for seed in SEEDS {
        let disk = SimDisk::new(seed);
        disk.create(Path::new("new"), 0o600).unwrap();
        inject(&disk, 1, FaultKind::Eio, false, None);
        assert_eq!(errno(disk.sync_dir(Path::new("/"))), Some(libc::EIO));
        disk.sync_dir(Path::new("/")).unwrap();
        assert_eq!(disk.list(Path::new("/")).unwrap(), ["new"]);
        let after: BTreeSet<usize> = (0..20)
            .map(|crash| disk.crash(Crash::PowerLoss, crash).list(Path::new("/")).unwrap().len())
            .collect();
        assert_eq!(after.len(), 1, "the sync has decided, seed {seed}");
        seen.extend(after);
    }
    assert_eq!(seen, BTreeSet::from([0, 1]));
}

fn budget(disk: &SimDisk, bytes: u64) {
    disk.set_faults(Faults { fail: None, budget: Some(bytes) });
}

#[test]
fn the_budget_counts_allocated_pages_of_all_files() {
    let (disk, file) = disk_with_file();
    disk.put_file("other", &[1; 4096]);
    budget(&disk, 3 * 4096);
    write(&disk, &file, 0, 1, 8192);
    assert_eq!(errno(disk.block_on(write_all(&file, bytes(1, 512), 8192)).0), Some(libc::ENOSPC));
    write(&disk, &file, 0, 2, 8192);
    file.set_len(1 << 30).unwrap();
    disk.block_on(file.punch(0, 4096)).result.unwrap();
    write(&disk, &file, 1 << 20, 1, 100);
    assert_eq!(errno(disk.block_on(write_all(&file, bytes(1, 512), 8192)).0), Some(libc::ENOSPC));
    disk.unlink(Path::new("other")).unwrap();
    write(&disk, &file, 8192, 1, 512);
}

#[test]
fn a_failed_write_does_not_take_space_that_is_not_there() {
    for seed in SEEDS {
        let disk = SimDisk::new(seed);
        disk.put_file(FILE, &[1; 4096]);
        let file = open(&disk, FILE);
        inject(&disk, 1, FaultKind::Enospc, false, None);
        disk.block_on(file.write(bytes(2, 8192), 0)).result.unwrap_err();
        assert_eq!(file.meta().unwrap().allocated, 4096, "seed {seed}");
    }
}

#[test]
fn an_allocation_reserves_what_later_writes_need() {
    let (disk, file) = disk_with_file();
    budget(&disk, 16 * 4096);
    disk.block_on(file.allocate(0, 8 * 4096)).result.unwrap();
    assert_eq!(errno(disk.block_on(file.allocate(0, 17 * 4096)).result), Some(libc::ENOSPC));
    assert_eq!(file.meta().unwrap().len, 8 * 4096);
    disk.put_file("other", &[1; 8 * 4096]);
    write(&disk, &file, 0, 1, 8 * 4096);
    assert_eq!(errno(disk.block_on(write_all(&file, bytes(1, 512), 8 * 4096)).0), Some(libc::ENOSPC));
}

#[test]
fn a_write_that_does_not_fit_fails_or_is_short() {
    let mut seen = BTreeSet::new();
    for seed in SEEDS {
        let disk = SimDisk::new(seed);
        disk.put_file(FILE, b"");
        let file = open(&disk, FILE);
        budget(&disk, 8192);
        let result = disk.block_on(file.write(bytes(1, 16_384), 0)).result;
        assert!(file.meta().unwrap().allocated <= 8192);
        seen.insert(result.map_err(|error| error.raw_os_error()));
    }
    assert_eq!(seen, BTreeSet::from([Ok(8192), Err(Some(libc::ENOSPC))]));
}
