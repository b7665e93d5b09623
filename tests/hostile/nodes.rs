//! Trees that loop, overlap, or lead to where no tree leads.

use std::fs::File;
use std::path::Path;

use cowdisk::format::{Child, InnerNode, LeafExtent, LeafNode, Place, TreeRoot, testing::reseal};
use cowdisk::limits::MAX_FILE_BLOCKS;
use cowdisk::units::{BLOCK_SIZE, PBlock, VBlock};

use crate::case::{CHECKS, Case, Map, Read, Serve, Snapshot, Write};
use crate::image::{AREA, BLOCK, make, overwrite, patch_superblocks, superblock};

/// Blocks of the file behind the journal.
const BLOCKS: u64 = 20;

pub(crate) fn cases() -> Vec<Case> {
    [inner(), leaves(), raw(), places()].into_iter().flatten().collect()
}

/// The tree cannot be followed; what maps or reads or changes the disk says so.
fn broken(name: &str, says: &'static str, plant: impl Fn(&Path) + Send + Sync + 'static) -> Case {
    let case = Case::new(format!("node: {name}"), move |dir| {
        let path = make(dir, "vm.cow");
        plant(&path);
    });
    case.on(&CHECKS, &[2], &["vm.cow", "tree node", says, "at offset", "[tree_node]"])
        .on(&[Map, Read], &[1], &["vm.cow", "tree node", says, "at offset"])
        .on(&[Write], &[0, 1], &[])
        .on(&[Serve, Snapshot], &[0], &[])
}

/// Makes the file long enough, and block `at` the root.
fn root(path: &Path, at: u64, crc: u32, height: u32) {
    patch_superblocks(path, |sb| {
        sb.high_water = PBlock(AREA + BLOCKS);
        sb.root = TreeRoot { pblock: PBlock(at), crc, height };
    });
    File::options().write(true).open(path).unwrap().set_len((AREA + BLOCKS) * BLOCK).unwrap();
}

/// Writes an inner node; gives its checksum. Children: first block, place, checksum.
fn plant_inner(path: &Path, at: u64, level: u16, children: &[(u64, u64, u32)]) -> u32 {
    let sb = superblock(path);
    let child =
        |&(first, pblock, crc): &(u64, u64, u32)| Child { first: VBlock(first), pblock: PBlock(pblock), crc };
    let node = InnerNode { children: children.iter().map(child).collect() };
    let (block, crc) = node.encode(sb.layer, PBlock(at), sb.generation, level);
    overwrite(path, at * BLOCK, &block[..]);
    crc
}

fn plant_leaf(path: &Path, at: u64, extents: &[LeafExtent], crcs: usize) -> u32 {
    let sb = superblock(path);
    let leaf = LeafNode { extents: extents.to_vec(), crcs: vec![7; crcs] };
    let (block, crc) = leaf.encode(sb.layer, PBlock(at), sb.generation);
    overwrite(path, at * BLOCK, &block[..]);
    crc
}

fn zero(vblock: u64, blocks: u32) -> LeafExtent {
    LeafExtent { vblock: VBlock(vblock), blocks, place: Place::Zero, crc_index: 0 }
}

fn data(vblock: u64, pblock: u64, blocks: u32) -> LeafExtent {
    LeafExtent { vblock: VBlock(vblock), blocks, place: Place::Data(PBlock(pblock)), crc_index: 0 }
}

