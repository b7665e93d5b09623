//! Disks with snapshots of known content, and the judge of what a delete leaves of them.

use std::path::{Path, PathBuf};

use cowdisk::chain::SnapshotName;
use cowdisk::device::Queue;
use cowdisk::error::{Kind, Result};
use cowdisk::format::Superblock;
use cowdisk::limits::MIN_JOURNAL_BYTES;
use cowdisk::ops::{
    BaseFormat, CheckOptions, CreateOptions, Deleted, NewSize, ResizeOptions, Severity, Work, check, create,
    delete, find_snapshot, fork, read_superblock, resize, snapshot,
};
use cowdisk::storage::sim::SimDisk;
use cowdisk::storage::{FileKind, IoBuf, Storage};
use cowdisk::units::PBlock;

use crate::machine::{BLOCK, IMAGE, Served, serve, to_read, to_write};

const BASE: &str = "/d/base.raw";
/// What is cut to delete the newest snapshot.
const NAMELESS: &str = "/d/vm@~1.cow";
/// What a raw base is filled with.
const BASE_FILL: u8 = 255;
/// Blocks of data in a chunk: small, so that there are several.
const CHUNK: u64 = 8;

/// What each block shows.
pub(crate) type Content = Vec<u8>;

/// What one layer changes.
#[derive(Clone, Default)]
pub(crate) struct Layer {
    /// The size in blocks, if it changes.
    pub(crate) size: Option<usize>,
    /// First block, number of blocks, every how many, fill; a fill of 0 makes zeros.
    pub(crate) writes: Vec<(usize, usize, usize, u8)>,
}

/// A disk: its layers, the lowest one first; all but the last one become the snapshots s1, s2, …
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) name: &'static str,
    /// Blocks of a raw base.
    pub(crate) base: Option<usize>,
    pub(crate) size: usize,
    /// Its data has no checksums.
    pub(crate) plain: bool,
    pub(crate) layers: Vec<Layer>,
    /// So many blocks are what the lowest layer is said to have, as a disk that was made larger on a smaller one: what lies
    /// below its end is not to be seen through it.
    pub(crate) shorter: Option<usize>,
    /// The snapshot that goes.
    pub(crate) delete: &'static str,
}

/// What the disk and its snapshots show.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) head: Content,
    pub(crate) snapshots: Vec<(String, Content)>,
}

pub(crate) fn name(text: &str) -> SnapshotName {
    SnapshotName::new(text).unwrap()
}

impl Disk {
    /// Makes it.
    pub(crate) fn make(&self, disk: &SimDisk) -> Shown {
        disk.put_special("/d", FileKind::Directory);
        let mut content = vec![0; self.size];
        let mut options = CreateOptions {
            size: Some((self.size * BLOCK) as u64),
            journal: Some(MIN_JOURNAL_BYTES),
            no_checksums: self.plain,
            ..CreateOptions::default()
        };
        if let Some(blocks) = self.base {
            disk.put_file(BASE, &vec![BASE_FILL; blocks * BLOCK]);
            options.base = Some((BASE.into(), BaseFormat::Raw));
            content[..blocks.min(self.size)].fill(BASE_FILL);
        }
        disk.block_on(create(disk, Path::new(IMAGE), &options)).unwrap();
        let mut snapshots = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            layer.apply(disk, &mut content);
            if i + 1 < self.layers.len() {
                let taken = format!("s{}", i + 1);
                snapshots.push((taken.clone(), content.clone()));
                let (machine, options) = (disk.clone(), to_write());
                let taken = async move {
                    snapshot(&machine, Path::new(IMAGE), &name(&taken), &options, |_| false).await
                };
                disk.block_on(taken).unwrap();
            }
        }
        let Some(blocks) = self.shorter else { return Shown { head: content, snapshots } };
        shorten(disk, Path::new("/d/vm@s1.cow"), blocks);
        let shown = |path: &str| content_of(disk, path, self.name);
        let again =
            |(snapshot, _): &(String, Content)| (snapshot.clone(), shown(&format!("/d/vm@{snapshot}.cow")));
        Shown { head: shown(IMAGE), snapshots: snapshots.iter().map(again).collect() }
    }
}

fn content_of(disk: &SimDisk, path: &str, place: &str) -> Content {
    content(disk, Path::new(path), false, place)
}

/// Both superblocks of the layer `path` say that its disk has `blocks` blocks.
fn shorten(disk: &SimDisk, path: &Path, blocks: usize) {
    let mut bytes = disk.read_file(path).unwrap();
    for (slot, address) in bytes.chunks_mut(BLOCK).take(2).zip(0..) {
        let mut sb = Superblock::decode(slot, PBlock(address)).unwrap();
        sb.virtual_size = (blocks * BLOCK) as u64;
        slot.copy_from_slice(&sb.encode().unwrap()[..]);
    }
    disk.put_file(path, &bytes);
}

impl Layer {
    fn apply(&self, disk: &SimDisk, content: &mut Content) {
        if let Some(size) = self.size {
            let size_bytes = NewSize::To((size * BLOCK) as u64);
            let options = ResizeOptions { size: size_bytes, shrink: true, dry_run: false };
            let (machine, open) = (disk.clone(), to_write());
            disk.block_on(async move { resize(&machine, Path::new(IMAGE), &options, &open).await }).unwrap();
            content.resize(size, 0);
        }
        let work = async |served: Served| {
            for &(first, blocks, stride, fill) in &self.writes {
                for block in (first..first + blocks).step_by(stride) {
                    content[block] = fill;
                    if fill > 0 {
                        served.write(block, fill).await;
                    } else {
                        let (pos, len) = ((block * BLOCK) as u64, BLOCK as u64);
                        served.queue.discard(pos, len, false).await.unwrap();
                    }
                }
            }
            served.close().await;
        };
        serve(disk, Path::new(IMAGE), to_write(), work).unwrap();
    }
}

