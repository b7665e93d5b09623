//! `kill -9` under load: every acknowledged write is there when the image is served again.
//!
//! Each block of the disk belongs to one connection, which writes it with a growing number. After the death of the
//! daemon a block must hold the last acknowledged number, or a later one that was under way; each of its sectors.

use std::io::{Read, Write};
use std::thread::JoinHandle;

use cowdisk::nbd::protocol::CMD_FLAG_FUA;

use crate::bench::{Bench, Daemon};
use crate::client::{Client, write};
use crate::wait_until;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// Blocks of each connection; few, so that they are overwritten often.
const BLOCKS: u64 = 512;
/// Connections, and requests under way on each.
const WRITERS: u64 = 3;
const WINDOW: usize = 16;

/// What a connection knows of its blocks.
#[derive(Clone, Debug)]
struct Oracle {
    first: u64,
    /// Last number acknowledged, and last number sent, of each block.
    acked: Vec<u64>,
    sent: Vec<u64>,
}

impl Oracle {
    fn new(writer: u64) -> Oracle {
        let numbers = vec![0; BLOCKS as usize];
        Oracle { first: writer * BLOCKS, acked: numbers.clone(), sent: numbers }
    }

    /// A block's content for write number `number`.
    fn stamp(&self, block: u64, number: u64) -> Vec<u8> {
        let words = [(self.first + block) ^ 0x5eed, number];
        let stamp: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        if number == 0 { vec![0; BLOCK as usize] } else { stamp.repeat(BLOCK as usize / stamp.len()) }
    }

    /// Writes until the connection breaks; `seed` says which blocks.
    fn load(&mut self, mut client: Client, mut seed: u64) -> u64 {
        let mut under_way = Vec::new();
        let mut acknowledged = 0;
        loop {
            while under_way.len() < WINDOW {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let block = (seed >> 33) % BLOCKS;
                // Two writes to one block at once would have no order.
                if under_way.contains(&block) {
                    break;
                }
                let number = self.sent[block as usize] + 1;
                let fua = if (seed >> 20).is_multiple_of(64) { CMD_FLAG_FUA } else { 0 };
                let bytes = write(fua, (self.first + block) * BLOCK, &self.stamp(block, number), block);
                self.sent[block as usize] = number;
                if client.stream.write_all(&bytes).is_err() {
                    return acknowledged;
                }
                under_way.push(block);
            }
            let mut reply = [0; 16];
            if client.stream.read_exact(&mut reply).is_err() {
                return acknowledged;
            }
            assert_eq!(reply[4..8], [0; 4], "a write failed");
            let block = u64::from_be_bytes(reply[8..].try_into().unwrap());
            under_way.retain(|other| *other != block);
            self.acked[block as usize] = self.sent[block as usize];
            acknowledged += 1;
        }
    }

    /// Compares all blocks with what is served now, and goes on from there.
    fn check(&mut self, client: &mut Client) {
        for block in 0..BLOCKS {
            let bytes = client.read((self.first + block) * BLOCK, BLOCK as u32);
            let (acked, sent) = (self.acked[block as usize], self.sent[block as usize]);
            let found = (acked..=sent).find(|&number| bytes == self.stamp(block, number));
            let Some(found) = found else {
                let number = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
                panic!(
                    "block {block} of {self:?}: acknowledged {acked}, sent {sent}, has {number}",
                    self = self.first
                );
            };
            (self.acked[block as usize], self.sent[block as usize]) = (found, found);
        }
    }
}

/// Starts a connection's load; it ends with the daemon.
fn start(daemon: &Daemon, mut oracle: Oracle, seed: u64) -> JoinHandle<(Oracle, u64)> {
    let client = daemon.connect();
    std::thread::spawn(move || {
        let acknowledged = oracle.load(client, seed);
        (oracle, acknowledged)
    })
}

#[test]
fn every_acknowledged_write_survives_kill_9() {
    let bench = Bench::new();
    bench.image("vm.cow", 64 * MIB);
    let mut oracles: Vec<Oracle> = (0..WRITERS).map(Oracle::new).collect();
    let mut daemon = bench.serve(["vm.cow", "--queues", "2"]);
    for round in 0..8 {
        let loads: Vec<_> = oracles
            .drain(..)
            .map(|oracle| {
                let seed = oracle.first + round;
                start(&daemon, oracle, seed)
            })
            .collect();
        // The kills come by count, at another one each time: in the middle of a checkpoint, too.
        let goal = 500 + 700 * round;
        wait_until("the load goes on", || {
            bench.status("vm.cow")["requests"]["write"].as_u64().unwrap() > goal
        });
        daemon.kill();
        let mut acknowledged = 0;
        for load in loads {
            let (oracle, count) = load.join().unwrap();
            oracles.push(oracle);
            acknowledged += count;
        }
        assert!(acknowledged > goal / 2, "only {acknowledged} writes");
        daemon = bench.serve(["vm.cow", "--queues", "2"]);
        let mut client = daemon.connect();
        oracles.iter_mut().for_each(|oracle| oracle.check(&mut client));
    }
    let ended = daemon.terminate();
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.contains("vm.cow: it was not closed: "), "{ended:?}");
    let daemon = bench.serve(["vm.cow"]);
    let mut client = daemon.connect();
    oracles.iter_mut().for_each(|oracle| oracle.check(&mut client));
    assert_eq!(daemon.terminate().stderr, "", "there was nothing to recover");
}
