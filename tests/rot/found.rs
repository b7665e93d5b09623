//! Damage that was not found once.

use cowdisk::Kind;
use cowdisk::format::Area;
use cowdisk::layer::read_slots;
use cowdisk::ops::{CheckOptions, Status, check};
use cowdisk::storage::sim::{Crash, SimDisk};
use cowdisk::storage::{OpenHow, Storage};
use cowdisk::units::PBlock;

use crate::judge::{Outcome, judge};
use crate::reference::{End, Reference, scripts};
use crate::script::{HEAD, SNAPSHOT, superblock};

fn quiet(name: &str) -> Reference {
    Reference::new(name, &scripts()[name], End::Quiet)
}

fn copy(reference: &Reference) -> SimDisk {
    reference.disk.crash(Crash::ProcessDeath, 0)
}

/// The slot of the newest superblock of a file.
fn newest_slot(reference: &Reference, path: &str) -> u64 {
    superblock(&reference.disk.read_file(path).unwrap()).unwrap().generation % 2
}

/// Older versions of a slot. The write that opened the image was lost: the older slot says that it was closed, so that
/// the ring was not looked at.
#[test]
fn a_lost_superblock_of_an_opening_is_no_older_image() {
    let image = quiet("reopened");
    for slot in 0..2 {
        for older in &image.layers[0].blocks[slot as usize].older {
            let disk = copy(&image);
            disk.replace_block(HEAD, slot, older);
            assert_eq!(judge(&image, &disk), Ok(Outcome::Unharmed));
        }
    }
}

/// Without it, the other slot said that the layer was not sealed: no child of it could be opened, and `check` took it for
/// a snapshot that the next open would finish.
#[test]
fn a_flipped_bit_of_a_sealed_superblock_keeps_the_chain_readable() {
    let image = quiet("snapshot");
    for slot in 0..2 {
        let disk = copy(&image);
        disk.flip_bit(SNAPSHOT, slot * 4096 * 8 + 999);
        assert_eq!(judge(&image, &disk), Ok(Outcome::Unharmed));
    }
}

/// One damage takes the newest superblock and the records that would lead to it from the older one.
#[test]
fn a_superblock_swapped_with_a_journal_block_is_no_older_image() {
    let image = quiet("overlay");
    let slot = newest_slot(&image, HEAD);
    for ring_block in 2..12 {
        let disk = copy(&image);
        disk.swap_blocks(HEAD, slot, ring_block);
        assert_eq!(judge(&image, &disk), Ok(Outcome::Unharmed));
    }
}

/// A superblock of one layer of a disk was written to the file of the other.
#[test]
fn a_superblock_of_another_layer_is_refused() {
    let image = quiet("snapshot, not closed");
    for (from, to) in [(HEAD, SNAPSHOT), (SNAPSHOT, HEAD)] {
        let foreign = image.disk.read_file(from).unwrap();
        for slot in 0..2 {
            let disk = copy(&image);
            let block = foreign[slot * 4096..][..4096].try_into().unwrap();
            disk.replace_block(to, slot as u64, block);
            let outcome = judge(&image, &disk);
            assert!(matches!(outcome, Ok(Outcome::Refused | Outcome::Unharmed)), "{outcome:?}");
        }
    }
}

/// It has the layer id and the root that its child names, so that nothing else tells.
#[test]
fn check_finds_a_parent_that_is_not_sealed_any_more() {
    let image = quiet("snapshot");
    let disk = copy(&image);
    let mut sb = superblock(&disk.read_file(SNAPSHOT).unwrap()).unwrap();
    sb.sealed = None;
    sb.areas = vec![Area { first: PBlock(2), blocks: sb.block_area.0 - 2 }];
    for _ in 0..2 {
        sb.generation += 1;
        disk.replace_block(SNAPSHOT, sb.generation % 2, &sb.encode().unwrap());
    }
    let options = CheckOptions { chain: true, ..CheckOptions::default() };
    let report = disk.block_on(check(&disk, HEAD.as_ref(), &options)).unwrap();
    assert_eq!(report.status, Status::Corrupt);
}

/// The twin of a seal was written over the sealed superblock instead of the slot where the unsealed one stands: what is
/// left that verifies is the state before, whose journal is gone.
#[test]
fn a_superblock_in_the_other_ones_slot_is_refused_if_it_is_newer() {
    let image = quiet("snapshot");
    let disk = copy(&image);
    let sealed = superblock(&disk.read_file(SNAPSHOT).unwrap()).unwrap();
    let twin = sealed.encode().unwrap();
    let mut before = sealed.clone();
    before.sealed = None;
    before.generation -= 2;
    before.areas = vec![Area { first: PBlock(2), blocks: before.block_area.0 - 2 }];
    let slots_of = |disk: &SimDisk| {
        let file = disk.open(SNAPSHOT.as_ref(), OpenHow::default()).unwrap();
        disk.block_on(read_slots(&file, SNAPSHOT.as_ref()))
    };
    disk.replace_block(SNAPSHOT, sealed.generation % 2, &before.encode().unwrap());
    disk.replace_block(SNAPSHOT, (sealed.generation + 1) % 2, &twin);
    let refused = slots_of(&disk).unwrap_err();
    assert_eq!(refused.kind(), Kind::Corrupt);
    assert!(refused.to_string().contains("in the wrong slot"), "{refused}");
    // One that is older than the valid one has overwritten nothing that counts.
    let disk = copy(&image);
    disk.replace_block(SNAPSHOT, (sealed.generation + 1) % 2, &before.encode().unwrap());
    assert_eq!(slots_of(&disk).unwrap().newest, sealed);
}
