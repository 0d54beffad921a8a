//! Fuzzes the first bytes of a connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_wire::fuzzing::hello(data));
