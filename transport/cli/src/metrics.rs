//! What a run did, as node_exporter's textfile collector reads it.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs::{self, File},
    io::Read,
    path::Path,
};

use anyhow::{Context, bail};
use driftline_extent::PlanKind;
use driftline_target::ScrubReport;
use driftline_trust::Incidents;

use crate::{done::Done, files, place::Place, report::changed};

/// What stands for the source in what a scrub has found: it has none.
pub(crate) const SCRUB: &str = "scrub";

/// A run: from where, to where, its exit code, and what it did unless it failed.
pub(crate) type Run<'a> = (&'a Place, &'a Place, u8, Option<&'a Done>);

/// Each metric and what it says. The names are an interface: see INTERFACES.md.
const METRICS: [(&str, &str); 11] = [
    (LAST_RUN, "When the last run ended, in seconds since 1970."),
    (LAST_SUCCESS, "When the last run ended that was done, degraded or not."),
    (GENERATION, "When the run began that brought the replica to its generation."),
    (COMPARED, "When the run began that last compared all of source and target."),
    ("driftline_exit_code", "Exit code of the last run."),
    ("driftline_run_seconds", "How long the last run took, unless it failed."),
    ("driftline_bytes", "Bytes of the last run, unless it failed."),
    ("driftline_degraded", "1 if the last run was done, degraded, by the reason."),
    (AUDIT_OLDEST, "When that was last read which was not for the longest time."),
    ("driftline_audit_stale_bound_chunks", "Stale chunks that the last sample may have missed."),
    (INCIDENTS_OPEN, INCIDENTS_OPEN_HELP),
];

/// What all names begin with.
const PREFIX: &str = "driftline_";

const LAST_RUN: &str = "driftline_last_run_timestamp_seconds";
const LAST_SUCCESS: &str = "driftline_last_success_timestamp_seconds";
const GENERATION: &str = "driftline_generation_timestamp_seconds";
const COMPARED: &str = "driftline_compared_timestamp_seconds";
const AUDIT_OLDEST: &str = "driftline_audit_oldest_timestamp_seconds";

/// What lasts until a later run says something else.
const LASTING: [&str; 4] = [LAST_SUCCESS, GENERATION, COMPARED, AUDIT_OLDEST];

/// The same of a scrub.
const SCRUB_METRICS: [(&str, &str); 6] = [
    ("driftline_scrub_last_run_timestamp_seconds", "When the last scrub ended."),
    (SCRUB_CLEAN, "When a scrub last found no damage."),
    ("driftline_scrub_exit_code", "Exit code of the last scrub."),
    ("driftline_scrub_damaged_chunks", "Damaged chunks that the last scrub found."),
    ("driftline_scrub_left_chunks", "Damaged chunks that it did not repair itself."),
    (INCIDENTS_OPEN, INCIDENTS_OPEN_HELP),
];

const SCRUB_CLEAN: &str = "driftline_scrub_clean_timestamp_seconds";
const INCIDENTS_OPEN: &str = "driftline_incidents_open";
const INCIDENTS_OPEN_HELP: &str = "Incidents of the target that nobody has acknowledged.";

/// What a scrub has to tell.
#[derive(Debug)]
pub(crate) struct Scrubbed<'a> {
    pub(crate) target: &'a str,
    pub(crate) exit: u8,
    /// What it found, unless it failed.
    pub(crate) report: Option<&'a ScrubReport>,
    /// When one last found no damage, if the replica could be opened.
    pub(crate) clean_ms: Option<u64>,
}

/// Writes the metrics of a scrub. Of one that failed, when one was clean stays as it is in the file.
pub(crate) fn write_scrub(
    path: &Path,
    scrubbed: &Scrubbed<'_>,
    incidents: &Incidents,
    now_ms: u64,
) -> anyhow::Result<()> {
    let before = before(path)?;
    let all = incidents.all()?;
    let open = all.iter().filter(|(_, one)| one.is_open_of(scrubbed.target)).count();
    replace(path, &scrub_text(&before, scrubbed, open, now_ms))
}

