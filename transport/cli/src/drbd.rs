//! `driftline drbd`: what is prepared in DRBD, and the process that holds a device suspended.

use std::time::Duration;

use anyhow::Context;
use driftline_drbd::{
    guard_process,
    tracker::{Step, Tracker},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{args, print::say};

/// Shows what makes a tracker, or takes it away, and does it if that was agreed to.
pub(crate) fn init_tracker(arguments: &args::InitTracker) -> anyhow::Result<()> {
    let args::InitTracker { resource, device, meta, undo, yes } = arguments;
    let tracker =
        Tracker { resource: resource.clone(), device: device.clone(), meta: meta.clone() };
    let steps = if *undo { tracker.to_undo()? } else { tracker.to_make()? };
    if steps.is_empty() {
        say(format_args!(
            "# nothing is to be done: it is {}",
            if *undo { "gone" } else { "there" }
        ));
        return Ok(());
    }
    say(explanation(&tracker, *undo));
    for step in &steps {
        say(step);
        if *yes {
            step.run().with_context(|| unfinished(step))?;
        }
    }
    if !yes {
        say("# nothing was done: say --yes to run these commands");
    }
    Ok(())
}

fn unfinished(step: &Step) -> String {
    format!("stopped at `{step}`: run it again once that is mended, or with --undo")
}

fn explanation(tracker: &Tracker, undo: bool) -> String {
    let Tracker { resource, device, .. } = tracker;
    let device = device.display();
    if undo {
        return format!(
            "# Nothing may use the DRBD device any more. What changes is no longer recorded, and\n\
             # {device} can be used by itself, with the data that is there."
        );
    }
    format!(
        "# DRBD will record what changes on {device}, and mirror it nowhere. Nothing may use it\n\
         # but through the DRBD device, as drbd:{resource}/0 is replicated from then on. After a\n\
         # reboot, run this again."
    )
}

/// Holds the device suspended for whoever is at the other end of standard input.
pub(crate) async fn guard(minor: u32, limit_ms: u64) -> anyhow::Result<()> {
    // They end whoever started it, and then it has work to do. As long as somebody listens for
    // them they end nothing here.
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let _signals = kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>()?;
    let work = move || guard_process(minor, Duration::from_millis(limit_ms));
    Ok(tokio::task::spawn_blocking(work).await?)
}
