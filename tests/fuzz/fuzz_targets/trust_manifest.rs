//! Fuzzes the source's manifest of a replica.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_trust::fuzzing::manifest(data));
