//! Power loss: what may survive, and that every such thing does for some seed.

use std::collections::BTreeSet;

use super::*;
use crate::storage::sim::{Crash, CrashOptions};

fn lose(disk: &SimDisk, seed: u64) -> SimDisk {
    disk.crash_with(Crash::PowerLoss, seed, PURE)
}

fn content(disk: &SimDisk) -> Vec<u8> {
    disk.read_file(FILE).unwrap()
}

#[test]
fn sectors_are_whole_and_any_subset_of_them_survives() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[9; 1536]);
    let file = open(&disk, FILE);
    write(&disk, &file, 0, 1, 1536);
    let seen: BTreeSet<Vec<u8>> = SEEDS.map(|seed| sectors(&content(&lose(&disk, seed)))).collect();
    assert_eq!(seen.len(), 8, "{seen:?}");
    assert!(seen.iter().flatten().all(|byte| [1, 9].contains(byte)));
}

#[test]
fn any_version_of_a_sector_may_survive() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[9; 512]);
    let file = open(&disk, FILE);
    (1..=3).for_each(|fill| write(&disk, &file, 0, fill, 512));
    let _in_flight = file.write(bytes(4, 512), 0);
    let seen: BTreeSet<u8> = SEEDS.flat_map(|seed| sectors(&content(&lose(&disk, seed)))).collect();
    assert_eq!(seen, BTreeSet::from([1, 2, 3, 4, 9]));
}

#[test]
fn any_set_of_four_writes_may_survive_and_one_alone_may_be_lost_or_kept() {
    let (disk, file) = disk_with_file();
    file.set_len(4 * 8192).unwrap();
    sync(&disk, &file);
    (0..4).for_each(|i| write(&disk, &file, i * 8192, 1, 8192));
    let whole = |disk: &SimDisk| -> Option<Vec<bool>> {
        let content = content(disk);
        let kept = |part: &[u8]| {
            [0, 1].into_iter().find(|fill| part.iter().all(|b| b == fill)).map(|fill| fill == 1)
        };
        content.chunks(8192).map(kept).collect()
    };
    let seen: BTreeSet<Vec<bool>> = SEEDS.filter_map(|seed| whole(&lose(&disk, seed))).collect();
    assert_eq!(seen.len(), 16, "{seen:?}");
}

#[test]
fn a_crash_follows_from_its_seed_and_changes_nothing() {
    let (disk, file) = disk_with_file();
    (0..8).for_each(|i| write(&disk, &file, i * 700, i as u8, 700));
    let (before, ops) = (content(&disk), disk.ops());
    let mut distinct = BTreeSet::new();
    for seed in SEEDS {
        let image = content(&disk.crash(Crash::PowerLoss, seed));
        assert_eq!(image, content(&disk.crash(Crash::PowerLoss, seed)), "seed {seed}");
        distinct.insert(image);
    }
    assert!(distinct.len() > 100, "only {} images", distinct.len());
    assert_eq!((content(&disk), disk.ops()), (before, ops));
}

#[test]
fn all_that_is_left_is_durable() {
    let (disk, file) = disk_with_file();
    (0..8).for_each(|i| write(&disk, &file, i * 700, i as u8, 700));
    for seed in SEEDS {
        let once = disk.crash(Crash::PowerLoss, seed);
        let twice = once.crash(Crash::PowerLoss, seed + 1);
        assert_eq!(content(&once), content(&twice), "seed {seed}");
        assert_eq!((once.ops(), once.in_flight()), (0, 0));
    }
}

#[test]
fn the_disks_are_independent_afterwards() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 1, 4096);
    sync(&disk, &file);
    let copy = disk.crash(Crash::PowerLoss, 1);
    let other = open(&copy, FILE);
    write(&copy, &other, 0, 2, 512);
    write(&disk, &file, 512, 3, 512);
    assert_eq!(sectors(&content(&copy)), [2, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(sectors(&content(&disk)), [1, 3, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn a_size_survives_apart_from_its_data() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 1, 32_768);
    write(&disk, &file, 32_768, 2, 32_768);
    let images: BTreeSet<Vec<u8>> = SEEDS.map(|seed| sectors(&content(&lose(&disk, seed)))).collect();
    // Per half: its sectors if they are all alike.
    let half = |part: &[u8]| part.first().copied().filter(|first| part.iter().all(|sector| sector == first));
    let halves = |image: &Vec<u8>| image.chunks(64).map(half).collect::<Option<Vec<u8>>>();
    let seen: BTreeSet<Vec<u8>> = images.iter().filter_map(halves).collect();
    for expected in [&[][..], &[0], &[1], &[0, 0], &[1, 0], &[0, 2], &[1, 2]] {
        assert!(seen.contains(expected), "{expected:?} is not in {seen:?}");
    }
    assert_eq!(seen.len(), 7);
}

#[test]
fn data_beyond_a_lost_size_is_gone() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 1, 1024);
    for seed in SEEDS {
        let after = lose(&disk, seed);
        let short = after.meta(Path::new(FILE)).unwrap().len == 0;
        let file = open(&after, FILE);
        file.set_len(1024).unwrap();
        assert!(!short || content(&after) == [0; 1024], "seed {seed}");
    }
}

