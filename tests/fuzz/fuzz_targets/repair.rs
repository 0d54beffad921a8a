//! Fuzzes a replica's list of damage.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_target::fuzzing::repair(data));
