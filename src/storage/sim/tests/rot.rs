//! Bit rot is there at once, stays, and hits nothing else.

use std::collections::BTreeSet;

use super::*;
use crate::storage::sim::Crash;

/// A durable file of four blocks filled with 1, 2, 3, 4.
fn blocks() -> SimDisk {
    let disk = SimDisk::new(1);
    let content: Vec<u8> = (1..=4).flat_map(|fill| [fill; 4096]).collect();
    disk.put_file(FILE, &content);
    disk
}

/// The first bytes of the blocks, which must be the same before and after a power loss.
fn firsts(disk: &SimDisk) -> Vec<u8> {
    let content = disk.read_file(FILE).unwrap();
    assert_eq!(disk.crash(Crash::PowerLoss, 1).read_file(FILE).unwrap(), content);
    content.chunks(4096).map(|block| block[0]).collect()
}

#[test]
fn a_bit_flips() {
    let disk = blocks();
    let mut expected = disk.read_file(FILE).unwrap();
    expected[5000] ^= 0x10;
    disk.flip_bit(FILE, 5000 * 8 + 4);
    assert_eq!(disk.read_file(FILE).unwrap(), expected);
    assert_eq!(firsts(&disk), [1, 2, 3, 4]);
    disk.corrupt(FILE, 5000, |sector| {
        assert_eq!(sector.len(), 512);
        sector[5000 % 512] ^= 0x10;
    });
    assert_eq!(sectors(&disk.read_file(FILE).unwrap()).len(), 32);
}

#[test]
fn blocks_are_zeroed_swapped_copied_and_misdirected() {
    let disk = blocks();
    disk.swap_blocks(FILE, 0, 3);
    assert_eq!(firsts(&disk), [4, 2, 3, 1]);
    disk.copy_block(FILE, 1, 2);
    assert_eq!(firsts(&disk), [4, 2, 2, 1]);
    disk.misdirect(FILE, 0, 3);
    assert_eq!(firsts(&disk), [0, 2, 2, 4]);
    disk.zero_block(FILE, 1);
    assert_eq!(firsts(&disk), [0, 0, 2, 4]);
    disk.replace_block(FILE, 2, &[7; 4096]);
    assert_eq!(firsts(&disk), [0, 0, 7, 4]);
}

#[test]
fn an_unreadable_sector_can_be_rewritten() {
    let disk = blocks();
    disk.make_unreadable(FILE, 4100);
    let disk = disk.crash(Crash::PowerLoss, 1);
    let file = open(&disk, FILE);
    let read_at = |pos| disk.block_on(file.read(IoBuf::zeroed(512), pos)).result;
    assert_eq!(read_at(4096).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(read_at(4608).is_ok() && read_at(3584).is_ok());
    write(&disk, &file, 4096, 9, 512);
    assert!(read_at(4096).is_ok());
}

#[test]
fn rot_under_a_dirty_sector_is_what_the_sync_writes() {
    let disk = blocks();
    let file = open(&disk, FILE);
    write(&disk, &file, 0, 9, 512);
    disk.flip_bit(FILE, 0);
    assert_eq!(disk.read_file(FILE).unwrap()[0], 8);
    let after = |seed| disk.crash_with(Crash::PowerLoss, seed, PURE).read_file(FILE).unwrap()[0];
    assert_eq!(SEEDS.map(after).collect::<BTreeSet<u8>>(), BTreeSet::from([1, 9]), "the medium was not hit");
    sync(&disk, &file);
    assert_eq!(firsts(&disk), [8, 2, 3, 4]);
}
