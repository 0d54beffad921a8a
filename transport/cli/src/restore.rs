//! `driftline restore`: brings a file, a device or a volume of DRBD to what a replica holds.
//!
//! It is a session like any other, with a target that writes in place: what is sent, checked and
//! read back is so in the one way that there is.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, bail};
use driftline_drbd::host::Found;
use driftline_extent::{Generation, Reason, Scheme};
use driftline_target::{FileDisk, InPlace, Problem, is_one_volume, open_in_place};
use driftline_transport::{Failure, Progress, SourceJob, deliver::LastSeen};

use crate::{
    args, content,
    done::Restored,
    exit::misused,
    foreign,
    place::Place,
    plain::{PlainVolume, volume_id},
    print::say,
    progress::Show,
    replication::{Job, shown},
    report,
    source::{self, AnySource},
    target::{AnyTarget, AnyTargetError, TargetPlace, TargetTerms},
};

/// What is restored from, where that is on this machine.
struct Opened {
    source: SourceJob<AnySource>,
    /// The generation that the books say it is.
    of: Option<Generation>,
    verified: bool,
}

/// Runs the command and prints what it did.
pub(crate) async fn run(
    arguments: &args::Restore,
    trust_dir: &Path,
    json: bool,
    show: Show,
) -> anyhow::Result<()> {
    let (from, to): (Place, Place) = (arguments.from.parse()?, arguments.to.parse()?);
    foreign::check_state_dir(&arguments.state, &from)?;
    let restored = restore(arguments, (&from, &to), trust_dir, show).await;
    let restored = restored.with_context(|| to.to_string())?;
    let printed = match json {
        true => report::restored_json(&restored, &to).to_string(),
        false => report::restored(&restored, &to),
    };
    say(printed);
    Ok(())
}

async fn restore(
    arguments: &args::Restore,
    (from, to): (&Place, &Place),
    trust_dir: &Path,
    show: Show,
) -> anyhow::Result<Restored> {
    let job = Arc::new(Job::plain(arguments.peer.clone(), trust_dir));
    let opened = match from {
        Place::Remote { .. } => None,
        _ => {
            let remembered = Some(trust_dir.to_owned());
            let state_dir = arguments.state.state_dir.clone();
            let terms = TargetTerms { remembered, state_dir, ..TargetTerms::default() };
            let (job, from, to) = (job.clone(), from.clone(), to.clone());
            let open = move || open_source(&job, &from, &to, &terms);
            Some(tokio::task::spawn_blocking(open).await??)
        }
    };
    let (target, written) = {
        let (from, to, overwrite) = (from.clone(), to.clone(), arguments.overwrite);
        let trust_dir = trust_dir.to_owned();
        let open = move || open_target(&from, &to, &trust_dir, overwrite);
        tokio::task::spawn_blocking(open).await??
    };
    let progress = Arc::new(Progress::default());
    let (of, verified) = opened.as_ref().map_or((None, false), |o| (o.of, o.verified));
    let work = async {
        match (from, opened) {
            (_, Some(Opened { source, .. })) => job.local(source, target, progress.clone()).await,
            (Place::Remote { volume, address }, None) => {
                job.pull(volume, address, target, progress.clone()).await
            }
            (_, None) => bail!("{from} was not opened; this is a defect in Driftline"),
        }
    };
    let done = shown(progress.clone(), show, work).await?;
    let [(_, committed)] = done.summary.increments.as_slice() else {
        bail!("{from} has nothing to restore");
    };
    let size = committed.size;
    // The name of content is only told from other names of this very restore.
    let named = Some(committed.generation).filter(|of| of.scheme() != Scheme::CONTENT);
    Ok(Restored {
        of: of.or(named),
        size,
        written: written.load(Ordering::Relaxed),
        verified,
        done,
    })
}

fn open_source(job: &Job, from: &Place, to: &Place, terms: &TargetTerms) -> anyhow::Result<Opened> {
    if let Place::Drbd { .. } = from {
        // What is remembered of targets is of those that are replicas.
        let source =
            SourceJob { auditor: None, arrived: LastSeen::Nothing, ..job.source(from, to)? };
        // Nothing starts from it, so that the name that it has in common with others is told.
        let of = source.source.generation();
        return Ok(Opened { source, of, verified: false });
    }
    let place = match from {
        Place::File(_) | Place::Zvol(_) => TargetPlace::of(from)?,
        _ => misused!(
            "{from} is nothing to restore from: write file:PATH, zvol:POOL/NAME, drbdmeta:PATH or \
             NAME@HOST:PORT, or push it"
        ),
    };
    let content = match (from, &terms.state_dir, &terms.remembered) {
        (Place::File(path), None, Some(remembered)) => content::open(path, remembered)?,
        _ if place.inspect(terms)?.is_some() => content::of_replica(place.open_verified(terms)?),
        _ => {
            let detail = format!("{from} is no replica, or its books are elsewhere (--state-dir)");
            return Err(Failure::new(Reason::TargetForeign, detail).into());
        }
    };
    // An increment that had been received whole is in place only since it was opened.
    let of = content.replica.and_then(|state| state.generation);
    if of.is_none() {
        tracing::warn!(%from, "this image has no books, so nothing proves its content");
    } else if place.inspect(terms)?.is_some_and(|found| found.state.resume.is_some()) {
        tracing::warn!(%from, "an increment that was cut off is not part of it");
    }
    let volume = PlainVolume::of(from.to_string(), id(from), content.disk, false);
    let source = source::job_of(AnySource::Plain(volume), false, None);
    Ok(Opened { source, of, verified: of.is_some() })
}

