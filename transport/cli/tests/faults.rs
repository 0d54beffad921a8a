//! Single system calls of the real program fail, or do not happen; `examples/faults.rs` does it at
//! length. strace injects them.

mod faults_support;

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

#[test]
fn a_call_that_fails_or_never_happens_leads_to_no_wrong_copy() {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_secs() << 20);
    println!("seed {seed}");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    let program = Path::new(env!("CARGO_BIN_EXE_driftline"));
    match faults_support::run(program, &data, 2, seed) {
        Ok(table) => println!("{table}"),
        Err(what) => panic!("{what}"),
    }
}
