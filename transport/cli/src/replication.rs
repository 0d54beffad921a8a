//! A replication: what is agreed about it, and how it is done between two places.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::Context;
use driftline_drbd::{CrossChecked, CrossChecks};
use driftline_extent::{CHUNK_LEN, Plan, PlanKind, Reason, Target as _, TargetState};
use driftline_target::is_one_volume;
use driftline_transport::{
    Connection, Failure, Progress, SOURCE_PATIENCE, SharedLimit, SourceJob, Summary,
    TransportError, answer, chain,
    deliver::{LastSeen, recognise},
    dial, receive_request, receive_state, request, serve_source, serve_target,
};
use driftline_trust::{EXTENTS_MAX, Incident};
use driftline_wire::{Peer, PublicKey, SecretKey, Verb};
use driftline_zfs::SnapshotGroup;
use tokio::{
    io::{AsyncRead, AsyncWrite, duplex},
    net::TcpStream,
};

use crate::{
    args::{
        self,
        units::{parse_level, parse_rate, parse_time},
    },
    clock::now_ms,
    done::Done,
    exit::{Usage, degraded, misused, reason},
    index, keyfile,
    metrics::{self, SCRUB},
    place::Place,
    progress::{Show, watch},
    remembered, seed,
    source::{self, AnySource},
    target::{AnyTarget, TargetPlace, TargetTerms, loss_max},
    terms::Terms,
    trust::{Trust, incidents},
};

/// Bytes in flight between the two ends of a local replication.
const LOCAL_PIPE_LEN: usize = 4 << 20;

/// The level where none is said: slower ones cost more than a fast link gains.
pub(crate) const COMPRESSION: i32 = 1;

/// Where our secret key is if nothing else is said.
const KEY: &str = "/etc/driftline/secret.key";

/// Which side dials. Both are the same for local places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Push,
    Pull,
}

/// What is agreed about a replication, whatever it is of.
#[derive(Clone)]
pub(crate) struct Job {
    direction: Direction,
    overwrite: bool,
    /// What a first copy is said to be like, at the target.
    like: Option<String>,
    compression: Option<i32>,
    limit: Option<SharedLimit>,
    /// How long the source may yield nothing.
    patience: Duration,
    target: TargetTerms,
    /// Where chunks are looked for that a local target's other replicas have.
    index: Option<PathBuf>,
    pub(crate) zfs: args::Zfs,
    drbd: args::Drbd,
    linstor: args::Linstor,
    audit: args::Audit,
    trust_dir: PathBuf,
    metrics: Option<PathBuf>,
    pub(crate) peer: args::Peer,
    /// What it has in common with others, if it is one of several.
    together: Option<Together>,
}

/// What the members of a tree have in common.
#[derive(Clone)]
pub(crate) struct Together {
    /// Where all of them go: what is kept in ZFS for that is named after it.
    pub(crate) to: String,
    /// The instant of their snapshots, if they are taken for this.
    pub(crate) group: Option<SnapshotGroup>,
}

/// That source and target are not one volume: it would become its own replica.
fn check_apart(source: &Place, target: &Place) -> Result<(), Failure> {
    let (Some(from), Some(to)) = (source.bytes(), target.bytes()) else { return Ok(()) };
    if !is_one_volume(&from, &to) {
        return Ok(());
    }
    let detail =
        format!("{source} and {target} are one volume: choose another place to copy it to");
    Err(Failure::new(Reason::Unsupported, detail))
}

impl Job {
    /// What is typed.
    pub(crate) fn of(
        arguments: &args::Replicate,
        direction: Direction,
        trust_dir: &Path,
    ) -> anyhow::Result<Self> {
        let limit = arguments.limit_rate.as_deref().map(parse_rate).transpose()?;
        let level = arguments.compress.as_deref();
        let patience = arguments.source_timeout.as_deref();
        let patience = patience.map(|text| parse_time("--source-timeout", text)).transpose()?;
        Ok(Self {
            direction,
            overwrite: arguments.full,
            like: arguments.like.clone(),
            compression: level.map_or(Ok(Some(COMPRESSION)), parse_level)?,
            limit: limit.map(SharedLimit::new),
            patience: patience.unwrap_or(SOURCE_PATIENCE),
            target: TargetTerms {
                state_dir: arguments.state.state_dir.clone(),
                // Here the one who agrees to an overwrite is the one who asks for it.
                forbid_overwrite: false,
                loss_max: loss_max(arguments.loss_max.as_deref(), "--loss-max")?,
                receive: arguments.receive.clone(),
                root: None,
                index: None,
                remembered: Some(trust_dir.to_owned()),
            },
            index: arguments.index.clone(),
            zfs: arguments.zfs.clone(),
            drbd: arguments.drbd.clone(),
            linstor: arguments.linstor.clone(),
            audit: arguments.audit.clone(),
            trust_dir: trust_dir.to_owned(),
            metrics: arguments.metrics.clone(),
            peer: arguments.peer.clone(),
            together: None,
        })
    }

