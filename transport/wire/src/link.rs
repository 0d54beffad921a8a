//! The secure link: bytes in, messages out; messages in, bytes out. No I/O, no clock.

use std::{collections::VecDeque, fmt, mem};

use bytes::{Buf, Bytes, BytesMut};
use driftline_extent::ReplicaId;
use snow::{Builder, HandshakeState, TransportState, params::NoiseParams};
use zeroize::Zeroizing;

use crate::{
    codec::{DecodeError, Reader, Write},
    frame::{BulkError, BulkKey, FrameKind, HEADER_LEN, Header, TAG_LEN},
    hello::{HELLO_LEN, Hello, HelloError},
    keys::{PublicKey, SecretKey},
    limits::{
        HANDSHAKE_MS_MAX, KEEPALIVE_MS, LIFE_LEN_MIN, REKEY_BYTES, REKEY_MS, SIGN_MS_MIN,
        SIGNS_AT_ONCE_MAX, SILENCE_MS_MAX,
    },
    message::{DataPart, Message},
};

const NOISE: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
const TAG_KEYS: u8 = 1;
const TAG_REKEY: u8 = 2;

/// Fills a buffer with randomness that nobody can guess.
pub type Entropy = Box<dyn FnMut(&mut [u8]) + Send>;

/// Why a link is over.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The hellos do not agree.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The handshake failed: a wrong key on one side, or someone in between.
    #[error(
        "the handshake failed: the peer's key is not the pinned one, or ours is not pinned there"
    )]
    Handshake(#[source] snow::Error),
    /// The peer proved a key that is not on our list.
    #[error("the peer's key {0} is not allowed here")]
    Unpinned(PublicKey),
    /// A frame was changed on its way.
    #[error("a frame is damaged or forged: it does not authenticate")]
    Crypto,
    /// A frame was left out, doubled, moved or replayed.
    #[error("frame {got} came where frame {expected} was due: lost, doubled or replayed")]
    Sequence {
        /// Its number.
        got: u64,
        /// The number that was due.
        expected: u64,
    },
    /// A frame belongs to another pair of volumes.
    #[error("a frame of another pair of volumes arrived")]
    Pair,
    /// A frame or message makes no sense.
    #[error("malformed frame")]
    Decode(#[from] DecodeError),
    /// A frame of this kind has no place here.
    #[error("a {0} frame has no place here")]
    Unexpected(&'static str),
    /// The handshake took too long.
    #[error("the peer did not complete the handshake within {} seconds", HANDSHAKE_MS_MAX / 1000)]
    HandshakeTimeout,
    /// The listener turned us away before the handshake.
    #[error(
        "the peer has too many unfinished connections and turned this one away: it is busy; run \
         again"
    )]
    Full,
    /// The peer has been silent for too long.
    #[error("the peer has been silent for {} seconds", SILENCE_MS_MAX / 1000)]
    Silent,
    /// The peer says nothing, again and again.
    #[error("the peer sends far more signs of life than the protocol allows")]
    Flood,
    /// The link failed before and cannot be used.
    #[error("the link has failed before")]
    Failed,
}

impl From<BulkError> for LinkError {
    fn from(error: BulkError) -> Self {
        match error {
            BulkError::Crypto => Self::Crypto,
            BulkError::Decode(error) => Self::Decode(error),
        }
    }
}

/// What a link has to tell.
#[derive(Debug)]
pub enum LinkEvent {
    /// The peer has proven its key and is not a replay.
    Open {
        /// Its key.
        peer: PublicKey,
        /// The protocol version that both speak.
        version: u16,
    },
    /// A control message.
    Message(Message),
    /// Data.
    Data(DataPart),
}

/// Whom to talk to.
#[derive(Debug, Clone)]
pub enum Peer {
    /// Dial the one that has this key.
    Dial(PublicKey),
    /// Listen to whoever has one of these.
    Listen(Vec<PublicKey>),
}

