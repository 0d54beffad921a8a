//! What is printed when something is done: text for people, one JSON object for machines.
//! The JSON keys are an interface.

use std::{
    io::{self, Write},
    time::Duration,
};

use driftline_drbd::CrossChecked;
use driftline_extent::{
    Accepts, CHUNK_LEN, Committed, Extent, ExtentSet, Generation, Plan, PlanKind, Point, Reason,
    Root, Standing, TargetState,
};
use driftline_target::{ScrubReport, VerifyReport};
use driftline_transport::Summary;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::{
    done::{Done, Outcome, Restored},
    exit::classify,
    place::Place,
    print::bytes,
    told::Told,
};

const fn kind(kind: PlanKind) -> &'static str {
    match kind {
        PlanKind::UpToDate => "up-to-date",
        PlanKind::Incremental => "incremental",
        PlanKind::Full => "full",
        PlanKind::Scan => "scan",
        PlanKind::Stream => "stream",
    }
}

/// Why the map of an increment was not believed, in parentheses. That a plain file has none is
/// nothing to point at.
fn doubt(standing: &Standing) -> String {
    let reason = standing.reason().filter(|reason| *reason != Reason::MapMissing);
    reason.map_or_else(String::new, |reason| format!(" ({reason})"))
}

/// A replication, done.
pub(crate) fn done(done: &Done) -> String {
    let moved = &done.moved;
    let audit = audit(&done.summary).map(|audit| audit + "\n").unwrap_or_default();
    let degraded = done
        .degraded
        .map(|reason| format!("degraded: {reason}: see REASONS.md, and `driftline incidents`\n"));
    increments(done)
        + &audit
        + &degraded.unwrap_or_default()
        + &zeroed(&done.summary)
        + &format!(
            "{} changed, {} lacking, {} sent, {} received, {:.2} s",
            bytes(changed(done)),
            bytes(moved.data),
            bytes(moved.sent),
            bytes(moved.received),
            done.took.as_secs_f64()
        )
}

/// What became zero or was cut off, if anything did.
fn zeroed(summary: &Summary) -> String {
    let zeroed = summary.zeroed().filter(|zeroed| *zeroed > 0);
    zeroed.map_or_else(String::new, |zeroed| {
        format!("{} of the data became zero or were cut off\n", bytes(zeroed))
    })
}

/// All that changed: data that is new, and data that is gone as far as this side knows.
pub(crate) fn changed(done: &Done) -> u64 {
    done.moved.announced + done.summary.zeroed().unwrap_or(0)
}

/// What was read again of the space that a map calls unchanged, and what that could have missed.
pub(crate) fn audit(summary: &Summary) -> Option<String> {
    let audit = summary.audit_report.as_ref()?.audit.as_ref()?;
    let found = match audit.stale {
        0 => "all as recorded".to_owned(),
        stale => format!("{} not as recorded", counted(stale, "chunk")),
    };
    let missed = match audit.stale_bound {
        0 => "The sample missed nothing".to_owned(),
        _ if audit.sampled == 0 => "Without a sample, only the pass finds stale chunks".to_owned(),
        bound => format!(
            "With 99 % confidence the sample missed fewer than {} ({})",
            counted(bound, "stale chunk"),
            bytes(bound.saturating_mul(CHUNK_LEN))
        ),
    };
    let of_changes = match audit.changed / 100 {
        0 => String::new(),
        _ => format!(
            "; it finds a map that lacks 1 % of these changes with a chance of {:.1} %",
            audit.find_chance * 100.0
        ),
    };
    Some(format!(
        "audit: read {} again, a sample of {} of {} chunks (seed {}) and the next {} of the rolling \
         pass: {found}. {missed}{of_changes}. Oldest check: {} ago (limit {}). Stale data is found \
         after {} on average",
        bytes(audit.bytes_read),
        audit.sampled,
        audit.chunks,
        Root(audit.seed),
        audit.rolled,
        days(audit.oldest_ms),
        days(audit.age_ms),
        // Half of a pass, which takes half of the limit.
        days(audit.age_ms / 4),
    ))
}