    /// The same for the members of a tree, which is to be at this place.
    pub(crate) fn of_members(mut self, together: Together, root: Option<TargetPlace>) -> Self {
        self.together = Some(together);
        self.target.root = root;
        self
    }

    /// What it has in common with others.
    pub(crate) fn together(&self) -> Option<&Together> {
        self.together.as_ref()
    }

    /// Runs it, and shows how far it is.
    pub(crate) async fn run(
        &self,
        source: &Place,
        target: &Place,
        show: Show,
    ) -> anyhow::Result<Done> {
        check_apart(source, target)?;
        let progress = Arc::new(Progress::default());
        let checks = OnceLock::new();
        let work = self.replicate_again(source, target, &progress, &checks);
        let done = shown(progress.clone(), show, work).await;
        let cross_checks = checks.get().map(CrossChecks::list).unwrap_or_default();
        let finding = done.as_ref().err().and_then(|error| self.finding(source, target, error));
        let misses = cross_checks.iter().filter(|check| !check.missed.is_empty());
        let missed_by_drbd = |check: &CrossChecked| Incident {
            mended: done.is_ok().then(|| (now_ms(), check.tip)),
            ..missed(source, target, check)
        };
        for incident in misses.map(missed_by_drbd).chain(finding) {
            self.keep(&incident);
        }
        // What failed names itself; this says in which replication.
        let failed = done.as_ref().err().and_then(reason);
        let done = done.with_context(|| match (failed, self.direction) {
            (Some(reason), _) if is_of_source(reason) => source.to_string(),
            (Some(reason), _) if is_of_target(reason) => target.to_string(),
            (_, Direction::Push) => target.to_string(),
            (_, Direction::Pull) => source.to_string(),
        })?;
        self.remember(source, target, &done.summary);
        self.mend(source, target, &done.summary);
        // What the user has asked for is nothing to point at; what was found always is.
        let degraded = if self.overwrite { None } else { degraded(&done.summary) };
        let found = cross_checks.iter().any(|check| !check.missed.is_empty());
        let degraded = degraded.or_else(|| found.then_some(Reason::AuditMismatch));
        Ok(Done { degraded, cross_checks, ..done })
    }

    /// As with [`Default`] options, for whoever brings a target of its own.
    pub(crate) fn plain(peer: args::Peer, trust_dir: &Path) -> Self {
        Self {
            direction: Direction::Pull,
            overwrite: false,
            compression: Some(COMPRESSION),
            limit: None,
            patience: SOURCE_PATIENCE,
            target: TargetTerms::default(),
            index: None,
            like: None,
            zfs: args::Zfs::default(),
            drbd: args::Drbd::default(),
            linstor: args::Linstor::default(),
            audit: args::Audit::default(),
            trust_dir: trust_dir.to_owned(),
            metrics: None,
            peer,
            together: None,
        }
    }

    /// Has a peer's volume sent to `target`.
    pub(crate) async fn pull(
        &self,
        volume: &str,
        address: &str,
        target: AnyTarget,
        progress: Arc<Progress>,
    ) -> anyhow::Result<Summary> {
        let mut connection = self.dial(address, progress).await?;
        request(&mut connection, Verb::Pull, volume, None).await?;
        Ok(serve_target(connection, target).await.0?)
    }

    /// Replicates, and once more where a map turned out not to be what it should: the source
    /// remembers that, and compares all. So it is with what an earlier run has left: the target has
    /// forgotten that.
    async fn replicate_again(
        &self,
        source: &Place,
        target: &Place,
        progress: &Arc<Progress>,
        checks: &OnceLock<CrossChecks>,
    ) -> anyhow::Result<Summary> {
        let first = self.replicate(source, target, progress.clone(), checks).await;
        let Err(error) = &first else { return first };
        // There is no way back in a stream.
        let ends = matches!(source, Place::Stream(_) | Place::StandardInput);
        match reason(error) {
            Some(
                reason @ (Reason::AuditMismatch | Reason::RootMismatch | Reason::ResumeMismatch),
            ) if !ends => {
                tracing::warn!(
                    reason = reason.as_str(),
                    error = format!("{error:#}"),
                    "nothing was committed; the run starts again and compares everything"
                );
                self.replicate(source, target, progress.clone(), checks).await
            }
            _ => first,
        }
    }