/// What is in the file now. To read a pipe would wait for whoever writes to it. What is not ours
/// stays: somebody may have named the wrong file.
fn before(path: &Path) -> anyhow::Result<String> {
    if !fs::metadata(path).is_ok_and(|found| found.is_file()) {
        return Ok(String::new());
    }
    let begins = format!("# HELP {PREFIX}");
    let mut found = Vec::new();
    let mut file = File::open(path)?;
    (&mut file).take(begins.len() as u64).read_to_end(&mut found)?;
    if !found.is_empty() && found != begins.as_bytes() {
        bail!("{} holds something else: name another file for the metrics", path.display());
    }
    file.read_to_end(&mut found)?;
    Ok(String::from_utf8_lossy(&found).into_owned())
}

fn scrub_text(before: &str, scrubbed: &Scrubbed<'_>, open: usize, now_ms: u64) -> String {
    let Scrubbed { target, exit, report, clean_ms } = scrubbed;
    let labels = format!("{{source=\"{SCRUB}\",target=\"{}\"}}", escaped(target));
    let clean = format!("{SCRUB_CLEAN}{labels}");
    let kept = || {
        let kept = before.lines().filter_map(|line| line.rsplit_once(' '));
        kept.filter(|(key, _)| *key == clean).map(|(_, value)| value.to_owned()).next()
    };
    let values = [
        Some((now_ms / 1000).to_string()),
        clean_ms.map(|ms| (ms / 1000).to_string()).or_else(kept),
        Some(exit.to_string()),
        report.map(|report| report.found.damaged_chunks.to_string()),
        report.map(|report| report.left().to_string()),
        Some(open.to_string()),
    ];
    let lines = SCRUB_METRICS
        .iter()
        .zip(values)
        .filter_map(|((name, _), value)| Some((*name, vec![(format!("{name}{labels}"), value?)])));
    render(&SCRUB_METRICS, &lines.collect())
}

/// Writes the metrics of these runs, with what lasts of those that are in the file.
pub(crate) fn write(
    path: &Path,
    runs: &[Run<'_>],
    incidents: &Incidents,
    now_ms: u64,
) -> anyhow::Result<()> {
    let before = before(path)?;
    let incidents = incidents.all()?;
    let open = |target: &str| incidents.iter().filter(|(_, one)| one.is_open_of(target)).count();
    replace(path, &text(&before, runs, &open, now_ms))
}

/// Puts a whole file in the place of another.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    // Whoever collects it is another user.
    files::replace(path, text.as_bytes(), 0o644).with_context(|| path.display().to_string())
}

fn text(before: &str, runs: &[Run<'_>], open: &dyn Fn(&str) -> usize, now_ms: u64) -> String {
    let lasting: HashMap<&str, &str> = before
        .lines()
        .filter(|line| LASTING.iter().any(|name| line.starts_with(&format!("{name}{{"))))
        .filter_map(|line| line.rsplit_once(' '))
        .collect();
    let mut lines: HashMap<&str, Vec<(String, String)>> = HashMap::new();
    let now = (now_ms / 1000).to_string();
    for (source, target, exit, done) in runs {
        let (source, target) = (source.to_string(), target.to_string());
        let labels = format!("source=\"{}\",target=\"{}\"", escaped(&source), escaped(&target));
        let mut say = |name: &'static str, more: &str, value: String| {
            lines.entry(name).or_default().push((format!("{name}{{{labels}{more}}}"), value));
        };
        say(LAST_RUN, "", now.clone());
        say("driftline_exit_code", "", exit.to_string());
        say(INCIDENTS_OPEN, "", open(&target).to_string());
        let audit = done.and_then(|done| done.summary.audit_report.as_ref()?.audit.as_ref());
        let began = done.map(|done| now_ms.saturating_sub(done.took.as_millis() as u64) / 1000);
        let compared = done.is_some_and(|done| {
            let mut plans = done.summary.increments.iter().map(|(plan, _)| plan.kind);
            plans.any(|kind| matches!(kind, PlanKind::Full | PlanKind::Scan))
        });
        let fresh = [
            done.map(|_| now.clone()),
            began.map(|began| began.to_string()),
            began.filter(|_| compared).map(|began| began.to_string()),
            audit.map(|audit| (now_ms.saturating_sub(audit.oldest_ms) / 1000).to_string()),
        ];
        for (name, fresh) in LASTING.into_iter().zip(fresh) {
            let kept =
                || lasting.get(&*format!("{name}{{{labels}}}")).map(|kept| (*kept).to_owned());
            if let Some(value) = fresh.or_else(kept) {
                say(name, "", value);
            }
        }
        let Some(done) = done else { continue };
        say("driftline_run_seconds", "", done.took.as_secs_f64().to_string());
        let moved = &done.moved;
        let zeroed = done.summary.zeroed().map(|zeroed| ("zeroed", zeroed));
        for (kind, bytes) in zeroed.into_iter().chain([
            ("read", moved.read),
            ("changed", changed(done)),
            ("lacking", moved.data),
            ("sent", moved.sent),
            ("received", moved.received),
        ]) {
            say("driftline_bytes", &format!(",kind=\"{kind}\""), bytes.to_string());
        }
        let (reason, degraded) = done.degraded.map_or(("", 0), |reason| (reason.as_str(), 1));
        say("driftline_degraded", &format!(",reason=\"{reason}\""), degraded.to_string());
        if let Some(audit) = audit {
            say("driftline_audit_stale_bound_chunks", "", audit.stale_bound.to_string());
        }
    }
    render(&METRICS, &lines)
}

