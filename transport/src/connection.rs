//! A link over a byte stream: the only place that waits for bytes.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use driftline_extent::ReplicaId;
use driftline_wire::{
    DataPart, HELLO_LEN, Hello, Link, LinkError, LinkEvent, Message, Peer, PublicKey, SecretKey,
    SessionError,
    limits::{SILENCE_MS_MAX, WINDOW_DATA_MAX},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::{TcpListener, TcpStream, ToSocketAddrs},
    time::{Instant, sleep, timeout},
};

use crate::{Progress, SharedLimit, TransportError};

/// Room that is made for each read of a session.
const READ_LEN: usize = 256 << 10;
/// The same before a session: a peer that has proven nothing gets little memory.
const OPENING_READ_LEN: usize = 4 << 10;
/// Longest single read or write while a bandwidth limit is at work: it bounds the bursts.
const PACED_LEN: usize = 16 << 10;
/// Bytes that a peer has to read now and then while there is always something to read. On a link of
/// 1 Mbit/s that takes 9 s.
const READ_MIN: u64 = 1 << 20;
/// How often the link looks at its timeouts.
const TICK: Duration = Duration::from_secs(1);
/// How long a connection attempt may take.
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// How long to wait for the peer's end of stream after ours, so that what we said last is
/// not lost with a reset.
const LINGER_MAX: Duration = Duration::from_secs(5);
/// How much of what the peer still sends is read for that: more than may be on its way.
const LINGER_LEN_MAX: u64 = 2 * WINDOW_DATA_MAX;
/// How often a dialler tries while the handshake is cut off: a busy listener drops some.
const DIALS_MAX: u32 = 3;
/// How long it waits before the second time, and twice as long before the third.
const DIAL_AGAIN: Duration = Duration::from_millis(300);

/// A secure link over a byte stream.
#[derive(Debug)]
pub struct Connection<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    link: Link,
    received: BytesMut,
    sending: Bytes,
    started: Instant,
    /// Room that is made for each read.
    read_len: usize,
    limit: Option<SharedLimit>,
    /// Bytes that were written since the peer last counted as one that reads.
    written: u64,
    progress: Arc<Progress>,
}

impl<S: AsyncRead + AsyncWrite> Connection<S> {
    /// Opens a link to `peer` over `stream`. Says who the peer is, once it has proven it.
    pub async fn open(
        stream: S,
        local: SecretKey,
        peer: Peer,
        progress: Arc<Progress>,
    ) -> Result<(Self, PublicKey), TransportError> {
        let (reader, writer) = tokio::io::split(stream);
        let mut connection = Self {
            reader,
            writer,
            link: Link::new(local, peer, Box::new(fill_random), 0),
            received: BytesMut::new(),
            sending: Bytes::new(),
            started: Instant::now(),
            read_len: OPENING_READ_LEN,
            limit: None,
            written: 0,
            progress,
        };
        match connection.next_event().await? {
            LinkEvent::Open { peer, version } => {
                tracing::debug!(%peer, version, "link open");
                Ok((connection, peer))
            }
            LinkEvent::Message(_) | LinkEvent::Data(_) => Err(TransportError::Closed),
        }
    }

    /// Keeps this limit from now on, both directions together. What the peer sends too fast waits
    /// in its own buffers.
    pub fn limit_rate(&mut self, limit: SharedLimit) {
        self.limit = Some(limit);
    }

    /// Makes room for the data of a session.
    pub(crate) fn widen(&mut self) {
        self.read_len = READ_LEN;
    }

    /// Counts the bytes of this connection.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Queues a message; it goes out while the connection is waited on.
    pub fn send(&mut self, message: &Message) -> Result<(), TransportError> {
        let now_ms = self.now_ms();
        Ok(self.link.send(message, now_ms)?)
    }

    pub(crate) fn send_data(&mut self, part: DataPart) -> Result<(), TransportError> {
        let now_ms = self.now_ms();
        Ok(self.link.send_data(part, now_ms)?)
    }

    pub(crate) fn bind(&mut self, replica: &ReplicaId) {
        self.link.bind(replica);
    }

    /// Waits for the next message, as the opening of a session does.
    pub async fn message(&mut self) -> Result<Message, TransportError> {
        match self.next_event().await? {
            LinkEvent::Message(message) => Ok(message),
            LinkEvent::Open { .. } | LinkEvent::Data(_) => Err(TransportError::Closed),
        }
    }

