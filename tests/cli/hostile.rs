//! Images that strangers made: every command answers within two seconds, in bounded memory, with an error that names
//! what is wrong, and changes nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use cowdisk::format::{
    Area, Child, DiskId, ForeignFormat, Holder, InnerNode, LayerId, LeafExtent, LeafNode, Parent, PathHints,
    Place, Sealed, Superblock, TreeRoot,
};
use cowdisk::units::{PBlock, Seq, VBlock};
use tempfile::tempdir;

use crate::image::{
    AREA, BLOCK, Change, End, change, make, overwrite, patch_slots, patch_superblock, patch_superblocks,
    superblock,
};
use crate::run::{Ran, content_of, finish, run};

/// The bound for a hostile image.
const LIMIT: Duration = Duration::from_secs(2);
/// KiB of address space: 256 MiB, and what a program has before it does anything.
const ADDRESS_SPACE: u32 = (256 + 64) << 10;

/// Runs a command on a hostile image: it neither panics nor hangs nor prints control characters.
#[track_caller]
fn attack(dir: &Path, args: &[&str]) -> Ran {
    let mut command = std::process::Command::new("bash");
    let quoted: Vec<String> = args.iter().map(|a| format!("'{a}'")).collect();
    let script =
        format!("ulimit -v {ADDRESS_SPACE}; exec '{}' {}", env!("CARGO_BIN_EXE_cowdisk"), quoted.join(" "));
    command.args(["-c", &script]).current_dir(dir).env_remove("COWDISK_PATH");
    let ran = finish(command);
    assert!(matches!(ran.code, Some(0..=3)), "{args:?}: {ran:?}");
    assert!(ran.took < LIMIT, "{args:?} took {:?}", ran.took);
    let printed = format!("{}{}", ran.stdout, ran.stderr);
    assert!(!printed.contains("panicked"), "{ran:?}");
    assert!(printed.chars().all(|c| c == '\n' || !c.is_control()), "{ran:?}");
    ran
}

/// Every command that only reads.
const READERS: [&[&str]; 7] = [
    &["info", "vm.cow"],
    &["info", "--chain", "vm.cow"],
    &["info", "--files", "vm.cow"],
    &["check", "vm.cow"],
    &["check", "--data", "--chain", "vm.cow"],
    &["map", "vm.cow"],
    &["bench", "vm.cow", "-c", "10"],
];

/// All of them, and a snapshot, must refuse the image, naming it and the fragment.
#[track_caller]
fn refused(dir: &Path, fragment: &str) {
    let before = content_of(dir);
    for args in READERS.iter().copied().chain([&["snapshot", "vm.cow@s"][..]]) {
        let ran = attack(dir, args);
        assert_ne!(ran.code, Some(0), "{args:?}: {ran:?}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains("vm.cow") && said.contains(fragment), "{args:?}: no {fragment:?} in {ran:?}");
        assert_eq!(content_of(dir), before, "{args:?} changed something");
    }
}

#[test]
fn every_truncation() {
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "vm.cow");
    change(&path, &[Change::Write(0, 3, 1), Change::Write(9, 1, 2)], End::Killed);
    let whole = fs::read(&path).unwrap();
    let lengths =
        [0, 1, 4, 47, 48, 511, 4095, 4096, 5000, 8191, 8192, 8193, 12288, 100_000, 270_336, 274_432];
    for len in lengths.into_iter().chain([whole.len() - 1]) {
        fs::write(&path, &whole[..len]).unwrap();
        let before = content_of(dir.path());
        for args in READERS {
            attack(dir.path(), args);
        }
        assert_eq!(content_of(dir.path()), before, "{len}");
        if len < 8192 {
            refused(dir.path(), "too few");
        }
    }
}

type Patch = fn(&mut Superblock);
type PatchBytes = fn(&mut [u8]);
type Damage<'a> = &'a dyn Fn(&Path);

