//! A random load on one connection: a thread that sends, one that takes the answers, until the connection breaks.

use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use cowdisk::nbd::protocol::{CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, Command, Request, error};
use cowdisk::storage::sim::Rng;
use parking_lot::Mutex;

use crate::client::{Client, SIMPLE_MAGIC};
use crate::oracle::{BLOCK, Oracle, Part, SECTOR, stamp};

/// Every client of a disk tells the same oracle.
pub type Shared = Arc<Mutex<Oracle>>;

/// A cookie says what was asked for in its highest byte, and which one in the others.
const CHANGE: u64 = 0;
const READ: u64 = 1;
const FLUSH: u64 = 2;
const KIND: u32 = 56;

/// What a connection did.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    pub reads: u64,
    pub flushes: u64,
}

/// A connection under load; it ends with the daemon.
pub struct Load {
    sender: JoinHandle<()>,
    receiver: JoinHandle<Tally>,
}

impl Load {
    /// Keeps up to `window` requests in flight.
    pub fn start(client: Client, oracle: &Shared, rng: Rng, window: usize) -> Load {
        let (permits, answered) = sync_channel(window);
        let stream = Client { stream: client.stream.try_clone().unwrap() };
        let (mut sending, receiving) = (Sending { oracle: oracle.clone(), rng }, oracle.clone());
        let sender = std::thread::spawn(move || sending.run(stream, &permits));
        let receiver = std::thread::spawn(move || receive(client, &receiving, &answered));
        Load { sender, receiver }
    }

    /// Waits for the end of the connection.
    pub fn join(self) -> Tally {
        let (sent, received) = (self.sender.join(), self.receiver.join());
        sent.expect("the sender is well");
        received.expect("the receiver is well")
    }
}

struct Sending {
    oracle: Shared,
    rng: Rng,
}

impl Sending {
    /// Ends when the connection does, which one of the two threads notices.
    fn run(&mut self, mut stream: Client, permits: &SyncSender<()>) {
        while permits.send(()).is_ok() {
            let bytes = self.next_request();
            if stream.stream.write_all(&bytes).is_err() {
                return;
            }
        }
    }

    fn next_request(&mut self) -> Vec<u8> {
        match self.rng.below(100) {
            0..45 => {
                let sectors = self.blocks(1);
                self.write(sectors)
            }
            45..60 => {
                let sectors = self.blocks(32);
                self.write(sectors)
            }
            60..62 => {
                let sectors = self.blocks(256);
                self.write(sectors)
            }
            62..74 => {
                let sectors = self.range(1, 20);
                self.write(sectors)
            }
            74..81 => self.zeros(Command::Trim, 0),
            81..85 => self.zeros(Command::WriteZeroes, 0),
            85..87 => self.zeros(Command::WriteZeroes, CMD_FLAG_NO_HOLE),
            87..91 => request(Command::Flush, 0, 0..0, FLUSH << KIND),
            _ => {
                let sectors = self.range(1, 64);
                let id = self.oracle.lock().send_read(sectors.clone());
                request(Command::Read, 0, sectors, READ << KIND | id)
            }
        }
    }

    /// Some sectors in units of `unit`, at most `most` units; half of the time in a small part of the disk, so that
    /// requests meet.
    fn range(&mut self, unit: usize, most: usize) -> Range<usize> {
        let all = self.oracle.lock().len() / unit;
        let part = if self.rng.chance(1, 2) { all / 16 } else { all };
        let first = self.rng.index(part);
        let count = 1 + self.rng.index(most.min(all - first));
        first * unit..(first + count) * unit
    }

    fn blocks(&mut self, most: usize) -> Range<usize> {
        self.range(BLOCK, most)
    }

    fn write(&mut self, sectors: Range<usize>) -> Vec<u8> {
        // A write is one record, whatever its alignment.
        let number = self.oracle.lock().send(sectors.clone(), false, Part::Whole);
        let flags = if self.rng.chance(1, 24) { CMD_FLAG_FUA } else { 0 };
        let mut bytes = request(Command::Write, flags, sectors.clone(), CHANGE << KIND | number);
        bytes.extend(sectors.flat_map(|sector| stamp(sector, number)));
        bytes
    }

    fn zeros(&mut self, command: Command, flags: u16) -> Vec<u8> {
        let aligned = self.rng.chance(3, 4);
        let sectors = if aligned { self.blocks(64) } else { self.range(1, 100) };
        // One record for whole blocks that need not keep their space; otherwise several, each on block borders.
        let part = if aligned && flags == 0 { Part::Whole } else { Part::Block };
        let number = self.oracle.lock().send(sectors.clone(), true, part);
        let flags = if self.rng.chance(1, 24) { flags | CMD_FLAG_FUA } else { flags };
        request(command, flags, sectors, CHANGE << KIND | number)
    }
}

fn request(command: Command, flags: u16, sectors: Range<usize>, cookie: u64) -> Vec<u8> {
    let offset = (sectors.start * SECTOR) as u64;
    let length = (sectors.len() * SECTOR) as u32;
    Request { flags, command, cookie, offset, length }.encode().to_vec()
}

fn receive(mut client: Client, oracle: &Shared, answered: &Receiver<()>) -> Tally {
    let mut tally = Tally::default();
    let mut header = [0; 16];
    let mut data = Vec::new();
    while fill(&mut client, &mut header) {
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(word(0), SIMPLE_MAGIC);
        let cookie = u64::from_be_bytes(header[8..].try_into().unwrap());
        let (kind, id) = (cookie >> KIND, cookie & ((1 << KIND) - 1));
        match (kind, word(4)) {
            // It is being stopped: the request may have happened or not.
            (_, error::ESHUTDOWN) => {}
            (CHANGE, 0) => oracle.lock().answer(id),
            (READ, 0) => {
                data.resize(oracle.lock().read_len(id), 0);
                if !fill(&mut client, &mut data) {
                    break;
                }
                oracle.lock().answer_read(id, &data).unwrap_or_else(|e| panic!("{e}"));
                tally.reads += 1;
            }
            (FLUSH, 0) => tally.flushes += 1,
            (kind, error) => panic!("request {id} of kind {kind} failed with error {error}"),
        }
        // The sender has put it there before the request.
        let _ = answered.recv();
    }
    tally
}

/// False: the daemon is gone. It must not just be silent.
fn fill(client: &mut Client, bytes: &mut [u8]) -> bool {
    match client.stream.read_exact(bytes) {
        Ok(()) => true,
        Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => false,
        Err(e) => panic!("no answer: {e}"),
    }
}
