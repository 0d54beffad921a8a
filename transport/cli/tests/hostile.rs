//! What strangers and listed peers can do to a listener: nothing that another peer would notice, and
//! they get no more of its memory than is shared among all.
//!
//! It lasts about 40 seconds, or twice as many as `DRIFTLINE_HOSTILE_SECONDS` says; twenty minutes
//! are
//!
//! ```sh
//! DRIFTLINE_HOSTILE_SECONDS=600 cargo test --release -p driftline --test hostile -- --nocapture
//! ```

mod common;
mod hostile_support;

use std::{
    env, fs,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::{BufMut, BytesMut};
use common::{Pair, command, driftline, keygen, noise};
use driftline_wire::{Hello, Link, LinkEvent, Message, Peer, PublicKey, SecretKey, Verb};
use hostile_support::{Crowd, SIP_LEN, SIP_REST, make_pulled, press};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    runtime::Runtime,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Strangers that connect, and say nothing or only hello; whoever is dropped comes again.
const STRANGERS: usize = 500;
const MEMORY_MAX_KIB: u64 = 128 << 10;
/// What is left of that soon after all sessions have ended.
const REST_MAX_KIB: u64 = 48 << 10;
const LOG_LEN_MAX: u64 = 1 << 20;
/// What a push moves.
const PUSH_LEN: usize = 16 << 20;
const PUSHES_ALONE: usize = 8;

/// What the attackers did.
#[derive(Default)]
struct Count {
    connections: AtomicU64,
    handshakes: AtomicU64,
    accepted: AtomicU64,
    flooded: AtomicU64,
    pulled: AtomicU64,
}

/// What an attacker needs to know.
#[derive(Clone)]
struct Attack {
    listener: SocketAddr,
    server: PublicKey,
    key: Arc<String>,
    /// Where the keys and the volumes are.
    dir: PathBuf,
    count: Arc<Count>,
}

impl Attack {
    /// Of whoever has the key in this file.
    fn of(pair: &Pair, key: &str, listener: SocketAddr) -> Self {
        let key = fs::read_to_string(pair.path().join(key)).unwrap();
        let key = key.lines().find(|line| line.starts_with("dls1")).unwrap().to_owned();
        let _: SecretKey = key.parse().unwrap();
        Self {
            listener,
            server: pair.server.parse().unwrap(),
            key: Arc::new(key),
            dir: pair.path().to_owned(),
            count: Arc::default(),
        }
    }

    /// Connects from an address of this machine.
    async fn connect(&self, from: u8) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((IpAddr::from([127, 0, 0, from]), 0).into())?;
        let stream = socket.connect(self.listener).await?;
        self.count.connections.fetch_add(1, Relaxed);
        Ok(stream)
    }

    /// Says `words`, and waits until the other side has had enough.
    async fn say_and_wait(&self, from: u8, words: &[u8]) -> io::Result<()> {
        let mut stream = self.connect(from).await?;
        stream.write_all(words).await?;
        while stream.read(&mut [0; 512]).await? > 0 {}
        Ok(())
    }

    /// A hello that takes longer than a handshake may.
    async fn slowly(&self, from: u8) -> io::Result<()> {
        let mut stream = self.connect(from).await?;
        for byte in Hello::OURS.to_bytes() {
            stream.write_all(&[byte]).await?;
            sleep(Duration::from_secs(2)).await;
        }
        Ok(())
    }

    /// Opens a link with the listed key.
    async fn open(&self) -> Option<Intruder> {
        let stream = self.connect(1).await.ok()?;
        let (local, peer) = (self.key.parse().ok()?, Peer::Dial(self.server));
        let entropy = Box::new(|buffer: &mut [u8]| getrandom::fill(buffer).unwrap());
        let link = Link::new(local, peer, entropy, 0);
        let (received, started, sips) = (BytesMut::new(), Instant::now(), false);
        let mut intruder = Intruder { link, stream, received, started, sips };
        match intruder.event().await? {
            LinkEvent::Open { .. } => {
                self.count.handshakes.fetch_add(1, Relaxed);
                Some(intruder)
            }
            _ => None,
        }
    }

    /// Opens a session and lets it be: nothing but signs of life.
    async fn hold(&self, volume: &str) -> Option<()> {
        let mut intruder = self.open().await?;
        intruder.ask(Verb::Push, volume).await?;
        while let Some(event) = intruder.event().await {
            if matches!(event, LinkEvent::Message(Message::Accept)) {
                self.count.accepted.fetch_add(1, Relaxed);
            }
        }
        None
    }

    /// Is let in, and asks for nothing.
    async fn never_ask(&self) -> Option<()> {
        let mut intruder = self.open().await?;
        while intruder.event().await.is_some() {}
        None
    }

    /// Asks, and then sends without end and without reading.
    async fn flood(&self, volume: &str, message: &Message) -> Option<()> {
        let mut intruder = self.open().await?;
        intruder.ask(Verb::Push, volume).await?;
        loop {
            for _ in 0..1000 {
                let now_ms = intruder.now_ms();
                intruder.link.send(message, now_ms).ok()?;
            }
            self.count.flooded.fetch_add(intruder.link.queued() as u64, Relaxed);
            intruder.flush().await?;
        }
    }
}

