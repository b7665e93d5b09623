//! Superblocks with impossible fields, headers and features.

use std::fs;
use std::path::Path;

use cowdisk::format::{
    Area, BootId, ChecksumKind, Holder, LayerId, Parent, PathHints, Sealed, Superblock, TreeRoot,
};
use cowdisk::limits::MAX_COUNTER;
use cowdisk::units::{PBlock, Seq};

use crate::case::{CHECKS, Case, Map, Read, WRITERS};
use crate::image::{
    AREA, BLOCK, make, overwrite, patch_slots, patch_superblock, patch_superblocks, superblocks,
};

pub(crate) fn cases() -> Vec<Case> {
    let parts = [fields(), places(), texts(), features(), headers(), slots(), extremes()];
    parts.into_iter().flatten().collect()
}

type Patch = fn(&mut Superblock);

/// The same change of both slots, or the other one would do.
fn both(name: &str, patch: Patch) -> Case {
    Case::new(format!("superblock: {name}"), move |dir| {
        patch_superblocks(&make(dir, "vm.cow"), patch);
    })
}

/// Both slots have the field; every command names it, and where.
fn refused(field: &str, patch: Patch) -> Case {
    both(field, patch).refused(&["superblock", field, "at offset 0"])
}

fn fields() -> Vec<Case> {
    vec![
        refused("block_size 0", |sb| sb.block_size = 0),
        refused("block_size 511", |sb| sb.block_size = 511),
        refused("block_size 512", |sb| sb.block_size = 512),
        refused("block_size 2147483648", |sb| sb.block_size = 1 << 31),
        refused("sector_size 0", |sb| sb.sector_size = 0),
        refused("sector_size 513", |sb| sb.sector_size = 513),
        refused("sector_size 4095", |sb| sb.sector_size = 4095),
        refused("sector_size 2147483648", |sb| sb.sector_size = 1 << 31),
        refused("virtual_size 0", |sb| sb.virtual_size = 0),
        refused("virtual_size 511", |sb| sb.virtual_size = 511),
        refused("virtual_size 1000", |sb| sb.virtual_size = 1000),
        refused("virtual_size 4503599627371008", |sb| sb.virtual_size = (1 << 52) + 512),
        refused("virtual_size 9223372036854775808", |sb| sb.virtual_size = 1 << 63),
        refused("virtual_size 18446744073709551104", |sb| sb.virtual_size = u64::MAX - 511),
        refused("durable_seq 0 below cut 9", |sb| sb.cut = Seq(9)),
    ]
}

fn places() -> Vec<Case> {
    vec![
        refused("block_area 0", |sb| sb.block_area = PBlock(0)),
        refused("block_area 18446744073709551615", |sb| sb.block_area = PBlock(u64::MAX)),
        refused("record area 0 + 64", |sb| sb.areas[0].first = PBlock(0)),
        refused("record area 1 + 64", |sb| sb.areas[0].first = PBlock(1)),
        refused("record area 3 + 64", |sb| sb.areas[0].first = PBlock(3)),
        refused("record area 2 + 0", |sb| sb.areas[0].blocks = 0),
        refused("record area 2 + 1000", |sb| sb.areas[0].blocks = 1000),
        refused("record area 2 + 18446744073709551615", |sb| sb.areas[0].blocks = u64::MAX),
        refused("record area 18446744073709551615 + 64", |sb| sb.areas[0].first = PBlock(u64::MAX)),
        refused("0 record areas", |sb| sb.areas.clear()),
        refused("2 record areas", |sb| sb.areas.push(Area { first: PBlock(2), blocks: 64 })),
        refused("1 record areas", |sb| sb.sealed = Some(Sealed { name: "x".into(), time_ns: 0 })),
        refused("high_water 1", |sb| sb.high_water = PBlock(1)),
        refused("high_water 65", |sb| sb.high_water = PBlock(AREA - 1)),
        refused("high_water 18446744073709551615", |sb| sb.high_water = PBlock(u64::MAX)),
        refused("root 1 height 1", |sb| sb.root = root(1, 1)),
        refused("root 2 height 1", |sb| sb.root = root(2, 1)),
        refused("root 66 height 1", |sb| sb.root = root(AREA, 1)),
        refused("root 18446744073709551615 height 1", |sb| sb.root = root(u64::MAX, 1)),
        refused("height 11", |sb| {
            sb.high_water = PBlock(AREA + 9);
            sb.root = root(AREA, 11);
        }),
        refused("height 4294967295", |sb| sb.root = root(AREA, u32::MAX)),
        refused("root 0 height 0", |sb| sb.root.crc = 7),
    ]
}

fn root(pblock: u64, height: u32) -> TreeRoot {
    TreeRoot { pblock: PBlock(pblock), crc: 0, height }
}