/// A number of things, in words that agree with it.
fn counted(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

fn days(ms: u64) -> String {
    format!("{:.1} days", ms as f64 / 86_400_000.0)
}

fn audit_json(summary: &Summary) -> Value {
    let audit = summary.audit_report.as_ref().and_then(|audit_report| audit_report.audit.as_ref());
    let Some(audit) = audit else { return Value::Null };
    json!({
        "chunks": audit.chunks,
        "changed": audit.changed,
        "sampled": audit.sampled,
        "rolled": audit.rolled,
        "bytes_read": audit.bytes_read,
        "seed": Root(audit.seed).to_string(),
        "stale": audit.stale,
        "stale_bound": audit.stale_bound,
        "find_chance": audit.find_chance,
        "oldest_seconds": audit.oldest_ms / 1000,
        "limit_seconds": audit.age_ms / 1000,
    })
}

/// What was committed, a line for each.
fn increments(done: &Done) -> String {
    let Done { summary, .. } = done;
    if summary.increments.is_empty() {
        let before = summary.before.as_ref().and_then(|state| state.generation);
        return match before {
            Some(generation) => format!("up to date: {generation}\n"),
            None => "nothing to replicate\n".to_owned(),
        };
    }
    let line = |(plan, committed): &(Plan, Committed)| {
        format!(
            "{}{}: {} at {}, root {}{}\n",
            kind(plan.kind),
            doubt(&plan.standing),
            committed.generation,
            bytes(committed.size),
            committed.root,
            cross_check(done, committed).map_or_else(String::new, cross_checked)
        )
    };
    summary.increments.iter().map(line).collect()
}

/// What was found where the map of an increment was held against another.
fn cross_check<'a>(done: &'a Done, committed: &Committed) -> Option<&'a CrossChecked> {
    done.cross_checks.iter().find(|check| check.tip == committed.generation)
}

fn cross_checked(check: &CrossChecked) -> String {
    let CrossChecked { pool_bytes, map_bytes, missed, .. } = check;
    let found = match missed.byte_count() {
        0 => "nothing missed".to_owned(),
        missed => format!("{} MISSED by DRBD", bytes(missed)),
    };
    let (pool, map) = (bytes(*pool_bytes), bytes(*map_bytes));
    format!(", cross-check: {pool} by the pool, {map} by DRBD, {found}")
}

fn cross_check_json(check: &CrossChecked) -> Value {
    let CrossChecked { pool_bytes, map_bytes, missed, .. } = check;
    let missed_bytes = missed.byte_count();
    json!({ "pool_bytes": pool_bytes, "map_bytes": map_bytes, "missed_bytes": missed_bytes })
}

/// A replication, done.
pub(crate) fn done_json(done: &Done) -> Value {
    let Done { summary, moved, .. } = done;
    let increments: Vec<Value> = summary
        .increments
        .iter()
        .map(|(plan, committed)| {
            json!({
                "kind": kind(plan.kind),
                "base": plan.base.map(|base| base.to_string()),
                "tip": committed.generation.to_string(),
                "size": committed.size,
                "root": committed.root.to_string(),
                "standing": plan.standing.as_str(),
                "reason": plan.standing.reason().map(|reason| reason.as_str()),
                "cross_check": cross_check(done, committed).map(cross_check_json),
            })
        })
        .collect();
    json!({
        "result": if increments.is_empty() { "up-to-date" } else { "committed" },
        "degraded": done.degraded.map(Reason::as_str),
        "increments": increments,
        "audit": audit_json(summary),
        "bytes": {
            "read": moved.read,
            "changed": changed(done),
            "zeroed": summary.zeroed(),
            "lacking": moved.data,
            "sent": moved.sent,
            "received": moved.received,
        },
        "seconds": done.took.as_secs_f64(),
    })
}

