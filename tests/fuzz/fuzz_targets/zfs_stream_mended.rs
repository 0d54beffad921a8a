//! Fuzzes ZFS send streams behind their checksums.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| driftline_zfs::fuzzing::stream_mended(data));
