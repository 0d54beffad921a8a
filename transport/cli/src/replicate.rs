//! `driftline push` and `driftline pull`.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use driftline_drbd::{CrossChecked, CrossChecks};
use driftline_extent::TargetState;
use driftline_transport::{
    Connection, Failure, Progress, SharedLimit, Snapshot, SourceJob, Summary, TransportError,
    answer, dial, receive_request, receive_state, request, serve_source, serve_target,
};
use driftline_wire::{Peer, PublicKey, SecretKey, Verb};
use driftline_zfs::Moment;
use tokio::{
    io::{AsyncRead, AsyncWrite, duplex},
    net::TcpStream,
};

use crate::{
    args,
    exit::code,
    job, keyfile,
    place::Place,
    progress::{Show, watch},
    report,
    source::{self, AnySource, Terms},
    target::{AnyTarget, TargetPlace, TargetTerms},
    tree,
};

/// Bytes in flight between the two ends of a local replication.
const LOCAL_PIPE_LEN: usize = 4 << 20;

/// Compression levels of zstd that make sense on a link.
const LEVELS: std::ops::RangeInclusive<i32> = -7..=19;

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

/// Runs the command and prints what it did.
pub(crate) async fn run(
    arguments: &args::Replicate,
    direction: Direction,
    json: bool,
    show: Show,
) -> anyhow::Result<u8> {
    let mut arguments = arguments.clone();
    job::fill(&mut arguments)?;
    let place = |said: &Option<String>| said.as_deref().unwrap_or_default().parse::<Place>();
    let (source, target) = (place(&arguments.source)?, place(&arguments.target)?);
    let limit = arguments.limit_rate.as_deref().map(parse_rate).transpose()?;
    let job = Job {
        direction,
        overwrite: arguments.full,
        compression: arguments.compress.as_deref().map_or(Ok(Some(COMPRESSION)), parse_level)?,
        limit: limit.map(SharedLimit::new),
        target: TargetTerms {
            state_dir: arguments.state.state_dir.clone(),
            // Here the one who agrees to an overwrite is the one who asks for it.
            forbid_overwrite: false,
            receive: arguments.receive.clone(),
            root: None,
        },
        zfs: arguments.zfs.clone(),
        drbd: arguments.drbd.clone(),
        linstor: arguments.linstor.clone(),
        peer: arguments.peer.clone(),
        together: None,
    };
    tree::check(&arguments)?;
    if arguments.tree.recursive {
        return tree::run(job, &arguments.tree, &source, &target, json, show).await;
    }
    let done = job.run(&source, &target, show).await?;
    println!("{}", if json { report::done_json(&done).to_string() } else { report::done(&done) });
    Ok(code::DONE)
}

/// What is agreed about a replication, whatever it is of.
#[derive(Clone)]
pub(crate) struct Job {
    direction: Direction,
    overwrite: bool,
    compression: Option<i32>,
    limit: Option<SharedLimit>,
    target: TargetTerms,
    pub(crate) zfs: args::Zfs,
    drbd: args::Drbd,
    linstor: args::Linstor,
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
    pub(crate) moment: Option<Moment>,
}

/// What a replication did, and what moved.
pub(crate) struct Done {
    pub(crate) summary: Summary,
    pub(crate) moved: Snapshot,
    pub(crate) took: Duration,
    /// What was found where maps were held against others.
    pub(crate) cross_checks: Vec<CrossChecked>,
}