fn render(metrics: &[(&str, &str)], lines: &HashMap<&str, Vec<(String, String)>>) -> String {
    let mut text = String::new();
    for (name, help) in metrics {
        let Some(lines) = lines.get(name) else { continue };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (key, value) in lines {
            let _ = writeln!(text, "{key} {value}");
        }
    }
    text
}

/// A value of a label.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use driftline_extent::Reason;
    use driftline_transport::{Snapshot, Summary};

    use super::*;

    #[test]
    fn a_failure_leaves_what_was_true_before() {
        let source: Place = "file:/srv/vm \"1\"".parse().unwrap();
        let target: Place = "vm@host:1".parse().unwrap();
        let done = Done {
            summary: Summary::default(),
            moved: Snapshot { sent: 7, ..Snapshot::default() },
            took: Duration::from_secs(30),
            degraded: Some(Reason::SlotCleared),
            cross_checks: Vec::new(),
        };
        let open = |_: &str| 2;
        let first = text("", &[(&source, &target, 8, Some(&done))], &open, 1_000_000);
        let labels = "source=\"file:/srv/vm \\\"1\\\"\",target=\"vm@host:1\"";
        for line in [
            format!("driftline_last_success_timestamp_seconds{{{labels}}} 1000"),
            format!("driftline_generation_timestamp_seconds{{{labels}}} 970"),
            format!("driftline_degraded{{{labels},reason=\"slot-cleared\"}} 1"),
            format!("driftline_bytes{{{labels},kind=\"sent\"}} 7"),
            format!("driftline_incidents_open{{{labels}}} 2"),
            "# TYPE driftline_exit_code gauge".to_owned(),
        ] {
            assert!(first.lines().any(|found| found == line), "{line} is not in\n{first}");
        }
        let second = text(&first, &[(&source, &target, 5, None)], &open, 2_000_000);
        for line in [
            format!("driftline_last_run_timestamp_seconds{{{labels}}} 2000"),
            format!("driftline_last_success_timestamp_seconds{{{labels}}} 1000"),
            format!("driftline_generation_timestamp_seconds{{{labels}}} 970"),
            format!("driftline_exit_code{{{labels}}} 5"),
        ] {
            assert!(second.lines().any(|found| found == line), "{line} is not in\n{second}");
        }
        assert!(!second.contains("driftline_bytes"), "{second}");
    }

    #[test]
    fn a_scrub_that_fails_leaves_when_one_was_clean() {
        let failed = Scrubbed { target: "file:a", exit: 6, report: None, clean_ms: None };
        let first = scrub_text("", &Scrubbed { exit: 0, clean_ms: Some(9000), ..failed }, 0, 9999);
        let second = scrub_text(&first, &failed, 1, 20_000);
        let labels = "{source=\"scrub\",target=\"file:a\"}";
        for (text, name, value) in [
            (&first, SCRUB_CLEAN, 9),
            (&first, "driftline_scrub_exit_code", 0),
            (&second, SCRUB_CLEAN, 9),
            (&second, "driftline_scrub_last_run_timestamp_seconds", 20),
            (&second, "driftline_scrub_exit_code", 6),
            (&second, INCIDENTS_OPEN, 1),
        ] {
            let line = format!("{name}{labels} {value}");
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!second.contains("_chunks"), "{second}");
    }

    #[test]
    fn every_metric_is_documented() {
        let page = include_str!("../INTERFACES.md");
        for (name, _) in METRICS.iter().chain(&SCRUB_METRICS) {
            assert!(page.contains(&format!("`{name}")), "INTERFACES.md lacks {name}");
        }
    }
}