/// One end of a secure link.
///
/// The shell feeds received bytes to [`handle`](Self::handle), sends what
/// [`poll_transmit`](Self::poll_transmit) gives, and calls
/// [`handle_timeout`](Self::handle_timeout) now and then. Times are milliseconds of any clock
/// that never goes back.
pub struct Link {
    local: SecretKey,
    peer: Peer,
    entropy: Entropy,
    stage: Stage,
    version: u16,
    transmit: VecDeque<Bytes>,
    queued: usize,
    sequence_out: u64,
    sequence_in: u64,
    /// The identity of the volume pair, once there is one.
    pair: Option<u64>,
    binding: [u8; 32],
    opened_ms: u64,
    heard_ms: u64,
    /// Bytes of an unfinished frame that had arrived when the link was last seen to live.
    partial: usize,
    /// Frames of the peer that said nothing to the session.
    signs: u64,
    sent_ms: u64,
    rekeyed_ms: u64,
    /// Bulk bytes sealed under the current key.
    sealed: u64,
    #[cfg(any(test, feature = "testing"))]
    fixed_ephemeral: Option<[u8; 32]>,
}

enum Stage {
    Hello,
    Handshake(Box<HandshakeState>),
    /// Handshake done; the peer has not yet shown that it is no replay.
    Keying(Box<TransportState>, BulkKey),
    Open(Box<TransportState>, BulkKey, BulkKey),
    Failed,
}

impl Link {
    /// A link that starts with a hello to `peer`.
    pub fn new(local: SecretKey, peer: Peer, entropy: Entropy, now_ms: u64) -> Self {
        let mut link = Self {
            local,
            peer,
            entropy,
            stage: Stage::Hello,
            version: 0,
            transmit: VecDeque::new(),
            queued: 0,
            sequence_out: 0,
            sequence_in: 0,
            pair: None,
            binding: [0; 32],
            opened_ms: now_ms,
            heard_ms: now_ms,
            partial: 0,
            signs: 0,
            sent_ms: now_ms,
            rekeyed_ms: now_ms,
            sealed: 0,
            #[cfg(any(test, feature = "testing"))]
            fixed_ephemeral: None,
        };
        link.queue(Bytes::copy_from_slice(&Hello::OURS.to_bytes()));
        link
    }

    /// Takes the handshake's ephemeral key from the caller, so that golden bytes exist.
    #[cfg(any(test, feature = "testing"))]
    pub fn fix_ephemeral(&mut self, key: [u8; 32]) {
        self.fixed_ephemeral = Some(key);
    }

    /// Counts bulk bytes as sealed that never were, so that a rekey by bytes can be tested.
    #[cfg(any(test, feature = "testing"))]
    pub fn count_sealed(&mut self, bytes: u64) {
        self.sealed += bytes;
    }

    /// Takes at most one frame off `received` and says what it meant. Call again until it
    /// says `None` and leaves the rest for later. After an error the link is dead.
    pub fn handle(
        &mut self,
        received: &mut BytesMut,
        now_ms: u64,
    ) -> Result<Option<LinkEvent>, LinkError> {
        // A large frame takes longer than the longest silence on a slow link. Single bytes are no
        // life: a frame whose length was damaged would be waited for without end.
        if received.len() >= self.partial + LIFE_LEN_MIN && matches!(self.stage, Stage::Open(..)) {
            self.heard_ms = now_ms;
            self.partial = received.len();
        }
        let before = received.len();
        let result = self.try_handle(received, now_ms);
        if received.len() < before {
            self.partial = received.len();
        }
        if result.is_err() {
            self.stage = Stage::Failed;
        }
        result
    }

    fn try_handle(
        &mut self,
        received: &mut BytesMut,
        now_ms: u64,
    ) -> Result<Option<LinkEvent>, LinkError> {
        if matches!(self.stage, Stage::Hello) {
            let Some(hello) = received.first_chunk::<HELLO_LEN>() else { return Ok(None) };
            let hello = Hello::from_bytes(hello)?;
            received.advance(HELLO_LEN);
            self.heard_ms = now_ms;
            self.handle_hello(&hello)?;
        }
        // A frame that says nothing to the session must not end the loop of the caller.
        loop {
            let Some((header, body)) = next_frame(received)? else { return Ok(None) };
            self.heard_ms = now_ms;
            if header.seq != self.sequence_in {
                let (got, expected) = (header.seq, self.sequence_in);
                return Err(LinkError::Sequence { got, expected });
            }
            self.sequence_in += 1;
            if let Some(event) = self.handle_frame(header, body, now_ms)? {
                return Ok(Some(event));
            }
        }
    }

