//! Rollbacks: broken off at every operation, by the death of the process and by power loss, and by failing operations.

use std::path::{Path, PathBuf};

use cowdisk::chain::{Image, SnapshotName};
use cowdisk::device::Queue;
use cowdisk::error::{Kind, Result};
use cowdisk::layer::Finish;
use cowdisk::ops::{LiveCut, LiveRollback, Present, find_snapshot, rollback, snapshot};
use cowdisk::storage::sim::{Crash, Fault, FaultKind, Faults, SimDisk};

use crate::machine::{
    BLOCKS, Content, IMAGE, Served, assert_tidy, assert_whole, crashes_of, create_image, serve, to_read,
    to_write,
};

fn name(text: &str) -> SnapshotName {
    SnapshotName::new(text).unwrap()
}

/// What the disk may show.
struct Prepared {
    /// The snapshot s1.
    then: Content,
    /// Everything acknowledged since.
    now: Content,
    /// What of that a flush covers.
    flushed: Content,
}

impl Prepared {
    /// Before the rollback. What the power takes away is decided when it goes, once.
    fn is_present(&self, content: &Content, kind: Crash) -> bool {
        let between = |(c, (f, a)): (&u8, (&u8, &u8))| c == f || c == a;
        match kind {
            Crash::ProcessDeath => *content == self.now,
            Crash::PowerLoss => content.iter().zip(self.flushed.iter().zip(&self.now)).all(between),
        }
    }
}

/// An image with the snapshot s1 and changes since, whose daemon died.
fn prepare(disk: &SimDisk, seed: u64) -> Prepared {
    create_image(disk);
    let write = async |served: &Served, content: &mut Content, from: u8, stride: usize| {
        for i in 0..8 {
            let block = (i * stride + seed as usize) % BLOCKS;
            content[block] = i as u8 + from;
            served.write(block, content[block]).await;
        }
    };
    let first = async |served: Served| {
        let mut content = vec![0; BLOCKS];
        write(&served, &mut content, 1, 37).await;
        served.close().await;
        content
    };
    let then = serve(disk, Path::new(IMAGE), to_write(), first).unwrap();
    let (machine, options) = (disk.clone(), to_write());
    let taken =
        disk.block_on(
            async move { snapshot(&machine, Path::new(IMAGE), &name("s1"), &options, |_| false).await },
        );
    taken.unwrap();
    let second = async |served: Served| {
        let mut content = then.clone();
        write(&served, &mut content, 101, 37).await;
        served.queue.flush().await.unwrap();
        let flushed = content.clone();
        write(&served, &mut content, 201, 23).await;
        (flushed, content)
    };
    let (flushed, now) = serve(disk, Path::new(IMAGE), to_write(), second).unwrap();
    Prepared { then, now, flushed }
}

/// Whether a daemon has the image open.
#[derive(Clone, Copy, PartialEq, Debug)]
enum How {
    Offline,
    Live,
}

const BOTH: [How; 2] = [How::Offline, How::Live];

/// Goes back; gives the file that keeps the present. A daemon dies behind it.
fn back_to(
    disk: &SimDisk,
    to: &str,
    present: Present,
    how: How,
) -> impl Future<Output = Result<Option<PathBuf>>> + 'static {
    let (disk, to) = (disk.clone(), name(to));
    async move {
        if how == How::Offline {
            let done = rollback(&disk, Path::new(IMAGE), &to, present, &to_write(), |_| false).await?;
            return Ok(done.kept.map(|kept| kept.path));
        }
        let served = Served::open(&disk, Path::new(IMAGE), to_write()).await?;
        let mut live = LiveRollback::prepare(&disk, &served.image, &to, present, &[], |_| false).await?;
        live.hold().await?;
        Ok(live.finish().await?.kept.map(|kept| kept.path))
    }
}

/// What is there after a crash: the disk, opened twice and checked, the snapshot s1 and what was kept.
struct Found {
    disk: Content,
    kept: Option<Content>,
}

