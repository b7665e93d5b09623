//! An image on a file system of several machines, left open by one that may still be running.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use cowdisk::chain::{Access, OpenOptions, SnapshotName};
use cowdisk::error::Kind;
use cowdisk::format::Holder;
use cowdisk::ops::{plan_snapshot, read_superblock, snapshot};
use cowdisk::storage::sim::{Crash, Executor, SimDisk};

use crate::machine::{BLOCKS, IMAGE, Served, create_image, serve, to_write};

const SNAPSHOT: &str = "/d/vm@s1.cow";

/// As [`to_write`], on another machine.
fn elsewhere(force: bool) -> OpenOptions {
    let me = Holder { pid: 1, host: "elsewhere".into(), socket: String::new() };
    OpenOptions { access: Access::Write(me), force, ..to_write() }
}

fn open(disk: &SimDisk, options: OpenOptions) -> cowdisk::Result<u8> {
    serve(disk, Path::new(IMAGE), options, async |served: Served| {
        let content = served.read_all().await;
        served.close().await;
        content[3]
    })
}

/// What the death of a process leaves that writes to an image and takes a snapshot, at each of its operations.
fn deaths() -> Vec<(String, SimDisk)> {
    let disk = SimDisk::new(1);
    disk.set_shared(true);
    create_image(&disk);
    let states = Rc::new(RefCell::new(Vec::new()));
    let seen = states.clone();
    let write = async |served: Served| {
        for block in 0..BLOCKS / 10 {
            served.write(block, 7).await;
        }
        served.close().await;
    };
    serve(&disk, Path::new(IMAGE), to_write(), write).unwrap();
    disk.set_hook(Some(Box::new(move |disk, event| {
        seen.borrow_mut().push((format!("{event:?}"), disk.crash(Crash::ProcessDeath, event.index)));
    })));
    let on = disk.clone();
    let name = SnapshotName::new("s1").unwrap();
    let taken = Executor::new(&disk, 1)
        .block_on(async move { snapshot(&on, Path::new(IMAGE), &name, &to_write(), |_| false).await });
    disk.set_hook(None);
    taken.unwrap();
    states.take()
}

/// A layer that is open for writing, as its superblock says.
fn held(disk: &SimDisk, path: &str) -> bool {
    disk.block_on(read_superblock(disk, Path::new(path))).is_ok_and(|sb| sb.holder.is_some())
}

#[test]
fn what_another_machine_may_write_to_is_refused_untouched() {
    let (mut refused, mut below) = (0, 0);
    for (place, disk) in deaths() {
        let (head, parent) = (held(&disk, IMAGE), held(&disk, SNAPSHOT));
        let local = disk.crash(Crash::ProcessDeath, 1);
        local.set_shared(false);
        assert_eq!(open(&local, elsewhere(false)).unwrap(), 7, "{place}: nobody else has the file system");
        let same = disk.crash(Crash::ProcessDeath, 1);
        assert_eq!(open(&same, to_write()).unwrap(), 7, "{place}: the machine itself");
        if !head && !parent {
            assert_eq!(open(&disk, elsewhere(false)).unwrap(), 7, "{place}: it was closed");
            continue;
        }
        let before = disk.fingerprint_of(|path| !path.to_string_lossy().contains(".vm.cow."));
        let error = open(&disk, elsewhere(false)).unwrap_err();
        assert_eq!(error.kind(), Kind::InUse, "{place}: {error}");
        assert!(error.to_string().contains("sim"), "{place}: {error}");
        let after = disk.fingerprint_of(|path| !path.to_string_lossy().contains(".vm.cow."));
        assert_eq!(before, after, "{place}");
        if head {
            let name = SnapshotName::new("s2").unwrap();
            let on = disk.clone();
            let plan = async move {
                plan_snapshot(&on, Path::new(IMAGE), &name, &elsewhere(false), |_| false).await
            };
            assert_eq!(
                disk.block_on(plan).unwrap_err().kind(),
                Kind::InUse,
                "{place}: a dry run says so too"
            );
        }
        refused += 1;
        below += usize::from(!head);
        assert_eq!(open(&disk, elsewhere(true)).unwrap(), 7, "{place}: by force");
    }
    assert!(refused > 10 && below > 0, "{refused} refused, {below} of them for the layer below");
}
