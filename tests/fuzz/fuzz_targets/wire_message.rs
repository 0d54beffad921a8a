//! Fuzzes control messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_wire::fuzzing::message(data));
