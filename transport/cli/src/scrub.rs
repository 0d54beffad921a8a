//! `driftline scrub`: reads a replica again, remembers what is found, and puts it right.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use driftline_extent::{CHUNK_LEN, Reason};
use driftline_target::ScrubReport;
use driftline_transport::chain;
use driftline_trust::{EXTENTS_MAX, Incident};

use crate::{
    args::{self, units::parse_rate},
    clock::now_ms,
    exit::{classify, code, reason},
    index,
    metrics::{self, SCRUB},
    print::say,
    report,
    target::{TargetPlace, TargetTerms},
    trust::incidents,
};

/// A scrub that was done, and when one last found nothing.
struct Done {
    report: ScrubReport,
    clean_ms: Option<u64>,
}

/// Scrubs a replica. Returns the exit code: what is found is no error of the program.
pub(crate) async fn run(
    arguments: &args::Scrub,
    trust_dir: &Path,
    json: bool,
) -> anyhow::Result<u8> {
    let work = arguments.clone();
    let done = tokio::task::spawn_blocking(move || scrub(&work)).await?;
    let target = &arguments.target;
    let exit = match &done {
        Ok(Done { report, .. }) if report.is_clean() => code::DONE,
        Ok(Done { report, .. }) if report.is_whole() => code::DEGRADED,
        Ok(_) => code::REPLICA,
        Err(error) => classify(error).1,
    };
    let incident = remember(trust_dir, target, &done);
    if let Some(path) = &arguments.metrics {
        let done = done.as_ref().ok();
        let scrubbed = metrics::Scrubbed {
            target,
            exit,
            report: done.map(|done| &done.report),
            clean_ms: done.and_then(|done| done.clean_ms),
        };
        if let Err(error) = metrics::write_scrub(path, &scrubbed, &incidents(trust_dir), now_ms()) {
            tracing::warn!(file = %path.display(), "metrics cannot be written: {error:#}");
        }
    }
    let Done { report, .. } = done?;
    if json {
        say(report::scrub_json(&report, incident.as_deref()));
    } else {
        say(report::scrub(&report));
        if let Some(id) = incident {
            say(format_args!("incident {id}: see `driftline incidents`"));
        }
    }
    Ok(exit)
}

fn scrub(arguments: &args::Scrub) -> anyhow::Result<Done> {
    let place = TargetPlace::of(&arguments.target.parse()?)?;
    let rate = arguments.limit_rate.as_deref().map(parse_rate).transpose()?;
    let mut terms = TargetTerms::looking(&arguments.state);
    if let Some(path) = &arguments.index {
        terms.index = index::open(path, &index::replica(&place, &terms));
    }
    let mut replica = place.open_replica(false, &terms)?;
    let (started, mut read) = (Instant::now(), 0);
    let report = replica.scrub(arguments.repair, now_ms(), &mut |_| {
        read += CHUNK_LEN;
        if let Some(rate) = rate {
            let due = Duration::from_secs_f64(read as f64 / rate as f64);
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
    })?;
    Ok(Done { report, clean_ms: replica.scrubbed_ms() })
}

/// Keeps what was found as an incident, and returns its name.
fn remember(trust_dir: &Path, target: &str, done: &anyhow::Result<Done>) -> Option<String> {
    let incidents = incidents(trust_dir);
    let (found, mended) = match done {
        Ok(Done { report, .. }) => {
            let mended = report.is_whole().then_some(report.found.generation);
            ((!report.is_clean()).then(|| incident_of(target, report)), mended)
        }
        Err(error) => match reason(error) {
            Some(reason @ (Reason::TargetModified | Reason::VerifyFailed)) => {
                let detail = format!("{error:#}");
                (Some(incident(target, reason, detail)), None)
            }
            _ => (None, None),
        },
    };
    let kept = found.map(|found| {
        tracing::error!(target, reason = found.reason.as_str(), "{}", found.detail);
        incidents.keep(&found)
    });
    let noted = mended.map_or(Ok(()), |at| incidents.mend(SCRUB, target, now_ms(), at));
    if let Err(error) = &noted {
        tracing::warn!(error = chain(error), "that it is mended cannot be noted");
    }
    match kept.transpose() {
        Ok(name) => name,
        Err(error) => {
            tracing::error!(error = chain(&error), "what was found cannot be kept");
            None
        }
    }
}

fn incident_of(target: &str, report: &ScrubReport) -> Incident {
    let ScrubReport { found, repaired, awaited, .. } = report;
    let mut detail = match (report.only_list, found.damaged_chunks) {
        (true, count) => format!("{count} entries of the list of chunk ids are damaged"),
        (false, count) => format!("{count} chunks are not what was committed"),
    };
    if !found.size_matches {
        detail += &format!(", and the size is {} and not {}", found.size_found, found.size);
    }
    if !found.root_matches && !report.only_list {
        detail += ", and the list of chunk ids is damaged as well: push with --full";
    }
    if report.is_whole() {
        detail += ": all of it was put right at once";
    } else if repaired + awaited > 0 {
        detail += &format!(": {repaired} were put right, {awaited} are left to the next push");
    } else {
        detail += ": nothing was changed";
    }
    Incident {
        base: Some(found.generation),
        extents: found.damaged.iter().take(EXTENTS_MAX).collect(),
        chunks: found.damaged_chunks,
        ..incident(target, Reason::TargetDamaged, detail)
    }
}

fn incident(target: &str, reason: Reason, detail: String) -> Incident {
    Incident::found(reason, detail, [SCRUB, target], now_ms())
}
