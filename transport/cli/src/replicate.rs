//! `driftline push` and `driftline pull`.

use std::path::Path;

use crate::{
    args,
    done::Done,
    exit::classify,
    foreign, job, own,
    place::Place,
    print::say,
    progress::Show,
    replication::{Direction, Job},
    report, tree,
    trust::Trust,
};

/// Runs the command and prints what it did.
pub(crate) async fn run(
    arguments: &args::Replicate,
    direction: Direction,
    trust_dir: &Path,
    json: bool,
    show: Show,
) -> anyhow::Result<u8> {
    let mut arguments = arguments.clone();
    job::fill(&mut arguments)?;
    Trust { dir: trust_dir, audit: &arguments.audit, target: "" }.check()?;
    let place = |said: &Option<String>| said.as_deref().unwrap_or_default().parse::<Place>();
    let (source, target) = (place(&arguments.source)?, place(&arguments.target)?);
    foreign::check(&arguments, &source, &target)?;
    let own = [
        ("--index", arguments.index.as_deref()),
        ("--metrics", arguments.metrics.as_deref()),
        ("--key", arguments.peer.key.as_deref()),
    ];
    own::check_apart(&own)?;
    own::check_no_volume(&own, &source)?;
    own::check_no_replica(&own, &target, &arguments.state)?;
    let job = Job::of(&arguments, direction, trust_dir)?;
    tree::check(&arguments)?;
    if arguments.tree.recursive {
        return tree::run(job, &arguments.tree, &source, &target, json, show).await;
    }
    let done = job.run(&source, &target, show).await;
    let exit = done.as_ref().map_or_else(|error| classify(error).1, Done::exit_code);
    job.tell_metrics(&[(&source, &target, exit, done.as_ref().ok())]);
    let done = done?;
    say(if json { report::done_json(&done).to_string() } else { report::done(&done) });
    Ok(exit)
}