fn reopen(disk: &SimDisk, prepared: &Prepared, place: &str) -> Found {
    let head = Path::new(IMAGE);
    let read = |options, path: &Path| {
        let all = serve(disk, path, options, async |served: Served| {
            let content = served.read_all().await;
            served.close().await;
            content
        });
        all.unwrap_or_else(|e| panic!("{place}: {e}"))
    };
    let content = read(to_write(), head);
    assert_eq!(read(to_write(), head), content, "{place}");
    assert_whole(disk, place);
    let shown = |snapshot: &str| match disk.block_on(find_snapshot(disk, head, &name(snapshot), &[])) {
        Ok(path) => Some(read(to_read(), &path)),
        Err(e) if e.kind() == Kind::NotFound => None,
        Err(e) => panic!("{place}: {e}"),
    };
    assert_eq!(shown("s1").as_ref(), Some(&prepared.then), "{place}");
    Found { disk: content, kept: shown("rollback-1") }
}

/// What may be there besides files that never became layers.
const OURS: &[&str] = &["vm.cow", "vm@s1.cow", "vm@rollback-1.cow"];

#[test]
fn a_rollback_broken_off_anywhere_is_done_or_not() {
    let (mut states, mut there, mut back) = (0, 0, 0);
    for (how, present) in BOTH.into_iter().flat_map(|how| [(how, Present::Keep), (how, Present::Discard)]) {
        for seed in 0..3 {
            let disk = SimDisk::new(seed);
            let prepared = prepare(&disk, seed);
            let (list, done) = crashes_of(&disk, seed, back_to(&disk, "s1", present, how));
            done.unwrap();
            for (place, kind, state) in &list {
                let place = format!("{how:?}, {present:?}, {place}");
                let found = reopen(state, &prepared, &place);
                assert_tidy(state, OURS, &place);
                let is_back = found.disk == prepared.then;
                assert!(is_back || prepared.is_present(&found.disk, *kind), "{place}");
                assert!(is_back || !place.ends_with("done"), "{place}");
                match (&found.kept, present) {
                    // A snapshot that was broken off keeps what the disk goes on showing.
                    (Some(kept), Present::Keep) if !is_back => assert_eq!(*kept, found.disk, "{place}"),
                    (Some(kept), Present::Keep) => assert!(prepared.is_present(kept, *kind), "{place}"),
                    (None, Present::Keep) => assert!(!is_back, "{place}: the present was not kept"),
                    (kept, Present::Discard) => assert!(kept.is_none(), "{place}"),
                }
                states += 1;
                if is_back { back += 1 } else { there += 1 }
            }
        }
    }
    println!("rollback: {states} crash states, {back} rolled back and {there} not");
    assert!(there > 0 && back > 0);
}

#[test]
fn a_rollback_with_a_failing_operation_harms_nothing() {
    let mut runs = 0;
    let cases = [
        (FaultKind::Eio, Present::Keep),
        (FaultKind::Eio, Present::Discard),
        (FaultKind::Enospc, Present::Keep),
    ];
    for (how, (kind, present)) in BOTH.into_iter().flat_map(|how| cases.map(|case| (how, case))) {
        for nth in 1.. {
            let disk = SimDisk::new(7);
            let prepared = prepare(&disk, 7);
            let fail = Some(Fault { at: nth, kind, sticky: false, only: None });
            disk.set_faults(Faults { fail, budget: None });
            let done = disk.block_on(back_to(&disk, "s1", present, how));
            settle(&disk);
            let hits = disk.fault_hits();
            disk.set_faults(Faults::default());
            if hits == 0 {
                done.unwrap();
                break;
            }
            let place = format!("{how:?}: {kind:?} of operation {nth}, {present:?}");
            let found = reopen(&disk, &prepared, &place);
            let is_back = found.disk == prepared.then;
            assert!(is_back || found.disk == prepared.now, "{place}");
            assert!(is_back || done.is_err(), "{place}");
            let kept = found.kept.is_none_or(|kept| kept == prepared.now);
            assert!(kept, "{place}: what was kept is not the present");
            assert_tidy(&disk, OURS, &place);
            runs += 1;
        }
    }
    println!("rollback: {runs} runs with a failed operation");
}

/// What a dead process had in flight lands.
fn settle(disk: &SimDisk) {
    while disk.in_flight() > 0 {
        disk.complete(0);
    }
}

