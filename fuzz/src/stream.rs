//! Everything that a client may send, from its first byte on, to the connection code of the NBD server.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use cowdisk::device::{Disk, Errno, Geometry, Queue};
use cowdisk::nbd::options::{OPTION_MAGIC, option};
use cowdisk::nbd::protocol::{Command, Request};
use cowdisk::nbd::{Counters, Export, Exports, Service, Stats, Stream};
use cowdisk::runtime::{RingOptions, Runtime};
use cowdisk::storage::{IoBuf, IoVecs};

const DISK: usize = 1 << 20;
/// What a server may send for each byte that it got, and at first: a read of 32 bytes may ask for the whole disk.
const MAX_REPLIES: usize = 1 << 30;

/// A disk in memory that refuses nothing: the frontend must have checked every request.
#[derive(Clone)]
struct RamDisk(Arc<Mutex<Vec<u8>>>);

impl RamDisk {
    fn with<T>(&self, pos: u64, len: u64, act: impl FnOnce(&mut [u8]) -> T) -> T {
        let end = pos.checked_add(len).expect("the frontend checks the range");
        assert!(len > 0 && end <= DISK as u64, "outside of the disk: {pos} + {len}");
        assert!(pos.is_multiple_of(512) && len.is_multiple_of(512), "not aligned: {pos} + {len}");
        act(&mut self.0.lock().expect("nobody panics with it")[pos as usize..end as usize])
    }
}

impl Disk for RamDisk {
    type Queue = RamDisk;
    fn geometry(&self) -> Geometry {
        Geometry { size: DISK as u64, sector_size: 512, read_only: false, block_size: 4096 }
    }
    fn queue(&self, _index: usize) -> Rc<RamDisk> {
        Rc::new(self.clone())
    }
}

impl Queue for RamDisk {
    async fn read(&self, pos: u64, buf: IoBuf) -> Result<(), Errno> {
        self.with(pos, buf.len() as u64, |bytes| buf.copy_from(0, bytes));
        Ok(())
    }
    async fn write(&self, pos: u64, buf: IoBuf, _fua: bool) -> Result<(), Errno> {
        self.with(pos, buf.len() as u64, |bytes| buf.copy_to(0, bytes));
        Ok(())
    }
    async fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
    async fn discard(&self, pos: u64, len: u64, _fua: bool) -> Result<(), Errno> {
        self.with(pos, len, |bytes| bytes.fill(0));
        Ok(())
    }
    async fn write_zeroes(&self, pos: u64, len: u64, _unmap: bool, _fua: bool) -> Result<(), Errno> {
        self.with(pos, len, |bytes| bytes.fill(0));
        Ok(())
    }
}

/// Gives out `input` in pieces of at most `piece` bytes, then ends; counts what is sent.
struct Memory {
    input: Vec<u8>,
    piece: usize,
    at: Cell<usize>,
    sent: Cell<usize>,
    first: RefCell<Vec<u8>>,
}

impl Stream for Memory {
    async fn recv(&self, buf: IoBuf, _whole: bool) -> io::Result<usize> {
        let rest = &self.input[self.at.get()..];
        let count = rest.len().min(buf.len()).min(self.piece);
        buf.copy_from(0, &rest[..count]);
        self.at.set(self.at.get() + count);
        Ok(count)
    }
    async fn send(&self, mut vecs: IoVecs) -> (io::Result<()>, IoVecs) {
        self.sent.set(self.sent.get() + vecs.len());
        for buf in vecs.bufs() {
            let mut first = self.first.borrow_mut();
            let want = buf.len().min(18 - first.len());
            first.extend(buf.slice(0..want).to_vec());
        }
        vecs.clear();
        (Ok(()), vecs)
    }
    fn close(&self) {}
}

thread_local! {
    static RUNTIME: Runtime = Runtime::new(RingOptions { entries: 8 }).expect("io_uring is there");
}

/// Serves a client that sends all but the first byte of `bytes`; that one says how it is cut.
pub fn run(bytes: &[u8]) -> Stats {
    let Some((&cut, input)) = bytes.split_first() else { return Stats::default() };
    let piece = if cut == 0 { usize::MAX } else { usize::from(cut) };
    let disk = RamDisk(Arc::new(Mutex::new(vec![0x5a; DISK])));
    let export = |name: &str| Export { name: name.into(), description: String::new(), disk: disk.clone() };
    let exports = Exports::new(vec![export(""), export("second")]).expect("two names");
    let input = input.to_vec();
    let (at, sent, first) = (Cell::default(), Cell::default(), RefCell::default());
    let stream = Rc::new(Memory { input, piece, at, sent, first });
    let served = stream.clone();
    let stats = RUNTIME.with(|runtime| {
        runtime.block_on(async move {
            let counters = Arc::new(Counters::default());
            let service = Service::new(exports, 0, 8, counters.clone());
            service.serve(served, || {}).await;
            let mut stats = Stats::default();
            counters.add_to(&mut stats);
            stats
        })
    });
    assert!(stream.first.borrow().starts_with(b"NBDMAGICIHAVEOPT"), "it greets first");
    assert!(stream.sent.get() < MAX_REPLIES);
    let all = [stats.read, stats.write, stats.flush, stats.trim, stats.write_zeroes, stats.unknown];
    let answered: u64 = all.iter().map(|op| op.requests).sum();
    // A request has 28 bytes at least.
    assert!(answered <= stream.input.len() as u64 / 28, "{answered} requests were counted");
    stats
}

fn option_bytes(number: u32, data: &[u8]) -> Vec<u8> {
    let head = [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes()].concat();
    [&head[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn go(name: &str) -> Vec<u8> {
    let data =
        [&(name.len() as u32).to_be_bytes()[..], name.as_bytes(), &1_u16.to_be_bytes(), &3_u16.to_be_bytes()];
    option_bytes(option::GO, &data.concat())
}

/// Streams of clients that behave, and that nearly do.
pub fn seeds() -> Vec<Vec<u8>> {
    let hello = |flags: u32| [&[0][..], &flags.to_be_bytes()].concat();
    let request = |command: u16, flags: u16, offset: u64, length: u32, payload: &[u8]| {
        let request = Request { flags, command: Command::from(command), cookie: 77, offset, length };
        [&request.encode()[..], payload].concat()
    };
    let mut requests: Vec<Vec<u8>> = Vec::new();
    for command in 0..8 {
        let payload = vec![9; if command == 1 { 1024 } else { 0 }];
        requests.push(request(command, 0, 4096, 1024, &payload));
        requests.push(request(command, 1, 512, 512, &payload[..payload.len() / 2]));
    }
    let all = requests.concat();
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for number in 0..12 {
        seeds.push([hello(3), option_bytes(number, b""), go("")].concat());
        seeds.push([hello(1), option_bytes(number, b"\0\0\0\0\0\0")].concat());
    }
    seeds.push([hello(3), option_bytes(option::STRUCTURED_REPLY, b""), go("second"), all.clone()].concat());
    seeds.push([hello(3), go(""), all.clone()].concat());
    seeds.push([hello(0), option_bytes(option::EXPORT_NAME, b""), all.clone()].concat());
    seeds.push([vec![7], hello(3)[1..].to_vec(), go(""), all, request(2, 0, 0, 0, b"")].concat());
    seeds.push([hello(3), go("no such"), go(""), request(0, 0, 1 << 20, 512, b"")].concat());
    seeds.push([hello(3), go(""), request(1, 0, 0, 33 << 20, b"xyz")].concat());
    seeds.extend(requests.into_iter().map(|request| [hello(3), go(""), request].concat()));
    seeds
}
