//! The real program is killed at random moments; `examples/kills.rs` does it at length.

mod kills_support;

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

#[test]
fn what_is_killed_at_any_moment_leaves_one_generation_and_goes_on() {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_secs() << 20);
    println!("seed {seed}");
    let streams = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/zfs");
    let program = Path::new(env!("CARGO_BIN_EXE_driftline"));
    match kills_support::run(program, &streams, 48, seed) {
        Ok(tally) => println!("{tally}"),
        Err(what) => panic!("{what}"),
    }
}
