//! Operations, a crash, and opening again, against a model: what was flushed is there.
#![no_main]

use std::cell::RefCell;
use std::rc::Rc;

use arbitrary::Arbitrary;
use cowdisk::device::Queue;
use cowdisk::layer::Finish;
use cowdisk::storage::IoBuf;
use cowdisk::storage::sim::{Crash, Executor, SimDisk};
use cowdisk_fuzz::{SIZE, make, open};
use libfuzzer_sys::fuzz_target;

const SECTORS: usize = (SIZE / 512) as usize;

#[derive(Arbitrary, Debug)]
enum Op {
    Write { first: u16, sectors: u8 },
    Discard { first: u16, sectors: u8 },
    Flush,
    Checkpoint,
    Tick,
}

#[derive(Arbitrary, Debug)]
struct Run {
    ops: Vec<Op>,
    power: bool,
    seed: u64,
}

/// What a sector holds, if it is known for sure, after each operation.
struct Model {
    now: Vec<u8>,
    flushed: Vec<u8>,
    /// Sectors changed since the last flush: a loss of power may take them back.
    unsure: Vec<bool>,
}

fn range(first: u16, sectors: u8) -> std::ops::Range<usize> {
    let first = first as usize % SECTORS;
    first..(first + 1 + sectors as usize % 64).min(SECTORS)
}

fuzz_target!(|run: Run| {
    let disk = SimDisk::new(run.seed);
    make(&disk);
    let (on, executor) = (disk.clone(), Executor::new(&disk, run.seed));
    let zeros = vec![0; SECTORS];
    let model =
        Rc::new(RefCell::new(Model { now: zeros.clone(), flushed: zeros, unsure: vec![false; SECTORS] }));
    let kept = model.clone();
    executor.block_on(async move {
        let (image, queue) = open(&on).await.expect("a good image");
        for (i, op) in run.ops.iter().take(48).enumerate() {
            let fill = (i % 250 + 1) as u8;
            match op {
                Op::Write { first, sectors } => {
                    let r = range(*first, *sectors);
                    let buf = IoBuf::from_slice(&vec![fill; r.len() * 512]);
                    queue.write(r.start as u64 * 512, buf, false).await.expect("there is space");
                    let mut model = kept.borrow_mut();
                    model.now[r.clone()].fill(fill);
                    model.unsure[r].fill(true);
                }
                Op::Discard { first, sectors } => {
                    let r = range(*first, *sectors);
                    let (pos, len) = (r.start as u64 * 512, r.len() as u64 * 512);
                    queue.discard(pos, len, false).await.expect("there is space");
                    let mut model = kept.borrow_mut();
                    model.now[r.clone()].fill(0);
                    model.unsure[r].fill(true);
                }
                Op::Flush => {
                    queue.flush().await.expect("no fault is injected");
                    let mut model = kept.borrow_mut();
                    model.flushed = model.now.clone();
                    model.unsure.fill(false);
                }
                Op::Checkpoint => {
                    let head = image.head.as_ref().expect("open for writing");
                    head.checkpoint(Finish::Running).await.expect("no fault is injected");
                }
                Op::Tick => image.tick().await.expect("no fault is injected"),
            }
        }
    });
    drop(executor);
    let crashed = disk.crash(if run.power { Crash::PowerLoss } else { Crash::ProcessDeath }, run.seed);
    let (on, executor) = (crashed.clone(), Executor::new(&crashed, run.seed));
    executor.block_on(async move {
        let (_image, queue) = open(&on).await.expect("a crash leaves an image that opens");
        let buf = IoBuf::zeroed(SIZE as usize);
        queue.read(0, buf.clone()).await.expect("nothing is damaged");
        let bytes = buf.to_vec();
        let model = model.borrow();
        for (sector, bytes) in bytes.chunks_exact(512).enumerate() {
            assert!(bytes.iter().all(|b| *b == bytes[0]), "sector {sector} is torn");
            let expected = if run.power { model.flushed[sector] } else { model.now[sector] };
            assert!(
                bytes[0] == expected || (run.power && model.unsure[sector]),
                "sector {sector} holds {} instead of {expected}",
                bytes[0]
            );
        }
    });
});