fn id(from: &Place) -> driftline_extent::VolumeId {
    volume_id("driftline volume id v1 restore", from.to_string().as_bytes())
}

fn open_target(
    from: &Place,
    to: &Place,
    trust_dir: &Path,
    overwrite: bool,
) -> anyhow::Result<(AnyTarget, Arc<AtomicU64>)> {
    let path = match to {
        Place::File(path) => path.clone(),
        Place::DrbdVolume { resource, volume } => drbd_device(resource, *volume)?,
        _ => misused!("{to} is nothing to restore to: write file:PATH or drbd:RESOURCE/VOLUME"),
    };
    if from.bytes().is_some_and(|from| is_one_volume(&from, &path)) {
        let detail = format!("{from} and {to} are the same");
        return Err(Failure::new(Reason::Unsupported, detail).into());
    }
    // A replica on a device is found by what is remembered of it.
    if let Ok(Some((_, state_dir))) = content::replica_at(&path, trust_dir) {
        let problem = Problem::IsReplica { state_dir };
        return Err(AnyTargetError::from(problem.of(&path.display().to_string())).into());
    }
    let target: InPlace<FileDisk> =
        open_in_place(&path, overwrite).map_err(AnyTargetError::from)?;
    let written = target.written();
    Ok((AnyTarget::InPlace(Box::new(target)), written))
}

/// The DRBD device of a volume, if it may be written here.
fn drbd_device(resource: &str, volume: u32) -> anyhow::Result<PathBuf> {
    let found = Found::look(resource, volume)?;
    check_drbd(&found)?;
    Ok(found.device().into())
}

/// That a volume of DRBD may be written here, through its device and never below.
fn check_drbd(found: &Found) -> Result<(), Failure> {
    let (name, resource) = (found.name(), &found.resource);
    let refused = |reason, detail| Err(Failure::new(reason, detail));
    if found.role != "Primary" {
        let detail = format!(
            "{name} is {} here, and only a Primary can be written: `drbdadm primary {resource}`, \
             once nothing uses it elsewhere",
            found.role
        );
        return refused(Reason::Unsupported, detail);
    }
    if found.disk != "UpToDate" {
        let detail = format!(
            "the disk of {name} is {}, and not UpToDate: its peer would overwrite what is written; \
             see `drbdadm status {resource}`",
            found.disk
        );
        return refused(Reason::NotConsistent, detail);
    }
    if found.suspended {
        let minor = found.minor;
        let detail = format!("the I/O of {name} is suspended: `drbdsetup resume-io {minor}`");
        return refused(Reason::TargetBusy, detail);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use driftline_drbd::host::MetaDisk;

    use super::*;

    fn found() -> Found {
        Found {
            resource: "r0".into(),
            volume: 1,
            minor: 7,
            minors: vec![7],
            is_84: true,
            backing: "/dev/vg/r0".into(),
            meta: MetaDisk::Internal,
            role: "Primary".into(),
            disk: "UpToDate".into(),
            suspended: false,
            links: Vec::new(),
            peers: None,
        }
    }

    /// Each is refused by its own reason, with what to do.
    #[test]
    fn a_volume_of_drbd_is_written_only_where_that_is_right() {
        assert_eq!(check_drbd(&found()), Ok(()));
        let secondary = Found { role: "Secondary".into(), ..found() };
        let stale = Found { disk: "Inconsistent".into(), ..found() };
        let frozen = Found { suspended: true, ..found() };
        for (found, reason, says) in [
            (secondary, Reason::Unsupported, "drbdadm primary r0"),
            (stale, Reason::NotConsistent, "r0/1 is Inconsistent"),
            (frozen, Reason::TargetBusy, "drbdsetup resume-io 7"),
        ] {
            let failure = check_drbd(&found).unwrap_err();
            assert_eq!(failure.reason, reason);
            assert!(failure.detail.contains(says), "{}", failure.detail);
        }
    }
}
