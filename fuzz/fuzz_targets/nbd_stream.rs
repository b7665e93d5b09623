//! All that a client may send, from the first byte on.
#![no_main]

use cowdisk_fuzz::stream;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    stream::run(bytes);
});
