//! A process that dies over a snapshot: its locks go late, and what it wrote is not durable.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use cowdisk::chain::{OpenOptions, SnapshotName, open_chain};
use cowdisk::device::Queue;
use cowdisk::error::Kind;
use cowdisk::ops::{find_snapshot, snapshot};
use cowdisk::runtime::sync::Monitor;
use cowdisk::storage::sim::{Crash, Executor, OpKind, SimDisk, When, spawn};
use cowdisk::storage::{File, IoBuf, IoVecs, Lock, OpenHow, Storage, write_all};

use crate::machine::{BLOCKS, Content, IMAGE, Served, create_image, serve, to_read, to_write};

const SNAPSHOT: &str = "/d/vm@s1.cow";

fn name() -> SnapshotName {
    SnapshotName::new("s1").unwrap()
}

/// A closed image with content.
fn prepare(disk: &SimDisk) -> Content {
    create_image(disk);
    let work = async |served: Served| {
        let mut content = vec![0; BLOCKS];
        for (i, block) in [3, 40, 7, 150].into_iter().enumerate() {
            content[block] = i as u8 + 1;
            served.write(block, content[block]).await;
        }
        served.close().await;
        content
    };
    serve(disk, Path::new(IMAGE), to_write(), work).unwrap()
}

/// Takes the snapshot; gives what the death of the process leaves at each end of each operation, with its place.
fn deaths(disk: &SimDisk) -> Vec<(String, SimDisk)> {
    let states = Rc::new(RefCell::new(Vec::new()));
    let seen = states.clone();
    disk.set_hook(Some(Box::new(move |disk, event| {
        seen.borrow_mut().push((format!("{event:?}"), disk.crash(Crash::ProcessDeath, event.index)));
    })));
    let (machine, options) = (disk.clone(), to_write());
    let taken = Executor::new(disk, 1)
        .block_on(async move { snapshot(&machine, Path::new(IMAGE), &name(), &options, |_| false).await });
    disk.set_hook(None);
    taken.unwrap();
    states.take()
}

/// The superblocks of the finished snapshot.
fn front(disk: &SimDisk) -> Vec<u8> {
    disk.read_file(SNAPSHOT).unwrap()[..8192].to_vec()
}

fn is_sealed(disk: &SimDisk) -> bool {
    serve(disk, Path::new(SNAPSHOT), to_read(), async |served: Served| {
        served.image.chain().layers[0].sb.sealed.is_some()
    })
    .unwrap_or(false)
}

/// Opens the image while somebody holds the snapshot's lock, who then writes `last` to its front and lets go.
fn open_over_a_lock(disk: &SimDisk, options: &OpenOptions, seed: u64, last: Vec<u8>) -> Result<(), Kind> {
    let how = OpenHow { write: true, direct: false, regular_only: true };
    let held = disk.open(Path::new(SNAPSHOT), how).unwrap();
    assert!(held.try_lock(Lock::Exclusive).unwrap());
    let (machine, opener, options) = (disk.clone(), disk.clone(), options.clone());
    Executor::new(disk, seed).block_on(async move {
        drop(spawn(async move {
            machine.pause(Duration::from_millis(200)).await;
            let (written, _) = write_all(&held, IoVecs::one(IoBuf::from_slice(&last)), 0).await;
            written.unwrap();
            drop(held);
        }));
        open_chain(&opener, Path::new(IMAGE), &options).await.map(drop).map_err(|e| e.kind())
    })
}

#[test]
fn the_lock_on_a_sealed_parent_is_waited_for() {
    for options in [to_write(), to_read()] {
        let disk = SimDisk::new(1);
        prepare(&disk);
        deaths(&disk);
        for seed in 0..20 {
            let state = disk.crash(Crash::ProcessDeath, seed);
            assert_eq!(open_over_a_lock(&state, &options, seed, front(&disk)), Ok(()), "seed {seed}");
        }
    }
}

