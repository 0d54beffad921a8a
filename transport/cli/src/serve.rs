//! `driftline serve`: waits for peers and gives each what its key may have.

mod handshakes;
pub(crate) mod limits;
mod seats;
mod seldom;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, Weak},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use driftline_extent::{Explained, Reason, TargetState};
use driftline_target::{Index, is_one_volume};
use driftline_transport::{
    Connection, Failure, Listener, Progress, SourceJob, Summary, TransportError, answer, chain,
    receive_request, send_state, serve_source, serve_target, turn_away,
};
use driftline_wire::{Peer, PublicKey, SecretKey, Verb, limits::SILENCE_MS_MAX};
use tokio::{
    net::TcpStream,
    sync::{Mutex, Notify, OwnedMutexGuard},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    handshakes::Handshakes,
    seats::{Guest, Seat, Seats, until},
    seldom::Seldom,
};
use crate::{
    args::Drbd,
    config::{Config, Volume},
    exit::{self, degraded},
    index, keyfile, linstor,
    place::Place,
    print::{bytes, complain, say},
    replication::COMPRESSION,
    report,
    source::{self, AnySource},
    stop::{Signals, settle},
    target::{AnyTarget, AnyTargetError, TargetPlace, TargetTerms},
    terms::Terms,
    trust::Trust,
};

/// How long a session waits for another one of the same volume. A session whose peer is gone
/// ends after a minute of silence, so a peer that comes back after a cut is served then.
const SAME_VOLUME_WAIT_MAX: Duration = Duration::from_millis(SILENCE_MS_MAX + 15_000);
/// How long a connection that broke the protocol still counts as one of its key.
const AFTER_VIOLATION: Duration = Duration::from_secs(1);
/// How often a volume that is busy is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// For how long nobody has said too little: a hello may be on its way.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(250);

/// Log lines about connections that have proven nothing: some, and then one in so long.
const STRANGER_LINES: (u32, Duration) = (20, Duration::from_secs(10));
/// Sessions of one peer that are logged: many, and then one in so long.
const PEER_LINES: (u32, Duration) = (1000, Duration::from_secs(1));
/// The same of those that failed.
const FAILURE_LINES: (u32, Duration) = (100, Duration::from_secs(5));
/// How much of an error is logged: a peer may have written it.
const ERROR_LEN_MAX: usize = 400;
/// What one peer may ask for at once, and then in so long; more has to wait.
const PEER_REQUESTS: (u32, Duration) = (200, Duration::from_millis(50));

/// Arenas of the allocator. Sessions come and go, each with threads of its own: what one has freed
/// is used by the next where they have the same.
const ARENAS: u8 = 2;
/// How long after a session has ended what it used is given back to the system: others may end too.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(1);

/// Runs until it is told to stop.
pub(crate) async fn run(path: &Path, check: bool, trust_dir: &Path) -> anyhow::Result<()> {
    driftline_heap::share_arenas(ARENAS);
    let config = Config::read(path)?;
    let key = keyfile::read(&config.key)?;
    if config.has_linstor() {
        linstor::config(&config.linstor).context("[linstor]")?;
    }
    let missing = config.missing();
    if check {
        missing.iter().for_each(|line| complain(format_args!("driftline: {line}")));
        if !missing.is_empty() {
            bail!("{} names what is not there", path.display());
        }
        say(format_args!("{} can be used; public key {}", path.display(), key.public()));
        return Ok(());
    }
    // It may be mounted later, and must not cost the others their service.
    missing.iter().for_each(|line| tracing::warn!("{line}"));
    let index = match config.index.clone() {
        Some(path) => {
            let replicas = index::replicas(&config);
            blocking(move || index::open(&path, &replicas)).await?
        }
        None => None,
    };
    // Whoever hears that it listens may stop it at once.
    let mut signals = Signals::new()?;
    let listener = Listener::bind(&config.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    tracing::info!(%address, key = %key.public(), "listening");
    for (name, volume) in config.volumes() {
        tracing::debug!(volume = name, ?volume, "offered");
    }
    let stop = CancellationToken::new();
    let limits = &config.limits;
    let of_peer = |(at_once, every)| {
        config.keys().into_iter().map(|key| (key, Seldom::new(at_once, every))).collect()
    };
    let server = Arc::new(Server {
        handshakes: Arc::new(Handshakes::new(
            limits.handshakes,
            limits.handshakes_per_address,
            HANDSHAKE_GRACE,
        )),
        seats: Arc::new(Seats::new(limits.clone())),
        strangers: Seldom::new(STRANGER_LINES.0, STRANGER_LINES.1),
        lines: of_peer(PEER_LINES),
        failures: of_peer(FAILURE_LINES),
        requests: of_peer(PEER_REQUESTS),
        writers: Writers::default(),
        index,
        trust_dir: config.trust_dir.clone().unwrap_or_else(|| trust_dir.to_owned()),
        config,
        key,
        ended: Notify::new(),
    });
    tokio::spawn(give_back(server.clone()));
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
                    if let Some(left_out) = server.strangers.may() {
                        tracing::warn!(%error, left_out, "cannot accept");
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            },
            _ = signals.next() => break,
        }
    }
    tracing::info!(
        sessions = sessions.len(),
        "stopping; sessions that are cut off resume with the next run"
    );
    signals.end_at_next();
    stop.cancel();
    sessions.close();
    sessions.wait().await;
    if !settle().await {
        tracing::warn!("cannot remove all snapshots and holds; the next session removes them");
    }
    Ok(())
}