    /// Counts a frame that says nothing to the session: opening it costs time, so a peer that
    /// sends nothing else is cut off. One that keeps to the protocol stays far below the limit,
    /// also where many of its frames arrive at once.
    fn count_sign(&mut self, now_ms: u64) -> Result<(), LinkError> {
        self.signs += 1;
        let passed = now_ms.saturating_sub(self.opened_ms) / SIGN_MS_MIN;
        if self.signs > SIGNS_AT_ONCE_MAX + passed { Err(LinkError::Flood) } else { Ok(()) }
    }

    fn handle_hello(&mut self, peer: &Hello) -> Result<(), LinkError> {
        if peer.is_full() && matches!(self.peer, Peer::Dial(_)) {
            return Err(LinkError::Full);
        }
        self.version = Hello::negotiate(peer)?;
        let (ours, theirs) = (Hello::OURS.to_bytes(), peer.to_bytes());
        let prologue = match self.peer {
            Peer::Dial(_) => [ours, theirs],
            Peer::Listen(_) => [theirs, ours],
        }
        .concat();
        let params: NoiseParams = NOISE.parse().map_err(LinkError::Handshake)?;
        let builder = Builder::new(params);
        #[cfg(any(test, feature = "testing"))]
        let builder = match &self.fixed_ephemeral {
            Some(key) => builder.fixed_ephemeral_key_for_testing_only(key),
            None => builder,
        };
        let builder = builder
            .prologue(&prologue)
            .and_then(|b| b.local_private_key(self.local.bytes()))
            .map_err(LinkError::Handshake)?;
        let noise = match &self.peer {
            Peer::Dial(key) => builder.remote_public_key(&key.0).and_then(|b| b.build_initiator()),
            Peer::Listen(_) => builder.build_responder(),
        };
        let mut noise = noise.map_err(LinkError::Handshake)?;
        if noise.is_initiator() {
            self.send_handshake(&mut noise)?;
        }
        self.stage = Stage::Handshake(Box::new(noise));
        Ok(())
    }

    fn send_handshake(&mut self, noise: &mut HandshakeState) -> Result<(), LinkError> {
        let mut body = [0; 256];
        let len = noise.write_message(&[], &mut body).map_err(LinkError::Handshake)?;
        let header = self.next_header(FrameKind::Handshake, len);
        self.queue([header.to_bytes().as_slice(), &body[..len]].concat().into());
        Ok(())
    }

    fn handle_frame(
        &mut self,
        header: Header,
        body: BytesMut,
        now_ms: u64,
    ) -> Result<Option<LinkEvent>, LinkError> {
        match (mem::replace(&mut self.stage, Stage::Failed), header.kind) {
            (Stage::Handshake(noise), FrameKind::Handshake) => {
                // Noise does not cover the header of its own handshake messages.
                self.check_pair(header)?;
                self.handle_handshake(*noise, &body, now_ms)?;
                Ok(None)
            }
            (Stage::Keying(mut noise, out), FrameKind::Control) => {
                let message = read_control(&mut noise, header, &body)?;
                let inward = read_key(TAG_KEYS, &message)?;
                let peer = remote_key(noise.get_remote_static())?;
                self.stage = Stage::Open(noise, out, inward);
                Ok(Some(LinkEvent::Open { peer, version: self.version }))
            }
            (Stage::Open(mut noise, out, inward), FrameKind::Control) => {
                let message = read_control(&mut noise, header, &body)?;
                if message.first() == Some(&TAG_REKEY) {
                    self.count_sign(now_ms)?;
                    noise.rekey_incoming();
                    let inward = read_key(TAG_REKEY, &message)?;
                    self.stage = Stage::Open(noise, out, inward);
                    return Ok(None);
                }
                self.stage = Stage::Open(noise, out, inward);
                match Message::from_bytes(&message)? {
                    Message::KeepAlive => self.count_sign(now_ms).map(|()| None),
                    // A peer may refuse before it has heard of the pair.
                    refuse @ Message::Refuse { .. } => Ok(Some(LinkEvent::Message(refuse))),
                    message => {
                        self.check_pair(header)?;
                        Ok(Some(LinkEvent::Message(message)))
                    }
                }
            }
            (Stage::Open(noise, out, inward), FrameKind::Bulk) => {
                self.check_pair(header)?;
                let part = inward.open(header, body)?;
                self.stage = Stage::Open(noise, out, inward);
                Ok(Some(LinkEvent::Data(part)))
            }
            (Stage::Failed, _) => Err(LinkError::Failed),
            (_, FrameKind::Handshake) => Err(LinkError::Unexpected("handshake")),
            (_, FrameKind::Control) => Err(LinkError::Unexpected("control")),
            (_, FrameKind::Bulk) => Err(LinkError::Unexpected("bulk")),
        }
    }

