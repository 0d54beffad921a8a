//! `driftline`: the one program. It parses, opens and prints; the crates below decide.
#![forbid(unsafe_code)]

mod args;
mod clock;
mod config;
mod content;
mod done;
mod drbd;
mod exit;
mod files;
mod foreign;
mod incidents;
mod index;
mod inspect;
mod job;
mod keyfile;
mod likeness;
mod linstor;
mod metrics;
mod place;
mod plain;
mod print;
mod progress;
mod receive;
mod replicate;
mod replication;
mod report;
mod restore;
mod scrub;
mod serve;
mod source;
mod status;
mod target;
mod terms;
mod told;
mod tree;
mod trust;
mod zvol;
mod zvol_delta;

use std::{
    io::{IsTerminal, stderr},
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    args::{Arguments, Command, DrbdCommand},
    exit::{classify, code},
    print::say,
    progress::Show,
    replication::Direction,
};

/// A block of this size, freed once, has glibc keep up to twice as much of what is freed later.
const KEPT_LEN: usize = 16 << 20;

fn main() -> ExitCode {
    keep_freed_memory();
    let arguments = Arguments::parse();
    start_logging(&arguments);
    let json = arguments.json;
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| {
            let result = runtime.block_on(run(arguments));
            // A source may be stuck in a read that nothing can interrupt.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(exit) => ExitCode::from(exit),
        Err(error) => {
            let (reason, exit) = classify(&error);
            if json {
                say(report::error_json(&error));
            }
            eprintln!("driftline: {reason}: {error:#}");
            ExitCode::from(exit)
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<u8> {
    let json = arguments.json;
    let show = if arguments.quiet || json { Show::Nothing } else { Show::Fitting };
    let trust_dir = arguments.trust_dir.as_path();
    let work = async {
        match &arguments.command {
            Command::Push(job) => {
                return replicate::run(job, Direction::Push, trust_dir, json, show).await;
            }
            Command::Pull(job) => {
                return replicate::run(job, Direction::Pull, trust_dir, json, show).await;
            }
            Command::Restore(restore) => restore::run(restore, trust_dir, json, show).await,
            Command::Keygen(keygen) => make_key(keygen),
            Command::Serve(serve) => serve::run(&serve.config, serve.check, trust_dir).await,
            Command::Map(map) => inspect::map(map, trust_dir, json),
            Command::Verify(verify) => return inspect::verify(verify, trust_dir, json),
            Command::Scrub(scrub) => return scrub::run(scrub, trust_dir, json).await,
            Command::AllowLoss(arguments) => inspect::allow_loss(arguments, json),
            Command::Status(status) => return status::run(status, trust_dir, json).await,
            Command::Incidents(command) => incidents::run(command, trust_dir, json),
            Command::Drbd(DrbdCommand::InitTracker(tracker)) => drbd::init_tracker(tracker),
            Command::Drbd(DrbdCommand::Guard { minor, limit_ms }) => {
                drbd::guard(*minor, *limit_ms).await
            }
            Command::Index(args::Index { command: args::IndexCommand::Rebuild(arguments) }) => {
                index::rebuild(arguments)
            }
        }
        .map(|()| code::DONE)
    };
    // These take signals themselves.
    if matches!(arguments.command, Command::Serve(_) | Command::Drbd(DrbdCommand::Guard { .. })) {
        return work.await;
    }
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("driftline: interrupted; run again to go on where it stopped");
            Ok(code::INTERRUPTED)
        }
    }
}

fn make_key(keygen: &args::Keygen) -> anyhow::Result<()> {
    let key = match (&keygen.out, &keygen.public) {
        (Some(out), _) => keyfile::generate(out)?,
        (None, Some(file)) => keyfile::read(file)?,
        (None, None) => anyhow::bail!("name a file with --out or --public"),
    };
    say(key.public());
    Ok(())
}

/// Has glibc keep memory that is freed, for what is needed next: it gives it back to the system from
/// 128 KiB on, and fetches it again page by page, which took a third of the CPU time of a first copy.
/// Both limits rise with the first large block that is freed (mallopt(3), `M_MMAP_THRESHOLD`). With
/// another allocator this does nothing.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT_LEN)));
}

fn start_logging(arguments: &Arguments) {
    let level = match (arguments.quiet, arguments.verbose) {
        (true, _) => LevelFilter::WARN,
        (false, 0) => LevelFilter::INFO,
        (false, 1) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder()
        .with_env_var("DRIFTLINE_LOG")
        .with_default_directive(level.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_env_filter(filter)
        .with_target(false)
        .init();
}
