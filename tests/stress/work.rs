//! The requests of one task, and what it expects of their answers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cowdisk::chain::ImageQueue;
use cowdisk::device::Queue;
use cowdisk::storage::IoBuf;
use cowdisk::storage::sim::Rng;
use cowdisk::storage::uring::Uring;
use cowdisk::units::{BLOCK, BLOCK_SIZE, SPAN_BLOCKS};

use crate::disk::{OWNED_BLOCKS, QUEUES, SHARED_BLOCKS, TASKS};
use crate::history::History;

const SECTOR: u64 = 512;
/// Sectors of one task: no two of them in one block, so that every block belongs to several tasks.
const OWN_SECTORS: u64 = OWNED_BLOCKS * BLOCK / SECTOR / (QUEUES * TASKS) as u64;

/// Requests done.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) discards: AtomicU64,
    pub(crate) flushes: AtomicU64,
}

/// A task: it has one request in flight.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    id: u64,
    rng: Rng,
    history: History,
    written: u64,
    /// What its own sectors hold.
    own: Vec<u64>,
}

/// A block, or a sector, full of `[place, value]`.
fn stamp(buf: &IoBuf, at: usize, len: usize, place: u64, value: u64) {
    let pair = [place.to_le_bytes(), value.to_le_bytes()].concat();
    buf.copy_from(at, &pair.repeat(len / 16));
}

/// The value in a block or sector; `None` if it is zero. All of it must be of one write to this place.
fn value_of(bytes: &[u8], place: u64) -> Option<u64> {
    if bytes.iter().all(|&b| b == 0) {
        return None;
    }
    let pair = &bytes[..16];
    assert!(bytes.chunks(16).all(|c| c == pair), "place {place} is a mixture of two writes");
    let (found, value) = pair.split_at(8);
    assert_eq!(found, place.to_le_bytes(), "place {place} holds another one");
    Some(u64::from_le_bytes(value.try_into().unwrap()))
}

/// Reads shared blocks and lets the history judge them.
pub(crate) async fn read_shared(queue: &ImageQueue<Uring>, history: &History, first: u64, count: u64) {
    let before: Vec<u64> = (first..first + count).map(|b| history.before_read(b)).collect();
    let buf = IoBuf::zeroed(count as usize * BLOCK_SIZE);
    queue.read(first * BLOCK, buf.clone()).await.unwrap();
    let bytes = buf.to_vec();
    for (block, (bytes, before)) in (first..).zip(bytes.chunks(BLOCK_SIZE).zip(before)) {
        history.judge(block, before, value_of(bytes, block));
    }
}

impl Task {
    pub(crate) fn new(id: u64, history: History) -> Task {
        Task { id, rng: Rng::new(id + 1), history, written: 0, own: vec![0; OWN_SECTORS as usize] }
    }

    /// Runs `requests` requests.
    pub(crate) async fn run(&mut self, queue: &ImageQueue<Uring>, requests: u64, counts: &Counts) {
        for _ in 0..requests {
            let counter = match self.rng.below(20) {
                0..=6 => {
                    self.write(queue).await;
                    &counts.writes
                }
                7..=9 => {
                    self.write_own(queue).await;
                    &counts.writes
                }
                10..=16 => {
                    let (first, count) = self.range(16);
                    read_shared(queue, &self.history, first, count).await;
                    &counts.reads
                }
                17 => {
                    self.read_own(queue).await;
                    &counts.reads
                }
                18 => {
                    self.discard(queue).await;
                    &counts.discards
                }
                _ => {
                    queue.flush().await.unwrap();
                    &counts.flushes
                }
            };
            counter.fetch_add(1, Relaxed);
        }
    }

    /// At most `most` shared blocks, often the same ones as other tasks.
    fn range(&mut self, most: u64) -> (u64, u64) {
        let count = 1 + self.rng.below(most);
        let among = if self.rng.below(2) == 0 { 32 } else { SHARED_BLOCKS };
        (self.rng.below(among.saturating_sub(count).max(1)), count)
    }

    async fn write(&mut self, queue: &ImageQueue<Uring>) {
        let (first, count) = self.range(12);
        let buf = IoBuf::zeroed(count as usize * BLOCK_SIZE);
        let number = self.written * (QUEUES * TASKS) as u64 + self.id;
        self.written += 1;
        for i in 0..count {
            stamp(&buf, i as usize * BLOCK_SIZE, BLOCK_SIZE, first + i, number);
        }
        let start = self.history.begin(first, count, false);
        let fua = self.rng.below(8) == 0;
        queue.write(first * BLOCK, buf, fua).await.unwrap();
        self.history.end(first, count, start, Some(number));
    }

    /// Discards blocks, or a whole span.
    async fn discard(&mut self, queue: &ImageQueue<Uring>) {
        let (first, count) = match self.rng.below(3) {
            0 => (self.rng.below(SHARED_BLOCKS / SPAN_BLOCKS) * SPAN_BLOCKS, SPAN_BLOCKS),
            _ => self.range(16),
        };
        let start = self.history.begin(first, count, true);
        queue.discard(first * BLOCK, count * BLOCK, false).await.unwrap();
        self.history.end(first, count, start, None);
    }

    fn own_sector(&self, index: u64) -> u64 {
        SHARED_BLOCKS * (BLOCK / SECTOR) + index * (QUEUES * TASKS) as u64 + self.id
    }

    /// Writes a sector whose neighbours in the block belong to other tasks.
    async fn write_own(&mut self, queue: &ImageQueue<Uring>) {
        let index = self.rng.below(OWN_SECTORS);
        let sector = self.own_sector(index);
        let value = self.own[index as usize] + 1;
        let buf = IoBuf::zeroed(SECTOR as usize);
        stamp(&buf, 0, SECTOR as usize, sector, value);
        queue.write(sector * SECTOR, buf, false).await.unwrap();
        self.own[index as usize] = value;
    }

    /// Its own sectors hold what it wrote last.
    pub(crate) async fn read_own(&self, queue: &ImageQueue<Uring>) {
        let buf = IoBuf::zeroed(SECTOR as usize);
        for (index, &expected) in (0..).zip(&self.own) {
            let sector = self.own_sector(index);
            queue.read(sector * SECTOR, buf.clone()).await.unwrap();
            let found = value_of(&buf.to_vec(), sector).unwrap_or(0);
            assert_eq!(found, expected, "sector {sector} of task {}", self.id);
        }
    }
}
