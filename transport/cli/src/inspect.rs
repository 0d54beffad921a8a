//! `driftline map`, `verify` and `status`: they look and change nothing.

use std::{
    io::{BufWriter, Write, stdout},
    path::Path,
};

use anyhow::{Context, bail};
use driftline_extent::{Reason, Target, TargetState};
use driftline_manifest::ChunkKey;
use driftline_transport::{Failure, scan::root_of};
use serde_json::json;

use crate::{
    args, incidents,
    place::Place,
    plain::PlainVolume,
    print::say,
    replication, report, source,
    target::{TargetPlace, TargetTerms},
    terms::Terms,
    trust::Trust,
};

/// Prints the change maps of a source.
pub(crate) fn map(arguments: &args::Map, json: bool) -> anyhow::Result<()> {
    let place: Place = arguments.source.parse()?;
    let mut out = BufWriter::new(stdout().lock());
    // Whoever looks clears nothing.
    let mode = Some(args::DrbdMode::Cumulative);
    let (zfs, drbd) = (&args::Zfs::default(), &args::Drbd { mode, ..args::Drbd::default() });
    let linstor = &arguments.linstor;
    let trust = Trust { dir: Path::new(""), audit: &args::Audit::default(), target: "" };
    let terms = Terms { overwrite: true, zfs, drbd, linstor, to: "", moment: None, trust };
    source::open(&place, terms)?.maps(&mut |map| {
        if json {
            report::write_map_json(&map, &mut out)?;
        } else {
            report::write_map(&map, &mut out)?;
        }
        Ok(())
    })?;
    Ok(out.flush()?)
}

/// Reads a replica again.
pub(crate) fn verify(arguments: &args::Verify, json: bool) -> anyhow::Result<()> {
    let place = TargetPlace::of(&arguments.target.parse()?)?;
    let mut replica = place.open_replica(false, &TargetTerms::looking(&arguments.state))?;
    let report = replica.verify(&mut |_| {})?;
    if json {
        say(report::verify_json(&report));
    } else {
        say(report::verify(&report));
    }
    if !report.is_clean() {
        let detail = format!(
            "{} is not what was committed to it: push with --full to mend it from its source, or \
             restore it from elsewhere",
            arguments.target
        );
        return Err(Failure::new(Reason::TargetModified, detail).into());
    }
    match &arguments.against {
        Some(source) => compare(&local(source)?, &replica.state()),
        None => Ok(()),
    }
}

/// Compares all of a plain volume with what a replica holds, by root.
fn compare(source: &Path, state: &TargetState) -> anyhow::Result<()> {
    let plain = PlainVolume::open(source, false)?.volume();
    let root = root_of(plain.as_ref(), &ChunkKey::new(&state.chunk_key));
    if Some(root.with_context(|| source.display().to_string())?) == state.root {
        return Ok(());
    }
    let detail = format!("{} and the replica differ", source.display());
    Err(Failure::new(Reason::VerifyFailed, detail).into())
}

/// Shows what a replica holds.
pub(crate) async fn status(
    arguments: &args::Status,
    trust_dir: &Path,
    json: bool,
) -> anyhow::Result<()> {
    let place: Place = arguments.target.parse()?;
    let (state, scrubbed_ms) = match &place {
        Place::Remote { volume, address } => {
            (replication::remote_state(volume, address, &arguments.peer).await?, None)
        }
        _ => {
            let (place, terms) = (TargetPlace::of(&place)?, TargetTerms::looking(&arguments.state));
            match place.inspect(&terms)? {
                Some(found) => (found.state, found.scrubbed_ms),
                None => (place.state(&terms)?, None),
            }
        }
    };
    let open = incidents::open_of(trust_dir, &arguments.target)?;
    if json {
        let mut told = report::state_json(&state);
        told["scrubbed"] = json!(scrubbed_ms.map(|ms| ms / 1000));
        told["incidents"] = open.iter().map(incidents::json).collect();
        say(told);
    } else {
        say(report::state(&state));
        if let Some(ms) = scrubbed_ms {
            say(format_args!("scrubbed   {}, and nothing was damaged", incidents::time(ms)));
        }
        open.iter()
            .for_each(|incident| say(format_args!("incident   {}", incidents::line(incident))));
    }
    Ok(())
}

fn local(text: &str) -> anyhow::Result<std::path::PathBuf> {
    match text.parse()? {
        Place::File(path) => Ok(path),
        other => bail!("{other} is not local: write file:PATH"),
    }
}