    fn handle_handshake(
        &mut self,
        mut noise: HandshakeState,
        body: &[u8],
        now_ms: u64,
    ) -> Result<(), LinkError> {
        let mut payload = [0; 256];
        let len = noise.read_message(body, &mut payload).map_err(LinkError::Handshake)?;
        if len != 0 {
            return Err(DecodeError::Trailing { count: len }.into());
        }
        if let Peer::Listen(allowed) = &self.peer {
            let key = remote_key(noise.get_remote_static())?;
            if !allowed.contains(&key) {
                return Err(LinkError::Unpinned(key));
            }
            self.send_handshake(&mut noise)?;
        }
        self.binding = *blake3::hash(noise.get_handshake_hash()).as_bytes();
        let mut noise = Box::new(noise.into_transport_mode().map_err(LinkError::Handshake)?);
        let out = self.send_key(TAG_KEYS, &mut noise, now_ms)?;
        self.stage = Stage::Keying(noise, out);
        Ok(())
    }

    /// Once both sides know the replica, every frame names the pair of volumes. The name
    /// differs from session to session, so that it tells an onlooker nothing.
    pub fn bind(&mut self, replica: &ReplicaId) {
        let name = blake3::keyed_hash(&self.binding, &replica.0);
        let (name, _) = name.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
        // Zero means that there is no pair.
        self.pair = Some(u64::from_le_bytes(*name).max(1));
    }

    fn check_pair(&self, header: Header) -> Result<(), LinkError> {
        if header.pair == self.pair.unwrap_or(0) { Ok(()) } else { Err(LinkError::Pair) }
    }

    /// Queues a control message.
    pub fn send(&mut self, message: &Message, now_ms: u64) -> Result<(), LinkError> {
        self.with_open(|link, noise, out| {
            link.rekey_if_due(noise, out, now_ms)?;
            link.send_control(noise, &message.to_bytes(), now_ms)
        })
    }

    /// Queues data.
    pub fn send_data(&mut self, part: DataPart, now_ms: u64) -> Result<(), LinkError> {
        self.with_open(|link, noise, out| {
            link.rekey_if_due(noise, out, now_ms)?;
            let header = link.next_header(FrameKind::Bulk, 0);
            let frame = out.seal(part, header.seq, header.pair)?;
            link.sealed += frame.len() as u64;
            link.sent_ms = now_ms;
            link.queue(frame);
            Ok(())
        })
    }

