//! Operations, their flags and their results, from the driver's descriptor to the disk and back.

use cowdisk::ublk::sim::{Bio, Machine, Profile};
use cowdisk::ublk::uapi::{io_flag, op};

use super::life::{SIZE, done, options, served};
use super::model::{Call, Ram};

/// What becomes of requests, one after the other: their ends, and the calls that reached the disk.
fn run(bios: Vec<Bio>, errno: Option<i32>) -> (Vec<Result<Vec<u8>, i32>>, Vec<Call>) {
    let machine = Machine::new(Profile::of(6, 0), 11);
    let disk = Ram::new(SIZE, 11);
    served(&machine, &disk, &options(), |server, _| {
        disk.take_calls();
        disk.inner().errno = errno;
        let block = machine.open(0).unwrap();
        let ends = done(server, &machine, async move {
            let mut ends = Vec::new();
            for bio in bios {
                ends.push(block.submit(bio).await);
            }
            ends
        });
        (ends, disk.take_calls())
    })
}

fn bio(op_flags: u32, sector: u64, sectors: u32) -> Bio {
    Bio { op_flags, sector, sectors, data: Vec::new() }
}

#[test]
fn every_operation_with_every_flag() {
    let hints = io_flag::FAILFAST_DEV
        | io_flag::FAILFAST_TRANSPORT
        | io_flag::FAILFAST_DRIVER
        | io_flag::META
        | io_flag::SWAP;
    let write = |flags| Bio { data: vec![5; 1024], ..bio(op::WRITE | flags, 8, 2) };
    let (ends, calls) = run(
        vec![
            write(0),
            write(io_flag::FUA),
            write(hints),
            bio(op::READ | hints, 8, 2),
            Bio { sector: u64::MAX, ..bio(op::FLUSH, 0, 0) },
            bio(op::WRITE_ZEROES, 8, 1),
            bio(op::WRITE_ZEROES | io_flag::NOUNMAP, 8, 1),
            bio(op::WRITE_ZEROES | io_flag::NOUNMAP | io_flag::FUA | hints, 8, 1),
            bio(op::DISCARD, 16, 8),
            bio(op::DISCARD | io_flag::FUA, 16, 8),
            bio(op::READ, 8, 2),
        ],
        None,
    );
    let zeroes = |unmap, fua| Call::Zeroes { pos: 4096, len: 512, unmap, fua };
    assert_eq!(
        calls,
        [
            Call::Write(4096, 1024, false),
            Call::Write(4096, 1024, true),
            Call::Write(4096, 1024, false),
            Call::Read(4096, 1024),
            Call::Flush,
            zeroes(true, false),
            zeroes(false, false),
            zeroes(false, true),
            Call::Discard(8192, 4096, false),
            Call::Discard(8192, 4096, true),
            Call::Read(4096, 1024),
        ]
    );
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!(ends[3], Ok(vec![5; 1024]));
    assert_eq!(ends[10], Ok([[0; 512], [5; 512]].concat()));
}

#[test]
fn unknown_operations_and_impossible_requests_never_reach_the_disk() {
    let unknown =
        (0..=255).filter(|op| ![op::READ, op::WRITE, op::FLUSH, op::DISCARD, op::WRITE_ZEROES].contains(op));
    let unknown: Vec<Bio> = unknown.map(|op| bio(op, 0, 8)).collect();
    assert!(unknown.iter().any(|bio| bio.op_flags == op::WRITE_SAME));
    let count = unknown.len();
    let (ends, calls) = run(unknown, None);
    assert_eq!((ends, calls), (vec![Err(libc::EOPNOTSUPP); count], vec![]));
    let (ends, calls) = run(
        vec![
            bio(op::READ, 0, 0),
            bio(op::READ, 0, 33),
            bio(op::READ, u64::MAX, 8),
            bio(op::WRITE, 0, u32::MAX),
            bio(op::DISCARD, u64::MAX / 512, 8),
        ],
        None,
    );
    // EINVAL, which the block layer hands on as EIO.
    assert_eq!((&ends[..4], calls.len()), (&[const { Err(libc::EIO) }; 4][..], 1), "{calls:?}");
    assert_eq!(ends[4], Err(libc::EIO));
}

#[test]
fn errors_of_the_disk_arrive() {
    for (errno, seen) in [
        (libc::EIO, libc::EIO),
        (libc::ENOSPC, libc::ENOSPC),
        (libc::EROFS, libc::EIO),
        (0, libc::EIO),
        (99_999, libc::EIO),
    ] {
        let bios = vec![bio(op::READ, 0, 1), bio(op::FLUSH, 0, 0), bio(op::WRITE_ZEROES, 0, 1)];
        let (ends, _) = run(bios, Some(errno));
        assert_eq!(ends, vec![Err(seen); 3], "{errno}");
    }
}

#[test]
fn a_flush_reaches_the_server_and_fua_is_not_lost() {
    let machine = Machine::new(Profile::of(6, 0), 12);
    let disk = Ram::new(SIZE, 12);
    served(&machine, &disk, &options(), |server, device| {
        let block = machine.open(0).unwrap();
        done(server, &machine, async move {
            block.write(0, &[1; 40 << 10], io_flag::FUA).await.unwrap();
            block.flush().await.unwrap();
        });
        // Cut at 16 KiB.
        let writes: Vec<Call> =
            disk.take_calls().into_iter().filter(|call| !matches!(call, Call::Read(..))).collect();
        let (k16, k8) = (16 << 10, 8 << 10);
        let wanted = [
            Call::Write(0, k16, true),
            Call::Write(16384, k16, true),
            Call::Write(32768, k8, true),
            Call::Flush,
        ];
        assert_eq!(writes, wanted);
        let stats = device.stats();
        assert_eq!((stats.write.requests, stats.write.bytes, stats.flush.requests), (3, 40 << 10, 1));
        assert_eq!((stats.in_flight, stats.write.errors), (0, 0));
    });
}
