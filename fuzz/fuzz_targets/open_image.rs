//! A damaged image, sealed again: an error, or in order.
#![no_main]

use cowdisk_fuzz::damage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    damage::run(bytes);
});
