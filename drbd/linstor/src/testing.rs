//! A controller that is not there, for tests: its nodes, storage pools, resources and snapshots
//! change as they are told to, and each request and answer is kept.
//!
//! It shares nothing with the client but the shape of LINSTOR's interface. As there, a snapshot
//! is not successful when it was just created, but one or several looks later.

mod cluster;
mod http;

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

pub use cluster::Cluster;
use http::{Head, Stream};

/// How long a connection may stand still: tests that hang should end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a controller is but for what it manages.
#[derive(Clone, Default)]
pub struct Options {
    /// The only token that it lets in; `None` lets everybody in.
    pub token: Option<String>,
    /// Its certificate and whose it wants; `None` is plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
}

/// What goes wrong with a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The connection is closed instead of an answer, and nothing was done.
    Cut,
    /// It was done, and the connection is closed instead of an answer.
    CutAfter,
    /// There is no answer until the client gives up.
    Silence,
    /// These bytes are the answer, with their head.
    Bytes(Vec<u8>),
    /// The answer never ends.
    Endless,
    /// This status and this text are the answer.
    Answer(u16, String),
}

/// A request, and how it was answered.
#[derive(Clone, PartialEq, Debug)]
pub struct Exchange {
    /// Such as `GET`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The parameters in their order.
    pub query: Vec<(String, String)>,
    /// The JSON that was sent.
    pub request: Option<Value>,
    /// Status of HTTP.
    pub status: u16,
    /// The JSON that was answered.
    pub answer: Value,
}

/// A controller. It ends when it is dropped.
pub struct Fake {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    options: Options,
    ended: AtomicBool,
    state: Mutex<State>,
}

/// Does with storage what the controller tells its nodes: of this resource, the snapshot of this
/// name was taken, or else deleted.
type Satellite = Box<dyn FnMut(&str, &str, bool) + Send>;

struct State {
    cluster: Cluster,
    satellite: Option<Satellite>,
    exchanges: Vec<Exchange>,
    /// What goes wrong next with a path that contains this.
    faults: VecDeque<(String, Fault)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fake {
    /// A controller with neither token nor TLS.
    ///
    /// # Panics
    ///
    /// If there is no port on this machine.
    pub fn start(cluster: Cluster) -> Self {
        Self::with(cluster, Options::default())
    }

    /// A controller, on a port that nobody uses: with TLS of 127.0.0.1, and otherwise of an
    /// address of its own, so that no other takes its place when it has ended.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn with(cluster: Cluster, options: Options) -> Self {
        let host = match options.tls {
            Some(_) => Ipv4Addr::LOCALHOST,
            None => own_address(),
        };
        let listener = TcpListener::bind((host, 0)).expect("a port of this machine");
        let address = listener.local_addr().expect("it is bound");
        let state =
            State { cluster, satellite: None, exchanges: Vec::new(), faults: VecDeque::new() };
        let shared =
            Arc::new(Shared { options, ended: AtomicBool::new(false), state: Mutex::new(state) });
        let accepting = thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Self { shared, address, accepting: Some(accepting) }
    }

    /// Its address, as a client takes it.
    pub fn url(&self) -> String {
        let scheme = if self.shared.options.tls.is_some() { "linstor+ssl" } else { "linstor" };
        format!("{scheme}://{}", self.address)
    }

    /// Everything that was asked and answered so far. A connection that was cut is not in it.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.shared.state().exchanges.clone()
    }

    /// Method and path of all that was asked so far, in order, answered or not.
    pub fn asked(&self) -> Vec<String> {
        let exchanges = self.exchanges();
        exchanges.iter().map(|e| format!("{} {}", e.method, e.path)).collect()
    }

    /// What it manages, to be looked at or changed.
    pub fn change<T>(&self, change: impl FnOnce(&mut Cluster) -> T) -> T {
        change(&mut self.shared.state().cluster)
    }

    /// Calls this with each resource and snapshot of which one was taken (`true`) or deleted, before
    /// that is answered.
    pub fn satellite(&self, satellite: impl FnMut(&str, &str, bool) + Send + 'static) {
        self.shared.state().satellite = Some(Box::new(satellite));
    }

    /// Lets the next request go wrong whose path contains this.
    pub fn fail(&self, path: &str, fault: Fault) {
        self.shared.state().faults.push_back((path.to_owned(), fault));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // The connection wakes the thread, which then sees that it is over.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

/// An address of this machine that no other controller of this process has.
fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let shared = shared.clone();
        // What a client does to its connection is its own business, and not told.
        thread::spawn(move || serve(stream, &shared));
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    match &shared.options.tls {
        None => answer(&mut { stream }, shared),
        Some(config) => {
            let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(connection, stream);
            answer(&mut stream, shared)?;
            stream.conn.send_close_notify();
            stream.conn.complete_io(&mut stream.sock).map(drop)
        }
    }
}

/// One request, and what becomes of it.
fn answer(stream: &mut impl Stream, shared: &Shared) -> io::Result<()> {
    let (head, body) = http::read(stream)?;
    let fault = shared.state().fault(&head.path);
    match fault {
        None => {}
        Some(Fault::Cut) => return Ok(()),
        Some(Fault::Silence) => return http::wait_for_end(stream),
        Some(Fault::Endless) => return http::write_without_end(stream),
        Some(Fault::Bytes(bytes)) => return stream.write_all(&bytes),
        Some(Fault::Answer(status, text)) => return http::write(stream, status, &text),
        Some(Fault::CutAfter) => {
            respond(&head, &body, shared);
            return Ok(());
        }
    }
    let (status, text) = respond(&head, &body, shared);
    http::write(stream, status, &text)
}

/// Does what is asked, and keeps that it was.
fn respond(head: &Head, body: &[u8], shared: &Shared) -> (u16, String) {
    let request = serde_json::from_slice(body).ok();
    let allowed = match &shared.options.token {
        Some(token) => head.authorization == Some(format!("Bearer {token}")),
        None => true,
    };
    let mut state = shared.state();
    let before = state.cluster.all_snapshots();
    let reply = match allowed {
        true => state.cluster.reply(&head.method, &head.path, &head.query, request.as_ref()),
        false => cluster::unauthorized(),
    };
    state.tell_satellite(&before);
    let text = reply.body.to_string();
    state.exchanges.push(Exchange {
        method: head.method.clone(),
        path: head.path.clone(),
        query: head.query.clone(),
        request,
        status: reply.status,
        answer: reply.body,
    });
    (reply.status, text)
}

impl State {
    fn tell_satellite(&mut self, before: &BTreeSet<(String, String)>) {
        let Some(satellite) = &mut self.satellite else { return };
        let now = self.cluster.all_snapshots();
        now.difference(before).for_each(|(of, name)| satellite(of, name, true));
        before.difference(&now).for_each(|(of, name)| satellite(of, name, false));
    }

    fn fault(&mut self, path: &str) -> Option<Fault> {
        let (part, _) = self.faults.front()?;
        let is_it = path.contains(part.as_str());
        is_it.then(|| self.faults.pop_front()).flatten().map(|(_, fault)| fault)
    }
}
