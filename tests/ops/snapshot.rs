//! Snapshots: broken off at every operation, by the death of the process and by power loss, and by failing operations.

use std::path::Path;

use cowdisk::chain::SnapshotName;
use cowdisk::device::Queue;
use cowdisk::error::{Error, Kind};
use cowdisk::ops::{find_snapshot, snapshot};
use cowdisk::storage::sim::{Crash, Fault, FaultKind, Faults, SimDisk};

use crate::machine::{
    BLOCKS, Content, IMAGE, Served, assert_tidy, assert_whole, crashes_of, create_image, serve, to_read,
    to_write,
};

/// How the image was left before the snapshot is taken.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Left {
    Closed,
    /// Its daemon died: there is a journal, and not all of it is durable.
    Killed,
}

fn name() -> SnapshotName {
    SnapshotName::new("s1").unwrap()
}

/// An image with content; gives what a power loss must keep, and all that was acknowledged.
fn prepare(disk: &SimDisk, seed: u64, left: Left) -> (Content, Content) {
    create_image(disk);
    let first = seed as usize;
    let work = async |served: Served| {
        let mut content = vec![0; BLOCKS];
        for i in 0..12 {
            let block = (i * 37 + first) % BLOCKS;
            content[block] = i as u8 + 1;
            served.write(block, content[block]).await;
        }
        served.queue.flush().await.unwrap();
        let flushed = content.clone();
        for i in 0..8 {
            let block = (i * 23 + first) % BLOCKS;
            content[block] = i as u8 + 101;
            served.write(block, content[block]).await;
        }
        if left == Left::Killed {
            return (flushed, content);
        }
        served.close().await;
        (content.clone(), content)
    };
    serve(disk, Path::new(IMAGE), to_write(), work).unwrap()
}

/// Takes the snapshot and gives what crashes at each end of each operation leave.
fn crashes(disk: &SimDisk, seed: u64) -> Vec<(String, Crash, SimDisk)> {
    let (machine, options) = (disk.clone(), to_write());
    let (states, taken) = crashes_of(disk, seed, async move {
        snapshot(&machine, Path::new(IMAGE), &name(), &options, |_| false).await
    });
    assert_eq!(taken.unwrap().path, Path::new("/d/vm@s1.cow"));
    states
}

fn allowed(content: &Content, flushed: &Content, acked: &Content, kind: Crash) -> bool {
    match kind {
        Crash::ProcessDeath => content == acked,
        Crash::PowerLoss => content.iter().zip(flushed.iter().zip(acked)).all(|(c, (f, a))| c == f || c == a),
    }
}

/// Opens for writing twice; gives the content and whether the snapshot is there.
fn reopen(disk: &SimDisk, place: &str) -> (Content, bool) {
    let head = Path::new(IMAGE);
    let bad = |e: Error| -> Content { panic!("{place}: {e}") };
    let first = async |served: Served| {
        let content = served.read_all().await;
        served.close().await;
        content
    };
    let content = serve(disk, head, to_write(), first).unwrap_or_else(bad);
    let second = async |served: Served| {
        let report = &served.report;
        assert!(
            !report.recovery.needed && report.sealed_parent.is_none() && report.removed.is_empty(),
            "{place}"
        );
        let content = served.read_all().await;
        served.write(3, 250).await;
        served.close().await;
        content
    };
    assert_eq!(serve(disk, head, to_write(), second).unwrap_or_else(bad), content, "{place}");
    assert_whole(disk, place);
    let snapshot = match disk.block_on(find_snapshot(disk, head, &name(), &[])) {
        Ok(path) => path,
        Err(e) if e.kind() == Kind::NotFound => return (content, false),
        Err(e) => panic!("{place}: {e}"),
    };
    let old = serve(disk, &snapshot, to_read(), async |served: Served| served.read_all().await);
    assert_eq!(old.unwrap_or_else(bad), content, "{place}: the snapshot is not exact");
    (content, true)
}

/// What may be there besides files that never became layers.
const OURS: &[&str] = &["vm.cow", "vm@s1.cow"];

#[test]
fn a_snapshot_broken_off_anywhere_leaves_an_openable_image() {
    let (mut states, mut with, mut without) = (0, 0, 0);
    for left in [Left::Closed, Left::Killed] {
        for seed in 0..4 {
            let disk = SimDisk::new(seed);
            let (flushed, acked) = prepare(&disk, seed, left);
            let list = crashes(&disk, seed);
            for (place, kind, state) in &list {
                let place = format!("{left:?}, {place}");
                let (content, there) = reopen(state, &place);
                assert!(allowed(&content, &flushed, &acked, *kind), "{place}");
                assert_tidy(state, OURS, &place);
                let acknowledged = place.ends_with("done");
                assert!(!acknowledged || there && content == acked, "{place}");
                states += 1;
                if there { with += 1 } else { without += 1 }
            }
        }
    }
    println!("snapshot: {states} crash states, {with} with and {without} without the snapshot");
    assert!(with > 0 && without > 0);
}

#[test]
fn a_snapshot_with_a_failing_operation_harms_nothing() {
    let mut runs = 0;
    for kind in [FaultKind::Eio, FaultKind::Enospc] {
        for nth in 1.. {
            let disk = SimDisk::new(7);
            let (_, acked) = prepare(&disk, 7, Left::Closed);
            let fail = Some(Fault { at: nth, kind, sticky: false, only: None });
            disk.set_faults(Faults { fail, budget: None });
            let (machine, options) = (disk.clone(), to_write());
            let taken = disk.block_on(async move {
                snapshot(&machine, Path::new(IMAGE), &name(), &options, |_| false).await
            });
            let hits = disk.fault_hits();
            disk.set_faults(Faults::default());
            if hits == 0 {
                taken.unwrap();
                break;
            }
            let place = format!("{kind:?} of operation {nth}");
            let (content, there) = reopen(&disk, &place);
            assert_eq!(content, acked, "{place}");
            assert!(there || taken.is_err(), "{place}");
            assert_tidy(&disk, OURS, &place);
            runs += 1;
        }
    }
    println!("snapshot: {runs} runs with a failed operation");
}
