//! Tells histories of the simulation and says which break an invariant.
//!
//! ```text
//! cargo run --release -p driftline-tests --example sim -- --histories 100000 [--seed N]
//!     [--threads N] [--bug NAME] [--no-audit] [--narrow] [--whole]
//! ```
//! Without `--seed` it draws one and prints it. `--histories 1 --seed N` tells one again. What
//! fails is told with as few steps as it takes, or as it was with `--whole`.

#[path = "../tests/sim_support/mod.rs"]
mod sim_support;

use std::{
    env,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use driftline_tests::sim::{Bug, Finding, Options, Stats, run, shrink};

fn value(arguments: &[String], name: &str) -> Option<String> {
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.get(at + 1).cloned()
}

fn number(arguments: &[String], name: &str) -> Option<u64> {
    value(arguments, name).map(|text| text.parse().expect("a number is wanted"))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let histories = number(&arguments, "--histories").unwrap_or(1000);
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_secs() << 20);
    let first = number(&arguments, "--seed").unwrap_or_else(fresh);
    let threads = number(&arguments, "--threads").unwrap_or(1);
    let bug = value(&arguments, "--bug").map(|name| {
        let found = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name);
        found.unwrap_or_else(|| panic!("there is no such bug: {:?}", Bug::ALL))
    });
    let audit = !arguments.iter().any(|argument| argument == "--no-audit");
    let wide = !arguments.iter().any(|argument| argument == "--narrow");
    let options = Options { bug, audit, wide, links: sim_support::links };
    println!("seeds from {first} on");
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let work = || {
        let mut stats = Stats::default();
        let mut found: Option<(u64, Finding)> = None;
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= histories || found.is_some() {
                return (stats, found);
            }
            match run(first + at, &options) {
                Ok(more) => stats.add(&more),
                Err(finding) => {
                    next.fetch_add(histories, Ordering::Relaxed);
                    found = Some((at, *finding));
                }
            }
        }
    };
    let told: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a history panicked")).collect()
    });
    let mut stats = Stats::default();
    told.iter().for_each(|(some, _)| stats.add(some));
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} histories, {} steps, {} sessions, {} commits in {seconds:.1} s: {:.0} histories a minute",
        stats.histories,
        stats.steps,
        stats.sessions,
        stats.commits,
        stats.histories as f64 / seconds * 60.0
    );
    for (fault, count) in &stats.faults {
        println!("{count:>9}  {fault}: {:?}", fault.rung());
    }
    println!("{:>9}  commits that only an audit would have found wrong", stats.unseen);
    println!("{:>9}  sessions that an audit ended", stats.found);
    println!("{:>9}  comparisons that a map was held against", stats.compared);
    println!("{:>9}  scrubs, which put {} chunks right", stats.scrubs, stats.repaired);
    match told.into_iter().filter_map(|row| row.1).min_by_key(|row| row.0) {
        None => ExitCode::SUCCESS,
        Some((at, finding)) => {
            println!("history {} of this run fails: {}", at + 1, finding.what);
            let whole = arguments.iter().any(|argument| argument == "--whole");
            println!("{}", if whole { finding } else { shrink(finding, &options) });
            ExitCode::FAILURE
        }
    }
}
