//! Lets single system calls of the real program fail, or not happen, and looks at what comes of it.
//!
//! ```text
//! cargo build --release -p driftline
//! cargo run --release -p driftline --example faults -- --each 75 [--seed N] [--program PATH]
//! ```
//! Each fault befalls each of four places `--each` times. It takes strace (Debian: strace). Without
//! `--seed` it draws one and prints it. Folders are made where `TMPDIR` says; the one in which
//! something is wrong stays.

#[path = "../tests/faults_support/mod.rs"]
mod faults_support;

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
    let (each, seed) = (number("--each").unwrap_or(75), number("--seed").unwrap_or_else(fresh));
    let beside = || Some(env::current_exe().ok()?.parent()?.parent()?.join("driftline"));
    let program = value("--program").map(PathBuf::from).or_else(beside);
    let program = program.expect("the program is beside the examples");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    println!("{}: {each} runs for each fault and place, seed {seed}", program.display());
    let started = Instant::now();
    match faults_support::run(&program, &data, each, seed) {
        Ok(table) => {
            let runs: u64 = table.0.values().map(|row| row.runs).sum();
            println!("{table}\n{runs} runs in {:.0} s", started.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(what) => {
            println!("{what}");
            ExitCode::FAILURE
        }
    }
}
