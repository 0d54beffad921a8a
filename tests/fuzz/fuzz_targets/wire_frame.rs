//! Fuzzes frames, at every stage of a link.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_wire::fuzzing::frames(data));
