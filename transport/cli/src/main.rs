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
mod linstor;
mod metrics;
mod own;
mod place;
mod plain;
mod print;
mod progress;
mod receive;
mod remembered;
mod replicate;
mod replication;
mod report;
mod restore;
mod scrub;
mod seed;
mod serve;
mod source;
mod status;
mod stop;
mod target;
mod terms;
mod told;
mod tree;
mod trust;
mod zvol;
mod zvol_delta;

use std::{process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::Parser;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::{
    args::{Arguments, Command, DrbdCommand},
    exit::{classify, code},
    print::{Log, complain, is_lost, say},
    progress::Show,
    replication::Direction,
    stop::{Signals, stopped},
};

fn main() -> ExitCode {
    driftline_heap::keep_freed();
    let arguments = Arguments::parse();
    start_logging(&arguments);
    let json = arguments.json;
    // What such a command prints is all that it does, or a program waits for it.
    let must_print = json
        || match &arguments.command {
            Command::Status(_)
            | Command::Map(_)
            | Command::Incidents(_)
            | Command::Keygen(_)
            | Command::Verify(_)
            | Command::Scrub(_) => true,
            Command::Serve(serve) => serve.check,
            _ => false,
        };
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
        Ok(code::DONE) if must_print && is_lost() => ExitCode::from(code::FAILED),
        Ok(exit) => ExitCode::from(exit),
        Err(error) => {
            let (reason, exit) = classify(&error);
            if json {
                say(report::error_json(&error));
            }
            complain(format_args!("driftline: {reason}: {error:#}"));
            ExitCode::from(exit)
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<u8> {
    // These take signals themselves.
    if let Command::Serve(serve) = &arguments.command {
        let done = serve::run(&serve.config, serve.check, &arguments.trust_dir).await;
        return done.map(|()| code::DONE);
    }
    if let Command::Drbd(DrbdCommand::Guard { minor, limit_ms }) = arguments.command {
        return drbd::guard(minor, limit_ms).await.map(|()| code::DONE);
    }
    let mut signals = Signals::new().context("cannot take signals")?;
    let arguments = Arc::new(arguments);
    let signal = tokio::select! {
        done = carry_out(&arguments) => return done,
        signal = signals.next() => signal,
    };
    Ok(stopped(signal, signals, &arguments).await)
}

async fn carry_out(arguments: &Arc<Arguments>) -> anyhow::Result<u8> {
    let json = arguments.json;
    let show = if arguments.quiet || json { Show::Nothing } else { Show::Fitting };
    let trust_dir = arguments.trust_dir.as_path();
    match &arguments.command {
        Command::Push(job) => replicate::run(job, Direction::Push, trust_dir, json, show).await,
        Command::Pull(job) => replicate::run(job, Direction::Pull, trust_dir, json, show).await,
        Command::Restore(restore) => {
            restore::run(restore, trust_dir, json, show).await.map(|()| code::DONE)
        }
        Command::Scrub(scrub) => scrub::run(scrub, trust_dir, json).await,
        Command::Status(status) => status::run(status, trust_dir, json).await,
        _ => {
            let arguments = arguments.clone();
            // On a thread of its own, so that a signal is heard meanwhile.
            tokio::task::spawn_blocking(move || block(&arguments)).await?
        }
    }
}

/// Carries out a command that only waits for its storage.
fn block(arguments: &Arguments) -> anyhow::Result<u8> {
    let (json, trust_dir) = (arguments.json, arguments.trust_dir.as_path());
    match &arguments.command {
        Command::Keygen(keygen) => make_key(keygen),
        Command::Map(map) => inspect::map(map, trust_dir, json),
        Command::Verify(verify) => return inspect::verify(verify, trust_dir, json),
        Command::AllowLoss(arguments) => inspect::allow_loss(arguments, trust_dir, json),
        Command::Incidents(command) => incidents::run(command, trust_dir, json),
        Command::Drbd(DrbdCommand::InitTracker(tracker)) => drbd::init_tracker(tracker),
        Command::Index(args::Index { command: args::IndexCommand::Rebuild(arguments) }) => {
            index::rebuild(arguments)
        }
        other => anyhow::bail!("{other:?} is carried out elsewhere; this is a defect in Driftline"),
    }
    .map(|()| code::DONE)
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
    let log = Log::new();
    tracing_subscriber::fmt()
        .with_writer(log)
        .with_ansi(log.colors())
        // It would tell standard error that standard error cannot be written, and panic.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_target(false)
        .init();
}
