//! What may be opened: a header or a check of one image opens that one file, whatever it names as its parent.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use cowdisk::format::{ForeignFormat, Parent, PathHints};
use cowdisk::layer::{NewLayer, create};
use cowdisk::ops::{CheckOptions, CreateOptions, check, info, info_chain, locate};
use cowdisk::storage::FileKind;
use cowdisk::storage::sim::{OpKind, SimDisk};

const HEAD: &str = "/d/vm.cow";
const MIDDLE: &str = "/d/vm@s1.cow";
const BASE: &str = "/d/base.raw";

/// What `work` opens, each file once, in order.
fn opened<T>(disk: &SimDisk, work: impl AsyncFnOnce(&SimDisk) -> T) -> (T, Vec<PathBuf>) {
    let paths = Rc::new(RefCell::new(Vec::new()));
    let seen = paths.clone();
    disk.set_hook(Some(Box::new(move |_, event| {
        if event.op == OpKind::Open {
            seen.borrow_mut().push(event.path.to_path_buf());
        }
    })));
    let result = disk.block_on(work(disk));
    disk.set_hook(None);
    let mut paths = paths.take();
    paths.sort();
    paths.dedup();
    (result, paths)
}

/// `vm.cow` on its snapshot `s1` on a raw base.
fn chain() -> SimDisk {
    let disk = SimDisk::new(1);
    disk.put_special("/d", FileKind::Directory);
    disk.put_file(BASE, &vec![7; 40_960]);
    let options = CreateOptions {
        base: Some((BASE.into(), cowdisk::ops::BaseFormat::Raw)),
        journal: Some(cowdisk::limits::MIN_JOURNAL_BYTES),
        ..CreateOptions::default()
    };
    disk.block_on(create_image(&disk, &options));
    let name = cowdisk::chain::SnapshotName::new("s1").unwrap();
    let options = crate::machine::to_write();
    disk.block_on(cowdisk::ops::snapshot(&disk, Path::new(HEAD), &name, &options, |_| false)).unwrap();
    disk
}

async fn create_image(disk: &SimDisk, options: &CreateOptions) {
    cowdisk::ops::create(disk, Path::new(HEAD), options).await.unwrap();
}

#[test]
fn info_and_check_open_nothing_but_the_image() {
    let disk = chain();
    let head = Path::new(HEAD);
    for data in [false, true] {
        let options = CheckOptions { data, ..CheckOptions::default() };
        let (report, paths) = opened(&disk, async |disk| check(disk, head, &options).await);
        assert_eq!((report.unwrap().findings.total(), paths), (0, vec![head.into()]));
    }
    let (facts, paths) = opened(&disk, async |disk| info(disk, head).await);
    assert!(matches!(facts.unwrap().sb.parent, Parent::Layer { .. }));
    assert_eq!(paths, [head]);
    let (found, paths) = opened(&disk, async |disk| locate(disk, head, &[]).await);
    assert_eq!((found.unwrap().as_path(), paths), (head, Vec::new()));
}

#[test]
fn the_chain_is_opened_when_it_is_asked_for_and_nothing_else() {
    let disk = chain();
    disk.put_file("/d/other.raw", &[1; 4096]);
    let head = Path::new(HEAD);
    let all = [BASE, HEAD, MIDDLE].map(PathBuf::from);
    let (facts, paths) = opened(&disk, async |disk| info_chain(disk, head, &[]).await);
    assert_eq!((facts.unwrap().0.len(), &paths[..]), (2, &all[..]));
    let options = CheckOptions { chain: true, ..CheckOptions::default() };
    let (report, paths) = opened(&disk, async |disk| check(disk, head, &options).await);
    assert_eq!((report.unwrap().findings.total(), &paths[..]), (0, &all[..]));
}

/// An image of a stranger, whose parent is a file that is none of its business.
#[test]
fn a_strangers_parent_is_not_opened_unless_it_is_asked_for() {
    let disk = SimDisk::new(1);
    disk.put_special("/d", FileKind::Directory);
    disk.put_file("/etc/shadow", &[7; 4096]);
    let hints = PathHints { relative: "../etc/shadow".into(), absolute: "/etc/shadow".into() };
    let format = ForeignFormat::Raw;
    let parent = Parent::Foreign { format, size: 4096, mtime_ns: 0, sample: [0; 32], hints };
    let head = Path::new(HEAD);
    let new = NewLayer { parent, ..NewLayer::empty(1 << 20) };
    disk.block_on(create(&disk, head, &new)).unwrap();
    let options = CheckOptions { data: true, ..CheckOptions::default() };
    let (report, paths) = opened(&disk, async |disk| check(disk, head, &options).await);
    assert_eq!((report.unwrap().findings.total(), paths), (0, vec![head.into()]));
    let (facts, paths) = opened(&disk, async |disk| info(disk, head).await);
    facts.unwrap();
    assert_eq!(paths, [head]);
}