/// One end of a link whose key is listed.
struct Intruder {
    link: Link,
    stream: TcpStream,
    received: BytesMut,
    started: Instant,
    /// Whether it reads little at once, and then rests.
    sips: bool,
}

impl Intruder {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    async fn flush(&mut self) -> Option<()> {
        while let Some(bytes) = self.link.poll_transmit() {
            self.stream.write_all(&bytes).await.ok()?;
        }
        Some(())
    }

    /// Queues a message; it goes out while an event is waited for.
    fn say(&mut self, message: &Message) -> Option<()> {
        let now_ms = self.now_ms();
        self.link.send(message, now_ms).ok()?;
        if let Message::State(state) = message {
            self.link.bind(&state.replica);
        }
        Some(())
    }

    async fn ask(&mut self, verb: Verb, volume: &str) -> Option<()> {
        self.say(&Message::Request { verb, volume: volume.into(), like: None })?;
        self.flush().await
    }

    /// What the listener says next; meanwhile this side shows that it lives.
    async fn event(&mut self) -> Option<LinkEvent> {
        loop {
            let now_ms = self.now_ms();
            if let Some(event) = self.link.handle(&mut self.received, now_ms).ok()? {
                return Some(event);
            }
            self.link.handle_timeout(now_ms).ok()?;
            self.flush().await?;
            let sip = if self.sips { SIP_LEN } else { usize::MAX };
            let mut room = (&mut self.received).limit(sip);
            let read = self.stream.read_buf(&mut room);
            if let Ok(Ok(0) | Err(_)) = timeout(Duration::from_secs(1), read).await {
                return None;
            }
            if self.sips {
                sleep(SIP_REST).await;
            }
        }
    }
}

/// Does something again and again, with a pause in between.
fn renew<F: Future<Output = ()> + Send + 'static>(
    tasks: &mut JoinSet<()>,
    runtime: &Runtime,
    pause_ms: u64,
    attack: &Attack,
    act: impl Fn(Attack) -> F + Send + 'static,
) {
    let attack = attack.clone();
    let again = async move {
        loop {
            act(attack.clone()).await;
            sleep(Duration::from_millis(pause_ms)).await;
        }
    };
    tasks.spawn_on(again, runtime.handle());
}

