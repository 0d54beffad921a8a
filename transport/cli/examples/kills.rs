//! Kills the real program at random moments and looks at what is left.
//!
//! ```text
//! cargo build --release -p driftline
//! cargo run --release -p driftline --example kills -- --count 1000 [--seed N] [--program PATH]
//! ```
//! Without `--seed` it draws one and prints it. Folders are made where `TMPDIR` says; the one in
//! which something is wrong stays.

#[path = "../tests/harness/arguments.rs"]
mod arguments;
#[path = "../tests/kills_support/mod.rs"]
mod kills_support;

use std::{process::ExitCode, time::Instant};

use arguments::{Arguments, data};

fn main() -> ExitCode {
    let Arguments { program, count, seed } = Arguments::read("--count", 1000);
    println!("{} is killed {count} times, seed {seed}", program.display());
    let started = Instant::now();
    match kills_support::run(&program, &data().join("zfs"), count, seed) {
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