/// Gives the memory of sessions that have ended back to the system.
async fn give_back(server: Arc<Server>) {
    loop {
        server.ended.notified().await;
        sleep(GIVE_BACK_AFTER).await;
        // If that fails, the next end of a session tries it again.
        let _ = blocking(driftline_heap::give_back).await;
    }
}

struct Server {
    config: Config,
    key: SecretKey,
    handshakes: Arc<Handshakes>,
    seats: Arc<Seats>,
    /// Log lines about connections that have proven nothing.
    strangers: Seldom,
    /// Log lines about the sessions of each key.
    lines: HashMap<PublicKey, Seldom>,
    /// The same about those that failed.
    failures: HashMap<PublicKey, Seldom>,
    /// What each key asks for.
    requests: HashMap<PublicKey, Seldom>,
    writers: Writers,
    /// What all replicas have, by chunk.
    index: Option<Arc<Index>>,
    /// Where manifests and incidents are.
    trust_dir: PathBuf,
    /// A session has ended.
    ended: Notify,
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

/// What an accepted request leads to. A seat is free and a volume is not written any more once
/// what is done with them has ended.
enum Granted {
    Target(Box<AnyTarget>, OwnedMutexGuard<()>, Seat),
    Source(Box<SourceJob<AnySource>>, Seat),
}

impl Server {
    fn start(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        sessions: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let progress = Arc::new(Progress::default());
        let Some((handshake, dropped)) = self.handshakes.enter(address.ip(), progress.clone())
        else {
            turn_away(&stream);
            if let Some(left_out) = self.strangers.may() {
                tracing::warn!(%address, left_out, "too many unfinished handshakes; turned away");
            }
            return;
        };
        if dropped && let Some(left_out) = self.strangers.may() {
            tracing::warn!(newcomer = %address, left_out, "too many unfinished handshakes; the oldest gave way");
        }
        let stop = stop.clone();
        sessions.spawn(async move {
            let listen = Peer::Listen(self.config.keys());
            let open = Connection::open(stream, self.key.clone(), listen, progress);
            // What gave way must not go on: the peer would think that it is let in.
            let opened = tokio::select! {
                biased;
                () = handshake.gave_way() => return,
                () = stop.cancelled() => return,
                opened = open => opened,
            };
            drop(handshake);
            match opened {
                Ok((connection, key)) => {
                    tokio::select! {
                        () = self.session(connection, key, address) => {}
                        () = stop.cancelled() => {}
                    }
                    self.ended.notify_one();
                }
                Err(error) => {
                    if let Some(left_out) = self.strangers.may() {
                        let error = chain(&error);
                        tracing::warn!(%address, left_out, error, "not let in");
                    }
                }
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
        let guest = self.seats.greet(key);
        let served = self.serve(connection, key, guest.as_ref()).await;
        if matches!(served, Err(TransportError::Link(_) | TransportError::Session(_))) {
            // Who breaks the protocol, again and again, costs no more than this.
            sleep(AFTER_VIOLATION).await;
        }
        drop(guest);
        let lines = if served.is_ok() { &self.lines } else { &self.failures };
        let Some(left_out) = lines.get(&key).and_then(Seldom::may) else { return };
        match served {
            Ok((verb, volume, summary)) => {
                let moved = progress.snapshot();
                tracing::info!(
                    %address, peer, volume, verb, received = moved.received, sent = moved.sent,
                    left_out, "session done"
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
                    let zeroed = committed.zeroed.filter(|zeroed| *zeroed > 0).map(bytes);
                    tracing::info!(
                        peer, volume, generation = %committed.generation, size,
                        root = %committed.root, zeroed, "committed"
                    );
                }
            }
            Err(error) => {
                let reason = error.reason().map(Reason::as_str);
                let error: String = chain(&error).chars().take(ERROR_LEN_MAX).collect();
                tracing::warn!(%address, peer, reason, left_out, error, "session failed");
            }
        }
    }

    async fn serve(
        &self,
        mut connection: Connection<TcpStream>,
        key: PublicKey,
        guest: Option<&Guest>,
    ) -> Result<(&'static str, String, Summary), TransportError> {
        let limit = self.config.limits.request_timeout;
        let request = timeout(limit, receive_request(&mut connection)).await;
        let (verb, volume, like) = request.map_err(|_| {
            let detail = format!("the peer asked for nothing within {} s", limit.as_secs());
            Failure::new(Reason::Failed, detail)
        })??;
        if verb == Verb::Status {
            let state = async {
                self.admit(guest, &key).await?;
                self.status(&key, &volume).await
            };
            let (connection, state) = answer(connection, state).await?;
            send_state(connection, state).await?;
            return Ok(("status", volume, Summary::default()));
        }
        let progress = connection.progress();
        let granted = async {
            self.admit(guest, &key).await?;
            self.grant(&key, verb, &volume, like.as_deref(), progress).await
        };
        let (connection, granted) = answer(connection, granted).await?;
        match granted {
            Granted::Target(target, _writer, seat) => tokio::select! {
                (done, _) = serve_target(connection, *target) => Ok(("push", volume, done?)),
                why = seat.stalled() => Err(Failure::new(Reason::TargetBusy, why).into()),
            },
            Granted::Source(job, seat) => tokio::select! {
                done = serve_source(connection, *job) => Ok(("pull", volume, done?)),
                why = seat.stalled() => Err(Failure::new(Reason::TargetBusy, why).into()),
            },
        }
    }

    /// Lets a connection ask, unless its key has too many or asks too often.
    async fn admit(&self, guest: Option<&Guest>, key: &PublicKey) -> Result<(), Failure> {
        if guest.is_none() {
            let detail = "this key has too many connections here that wait (waiting_per_key): run \
                          again when some of them have ended";
            return Err(Failure::new(Reason::TargetBusy, detail));
        }
        until(|| self.requests.get(key).is_none_or(|requests| requests.may().is_some())).await;
        Ok(())
    }

    /// Waits for a session.
    async fn seat(
        &self,
        key: PublicKey,
        volume: &str,
        progress: Arc<Progress>,
    ) -> Result<Seat, Failure> {
        let limit = self.config.limits.session_wait;
        timeout(limit, self.seats.take(key, volume, progress)).await.map_err(|_| {
            let detail = format!(
                "all sessions that this key may have here were in use for {} s: run again",
                limit.as_secs()
            );
            Failure::new(Reason::TargetBusy, detail)
        })
    }

    async fn grant(
        &self,
        key: &PublicKey,
        verb: Verb,
        volume: &str,
        like: Option<&str>,
        progress: Arc<Progress>,
    ) -> Result<Granted, Failure> {
        match self.authorise(key, verb, volume)? {
            Volume::Source { place, zfs, rotated, audit } => {
                let seat = self.seat(*key, volume, progress).await?;
                // One volume may be pulled to several places.
                let to = format!("{volume}@{key}");
                let (dir, linstor) = (self.trust_dir.clone(), self.config.linstor.clone());
                let targets = self.config.targets();
                let targets: Vec<_> = targets.map(|(a, b)| (a.clone(), b.clone())).collect();
                let open = move || {
                    if let Some(failure) = lost_books(&place, &targets) {
                        return (Err(failure.into()), seat);
                    }
                    let drbd = &Drbd { rotated, ..Drbd::default() };
                    let (overwrite, group) = (false, None);
                    let (zfs, linstor, to) = (&zfs, &linstor, to.as_str());
                    let trust = Trust { dir: &dir, audit: &audit, target: to };
                    let to_one = false;
                    let terms = Terms { overwrite, zfs, drbd, linstor, to, to_one, group, trust };
                    (source::job(&place, terms, Some(COMPRESSION)), seat)
                };
                let (job, seat) = blocking(open).await?;
                let patience = self.config.limits.source_timeout;
                let job = SourceJob { patience, ..job.map_err(hidden)? };
                Ok(Granted::Source(Box::new(job), seat))
            }
            Volume::Target { place, terms } => {
                let (index, remembered) = (self.index.clone(), Some(self.trust_dir.clone()));
                let terms = TargetTerms { index, remembered, ..terms };
                let like = like.map(|like| self.like(key, like)).transpose()?;
                let writer = self.writer(volume).await?;
                let seat = self.seat(*key, volume, progress).await?;
                self.open_target(volume, place, terms, like, (writer, seat)).await
            }
        }
    }

    /// Opens a target, and waits for a while if another process, or what is left of a session that
    /// was cut, has it open.
    async fn open_target(
        &self,
        volume: &str,
        place: TargetPlace,
        terms: TargetTerms,
        like: Option<TargetPlace>,
        mut held: (OwnedMutexGuard<()>, Seat),
    ) -> Result<Granted, Failure> {
        let started = Instant::now();
        loop {
            let (place, terms, like) = (place.clone(), terms.clone(), like.clone());
            // Whoever hangs up meanwhile frees neither the volume nor the seat before this ends.
            let open = move || {
                let opened = place.open(&terms).map(|mut target| {
                    if let Some(Err(error)) = like.map(|like| target.use_seed(&like)) {
                        // It is about what moves, not about what arrives.
                        tracing::warn!("{error}");
                    }
                    target
                });
                (opened, held)
            };
            let (opened, back) = blocking(open).await?;
            let error: AnyTargetError = match opened {
                Ok(target) => return Ok(Granted::Target(Box::new(target), back.0, back.1)),
                Err(error) => error,
            };
            let is_busy = error.reason() == Reason::TargetBusy;
            if !is_busy || started.elapsed() >= SAME_VOLUME_WAIT_MAX {
                return Err(Failure::from_error(&error));
            }
            tracing::debug!(volume, "waits until nobody has it open");
            held = back;
            sleep(LOOK_EVERY).await;
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
        let mut writer = std::pin::pin!(writer);
        let started = Instant::now();
        loop {
            if let Ok(writer) = timeout(LOOK_EVERY, &mut writer).await {
                return Ok(writer);
            }
            if started.elapsed() >= SAME_VOLUME_WAIT_MAX {
                let detail = format!("another session is writing {volume}");
                return Err(Failure::new(Reason::TargetBusy, detail));
            }
            self.seats.release(volume);
        }
    }

    fn authorise(&self, key: &PublicKey, verb: Verb, name: &str) -> Result<Volume, Failure> {
        let peer = self.config.peer(key);
        let volume = peer.and_then(|peer| self.config.authorise(peer, verb, name));
        volume.ok_or_else(|| denied(name))
    }
}

/// Why a source is not delivered that is a target of this configuration as well, but has no books:
/// nothing says any more what it holds.
fn lost_books(source: &Place, targets: &[(TargetPlace, TargetTerms)]) -> Option<Failure> {
    let is_it = |(target, _): &&(TargetPlace, TargetTerms)| match (source, target) {
        (Place::File(path), TargetPlace::File(other)) => is_one_volume(path, other),
        (Place::Zfs(name), TargetPlace::Zvol(other)) => name == other,
        _ => false,
    };
    let (target, terms) = targets.iter().find(is_it)?;
    let detail = format!("{target} is a replica whose books are gone: nothing proves its content");
    // What cannot be looked at is refused with its own words when it is opened.
    let is_lost = matches!(target.inspect(terms), Ok(None));
    is_lost.then(|| Failure::new(Reason::NotConsistent, detail))
}

fn denied(volume: &str) -> Failure {
    let detail =
        format!("volume {volume} does not exist here, or this key may not do this with it");
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
        Reason::NotConsistent => "the source is an incomplete replica",
        Reason::TargetModified => "the source is a damaged replica",
        Reason::TargetBusy => "another process writes the source: run again later",
        _ => "the source cannot be opened",
    };
    Failure::new(reason, format!("{detail}; the log there says more"))
}
