//! Users, servers and other processes on a machine with a simulated ublk driver, in any order.
#![no_main]

use cowdisk_fuzz::ublk;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    ublk::run(bytes);
});
