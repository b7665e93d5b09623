//! Failing storage operations: the n-th write, sync or allocation fails, and the host runs out of space.
//!
//! Whatever fails, no acknowledged write is lost by the death of the process, no flushed one by a loss of power,
//! and the image opens again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use cowdisk::device::Queue;
use cowdisk::storage::IoBuf;
use cowdisk::storage::sim::{Executor, Fault, FaultKind, Faults, OpKind, Rng, SimDisk, spawn};

use crate::explore::{Effort, Explorer};
use crate::oracle::{History, SECTOR};
use crate::sequences::random_op;
use crate::world::{Op, Setup, World, make};

const SETUP: Setup = Setup { sectors: 64, base: 30 };

/// Runs random requests with `faults` in force, judges crashes on the way; gives the faults that hit.
fn run(setup: Setup, seed: u64, faults: Faults, every: u64) -> u64 {
    let disk = SimDisk::new(seed);
    make(&disk, setup);
    let history = Rc::new(RefCell::new(History::new(setup.sectors, setup.base)));
    let executor = Executor::new(&disk, seed);
    let (on, hist) = (disk.clone(), history.clone());
    let world = executor.block_on(async move { World::open(&on, 2, hist).await.unwrap() });
    disk.set_faults(faults);
    let effort = Effort { variants: 1, every, recrash: false };
    let explorer = Explorer::new(&disk, seed, effort, setup, history);
    let finished = Rc::new(Cell::new(0));
    let world = Rc::new(world);
    for task in 0..3 {
        let (world, end) = (world.clone(), finished.clone());
        let mut rng = Rng::new(seed * 8 + task as u64);
        executor.spawn(async move {
            for _ in 0..10 {
                world.run(task, random_op(&mut rng, setup)).await;
            }
            world.run(task, Op::Flush).await;
            end.set(end.get() + 1);
        });
    }
    explorer.run(&executor, || finished.get() == 3);
    disk.set_hook(None);
    disk.fault_hits()
}

fn fault(at: u64, kind: FaultKind, sticky: bool, only: OpKind) -> Faults {
    Faults { fail: Some(Fault { at, kind, sticky, only: Some(only) }), budget: None }
}

#[test]
fn every_operation_fails_once_and_for_ever() {
    let mut runs = 0;
    for (kind, only) in [
        (FaultKind::Eio, OpKind::Write),
        (FaultKind::Late, OpKind::Write),
        (FaultKind::Short, OpKind::Write),
        (FaultKind::Eintr, OpKind::Write),
        (FaultKind::Enospc, OpKind::Write),
        (FaultKind::Eio, OpKind::Sync),
        (FaultKind::Enospc, OpKind::Allocate),
    ] {
        // Until the fault lies behind the end of the run; in steps, the long run of the next line takes them all.
        let step = if std::env::var_os("COWDISK_SEEDS").is_some() { 1 } else { 5 };
        let mut at = 1;
        loop {
            let hits = run(SETUP, 7 + at, fault(at, kind, at % 2 == 0 && kind != FaultKind::Eintr, only), 9);
            runs += 1;
            if hits == 0 {
                break;
            }
            at += step;
            assert!(at < 2000, "the run does not get shorter than its faults");
        }
    }
    println!("faults: {runs} runs, no violation");
}

#[test]
fn a_full_host_harms_nothing() {
    for budget in (0..60).map(|n| 64 * 1024 + n * 8 * 1024) {
        run(SETUP, budget, Faults { fail: None, budget: Some(budget) }, 11);
    }
}

#[test]
fn a_failed_sync_poisons_writes_and_leaves_reads() {
    let disk = SimDisk::new(3);
    make(&disk, SETUP);
    let history = Rc::new(RefCell::new(History::new(SETUP.sectors, SETUP.base)));
    let executor = Executor::new(&disk, 3);
    let on = disk.clone();
    executor.block_on(async move {
        let world = World::open(&on, 1, history.clone()).await.unwrap();
        world.run(0, Op::Write { first: 0, sectors: 8, fua: false }).await;
        on.set_faults(fault(1, FaultKind::Eio, false, OpKind::Sync));
        let queue = world.queues[0].clone();
        assert_eq!(queue.flush().await.unwrap_err().0, libc::EIO);
        // The next fdatasync would succeed and mean nothing: it must not be asked.
        assert_eq!(queue.flush().await.unwrap_err().0, libc::EIO);
        let buf = IoBuf::zeroed(8 * SECTOR);
        assert_eq!(queue.write(0, buf.clone(), false).await.unwrap_err().0, libc::EIO);
        queue.read(0, buf).await.unwrap();
        world.run(0, Op::Read { first: 0, sectors: SETUP.sectors }).await;
        let head = world.image.head.as_ref().unwrap();
        assert!(head.journal.poisoned().unwrap().contains("fdatasync"));
    });
}

#[test]
fn enospc_reaches_the_guest_and_space_comes_back() {
    let setup = Setup { sectors: 4096, base: 0 };
    let disk = SimDisk::new(5);
    make(&disk, setup);
    let history = Rc::new(RefCell::new(History::new(setup.sectors, setup.base)));
    let executor = Executor::new(&disk, 5);
    let on = disk.clone();
    executor.block_on(async move {
        let world = World::open(&on, 1, history.clone()).await.unwrap();
        on.set_faults(Faults { fail: None, budget: Some(1 << 20) });
        let queue = world.queues[0].clone();
        let buf = IoBuf::zeroed(64 * SECTOR);
        let mut written = 0;
        let full = loop {
            match queue.write(written * buf.len() as u64, buf.clone(), false).await {
                Ok(()) => written += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(full.0, libc::ENOSPC);
        assert!(written > 4, "only {written} writes fitted");
        assert!(world.image.head.as_ref().unwrap().journal.poisoned().is_none());
        // Overwriting needs space only for a moment, discards none.
        queue.discard(0, written * buf.len() as u64, false).await.unwrap();
        queue.flush().await.unwrap();
        for _ in 0..written {
            queue.write(0, buf.clone(), false).await.unwrap();
        }
        queue.flush().await.unwrap();
    });
}

/// The next requests after a write that failed: a commit covers them by way of a checkpoint (W4).
#[test]
fn a_failed_data_write_is_settled_by_a_checkpoint() {
    let disk = SimDisk::new(9);
    make(&disk, SETUP);
    let history = Rc::new(RefCell::new(History::new(SETUP.sectors, SETUP.base)));
    let executor = Executor::new(&disk, 9);
    let on = disk.clone();
    executor.block_on(async move {
        let world = Rc::new(World::open(&on, 1, history.clone()).await.unwrap());
        let before = world.image.superblock().generation;
        on.set_faults(fault(1, FaultKind::Eio, false, OpKind::Write));
        // The data write is issued first, so it is the one that fails.
        let failing = world.clone();
        spawn(async move { failing.run(0, Op::Write { first: 0, sectors: 8, fua: false }).await }).await;
        assert!(history.borrow().changes[0].failed);
        world.run(0, Op::Write { first: 8, sectors: 8, fua: true }).await;
        assert!(history.borrow().changes[1].acked.is_some());
        assert!(world.image.superblock().generation > before, "no checkpoint settled the failure");
    });
}
