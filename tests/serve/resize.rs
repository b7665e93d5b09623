//! `resize` of images that are being served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cowdisk::nbd::protocol::Command;

use crate::bench::{Bench, Daemon};
use crate::client::{Client, request, write};
use crate::wait_until;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

/// A new client, and the size that it is told.
fn connect(daemon: &Daemon) -> (Client, u64) {
    let mut client = Client::connect(&daemon.socket());
    let (size, _) = client.begin(false, "");
    (client, size)
}

fn filled(fill: u8) -> Vec<u8> {
    vec![fill; BLOCK as usize]
}

#[test]
fn clients_see_another_size_when_they_come_again() {
    let bench = Bench::new();
    let image = bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow"]);
    let (mut old, size) = connect(&daemon);
    assert_eq!(size, 16 * MIB);
    assert_eq!(old.call(&write(0, 16 * MIB - BLOCK, &filled(7), 1)), 0);
    let grown = bench.run(["resize", "vm.cow", "+16M"]).expect(0);
    assert_eq!(grown.stdout, "16.0 MiB (16777216 bytes) -> 32.0 MiB (33554432 bytes)\n");
    assert!(grown.stderr.contains("clients see the new size when they connect again"), "{grown:?}");
    assert_eq!(bench.status(&image)["virtual_size"], 32 * MIB);
    assert_eq!(bench.run(["info", "--json", "vm.cow"]).expect(0).json()["virtual_size"], 32 * MIB);
    // Who does not come again keeps the old end.
    assert_ne!(old.call(&write(0, 16 * MIB, &filled(7), 2)), 0);
    let (mut new, size) = connect(&daemon);
    assert_eq!(size, 32 * MIB);
    assert_eq!(new.read(16 * MIB, MIB as u32), vec![0; MIB as usize]);
    assert_eq!(new.call(&write(0, 32 * MIB - BLOCK, &filled(8), 3)), 0);

    let refused = bench.run(["resize", "vm.cow", "8M"]).expect(64);
    assert!(refused.stderr.contains("its last 25165824 bytes, of which 8192 hold data"), "{refused:?}");
    assert_eq!(new.read(32 * MIB - BLOCK, BLOCK as u32), filled(8));
    bench.run(["resize", "vm.cow", "8192T"]).expect(64);
    let dry = bench.run(["resize", "vm.cow", "8M", "--dry-run"]).expect(0);
    assert!(dry.stdout.contains("24.0 MiB would be cut, of which 8.0 KiB held data"), "{dry:?}");
    let cut = bench.run(["resize", "vm.cow", "8M", "--shrink"]).expect(0);
    assert!(cut.stdout.ends_with("24.0 MiB cut, of which 8.0 KiB held data\n"), "{cut:?}");
    // Behind the end there is nothing to be written or read, for whoever still believes it.
    assert_ne!(new.call(&write(0, 8 * MIB, &filled(9), 4)), 0);
    assert_ne!(new.call(&write(0, 32 * MIB - BLOCK, &filled(9), 5)), 0);
    assert_ne!(new.call(&request(Command::Read, 0, 8 * MIB, 4096, 6)), 0);
    assert_ne!(old.call(&request(Command::Trim, 0, 8 * MIB - 4096, 8192, 7)), 0);
    assert_eq!(old.call(&write(0, 8 * MIB - BLOCK, &filled(9), 8)), 0);
    assert_eq!(connect(&daemon).1, 8 * MIB);

    bench.run(["resize", "vm.cow", "64M"]).expect(0);
    let (mut last, size) = connect(&daemon);
    assert_eq!(size, 64 * MIB);
    assert_eq!(last.read(8 * MIB - BLOCK, BLOCK as u32), filled(9));
    for at in (8 * MIB..64 * MIB).step_by(MIB as usize) {
        assert_eq!(last.read(at, MIB as u32), vec![0; MIB as usize], "at {at}");
    }
    // Acknowledged is durable.
    daemon.kill();
    let daemon = bench.serve(["vm.cow"]);
    assert_eq!(connect(&daemon).1, 64 * MIB);
    daemon.terminate();
    bench.run(["check", "vm.cow", "--data"]).expect(0);
}

/// A disk that shrinks and grows under writes at its end, with snapshots in between: what was acknowledged in front of
/// the end is there, what is behind an end that it had is zeros.
#[test]
fn resizes_under_load() {
    let bench = Bench::new();
    bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow", "--queues", "2"]);
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..3u64)
        .map(|index| {
            let (mut client, stop, written) = (daemon.connect(), stop.clone(), written.clone());
            std::thread::spawn(move || {
                let mut last = vec![0; 128];
                for number in 1u64.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // Blocks of its own, half of them behind the smaller end.
                    let slot = number % 128;
                    let at = 8 * MIB - 64 * 3 * BLOCK + (slot * 3 + index) * BLOCK;
                    let fill = 1 + (number % 200) as u8;
                    if client.call(&write(0, at, &filled(fill), number)) == 0 {
                        last[slot as usize] = fill;
                    }
                    written.fetch_add(1, Ordering::Relaxed);
                }
                last
            })
        })
        .collect();
    for round in 0..6 {
        let before = written.load(Ordering::Relaxed);
        wait_until("the load goes on", || written.load(Ordering::Relaxed) > before + 300);
        bench.run(["resize", "vm.cow", "8M", "--shrink"]).expect(0);
        if round % 2 == 0 {
            bench.run(["snapshot", &format!("vm.cow@r{round}")]).expect(0);
        }
        let before = written.load(Ordering::Relaxed);
        wait_until("the load goes on", || written.load(Ordering::Relaxed) > before + 300);
        bench.run(["resize", "vm.cow", "16M"]).expect(0);
    }
    bench.run(["resize", "vm.cow", "8M", "--shrink"]).expect(0);
    stop.store(true, Ordering::Relaxed);
    let last: Vec<Vec<u8>> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    daemon.kill();
    let daemon = bench.serve(["vm.cow"]);
    bench.run(["resize", "vm.cow", "16M"]).expect(0);
    let (mut client, size) = connect(&daemon);
    assert_eq!(size, 16 * MIB);
    for (index, last) in last.iter().enumerate() {
        for (slot, &fill) in last.iter().enumerate() {
            let at = 8 * MIB - 64 * 3 * BLOCK + (slot as u64 * 3 + index as u64) * BLOCK;
            let expected = if at < 8 * MIB { fill } else { 0 };
            assert_eq!(client.read(at, BLOCK as u32), filled(expected), "block {}", at / BLOCK);
        }
    }
    drop(client);
    daemon.terminate();
    for round in [0, 2, 4] {
        let info = bench.run(["info", "--json", &format!("vm.cow@r{round}")]).expect(0).json();
        assert_eq!(info["virtual_size"], 8 * MIB);
    }
    bench.run(["check", "vm.cow", "--data", "--chain"]).expect(0);
}

#[test]
fn disks_that_are_not_written_keep_their_size() {
    let bench = Bench::new();
    bench.image("vm.cow", 16 * MIB);
    let daemon = bench.serve(["vm.cow", "--read-only"]);
    let refused = bench.run(["resize", "vm.cow", "32M"]).expect(75);
    assert!(refused.stderr.contains("in use"), "{refused:?}");
    daemon.terminate();
    let daemon = bench.serve(["vm.cow", "--temporary"]);
    bench.run(["resize", "vm.cow", "32M"]).expect(75);
    assert_eq!(connect(&daemon).1, 16 * MIB);
    daemon.terminate();
    assert_eq!(bench.run(["info", "--json", "vm.cow"]).expect(0).json()["virtual_size"], 16 * MIB);
}