#[test]
fn a_truncation_may_be_lost_or_kept_and_never_shows_old_bytes_after_it_was_synced() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[5; 2048]);
    let file = open(&disk, FILE);
    file.set_len(512).unwrap();
    file.set_len(1024).unwrap();
    let seen: BTreeSet<Vec<u8>> = SEEDS.map(|seed| sectors(&content(&lose(&disk, seed)))).collect();
    assert_eq!(seen, BTreeSet::from([vec![5, 5, 5, 5], vec![5], vec![5, 5], vec![5, 0]]));
    sync(&disk, &file);
    let seen: BTreeSet<Vec<u8>> = SEEDS.map(|seed| sectors(&content(&lose(&disk, seed)))).collect();
    assert_eq!(seen, BTreeSet::from([vec![5, 0]]));
}

#[test]
fn a_punch_may_be_lost() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[5; 8192]);
    let file = open(&disk, FILE);
    disk.block_on(file.punch(0, 4096)).result.unwrap();
    let seen: BTreeSet<u8> = SEEDS.map(|seed| content(&lose(&disk, seed))[0]).collect();
    assert_eq!(seen, BTreeSet::from([0, 5]));
    assert!(always(|seed| content(&lose(&disk, seed))[4096..] == [5; 4096]));
}

#[test]
fn a_sector_written_in_part_keeps_its_other_bytes() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[5; 512]);
    let file = open(&disk, FILE);
    write(&disk, &file, 100, 6, 100);
    let mut written = vec![5; 512];
    written[100..200].fill(6);
    let seen: BTreeSet<Vec<u8>> = SEEDS.map(|seed| content(&lose(&disk, seed))).collect();
    assert_eq!(seen, BTreeSet::from([vec![5; 512], written]));
}

/// True for content that neither the old nor the new version explains.
fn is_garbage(content: &[u8], versions: &[u8]) -> bool {
    content.iter().any(|byte| !versions.contains(byte))
}

#[test]
fn a_rewritten_sector_may_be_garbage_and_nothing_else_is() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[0xAA; 8192]);
    let file = open(&disk, FILE);
    write(&disk, &file, 512, 0x55, 1024);
    let mut garbage = 0;
    for seed in SEEDS {
        let after = content(&disk.crash(Crash::PowerLoss, seed));
        assert!(!is_garbage(&content(&lose(&disk, seed)), &[0xAA, 0x55]));
        assert_eq!((&after[..512], &after[1536..]), (&[0xAA; 512][..], &[0xAA; 6656][..]), "seed {seed}");
        garbage += usize::from(is_garbage(&after[512..1536], &[0xAA, 0x55]));
    }
    assert!((20..300).contains(&garbage), "{garbage} of 400");
    sync(&disk, &file);
    assert!(always(|seed| !is_garbage(&content(&disk.crash(Crash::PowerLoss, seed)), &[0xAA, 0x55])));
}

#[test]
fn a_sector_that_is_written_for_the_first_time_is_no_garbage() {
    let (disk, file) = disk_with_file();
    write(&disk, &file, 0, 0x55, 4096);
    for seed in SEEDS {
        assert!(!is_garbage(&content(&disk.crash(Crash::PowerLoss, seed)), &[0, 0x55]), "seed {seed}");
    }
}

#[test]
fn a_rewritten_sector_may_be_unreadable_until_it_is_written() {
    let disk = SimDisk::new(1);
    disk.put_file(FILE, &[0xAA; 4096]);
    let file = open(&disk, FILE);
    write(&disk, &file, 0, 0x55, 512);
    let options = CrashOptions { tear_rewrites: false, unreadable: true };
    let mut unreadable = 0;
    for seed in SEEDS {
        let after = disk.crash_with(Crash::PowerLoss, seed, options);
        let file = open(&after, FILE);
        let read_at = |pos| after.block_on(file.read(IoBuf::zeroed(512), pos)).result;
        read_at(512).unwrap();
        let Err(error) = read_at(0) else { continue };
        unreadable += 1;
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert!(after.block_on(file.write(bytes(1, 100), 0)).result.is_err(), "needs the other bytes");
        write(&after, &file, 0, 1, 512);
        read_at(0).unwrap();
    }
    assert!((20..300).contains(&unreadable), "{unreadable} of 400");
    let garbage = disk.crash(Crash::PowerLoss, 0);
    let file = open(&garbage, FILE);
    garbage.block_on(file.read(IoBuf::zeroed(4096), 0)).result.unwrap();
}