/// A restore, done.
pub(crate) fn restored(restored: &Restored, to: &Place) -> String {
    let Restored { size, written, done, .. } = restored;
    let of = restored.of.map_or_else(String::new, |generation| format!(" {generation}"));
    format!(
        "restored{of} to {to}: {} of {} differed and were written, all of it is read back, {:.2} s",
        bytes(*written),
        bytes(*size),
        done.took.as_secs_f64()
    )
}

/// A restore, done.
pub(crate) fn restored_json(restored: &Restored, to: &Place) -> Value {
    let Restored { of, size, written, verified, done } = restored;
    json!({
        "result": "restored",
        "to": to.to_string(),
        "generation": of.map(|generation| generation.to_string()),
        "size": size,
        "verified": verified,
        "bytes": {
            "read": done.moved.read,
            "written": written,
            "sent": done.moved.sent,
            "received": done.moved.received,
        },
        "seconds": done.took.as_secs_f64(),
    })
}

/// One member of a tree, done.
pub(crate) fn member(source: &Place, done: &Done) -> String {
    let mut told = increments(done);
    told += &audit(&done.summary).unwrap_or_default();
    if let Some(reason) = done.degraded {
        told += &format!("\ndegraded: {reason}");
    }
    format!("{source}: {}", told.trim_end().replace('\n', "\n  "))
}

/// A tree, done: how many of its members.
pub(crate) fn tree(outcomes: &[Outcome], took: Duration) -> String {
    let done = || outcomes.iter().filter_map(|(_, result)| result.as_ref().ok());
    let committed = done().filter(|done| !done.summary.increments.is_empty()).count();
    format!(
        "{}: {committed} committed, {} up to date, {} failed; {} sent, {:.2} s",
        counted(outcomes.len() as u64, "data set"),
        done().count() - committed,
        outcomes.len() - done().count(),
        bytes(done().map(|done| done.moved.sent).sum()),
        took.as_secs_f64()
    )
}

/// A tree, done.
pub(crate) fn tree_json(outcomes: &[Outcome], took: Duration) -> Value {
    let volumes: Vec<Value> = outcomes
        .iter()
        .map(|(member, result)| {
            let mut volume = match result {
                Ok(done) => done_json(done),
                Err(error) => error_json(error),
            };
            volume["source"] = json!(member.source().to_string());
            volume["target"] = json!(member.target.to_string());
            volume
        })
        .collect();
    let is = |result: &str| volumes.iter().any(|volume| volume["result"] == result);
    let result = ["failed", "committed"].into_iter().find(|result| is(result));
    json!({
        "result": result.unwrap_or("up-to-date"),
        "volumes": volumes,
        "seconds": took.as_secs_f64(),
    })
}

/// A failure.
pub(crate) fn error_json(error: &anyhow::Error) -> Value {
    failed_json(classify(error).0, &format!("{error:#}"))
}

/// A failure of this name.
pub(crate) fn failed_json(reason: &str, detail: &str) -> Value {
    json!({ "result": "failed", "error": { "reason": reason, "detail": detail } })
}

/// A change map, one extent after the other: it may have a million of them.
pub(crate) fn write_map_json(told: &Told, out: &mut impl Write) -> io::Result<()> {
    let map = &told.map;
    let written = MapJson {
        size: map.size,
        granularity: map.granularity,
        base: map.base.map(|base| base.to_string()),
        tip: map.tip.map(|tip| tip.to_string()),
        standing: map.standing.as_str(),
        reason: map.standing.reason().map(Reason::as_str),
        bitmap_bytes: told.drbd.map(|drbd| drbd.0),
        activity_log_bytes: told.drbd.map(|drbd| drbd.1),
        changed: ExtentsJson(&map.changed),
        zero: ExtentsJson(&map.zero),
    };
    serde_json::to_writer(&mut *out, &written)?;
    writeln!(out)
}