#[test]
fn superblocks_with_impossible_fields() {
    let cases: &[(&str, Patch)] = &[
        ("incompatible features 5, 63", |sb| sb.incompat = 1 << 63 | 1 << 5),
        ("block_size 0", |sb| sb.block_size = 0),
        ("block_size 511", |sb| sb.block_size = 511),
        ("block_size 2147483648", |sb| sb.block_size = 1 << 31),
        ("sector_size 0", |sb| sb.sector_size = 0),
        ("sector_size 4095", |sb| sb.sector_size = 4095),
        ("virtual_size 0", |sb| sb.virtual_size = 0),
        ("virtual_size 1000", |sb| sb.virtual_size = 1000),
        ("virtual_size 9223372036854775808", |sb| sb.virtual_size = 1 << 63),
        ("virtual_size 18446744073709551104", |sb| sb.virtual_size = u64::MAX - 511),
        ("block_area 0", |sb| sb.block_area = PBlock(0)),
        ("block_area 18446744073709551615", |sb| sb.block_area = PBlock(u64::MAX)),
        ("record area 0 + 64", |sb| sb.areas[0].first = PBlock(0)),
        ("record area 2 + 0", |sb| sb.areas[0].blocks = 0),
        ("record area 2 + 1000", |sb| sb.areas[0].blocks = 1000),
        ("record area 18446744073709551615 + 64", |sb| sb.areas[0].first = PBlock(u64::MAX)),
        ("0 record areas", |sb| sb.areas.clear()),
        ("2 record areas", |sb| sb.areas.push(Area { first: PBlock(2), blocks: 64 })),
        ("high_water 1", |sb| sb.high_water = PBlock(1)),
        ("high_water 18446744073709551615", |sb| sb.high_water = PBlock(u64::MAX)),
        ("root 1 height 1", |sb| sb.root = TreeRoot { pblock: PBlock(1), crc: 0, height: 1 }),
        ("height 11", |sb| {
            sb.high_water = PBlock(AREA + 9);
            sb.root = TreeRoot { pblock: PBlock(AREA), crc: 0, height: 11 };
        }),
        ("height 4294967295", |sb| sb.root = TreeRoot { pblock: PBlock(AREA), crc: 0, height: u32::MAX }),
        ("root 0 height 0", |sb| sb.root.crc = 7),
        ("durable_seq 0 below cut 9", |sb| sb.cut = Seq(9)),
        ("1 record areas", |sb| sb.sealed = Some(Sealed { name: "x".into(), time_ns: 0 })),
        ("is too long or has characters", |sb| {
            sb.sealed = Some(Sealed { name: "x".repeat(101), time_ns: 0 });
            sb.areas.clear();
        }),
        ("snapshot name", |sb| {
            sb.sealed = Some(Sealed { name: "\u{1b}]0;x\u{7}".into(), time_ns: 0 });
            sb.areas.clear();
        }),
        ("holder is too long", |sb| {
            sb.holder = Some(Holder { pid: 1, host: "x".repeat(257), socket: String::new() });
        }),
        ("parent path is too long", |sb| sb.parent = layer("x".repeat(1025))),
        ("zero byte", |sb| sb.parent = layer("a\0b".into())),
        ("base size", |sb| sb.parent = raw("base.raw", u64::MAX)),
    ];
    for (fragment, patch) in cases {
        let dir = tempdir().unwrap();
        let path = make(dir.path(), "vm.cow");
        // Both slots, or the other one would do.
        patch_superblocks(&path, patch);
        refused(dir.path(), fragment);
    }
}

fn layer(path: String) -> Parent {
    let hints = PathHints { relative: path, absolute: String::new() };
    Parent::Layer { layer: LayerId([7; 16]), root_crc: Some(1), hints }
}

fn raw(path: &str, size: u64) -> Parent {
    let hints = PathHints { relative: path.into(), absolute: String::new() };
    Parent::Foreign { format: ForeignFormat::Raw, size, mtime_ns: 0, sample: [0; 32], hints }
}