fn start(runtime: &Runtime, attack: &Attack) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for number in 0..STRANGERS {
        // Some of them from where the honest peer comes from.
        let from = 1 + (number % 6) as u8;
        let words: &[u8] = if number % 3 == 0 { &Hello::OURS.to_bytes() } else { b"" };
        let words = words.to_owned();
        renew(&mut tasks, runtime, 1000, attack, move |attack| {
            let words = words.clone();
            async move { drop(attack.say_and_wait(from, &words).await) }
        });
    }
    for number in 0..20 {
        let from = 1 + number % 6;
        renew(&mut tasks, runtime, 100, attack, move |attack| async move {
            let mut garbage = vec![0; 4096];
            getrandom::fill(&mut garbage).unwrap();
            drop(attack.say_and_wait(from, &garbage).await);
        });
        renew(&mut tasks, runtime, 100, attack, move |attack| async move {
            drop(attack.slowly(from).await);
        });
    }
    for number in 0..12 {
        renew(&mut tasks, runtime, 100, attack, move |attack| async move {
            attack.hold(&format!("h/hold{number}")).await;
        });
    }
    for _ in 0..6 {
        renew(&mut tasks, runtime, 100, attack, |attack| async move {
            attack.never_ask().await;
        });
    }
    // What sealing all of this costs is on this machine as well, so they rest for a moment.
    renew(&mut tasks, runtime, 50, attack, |attack| async move {
        attack.flood("h/flood", &Message::KeepAlive).await;
    });
    renew(&mut tasks, runtime, 50, attack, |attack| async move {
        let detail = "x".repeat(1024);
        let refuse = Message::Refuse { reason: driftline_extent::Reason::Failed, detail };
        attack.flood("h/refuse", &refuse).await;
    });
    renew(&mut tasks, runtime, 50, attack, |attack| async move {
        attack.flood("h/begin", &Message::Accept).await;
    });
    tasks
}

