//! Fuzzes what an authentic peer may say to either machine.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_wire::fuzzing::session(data));