fn texts() -> Vec<Case> {
    vec![
        refused("is too long or has characters", |sb| {
            sb.sealed = Some(Sealed { name: "x".repeat(101), time_ns: 0 });
            sb.areas.clear();
        }),
        refused("snapshot name", |sb| {
            sb.sealed = Some(Sealed { name: "\u{1b}]0;x\u{7}".into(), time_ns: 0 });
            sb.areas.clear();
        }),
        refused("holder is too long", |sb| sb.holder = Some(holder("x".repeat(257), String::new()))),
        refused("holder is too long", |sb| sb.holder = Some(holder(String::new(), "x".repeat(257)))),
        refused("parent path is too long", |sb| sb.parent = layer("x".repeat(1025))),
        refused("zero byte", |sb| sb.parent = layer("a\0b".into())),
        both("a holder with control characters", |sb| {
            sb.holder = Some(holder("\u{1b}[2J\u{9b}31m\n\r".into(), "\u{7}\u{1b}]0;x\u{7}".into()));
        })
        // Nobody of this host, but its lock is free: it was not closed.
        .on(&CHECKS, &[3], &["journal_replay"]),
    ]
}

fn holder(host: String, socket: String) -> Holder {
    Holder { pid: u32::MAX, host, socket }
}

fn layer(path: String) -> Parent {
    let hints = PathHints { relative: path, absolute: String::new() };
    Parent::Layer { layer: LayerId([7; 16]), root_crc: Some(1), hints }
}

/// Bits of each set that no version knows.
fn features() -> Vec<Case> {
    let mut cases = Vec::new();
    for bit in [0, 1, 7, 31, 32, 62, 63] {
        let set = move |name: &str, patch: fn(&mut Superblock, u64)| {
            Case::new(format!("superblock: {name} feature {bit}"), move |dir: &Path| {
                patch_superblocks(&make(dir, "vm.cow"), |sb| patch(sb, 1 << bit));
            })
        };
        // The one that is known belongs to another kind of checksums than the image has.
        let number = match bit {
            0 => "with incompatible features 0x1".to_owned(),
            _ => format!("incompatible features {bit} are unknown"),
        };
        cases.push(set("incompatible", |sb, bits| sb.incompat = bits).refused(&[&number, "at offset 0"]));
        let number = format!("features {:#x} are unknown: the layer can only be read", 1u64 << bit);
        let case = set("read-only compatible", |sb, bits| sb.ro_compat = bits);
        cases.push(case.on(&WRITERS, &[1], &["vm.cow", &number]));
        cases.push(set("compatible", |sb, bits| sb.compat = bits));
    }
    cases.push(refused("with incompatible features 0x0", |sb| {
        sb.checksums = ChecksumKind::None { boot: BootId([7; 16]) };
    }));
    cases.push(refused("incompatible features 5, 63", |sb| sb.incompat = 1 << 63 | 1 << 5));
    // Of a later version, which may have its fields elsewhere: the number is what is told.
    cases.push(refused("incompatible features 1", |sb| {
        sb.incompat = 2;
        sb.block_size = 0;
    }));
    cases
}

type PatchBytes = fn(&mut [u8]);

fn headers() -> Vec<Case> {
    let patched = |says: &'static str, patch: PatchBytes| {
        let case = Case::new(format!("superblock header: {says}"), move |dir| {
            patch_slots(&make(dir, "vm.cow"), patch);
        });
        case.refused(&["superblock", says, "at offset 0"])
    };
    let both_begin = |name: &str, front: &'static [u8]| {
        let case = Case::new(format!("superblock: {name}"), move |dir| {
            let path = make(dir, "vm.cow");
            overwrite(&path, 0, front);
            overwrite(&path, BLOCK, front);
        });
        case.refused(&["not a cowdisk layer"])
    };
    vec![
        patched("format version 2", |slot| slot[12] = 2),
        patched("format version 0", |slot| slot[12] = 0),
        patched("format version 65535", |slot| slot[12..14].fill(0xff)),
        patched("level 1", |slot| slot[14] = 1),
        patched("length 0", |slot| slot[8..12].fill(0)),
        patched("length 47", |slot| slot[8..12].copy_from_slice(&47u32.to_le_bytes())),
        patched("length 4097", |slot| slot[8..12].copy_from_slice(&4097u32.to_le_bytes())),
        patched("length 4294967295", |slot| slot[8..12].fill(0xff)),
        patched("it was written for block", |slot| slot[32] ^= 3),
        patched("not zero", |slot| slot[4095] = 1),
        patched("cannot be decoded", |slot| slot[8] -= 1),
        patched("cannot be decoded", |slot| slot[8] += 1),
        patched("does not belong into slot", |slot| slot[40] ^= 1),
        both_begin("the magic of qcow2", b"QFI\xfb"),
        both_begin("the magic of a node", b"COWN"),
        both_begin("no magic", &[0; 4]),
        both_begin("nothing at all", &[0; 4096]),
        Case::new("superblock: both checksums wrong", |dir| {
            let path = make(dir, "vm.cow");
            overwrite(&path, 4, &[0xa5; 4]);
            overwrite(&path, BLOCK + 4, &[0xa5; 4]);
        })
        .refused(&["superblock", "checksum", "at offset 0"]),
    ]
}