    /// Waits for `work` and keeps the link alive meanwhile. The peer waits for an answer, so it has
    /// nothing to say but that it lives: anything else ends the session, and nothing is kept.
    pub(crate) async fn keep_alive_while<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, TransportError> {
        let mut work = std::pin::pin!(work);
        loop {
            match self.poll_event()? {
                None => {}
                Some(LinkEvent::Message(message)) => {
                    return Err(
                        SessionError::out_of_place(message, "it waited for an answer").into()
                    );
                }
                Some(LinkEvent::Open { .. } | LinkEvent::Data(_)) => {
                    return Err(SessionError::Violation("data before the answer").into());
                }
            }
            tokio::select! {
                done = &mut work => return Ok(done),
                step = self.step() => step?,
            }
        }
    }

    async fn next_event(&mut self) -> Result<LinkEvent, TransportError> {
        loop {
            if let Some(event) = self.poll_event()? {
                return Ok(event);
            }
            self.step().await?;
        }
    }

    /// What the bytes that have arrived mean, one event at a time.
    pub(crate) fn poll_event(&mut self) -> Result<Option<LinkEvent>, TransportError> {
        let now_ms = self.now_ms();
        Ok(self.link.handle(&mut self.received, now_ms)?)
    }

    /// Whether everything that was queued has been written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.sending.is_empty() && self.link.queued() == 0
    }

    /// Waits until some bytes moved in either direction. Dropping the future loses nothing.
    pub(crate) async fn step(&mut self) -> Result<(), TransportError> {
        let now_ms = self.now_ms();
        self.link.handle_timeout(now_ms)?;
        if self.sending.is_empty() {
            self.sending = self.link.poll_transmit().unwrap_or_default();
        }
        let wait_ms = self.limit.as_ref().map_or(0, SharedLimit::wait_ms);
        let burst = self.limit.as_ref().map_or(self.read_len, |limit| limit.burst(PACED_LEN));
        let chunk = &self.sending[..self.sending.len().min(burst)];
        let wait = if wait_ms > 0 { TICK.min(Duration::from_millis(wait_ms)) } else { TICK };
        // What was received shares its memory with what arrived beside it, so that is filled first.
        if self.received.capacity() - self.received.len() < burst / 4 {
            self.received.reserve(burst);
        }
        let mut room = (&mut self.received).limit(burst);
        let moved = tokio::select! {
            read = self.reader.read_buf(&mut room), if wait_ms == 0 => {
                let read = read? as u64;
                self.progress.add_received(read);
                Some(read)
            }
            written = self.writer.write(chunk), if wait_ms == 0 && !chunk.is_empty() => {
                let written = written?;
                self.sending.advance(written);
                self.written += written as u64;
                self.progress.add_sent(written as u64);
                Some(written as u64)
            }
            () = sleep(wait) => None,
        };
        // What a limit of our own keeps back is not the peer's doing.
        let lags = !self.is_flushed() && self.written < READ_MIN && self.limit.is_none();
        if !lags {
            self.written = 0;
        }
        self.progress.lags(lags);
        match (moved, &self.limit) {
            (Some(0), _) => return Err(TransportError::Closed),
            (Some(moved), Some(limit)) => limit.moved(moved),
            (Some(_), None) | (None, _) => {}
        }
        Ok(())
    }

    /// Writes everything out and waits for the peer to hang up as well.
    pub async fn close(mut self) -> Result<(), TransportError> {
        let (mut left, mut moved) = (self.unsent(), Instant::now());
        while !self.is_flushed() {
            self.step().await?;
            // What the peer still says shows that it lives, and is not for us any more.
            while self.poll_event()?.is_some() {}
            if self.unsent() < left {
                (left, moved) = (self.unsent(), Instant::now());
            } else if moved.elapsed() >= Duration::from_millis(SILENCE_MS_MAX) {
                return Err(LinkError::Silent.into());
            }
        }
        self.writer.shutdown().await?;
        // A close with unread input would reset the connection, and the reset can overtake
        // what we said last.
        let drain = async {
            let (mut scratch, mut drained) = (vec![0; OPENING_READ_LEN], 0);
            while let Ok(read @ 1..) = self.reader.read(&mut scratch).await
                && drained < LINGER_LEN_MAX
            {
                drained += read as u64;
            }
        };
        // A peer that does not hang up has had its time.
        let _ = timeout(LINGER_MAX, drain).await;
        Ok(())
    }

    /// Bytes that were queued and not written.
    fn unsent(&self) -> usize {
        self.sending.len() + self.link.queued()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Randomness from the operating system.
fn fill_random(buffer: &mut [u8]) {
    // There is no way to go on without it, and none is needed: Linux always has it.
    getrandom::fill(buffer).expect("the operating system gives random bytes");
}

/// Connects to `address`, where the owner of `peer` listens. A listener with too many unfinished
/// handshakes drops some, so one that was cut off is tried again before that counts as an answer.
pub async fn dial(
    address: impl ToSocketAddrs,
    local: SecretKey,
    peer: PublicKey,
    progress: Arc<Progress>,
) -> Result<Connection<TcpStream>, TransportError> {
    let mut wait = DIAL_AGAIN;
    for _ in 1..DIALS_MAX {
        match dial_once(&address, local.clone(), peer, progress.clone()).await {
            Err(TransportError::NotLetIn(_) | TransportError::Link(LinkError::Full)) => {}
            done => return done,
        }
        sleep(wait).await;
        wait *= 2;
    }
    dial_once(&address, local, peer, progress).await
}

async fn dial_once(
    address: impl ToSocketAddrs,
    local: SecretKey,
    peer: PublicKey,
    progress: Arc<Progress>,
) -> Result<Connection<TcpStream>, TransportError> {
    let stream = match timeout(CONNECT_MAX, TcpStream::connect(address)).await {
        Ok(stream) => stream?,
        Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    };
    stream.set_nodelay(true)?;
    let ours = local.public();
    match Connection::open(stream, local, Peer::Dial(peer), progress).await {
        Ok((connection, _)) => Ok(connection),
        Err(TransportError::Closed) => Err(TransportError::NotLetIn(ours)),
        Err(TransportError::Io(error)) if is_hang_up(&error) => Err(TransportError::NotLetIn(ours)),
        Err(error) => Err(error),
    }
}

/// Whether the peer has closed the connection: with a reset if we had sent what it did not read, and
/// while we write if it was even sooner.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Turns a dialler away before its handshake, and says that it may try again.
pub fn turn_away(stream: &TcpStream) {
    // A peer that has not said its hello yet, or is gone, hears nothing, and tries again as well.
    let _ = stream.try_read(&mut [0; HELLO_LEN]);
    let _ = stream.try_write(&Hello::FULL.to_bytes());
}

/// Waits for peers.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
}