    /// What an error says of a target, if that is to be kept.
    fn finding(&self, source: &Place, target: &Place, error: &anyhow::Error) -> Option<Incident> {
        let reason = reason(error)?;
        matches!(reason, Reason::TargetModified | Reason::VerifyFailed)
            .then(|| incident(source, target, reason, format!("{error:#}")))
    }

    /// Remembers what is there now, and what clones of this volume will be like there.
    fn remember(&self, source: &Place, target: &Place, summary: &Summary) {
        remembered::remember(&self.trust_dir, [source, target], &self.peer, summary);
    }

    /// What of this source the target held when it was last seen.
    fn last_seen(&self, source: &Place, target: &Place) -> LastSeen {
        remembered::last_seen(&self.trust_dir, [source, target], &self.peer)
    }

    /// What it is like at the target, if that is found where nobody said it.
    async fn found_like(&self, source: &Place, target: &Place) -> Option<String> {
        match source {
            Place::Zfs(name) if self.like.is_none() => {
                let dir = self.trust_dir.clone();
                seed::find(dir, name.clone(), target.clone(), self.peer.clone()).await
            }
            _ => None,
        }
    }

    /// Notes on incidents of damage that a copy over all of the target has ended them.
    fn mend(&self, source: &Place, target: &Place, summary: &Summary) {
        let overwrites = |plan: &Plan| match plan.kind {
            PlanKind::Full => true,
            PlanKind::Scan => self.overwrite,
            _ => false,
        };
        let copied = summary.increments.iter().rev().find(|(plan, _)| overwrites(plan));
        let Some((_, committed)) = copied else { return };
        let incidents = incidents(&self.trust_dir);
        let (tip, now, target) = (committed.generation, now_ms(), target.to_string());
        let noted = incidents
            .mend(&source.to_string(), &target, now, tip)
            .and_then(|()| incidents.mend(SCRUB, &target, now, tip));
        if let Err(error) = noted {
            tracing::warn!(error = chain(&error), "cannot mark the incident as mended");
        }
    }

    fn keep(&self, incident: &Incident) {
        if let Err(error) = incidents(&self.trust_dir).keep(incident) {
            tracing::warn!(error = chain(&error), "cannot keep the incident");
        }
    }

