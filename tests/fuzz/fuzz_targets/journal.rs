//! Fuzzes a replica's journal.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_target::fuzzing::journal(data));