/// A `driftline serve`; killed when dropped.
struct Serve(Child);

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Serve {
    fn start(dir: &Path) -> (Self, SocketAddr) {
        let log = fs::File::create(dir.join("serve.log")).unwrap();
        let serve = ["serve", "--config", "serve.toml"];
        let mut child = command(dir, &serve).stderr(Stdio::from(log)).spawn().unwrap();
        for _ in 0..600 {
            let log = fs::read_to_string(dir.join("serve.log")).unwrap();
            let address = log.split_once("address=").map(|(_, rest)| rest.split(' ').next());
            if let Some(Some(address)) = address {
                return (Self(child), address.parse().unwrap());
            }
            assert!(child.try_wait().unwrap().is_none(), "{log}");
            thread::sleep(Duration::from_millis(100));
        }
        panic!("it does not say where it listens");
    }

    /// The most memory that it ever had, in KiB.
    fn memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Waits until it has given most of its memory back, and gives what it has then, in KiB.
    fn rest(&self) -> u64 {
        let started = Instant::now();
        while self.status("VmRSS:") >= REST_MAX_KIB && started.elapsed().as_secs() < 60 {
            thread::sleep(Duration::from_millis(100));
        }
        self.status("VmRSS:")
    }

    fn status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

/// How long a push of other content takes.
fn push(pair: &Pair, target: &str, number: u64) -> Duration {
    let content = noise(&pair.path().join("a.img"), PUSH_LEN, number);
    let started = Instant::now();
    let pushed = driftline(pair.path(), &pair.push("file:a.img", target));
    let took = started.elapsed();
    let said = String::from_utf8_lossy(&pushed.stderr);
    if pushed.status.code() != Some(0) {
        // Of a peer that broke the protocol the listener tells a second later.
        thread::sleep(Duration::from_secs(2));
        let log = fs::read_to_string(pair.path().join("serve.log")).unwrap();
        let lines: Vec<&str> =
            log.lines().filter(|line| line.contains("peer=\"client\"")).collect();
        panic!("push {number}: {said}\n{}", lines[lines.len().saturating_sub(5)..].join("\n"));
    }
    assert!(fs::read(pair.image()).unwrap() == content, "push {number}");
    took
}

/// What a quarter of the pushes was faster than: what else the machine does is in the rest.
fn quarter(mut took: Vec<Duration>) -> Duration {
    took.sort();
    took[took.len() / 4]
}

/// A listener that lets these keys push below `h` and pull `big`, and the client push `vm`.
fn configure(pair: &Pair, listed: &[(&str, String)]) {
    let (dir, client) = (pair.path().display(), &pair.client);
    let peers = listed.iter().map(|(name, key)| {
        format!("[[peer]]\nname = \"{name}\"\nkey = \"{key}\"\npush = [\"h\"]\npull = [\"big\"]\n")
    });
    let config = format!(
        "version = 1\nlisten = \"127.0.0.1:0\"\nkey = \"{dir}/server.key\"\n\
         [[peer]]\nname = \"client\"\nkey = \"{client}\"\npush = [\"vm\"]\n{}\
         [[volume]]\nname = \"vm\"\ntarget = \"file:{dir}/vm.img\"\n\
         [[volume]]\nname = \"big\"\nsource = \"file:{dir}/big.img\"\n\
         [[volume]]\nname = \"h\"\ntarget = \"file:{dir}/h\"\ntree = true\n",
        peers.collect::<String>()
    );
    fs::write(pair.path().join("serve.toml"), config).unwrap();
}

#[test]
fn hostile_peers_cost_no_other_peer_its_service() {
    let seconds = env::var("DRIFTLINE_HOSTILE_SECONDS").map_or(20, |said| said.parse().unwrap());
    let pair = Pair::new();
    let files = ["hostile.key", "other.key"];
    configure(&pair, &files.map(|file| (file, keygen(pair.path(), file))));
    let (serve, listener) = Serve::start(pair.path());
    let target = format!("vm@{listener}");
    let mut number = 0;
    let mut one = || {
        number += 1;
        push(&pair, &target, number)
    };
    one();
    let mut alone: Vec<Duration> = (0..PUSHES_ALONE).map(|_| one()).collect();

    let attacks = files.map(|file| (file, Attack::of(&pair, file, listener)));
    let attack = &attacks[0].1;
    let runtime = Runtime::new().unwrap();
    let tasks = start(&runtime, attack);
    let (started, mut attacked) = (Instant::now(), Vec::new());
    while started.elapsed() < Duration::from_secs(seconds) || attacked.len() < PUSHES_ALONE {
        attacked.push(one());
    }
    let took = started.elapsed();
    drop(tasks);
    runtime.shutdown_background();
    // The machine may have become slower or faster meanwhile.
    thread::sleep(Duration::from_secs(1));
    alone.extend((0..PUSHES_ALONE).map(|_| one()));

    let (pushes, alone, attacked) = (attacked.len(), quarter(alone), quarter(attacked));
    let count = &attack.count;
    let [connections, handshakes, accepted, flooded] =
        [&count.connections, &count.handshakes, &count.accepted, &count.flooded]
            .map(|count| count.load(Relaxed));
    println!(
        "{took:.0?}: {connections} connections, {handshakes} handshakes of the listed key, \
         {accepted} sessions, {} MiB of flood; {pushes} pushes took {attacked:.2?} and alone \
         {alone:.2?}",
        flooded >> 20,
    );
    assert!(connections > STRANGERS as u64 && accepted > 0 && flooded > 0, "nobody was hostile");
    assert!(attacked <= 2 * alone, "pushes took {attacked:?}, and alone {alone:?}");
    crowd(&serve, &attacks, seconds);

    let log = fs::read_to_string(pair.path().join("serve.log")).unwrap();
    println!("log {} KiB", log.len() >> 10);
    assert!((log.len() as u64) < LOG_LEN_MAX, "the log has {} bytes", log.len());
    assert!(log.contains("left_out="), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

/// All sessions are in use, those of one key and then of two.
fn crowd(serve: &Serve, attacks: &[(&str, Attack); 2], seconds: u64) {
    make_pulled(&attacks[0].1);
    let crowds = [
        (1, Crowd::SlowPulls),
        (2, Crowd::SlowPulls),
        (1, Crowd::Pulls),
        (2, Crowd::Pulls),
        (2, Crowd::Pushes),
        (2, Crowd::Both),
    ];
    for (keys, crowd) in crowds {
        press(&attacks[..keys], crowd, Duration::from_secs(seconds) / crowds.len() as u32);
        let (most, rest) = (serve.memory(), serve.rest());
        println!("{crowd:?} of {keys} keys: at most {} MiB, then {}", most >> 10, rest >> 10);
        assert!(most < MEMORY_MAX_KIB, "{crowd:?} of {keys} keys: {most} KiB");
        assert!(rest < REST_MAX_KIB, "after {crowd:?} of {keys} keys: {rest} KiB");
    }
    for (key, attack) in attacks {
        assert!(attack.count.pulled.load(Relaxed) > 0, "{key} has pulled nothing");
    }
}
