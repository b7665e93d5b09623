//! The executor: every order, and the same one for the same seed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::storage::sim::{Event, Executor, When, spawn};

/// The events of four tasks that write twice each.
fn trace(seed: u64) -> Vec<(When, u64)> {
    let (disk, file) = disk_with_file();
    let events = Rc::new(RefCell::new(Vec::new()));
    let log = events.clone();
    disk.set_hook(Some(Box::new(move |_, event: Event| log.borrow_mut().push((event.when, event.pos)))));
    let executor = Executor::new(&disk, seed);
    for task in 0..4 {
        let file = file.clone();
        executor.spawn(async move {
            file.write(bytes(1, 512), task * 1024).await.result.unwrap();
            file.write(bytes(2, 512), task * 1024 + 512).await.result.unwrap();
        });
    }
    executor.run_until_idle();
    assert_eq!((executor.tasks(), disk.in_flight(), disk.ops()), (0, 0, 9));
    events.take()
}

#[test]
fn a_seed_gives_one_run_and_seeds_give_many() {
    let runs: BTreeSet<String> = SEEDS.map(|seed| format!("{:?}", trace(seed))).collect();
    assert!(runs.len() > 300, "only {} different runs", runs.len());
    for seed in SEEDS {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
}

#[test]
fn operations_end_in_every_order() {
    let mut orders = BTreeSet::new();
    for seed in SEEDS {
        let (disk, file) = disk_with_file();
        let order = Rc::new(RefCell::new(Vec::new()));
        let log = order.clone();
        disk.set_hook(Some(Box::new(move |_, event| {
            if event.when == When::Completion {
                log.borrow_mut().push(event.pos);
            }
        })));
        let ops: Vec<_> = (0..4).map(|pos| file.write(bytes(1, 512), pos * 512)).collect();
        Executor::new(&disk, seed).run_until_idle();
        drop(ops);
        orders.insert(order.take());
    }
    assert_eq!(orders.len(), 24);
}

/// The most operations that were issued while one was in flight.
fn overtaken(seed: u64) -> u64 {
    let (disk, file) = disk_with_file();
    let most = Rc::new(Cell::new(0));
    let longest = most.clone();
    disk.set_hook(Some(Box::new(move |disk, event| {
        if event.when == When::Completion {
            longest.set(longest.get().max(disk.ops() - event.index));
        }
    })));
    let executor = Executor::new(&disk, seed);
    for _ in 0..3 {
        let file = file.clone();
        executor.spawn(async move {
            for _ in 0..100 {
                file.sync_data().await.result.unwrap();
            }
        });
    }
    executor.run_until_idle();
    most.get()
}

#[test]
fn some_operations_take_very_long() {
    let long = SEEDS.filter(|seed| overtaken(*seed) > 100).count();
    assert!(long > 100, "only in {long} of 400 runs");
}

#[test]
fn overlapping_writes_end_with_either() {
    let results: BTreeSet<u8> = SEEDS
        .map(|seed| {
            let (disk, file) = disk_with_file();
            let (_first, _second) = (file.write(bytes(1, 512), 0), file.write(bytes(2, 512), 0));
            Executor::new(&disk, seed).run_until_idle();
            disk.read_file(FILE).unwrap()[0]
        })
        .collect();
    assert_eq!(results, BTreeSet::from([1, 2]));
}

#[test]
fn tasks_join_spawn_and_leave_results() {
    let (disk, file) = disk_with_file();
    for seed in SEEDS {
        let executor = Executor::new(&disk, seed);
        let (inner, other) = (file.clone(), file.clone());
        let left = executor.spawn(async move { other.sync_data().await.result.unwrap() });
        let sum = executor.block_on(async {
            let task = executor.spawn(async move {
                let nested = spawn(async move { inner.write(bytes(1, 512), 0).await.result.unwrap() });
                disk_pause(&inner_disk()).await;
                nested.await + 1
            });
            task.await
        });
        assert_eq!(sum, 513);
        executor.run_until_idle();
        assert!(left.is_finished());
        assert_eq!((left.try_take(), left.try_take()), (Some(0), None));
    }
}

fn inner_disk() -> SimDisk {
    SimDisk::new(9)
}

async fn disk_pause(disk: &SimDisk) {
    let before = disk.now_ns();
    disk.pause(Duration::from_millis(5)).await;
    assert!(disk.now_ns() >= before + 5_000_000);
}

#[test]
fn a_dropped_future_does_not_stop_its_operation() {
    let (disk, file) = disk_with_file();
    let executor = Executor::new(&disk, 3);
    let ops = disk.ops();
    drop(file.write(bytes(4, 512), 0));
    assert_eq!(disk.ops(), ops + 1);
    executor.run_until_idle();
    assert_eq!(disk.read_file(FILE).unwrap(), [4; 512]);
}

#[test]
fn dropping_an_executor_drops_its_tasks_but_not_what_is_in_flight() {
    struct SetOnDrop(Rc<Cell<bool>>);
    impl Drop for SetOnDrop {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let (disk, file) = disk_with_file();
    let dropped = Rc::new(Cell::new(false));
    let guard = SetOnDrop(dropped.clone());
    let executor = Executor::new(&disk, 3);
    executor.spawn(async move {
        file.write(bytes(1, 512), 0).await.result.unwrap();
        drop(guard);
        std::future::pending::<()>().await;
    });
    assert!(executor.step() && disk.in_flight() == 1 && !dropped.get());
    drop(executor);
    assert!(dropped.get() && disk.in_flight() == 1);
    assert!(disk.read_file(FILE).unwrap().is_empty());
}

#[test]
#[should_panic(expected = "deadlock: the main task waits for something that nobody does (executor seed 77")]
fn a_deadlock_is_named_with_its_seed() {
    Executor::new(&SimDisk::new(0), 77).block_on(std::future::pending::<()>());
}

#[test]
#[should_panic(expected = "livelock")]
fn a_livelock_is_named() {
    let disk = SimDisk::new(0);
    Executor::new(&disk, 1).block_on(async {
        loop {
            disk.pause(Duration::ZERO).await;
        }
    });
}

#[test]
fn a_hook_sees_both_ends_and_may_use_the_disk_and_executors() {
    let (disk, file) = disk_with_file();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let log = seen.clone();
    let first = disk.ops();
    disk.set_hook(Some(Box::new(move |disk, event| {
        // A nested run on another disk, and an operation on this one, which calls no hook.
        let copy = disk.crash(crate::storage::sim::Crash::ProcessDeath, event.index);
        let file = open(&copy, FILE);
        let len = read_len(&copy, &file);
        drop(open(disk, FILE));
        log.borrow_mut().push((
            event.when,
            event.index,
            event.op,
            event.path.to_path_buf(),
            event.pos,
            event.len,
            len,
        ));
    })));
    let executor = Executor::new(&disk, 5);
    executor.block_on(async { file.write(bytes(1, 512), 512).await.result.unwrap() });
    disk.set_hook(None);
    executor.block_on(async { file.sync_data().await.result.unwrap() });
    let seen = seen.take();
    assert_eq!(seen.len(), 2);
    let op = (first, crate::storage::sim::OpKind::Write, FILE.into(), 512, 512);
    assert_eq!(seen[0].0, When::Issue);
    assert_eq!((seen[1].0, seen[1].6), (When::Completion, 1024));
    for event in seen {
        assert_eq!((event.1, event.2, event.3, event.4, event.5), op);
    }
}

fn read_len(disk: &SimDisk, file: &SimFile) -> u64 {
    let executor = Executor::new(disk, 1);
    let file = file.clone();
    let task = executor.spawn(async move { file.meta().unwrap().len });
    executor.run_until_idle();
    task.try_take().unwrap()
}
