//! One damage: what it is, how it is done, and all there are.

use cowdisk::storage::sim::SimDisk;

use crate::reference::{BLOCK, Kind, Layer, Reference};

/// A damage to one layer file of a reference; blocks by number.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Damage {
    Flip {
        layer: usize,
        bit: u64,
    },
    Zero {
        layer: usize,
        block: u64,
    },
    Unreadable {
        layer: usize,
        block: u64,
    },
    Swap {
        layer: usize,
        one: u64,
        other: u64,
    },
    Copy {
        layer: usize,
        from: u64,
        to: u64,
    },
    Misdirect {
        layer: usize,
        from: u64,
        to: u64,
    },
    /// What stood there before, or in the other file: a lost write, or one that went astray.
    Older {
        layer: usize,
        block: u64,
        version: usize,
    },
}

impl Damage {
    pub fn apply(self, reference: &Reference, disk: &SimDisk) {
        let path = |layer: usize| reference.layers[layer].path;
        match self {
            Damage::Flip { layer, bit } => disk.flip_bit(path(layer), bit),
            Damage::Zero { layer, block } => disk.zero_block(path(layer), block),
            Damage::Unreadable { layer, block } => disk.make_unreadable(path(layer), block * BLOCK as u64),
            Damage::Swap { layer, one, other } => disk.swap_blocks(path(layer), one, other),
            Damage::Copy { layer, from, to } => disk.copy_block(path(layer), from, to),
            Damage::Misdirect { layer, from, to } => disk.misdirect(path(layer), from, to),
            Damage::Older { layer, block, version } => {
                let bytes = &reference.layers[layer].blocks[block as usize].older[version];
                disk.replace_block(path(layer), block, bytes);
            }
        }
    }

    /// Its line in the summary.
    pub fn name(self, reference: &Reference) -> &'static str {
        match self {
            Damage::Flip { layer, bit } => {
                match reference.layers[layer].blocks[bit as usize / 8 / BLOCK].kind {
                    Kind::Superblock => "bits of superblocks",
                    Kind::Journal => "bits of journal blocks",
                    Kind::Node => "bits of tree nodes",
                    Kind::Data => "bits of data",
                    Kind::Empty => "bits of empty blocks",
                }
            }
            Damage::Zero { .. } => "zeroed blocks",
            Damage::Unreadable { .. } => "unreadable sectors",
            Damage::Swap { .. } => "swapped blocks",
            Damage::Copy { .. } => "duplicated blocks",
            Damage::Misdirect { .. } => "misdirected writes",
            Damage::Older { .. } => "older versions",
        }
    }
}

impl Layer {
    /// True if a wrong content of `block` is to be found: that of data without checksums is not.
    fn tells(&self, block: u64) -> bool {
        self.checksums || self.blocks[block as usize].kind != Kind::Data
    }
}

/// Every so many pairs of the blocks of a large file are taken.
const MAX_PAIRS: usize = 250;

/// The bits of a block that share `k` of `n` takes. A bit of a superblock or of a record can do other things than the
/// next one, so of these the shares are larger; data and what lies behind the used bytes is all the same.
fn bits_of(layer: &Layer, number: usize, (k, n): (u64, u64)) -> impl Iterator<Item = u64> + use<> {
    let block = &layer.blocks[number];
    let (start, used) = ((number * BLOCK * 8) as u64, block.used as u64 * 8);
    let shares = match block.kind {
        Kind::Superblock => n.div_ceil(150),
        Kind::Journal => n.div_ceil(60),
        Kind::Node => n.div_ceil(10),
        Kind::Data | Kind::Empty => n,
    };
    let taken = move |bit: u64| {
        let shares = if bit < used { shares } else { n };
        // Not the same bit of each byte.
        (bit + bit / 8) % shares == k % shares
    };
    (0..BLOCK as u64 * 8).filter(move |&bit| taken(bit)).map(move |bit| start + bit)
}

/// Blocks whose exchange can matter: all that hold something, and one that holds nothing.
fn interesting(layer: &Layer) -> Vec<u64> {
    let empty = layer.blocks.iter().position(|b| b.kind == Kind::Empty);
    let numbers =
        (0..layer.blocks.len()).filter(|&i| layer.blocks[i].kind != Kind::Empty || Some(i) == empty);
    numbers.map(|i| i as u64).collect()
}

/// All damages of a reference, the bits in share `k` of `n`.
pub fn damages(reference: &Reference, share: (u64, u64)) -> Vec<Damage> {
    let mut all = Vec::new();
    for (layer, file) in reference.layers.iter().enumerate() {
        let blocks = interesting(file);
        for &block in &blocks {
            all.push(Damage::Unreadable { layer, block });
            if !file.tells(block) {
                continue;
            }
            all.extend(bits_of(file, block as usize, share).map(|bit| Damage::Flip { layer, bit }));
            all.push(Damage::Zero { layer, block });
            let older = 0..file.blocks[block as usize].older.len();
            all.extend(older.map(|version| Damage::Older { layer, block, version }));
        }
        let pairs = blocks.len() * blocks.len();
        for i in (0..pairs).step_by(pairs.div_ceil(MAX_PAIRS)) {
            let (from, to) = (blocks[i / blocks.len()], blocks[i % blocks.len()]);
            if from < to && file.tells(from) && file.tells(to) {
                all.push(Damage::Swap { layer, one: from, other: to });
            }
            if from != to && file.tells(to) {
                all.push(Damage::Copy { layer, from, to });
            }
            if from != to && file.tells(from) && file.tells(to) {
                all.push(Damage::Misdirect { layer, from, to });
            }
        }
    }
    all
}
