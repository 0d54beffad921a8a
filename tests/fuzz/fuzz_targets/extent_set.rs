//! Fuzzes the extent algebra against a bitmap.
#![no_main]

#[path = "../../src/fuzz_extent.rs"]
mod fuzz_extent;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_extent::extent_set(data));
