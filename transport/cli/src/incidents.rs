//! `driftline incidents`: what was found, until a person has acknowledged it.

use std::path::Path;

use driftline_trust::{Incident, IncidentError};
use serde_json::{Value, json};

use crate::{
    args::{IncidentsAction, IncidentsCommand},
    clock::now_ms,
    print::say,
    trust::incidents,
};

/// Shows incidents, or acknowledges one.
pub(crate) fn run(command: &IncidentsCommand, dir: &Path, as_json: bool) -> anyhow::Result<()> {
    let incidents = incidents(dir);
    if let Some(IncidentsAction::Ack { id }) = &command.action {
        let seen = incidents.acknowledge(id, now_ms())?;
        if as_json {
            say(json(&seen));
        } else {
            say(format_args!("acknowledged: {}", line(&seen)));
        }
        return Ok(());
    }
    let shown = incidents.all()?.into_iter().filter(|(_, one)| command.all || one.is_open());
    let shown: Vec<(String, Incident)> = shown.collect();
    if as_json {
        say(json!({ "incidents": shown.iter().map(json).collect::<Vec<_>>() }));
        return Ok(());
    }
    if shown.is_empty() {
        say("no incident is open");
    }
    for one in &shown {
        say(line(one));
        say(format_args!("    {}", one.1.detail));
        for extent in &one.1.extents {
            say(format_args!("    at {} length {}", extent.offset(), extent.len()));
        }
    }
    Ok(())
}

/// The open incidents of a target.
pub(crate) fn open_of(dir: &Path, target: &str) -> Result<Vec<(String, Incident)>, IncidentError> {
    let all = incidents(dir).all()?.into_iter();
    Ok(all.filter(|(_, one)| one.is_open_of(target)).collect())
}

/// An incident, without where and why.
pub(crate) fn line((id, incident): &(String, Incident)) -> String {
    let Incident { reason, source, target, first_ms, last_ms, count, .. } = incident;
    let mut line = format!("{id} {reason}: {source} to {target}, {}", time(*first_ms));
    if *count > 1 {
        line += &format!(", {count} times, last {}", time(*last_ms));
    }
    if let Some((ms, tip)) = incident.mended {
        line += &format!(", mended {} by {tip}", time(ms));
    }
    if let Some(ms) = incident.acknowledged_ms {
        line += &format!(", acknowledged {}", time(ms));
    }
    line
}

/// An incident. The keys are an interface.
pub(crate) fn json((id, incident): &(String, Incident)) -> Value {
    let extents = incident.extents.iter();
    json!({
        "id": id,
        "reason": incident.reason.as_str(),
        "detail": incident.detail,
        "source": incident.source,
        "target": incident.target,
        "base": incident.base.map(|base| base.to_string()),
        "tip": incident.tip.map(|tip| tip.to_string()),
        "chunks": incident.chunks,
        "extents": extents
            .map(|extent| json!({ "offset": extent.offset(), "length": extent.len() }))
            .collect::<Vec<_>>(),
        "first": incident.first_ms / 1000,
        "last": incident.last_ms / 1000,
        "count": incident.count,
        "mended": incident.mended.map(|(ms, tip)| {
            json!({ "time": ms / 1000, "tip": tip.to_string() })
        }),
        "acknowledged": incident.acknowledged_ms.map(|ms| ms / 1000),
    })
}

/// A time in UTC.
pub(crate) fn time(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// Year, month and day of so many days since 1970, by the rule of leap years.
fn date(mut days: u64) -> (u64, u64, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    // 400 years are a whole number of days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    loop {
        let len = if is_leap(year) { 366 } else { 365 };
        if days < len {
            break;
        }
        days -= len;
        year += 1;
    }
    let mut month = 1;
    for len in [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < len {
            break;
        }
        days -= len;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (951_868_799, "2000-02-29 23:59:59Z"),
            (1_709_251_200, "2024-03-01 00:00:00Z"),
            (1_798_761_599, "2026-12-31 23:59:59Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(time(seconds * 1000), text);
        }
    }
}
