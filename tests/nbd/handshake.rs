//! Option haggling, byte by byte.

use cowdisk::device::Geometry;
use cowdisk::nbd::options::{option, reply};
use cowdisk::nbd::protocol::flags;
use cowdisk::nbd::{Address, Export, Exports, Server, ServerOptions};

use crate::client::{Client, info};
use crate::ram::RamDisk;
use crate::{Served, wait_until};

const WRITABLE: u16 = flags::HAS_FLAGS
    | flags::SEND_FLUSH
    | flags::SEND_FUA
    | flags::SEND_TRIM
    | flags::SEND_WRITE_ZEROES
    | flags::CAN_MULTI_CONN;

fn named(name: &str, disk: &RamDisk) -> Export<RamDisk> {
    Export { name: name.into(), description: format!("disk {name}"), disk: disk.clone() }
}

#[test]
fn go_gives_size_flags_and_block_sizes() {
    let served = Served::new(&RamDisk::new(1 << 20));
    let mut client = served.connect();
    client.greet(3);
    let replies = client.ask(option::GO, &info("", &[1, 2, 3, 99]));
    let kinds: Vec<u32> = replies.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [reply::INFO, reply::INFO, reply::INFO, reply::INFO, reply::ACK]);
    assert_eq!(replies[0].1[2..10], (1_u64 << 20).to_be_bytes());
    assert_eq!(replies[0].1[10..12], WRITABLE.to_be_bytes());
    assert_eq!(replies[1].1, [0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]);
    assert_eq!(
        (replies[2].1.as_slice(), replies[3].1.as_slice()),
        (&b"\0\x01"[..], &b"\0\x02a test disk"[..])
    );
    assert_eq!(client.read(0, 512), [0; 512]);
    client.disconnect();
}

#[test]
fn exports_are_listed_found_and_told_apart() {
    let disks = [RamDisk::new(4096), RamDisk::new(8192)];
    let served = Served::exports(vec![named("", &disks[0]), named("@s1", &disks[1])], |_| {});
    let mut client = served.connect();
    client.greet(3);
    let replies = client.ask(option::LIST, &[]);
    assert_eq!(replies[0], (reply::SERVER, b"\0\0\0\0disk ".to_vec()));
    assert_eq!(replies[1], (reply::SERVER, b"\0\0\0\x03@s1disk @s1".to_vec()));
    assert_eq!(replies[2], (reply::ACK, Vec::new()));
    assert_eq!(client.ask(option::INFO, &info("nope", &[]))[0].0, reply::ERR_UNKNOWN);
    assert_eq!(client.ask(option::INFO, &info("@s1", &[]))[0].1[2..10], 8192_u64.to_be_bytes());
    assert_eq!(client.ask(option::GO, &info("nope", &[]))[0].0, reply::ERR_UNKNOWN);
    assert_eq!(client.ask(option::GO, &info("@s1", &[])).len(), 3);
    assert_eq!(client.read(4096, 512).len(), 512);
    client.disconnect();
}

#[test]
fn export_name_still_works() {
    let served = Served::new(&RamDisk::new(1 << 20));
    for (client_flags, zeros) in [(1, 124), (3, 0)] {
        let mut client = served.connect();
        client.greet(client_flags);
        client.send(&crate::client::option(option::EXPORT_NAME, b""));
        assert_eq!(client.u64(), 1 << 20);
        assert_eq!(client.receive(2), WRITABLE.to_be_bytes());
        assert_eq!(client.receive(zeros), vec![0; zeros]);
        assert_eq!(client.read(512, 512), [0; 512]);
        client.disconnect();
    }
    let mut client = served.connect();
    client.greet(3);
    client.send(&crate::client::option(option::EXPORT_NAME, b"nope"));
    assert_eq!(client.rest(), b"");
}

#[test]
fn what_is_not_supported_is_refused_and_the_client_may_go_on() {
    let served = Served::new(&RamDisk::new(1 << 20));
    let mut client = served.connect();
    client.greet(3);
    let mut one = |number, data: &[u8]| {
        let replies = client.ask(number, data);
        assert_eq!(replies.len(), 1);
        replies[0].0
    };
    for unsupported in [0, 4, 5, 9, 10, 11, u32::MAX] {
        assert_eq!(one(unsupported, b"xyz"), reply::ERR_UNSUP, "option {unsupported}");
    }
    assert_eq!(one(option::LIST, b"x"), reply::ERR_INVALID);
    assert_eq!(one(option::STRUCTURED_REPLY, b"x"), reply::ERR_INVALID);
    assert_eq!(one(option::GO, b"x"), reply::ERR_INVALID);
    assert_eq!(one(option::INFO, &[0xff; 64]), reply::ERR_INVALID);
    assert_eq!(one(option::INFO, &vec![0; 100_000]), reply::ERR_TOO_BIG);
    assert_eq!(client.ask(option::GO, &info("", &[])).len(), 3);
    client.disconnect();
}

#[test]
fn abort_is_acknowledged() {
    let served = Served::new(&RamDisk::new(1 << 20));
    let mut client = served.connect();
    client.greet(3);
    assert_eq!(client.ask(option::ABORT, b"ignored"), [(reply::ACK, Vec::new())]);
    assert_eq!(client.rest(), b"");
    served.wait_idle();
    assert_eq!(served.server.stats().violations, 0);
}

#[test]
fn a_read_only_disk_is_announced_as_such() {
    let geometry = Geometry { size: 1 << 20, sector_size: 4096, read_only: true, block_size: 4096 };
    let served = Served::new(&RamDisk::of(geometry));
    let (size, announced) = served.connect().begin(true, "");
    let expected = flags::HAS_FLAGS
        | flags::READ_ONLY
        | flags::SEND_FLUSH
        | flags::SEND_FUA
        | flags::SEND_DF
        | flags::CAN_MULTI_CONN;
    assert_eq!((size, announced), (1 << 20, expected));
}

#[test]
fn exports_may_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let disk = RamDisk::new(4096);
    let exports = Exports::new(vec![named("", &disk)]).unwrap();
    let server = Server::serve(exports.clone(), ServerOptions::new(Address::Unix(path.clone()))).unwrap();
    let mut early = Client::connect(&path);
    early.begin(true, "");
    exports.add(named("@new", &RamDisk::new(8192))).unwrap();
    assert!(exports.add(named("@new", &disk)).is_err());
    assert!(exports.add(named("a\nb", &disk)).is_err());
    assert_eq!(Client::connect(&path).begin(true, "@new").0, 8192);
    assert!(exports.remove("") && !exports.remove(""));
    let mut late = Client::connect(&path);
    late.greet(3);
    assert_eq!(late.ask(option::GO, &info("", &[]))[0].0, reply::ERR_UNKNOWN);
    early.disconnect();
    drop(late);
    wait_until("all connections have ended", || server.connections() == 0);
    server.stop().unwrap();
}

#[test]
fn a_list_longer_than_any_buffer_arrives() {
    let disk = RamDisk::new(512);
    let exports =
        (0..1000).map(|n| Export { description: "d".repeat(4000), ..named(&format!("@{n}"), &disk) });
    let served = Served::exports(exports.collect(), |_| {});
    let mut client = served.connect();
    client.greet(3);
    assert_eq!(client.ask(option::LIST, &[]).len(), 1001);
}
