//! Requests, a crash, and opening again, against the model.
#![no_main]

use cowdisk_fuzz::operations;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    operations::run(bytes);
});