/// Nodes are at AREA and behind it; checksums are right unless they are what is wrong.
fn inner() -> Vec<Case> {
    vec![
        broken("its own child", "outside of the block area", |p| {
            root(p, AREA, plant_inner(p, AREA, 1, &[(0, AREA, 7)]), 2);
        }),
        broken("a child in a superblock", "outside of the block area", |p| {
            root(p, AREA, plant_inner(p, AREA, 1, &[(0, 1, 7)]), 2);
        }),
        broken("a child past the largest file", "outside of the block area", |p| {
            root(p, AREA, plant_inner(p, AREA, 1, &[(0, MAX_FILE_BLOCKS, 7)]), 2);
        }),
        broken("a child that wraps", "outside of the block area", |p| {
            root(p, AREA, plant_inner(p, AREA, 1, &[(0, u64::MAX, 7)]), 2);
        }),
        broken("a child in the ring", "magic", |p| {
            root(p, AREA, plant_inner(p, AREA, 1, &[(0, 2, 7)]), 2);
        }),
        broken("a child behind the end of the file", "tree node", |p| {
            root(p, AREA, plant_inner(p, AREA, 1, &[(0, AREA + 1000, 7)]), 2);
        }),
        broken("two nodes in a circle", "level 2 where level 1 belongs", |p| {
            // A checksum cannot be right in a circle; the level is looked at in any case.
            let low = plant_inner(p, AREA + 1, 2, &[(0, AREA, 7)]);
            root(p, AREA, plant_inner(p, AREA, 2, &[(0, AREA + 1, low)]), 3);
        }),
        broken("a level left out", "level 1 where level 2 belongs", |p| {
            let low = plant_inner(p, AREA + 1, 1, &[(0, AREA, 7)]);
            root(p, AREA, plant_inner(p, AREA, 3, &[(0, AREA + 1, low)]), 4);
        }),
        broken("an inner node as leaf", "level 1 where a leaf belongs", |p| {
            root(p, AREA, plant_inner(p, AREA, 1, &[(0, AREA + 1, 7)]), 1);
        }),
        broken("a leaf as inner node", "level 0 where level 1 belongs", |p| {
            root(p, AREA, plant_leaf(p, AREA, &[zero(0, 1)], 0), 2);
        }),
        broken("the greatest level", "level 65535 where", |p| {
            root(p, AREA, plant_inner(p, AREA, u16::MAX, &[(0, AREA + 1, 7)]), 10);
        }),
        broken("children out of order", "out of order", |p| {
            root(p, AREA, plant_inner(p, AREA, 1, &[(9, AREA + 1, 7), (3, AREA + 2, 7)]), 2);
        }),
        broken("children of one place", "out of order", |p| {
            root(p, AREA, plant_inner(p, AREA, 1, &[(0, AREA + 1, 7), (0, AREA + 2, 7)]), 2);
        }),
        broken("no children", "no children", |p| root(p, AREA, plant_inner(p, AREA, 1, &[]), 2)),
        broken("a child of another checksum", "its parent says", |p| {
            let leaf = plant_leaf(p, AREA + 1, &[zero(0, 1)], 0);
            root(p, AREA, plant_inner(p, AREA, 1, &[(0, AREA + 1, !leaf)]), 2);
        }),
        broken("a child that is nothing", "magic", |p| {
            root(p, AREA, plant_inner(p, AREA, 1, &[(0, AREA + 3, 7)]), 2);
        }),
        broken("one leaf twice", "outside of its range", |p| {
            let leaf = plant_leaf(p, AREA + 1, &[zero(0, 1)], 0);
            let children = [(0, AREA + 1, leaf), (100, AREA + 1, leaf)];
            root(p, AREA, plant_inner(p, AREA, 1, &children), 2);
        }),
    ]
}

fn leaf(name: &str, says: &'static str, extents: Vec<LeafExtent>, crcs: usize) -> Case {
    broken(name, says, move |p| root(p, AREA, plant_leaf(p, AREA, &extents, crcs), 1))
}

fn leaves() -> Vec<Case> {
    vec![
        leaf(
            "extents out of order",
            "overlaps or is out of range",
            vec![zero(0, 1), zero(9, 1), zero(3, 1)],
            0,
        ),
        leaf("extents that overlap", "overlaps or is out of range", vec![zero(0, 9), zero(8, 9)], 0),
        leaf("an extent twice", "overlaps or is out of range", vec![zero(0, 9), zero(0, 9)], 0),
        leaf("an empty extent", "overlaps or is out of range", vec![zero(0, 0)], 0),
        leaf("no extents", "no extent at its base", Vec::new(), 0),
        leaf("too few checksums", "1 checksums for 3 blocks", vec![data(0, AREA + 1, 3)], 1),
        leaf("too many checksums", "9 checksums for 3 blocks", vec![data(0, AREA + 1, 3)], 9),
        leaf("data in a superblock", "outside of the block area", vec![data(0, 1, 1)], 1),
        leaf(
            "data past the largest file",
            "outside of the block area",
            vec![data(0, MAX_FILE_BLOCKS - 1, 2)],
            2,
        ),
        leaf("an extent at the end of numbers", "out of range", vec![zero(u64::MAX, 1)], 0),
    ]
}