#[derive(Serialize)]
struct MapJson<'a> {
    size: Option<u64>,
    granularity: u64,
    base: Option<String>,
    tip: Option<String>,
    standing: &'static str,
    reason: Option<&'static str>,
    /// Only of DRBD: of the changed bytes those that the bitmap names, and those that nothing
    /// but the activity log names.
    #[serde(skip_serializing_if = "Option::is_none")]
    bitmap_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activity_log_bytes: Option<u64>,
    changed: ExtentsJson<'a>,
    zero: ExtentsJson<'a>,
}

struct ExtentsJson<'a>(&'a ExtentSet);

#[derive(Serialize)]
struct ExtentJson {
    offset: u64,
    length: u64,
}

impl From<Extent> for ExtentJson {
    fn from(extent: Extent) -> Self {
        Self { offset: extent.offset(), length: extent.len() }
    }
}

impl Serialize for ExtentsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ExtentJson::from))
    }
}

/// A change map.
pub(crate) fn write_map(told: &Told, out: &mut impl Write) -> io::Result<()> {
    let map = &told.map;
    let named = |generation: Option<Generation>, none: &str| {
        generation.map_or_else(|| none.to_owned(), |generation| generation.to_string())
    };
    writeln!(
        out,
        "{} to {}, {}, {}{}: {} changed in {} extents, granularity {}",
        named(map.base, "nothing"),
        named(map.tip, "an unnamed generation"),
        map.size.map_or_else(|| "of unchanged size".to_owned(), bytes),
        map.standing.as_str(),
        map.standing.reason().map(|reason| format!(" ({reason})")).unwrap_or_default(),
        bytes(map.changed.byte_count()),
        map.changed.extent_count(),
        map.granularity,
    )?;
    if let Some((bitmap, activity_log)) = told.drbd {
        let (bitmap, activity_log) = (bytes(bitmap), bytes(activity_log));
        writeln!(out, "{bitmap} by the bitmap, {activity_log} by the activity log alone")?;
    }
    for (what, set) in [("changed", &map.changed), ("zero", &map.zero)] {
        for extent in set {
            writeln!(out, "{what} {} {}", extent.offset(), extent.len())?;
        }
    }
    Ok(())
}

/// What a remote replica says of itself.
pub(crate) fn state_json(state: &TargetState) -> Value {
    json!({
        "replica": state.replica.to_string(),
        "generation": state.generation.map(|generation| generation.to_string()),
        "root": state.root.map(|root| root.to_string()),
        "size": state.size,
        "incomplete": state.incomplete,
        "damaged": state.damaged,
        "resume": state.resume.as_ref().map(|resume| json!({
            "base": resume.base.map(|base| base.to_string()),
            "tip": resume.tip.map(|tip| tip.to_string()),
            "from": resume.from * driftline_extent::CHUNK_LEN,
        })),
        "stream": match &state.accepts {
            Accepts::Volume => Value::Null,
            Accepts::Stream { token, points } => json!({
                "snapshot": points.first().map(|point| &point.name),
                "resume_token": token,
            }),
        },
    })
}

/// What a replica says of itself.
pub(crate) fn state(state: &TargetState) -> String {
    if let Accepts::Stream { token, points } = &state.accepts {
        return stream_state(state.generation, token.as_deref(), points);
    }
    let mut text = match state.generation {
        Some(generation) => format!("generation {generation}\nsize       {}", bytes(state.size)),
        None if *state == TargetState::nothing() => {
            return "generation none: nothing was ever pushed here".to_owned();
        }
        None => "generation none yet".to_owned(),
    };
    if let Some(root) = state.root {
        text += &format!("\nroot       {root}");
    }
    text += &format!("\nreplica    {}", state.replica);
    if let Some(resume) = &state.resume {
        let from = bytes(resume.from * driftline_extent::CHUNK_LEN);
        text += &format!("\nresume     an increment was cut off after {from}: push again to go on");
    }
    text
}

