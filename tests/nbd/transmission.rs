//! Requests and replies, byte by byte.

use cowdisk::device::Geometry;
use cowdisk::nbd::limits::{MAX_PAYLOAD, READ_PART, WRITE_PART};
use cowdisk::nbd::protocol::{CMD_FLAG_DF, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, Command, error};

use crate::client::{Chunk, Client, request, write};
use crate::ram::{Call, RamDisk};
use crate::{Served, wait_until};

const MIB: u32 = 1 << 20;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

#[test]
fn each_command_reaches_the_disk_with_its_flags() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::new(&disk);
    let mut client = served.ready(false);
    assert_eq!(client.call(&write(0, 512, &[1; 512], 1)), 0);
    assert_eq!(client.call(&write(CMD_FLAG_FUA, 4096, &[2; 8192], 2)), 0);
    assert_eq!(client.call(&request(Command::Flush, 0, 0, 0, 3)), 0);
    assert_eq!(client.call(&request(Command::Trim, CMD_FLAG_FUA, 512, 512, 4)), 0);
    assert_eq!(client.call(&request(Command::WriteZeroes, CMD_FLAG_NO_HOLE, 4096, 512, 5)), 0);
    assert_eq!(client.call(&request(Command::WriteZeroes, CMD_FLAG_FUA, 8192, 512, 6)), 0);
    let bytes = client.read(4096, 8192);
    assert_eq!((bytes[511], bytes[512], bytes[4096], bytes[4608]), (0, 2, 0, 2));
    let expected = [
        Call::Write { pos: 512, len: 512, fua: false },
        Call::Write { pos: 4096, len: 8192, fua: true },
        Call::Flush,
        Call::Discard { pos: 512, len: 512, fua: true },
        Call::Zero { pos: 4096, len: 512, unmap: false, fua: false },
        Call::Zero { pos: 8192, len: 512, unmap: true, fua: true },
        Call::Read { pos: 4096, len: 8192 },
    ];
    assert_eq!(disk.calls(), expected);
    let stats = served.server.stats();
    assert_eq!((stats.write.requests, stats.write.bytes, stats.read.bytes), (2, 8704, 8192));
    assert_eq!((stats.flush.requests, stats.trim.bytes, stats.write_zeroes.requests), (1, 512, 2));
    client.disconnect();
}

#[test]
fn a_refused_request_leaves_the_stream_in_step() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::new(&disk);
    for structured in [false, true] {
        let mut client = served.ready(structured);
        assert_eq!(client.call(&write(0, 1 << 20, &pattern(200_000)[..199_680], 1)), error::ENOSPC);
        assert_eq!(client.call(&write(0, 100, &[0; 512], 2)), error::EINVAL);
        assert_eq!(client.call(&write(1 << 9, 0, &[0; 512], 3)), error::EINVAL);
        assert_eq!(client.call(&write(0, 0, &[], 4)), error::EINVAL);
        assert_eq!(client.call(&request(Command::Unknown(5), 0, 0, 512, 5)), error::EINVAL);
        assert_eq!(client.call(&request(Command::Unknown(999), 0, 0, 512, 6)), error::EINVAL);
        assert_eq!(client.call(&request(Command::Trim, 0, 1 << 20, 512, 7)), error::EINVAL);
        assert_eq!(client.call(&request(Command::Flush, 0, 1, 0, 8)), error::EINVAL);
        assert_eq!(client.call(&request(Command::WriteZeroes, 0, u64::MAX - 511, 1024, 9)), error::ENOSPC);
        client.send(&request(Command::Read, 0, u64::MAX, 512, 10));
        match structured {
            false => assert_eq!(client.simple(), (error::EINVAL, 10)),
            true => assert_eq!(client.chunk(), failed(10, error::EINVAL)),
        }
        assert_eq!(client.call(&write(0, 0, &[9; 512], 11)), 0);
        client.disconnect();
    }
    assert_eq!(disk.calls().len(), 2);
    assert_eq!(served.server.stats().write.errors, 8);
    assert_eq!(served.server.stats().unknown.errors, 4);
}

