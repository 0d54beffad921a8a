//! Fuzzes what the source's side keeps as text.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_trust::fuzzing::records(data));
