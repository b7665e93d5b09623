//! What files hold of the host once a disk that has aged is left alone.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use cowdisk::nbd::protocol::Command;
use cowdisk::storage::sim::Rng;

use crate::bench::Bench;
use crate::client::{request, write};
use crate::wait_until;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const SIZE: u64 = 256 * MIB;
/// The journal of the image, and its superblocks.
const JOURNAL: u64 = 4 * MIB + 2 * BLOCK;

/// `COWDISK_OPERATIONS=100000` for a longer life.
fn operations() -> u64 {
    std::env::var("COWDISK_OPERATIONS").map_or(20_000, |n| n.parse().expect("a number of operations"))
}

#[test]
fn what_a_disk_does_not_hold_any_more_goes_back_to_the_host() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", SIZE);
    let daemon = bench.serve(["vm.cow"]);
    let mut client = daemon.connect();
    let allocated = || std::fs::metadata(&image).unwrap().blocks() * 512;
    let (mut rng, mut live, mut peak, mut most) = (Rng::new(11), BTreeSet::new(), 0, 0);
    for number in 0..operations() {
        let blocks = [1, 1, 1, 2, 4, 16, 32][rng.index(7)];
        let first = rng.below(SIZE / BLOCK - 256);
        if rng.chance(3, 5) {
            let mut data = vec![0; (blocks * BLOCK) as usize];
            data.iter_mut().step_by(512).for_each(|byte| *byte = 1 + (number % 255) as u8);
            assert_eq!(client.call(&write(0, first * BLOCK, &data, number)), 0);
            live.extend(first..first + blocks);
        } else {
            let blocks = blocks * [1, 4, 8][rng.index(3)];
            let trim = request(Command::Trim, 0, first * BLOCK, (blocks * BLOCK) as u32, number);
            assert_eq!(client.call(&trim), 0);
            for block in first..first + blocks {
                live.remove(&block);
            }
        }
        peak = peak.max(live.len() as u64 * BLOCK);
        if number % 256 == 0 {
            most = most.max(allocated());
        }
    }
    let data = live.len() as u64 * BLOCK;
    // Tree nodes are part of what is kept: a leaf has room for some 300 blocks that lie apart.
    let nodes = data / 100;
    let bound = data + nodes + data / 20 + JOURNAL;
    let busy = allocated();
    wait_until("what is free goes back to the host", || allocated() <= bound);
    println!(
        "space: {} operations, {} MiB live at most; the file held {} MiB at most, {} MiB at the end; idle {} MiB for {} MiB live",
        operations(),
        peak / MIB,
        most / MIB,
        busy / MIB,
        allocated() / MIB,
        data / MIB
    );
    // What has become holes is written to again, and nothing was lost.
    for block in live.iter().step_by(97) {
        assert_ne!(client.read(block * BLOCK, 512)[0], 0, "block {block}");
    }
    for number in 0..2_000 {
        let first = rng.below(SIZE / BLOCK);
        assert_eq!(client.call(&write(0, first * BLOCK, &[9; BLOCK as usize], number)), 0);
    }
    drop(client);
    daemon.terminate();
    bench.run(["check", "vm.cow", "--data"]).expect(0);
}
