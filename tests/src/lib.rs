//! The fake world that drives the real cores, and what the tests of several crates share.
#![forbid(unsafe_code)]

pub mod disk;
pub mod fuzz_extent;
pub mod hex;
pub mod link;
pub mod memory;
pub mod pool;
pub mod samples;
pub mod session;
pub mod sim;
