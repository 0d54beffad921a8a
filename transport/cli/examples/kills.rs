//! Kills the real program at random moments and looks at what is left.
//!
//! ```text
//! cargo build --release -p driftline
//! cargo run --release -p driftline --example kills -- --count 1000 [--seed N] [--program PATH]
//! ```
//! Without `--seed` it draws one and prints it. Folders are made where `TMPDIR` says; the one in
//! which something is wrong stays.

#[path = "../tests/kills_support/mod.rs"]
mod kills_support;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let number = |name| value(name).map(|text| text.parse().expect("a number is wanted"));
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_secs() << 20);
    let (count, seed) = (number("--count").unwrap_or(1000), number("--seed").unwrap_or_else(fresh));
    let beside = || Some(env::current_exe().ok()?.parent()?.parent()?.join("driftline"));
    let program = value("--program").map(PathBuf::from).or_else(beside);
    let program = program.expect("the program is beside the examples");
    let streams = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/zfs");
    println!("{} is killed {count} times, seed {seed}", program.display());
    let started = Instant::now();
    match kills_support::run(&program, &streams, count, seed) {
        Ok(tally) => {
            println!("{tally}\n{count} kills in {:.0} s", started.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(what) => {
            println!("{what}");
            ExitCode::FAILURE
        }
    }
}
