//! A made-up journal: replay applies what the rule says, and nothing else.
#![no_main]

use cowdisk_fuzz::journal;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    journal::run(bytes);
});