/// A disk in another directory.
const FORK: &str = "/e/fork.cow";

impl Disk {
    /// Makes a disk on the snapshot that goes, out of reach. What it shows.
    pub(crate) fn fork(&self, disk: &SimDisk) -> Content {
        disk.put_special("/e", FileKind::Directory);
        let parent = located(disk, self.delete, self.name).unwrap();
        disk.block_on(fork(disk, &parent, &[FORK.into()], None)).unwrap();
        content(disk, Path::new(FORK), false, self.name)
    }
}

/// Deletes the snapshot.
pub(crate) fn deleted(
    disk: &SimDisk,
    snapshot: &'static str,
) -> impl Future<Output = Result<Deleted>> + 'static {
    let (machine, options) = (disk.clone(), to_write());
    async move {
        let work = Work { chunk_blocks: CHUNK, rate: None, go_on: &|_| Ok(()), moved: &|_| {} };
        delete(&machine, Path::new(IMAGE), &name(snapshot), &options, |_| false, &work).await
    }
}

async fn read_all(served: Served) -> Content {
    let blocks = served.image.geometry().size as usize / BLOCK;
    let mut content = Vec::with_capacity(blocks);
    let buf = IoBuf::zeroed(BLOCK);
    for block in 0..blocks {
        served.queue.read((block * BLOCK) as u64, buf.clone()).await.unwrap();
        let bytes = buf.to_vec();
        assert!(bytes.iter().all(|b| *b == bytes[0]), "block {block} is mixed");
        content.push(bytes[0]);
    }
    served.queue.close();
    content
}

fn content(disk: &SimDisk, path: &Path, writing: bool, place: &str) -> Content {
    let options = if writing { to_write() } else { to_read() };
    let read = serve(disk, path, options, async |served: Served| {
        let image = served.image.clone();
        let content = read_all(served).await;
        if writing {
            image.close().await.unwrap();
        }
        content
    });
    read.unwrap_or_else(|e| panic!("{place}: {e}"))
}

fn located(disk: &SimDisk, snapshot: &str, place: &str) -> Option<PathBuf> {
    match disk.block_on(find_snapshot(disk, Path::new(IMAGE), &name(snapshot), &[])) {
        Ok(path) => Some(path),
        Err(e) if e.kind() == Kind::NotFound => None,
        Err(e) => panic!("{place}: {e}"),
    }
}

impl Shown {
    /// What the disk out of reach shows.
    pub(crate) fn of_fork(&self, disk: &SimDisk) -> Result<Content> {
        serve(disk, Path::new(FORK), to_read(), read_all)
    }

    /// The disk and all snapshots but `gone` are as they were; that one is exact or cannot be opened. Gives whether it is
    /// there. `writing`: the disk is opened for writing.
    pub(crate) fn assert_shown(&self, disk: &SimDisk, gone: &str, writing: bool, place: &str) -> bool {
        // The cut below the head was broken off: the next open for writing seals it, as that of any snapshot.
        let cut = disk.block_on(read_superblock(disk, Path::new(NAMELESS)));
        let writing = writing || cut.is_ok_and(|sb| sb.sealed.is_none());
        assert_eq!(content(disk, Path::new(IMAGE), writing, place), self.head, "{place}: the disk");
        let mut there = false;
        for (snapshot, wanted) in &self.snapshots {
            let path = located(disk, snapshot, place);
            if snapshot != gone {
                let path = path.unwrap_or_else(|| panic!("{place}: {snapshot} is gone"));
                assert_eq!(&content(disk, &path, false, place), wanted, "{place}: {snapshot}");
            } else if let Some(path) = path {
                let read = serve(disk, &path, to_read(), read_all);
                match read {
                    Ok(content) => assert_eq!(&content, wanted, "{place}: {snapshot}, which is to go"),
                    Err(e) => assert_eq!(e.kind(), Kind::Unsupported, "{place}: {e}"),
                }
                there = true;
            }
        }
        let whole = CheckOptions { data: true, chain: true, ..CheckOptions::default() };
        let report = disk.block_on(check(disk, Path::new(IMAGE), &whole));
        let report = report.unwrap_or_else(|e| panic!("{place}: {e}"));
        let harm = report.findings.kept().iter().find(|f| f.code.severity() != Severity::Harmless);
        assert!(harm.is_none(), "{place}: {harm:?}");
        there
    }

    /// The delete is done: nothing is left of it.
    pub(crate) fn assert_done(&self, disk: &SimDisk, gone: &str, place: &str) {
        assert!(!self.assert_shown(disk, gone, true, place), "{place}: it is still there");
        let mut ours = vec!["base.raw".to_owned(), "vm.cow".into(), "vm@~1.cow".into()];
        ours.extend(self.snapshots.iter().filter(|(s, _)| s != gone).map(|(s, _)| format!("vm@{s}.cow")));
        for file in disk.list(Path::new("/d")).unwrap() {
            let sb = disk.block_on(read_superblock(disk, &Path::new("/d").join(&file)));
            if let Ok(sb) = &sb {
                assert_eq!(sb.joining, None, "{place}: {file}");
            }
            let unborn = file.starts_with(".vm.cow.cowdisk-") && sb.is_err();
            assert!(ours.contains(&file) || unborn, "{place}: {file}");
        }
    }
}
