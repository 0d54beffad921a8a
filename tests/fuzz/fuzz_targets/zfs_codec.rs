//! Fuzzes compressed blocks of ZFS.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_zfs::fuzzing::codec(data));
