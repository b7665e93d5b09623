//! A request allocates nothing once its connection has warmed up.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowdisk::device::{Disk, Errno, Geometry, Queue};
use cowdisk::nbd::options::{OPTION_MAGIC, option};
use cowdisk::nbd::protocol::{Command, Request};
use cowdisk::nbd::{Address, Export, Server, ServerOptions};
use cowdisk::storage::IoBuf;

static COUNT: AtomicU64 = AtomicU64::new(0);
thread_local! {
    /// Set on the server's thread.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.try_with(Cell::get).unwrap_or(false) {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes everything and keeps nothing.
#[derive(Clone)]
struct Null;

impl Disk for Null {
    type Queue = Null;
    fn geometry(&self) -> Geometry {
        Geometry { size: 1 << 30, sector_size: 512, read_only: false, block_size: 4096 }
    }
    fn queue(&self, _index: usize) -> Rc<Null> {
        COUNTED.set(true);
        Rc::new(Null)
    }
}

impl Queue for Null {
    async fn read(&self, _pos: u64, _buf: IoBuf) -> Result<(), Errno> {
        Ok(())
    }
    async fn write(&self, _pos: u64, _buf: IoBuf, _fua: bool) -> Result<(), Errno> {
        Ok(())
    }
    async fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
    async fn discard(&self, _pos: u64, _len: u64, _fua: bool) -> Result<(), Errno> {
        Ok(())
    }
    async fn write_zeroes(&self, _pos: u64, _len: u64, _unmap: bool, _fua: bool) -> Result<(), Errno> {
        Ok(())
    }
}

/// Sixteen requests of each of several kinds, and the length of all their replies.
fn round() -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    let mut replies = 0;
    let kinds = [
        (Command::Write, 4096),
        (Command::Read, 4096),
        (Command::Write, 65536),
        (Command::Read, 131_072),
        (Command::Flush, 0),
        (Command::Trim, 4096),
    ];
    for cookie in 0..16 {
        for (command, length) in kinds {
            let request = Request { flags: 0, command, cookie, offset: 0, length };
            bytes.extend(request.encode());
            bytes.resize(bytes.len() + request.payload() as usize, 7);
            replies += 16 + if command == Command::Read { length as usize } else { 0 };
        }
    }
    (bytes, replies)
}

#[test]
fn requests_allocate_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let export = Export { name: String::new(), description: String::new(), disk: Null };
    let server = Server::start(vec![export], ServerOptions::new(Address::Unix(path.clone()))).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    stream.write_all(&OPTION_MAGIC.to_be_bytes()).unwrap();
    stream.write_all(&[option::EXPORT_NAME.to_be_bytes(), [0; 4]].concat()).unwrap();
    stream.read_exact(&mut [0; 28]).unwrap();

    let (requests, length) = round();
    let mut rounds = |count: usize| {
        for _ in 0..count {
            let mut writer = stream.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| writer.write_all(&requests).unwrap());
                stream.read_exact(&mut vec![0; length]).unwrap();
            });
        }
    };
    // How many slots run and how replies are gathered differs from round to round: tables grow for a while.
    rounds(50);
    let before = COUNT.load(Ordering::Relaxed);
    rounds(50);
    let allocations = COUNT.load(Ordering::Relaxed) - before;
    let requests = server.stats().write.requests + server.stats().read.requests;
    assert!(before > 0 && requests >= 100 * 16 * 4);
    // Short sends and a table that doubles late are allowed for: per request it is nothing.
    assert!(allocations < 50, "{allocations} allocations in {requests} requests");
    server.stop().unwrap();
}