fn failed(cookie: u64, error: u32) -> Chunk {
    let data = [&error.to_be_bytes()[..], &[0, 0]].concat();
    Chunk { done: true, kind: 0x8001, cookie, data }
}

#[test]
fn nothing_changes_a_read_only_disk() {
    let disk = RamDisk::of(Geometry { size: 1 << 20, sector_size: 512, read_only: true, block_size: 4096 });
    let served = Served::new(&disk);
    let mut client = served.ready(false);
    assert_eq!(client.call(&write(0, 0, &[1; 4096], 1)), error::EPERM);
    assert_eq!(client.call(&request(Command::Trim, 0, 0, 512, 2)), error::EPERM);
    assert_eq!(client.call(&request(Command::WriteZeroes, 0, 0, 512, 3)), error::EPERM);
    assert_eq!(client.call(&request(Command::Flush, 0, 0, 0, 4)), 0);
    assert_eq!(client.read(0, 512), [0; 512]);
}

#[test]
fn errors_of_the_disk_reach_the_client() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::new(&disk);
    let mut client = served.ready(false);
    for (errno, expected) in
        [(libc::EIO, error::EIO), (libc::ENOSPC, error::ENOSPC), (libc::EUCLEAN, error::EIO)]
    {
        disk.fail(4096..8192, errno);
        assert_eq!(client.call(&write(0, 4096, &[1; 512], 1)), expected);
        assert_eq!(client.call(&request(Command::Trim, 0, 0, 8192, 2)), expected);
        assert_eq!(client.call(&request(Command::Read, 0, 7680, 512, 3)), expected);
        assert_eq!(client.call(&write(0, 0, &[1; 4096], 4)), 0);
    }
}

/// Receives a structured reply to a read.
fn chunks(client: &mut Client) -> Vec<Chunk> {
    let mut all = vec![client.chunk()];
    while !all[all.len() - 1].done {
        all.push(client.chunk());
    }
    all
}

#[test]
fn reads_of_all_lengths_arrive_whole() {
    let disk = RamDisk::new(40 << 20);
    disk.fill();
    let served = Served::new(&disk);
    let (mut simple, mut structured) = (served.ready(false), served.ready(true));
    let part = u32::try_from(READ_PART).unwrap();
    for length in [512, part - 512, part, part + 512, 3 * part + 1024, MAX_PAYLOAD] {
        let expected = disk.bytes(512..512 + length as usize);
        assert!(simple.read(512, length) == expected, "simple, {length} bytes");
        structured.send(&request(Command::Read, 0, 512, length, 5));
        let mut bytes = Vec::new();
        for chunk in chunks(&mut structured) {
            assert_eq!((chunk.kind, chunk.cookie), (1, 5));
            assert_eq!(chunk.data[..8], (512 + bytes.len() as u64).to_be_bytes());
            bytes.extend_from_slice(&chunk.data[8..]);
        }
        assert!(bytes == expected, "structured, {length} bytes");
    }
    simple.send(&request(Command::Read, 0, 0, MAX_PAYLOAD + 512, 1));
    assert_eq!(simple.simple(), (error::EINVAL, 1));
    structured.send(&request(Command::Read, CMD_FLAG_DF, 0, part, 2));
    assert_eq!(chunks(&mut structured).len(), 1);
    structured.send(&request(Command::Read, CMD_FLAG_DF, 0, part + 512, 3));
    assert_eq!(chunks(&mut structured), [failed(3, error::EOVERFLOW)]);
}