impl Job {
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
        let progress = Arc::new(Progress::default());
        let checks = OnceLock::new();
        let work = self.replicate(source, target, progress.clone(), &checks);
        // What failed names itself; this says in which replication.
        let done = shown(progress, show, work).await.with_context(|| match self.direction {
            Direction::Push => target.to_string(),
            Direction::Pull => source.to_string(),
        })?;
        let cross_checks = checks.get().map(CrossChecks::list).unwrap_or_default();
        Ok(Done { cross_checks, ..done })
    }

    /// As with [`Default`] options, for whoever brings a target of its own.
    pub(crate) fn plain(peer: args::Peer) -> Self {
        Self {
            direction: Direction::Pull,
            overwrite: false,
            compression: Some(COMPRESSION),
            limit: None,
            target: TargetTerms::default(),
            zfs: args::Zfs::default(),
            drbd: args::Drbd::default(),
            linstor: args::Linstor::default(),
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
        request(&mut connection, Verb::Pull, volume).await?;
        Ok(serve_target(connection, target).await.0?)
    }

    async fn replicate(
        &self,
        source: &Place,
        target: &Place,
        progress: Arc<Progress>,
        checks: &OnceLock<CrossChecks>,
    ) -> anyhow::Result<Summary> {
        let open = || {
            let job = self.source(source, target)?;
            checks.get_or_init(|| job.source.cross_checks());
            Ok::<_, anyhow::Error>(job)
        };
        match (source, target, self.direction) {
            (Place::Remote { .. }, Place::Remote { .. }, _) => {
                bail!("one of {source} and {target} must be local")
            }
            (_, Place::Remote { volume, address }, Direction::Push) => {
                let job = open()?;
                let mut connection = self.dial(address, progress).await?;
                request(&mut connection, Verb::Push, volume).await?;
                Ok(serve_source(connection, job).await?)
            }
            (_, Place::Remote { .. }, Direction::Pull) => {
                bail!("{target} is remote: push to it")
            }
            (Place::Remote { .. }, _, Direction::Push) => {
                bail!("{source} is remote: pull from it")
            }
            (Place::Remote { volume, address }, _, Direction::Pull) => {
                if self.overwrite {
                    bail!("whether {source} may overwrite is decided where it is pushed from");
                }
                let opened = self.open(TargetPlace::of(target)?).await?;
                self.pull(volume, address, opened, progress).await
            }
            _ => {
                let place = TargetPlace::of(target)?;
                let job = open()?;
                self.local(job, self.open(place).await?, progress).await
            }
        }
    }

    pub(crate) fn source(
        &self,
        source: &Place,
        target: &Place,
    ) -> anyhow::Result<SourceJob<AnySource>> {
        let (to, moment) = match &self.together {
            Some(Together { to, moment }) => (to.clone(), moment.as_ref()),
            None => (target.to_string(), None),
        };
        let Self { overwrite, zfs, drbd, linstor, .. } = self;
        let terms = Terms { overwrite: *overwrite, zfs, drbd, linstor, to: &to, moment };
        source::job(source, terms, self.compression)
    }

    async fn open(&self, place: TargetPlace) -> anyhow::Result<AnyTarget> {
        let terms = self.target.clone();
        Ok(tokio::task::spawn_blocking(move || place.open(&terms)).await??)
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
            request(&mut connection, Verb::Push, "local").await?;
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
    Ok(Done { summary, moved, took, cross_checks: Vec::new() })
}

/// What a remote replica says of itself.
pub(crate) async fn remote_state(
    volume: &str,
    address: &str,
    peer: &args::Peer,
) -> anyhow::Result<TargetState> {
    let mut connection = connect(address, peer, Arc::default()).await?;
    request(&mut connection, Verb::Status, volume).await?;
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
        bail!("{address} is remote: say with --peer which public key it has");
    };
    let key: PublicKey = key.parse().context("--peer")?;
    let local = keyfile::read(peer.key.as_deref().unwrap_or_else(|| Path::new(KEY)))?;
    let connection = dial(address, local, key, progress).await;
    connection.with_context(|| format!("cannot reach {address}"))
}

fn random_key() -> anyhow::Result<SecretKey> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).context("no randomness from the operating system")?;
    Ok(SecretKey::from_random(random))
}

fn parse_level(text: &str) -> anyhow::Result<Option<i32>> {
    match text.parse() {
        _ if text == "off" => Ok(None),
        Ok(level) if LEVELS.contains(&level) => Ok(Some(level)),
        _ => bail!("--compress takes off, or a level from {} to {}", LEVELS.start(), LEVELS.end()),
    }
}

fn parse_rate(text: &str) -> anyhow::Result<u64> {
    let (digits, unit) = match text.trim_end_matches(char::is_alphabetic) {
        digits if digits.len() == text.len() => (digits, 1),
        digits => match &text[digits.len()..] {
            "K" => (digits, 1 << 10),
            "M" => (digits, 1 << 20),
            "G" => (digits, 1 << 30),
            _ => bail!("--limit-rate takes bytes each second, as in 500K, 10M or 1G"),
        },
    };
    match digits.parse::<u64>().ok().and_then(|rate| rate.checked_mul(unit)) {
        // Slower, a peer would seem to have gone silent.
        Some(rate) if rate >= 1 << 10 => Ok(rate),
        _ => bail!("--limit-rate takes at least 1K, as in 500K, 10M or 1G"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_levels() {
        assert_eq!(parse_rate("7000").unwrap(), 7000);
        assert_eq!(parse_rate("10M").unwrap(), 10 << 20);
        for bad in
            ["", "0", "1023", "M", "10Q", "-1", "99999999999999999999", "18446744073709551615G"]
        {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_level("off").unwrap(), None);
        assert_eq!(parse_level("-5").unwrap(), Some(-5));
        assert!(parse_level("99").is_err() && parse_level("fast").is_err());
    }
}