    /// Writes what was done where the user wants it. That it cannot be written fails no run.
    pub(crate) fn tell_metrics(&self, runs: &[metrics::Run<'_>]) {
        let Some(path) = &self.metrics else { return };
        if let Err(error) = metrics::write(path, runs, &incidents(&self.trust_dir), now_ms()) {
            tracing::warn!(file = %path.display(), "cannot write metrics: {error:#}");
        }
    }

    async fn replicate(
        &self,
        source: &Place,
        target: &Place,
        progress: Arc<Progress>,
        checks: &OnceLock<CrossChecks>,
    ) -> anyhow::Result<Summary> {
        let open = async || {
            let (job, source, target) = (self.clone(), source.clone(), target.clone());
            // On a thread of its own: it waits for the storage, and a signal is heard meanwhile.
            let open = move || job.source(&source, &target);
            let job = tokio::task::spawn_blocking(open).await??;
            checks.get_or_init(|| job.source.cross_checks());
            Ok::<_, anyhow::Error>(job)
        };
        match (source, target, self.direction) {
            (Place::Remote { .. }, Place::Remote { .. }, _) => {
                misused!("one of {source} and {target} must be local")
            }
            (_, Place::Remote { volume, address }, Direction::Push) => {
                let job = open().await?;
                let found = self.found_like(source, target).await;
                let connection = self.ask(volume, address, found.as_deref(), progress).await?;
                Ok(serve_source(connection, job).await?)
            }
            (_, Place::Remote { .. }, Direction::Pull) => {
                misused!("{target} is remote: push to it")
            }
            (Place::Remote { .. }, _, Direction::Push) => {
                misused!("{source} is remote: pull from it")
            }
            (Place::Remote { volume, address }, _, Direction::Pull) => {
                // It is about this side's target, and only where that is gone.
                let seen = self.last_seen(source, target);
                if self.overwrite && seen == LastSeen::Nothing {
                    misused!(
                        "--full applies to a pull only if its target is gone: to replace what a \
                         target holds, push to it"
                    );
                }
                if self.audit != args::Audit::default() {
                    misused!("audits of {source} are configured at the peer that serves it");
                }
                let opened = self.open(TargetPlace::of(target)?, None).await?;
                if !self.overwrite {
                    recognise(&opened.state(), seen).with_context(|| target.to_string())?;
                }
                self.pull(volume, address, opened, progress).await
            }
            _ => {
                let place = TargetPlace::of(target)?;
                let job = open().await?;
                let found = self.found_like(source, target).await;
                self.local(job, self.open(place, found).await?, progress).await
            }
        }
    }

    /// Dials and asks to push. The user did not ask for the seed that was found: where it is
    /// refused, all moves.
    async fn ask(
        &self,
        volume: &str,
        address: &str,
        found: Option<&str>,
        progress: Arc<Progress>,
    ) -> anyhow::Result<Connection<TcpStream>> {
        let mut connection = self.dial(address, progress.clone()).await?;
        let like = self.like.as_deref().or(found);
        match (request(&mut connection, Verb::Push, volume, like).await, found) {
            (Ok(()), _) => Ok(connection),
            (Err(error), Some(like)) if error.reason() == Some(Reason::Denied) => {
                tracing::info!(volume, like, "the peer refused this seed: asking again without it");
                let mut connection = self.dial(address, progress).await?;
                request(&mut connection, Verb::Push, volume, None).await?;
                Ok(connection)
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    pub(crate) fn source(
        &self,
        source: &Place,
        target: &Place,
    ) -> anyhow::Result<SourceJob<AnySource>> {
        let arrived = self.last_seen(source, target);
        let target = target.to_string();
        let to = self.together.as_ref().map_or(&target, |together| &together.to);
        let trust = Trust { dir: &self.trust_dir, audit: &self.audit, target: &target };
        let group = self.together.as_ref().and_then(|together| together.group.as_ref());
        let Self { overwrite, zfs, drbd, linstor, .. } = self;
        let (overwrite, to_one) = (*overwrite, true);
        let terms = Terms { overwrite, zfs, drbd, linstor, to, to_one, group, trust };
        let job = source::job(source, terms, self.compression)?;
        Ok(SourceJob { patience: self.patience, arrived, ..job })
    }

    /// Opens a local target, with what was said or `found` that it is like.
    async fn open(&self, place: TargetPlace, found: Option<String>) -> anyhow::Result<AnyTarget> {
        let mut terms = self.target.clone();
        let index = self.index.clone();
        let parse = |like: &str| TargetPlace::of(&like.parse()?);
        let like = self.like.as_deref().map(parse).transpose().context("--like")?;
        let found = found.as_deref().map(parse).transpose()?;
        let open = move || {
            if let Some(path) = index {
                terms.index = index::open_named(&path, &index::replica(&place, &terms))?;
            }
            let mut target = place.open(&terms)?;
            if let Some(like) = like {
                target.use_seed(&like)?;
            } else if let Some(Err(error)) = found.map(|found| target.use_seed(&found)) {
                tracing::info!("pushing without a seed: {error}");
            }
            anyhow::Ok(target)
        };
        tokio::task::spawn_blocking(open).await?
    }

    /// Runs both ends in this process, over the same protocol and with the same proofs.
    pub(crate) async fn local(
        &self,
        job: SourceJob<AnySource>,
        target: AnyTarget,
        progress: Arc<Progress>,
    ) -> anyhow::Result<Summary> {
        let (near, far) = duplex(LOCAL_PIPE_LEN);
        let (source_key, target_key) = (random_key()?, random_key()?);
        let dial = Peer::Dial(target_key.public());
        let listen = Peer::Listen(vec![source_key.public()]);
        let source_side = async {
            let (mut connection, _) = Connection::open(near, source_key, dial, progress).await?;
            self.pace(&mut connection);
            request(&mut connection, Verb::Push, "local", None).await?;
            serve_source(connection, job).await
        };
        let target_side = async {
            let uncounted = Arc::new(Progress::default());
            let (mut connection, _) = Connection::open(far, target_key, listen, uncounted).await?;
            receive_request(&mut connection).await?;
            let ready = std::future::ready(Ok::<_, Failure>(target));
            let (connection, target) = answer(connection, ready).await?;
            serve_target(connection, target).await.0
        };
        // Tasks of their own, so that sealing and opening use two cores.
        let target_side = tokio::spawn(target_side);
        let source_result = source_side.await;
        let target_result = target_side.await?;
        match (source_result, target_result) {
            (Ok(summary), Ok(_)) => Ok(summary),
            // The side that failed knows why; the other only heard of it.
            (_, Err(error @ TransportError::Local(_))) | (Err(error), _) | (Ok(_), Err(error)) => {
                Err(error.into())
            }
        }
    }

    fn pace<S: AsyncRead + AsyncWrite>(&self, connection: &mut Connection<S>) {
        if let Some(limit) = &self.limit {
            connection.limit_rate(limit.clone());
        }
    }

    async fn dial(
        &self,
        address: &str,
        progress: Arc<Progress>,
    ) -> anyhow::Result<Connection<TcpStream>> {
        let mut connection = connect(address, &self.peer, progress).await?;
        self.pace(&mut connection);
        Ok(connection)
    }
}

/// Something that was found now.
fn incident(source: &Place, target: &Place, reason: Reason, detail: String) -> Incident {
    Incident::found(reason, detail, [&source.to_string(), &target.to_string()], now_ms())
}

/// Whether a failure for this reason is the source's, whoever reports it.
const fn is_of_source(reason: Reason) -> bool {
    matches!(reason, Reason::SourceUnreadable | Reason::SourceChanged)
}

/// Whether a failure for this reason is the target's, whoever reports it.
const fn is_of_target(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::TargetGone
            | Reason::TargetModified
            | Reason::TargetForeign
            | Reason::TargetFull
            | Reason::TargetDamaged
            | Reason::SourceEmptied
            | Reason::NotEncrypted
            | Reason::KeyMismatch
    )
}

/// What a map of DRBD's did not name, and was sent nevertheless.
fn missed(source: &Place, target: &Place, check: &CrossChecked) -> Incident {
    let CrossChecked { base, tip, missed, .. } = check;
    let detail = format!(
        "DRBD's map does not name {} bytes that differ as its pool knows",
        missed.byte_count()
    );
    Incident {
        base: Some(*base),
        tip: Some(*tip),
        extents: missed.iter().take(EXTENTS_MAX).collect(),
        chunks: missed.align_out(CHUNK_LEN).byte_count() / CHUNK_LEN,
        ..incident(source, target, Reason::AuditMismatch, detail)
    }
}

/// Does it, and shows how far it is.
pub(crate) async fn shown(
    progress: Arc<Progress>,
    show: Show,
    work: impl Future<Output = anyhow::Result<Summary>>,
) -> anyhow::Result<Done> {
    let started = Instant::now();
    let summary = tokio::select! {
        summary = work => summary?,
        () = watch(progress.clone(), show) => unreachable!("progress is watched without end"),
    };
    let (moved, took) = (progress.snapshot(), started.elapsed());
    Ok(Done { summary, moved, took, degraded: None, cross_checks: Vec::new() })
}

/// What a remote replica says of itself.
pub(crate) async fn remote_state(
    volume: &str,
    address: &str,
    peer: &args::Peer,
) -> anyhow::Result<TargetState> {
    let mut connection = connect(address, peer, Arc::default()).await?;
    request(&mut connection, Verb::Status, volume, None).await?;
    let state = receive_state(&mut connection).await?;
    connection.close().await?;
    Ok(state)
}

/// Dials the remote side that the command line names.
async fn connect(
    address: &str,
    peer: &args::Peer,
    progress: Arc<Progress>,
) -> anyhow::Result<Connection<TcpStream>> {
    let Some(key) = &peer.peer else {
        misused!("{address} is remote: say with --peer which public key it has");
    };
    let key: PublicKey = key.parse().map_err(|why| Usage(format!("--peer: {why}")))?;
    let local = keyfile::read(peer.key.as_deref().unwrap_or_else(|| Path::new(KEY)))?;
    let connection = dial(address, local, key, progress).await;
    connection.with_context(|| format!("cannot reach {address}"))
}

fn random_key() -> anyhow::Result<SecretKey> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).context("no randomness from the operating system")?;
    Ok(SecretKey::from_random(random))
}