#[test]
fn many_long_reads_at_once_do_not_mix() {
    let disk = RamDisk::new(8 << 20);
    disk.fill();
    let served = Served::new(&disk);
    let mut client = served.ready(false);
    let all: Vec<u8> = (0..16).flat_map(|n| request(Command::Read, 0, n * 4096, MIB, n)).collect();
    client.send(&all);
    for _ in 0..16 {
        let (error, cookie) = client.simple();
        assert_eq!(error, 0);
        let start = usize::try_from(cookie).unwrap() * 4096;
        assert!(client.receive(MIB as usize) == disk.bytes(start..start + MIB as usize), "read {cookie}");
    }
}

#[test]
fn a_read_that_fails_half_way_is_reported_or_cut_off() {
    let disk = RamDisk::new(4 << 20);
    disk.fail(MIB.into()..u64::from(MIB) + 512, libc::EIO);
    let served = Served::new(&disk);
    let mut structured = served.ready(true);
    structured.send(&request(Command::Read, 0, 0, 2 * MIB, 1));
    let chunks = chunks(&mut structured);
    assert_eq!(chunks.len(), MIB as usize / READ_PART + 1);
    assert_eq!(chunks[chunks.len() - 1], failed(1, error::EIO));
    structured.send(&request(Command::Read, 0, 0, 512, 2));
    assert!(structured.chunk().done);

    let mut simple = served.ready(false);
    simple.send(&request(Command::Read, 0, 0, 2 * MIB, 1));
    assert!(simple.rest().len() <= 16 + MIB as usize);
    assert_eq!(served.server.stats().read.errors, 2);
}

#[test]
fn writes_of_all_lengths_arrive_whole_and_atomic_as_far_as_promised() {
    let disk = RamDisk::new(40 << 20);
    let served = Served::new(&disk);
    let mut client = served.ready(true);
    let data = pattern(MAX_PAYLOAD as usize);
    for length in [512, 32 << 10, 256 << 10, WRITE_PART, WRITE_PART + 512, 5 * WRITE_PART - 512, data.len()] {
        disk.calls();
        assert_eq!(client.call(&write(CMD_FLAG_FUA, 1024, &data[..length], 1)), 0);
        assert!(disk.bytes(1024..1024 + length) == data[..length], "{length} bytes");
        let calls = disk.calls();
        assert_eq!(calls.len(), length.div_ceil(WRITE_PART));
        assert!(calls.iter().all(|call| matches!(call, Call::Write { fua: true, .. })));
    }
    assert_eq!(served.server.stats().write.requests, 7);
    disk.fail(3 << 20..4 << 20, libc::ENOSPC);
    assert_eq!(client.call(&write(0, 0, &data[..8 << 20], 2)), error::ENOSPC);
    assert_eq!(client.call(&write(0, 0, &data[..1 << 20], 3)), 0);
}

#[test]
fn replies_come_in_the_order_of_completion() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::new(&disk);
    let mut client = served.ready(false);
    disk.hold();
    client.send(&write(0, 0, &[5; 4096], 1));
    assert_eq!(client.read(0, 512), [0; 512]);
    disk.let_go();
    assert_eq!(client.simple(), (0, 1));
    assert_eq!(client.read(0, 512), [5; 512]);
}

#[test]
fn requests_that_arrive_together_reach_the_disk_in_one_turn() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::new(&disk);
    let mut client = served.ready(true);
    let all: Vec<u8> = (0..32).flat_map(|n| write(0, n * 512, &[n as u8; 512], n)).collect();
    client.send(&all);
    for _ in 0..32 {
        assert_eq!(client.simple().0, 0);
    }
    assert_eq!(disk.turns(), [32]);
}

#[test]
fn depth_bounds_what_runs_at_once() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::with(&disk, |options| options.depth = 4);
    let mut client = served.ready(true);
    disk.hold();
    let all: Vec<u8> = (0..20).flat_map(|n| write(0, n * 512, &[1; 512], n)).collect();
    client.send(&all);
    wait_until("four writes are running", || disk.waiting() == 4);
    disk.let_go();
    for _ in 0..20 {
        assert_eq!(client.simple().0, 0);
    }
    assert!(disk.turns().iter().all(|&count| count <= 4), "{:?}", disk.turns());
}
