//! `driftline scrub`: reads a replica again, remembers what is found, and puts it right.

use std::{
    mem,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use driftline_extent::{CHUNK_LEN, Explained, Reason};
use driftline_target::{FileDisk, Replica, ScrubReport};
use driftline_transport::chain;
use driftline_trust::{EXTENTS_MAX, Incident};

use crate::{
    args::{self, units::parse_rate},
    clock::now_ms,
    exit::{classify, code, reason},
    index,
    metrics::{self, SCRUB},
    own,
    print::say,
    report,
    target::{AnyTargetError, TargetPlace, TargetTerms},
    trust::incidents,
};

/// How long is waited for a session that writes the replica, and between two looks.
const BUSY_MAX: Duration = Duration::from_secs(15 * 60);
const BUSY_STEP: Duration = Duration::from_millis(200);

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
    let own =
        [("--index", arguments.index.as_deref()), ("--metrics", arguments.metrics.as_deref())];
    own::check_apart(&own)?;
    own::check_no_replica(&own, &arguments.target.parse()?, &arguments.state)?;
    let (work, trusted) = (arguments.clone(), trust_dir.to_owned());
    let done = tokio::task::spawn_blocking(move || scrub(&work, &trusted)).await?;
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
            tracing::warn!(file = %path.display(), "cannot write metrics: {error:#}");
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

fn scrub(arguments: &args::Scrub, trust_dir: &Path) -> anyhow::Result<Done> {
    let place = TargetPlace::of(&arguments.target.parse()?)?;
    let rate = arguments.limit_rate.as_deref().map(parse_rate).transpose()?;
    let mut terms = TargetTerms::looking(&place, &arguments.state, trust_dir)?;
    let mut pace = Pace { rate, started: Instant::now(), read: 0 };
    // What fails here fails below as well, where it is said what.
    let doubtful = place.survey(&terms, &mut |_| pace.wait()).unwrap_or_else(|error| {
        tracing::debug!("all is read with the replica locked: {error}");
        None
    });
    if let Some(path) = &arguments.index {
        terms.index = index::open_to_look(path, &index::replica(&place, &terms));
    }
    let mut replica = open_when_free(&place, &terms, arguments.repair)?;
    let (repair, now) = (arguments.repair, now_ms());
    let report = match &doubtful {
        Some(chunks) => replica.scrub_doubtful(chunks, repair, now, &mut |_| pace.wait())?,
        None => replica.scrub(repair, now, &mut |_| pace.wait())?,
    };
    Ok(Done { report, clean_ms: replica.scrubbed_ms() })
}

/// How fast is read.
struct Pace {
    rate: Option<u64>,
    started: Instant,
    read: u64,
}

impl Pace {
    /// Waits after a chunk, until it may have been read.
    fn wait(&mut self) {
        self.read += CHUNK_LEN;
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(self.read as f64 / rate as f64);
            thread::sleep(due.saturating_sub(self.started.elapsed()));
        }
    }
}

/// Opens the replica, and waits for whoever writes it.
fn open_when_free(
    place: &TargetPlace,
    terms: &TargetTerms,
    repair: bool,
) -> Result<Replica<FileDisk>, AnyTargetError> {
    let (until, mut told) = (Instant::now() + BUSY_MAX, false);
    loop {
        let opened = match repair {
            true => place.open_replica(false, terms),
            false => place.open_to_read(terms),
        };
        match opened {
            Err(error) if error.reason() == Reason::TargetBusy && Instant::now() < until => {
                if !mem::replace(&mut told, true) {
                    let minutes = BUSY_MAX.as_secs() / 60;
                    tracing::info!(
                        "{error}: waiting up to {minutes} min for whoever reads or writes it"
                    );
                }
                thread::sleep(BUSY_STEP);
            }
            opened => return opened,
        }
    }
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
        tracing::warn!(error = chain(error), "cannot mark the incident as mended");
    }
    match kept.transpose() {
        Ok(name) => name,
        Err(error) => {
            tracing::error!(error = chain(&error), "cannot keep the incident");
            None
        }
    }
}

/// How it ends what was found, where the books have a list of it that the next push replaces.
const LEFT: &str = "are left to the next push";

/// Whether nothing but this incident says that a replica is damaged: no list in its books does.
pub(crate) fn is_only_word(incident: &Incident) -> bool {
    let is_damage = [Reason::TargetDamaged, Reason::TargetModified, Reason::VerifyFailed]
        .contains(&incident.reason);
    is_damage && incident.mended.is_none() && !incident.detail.ends_with(LEFT)
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
        detail += &format!(": {repaired} were put right, {awaited} {LEFT}");
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
