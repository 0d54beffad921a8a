//! `driftline map` and `verify`: they look and change nothing.

use std::{
    io::{self, BufWriter, Write, stdout},
    path::Path,
};

use anyhow::{Context, bail};
use driftline_chunking::ChunkKey;
use driftline_extent::{Reason, Target, TargetState};
use driftline_transport::{Failure, scan::root_of};
use serde_json::json;

use crate::{
    args,
    exit::{classify, code, misused},
    foreign,
    place::Place,
    plain::PlainVolume,
    print::{complain, say},
    report, source,
    stop::hold,
    target::{TargetPlace, TargetTerms},
    terms::Terms,
    trust::Trust,
};

/// Prints the change maps of a source.
pub(crate) fn map(arguments: &args::Map, trust_dir: &Path, json: bool) -> anyhow::Result<()> {
    let place: Place = arguments.source.parse()?;
    foreign::linstor_only(&arguments.linstor, &place)?;
    let mut out = BufWriter::new(stdout().lock());
    // Whoever looks clears nothing.
    let mode = Some(args::DrbdMode::Cumulative);
    let (zfs, drbd) = (&args::Zfs::default(), &args::Drbd { mode, ..args::Drbd::default() });
    let linstor = &arguments.linstor;
    let trust = Trust { dir: trust_dir, audit: &args::Audit::default(), target: "" };
    let (overwrite, to, to_one, group) = (true, "", false, None);
    let terms = Terms { overwrite, zfs, drbd, linstor, to, to_one, group, trust };
    let _held = source::leaves_something(&place).then(hold);
    let mut source = source::open(&place, terms)?;
    let mut printed = Ok(());
    let told = source.maps(&mut |map| {
        printed = match json {
            true => report::write_map_json(&map, &mut out),
            false => report::write_map(&map, &mut out),
        };
        match &printed {
            Ok(()) => Ok(()),
            Err(_) => bail!("the map cannot be printed"),
        }
    });
    match printed.map_err(anyhow::Error::from).and_then(|()| Ok(out.flush()?)) {
        // Whoever reads it has seen enough.
        Err(error) if is_broken_pipe(&error) => return Ok(()),
        printed => printed.context("the map cannot be printed")?,
    }
    told
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().map(io::Error::kind) == Some(io::ErrorKind::BrokenPipe)
    };
    error.chain().any(cause)
}

/// Reads a replica again, and prints what was found. Returns the exit code.
pub(crate) fn verify(arguments: &args::Verify, trust_dir: &Path, json: bool) -> anyhow::Result<u8> {
    let place = TargetPlace::of(&arguments.target.parse()?)?;
    let mut replica =
        place.open_to_verify(&TargetTerms::looking(&place, &arguments.state, trust_dir)?)?;
    let report = replica.verify(&mut |_| {})?;
    let against = arguments.against.as_deref().map(local).transpose()?;
    let found = match against {
        _ if !report.is_clean() => Some(Failure::new(
            Reason::TargetModified,
            format!(
                "{} is not what was committed to it: push with --full to mend it from its source, \
                 or restore it from elsewhere",
                arguments.target
            ),
        )),
        Some(source) => compare(&source, &replica.state(), trust_dir)?,
        None => None,
    };
    let mut told = report::verify_json(&report);
    let Some(failure) = found else {
        say(if json { told.to_string() } else { report::verify(&report) });
        return Ok(code::DONE);
    };
    let failure = anyhow::Error::from(failure);
    told["error"] = report::error_json(&failure)["error"].take();
    if report.is_clean() {
        told["result"] = json!("different");
    }
    say(if json { told.to_string() } else { report::verify(&report) });
    let (reason, exit) = classify(&failure);
    complain(format_args!("driftline: {reason}: {failure:#}"));
    Ok(exit)
}

/// Agrees that the next increment of a replica may lose most of its data.
pub(crate) fn allow_loss(
    arguments: &args::AllowLoss,
    trust_dir: &Path,
    json: bool,
) -> anyhow::Result<()> {
    let place = TargetPlace::of(&arguments.target.parse()?)?;
    place.agree_to_loss(&TargetTerms::looking(&place, &arguments.state, trust_dir)?)?;
    match json {
        true => say(json!({ "result": "agreed", "target": arguments.target })),
        false => say(format_args!("the next increment of {place} may lose any of its data")),
    }
    Ok(())
}

/// Compares all of a plain volume with what a replica holds, by root.
fn compare(
    source: &Path,
    state: &TargetState,
    trust_dir: &Path,
) -> anyhow::Result<Option<Failure>> {
    let plain = PlainVolume::open(source, false, trust_dir)?;
    let root = root_of(plain.volume().as_ref(), &ChunkKey::new(&state.chunk_key));
    if Some(root.map_err(|error| plain.io(error))?) == state.root {
        return Ok(None);
    }
    let detail = format!("{} and the replica differ", source.display());
    Ok(Some(Failure::new(Reason::VerifyFailed, detail)))
}

fn local(text: &str) -> anyhow::Result<std::path::PathBuf> {
    match text.parse()? {
        Place::File(path) => Ok(path),
        other => misused!("{other} is not local: write file:PATH"),
    }
}
