//! Runs the lab's cases: real OpenZFS and real DRBD in virtual machines.
//!
//! `tests/lab/run` builds what this needs and starts it.

mod bench;
mod cases;
mod control;
mod image;
mod lab;
mod machine;
mod replication;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Result, bail};
use clap::Parser;

use crate::{
    cases::{CASES, Case},
    image::Image,
    lab::Lab,
};

/// Run the lab's cases, or those whose names begin with one of the given words.
#[derive(Parser)]
#[command(name = "tests/lab/run")]
struct Arguments {
    /// Names of cases, or how they begin.
    cases: Vec<String>,
    /// Only the cases of the short tier, one of each kind.
    #[arg(long)]
    short: bool,
    /// Say which cases there are.
    #[arg(long)]
    list: bool,
    /// Measure an increment against `zfs send` and syncoid, print what it costs, and run no case.
    #[arg(long, conflicts_with_all = ["cases", "short", "list"])]
    bench: bool,
    /// Keep the disks and console logs of a failed case's machines in this folder.
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// Print every command that runs in a machine, and how long it took.
    #[arg(short, long)]
    verbose: bool,
    /// The folder of the image.
    #[arg(long, env = "DRIFTLINE_LAB_IMAGE", hide = true, required_unless_present = "list")]
    image: Option<PathBuf>,
    /// The disk image with Driftline and the scripts.
    #[arg(long, env = "DRIFTLINE_LAB_TOOLS", hide = true, required_unless_present = "list")]
    tools: Option<PathBuf>,
    /// An empty folder for the machines.
    #[arg(long, env = "DRIFTLINE_LAB_WORK", hide = true, required_unless_present = "list")]
    work: Option<PathBuf>,
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("tests/lab/run: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let cases = chosen(&arguments)?;
    if arguments.list {
        for case in cases {
            let tier = if case.short { "short" } else { "" };
            println!("{:<24} {tier:<6} {}", case.name, case.shows);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (Some(image), Some(tools), Some(work)) =
        (&arguments.image, &arguments.tools, &arguments.work)
    else {
        bail!("start it with tests/lab/run");
    };
    let image = Image::open(image)?;
    println!("# machines run on {:?}", image.accelerator());
    let mut lab = Lab::new(image, tools, work, arguments.verbose);
    println!("# {}", cases::versions(lab.source()?)?);

    if arguments.bench {
        bench::run(&mut lab)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("1..{}", cases.len());
    let mut failed = 0;
    for (number, case) in cases.iter().enumerate() {
        let started = Instant::now();
        let result = (case.run)(&mut lab);
        let (number, seconds) = (number + 1, started.elapsed().as_secs());
        match result {
            Ok(()) => println!("ok {number} - {} ({seconds} s)", case.name),
            Err(error) => {
                failed += 1;
                println!("not ok {number} - {} ({seconds} s)", case.name);
                for line in format!("{error:#}").lines() {
                    println!("# {line}");
                }
                let keep = arguments.keep.as_ref().map(|folder| folder.join(case.name));
                if let Some(folder) = &keep {
                    println!("# its machines are kept in {}", folder.display());
                }
                lab.clear(keep.as_deref())?;
            }
        }
    }
    println!("{} passed, {failed} failed", cases.len() - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The cases that were asked for; a word that names none is an error.
fn chosen(arguments: &Arguments) -> Result<Vec<&'static Case>> {
    for word in &arguments.cases {
        if !CASES.iter().any(|case| case.name.starts_with(word)) {
            bail!("no case begins with {word}: see --list");
        }
    }
    let asked = |case: &&Case| {
        let named = arguments.cases.is_empty()
            || arguments.cases.iter().any(|word| case.name.starts_with(word));
        named && (case.short || !arguments.short)
    };
    Ok(CASES.iter().filter(asked).collect())
}
