//! What the fuzz targets run, and the ordinary test over their corpus. Never in a release.
//!
//! Each body takes arbitrary bytes, and panics if the code under test breaks a promise.

use bytes::{Bytes, BytesMut};
use driftline_chunking::ChunkKey;
use driftline_extent::{
    Accepts, Ask, Begin, BlockMask, ChunkId, Committed, Finish, Generation, GrainHash, Item,
    Missing, Offer, Plan, PlanKind, Reason, Root, Standing,
};

use crate::{
    Announced, Hello, Inbound, Link, LinkEvent, Message, Packed, Packer, Payload, Peer, Receiver,
    ReceiverOutput, SecretKey, Sender, SenderOutput, SessionError, Unpacker,
    frame::{HEADER_LEN, Header},
    message::DataPart,
};

/// A hello is refused, or is written as it was read.
pub fn hello(bytes: &[u8]) {
    let Some((bytes, rest)) = bytes.split_first_chunk() else { return };
    if let Ok(hello) = Hello::from_bytes(bytes) {
        assert_eq!(hello.to_bytes(), *bytes);
        let _ = Hello::negotiate(&hello);
    }
    let mut received = BytesMut::from([bytes.as_slice(), rest].concat().as_slice());
    drain(&mut listener(), &mut received);
}

/// A message is refused, or is written as it was read. The reason of a newer peer alone is
/// read as another one.
pub fn message(bytes: &[u8]) {
    let Ok(message) = Message::from_bytes(bytes) else { return };
    let again = message.to_bytes();
    let renamed = match &message {
        Message::Refuse { reason, .. } => *reason == Reason::Failed,
        Message::Offer(offer) => offer.plan.standing == Standing::Suspect(Reason::Failed),
        _ => false,
    };
    assert!(again == bytes || renamed, "{message:?} has two encodings");
    assert_eq!(again.len(), bytes.len());
    assert_eq!(Message::from_bytes(&again), Ok(message));
}

/// The first byte chooses the stage of a link that gets the rest: listening, dialling, open,
/// or none at all but the readers of headers and data.
pub fn frames(bytes: &[u8]) {
    let Some((&stage, rest)) = bytes.split_first() else { return };
    let mut received = BytesMut::from(rest);
    match stage % 4 {
        0 => drain(&mut listener(), &mut received),
        1 => drain(&mut dialler(), &mut received),
        2 => {
            let (mut dialler, mut listener) = (dialler(), listener());
            connect(&mut dialler, &mut listener);
            drain(&mut listener, &mut received);
        }
        _ => header_and_part(rest),
    }
}

fn header_and_part(bytes: &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return };
    if let Ok(header) = Header::from_bytes(head) {
        assert_eq!(header.to_bytes(), *head);
    }
    let Ok(part) = DataPart::from_bytes(Bytes::copy_from_slice(rest)) else { return };
    assert_eq!([part.header().as_slice(), &part.body].concat(), rest);
    let mut unpacker = Unpacker::new().expect("a zstd context needs only memory");
    if let Ok(data) = unpacker.unpack(std::slice::from_ref(&part)) {
        assert_eq!(data.len(), part.raw_len as usize);
    }
}

fn listener() -> Link {
    let dialler = SecretKey::from_random([1; 32]).public();
    link(2, Peer::Listen(vec![dialler]))
}

fn dialler() -> Link {
    let listener = SecretKey::from_random([2; 32]).public();
    link(1, Peer::Dial(listener))
}

fn link(seed: u8, peer: Peer) -> Link {
    let entropy = Box::new(move |bytes: &mut [u8]| bytes.fill(seed));
    let mut link = Link::new(SecretKey::from_random([seed; 32]), peer, entropy, 0);
    link.fix_ephemeral([seed + 8; 32]);
    link
}

/// Carries bytes to and fro until neither has any: both are open then.
fn connect(a: &mut Link, b: &mut Link) {
    let (mut to_a, mut to_b) = (BytesMut::new(), BytesMut::new());
    loop {
        std::iter::from_fn(|| a.poll_transmit()).for_each(|bytes| to_b.extend_from_slice(&bytes));
        std::iter::from_fn(|| b.poll_transmit()).for_each(|bytes| to_a.extend_from_slice(&bytes));
        if to_a.is_empty() && to_b.is_empty() {
            return;
        }
        drain(a, &mut to_a);
        drain(b, &mut to_b);
    }
}

