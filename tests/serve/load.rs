//! Connections that write all the time, and what a disk may show that was taken from under them.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use cowdisk::storage::sim::Rng;

use crate::bench::Daemon;
use crate::client::{Client, write};

const BLOCK: u64 = 4096;
/// Blocks of each connection, and its requests under way.
pub const BLOCKS: u64 = 256;
const WINDOW: usize = 16;

/// A write: to which block, and when it was sent and answered.
#[derive(Clone, Copy)]
pub struct Sent {
    block: u64,
    sent: u64,
    acked: Option<u64>,
}

/// Everything that was ever written; the number of a write is its index, and its content.
#[derive(Default)]
pub struct Log {
    clock: AtomicU64,
    pub writes: Mutex<Vec<Sent>>,
}

impl Log {
    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn send(&self, block: u64) -> u64 {
        let mut writes = self.writes.lock().unwrap();
        writes.push(Sent { block, sent: self.now(), acked: None });
        writes.len() as u64 - 1
    }

    fn ack(&self, number: u64) {
        let mut writes = self.writes.lock().unwrap();
        writes[number as usize].acked = Some(self.now());
    }

    /// What each block shows, as numbers of writes.
    fn identify(&self, bytes: &[u8]) -> Vec<Option<usize>> {
        let show = |(block, bytes): (usize, &[u8])| {
            let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let whole = bytes == stamp(block as u64, number) || bytes.iter().all(|&b| b == 0);
            assert!(whole, "block {block} is torn or misplaced");
            number.checked_sub(1).map(|n| n as usize)
        };
        bytes.chunks_exact(BLOCK as usize).enumerate().map(show).collect()
    }

    /// The disk of one moment between `begin` and `end`.
    pub fn judge(&self, what: &str, bytes: &[u8], begin: u64, end: u64) {
        let shown = self.identify(bytes);
        let writes = self.writes.lock().unwrap();
        let newest = shown.iter().flatten().map(|&n| writes[n].sent).max().unwrap_or(0);
        for (number, write) in writes.iter().enumerate() {
            let there = shown[write.block as usize];
            if there == Some(number) {
                assert!(write.sent < end, "{what}: write {number} was sent after it had been taken");
            }
            let must = write.acked.is_some_and(|acked| acked < begin || acked < newest);
            assert!(!must || there >= Some(number), "{what}: write {number} is not there, but {there:?}");
        }
    }
}

/// The content of a block; the numbers in it begin with 1.
pub fn stamp(block: u64, number: u64) -> Vec<u8> {
    let words = [number, block ^ 0x5eed];
    let stamp: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    stamp.repeat(BLOCK as usize / stamp.len())
}

/// Connections that write until they are told to stop, or their daemon dies.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(daemon: &Daemon, log: &Arc<Log>, connections: u64, seed: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..connections)
            .map(|index| {
                let (client, log, stop) = (daemon.connect(), log.clone(), stop.clone());
                std::thread::spawn(move || run(client, &log, &stop, index * BLOCKS, seed + index))
            })
            .collect();
        Load { stop, threads }
    }

    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

fn run(mut client: Client, log: &Log, stop: &AtomicBool, first: u64, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut under_way = Vec::new();
    loop {
        while under_way.len() < WINDOW && !stop.load(Ordering::Relaxed) {
            let block = first + rng.below(BLOCKS);
            // Two writes to one block at once would have no order.
            if under_way.contains(&block) {
                break;
            }
            let number = log.send(block);
            if client.stream.write_all(&write(0, block * BLOCK, &stamp(block, number + 1), number)).is_err() {
                return;
            }
            under_way.push(block);
        }
        if under_way.is_empty() {
            return;
        }
        let mut reply = [0; 16];
        if client.stream.read_exact(&mut reply).is_err() {
            return;
        }
        assert_eq!(reply[4..8], [0; 4], "a write failed");
        let number = u64::from_be_bytes(reply[8..].try_into().unwrap());
        let block = log.writes.lock().unwrap()[number as usize].block;
        under_way.retain(|other| *other != block);
        log.ack(number);
    }
}
