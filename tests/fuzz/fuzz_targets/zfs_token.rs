//! Fuzzes resume tokens.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_zfs::fuzzing::token(data));