#[test]
fn superblocks_with_impossible_headers() {
    let cases: &[(&str, PatchBytes)] = &[
        ("format version 2", |slot| slot[12] = 2),
        ("format version 0", |slot| slot[12] = 0),
        ("length 0", |slot| slot[8..12].fill(0)),
        ("length 4294967295", |slot| slot[8..12].fill(0xff)),
        ("it was written for block", |slot| slot[32] ^= 3),
        ("not zero", |slot| slot[4095] = 1),
        ("cannot be decoded", |slot| slot[8] -= 1),
    ];
    for (fragment, patch) in cases {
        let dir = tempdir().unwrap();
        let path = make(dir.path(), "vm.cow");
        patch_slots(&path, patch);
        refused(dir.path(), fragment);
    }
    let dir = tempdir().unwrap();
    let path = make(dir.path(), "vm.cow");
    overwrite(&path, 0, b"QFI\xfb");
    overwrite(&path, BLOCK, b"QFI\xfb");
    refused(dir.path(), "not a cowdisk layer");
}

#[test]
fn nodes_that_loop_or_sit_on_the_wrong_level() {
    let inner = |path: &Path, at: u64, level: u16, children: &[(u64, u64, u32)]| {
        let sb = superblock(path);
        let child = |&(first, pblock, crc): &(u64, u64, u32)| Child {
            first: VBlock(first),
            pblock: PBlock(pblock),
            crc,
        };
        let node = InnerNode { children: children.iter().map(child).collect() };
        let (block, crc) = node.encode(sb.layer, PBlock(at), sb.generation, level);
        overwrite(path, at * BLOCK, &block[..]);
        crc
    };
    let root = |path: &Path, at: u64, crc: u32, height: u32| {
        patch_superblock(path, |sb| {
            sb.high_water = PBlock(AREA + 20);
            sb.root = TreeRoot { pblock: PBlock(at), crc, height };
        });
        fs::File::options().write(true).open(path).unwrap().set_len((AREA + 20) * BLOCK).unwrap();
    };
    let cases: &[(&str, Damage<'_>)] = &[
        ("outside of the block area", &|p| root(p, AREA, inner(p, AREA, 1, &[(0, AREA, 7)]), 2)),
        ("level 1 where level 2 belongs", &|p| {
            let low = inner(p, AREA + 1, 1, &[(0, AREA, 7)]);
            root(p, AREA, inner(p, AREA, 3, &[(0, AREA + 1, low)]), 4);
        }),
        ("level 1 where a leaf belongs", &|p| root(p, AREA, inner(p, AREA, 1, &[(0, AREA + 1, 7)]), 1)),
        ("out of order", &|p| root(p, AREA, inner(p, AREA, 1, &[(9, AREA + 1, 7), (3, AREA + 2, 7)]), 2)),
        ("no children", &|p| root(p, AREA, inner(p, AREA, 1, &[]), 2)),
        ("its parent says", &|p| {
            let extent = LeafExtent { vblock: VBlock(0), blocks: 1, place: Place::Zero, crc_index: 0 };
            let leaf = LeafNode { extents: vec![extent], crcs: Vec::new() };
            let leaf = leaf.encode(superblock(p).layer, PBlock(AREA + 1), 2);
            overwrite(p, (AREA + 1) * BLOCK, &leaf.0[..]);
            root(p, AREA, inner(p, AREA, 1, &[(0, AREA + 1, !leaf.1)]), 2);
        }),
        ("magic", &|p| root(p, AREA, inner(p, AREA, 1, &[(0, AREA + 3, 7)]), 2)),
    ];
    for (fragment, damage) in cases {
        let dir = tempdir().unwrap();
        let path = make(dir.path(), "vm.cow");
        damage(&path);
        let before = content_of(dir.path());
        attack(dir.path(), &["info", "vm.cow"]).ok();
        let check = attack(dir.path(), &["check", "vm.cow"]);
        assert!(check.code == Some(2) && check.stdout.contains(fragment), "{fragment}: {check:?}");
        let map = attack(dir.path(), &["map", "--json", "vm.cow"]);
        assert!(map.code == Some(1) && map.stderr.contains("tree node"), "{fragment}: {map:?}");
        attack(dir.path(), &["bench", "vm.cow", "-c", "1"]);
        assert_eq!(content_of(dir.path()), before, "{fragment}");
    }
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
    crate::image::plant(&path, AREA, &leaf);
    // As long as the file system lets a sparse file be: 8 TiB fit everywhere.
    fs::File::options().write(true).open(&path).unwrap().set_len(8 << 40).unwrap();
    for args in
        [&["check", "vm.cow"][..], &["check", "--data", "vm.cow"], &["map", "vm.cow"], &["info", "vm.cow"]]
    {
        attack(dir.path(), args);
    }
}

#[test]
fn bases_that_must_not_be_opened() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("real.raw"), vec![1; 4096]).unwrap();
    std::os::unix::fs::symlink("real.raw", dir.path().join("link.raw")).unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(dir.path().join("fifo")).status().unwrap();
    assert!(made.success());
    let hostile = [
        "/etc/passwd",
        "../../../../../../etc/passwd",
        "link.raw",
        "fifo",
        "/dev/zero",
        "/dev/sda",
        "/proc/self/mem",
        "dir",
        "http://example.com/base.raw",
        "nbd://localhost",
        "json:{}",
        "vm.cow",
        "missing",
        "",
        "a\u{1b}[2Jb\nc",
    ];
    for base in hostile {
        for parent in [raw(base, 4096), layer(base.into())] {
            let path = make(dir.path(), "vm.cow");
            patch_superblock(&path, |sb| sb.parent = parent.clone());
            // The header may be looked at: no other file is opened for that.
            attack(dir.path(), &["info", "vm.cow"]).ok();
            attack(dir.path(), &["check", "vm.cow"]).ok();
            let before = fs::read(&path).unwrap();
            for args in [
                &["info", "--chain", "vm.cow"][..],
                &["info", "--files", "vm.cow"],
                &["map", "vm.cow"],
                &["bench", "vm.cow", "-c", "1"],
                &["snapshot", "vm.cow@s"],
            ] {
                let ran = attack(dir.path(), args);
                assert_eq!(ran.code, Some(1), "{base:?} {args:?}: {ran:?}");
            }
            let check = attack(dir.path(), &["check", "--chain", "vm.cow"]);
            assert!(matches!(check.code, Some(1 | 2)), "{base:?}: {check:?}");
            assert_eq!(fs::metadata(&path).unwrap().len(), before.len() as u64);
            fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn circles_and_strangers_in_the_chain() {
    let dir = tempdir().unwrap();
    let (a, b) = (make(dir.path(), "vm.cow"), make(dir.path(), "b.cow"));
    let ids = [superblock(&a).layer, superblock(&b).layer];
    let on = |id: LayerId, file: &str| {
        let hints = PathHints { relative: file.into(), absolute: String::new() };
        Parent::Layer { layer: id, root_crc: Some(0), hints }
    };
    let seal = |path: &Path, parent: Parent| {
        patch_superblock(path, |sb| {
            sb.parent = parent;
            sb.sealed = Some(Sealed { name: "x".into(), time_ns: 0 });
            sb.areas.clear();
            sb.disk = DiskId([1; 16]);
        });
    };
    patch_superblock(&a, |sb| sb.parent = on(ids[1], "b.cow"));
    seal(&b, on(ids[0], "vm.cow"));
    for args in &READERS[1..3] {
        assert!(attack(dir.path(), args).stderr.contains("circle"), "{args:?}");
    }
    let check = attack(dir.path(), &["check", "--chain", "vm.cow"]);
    assert!(check.code == Some(2) && check.stdout.contains("[chain]"), "{check:?}");
    attack(dir.path(), &["map", "vm.cow"]);
    seal(&b, on(ids[1], "b.cow"));
    assert!(attack(dir.path(), &["info", "--chain", "vm.cow"]).stderr.contains("circle"));
    attack(dir.path(), &["info", "b.cow"]).ok();
    // The name of a stranger's layer is no proof.
    seal(&b, Parent::None);
    patch_superblock(&a, |sb| sb.parent = on(LayerId([9; 16]), "b.cow"));
    assert!(attack(dir.path(), &["info", "--chain", "vm.cow"]).stderr.contains("not 09090909"));
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
            attack(dir.path(), args);
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    run(dir.path(), ["info", "vm.cow"]);
}
