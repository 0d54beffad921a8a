//! Fuzzes a replica's state file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_target::fuzzing::state(data));
