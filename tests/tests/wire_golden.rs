//! The bytes of the protocol, pinned: every message, every kind of frame, and the hello.
//!
//! The files under `data/wire` were not made by the code that they check: the messages were
//! written by hand, and the frames were sealed by an independent program with other libraries.
//! A change of them is a change of the protocol, and needs a new version.

use std::{collections::BTreeSet, fs, path::Path};

use bytes::{Bytes, BytesMut};
use driftline_extent::{
    Accepts, Ask, Begin, BlockMask, ChunkId, Committed, Finish, Generation, GrainHash, GrainMask,
    Item, Missing, Offer, Plan, PlanKind, Point, Reason, ReplicaId, Resume, Root, Scheme, Standing,
    TargetState, VolumeId,
};
use driftline_tests::hex;
use driftline_wire::{
    Batch, Coding, DataPart, DecodeError, Hello, Link, LinkEvent, Message, Peer, SecretKey,
    Unpacker, Verb, limits,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/wire");
const HELLO: &str = "hello";

fn file(name: &str) -> Vec<u8> {
    let path = Path::new(FOLDER).join(name).with_extension("hex");
    match fs::read_to_string(&path) {
        Ok(text) => hex::parse(&text),
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

const BASE: Generation = Generation::zfs(0x1122_3344_5566_7788);
const TIP: Generation = Generation::zfs(0x99aa_bbcc_ddee_ff00);
const ROOT: Root = Root([0x55; 32]);
const VOLUME: VolumeId = VolumeId([0x53; 16]);
const REPLICA: ReplicaId = ReplicaId([0x51; 16]);

fn state() -> TargetState {
    let resume = Resume { base: Some(BASE), tip: Some(Generation::content(ROOT)), from: 3 };
    TargetState {
        replica: REPLICA,
        chunk_key: [0x52; 32],
        volume: Some(VOLUME),
        generation: Some(BASE),
        root: Some(Root([0x54; 32])),
        size: 0x50000,
        incomplete: false,
        damaged: false,
        resume: Some(resume),
        accepts: Accepts::Volume,
    }
}

fn empty_state() -> TargetState {
    let (generation, root, volume, resume) = (None, None, None, None);
    TargetState { volume, generation, root, size: 0, incomplete: true, resume, ..state() }
}

fn stream_state() -> TargetState {
    let point = |guid, name: &str| Point { guid, name: name.to_owned() };
    let points = vec![point(0x1122_3344_5566_7788, "daily"), point(0x99, "größe:1 2")];
    let accepts = Accepts::Stream { token: Some("1-e9b-c8-78da".to_owned()), points };
    let (volume, root, resume) = (None, None, None);
    TargetState { volume, root, size: 0, resume, accepts, ..state() }
}

fn offers() -> [(&'static str, Message); 6] {
    let offer = |plan, overwrite| Message::Offer(Offer { plan, overwrite });
    let incremental = Plan {
        kind: PlanKind::Incremental,
        volume: Some(VOLUME),
        base: Some(BASE),
        tip: Some(TIP),
        size: None,
        standing: Standing::Proven,
        bytes_expected: 123_456,
    };
    let full = Plan {
        kind: PlanKind::Full,
        volume: None,
        base: None,
        tip: Some(Generation::zfs(1)),
        size: Some(1 << 60),
        standing: Standing::Proven,
        bytes_expected: 0,
    };
    let scan = Plan {
        kind: PlanKind::Scan,
        volume: Some(VOLUME),
        base: None,
        tip: None,
        size: None,
        standing: Standing::Suspect(Reason::MapMissing),
        bytes_expected: 1 << 30,
    };
    let drbd = Plan {
        kind: PlanKind::Scan,
        volume: None,
        base: Some(Generation::drbd(0x1122_3344_5566_7789)),
        tip: Some(Generation::drbd(0x99aa_bbcc_ddee_ff01)),
        size: Some(1 << 30),
        standing: Standing::Suspect(Reason::SlotCleared),
        bytes_expected: 1 << 30,
    };
    let open = Generation::new(Scheme::known("qemu"), &[0xa1, 0xa2, 0xa3]).unwrap();
    let stream = Plan {
        kind: PlanKind::Stream,
        volume: None,
        base: Some(BASE),
        tip: Some(TIP),
        size: None,
        standing: Standing::Proven,
        bytes_expected: 1 << 20,
    };
    [
        ("offer-stream", offer(stream, false)),
        ("offer-drbd", offer(drbd.clone(), false)),
        ("offer-open", offer(Plan { base: None, tip: Some(open), ..drbd }, false)),
        ("offer-incremental", offer(incremental, false)),
        ("offer-full", offer(full, true)),
        ("offer-scan", offer(scan, false)),
    ]
}

fn batch() -> Batch {
    let (all, none) = (BlockMask::ALL, BlockMask::NONE);
    let (some, hole) = (BlockMask(0b1011 | (1 << 127)), BlockMask(0b0100));
    let items = vec![
        Item::Chunk { index: 0, data: all, zero: none, id: ChunkId([0x61; 32]) },
        Item::Chunk { index: 1, data: some, zero: hole, id: ChunkId([0x62; 32]) },
        Item::Chunk { index: 2, data: none, zero: BlockMask(u128::MAX - 1), id: ChunkId::ZERO },
        Item::Zero { index: 3, count: 2 },
        Item::Span { index: 4096, count: 4096, digest: ChunkId([0x63; 32]) },
    ];
    Batch { seq: 7, items }
}

fn stream_batch() -> Batch {
    let items = vec![
        Item::Part { index: 0, len: 312, id: ChunkId([0x64; 32]) },
        Item::Part { index: 1, len: 262_144, id: ChunkId([0x65; 32]) },
        Item::Part { index: 2, len: 4096, id: ChunkId::ZERO },
    ];
    Batch { seq: 0, items }
}

/// Every message, under the name of its file.
fn messages() -> Vec<(&'static str, Message)> {
    let request = |verb, volume: &str, like: Option<&str>| {
        let (volume, like) = (volume.to_owned(), like.map(str::to_owned));
        Message::Request { verb, volume, like }
    };
    let detail = "no such volume: vm".to_owned();
    let hashes = [0x81, 0x91].map(|first| GrainHash(std::array::from_fn(|i| first + i as u8)));
    let (nothing, all) = (Missing::Nothing, Missing::All);
    let missing =
        vec![nothing.clone(), all.clone(), Missing::Unlike(hashes.to_vec()), all, nothing];
    let grains = vec![GrainMask(0x8001), GrainMask(0)];
    let size = Some(0x50000);
    let finish = Finish { tip: Generation::content(ROOT), size, root: Some(ROOT) };
    let finish_incremental = Finish { tip: TIP, size: None, root: None };
    let transcript = [0x71; 32];
    let committed = Committed { generation: TIP, root: ROOT, size: 0x50000, zeroed: Some(0x20000) };
    let mut messages = vec![
        ("keep-alive", Message::KeepAlive),
        ("request-push", request(Verb::Push, "tank/vm-1", None)),
        ("request-pull", request(Verb::Pull, "vm", None)),
        ("request-status", request(Verb::Status, "größe", None)),
        ("request-like", request(Verb::Push, "clone", Some("vm"))),
        ("accept", Message::Accept),
        ("refuse", Message::Refuse { reason: Reason::Denied, detail }),
        ("state", Message::State(Box::new(state()))),
        ("state-empty", Message::State(Box::new(empty_state()))),
        ("state-stream", Message::State(Box::new(stream_state()))),
        ("ask", Message::Ask(Ask { member: "fs/größe".to_owned(), discard: true })),
        ("begin", Message::Begin(Begin { from: 0x01_0203 })),
        ("batch", Message::Batch(batch())),
        ("batch-stream", Message::Batch(stream_batch())),
        ("want", Message::Want { seq: 7, missing }),
        ("narrowed", Message::Narrowed { seq: 7, grains }),
        ("again", Message::Again { seq: 7, items: vec![2, 511] }),
        ("applied", Message::Applied { seq: 0x0102_0304 }),
        ("finish", Message::Finish { finish, transcript }),
        ("finish-incremental", Message::Finish { finish: finish_incremental, transcript }),
        ("committed", Message::Committed(committed)),
        ("done", Message::Done),
    ];
    messages.extend(offers());
    messages
}

#[test]
fn messages_are_pinned_in_both_directions() {
    for (name, message) in messages() {
        let pinned = file(name);
        assert!(message.to_bytes() == pinned, "{name} is written as {:02x?}", message.to_bytes());
        assert_eq!(Message::from_bytes(&pinned), Ok(message), "{name}");
    }
}

/// Bit 0 of a UUID is no part of its name: one generation has one encoding.
#[test]
fn the_role_of_a_drbd_device_is_not_sent() {
    let mut bytes = file("offer-drbd");
    let at = bytes.iter().position(|byte| *byte == 0x88).unwrap();
    bytes[at] |= 1;
    assert_eq!(Message::from_bytes(&bytes), Err(DecodeError::Invalid { what: "generation" }));
}

/// Nor is a scheme that has a number written in letters.
#[test]
fn a_scheme_has_one_encoding() {
    let mut bytes = file("offer-open");
    let at = bytes.windows(4).position(|letters| letters == b"qemu").unwrap();
    let invalid = |what| Err(DecodeError::Invalid { what });
    for letters in [b"drbd", b"QEMU", b"qe\0u"] {
        bytes[at..][..4].copy_from_slice(letters);
        assert_eq!(Message::from_bytes(&bytes), invalid("generation scheme"), "{letters:?}");
    }
    let mut bytes = file("offer-open");
    bytes[at + 4] = 0;
    assert_eq!(Message::from_bytes(&bytes), invalid("generation"));
    bytes[at + 4] = 33;
    bytes.extend([0; 64]);
    assert_eq!(Message::from_bytes(&bytes), invalid("generation"));
}

#[test]
fn every_kind_of_message_is_pinned() {
    // A new variant does not compile here; its kind is found below by asking for it.
    for (name, message) in messages() {
        let kind = match message {
            Message::KeepAlive => "keep-alive",
            Message::Request { .. } => "request",
            Message::Accept => "accept",
            Message::Refuse { .. } => "refuse",
            Message::State(_) => "state",
            Message::Ask(_) => "ask",
            Message::Offer(_) => "offer",
            Message::Begin(_) => "begin",
            Message::Batch(_) => "batch",
            Message::Want { .. } => "want",
            Message::Narrowed { .. } => "narrowed",
            Message::Again { .. } => "again",
            Message::Applied { .. } => "applied",
            Message::Finish { .. } => "finish",
            Message::Committed(_) => "committed",
            Message::Done => "done",
        };
        assert!(name.starts_with(kind) && message.name() == kind, "{name} is a {kind}");
    }
    let unknown = |tag: &u8| {
        let value = u64::from(*tag);
        Message::from_bytes(&[*tag]) == Err(DecodeError::Unknown { what: "message kind", value })
    };
    let known: BTreeSet<u8> = (0..=u8::MAX).filter(|tag| !unknown(tag)).collect();
    let pinned: BTreeSet<u8> = messages().iter().map(|(name, _)| file(name)[0]).collect();
    assert_eq!(known, pinned);
}

#[test]
fn the_hello_is_pinned_in_both_directions() {
    let pinned = file(HELLO);
    assert_eq!(Hello::OURS.to_bytes().as_slice(), pinned);
    let bytes = pinned.as_slice().try_into().unwrap();
    assert_eq!(Hello::from_bytes(bytes), Ok(Hello::OURS));
}

// ---- Frames ----

/// A link whose keys are all known: ephemeral keys of one byte, and bulk keys that count.
fn link(who: u8, peer: Peer) -> Link {
    let mut key = who << 4;
    let entropy = Box::new(move |bytes: &mut [u8]| {
        key += 1;
        bytes.fill(key);
    });
    let mut link = Link::new(SecretKey::from_random([who; 32]), peer, entropy, 0);
    link.fix_ephemeral([who << 4; 32]);
    link
}

fn public(who: u8) -> driftline_wire::PublicKey {
    SecretKey::from_random([who; 32]).public()
}

/// Has `from` sent exactly this file? Gives it to `to`, and says what that heard.
fn carry(name: &str, from: &mut Link, to: &mut Link) -> Option<LinkEvent> {
    let pinned = file(name);
    let sent = from.poll_transmit().unwrap_or_default();
    assert!(sent == pinned, "{name} is written as {}", hex::dump(&sent));
    let mut received = BytesMut::from(pinned.as_slice());
    let event = to.handle(&mut received, 0).unwrap();
    assert!(received.is_empty());
    event
}

fn raw_part() -> DataPart {
    let body = Bytes::from_static(b"driftline");
    DataPart { seq: 7, coding: Coding::Raw, raw_len: 9, body }
}

/// The compressed bytes are pinned as well: another zstd may write others for the same data.
fn zstd_part() -> DataPart {
    DataPart { seq: 7, coding: Coding::Zstd, raw_len: 512, body: file("zstd-body").into() }
}

fn heard(event: Option<LinkEvent>) -> DataPart {
    match event {
        Some(LinkEvent::Data(part)) => part,
        other => panic!("{other:?} instead of data"),
    }
}

const FRAMES: [&str; 10] = [
    "frame-handshake-1",
    "frame-handshake-2",
    "frame-keys-dialler",
    "frame-keys-listener",
    "frame-control",
    "frame-bulk-raw",
    "frame-bulk-zstd",
    "frame-rekey",
    "frame-bulk-rekeyed",
    "frame-control-rekeyed",
];

#[test]
fn frames_are_pinned_in_both_directions() {
    let [one, two, keys_dialler, keys_listener, control, ..] = FRAMES;
    let [.., bulk_raw, bulk_zstd, rekey, bulk_rekeyed, control_rekeyed] = FRAMES;
    let mut dialler = link(1, Peer::Dial(public(2)));
    let mut listener = link(2, Peer::Listen(vec![public(1)]));
    assert!(carry(HELLO, &mut dialler, &mut listener).is_none());
    assert!(carry(HELLO, &mut listener, &mut dialler).is_none());
    assert!(carry(one, &mut dialler, &mut listener).is_none());
    assert!(carry(two, &mut listener, &mut dialler).is_none());
    let opened = |event, who| match event {
        Some(LinkEvent::Open { peer, version: 1 }) => assert_eq!(peer, public(who)),
        other => panic!("{other:?} instead of an open link"),
    };
    opened(carry(keys_dialler, &mut dialler, &mut listener), 1);
    opened(carry(keys_listener, &mut listener, &mut dialler), 2);

    let request = Message::from_bytes(&file("request-push")).unwrap();
    dialler.send(&request, 0).unwrap();
    match carry(control, &mut dialler, &mut listener) {
        Some(LinkEvent::Message(message)) => assert_eq!(message, request),
        other => panic!("{other:?} instead of a request"),
    }
    dialler.bind(&REPLICA);
    listener.bind(&REPLICA);
    for (name, part) in [(bulk_raw, raw_part()), (bulk_zstd, zstd_part())] {
        dialler.send_data(part.clone(), 0).unwrap();
        assert_eq!(heard(carry(name, &mut dialler, &mut listener)), part);
    }
    dialler.send_data(raw_part(), limits::REKEY_MS).unwrap();
    assert!(carry(rekey, &mut dialler, &mut listener).is_none());
    assert_eq!(heard(carry(bulk_rekeyed, &mut dialler, &mut listener)), raw_part());
    dialler.send(&Message::Done, limits::REKEY_MS).unwrap();
    let event = carry(control_rekeyed, &mut dialler, &mut listener);
    assert!(matches!(event, Some(LinkEvent::Message(Message::Done))), "{event:?}");
}

#[test]
fn pinned_zstd_is_still_read() {
    let expected: Vec<u8> = (0..512_u32).map(|i| (i / 64) as u8).collect();
    assert_eq!(Unpacker::new().unwrap().unpack(&[zstd_part()]), Ok(expected));
}

#[test]
fn every_file_is_read_by_some_test() {
    let messages = messages();
    let named = messages.iter().map(|row| row.0).chain(FRAMES).chain([HELLO, "zstd-body"]);
    let files = fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path());
    let files: BTreeSet<String> =
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(files, named.map(str::to_owned).collect());
}