#[test]
fn what_was_kept_can_be_gone_back_to() {
    for how in BOTH {
        let disk = SimDisk::new(1);
        let prepared = prepare(&disk, 1);
        let run = |to: &str| {
            let done = disk.block_on(back_to(&disk, to, Present::Keep, how)).unwrap();
            settle(&disk);
            done
        };
        assert_eq!(run("s1").as_deref(), Some(Path::new("/d/vm@rollback-1.cow")));
        assert_eq!(reopen(&disk, &prepared, "back").disk, prepared.then);
        // Nothing has changed since s1: there is nothing to keep.
        assert!(run("rollback-1").is_none());
        assert_eq!(reopen(&disk, &prepared, "forth").disk, prepared.now);
        let work = async |served: Served| {
            served.write(9, 77).await;
            served.close().await;
        };
        serve(&disk, Path::new(IMAGE), to_write(), work).unwrap();
        assert_eq!(run("s1").as_deref(), Some(Path::new("/d/vm@rollback-2.cow")));
        assert_eq!(reopen(&disk, &prepared, "back again").disk, prepared.then);
        let missing = disk.block_on(back_to(&disk, "none", Present::Discard, how)).unwrap_err();
        assert_eq!(missing.kind(), Kind::NotFound);
        settle(&disk);
        assert_eq!(reopen(&disk, &prepared, "not at all").disk, prepared.then);
    }
}

async fn back_to_s1<'a>(
    disk: &SimDisk,
    image: &'a Image<SimDisk>,
    present: Present,
) -> LiveRollback<'a, SimDisk> {
    LiveRollback::prepare(disk, image, &name("s1"), present, &[], |_| false).await.unwrap()
}

#[test]
fn a_disk_that_went_back_goes_on_and_one_that_did_not_too() {
    let disk = SimDisk::new(3);
    let prepared = prepare(&disk, 3);
    let on = disk.clone();
    let shown = serve(&disk, Path::new(IMAGE), to_write(), async |served: Served| {
        let image = &served.image;
        // Given up when it is ready, and when it holds: the disk is what it was, and takes writes again.
        drop(back_to_s1(&on, image, Present::Discard).await);
        served.write(3, 31).await;
        let mut given_up = back_to_s1(&on, image, Present::Discard).await;
        given_up.hold().await.unwrap();
        drop(given_up);
        served.write(4, 41).await;
        let mut now = prepared.now.clone();
        (now[3], now[4]) = (31, 41);
        assert_eq!(served.read_all().await, now);
        // A write behind the present that was kept is not in it: refused.
        let mut late = back_to_s1(&on, image, Present::Keep).await;
        served.write(5, 51).await;
        assert_eq!(late.hold().await.unwrap_err().kind(), Kind::InUse);
        drop(late);
        now[5] = 51;
        assert_eq!(served.read_all().await, now);
        // Done: the disk shows the snapshot, and goes on from there, through a checkpoint and another snapshot.
        let mut back = back_to_s1(&on, image, Present::Keep).await;
        back.hold().await.unwrap();
        back.finish().await.unwrap();
        assert_eq!(served.read_all().await, prepared.then);
        served.write(6, 61).await;
        served.image.head().unwrap().checkpoint(Finish::Running).await.unwrap();
        served.write(7, 71).await;
        let cut = LiveCut::prepare(&on, &served.image, &name("s2"), &[], |_| false).await.unwrap();
        cut.hold().await.unwrap();
        cut.cut();
        served.write(8, 81).await;
        let shown = served.read_all().await;
        served.queue.close();
        served.image.close().await.unwrap();
        shown
    });
    let mut then = prepared.then.clone();
    (then[6], then[7], then[8]) = (61, 71, 81);
    assert_eq!(shown.unwrap(), then);
    settle(&disk);
    assert_eq!(reopen(&disk, &prepared, "closed").disk, then);
    let ours = ["vm.cow", "vm@s1.cow", "vm@s2.cow", "vm@rollback-1.cow", "vm@rollback-2.cow"];
    assert_tidy(&disk, &ours, "closed");
}