/// Feeds a link to the end or to its death. Nothing that was not sealed by its peer may come
/// out of it.
fn drain(link: &mut Link, received: &mut BytesMut) {
    loop {
        match link.handle(received, 0) {
            Ok(Some(LinkEvent::Open { .. })) => {}
            Ok(Some(event)) => panic!("{event:?} was never sent"),
            Ok(None) => return,
            Err(_) => {
                let _ = link.handle(received, 0);
                return;
            }
        }
    }
}

/// A sender and a receiver that hear what a peer may say once the link is open: records of a
/// length (two bytes; the top bit says that it is data) and as many bytes.
pub fn session(bytes: &[u8]) {
    let mut sender = Source::default();
    let mut receiver = Receiver::new(state());
    settle(&mut receiver);
    let (mut sending, mut receiving) = (true, true);
    let mut rest = bytes;
    while let Some((len, more)) = rest.split_first_chunk() {
        let len = u16::from_le_bytes(*len);
        let (record, later) = more.split_at(more.len().min(usize::from(len & 0x7fff)));
        rest = later;
        if len & 0x8000 != 0 {
            if let Ok(part) = DataPart::from_bytes(Bytes::copy_from_slice(record)) {
                receiving = receiving && receiver.handle_data(part).is_ok();
            }
        } else if let Ok(message) = Message::from_bytes(record) {
            sending = sending && sender.hear(message.clone()).is_ok();
            receiving = receiving && receiver.handle_message(message).is_ok();
        }
        settle(&mut receiver);
    }
}

fn state() -> driftline_extent::TargetState {
    driftline_extent::TargetState {
        replica: driftline_extent::ReplicaId([1; 16]),
        chunk_key: [2; 32],
        volume: None,
        generation: Some(Generation::zfs(1)),
        root: Some(Root([3; 32])),
        size: 1 << 20,
        incomplete: false,
        damaged: false,
        resume: None,
        accepts: Accepts::Volume,
    }
}

/// Does at once what a receiver wants done.
fn settle(receiver: &mut Receiver) {
    while let Some(output) = receiver.poll() {
        match output {
            ReceiverOutput::Send(message) => {
                assert_eq!(Message::from_bytes(&message.to_bytes()), Ok(message));
            }
            ReceiverOutput::Answer(_) => receiver.handle_answered(state()),
            ReceiverOutput::Begin(offer) => {
                let from = u64::from(offer.plan.kind != PlanKind::Stream);
                receiver.handle_begun(Begin { from });
            }
            ReceiverOutput::LookUp(batch) => {
                let missing = batch.items.iter().map(|item| match item.narrowable() {
                    Some(grains) if item.first() % 3 == 1 => {
                        Missing::Unlike(vec![GrainHash([7; 8]); grains.count()])
                    }
                    _ if item.first() % 3 == 0 => Missing::Nothing,
                    _ => Missing::All,
                });
                receiver.handle_looked_up(batch.seq, missing.collect());
            }
            ReceiverOutput::Apply(arrived) => {
                let items = arrived.batch.items.iter().zip(&arrived.inbound);
                let wanted: u64 = items.clone().map(|(item, inbound)| inbound.data_len(item)).sum();
                let came: u64 = arrived.parts.iter().map(|part| u64::from(part.raw_len)).sum();
                assert_eq!(wanted, came);
                // Some grains are said to have lied.
                let misfits = (0..).zip(items).filter_map(|(place, (item, inbound))| {
                    let narrowed = matches!(inbound, Inbound::Grains(_));
                    (narrowed && item.first() % 2 == 0).then_some(place)
                });
                let misfits: Vec<u16> = misfits.collect();
                match misfits.is_empty() {
                    true => receiver.handle_applied(arrived.batch.seq),
                    false => receiver.handle_misfits(arrived.batch.seq, misfits),
                }
            }
            ReceiverOutput::Commit(Finish { tip, size, root }) => {
                let root = root.unwrap_or(Root([4; 32]));
                let size = size.unwrap_or(1 << 20);
                let committed = Committed { generation: tip, root, size, zeroed: None };
                receiver.handle_committed(committed);
            }
            ReceiverOutput::Ended => {}
        }
    }
}