#[test]
fn a_parent_may_become_sealed_while_its_lock_is_waited_for() {
    let disk = SimDisk::new(1);
    prepare(&disk);
    let states = deaths(&disk);
    let mut runs = 0;
    for (place, state) in states {
        if state.read_file(SNAPSHOT).is_none() || is_sealed(&state) {
            continue;
        }
        // Before that the snapshot's file is the head itself.
        if state.read_file(IMAGE).unwrap() != state.read_file(SNAPSHOT).unwrap() {
            for seed in 0..20 {
                let state = state.crash(Crash::ProcessDeath, seed);
                let opened = open_over_a_lock(&state, &to_write(), seed, front(&disk));
                assert_eq!(opened, Ok(()), "{place}, seed {seed}");
                runs += 1;
            }
        }
    }
    assert!(runs > 0);
}

#[test]
fn what_a_dead_snapshot_wrote_is_durable_before_anything_relies_on_it() {
    let disk = SimDisk::new(1);
    let content = prepare(&disk);
    let mut runs = 0;
    for (place, state) in deaths(&disk) {
        // Served, one write, killed or closed; then the power goes.
        for (seed, closed) in (0..6).flat_map(|seed| [(seed, false), (seed, true)]) {
            let again = state.crash(Crash::ProcessDeath, seed);
            let work = async |served: Served| {
                served.write(9, 77).await;
                if closed { served.close().await } else { served.queue.flush().await.unwrap() }
            };
            serve(&again, Path::new(IMAGE), to_write(), work).unwrap_or_else(|e| panic!("{place}: {e}"));
            let dark = again.crash(Crash::PowerLoss, seed);
            let read = async |served: Served| served.read_all().await;
            let now = serve(&dark, Path::new(IMAGE), to_write(), read);
            let now = now.unwrap_or_else(|e| panic!("{place}, closed {closed}, seed {seed}: {e}"));
            let mut wanted = content.clone();
            wanted[9] = 77;
            assert_eq!(now, wanted, "{place}, closed {closed}, seed {seed}");
            if let Ok(path) = dark.block_on(find_snapshot(&dark, Path::new(IMAGE), &name(), &[])) {
                let old = serve(&dark, &path, to_read(), read);
                assert_eq!(old.unwrap_or_else(|e| panic!("{place}: {e}")), content, "{place}");
            }
            runs += 1;
        }
    }
    println!("snapshot: {runs} power losses after a death");
}

#[test]
fn a_new_head_is_not_opened_before_the_old_one_is_sealed() {
    let mut opened = 0;
    for seed in 0..20 {
        let disk = SimDisk::new(seed);
        let content = prepare(&disk);
        let image = Path::new(IMAGE);
        let replaced = Rc::new(Monitor::new(false));
        let (tell, machine, opener) = (replaced.clone(), disk.clone(), disk.clone());
        disk.set_hook(Some(Box::new(move |_, event| {
            if event.op == OpKind::Rename && event.when == When::Completion {
                tell.update(|done| *done = true);
            }
        })));
        let result = Executor::new(&disk, seed).block_on(async move {
            let taken = spawn(async move {
                snapshot(&machine, image, &name(), &to_write(), |_| false).await.unwrap();
            });
            replaced.wait(|done| done.then_some(())).await;
            // Who takes the snapshot lives.
            let options = OpenOptions { alive: |_| true, ..to_write() };
            let result = open_chain(&opener, image, &options).await.map(|(_, report)| report);
            taken.await;
            result
        });
        disk.set_hook(None);
        match &result {
            Ok(report) => assert_eq!(report.sealed_parent, None, "seed {seed}"),
            // A schedule that lets the other process rest for so long.
            Err(e) => {
                assert!(e.to_string().ends_with("vm.cow: in use: its lock is held"), "seed {seed}: {e}")
            }
        }
        opened += u64::from(result.is_ok());
        let read = async |served: Served| served.read_all().await;
        assert_eq!(serve(&disk, image, to_write(), read).unwrap(), content, "seed {seed}");
    }
    assert!(opened > 5, "{opened}");
}
