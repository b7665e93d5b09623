//! An NBD request's header: parsed and checked, never a panic, and what is accepted lies within the disk.
#![no_main]

use cowdisk::device::Geometry;
use cowdisk::nbd::protocol::{Command, parse_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: [u8; 28]| {
    let Ok(request) = parse_request(&bytes) else { return };
    if matches!(request.command, Command::Flush | Command::Disconnect) {
        return;
    }
    let disk = Geometry { size: 1 << 30, sector_size: 512, read_only: false, block_size: 4096 };
    if request.check(&disk, true).is_ok() {
        let end = request.offset.checked_add(u64::from(request.length));
        assert!(end.is_some_and(|end| end <= disk.size) || request.length == 0);
    }
});
