//! What is printed when something is done: text for people, one JSON object for machines.
//! The JSON keys are an interface.

use std::time::Duration;

use driftline_extent::{ChangeMap, ExtentSet, PlanKind, TargetState};
use driftline_target::VerifyReport;
use driftline_transport::{Snapshot, Summary};
use serde_json::{Value, json};

/// A number of bytes as people read it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let exponent = count.ilog2() / 10;
    let unit = UNITS[exponent as usize - 1];
    // Both fit in an f64 as far as one decimal shows.
    format!("{:.1} {unit}", count as f64 / (1_u64 << (10 * exponent)) as f64)
}

const fn kind(kind: PlanKind) -> &'static str {
    match kind {
        PlanKind::UpToDate => "up-to-date",
        PlanKind::Incremental => "incremental",
        PlanKind::Full => "full",
        PlanKind::Scan => "scan",
    }
}

/// A replication, done.
pub(crate) fn summary(summary: &Summary, moved: &Snapshot, took: Duration) -> String {
    let mut text = String::new();
    for (plan, committed) in &summary.increments {
        text += &format!(
            "{}: {} at {}, root {}\n",
            kind(plan.kind),
            committed.generation,
            bytes(committed.size),
            committed.root
        );
    }
    if summary.increments.is_empty() {
        let before = summary.before.as_ref().and_then(|state| state.generation);
        text += &match before {
            Some(generation) => format!("up to date: {generation}\n"),
            None => "nothing to replicate\n".to_owned(),
        };
    }
    text + &format!(
        "{} changed, {} lacking, {} sent, {} received, {:.2} s",
        bytes(moved.announced),
        bytes(moved.data),
        bytes(moved.sent),
        bytes(moved.received),
        took.as_secs_f64()
    )
}

/// A replication, done.
pub(crate) fn summary_json(summary: &Summary, moved: &Snapshot, took: Duration) -> Value {
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
            })
        })
        .collect();
    json!({
        "result": if increments.is_empty() { "up-to-date" } else { "committed" },
        "increments": increments,
        "bytes": {
            "read": moved.read,
            "changed": moved.announced,
            "lacking": moved.data,
            "sent": moved.sent,
            "received": moved.received,
        },
        "seconds": took.as_secs_f64(),
    })
}

/// A change map.
pub(crate) fn map_json(map: &ChangeMap) -> Value {
    let list = |set: &ExtentSet| -> Vec<Value> {
        set.iter().map(|e| json!({ "offset": e.offset(), "length": e.len() })).collect()
    };
    json!({
        "size": map.size,
        "granularity": map.granularity,
        "base": map.base.map(|base| base.to_string()),
        "tip": map.tip.map(|tip| tip.to_string()),
        "standing": map.standing.as_str(),
        "reason": map.standing.reason().map(|reason| reason.as_str()),
        "changed": list(&map.changed),
        "zero": list(&map.zero),
    })
}

/// A change map.
pub(crate) fn map(map: &ChangeMap) -> String {
    let name = |generation: Option<_>| match generation {
        Some(generation) => format!("{generation}"),
        None => "nothing".to_owned(),
    };
    let size = map.size.map_or_else(|| "of unchanged size".to_owned(), bytes);
    let reason = map.standing.reason().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let mut text = format!(
        "{} to {}, {size}, {}{reason}: {} changed in {} extents, granularity {}\n",
        name(map.base),
        map.tip.map_or_else(|| "an unnamed generation".to_owned(), |tip| tip.to_string()),
        map.standing.as_str(),
        bytes(map.changed.byte_count()),
        map.changed.extent_count(),
        map.granularity,
    );
    for (what, set) in [("changed", &map.changed), ("zero", &map.zero)] {
        for extent in set {
            text += &format!("{what} {} {}\n", extent.offset(), extent.len());
        }
    }
    text
}

/// What a remote replica says of itself.
pub(crate) fn state_json(state: &TargetState) -> Value {
    json!({
        "replica": state.replica.to_string(),
        "generation": state.generation.map(|generation| generation.to_string()),
        "root": state.root.map(|root| root.to_string()),
        "size": state.size,
        "incomplete": state.incomplete,
        "resume": state.resume.as_ref().map(|resume| json!({
            "base": resume.base.map(|base| base.to_string()),
            "tip": resume.tip.map(|tip| tip.to_string()),
            "from": resume.from * driftline_extent::CHUNK_LEN,
        })),
    })
}

/// What a replica says of itself.
pub(crate) fn state(state: &TargetState) -> String {
    let mut text = match state.generation {
        Some(generation) => format!("generation {generation}\nsize       {}", bytes(state.size)),
        None => "generation none yet".to_owned(),
    };
    if let Some(root) = state.root {
        text += &format!("\nroot       {root}");
    }
    text += &format!("\nreplica    {}", state.replica);
    if state.incomplete {
        text += "\nincomplete the first full copy is not complete: push again to go on";
    }
    if let Some(resume) = &state.resume {
        let from = bytes(resume.from * driftline_extent::CHUNK_LEN);
        text += &format!("\nresume     an increment was cut off after {from}: push again to go on");
    }
    text
}

/// A verification.
pub(crate) fn verify_json(report: &VerifyReport) -> Value {
    let damaged = report.damaged.iter();
    json!({
        "result": if report.is_clean() { "clean" } else { "damaged" },
        "generation": report.generation.to_string(),
        "size": report.size,
        "size_found": report.size_found,
        "root_matches": report.root_matches,
        "damaged_chunks": report.damaged_chunks,
        "damaged": damaged
            .map(|e| json!({ "offset": e.offset(), "length": e.len() }))
            .collect::<Vec<_>>(),
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
    text + &format!("\n{} damaged chunks", report.damaged_chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (24 << 20, "24.0 MiB"),
            (1 << 40, "1.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }
}
