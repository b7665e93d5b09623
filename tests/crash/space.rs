//! Space: what guests discard goes back to the host, what they overwrite is used again, also after an open.

use std::path::Path;

use cowdisk::device::Queue;
use cowdisk::storage::sim::{Executor, SimDisk};
use cowdisk::storage::{IoBuf, Storage};

use crate::oracle::SECTOR;
use crate::world::{IMAGE, Setup, World, make};

const SETUP: Setup = Setup::new(65536, 0);
const MIB: u64 = 1 << 20;

async fn idle(world: &World, ticks: usize) {
    for _ in 0..ticks {
        world.image.tick().await.unwrap();
    }
}

fn allocated(disk: &SimDisk) -> u64 {
    disk.meta(Path::new(IMAGE)).unwrap().allocated
}

fn run<T>(seed: u64, work: impl AsyncFnOnce(SimDisk, World) -> T) -> T {
    let disk = make(SETUP);
    let history = SETUP.history();
    let executor = Executor::new(&disk, seed);
    let on = disk.clone();
    executor.block_on(async move {
        let world = World::open(&on, 1, history).await.unwrap();
        work(on, world).await
    })
}

#[test]
fn discarded_space_goes_back_to_the_host() {
    run(1, async |disk, world| {
        let queue = world.queues[0].clone();
        let buf = IoBuf::from_slice(&vec![5; MIB as usize]);
        for n in 0..16 {
            queue.write(n * MIB, buf.clone(), false).await.unwrap();
        }
        idle(&world, 4).await;
        let full = allocated(&disk);
        assert!(full >= 16 * MIB, "only {full} bytes are allocated");
        queue.discard(0, 15 * MIB, true).await.unwrap();
        idle(&world, 4).await;
        let freed = full - allocated(&disk);
        assert!(freed >= 14 * MIB, "only {freed} bytes went back");
        let back = IoBuf::zeroed(MIB as usize);
        queue.read(15 * MIB, back.clone()).await.unwrap();
        assert_eq!(back.to_vec(), buf.to_vec());
        queue.read(14 * MIB, back.clone()).await.unwrap();
        assert!(back.is_zero());
    });
}

#[test]
fn overwriting_does_not_grow_the_file_without_end() {
    run(2, async |disk, mut world| {
        let buf = IoBuf::from_slice(&vec![9; 64 * SECTOR]);
        let live = 2 * MIB;
        for round in 0..300u64 {
            let pos = (round * 37 * 64 * SECTOR as u64) % live;
            world.queues[0].write(pos, buf.clone(), false).await.unwrap();
            if round % 16 == 0 {
                world.image.tick().await.unwrap();
            }
            if round == 150 {
                let history = world.history.clone();
                world.close().await.unwrap();
                world = World::open(&disk, 1, history).await.unwrap();
            }
        }
        let blocks = world.image.head().unwrap().space.stats().file_blocks;
        // 64 MiB may be used whatever the live data; 300 rounds wrote only 9 MiB.
        assert!(blocks * 4096 < 12 * MIB, "the file has {blocks} blocks for {live} bytes");
    });
}
