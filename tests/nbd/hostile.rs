//! Clients that make no sense, or mean harm. After each of them the server must be there for others.

use std::io::Write;
use std::time::Duration;

use cowdisk::nbd::limits::{MAX_CONNECTIONS, MAX_OPTIONS};
use cowdisk::nbd::options::option as number;
use cowdisk::nbd::protocol::Command;
use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::client::{Client, info, option, request, write};
use crate::ram::RamDisk;
use crate::{Served, wait_until};

/// The server answers an honest client, and nothing is left of the others.
fn assert_well(served: &Served) {
    served.wait_idle();
    let mut client = served.ready(true);
    assert_eq!(client.call(&write(0, 0, &[1; 512], 1)), 0);
    client.disconnect();
    served.wait_idle();
}

/// Sends `bytes` as far as the server takes them, then ends; what the server said.
fn say(served: &Served, bytes: &[u8]) -> Vec<u8> {
    let mut client = served.connect();
    // The server may close in the middle of it.
    let _ = client.stream.write_all(bytes);
    client.finish();
    client.rest()
}

/// All that an honest client says in a short session.
fn session() -> Vec<u8> {
    [
        3_u32.to_be_bytes().to_vec(),
        option(number::LIST, &[]),
        option(number::STRUCTURED_REPLY, &[]),
        option(number::GO, &info("", &[1, 3])),
        write(1, 512, &[7; 1024], 1),
        request(Command::Read, 0, 0, 4096, 2),
        request(Command::Trim, 0, 0, 512, 3),
        request(Command::Flush, 0, 0, 0, 4),
        request(Command::Disconnect, 0, 0, 0, 5),
    ]
    .concat()
}

#[test]
fn a_stream_may_end_after_any_byte() {
    let served = Served::new(&RamDisk::new(1 << 20));
    let session = session();
    for cut in 0..=session.len() {
        say(&served, &session[..cut]);
    }
    assert_well(&served);
    assert_eq!(served.server.stats().violations, 0);
}

#[test]
fn any_byte_may_be_wrong() {
    let served = Served::new(&RamDisk::new(1 << 20));
    let session = session();
    for at in 0..session.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = session.clone();
            bytes[at] ^= flip;
            say(&served, &bytes);
        }
    }
    assert_well(&served);
}

#[test]
fn noise_in_every_phase() {
    let served = Served::new(&RamDisk::new(1 << 20));
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[42; 32]);
    let session = session();
    let hello = 4;
    let ready = session.len() - (28 * 5 + 1024);
    for start in [0, hello, ready] {
        for _ in 0..100 {
            let mut bytes = session[..start].to_vec();
            let mut noise = vec![0; 1 + random.next_u32() as usize % 5000];
            random.fill_bytes(&mut noise);
            bytes.extend(noise);
            say(&served, &bytes);
        }
    }
    assert_well(&served);
}

#[test]
fn wrong_magic_and_unknown_flags_end_the_connection() {
    let served = Served::new(&RamDisk::new(1 << 20));
    for flags in [4_u32, 0x8000_0000, u32::MAX] {
        assert_eq!(say(&served, &flags.to_be_bytes()).len(), 18);
    }
    let mut client = served.connect();
    client.greet(3);
    client.send(&[0; 16]);
    assert_eq!(client.rest(), b"");
    let mut client = served.ready(false);
    client.send(&[0; 28]);
    assert_eq!(client.rest(), b"");
    served.wait_idle();
    assert_eq!(served.server.stats().violations, 5);
    assert_well(&served);
}

#[test]
fn absurd_lengths_end_the_connection() {
    let served = Served::new(&RamDisk::new(1 << 20));
    for (which, length) in [(number::GO, u32::MAX), (77, 2 << 20), (number::EXPORT_NAME, 20_000)] {
        let mut client = served.connect();
        client.greet(3);
        let mut bytes = option(which, &[]);
        bytes[12..16].copy_from_slice(&length.to_be_bytes());
        client.send(&bytes);
        assert_eq!(client.rest(), b"");
    }
    let mut client = served.ready(true);
    client.send(&request(Command::Write, 0, 0, u32::MAX, 1));
    assert_eq!(client.rest(), b"");
    assert_well(&served);
}

#[test]
fn a_handshake_has_a_bound_on_options() {
    let served = Served::new(&RamDisk::new(1 << 20));
    let mut client = served.connect();
    client.greet(3);
    for _ in 0..MAX_OPTIONS {
        client.ask(number::INFO, &info("", &[]));
    }
    let _ = client.stream.write_all(&option(number::LIST, &[]));
    assert_eq!(client.rest(), b"");
    assert_well(&served);
}

#[test]
fn a_handshake_has_a_bound_on_time() {
    let served = Served::with(&RamDisk::new(1 << 20), |o| o.handshake_time = Duration::from_millis(50));
    let mut ready = served.ready(false);
    let mut silent = served.connect();
    let mut half = served.connect();
    half.greet(3);
    half.send(&option(number::GO, &info("", &[]))[..20]);
    assert_eq!(silent.rest().len(), 18);
    assert_eq!(half.rest(), b"");
    // Whoever came through is not affected.
    assert_eq!(ready.read(0, 512), [0; 512]);
    ready.disconnect();
    assert_well(&served);
}

#[test]
fn connections_are_bounded() {
    let served = Served::new(&RamDisk::new(1 << 20));
    let mut clients: Vec<Client> = (0..MAX_CONNECTIONS).map(|_| served.ready(false)).collect();
    assert_eq!(served.server.connections(), MAX_CONNECTIONS);
    assert_eq!(served.connect().rest(), b"");
    assert_eq!(served.server.stats().rejected, 1);
    for client in &mut clients {
        assert_eq!(client.read(0, 512), [0; 512]);
    }
    drop(clients);
    assert_well(&served);
}

#[test]
fn a_client_that_does_not_read_stops_nobody_else() {
    let served = Served::new(&RamDisk::new(4 << 20));
    let mut greedy = served.ready(false);
    greedy.stream.set_nonblocking(true).unwrap();
    let reads = request(Command::Read, 0, 0, 1 << 20, 1).repeat(100);
    // Until the server takes no more: all of its slots wait for this client.
    while greedy.stream.write(&reads).is_ok() {}
    let mut other = served.ready(true);
    for n in 0..100 {
        assert_eq!(other.call(&write(0, 4096, &[1; 4096], n)), 0);
    }
    other.disconnect();
    drop(greedy);
    assert_well(&served);
}

#[test]
fn a_client_may_vanish_with_requests_running() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::new(&disk);
    let mut client = served.ready(true);
    disk.hold();
    for n in 0..10 {
        client.send(&write(0, n * 4096, &[7; 4096], n));
    }
    client.send(&write(0, 0, &[0; 4096], 10)[..100]);
    wait_until("ten writes are running", || disk.waiting() == 10);
    drop(client);
    disk.let_go();
    served.wait_idle();
    assert_eq!(disk.bytes(0..40960), [7; 40960]);
    assert_well(&served);
}
