//! Files that are not made by a table: enormous ones, and ones with random damage.

use std::fs;
use std::path::Path;

use cowdisk::format::{LeafExtent, LeafNode, Place};
use cowdisk::units::{PBlock, VBlock};
use tempfile::tempdir;

use crate::attack::attack;
use crate::image::{AREA, Change, End, change, make, patch_superblock, plant};

fn survives(dir: &Path, args: &[&str]) {
    let (ran, wrong) = attack(dir, args);
    assert_eq!(wrong, None, "{args:?}: {ran:?}");
}

#[test]
fn a_file_that_claims_to_be_huge_takes_no_memory() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "vm.cow");
    patch_superblock(&path, |sb| {
        sb.virtual_size = 1 << 52;
        sb.high_water = PBlock((1 << 42) - 1);
    });
    let extent = |i: u64| LeafExtent {
        vblock: VBlock(i * 2),
        blocks: 1,
        place: Place::Data(PBlock(AREA + 1 + i * 1_000_000)),
        crc_index: 0,
    };
    let leaf = LeafNode { extents: (0..200).map(extent).collect(), crcs: vec![0; 200] };
    plant(&path, AREA, &leaf);
    // As long as the file system lets a sparse file be: 8 TiB fit everywhere.
    fs::File::options().write(true).open(&path).unwrap().set_len(8 << 40).unwrap();
    for args in
        [&["check", "vm.cow"][..], &["check", "--data", "vm.cow"], &["map", "vm.cow"], &["info", "vm.cow"]]
    {
        survives(dir.path(), args);
    }
}

#[test]
fn flipped_bits_everywhere() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "vm.cow");
    change(&path, &[Change::Write(0, 3, 1), Change::Write(9, 1, 2)], End::Closed);
    change(&path, &[Change::Write(4, 1, 3)], End::Killed);
    let whole = fs::read(&path).unwrap();
    let used: Vec<usize> = (0..whole.len()).filter(|&i| whole[i] != 0).collect();
    for step in 0..60 {
        let at = used[step * 7919 % used.len()];
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (step % 8);
        fs::write(&path, &bytes).unwrap();
        for args in [&["check", "--data", "vm.cow"][..], &["map", "vm.cow"]] {
            survives(dir.path(), args);
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}