/// What a data set that receives streams says of itself.
fn stream_state(generation: Option<Generation>, token: Option<&str>, points: &[Point]) -> String {
    let mut text = match generation {
        Some(generation) => format!("generation {generation}"),
        None => "generation none: nothing was ever received here".to_owned(),
    };
    if let Some(newest) = points.first() {
        text += &format!("\nsnapshot   {}", newest.name);
    }
    if token.is_some() {
        text += "\nresume     a stream was cut off: push again to go on";
    }
    text
}

/// A verification.
pub(crate) fn verify_json(report: &VerifyReport) -> Value {
    json!({
        "result": if report.is_clean() { "clean" } else { "damaged" },
        "generation": report.generation.to_string(),
        "size": report.size,
        "size_found": report.size_found,
        "root_matches": report.root_matches,
        "damaged_chunks": report.damaged_chunks,
        "damaged": ExtentsJson(&report.damaged),
    })
}

/// A verification.
pub(crate) fn verify(report: &VerifyReport) -> String {
    if report.is_clean() {
        return format!("clean: {} at {}", report.generation, bytes(report.size));
    }
    let mut text = format!("not what was committed as {}:", report.generation);
    if !report.size_matches {
        text += &format!("\nsize {} where {} was committed", report.size_found, report.size);
    }
    if !report.root_matches {
        text += "\nthe list of chunk ids does not lead to the committed root";
    }
    for extent in &report.damaged {
        text += &format!("\ndamaged {} {}", extent.offset(), extent.len());
    }
    text + &format!("\n{}", counted(report.damaged_chunks, "damaged chunk"))
}

/// A scrub.
pub(crate) fn scrub_json(report: &ScrubReport, incident: Option<&str>) -> Value {
    let mut told = verify_json(&report.found);
    if !report.is_clean() && report.is_whole() {
        told["result"] = json!("repaired");
    }
    told["only_list"] = json!(report.only_list);
    told["list_repaired"] = json!(report.list_repaired);
    told["size_repaired"] = json!(report.size_repaired);
    told["repaired_chunks"] = json!(report.repaired);
    told["awaited_chunks"] = json!(report.awaited);
    told["left_chunks"] = json!(report.left());
    told["incident"] = json!(incident);
    told
}

/// A scrub.
pub(crate) fn scrub(report: &ScrubReport) -> String {
    let mut text = verify(&report.found);
    if report.only_list {
        text += "\nonly the list of chunk ids is damaged: what stands there was committed";
    }
    if report.size_repaired {
        text += "\nrepaired: the size";
    }
    if report.list_repaired {
        text += "\nrepaired: the list of chunk ids, from what stands there";
    }
    if report.repaired > 0 {
        let count = report.repaired;
        let count = counted(count, "chunk");
        text += &format!("\nrepaired: {count}, from what this or another replica has");
    }
    if report.awaited > 0 {
        let count = report.awaited;
        let count = counted(count, "chunk");
        text += &format!("\nleft to the source: {count}, which the next push replaces");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_stands_out() {
        let [base, tip] = [1, 2].map(Generation::drbd);
        let missed = ExtentSet::new();
        let check = CrossChecked { base, tip, pool_bytes: 4096, map_bytes: 8192, missed };
        let text = ", cross-check: 4.0 KiB by the pool, 8.0 KiB by DRBD, nothing missed";
        assert_eq!(cross_checked(&check), text);
        let missed = Extent::new(0, 65536).into_iter().collect();
        let missed = CrossChecked { missed, ..check };
        assert!(cross_checked(&missed).ends_with(", 64.0 KiB MISSED by DRBD"));
        assert_eq!(cross_check_json(&missed)["missed_bytes"], 65536);
    }
}