/// Bytes that no encoder writes.
fn raw() -> Vec<Case> {
    let patched = |name: &str, says: &'static str, patch: fn(&mut [u8])| {
        broken(name, says, move |p| {
            plant_leaf(p, AREA, &[zero(0, 1), data(5, AREA + 1, 1)], 1);
            let bytes = std::fs::read(p).unwrap();
            let mut node = bytes[(AREA * BLOCK) as usize..][..BLOCK_SIZE].to_vec();
            patch(&mut node);
            reseal(&mut node);
            overwrite(p, AREA * BLOCK, &node);
            let crc = u32::from_le_bytes(node[4..8].try_into().unwrap());
            root(p, AREA, crc, 1);
        })
    };
    // Behind the header: at 48 the base, at 56 the number of extents, from 64 on two extents of 14 bytes, at 92 the
    // number of checksums. An extent's last 8 bytes are its place, of which the last byte's upper half is its kind.
    vec![
        patched("2^64 - 1 extents", "cannot be decoded", |node| node[56..64].fill(0xff)),
        patched("2^32 extents", "cannot be decoded", |node| node[60] = 1),
        patched("2^64 - 1 checksums", "cannot be decoded", |node| node[92..100].fill(0xff)),
        patched("an unknown kind of place", "place 0xf", |node| node[77] = 0xf0),
        patched("a place past all files", "place 0xffffff", |node| node[84..91].fill(0xff)),
        patched("a base at the end of numbers", "out of range", |node| node[48..56].fill(0xff)),
        patched("a later version", "format version 2", |node| node[12] = 2),
        patched("the place of another block", "it was written for block", |node| node[32] ^= 3),
        patched("bytes behind its end", "not zero", |node| node[4095] = 1),
        patched("a length of nothing", "length 0", |node| node[8..12].fill(0)),
        patched("a length of everything", "length 4294967295", |node| node[8..12].fill(0xff)),
    ]
}

/// Leaves that are whole, with extents where none may be. They are found by `check`, and by whoever reads them.
fn places() -> Vec<Case> {
    let leaf = |name: &str, code: &'static str, extents: Vec<LeafExtent>, crcs: usize| {
        let case = Case::new(format!("node: {name}"), move |dir: &Path| {
            let path = make(dir, "vm.cow");
            root(&path, AREA, plant_leaf(&path, AREA, &extents, crcs), 1);
        });
        case.on(&CHECKS, &[2], &["vm.cow", code])
    };
    let unread = |case: Case| {
        // Whoever only writes may never meet it.
        case.on(&[Read], &[1], &["vm.cow", "at offset"]).on(&[Write], &[0, 1], &[])
    };
    vec![
        unread(leaf("data in the ring", "[block_place]", vec![data(0, 2, 1)], 1)),
        unread(leaf("data across ring and area", "[block_place]", vec![data(0, AREA - 1, 2)], 2)),
        unread(leaf("data above the high-water mark", "[block_place]", vec![data(0, AREA + BLOCKS, 1)], 1)),
        unread(leaf("data that is the node itself", "[block_shared]", vec![data(0, AREA, 1)], 1)),
        unread(leaf(
            "one block for two",
            "[block_shared]",
            vec![data(0, AREA + 1, 1), data(5, AREA + 1, 1)],
            2,
        )),
        unread(leaf(
            "runs that overlap",
            "[block_shared]",
            vec![data(0, AREA + 1, 4), data(5, AREA + 3, 4)],
            8,
        )),
        leaf("zeros behind the end of the disk", "[extent_outside]", vec![zero(250, 1 << 30)], 0),
        unread(leaf("data behind the end of the disk", "[extent_outside]", vec![data(255, AREA + 1, 9)], 9)),
    ]
}
