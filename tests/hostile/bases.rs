//! Parents that must not be opened, and parents that are not what they were.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use cowdisk::format::{ForeignFormat, LayerId, Parent, PathHints};

use crate::case::{Case, Check, CheckAll, Info};
use crate::image::{make, patch_superblocks};
use crate::run::run;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = PLACES.iter().flat_map(|&(name, says)| forbidden(name, says)).collect();
    cases.extend(changed());
    cases.push(too_large());
    cases
}

fn hints(path: &str) -> PathHints {
    PathHints { relative: path.into(), absolute: String::new() }
}

fn raw(path: &str, size: u64) -> Parent {
    Parent::Foreign { format: ForeignFormat::Raw, size, mtime_ns: 0, sample: [0; 32], hints: hints(path) }
}

/// Only the head's own header and structures are of any use. `says` is part of every other answer.
fn without_parent(case: Case, says: &[&str]) -> Case {
    let case = case.all(&[1], says).on(&[CheckAll], &[1, 2], says);
    case.on(&[Info, Check], &[0], &["vm.cow"]).on(&[Check], &[0], &["clean"])
}

/// What a stranger may have put there as a path, and what is said of it.
const PLACES: &[(&str, &str)] = &[
    ("/etc/passwd", "/etc/passwd"),
    ("../../../../../../../../etc/passwd", "etc/passwd"),
    ("../other.raw", "vm.cow"),
    ("link.raw", "link.raw"),
    ("loop.raw", "vm.cow"),
    ("fifo", "fifo"),
    ("/dev/zero", "/dev/zero"),
    ("/dev/stdin", "symbolic links"),
    ("/dev/sda", "vm.cow"),
    ("/proc/self/mem", "/proc/self/mem"),
    ("/proc/kmsg", "/proc/kmsg"),
    ("dir", "dir"),
    (".", "regular"),
    ("/", "regular"),
    ("http://example.com/base.raw", "vm.cow"),
    ("nbd://localhost", "vm.cow"),
    ("nbd+unix:///?socket=fifo", "vm.cow"),
    ("json:{\"driver\":\"file\"}", "vm.cow"),
    ("vm.cow", "vm.cow"),
    ("./vm.cow", "vm.cow"),
    ("missing", "vm.cow"),
    ("", "vm.cow"),
    ("a\u{1b}[2Jb\nc\u{7}\u{9b}31m", "vm.cow"),
    ("real.raw/x", "vm.cow"),
];

/// As a raw base, and as a layer.
fn forbidden(path: &'static str, says: &'static str) -> [Case; 2] {
    let shown = path.escape_default();
    let make = |parent: fn(&str) -> Parent| {
        move |dir: &Path| {
            let image = make(dir, "vm.cow");
            fs::write(dir.join("real.raw"), vec![1; 4096]).unwrap();
            symlink("real.raw", dir.join("link.raw")).unwrap();
            symlink("loop.raw", dir.join("loop.raw")).unwrap();
            fs::create_dir(dir.join("dir")).unwrap();
            let made = std::process::Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap();
            assert!(made.success());
            patch_superblocks(&image, |sb| sb.parent = parent(path));
        }
    };
    let layer = |path: &str| Parent::Layer { layer: LayerId([7; 16]), root_crc: Some(1), hints: hints(path) };
    [
        without_parent(Case::new(format!("base: {shown}"), make(|path| raw(path, 4096))), &[says]),
        without_parent(Case::new(format!("parent: {shown}"), make(layer)), &["vm.cow"]),
    ]
}

fn too_large() -> Case {
    let case = Case::new("base: size 2^64 - 1", |dir| {
        patch_superblocks(&make(dir, "vm.cow"), |sb| sb.parent = raw("base.raw", u64::MAX));
    });
    case.refused(&["superblock", "base size 18446744073709551615", "at offset 0"])
}

/// A base that was as it should be when the image was made.
fn changed() -> Vec<Case> {
    let case = |name: &str, says: &'static [&'static str], change: fn(&Path)| {
        let case = Case::new(format!("base: {name}"), move |dir: &Path| {
            let base = dir.join("base.raw");
            fs::write(&base, vec![1; 100_000]).unwrap();
            let args = ["create", "vm.cow", "--base", "base.raw", "--base-format", "raw"];
            run(dir, args.iter().chain(&["--journal-size", "256k"])).ok();
            change(&base);
        });
        without_parent(case, says)
    };
    vec![
        case("shorter", &["base.raw", "size"], |base| {
            edit(base, |file| file.set_len(99_999).unwrap());
        }),
        case("longer", &["base.raw", "size"], |base| {
            edit(base, |file| file.set_len(100_001).unwrap());
        }),
        case("empty", &["base.raw", "size"], |base| edit(base, |file| file.set_len(0).unwrap())),
        case("modified behind its time stamp", &["base.raw"], |base| {
            edit(base, |file| file.write_all_at(&[2], 0).unwrap());
        }),
        case("with another time stamp", &["base.raw"], |base| {
            let file = File::options().write(true).open(base).unwrap();
            file.set_modified(SystemTime::now() + Duration::from_secs(7)).unwrap();
        }),
        case("gone", &["vm.cow", "cannot be found"], |base| fs::remove_file(base).unwrap()),
        case("a symbolic link now", &["base.raw"], |base| {
            fs::rename(base, base.with_file_name("real.raw")).unwrap();
            symlink("real.raw", base).unwrap();
        }),
        case("a directory now", &["base.raw"], |base| {
            fs::remove_file(base).unwrap();
            fs::create_dir(base).unwrap();
        }),
        case("a FIFO now", &["base.raw"], |base| {
            fs::remove_file(base).unwrap();
            assert!(std::process::Command::new("mkfifo").arg(base).status().unwrap().success());
        }),
        case("the image itself now", &["base.raw"], |base| {
            fs::remove_file(base).unwrap();
            fs::hard_link(base.with_file_name("vm.cow"), base).unwrap();
        }),
    ]
}

/// Changes a file and keeps its time stamp.
fn edit(path: &Path, change: impl FnOnce(&File)) {
    let file = File::options().write(true).open(path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    change(&file);
    file.set_modified(time).unwrap();
}
