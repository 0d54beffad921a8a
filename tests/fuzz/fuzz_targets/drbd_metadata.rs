//! Fuzzes DRBD metadata: superblock, activity log, bitmaps, and what they lead to.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_drbd::fuzzing::metadata(data));
