//! Lets single system calls of the real program fail, or not happen, and looks at what comes of it.
//!
//! ```text
//! cargo build --release -p driftline
//! cargo run --release -p driftline --example faults -- --each 75 [--seed N] [--program PATH]
//! ```
//! Each fault befalls each of four places `--each` times. It takes strace (Debian: strace). Without
//! `--seed` it draws one and prints it. Folders are made where `TMPDIR` says; the one in which
//! something is wrong stays.

#[path = "../tests/harness/arguments.rs"]
mod arguments;
#[path = "../tests/faults_support/mod.rs"]
mod faults_support;

use std::{process::ExitCode, time::Instant};

use arguments::{Arguments, data};

fn main() -> ExitCode {
    let Arguments { program, count, seed } = Arguments::read("--each", 75);
    println!("{}: {count} runs for each fault and place, seed {seed}", program.display());
    let started = Instant::now();
    match faults_support::run(&program, &data(), count, seed) {
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