impl Listener {
    /// Listens on `address`.
    pub async fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next peer. Nothing is known of it before [`Connection::open`] has succeeded.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, address) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, address))
    }
}

#[cfg(test)]
mod tests {
    use driftline_extent::Reason;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_link_reads_enough_and_a_peer_that_sips_does_not() {
        let [ours, theirs] = [1, 2].map(|seed| SecretKey::from_random([seed; 32]));
        let (near, far) = tokio::io::duplex(64 << 10);
        let (dial, listen) = (Peer::Dial(theirs.public()), Peer::Listen(vec![ours.public()]));
        let listened = tokio::spawn(Connection::open(far, theirs, listen, Arc::default()));
        let (mut sender, _) = Connection::open(near, ours, dial, Arc::default()).await.unwrap();
        sender.step().await.unwrap();
        let (mut receiver, _) = listened.await.unwrap().unwrap();
        let refuse = Message::Refuse { reason: Reason::Failed, detail: "x".repeat(1024) };
        // 12,500 bytes ten times a second are 1 Mbit/s.
        for (sip, enough) in [(12_500, true), (100, false)] {
            let mut longest = Duration::ZERO;
            for _ in 0..200 {
                while sender.unsent() < 4 << 20 {
                    sender.send(&refuse).unwrap();
                }
                let tenth = Instant::now() + Duration::from_millis(100);
                while let Ok(step) = tokio::time::timeout_at(tenth, sender.step()).await {
                    step.unwrap();
                }
                receiver.reader.read_exact(&mut vec![0; sip]).await.unwrap();
                longest = longest.max(sender.progress.unread());
            }
            assert_eq!(longest < Duration::from_secs(10), enough, "{sip}: {longest:?}");
        }
        // Whoever has nothing to read is not slow.
        let drain = async { while receiver.reader.read(&mut [0; 4096]).await.is_ok() {} };
        let flush = async {
            while !sender.is_flushed() {
                sender.step().await.unwrap();
            }
        };
        tokio::select! { () = drain => {}, () = flush => {} }
        assert!(sender.progress.unread() < Duration::from_secs(1));
    }

    /// However soon a listener hangs up, the dialler knows what that may mean, and tries again.
    #[tokio::test]
    async fn whoever_hangs_up_in_the_handshake_has_not_let_us_in() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let [ours, theirs] = [1, 2].map(|seed| SecretKey::from_random([seed; 32]));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_zero_linger().unwrap();
            }
        });
        for _ in 0..300 {
            let dialled = dial_once(address, ours.clone(), theirs.public(), Arc::default()).await;
            assert!(matches!(dialled, Err(TransportError::NotLetIn(_))), "{dialled:?}");
        }
        assert!(is_hang_up(&io::ErrorKind::BrokenPipe.into()));
    }
}