/// A sender with two batches to announce in each increment: of a stream, if the target takes
/// such.
#[derive(Default)]
struct Source {
    sender: Sender,
    stream: bool,
    /// Whether it has asked about a data set.
    asked: bool,
    left: u32,
}

impl Source {
    fn hear(&mut self, message: Message) -> Result<(), SessionError> {
        self.sender.handle_message(message)?;
        while let Some(output) = self.sender.poll() {
            match output {
                SenderOutput::Plan(state) => {
                    self.stream = matches!(state.accepts, Accepts::Stream { .. });
                    match self.stream && !std::mem::replace(&mut self.asked, self.stream) {
                        true => {
                            let member = "a/b".to_owned();
                            self.sender.handle_ask(Ask { member, discard: false });
                        }
                        false => self.sender.handle_plan(offer(self.stream)),
                    }
                }
                SenderOutput::Deliver(_) => self.left = 2,
                SenderOutput::Pack { seq, pieces } => {
                    let (mut narrowed, mut data) = (Vec::new(), Vec::new());
                    for piece in &pieces {
                        let (Item::Chunk { .. } | Item::Part { .. }, Payload::Held(bytes)) =
                            (piece.announced.item, &piece.announced.payload)
                        else {
                            unreachable!("none was announced")
                        };
                        data.push(bytes.as_ref());
                        if let (Item::Chunk { data, .. }, Some(theirs)) =
                            (piece.announced.item, &piece.theirs)
                        {
                            narrowed.push(ChunkKey::new(&[2; 32]).unlike(data, bytes, theirs));
                        }
                    }
                    let parts = Packer::new(None).map(|mut p| p.pack(seq, data));
                    let parts = parts.unwrap_or_default();
                    self.sender.handle_packed(seq, Packed { narrowed, parts });
                }
                SenderOutput::Send(_) | SenderOutput::SendData(_) => {}
                SenderOutput::Compared(compared) => {
                    assert!(compared.iter().all(|c| matches!(c.span, Item::Span { .. })));
                }
                SenderOutput::Committed(committed) => assert_eq!(committed.generation, TIP),
                SenderOutput::Ended => {}
            }
        }
        while self.left > 0 && self.sender.wants_batch() {
            self.left -= 1;
            let batch = if self.stream { parts(1 - self.left) } else { batch() };
            self.sender.handle_batch(batch);
            if self.left == 0 {
                self.sender.handle_end(Finish { tip: TIP, size: None, root: None });
            }
        }
        Ok(())
    }
}

const TIP: Generation = Generation::zfs(2);

fn offer(stream: bool) -> Offer {
    let kind = if stream { PlanKind::Stream } else { PlanKind::Incremental };
    let standing = Standing::Proven;
    let (base, tip) = (Some(Generation::zfs(1)), Some(TIP));
    let plan = Plan { kind, volume: None, base, tip, size: None, standing, bytes_expected: 0 };
    Offer { plan, overwrite: false }
}

/// Two of four parts of a stream.
fn parts(batch: u32) -> Vec<Announced> {
    let index = 2 * u64::from(batch);
    let part = |index, len: u32| Announced {
        item: Item::Part { index, len, id: ChunkId([6; 32]) },
        payload: Payload::Held(vec![2; len as usize].into()),
    };
    vec![part(index, 312), part(index + 1, 4096)]
}

fn batch() -> Vec<Announced> {
    let (data, zero, id) = (BlockMask(1), BlockMask(2), ChunkId([5; 32]));
    vec![
        Announced {
            item: Item::Chunk { index: 0, data, zero, id },
            payload: Payload::Held(vec![1; 512].into()),
        },
        Announced {
            item: Item::Span { index: 1, count: 2, digest: id },
            payload: Payload::Held(Bytes::new()),
        },
        Announced {
            item: Item::Chunk { index: 3, data: BlockMask(0xffff), zero: BlockMask::NONE, id },
            payload: Payload::Held(vec![1; 8192].into()),
        },
    ]
}
