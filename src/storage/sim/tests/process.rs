//! The death of the process, alone and with a power loss after it.

use std::collections::BTreeSet;

use super::*;
use crate::storage::Lock;
use crate::storage::sim::{Crash, Executor};

fn die(disk: &SimDisk, seed: u64) -> SimDisk {
    disk.crash(Crash::ProcessDeath, seed)
}

#[test]
fn what_had_completed_stays() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 1, 5000);
    file.set_len(7000).unwrap();
    let mut expected = vec![0; 7000];
    expected[..5000].fill(1);
    for seed in SEEDS {
        assert_eq!(die(&disk, seed).read_file(FILE).unwrap(), expected, "seed {seed}");
    }
}

#[test]
fn a_write_in_flight_is_there_or_not_or_torn() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[9; 1024]);
    let file = open(&disk, FILE);
    let _in_flight = file.write(bytes(1, 1024), 0);
    let seen: BTreeSet<Vec<u8>> =
        SEEDS.map(|seed| sectors(&die(&disk, seed).read_file(FILE).unwrap())).collect();
    assert_eq!(seen, BTreeSet::from([vec![9, 9], vec![1, 9], vec![9, 1], vec![1, 1]]));
    disk.complete(0);
    assert!(always(|seed| die(&disk, seed).read_file(FILE).unwrap() == [1; 1024]));
}

#[test]
fn overlapping_writes_in_flight_land_in_any_order() {
    let (disk, file) = disk_with_file();
    let _in_flight = (file.write(bytes(1, 32_768), 0), file.write(bytes(2, 32_768), 16_384));
    let first_on_top = [[1; 64].as_slice(), &[2; 32]].concat();
    let second_on_top = [[1; 32].as_slice(), &[2; 64]].concat();
    let seen: BTreeSet<Vec<u8>> =
        SEEDS.map(|seed| sectors(&die(&disk, seed).read_file(FILE).unwrap())).collect();
    assert!(seen.contains(&first_on_top) && seen.contains(&second_on_top));
}

#[test]
fn a_punch_in_flight_is_done_or_not_or_in_part() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[9; 4096]);
    let file = open(&disk, FILE);
    let _in_flight = file.punch(0, 4096);
    let seen: BTreeSet<Vec<u8>> =
        SEEDS.map(|seed| sectors(&die(&disk, seed).read_file(FILE).unwrap())).collect();
    assert!(seen.contains(&vec![0; 8]) && seen.contains(&vec![9; 8]) && seen.len() > 20, "{seen:?}");
    assert!(seen.iter().flatten().all(|sector| [0, 9].contains(sector)));
}

#[test]
fn a_power_loss_afterwards_takes_what_was_not_synced() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 1, 512);
    sync(&disk, &file);
    write(&disk, &file, 512, 2, 512);
    let _in_flight = file.write(bytes(3, 512), 1024);
    let mut seen = BTreeSet::new();
    for seed in SEEDS {
        let dead = die(&disk, seed);
        assert_eq!(sectors(&dead.read_file(FILE).unwrap())[..2], [1, 2]);
        let after = sectors(&dead.crash_with(Crash::PowerLoss, seed * 7, PURE).read_file(FILE).unwrap());
        assert_eq!(after[0], 1, "seed {seed}");
        seen.insert(after);
    }
    for expected in [&[1][..], &[1, 2], &[1, 2, 3], &[1, 0, 3]] {
        assert!(seen.contains(expected), "{expected:?} is not in {seen:?}");
    }
}

#[test]
fn the_next_process_makes_it_durable_with_a_sync() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 1, 512);
    let _in_flight = file.write(bytes(2, 512), 512);
    for seed in SEEDS {
        let dead = die(&disk, seed);
        let visible = dead.read_file(FILE).unwrap();
        sync(&dead, &open(&dead, FILE));
        assert_eq!(dead.crash(Crash::PowerLoss, seed).read_file(FILE).unwrap(), visible, "seed {seed}");
    }
}

#[test]
fn a_failed_sync_is_not_healed_by_a_new_process() {
    use crate::storage::sim::{Fault, FaultKind, Faults};
    let mut lost = 0;
    for seed in SEEDS {
        let disk = SimDisk::new(seed);
        disk.put_file(FILE, &[1; 512]);
        let file = open(&disk, FILE);
        write(&disk, &file, 0, 2, 512);
        let fail = Fault { at: 1, kind: FaultKind::Eio, sticky: false, only: None };
        disk.set_faults(Faults { fail: Some(fail), budget: None });
        disk.block_on(file.sync_data()).result.unwrap_err();
        let dead = die(&disk, seed);
        assert_eq!(dead.read_file(FILE).unwrap(), [2; 512]);
        sync(&dead, &open(&dead, FILE));
        lost += usize::from(dead.crash(Crash::PowerLoss, seed).read_file(FILE).unwrap() == [1; 512]);
    }
    assert!((50..350).contains(&lost), "{lost} of 400");
}

#[test]
fn locks_and_operations_die_with_the_process() {
    let (disk, file) = disk_with_file();
    assert!(file.try_lock(Lock::Exclusive).unwrap());
    let _in_flight = file.write(bytes(1, 512), 0);
    let dead = die(&disk, 1);
    assert_eq!(dead.in_flight(), 0);
    assert!(open(&dead, FILE).try_lock(Lock::Exclusive).unwrap());
    assert!(!open(&disk, FILE).try_lock(Lock::Shared).unwrap());
}

#[test]
fn a_crash_in_a_hook_sees_every_moment() {
    let mut images = BTreeSet::new();
    for seed in 0..50 {
        let (disk, file) = disk_with_file();
        let taken = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let list = taken.clone();
        disk.set_hook(Some(Box::new(move |disk, event| {
            list.borrow_mut().push(die(disk, event.index + seed).read_file(FILE).unwrap());
        })));
        let _ops: Vec<_> = (0..3).map(|i| file.write(bytes(1 + i as u8, 512), i * 512)).collect();
        Executor::new(&disk, seed).run_until_idle();
        assert_eq!(taken.borrow().len(), 6);
        images.extend(taken.take().iter().map(|image| sectors(image)));
    }
    for expected in [&[][..], &[1], &[0, 2], &[0, 0, 3], &[1, 2], &[1, 0, 3], &[0, 2, 3], &[1, 2, 3]] {
        assert!(images.contains(expected), "{expected:?} is not in {images:?}");
    }
}
