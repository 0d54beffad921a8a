//! `driftline serve`: waits for peers and gives each what its key may have.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use anyhow::Context;
use driftline_extent::{Reason, TargetState};
use driftline_target::Index;
use driftline_transport::{
    Connection, Failure, Listener, Progress, SourceJob, Summary, TransportError, answer, chain,
    receive_request, send_state, serve_source, serve_target,
};
use driftline_wire::{Peer, PublicKey, SecretKey, Verb, limits::SILENCE_MS_MAX};
use tokio::{
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    sync::{Mutex, OwnedMutexGuard, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    args::Drbd,
    config::{Config, Volume},
    exit::{self, degraded},
    index, keyfile, linstor,
    print::{bytes, say},
    replication::COMPRESSION,
    report,
    source::{self, AnySource},
    target::{AnyTarget, AnyTargetError, TargetPlace, TargetTerms},
    terms::Terms,
    trust::Trust,
};

/// How many connections may be in their handshake, or wait for a free session.
const WAITING_MAX: usize = 64;

/// How long a session waits for another one of the same volume. A session whose peer is gone
/// ends after a minute of silence, so a peer that comes back after a cut is served then.
const SAME_VOLUME_WAIT_MAX: Duration = Duration::from_millis(SILENCE_MS_MAX + 15_000);

/// Runs until it is told to stop.
pub(crate) async fn run(path: &Path, check: bool, trust_dir: &Path) -> anyhow::Result<()> {
    let config = Config::read(path)?;
    let key = keyfile::read(&config.key)?;
    if config.has_linstor() {
        linstor::config(&config.linstor).context("[linstor]")?;
    }
    if check {
        say(format_args!("{} can be used; public key {}", path.display(), key.public()));
        return Ok(());
    }
    let index = match config.index.clone() {
        Some(path) => {
            let replicas = index::replicas(&config);
            blocking(move || index::open(&path, &replicas)).await?
        }
        None => None,
    };
    // Whoever hears that it listens may stop it at once.
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let listener = Listener::bind(&config.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, key = %key.public(), "listening");
    for (name, volume) in config.volumes() {
        tracing::debug!(volume = name, ?volume, "offered");
    }
    let stop = CancellationToken::new();
    let server = Arc::new(Server {
        sessions: Semaphore::new(config.sessions_max),
        waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        writers: Writers::default(),
        index,
        trust_dir: config.trust_dir.clone().unwrap_or_else(|| trust_dir.to_owned()),
        config,
        key,
    });
    for (_, volume) in server.config.volumes() {
        if let Volume::Target { place, terms } = volume {
            let remembered = Some(server.trust_dir.clone());
            place.remember(&TargetTerms { remembered, ..terms.clone() });
        }
    }
    let sessions = TaskTracker::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => server.clone().start(stream, address, &sessions, &stop),
                // Out of descriptors, or a peer that hung up at once: the next may do better.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    tracing::info!(sessions = sessions.len(), "stopping; what was cut off goes on next time");
    stop.cancel();
    sessions.close();
    sessions.wait().await;
    Ok(())
}

struct Server {
    config: Config,
    key: SecretKey,
    sessions: Semaphore,
    waiting: Arc<Semaphore>,
    writers: Writers,
    /// What all replicas have, by chunk.
    index: Option<Arc<Index>>,
    /// Where manifests and incidents are.
    trust_dir: PathBuf,
}

/// One session at a time writes a volume.
#[derive(Default)]
struct Writers(std::sync::Mutex<HashMap<String, Weak<Mutex<()>>>>);

impl Writers {
    /// What the writer of this volume locks.
    fn of(&self, volume: &str) -> Arc<Mutex<()>> {
        let mut writers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A peer may make up any name below a tree: only those that are in use are kept.
        writers.retain(|_, writer| writer.strong_count() > 0);
        if let Some(writer) = writers.get(volume).and_then(Weak::upgrade) {
            return writer;
        }
        let writer = Arc::default();
        writers.insert(volume.to_owned(), Arc::downgrade(&writer));
        writer
    }
}

/// What an accepted request leads to.
enum Granted {
    Target(Box<AnyTarget>, OwnedMutexGuard<()>),
    Source(Box<SourceJob<AnySource>>),
}

impl Server {
    fn start(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        sessions: &TaskTracker,
        stop: &CancellationToken,
    ) {
        // Nothing is known of the peer yet: too many of them are turned away, not queued.
        let Ok(waiting) = self.waiting.clone().try_acquire_owned() else {
            tracing::warn!(%address, "too many connections wait; turned away");
            return;
        };
        let stop = stop.clone();
        sessions.spawn(async move {
            let progress = Arc::new(Progress::default());
            let listen = Peer::Listen(self.config.keys());
            let open = Connection::open(stream, self.key.clone(), listen, progress);
            let opened = tokio::select! {
                opened = open => opened,
                () = stop.cancelled() => return,
            };
            drop(waiting);
            match opened {
                Ok((connection, peer)) => {
                    let Ok(_session) = self.sessions.acquire().await else { return };
                    tokio::select! {
                        () = self.session(connection, peer, address) => {}
                        () = stop.cancelled() => {}
                    }
                }
                Err(error) => tracing::warn!(%address, error = chain(&error), "not let in"),
            }
        });
    }

    async fn session(
        &self,
        connection: Connection<TcpStream>,
        key: PublicKey,
        address: SocketAddr,
    ) {
        let Some(peer) = self.config.peer(&key) else { return };
        let peer = peer.name.as_str();
        let progress = connection.progress();
        match self.serve(connection, &key).await {
            Ok((verb, volume, summary)) => {
                let moved = progress.snapshot();
                tracing::info!(
                    %address, peer, volume, verb, received = moved.received, sent = moved.sent,
                    "session done"
                );
                let (degraded, audit) = (degraded(&summary), report::audit(&summary));
                if let Some(reason) = degraded {
                    tracing::warn!(peer, volume, reason = reason.as_str(), "done, degraded");
                }
                if let Some(audit) = audit {
                    tracing::info!(peer, volume, "{audit}");
                }
                for (_, committed) in &summary.increments {
                    let size = bytes(committed.size);
                    tracing::info!(
                        peer, volume, generation = %committed.generation, size,
                        root = %committed.root, "committed"
                    );
                }
            }
            Err(error) => {
                let reason = error.reason().map(Reason::as_str);
                tracing::warn!(%address, peer, reason, error = chain(&error), "session failed");
            }
        }
    }

    async fn serve(
        &self,
        mut connection: Connection<TcpStream>,
        key: &PublicKey,
    ) -> Result<(&'static str, String, Summary), TransportError> {
        let (verb, volume, like) = receive_request(&mut connection).await?;
        if verb == Verb::Status {
            let (connection, state) = answer(connection, self.status(key, &volume)).await?;
            send_state(connection, state).await?;
            return Ok(("status", volume, Summary::default()));
        }
        let granted = self.grant(key, verb, &volume, like.as_deref());
        let (connection, granted) = answer(connection, granted).await?;
        match granted {
            Granted::Target(target, _writer) => {
                let summary = serve_target(connection, *target).await.0?;
                Ok(("push", volume, summary))
            }
            Granted::Source(job) => Ok(("pull", volume, serve_source(connection, *job).await?)),
        }
    }

    async fn grant(
        &self,
        key: &PublicKey,
        verb: Verb,
        volume: &str,
        like: Option<&str>,
    ) -> Result<Granted, Failure> {
        match self.authorise(key, verb, volume)? {
            Volume::Source { place, zfs, rotated, audit } => {
                // One volume may be pulled to several places.
                let to = format!("{volume}@{key}");
                let (dir, linstor) = (self.trust_dir.clone(), self.config.linstor.clone());
                let open = move || {
                    let drbd = &Drbd { rotated, ..Drbd::default() };
                    let (overwrite, moment) = (false, None);
                    let (zfs, linstor, to) = (&zfs, &linstor, to.as_str());
                    let trust = Trust { dir: &dir, audit: &audit, target: to };
                    let terms = Terms { overwrite, zfs, drbd, linstor, to, moment, trust };
                    source::job(&place, terms, Some(COMPRESSION))
                };
                let job = blocking(open).await?;
                Ok(Granted::Source(Box::new(job.map_err(hidden)?)))
            }
            Volume::Target { place, terms } => {
                let (index, remembered) = (self.index.clone(), Some(self.trust_dir.clone()));
                let terms = TargetTerms { index, remembered, ..terms };
                let like = like.map(|like| self.like(key, like)).transpose()?;
                let writer = self.writer(volume).await?;
                let open = move || {
                    let mut target = place.open(&terms)?;
                    match like.map(|like| target.resemble(&like)) {
                        None | Some(Ok(())) => {}
                        // It is about what moves, not about what arrives.
                        Some(Err(error)) => tracing::warn!("{error}"),
                    }
                    Ok(target)
                };
                let target = blocking(open).await?;
                let target = target.map_err(|error: AnyTargetError| Failure::from_error(&error))?;
                Ok(Granted::Target(Box::new(target), writer))
            }
        }
    }

    /// Where the volume is that a peer calls the one it pushes like, if the peer may have that.
    fn like(&self, key: &PublicKey, volume: &str) -> Result<TargetPlace, Failure> {
        let granted = |verb| self.authorise(key, verb, volume);
        match granted(Verb::Push).or_else(|_| granted(Verb::Pull))? {
            Volume::Target { place, .. } => Ok(place),
            Volume::Source { place, .. } => TargetPlace::of(&place).map_err(|_| denied(volume)),
        }
    }

    /// What a replica holds, also while a session writes it: a job asks before it knows
    /// whether anything was ever pushed.
    async fn status(&self, key: &PublicKey, volume: &str) -> Result<TargetState, Failure> {
        let Volume::Target { place, terms } = self.authorise(key, Verb::Status, volume)? else {
            return Err(denied(volume));
        };
        if terms.root.as_ref() == Some(&place) && !place.takes_streams() {
            // What volumes are below is no volume. Whoever pushes a tree asks what can go there.
            return Ok(TargetState::nothing());
        }
        let state = blocking(move || place.state(&terms)).await?;
        state.map_err(|error| Failure::from_error(&error))
    }

    /// Waits until no other session writes the volume.
    async fn writer(&self, volume: &str) -> Result<OwnedMutexGuard<()>, Failure> {
        let writer = self.writers.of(volume).lock_owned();
        timeout(SAME_VOLUME_WAIT_MAX, writer).await.map_err(|_| {
            Failure::new(Reason::TargetBusy, format!("another session is writing {volume}"))
        })
    }

    fn authorise(&self, key: &PublicKey, verb: Verb, volume: &str) -> Result<Volume, Failure> {
        let peer = self.config.peer(key);
        let volume = peer.and_then(|peer| self.config.authorise(peer, verb, volume));
        volume.ok_or_else(|| denied("that volume"))
    }
}

fn denied(volume: &str) -> Failure {
    let detail = format!("there is no {volume} here that this key may do this with");
    Failure::new(Reason::Denied, detail)
}

/// Storage blocks, so it has threads of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::new(Reason::Failed, format!("a worker has died: {error}")))
}

/// Why a source of ours cannot be opened is for our log; the peer learns that it cannot, and what
/// that says of the data.
fn hidden(error: anyhow::Error) -> Failure {
    tracing::warn!("{error:#}");
    let reason = exit::reason(&error).unwrap_or(Reason::Failed);
    let detail = match reason {
        Reason::NotConsistent => "the source is not complete and holds nothing to be relied on",
        Reason::TargetModified => "the source is a replica that is not what was committed to it",
        Reason::TargetBusy => "the source is being written; try again later",
        _ => "the source cannot be opened",
    };
    Failure::new(reason, format!("{detail}; its administrator finds more in the log"))
}