    /// Lends the ciphers of an open link out; if that fails, the link is dead.
    fn with_open(
        &mut self,
        act: impl FnOnce(&mut Self, &mut TransportState, &mut BulkKey) -> Result<(), LinkError>,
    ) -> Result<(), LinkError> {
        match mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Open(mut noise, mut out, inward) => {
                act(self, &mut noise, &mut out)?;
                self.stage = Stage::Open(noise, out, inward);
                Ok(())
            }
            Stage::Failed => Err(LinkError::Failed),
            early => {
                self.stage = early;
                Err(LinkError::Unexpected("early control"))
            }
        }
    }

    fn rekey_if_due(
        &mut self,
        noise: &mut TransportState,
        out: &mut BulkKey,
        now_ms: u64,
    ) -> Result<(), LinkError> {
        if self.sealed >= REKEY_BYTES || now_ms.saturating_sub(self.rekeyed_ms) >= REKEY_MS {
            *out = self.send_key(TAG_REKEY, noise, now_ms)?;
            noise.rekey_outgoing();
        }
        Ok(())
    }

    /// Draws a bulk key for our direction and tells the peer.
    fn send_key(
        &mut self,
        tag: u8,
        noise: &mut TransportState,
        now_ms: u64,
    ) -> Result<BulkKey, LinkError> {
        let mut key = Zeroizing::new([0; 32]);
        (self.entropy)(key.as_mut());
        let mut message = Zeroizing::new(vec![tag]);
        message.put(key.as_ref());
        self.send_control(noise, &message, now_ms)?;
        self.sealed = 0;
        self.rekeyed_ms = now_ms;
        Ok(BulkKey::new(&key))
    }

    fn send_control(
        &mut self,
        noise: &mut TransportState,
        message: &[u8],
        now_ms: u64,
    ) -> Result<(), LinkError> {
        let header = self.next_header(FrameKind::Control, 16 + message.len() + TAG_LEN);
        let plain = Zeroizing::new([header.inner().as_slice(), message].concat());
        let mut frame = vec![0; HEADER_LEN + plain.len() + TAG_LEN];
        let (head, body) = frame.split_at_mut(HEADER_LEN);
        head.copy_from_slice(&header.to_bytes());
        noise.write_message(&plain, body).map_err(LinkError::Handshake)?;
        self.sent_ms = now_ms;
        self.queue(frame.into());
        Ok(())
    }

    fn next_header(&mut self, kind: FrameKind, len: usize) -> Header {
        let seq = self.sequence_out;
        self.sequence_out += 1;
        Header { kind, len: len as u32, seq, pair: self.pair.unwrap_or(0) }
    }

    fn queue(&mut self, frame: Bytes) {
        self.queued += frame.len();
        self.transmit.push_back(frame);
    }

    /// The next bytes to send.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        let frame = self.transmit.pop_front()?;
        self.queued -= frame.len();
        Some(frame)
    }

    /// Bytes that wait to be sent.
    pub const fn queued(&self) -> usize {
        self.queued
    }

    /// Keeps the link alive and notices when the peer is not.
    pub fn handle_timeout(&mut self, now_ms: u64) -> Result<(), LinkError> {
        if !matches!(self.stage, Stage::Open(..)) {
            // Talking slowly does not keep a half-open handshake alive.
            if now_ms.saturating_sub(self.opened_ms) >= HANDSHAKE_MS_MAX {
                let failed = matches!(mem::replace(&mut self.stage, Stage::Failed), Stage::Failed);
                return Err(if failed { LinkError::Failed } else { LinkError::HandshakeTimeout });
            }
            return Ok(());
        }
        if now_ms.saturating_sub(self.heard_ms) >= SILENCE_MS_MAX {
            self.stage = Stage::Failed;
            return Err(LinkError::Silent);
        }
        if now_ms.saturating_sub(self.sent_ms) >= KEEPALIVE_MS {
            self.send(&Message::KeepAlive, now_ms)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Hello => "hello",
            Stage::Handshake(_) => "handshake",
            Stage::Keying(..) => "keying",
            Stage::Open(..) => "open",
            Stage::Failed => "failed",
        };
        f.debug_struct("Link")
            .field("stage", &stage)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Takes a whole frame off the front, if there is one. Its length is believed only within
/// the limit of its kind, and nothing is allocated for it.
fn next_frame(received: &mut BytesMut) -> Result<Option<(Header, BytesMut)>, DecodeError> {
    let Some(header) = received.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let header = Header::from_bytes(header)?;
    let total = HEADER_LEN + header.len as usize;
    if received.len() < total {
        return Ok(None);
    }
    let mut frame = received.split_to(total);
    Ok(Some((header, frame.split_off(HEADER_LEN))))
}

/// Opens a control frame and checks the copy of the header inside it.
fn read_control(
    noise: &mut TransportState,
    header: Header,
    body: &[u8],
) -> Result<Zeroizing<Vec<u8>>, LinkError> {
    let mut plain = Zeroizing::new(vec![0; body.len()]);
    let len = noise.read_message(body, &mut plain).map_err(|_| LinkError::Crypto)?;
    plain.truncate(len);
    match plain.split_first_chunk::<16>() {
        Some((inner, message)) if *inner == header.inner() => Ok(Zeroizing::new(message.to_vec())),
        _ => Err(LinkError::Crypto),
    }
}

/// Reads a message that hands over a bulk key.
fn read_key(tag: u8, message: &[u8]) -> Result<BulkKey, LinkError> {
    let mut from = Reader::new(message);
    if from.u8("message kind")? != tag {
        return Err(LinkError::Unexpected("control"));
    }
    let key = Zeroizing::new(from.array("bulk key")?);
    from.end()?;
    Ok(BulkKey::new(&key))
}

fn remote_key(key: Option<&[u8]>) -> Result<PublicKey, LinkError> {
    let key = key.and_then(|key| key.try_into().ok()).ok_or(LinkError::Unexpected("handshake"))?;
    Ok(PublicKey(key))
}
