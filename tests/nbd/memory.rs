//! The same connection code on a stream in memory: whatever the bytes and however they are cut, it ends.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use cowdisk::nbd::options::option as number;
use cowdisk::nbd::protocol::{Command, Request};
use cowdisk::nbd::{Counters, End, Export, Exports, Service, Stats, Stream};
use cowdisk::runtime::{RingOptions, Runtime};
use cowdisk::storage::{IoBuf, IoVecs};
use proptest::prelude::*;

use crate::client::{info, option};
use crate::ram::RamDisk;

/// Gives out `input` in pieces of at most `piece` bytes, then ends; keeps what is sent.
struct Memory {
    input: Vec<u8>,
    piece: usize,
    at: Cell<usize>,
    output: RefCell<Vec<u8>>,
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
        for buf in vecs.bufs() {
            self.output.borrow_mut().extend(buf.to_vec());
        }
        vecs.clear();
        (Ok(()), vecs)
    }
    fn close(&self) {}
}

/// What the server sent, why it ended, and what it counted.
fn serve(input: Vec<u8>, piece: usize) -> (Vec<u8>, End, Stats) {
    let export = Export { name: String::new(), description: String::new(), disk: RamDisk::new(1 << 20) };
    let exports = Exports::new(vec![export]).unwrap();
    Runtime::new(RingOptions { entries: 8 }).unwrap().block_on(async move {
        let counters = Arc::new(Counters::default());
        let service = Service::new(exports, 0, 8, counters.clone());
        let stream = Rc::new(Memory { input, piece, at: Cell::default(), output: RefCell::default() });
        let end = service.serve(stream.clone(), || {}).await;
        let mut stats = Stats::default();
        counters.add_to(&mut stats);
        (stream.output.take(), end, stats)
    })
}

fn hello() -> Vec<u8> {
    [3_u32.to_be_bytes().to_vec(), option(number::GO, &info("", &[]))].concat()
}

fn any_request() -> impl Strategy<Value = Request> {
    let offset = prop_oneof![(0..2100_u64).prop_map(|sector| sector * 512), any::<u64>()];
    let length = prop_oneof![(0..600_u32).prop_map(|sectors| sectors * 512), any::<u32>()];
    let flags = prop_oneof![Just(0), 0..8_u16, any::<u16>()];
    (flags, 0..9_u16, any::<u64>(), offset, length).prop_map(|(flags, command, cookie, offset, length)| {
        Request { flags, command: command.into(), cookie, offset, length }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_requests_are_answered_once_each(
        requests in proptest::collection::vec(any_request(), 0..20), piece in 1..9000_usize,
    ) {
        let mut input = hello();
        let mut expected = 0;
        for request in &requests {
            input.extend(request.encode());
            if request.command == Command::Disconnect || request.payload() > 32 << 20 {
                break;
            }
            input.extend(vec![0x5a; request.payload() as usize]);
            expected += 1;
        }
        let (_, _, stats) = serve(input, piece);
        let all = [stats.read, stats.write, stats.flush, stats.trim, stats.write_zeroes, stats.unknown];
        prop_assert_eq!(all.iter().map(|op| op.requests).sum::<u64>(), expected);
    }

    #[test]
    fn any_bytes_come_to_an_end(
        noise in proptest::collection::vec(any::<u8>(), 0..3000), piece in 1..100_usize, greeted: bool,
    ) {
        let mut input = if greeted { hello() } else { Vec::new() };
        input.extend(noise);
        serve(input, piece);
    }
}

#[test]
fn the_way_the_bytes_are_cut_does_not_matter() {
    let mut input = hello();
    for n in 0..3 {
        input.extend(crate::client::write(0, n * 512, &[n as u8; 2048], n));
        input.extend(crate::client::request(Command::Read, 0, n * 512, 1024, n));
    }
    let (whole, end, _) = serve(input.clone(), usize::MAX);
    assert!(matches!(end, End::Closed));
    for piece in 1..200 {
        assert_eq!(serve(input.clone(), piece).0.len(), whole.len(), "pieces of {piece}");
    }
}