/// One slot good, or two that contradict each other.
fn slots() -> Vec<Case> {
    vec![
        Case::new("superblock: the newest slot is damaged", |dir| {
            let path = make(dir, "vm.cow");
            let at = newest(&path) * BLOCK;
            overwrite(&path, at + 100, &[0xa5; 4]);
        })
        .on(&CHECKS, &[3], &["superblock_slot"]),
        Case::new("superblock: equal generations, different content", |dir| {
            let path = make(dir, "vm.cow");
            let mut bytes = fs::read(&path).unwrap();
            let (from, to) = (newest(&path) as usize, 1 - newest(&path) as usize);
            let mut slot = bytes[from * 4096..][..4096].to_vec();
            // The disk's identity; the address is right, so that only the generation is wrong.
            slot[84] ^= 1;
            slot[32] = to as u8;
            cowdisk::format::testing::reseal(&mut slot);
            bytes[to * 4096..][..4096].copy_from_slice(&slot);
            fs::write(&path, bytes).unwrap();
        })
        .on(&CHECKS, &[3], &["superblock_slot", "does not belong into slot"]),
        Case::new("superblock: slots of two layers", |dir| {
            let path = make(dir, "vm.cow");
            let mut bytes = fs::read(&path).unwrap();
            let old = 1 - newest(&path) as usize;
            let slot = &mut bytes[old * 4096..][..4096];
            slot[16] ^= 1;
            // Two generations apart from the other one: no copy that was opened.
            slot[40] += 4;
            cowdisk::format::testing::reseal(slot);
            fs::write(&path, bytes).unwrap();
        })
        .refused(&["the two slots belong to different layers"]),
    ]
}

fn newest(path: &Path) -> u64 {
    let [a, b] = superblocks(path);
    u64::from(b.generation > a.generation)
}

/// Numbers that are allowed by themselves, and from which counting on goes nowhere.
fn extremes() -> Vec<Case> {
    vec![
        Case::new("superblock: times out of all calendars", |dir| {
            patch_superblock(&make(dir, "vm.cow"), |sb| sb.created_ns = i64::MIN);
        }),
        Case::new("superblock: times at the end of all calendars", |dir| {
            patch_superblock(&make(dir, "vm.cow"), |sb| sb.created_ns = i64::MAX);
        }),
        refused("cut 18446744073709551615", |sb| {
            (sb.cut, sb.durable) = (Seq(u64::MAX), Seq(u64::MAX));
        }),
        refused("durable_seq 18446744073709551615", |sb| sb.durable = Seq(u64::MAX)),
        refused("epoch 18446744073709551615", |sb| sb.epoch = u64::MAX),
        Case::new("superblock: the last generation", |dir| {
            patch_slots(&make(dir, "vm.cow"), |slot| {
                let last = u64::MAX - 1 + u64::from(slot[32]);
                slot[40..48].copy_from_slice(&last.to_le_bytes());
            });
        })
        .refused(&["superblock: generation 18446744073709551614", "at offset 0"]),
        both("the last numbers that are allowed", |sb| {
            (sb.cut, sb.durable, sb.epoch) = (Seq(MAX_COUNTER), Seq(MAX_COUNTER), MAX_COUNTER);
        })
        .on(&WRITERS, &[1], &["vm.cow", "superblock: epoch 4611686018427387905"]),
        both("no record is left", |sb| (sb.cut, sb.durable) = (Seq(MAX_COUNTER), Seq(MAX_COUNTER))).on(
            &WRITERS,
            &[0, 1],
            &[],
        ),
        both("the journal was lost", |sb| {
            sb.durable = Seq(9);
            sb.holder = Some(holder("x".into(), String::new()));
        })
        .on(&CHECKS, &[2], &["journal: record 1 is missing"])
        .on(&WRITERS, &[1], &["vm.cow", "journal: record 1 is missing"])
        .on(&[Map, Read], &[1], &["vm.cow", "journal: record 1 is missing"]),
        Case::new("superblock: the file is full", |dir| {
            patch_superblocks(&make(dir, "vm.cow"), |sb| sb.high_water = PBlock((1 << 42) - 1));
        }),
        Case::new("superblock: a disk of 4 PiB", |dir| {
            patch_superblocks(&make(dir, "vm.cow"), |sb| sb.virtual_size = 1 << 52);
        }),
    ]
}
