//! The message codec: one value has one encoding, and every limit is where it is said to be.

mod common;

use common::{CHUNKS_MAX, message};
use driftline_extent::{
    Accepts, Begin, BlockMask, ChunkId, Committed, Finish, Generation, GrainHash, GrainMask, Item,
    Missing, PART_LEN_MAX, POINT_NAME_LEN_MAX, POINTS_MAX, Point, Reason, ReplicaId, Resume, Root,
    Standing, TOKEN_LEN_MAX, TargetState, VOLUME_LEN_MAX,
};
use driftline_wire::{Batch, DecodeError, Message, Verb, fuzzing, limits};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_message_survives_its_encoding(message in message()) {
        let bytes = message.to_bytes();
        prop_assert!(bytes.len() <= limits::CONTROL_LEN_MAX);
        prop_assert_eq!(Message::from_bytes(&bytes), Ok(message));
    }

    #[test]
    fn every_strict_prefix_and_any_further_byte_is_an_error(message in message(), more: u8) {
        let mut bytes = message.to_bytes();
        for len in 0..bytes.len() {
            prop_assert!(Message::from_bytes(&bytes[..len]).is_err(), "{} bytes of {:?}", len, message);
        }
        bytes.push(more);
        prop_assert!(Message::from_bytes(&bytes).is_err());
    }

    #[test]
    fn what_is_read_is_written_the_same(message in message(), at: prop::sample::Index, byte: u8) {
        let mut bytes = message.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        fuzzing::message(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn arbitrary_bytes_are_read_or_refused(
        tag in prop_oneof![0..32_u8, any::<u8>()],
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        fuzzing::message(&[&[tag], bytes.as_slice()].concat());
        fuzzing::hello(&bytes);
        fuzzing::session(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_bytes_say_nothing_to_a_link(
        stage in 0..4_u8,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        fuzzing::frames(&[&[stage], bytes.as_slice()].concat());
    }

    #[test]
    fn messages_in_any_order_do_not_upset_the_machines(
        messages in prop::collection::vec(message(), 0..12),
    ) {
        let records = messages.iter().flat_map(|message| {
            let bytes = message.to_bytes();
            [(bytes.len() as u16).to_le_bytes().to_vec(), bytes].concat()
        });
        fuzzing::session(&records.collect::<Vec<u8>>());
    }
}

fn limit(what: &'static str, value: u64, limit: u64) -> Result<Message, DecodeError> {
    Err(DecodeError::Limit { what, value, limit })
}

/// The encoding of `message`, with the bytes from `at` on replaced.
fn patched(message: &Message, at: usize, patch: &[u8]) -> Vec<u8> {
    let mut bytes = message.to_bytes();
    bytes[at..at + patch.len()].copy_from_slice(patch);
    bytes
}

#[test]
fn names_and_details_have_a_longest() {
    let request = |len: usize| {
        let volume = "v".repeat(len);
        Message::Request { verb: Verb::Push, like: Some(volume.clone()), volume }
    };
    assert_eq!(Message::from_bytes(&request(255).to_bytes()), Ok(request(255)));
    assert_eq!(request(256).to_bytes(), request(255).to_bytes());
    let long = [&[16, 1, 0, 1], [b'v'; 256].as_slice()].concat();
    assert_eq!(Message::from_bytes(&long), limit("volume name", 256, 255));

    let refuse = |len: usize| Message::Refuse { reason: Reason::Denied, detail: "x".repeat(len) };
    assert_eq!(Message::from_bytes(&refuse(1024).to_bytes()), Ok(refuse(1024)));
    assert_eq!(refuse(2000).to_bytes(), refuse(1024).to_bytes());
    let long = [&[18, 12, 0, 1, 4], [b'x'; 1025].as_slice()].concat();
    assert_eq!(Message::from_bytes(&long), limit("detail", 1025, 1024));

    // Text is cut between characters, and what is not text is refused.
    let umlaut = Message::Request { verb: Verb::Pull, volume: "ü".repeat(200), like: None };
    let cut = Message::Request { verb: Verb::Pull, volume: "ü".repeat(127), like: None };
    assert_eq!(Message::from_bytes(&umlaut.to_bytes()), Ok(cut));
    let invalid = Err(DecodeError::Invalid { what: "volume name" });
    assert_eq!(Message::from_bytes(&[16, 1, 1, 0, 0xff]), invalid);
}

fn zeros(count: u64) -> Message {
    let items = (0..count).map(|i| Item::Zero { index: 2 * i, count: 1 }).collect();
    Message::Batch(Batch { seq: 3, items })
}

#[test]
fn batches_have_at_least_one_item_and_at_most_512() {
    assert_eq!(Message::from_bytes(&zeros(512).to_bytes()), Ok(zeros(512)));
    assert_eq!(Message::from_bytes(&zeros(513).to_bytes()), limit("item count", 513, 512));
    let none = Err(DecodeError::Invalid { what: "item count" });
    assert_eq!(Message::from_bytes(&zeros(0).to_bytes()), none);

    let want = |count| Message::Want { seq: 3, missing: vec![Missing::All; count] };
    assert_eq!(Message::from_bytes(&want(512).to_bytes()), Ok(want(512)));
    assert_eq!(Message::from_bytes(&want(513).to_bytes()), limit("item count", 513, 512));
    assert_eq!(Message::from_bytes(&want(0).to_bytes()), none);
    let unlike = |hashes, count| {
        let missing = vec![Missing::Unlike(vec![GrainHash([7; 8]); hashes]); count];
        Message::Want { seq: 3, missing }
    };
    assert_eq!(Message::from_bytes(&unlike(16, 32).to_bytes()), Ok(unlike(16, 32)));
    let over = limit("hashes of a batch", 515, 512);
    assert_eq!(Message::from_bytes(&unlike(2, 1025).to_bytes()), limit("item count", 1025, 512));
    assert_eq!(Message::from_bytes(&unlike(5, 103).to_bytes()), over);
    let many = patched(&want(9), 7, &[17]);
    assert_eq!(Message::from_bytes(&many), limit("hashes of an item", 17, 16));
    let narrowed = |count| Message::Narrowed { seq: 3, grains: vec![GrainMask(5); count] };
    assert_eq!(Message::from_bytes(&narrowed(512).to_bytes()), Ok(narrowed(512)));
    assert_eq!(Message::from_bytes(&narrowed(513).to_bytes()), limit("item count", 513, 512));
    assert_eq!(Message::from_bytes(&narrowed(0).to_bytes()), none);
    let again = |items: &[u16]| Message::Again { seq: 3, items: items.to_vec() };
    assert_eq!(Message::from_bytes(&again(&[0, 511]).to_bytes()), Ok(again(&[0, 511])));
    for items in [&[1_u16, 1][..], &[2, 1], &[512]] {
        let invalid = Err(DecodeError::Invalid { what: "places in a batch" });
        assert_eq!(Message::from_bytes(&again(items).to_bytes()), invalid);
    }
}

#[test]
fn the_largest_batch_fits_in_a_control_frame() {
    let (data, zero, id) = (BlockMask(1), BlockMask(2), ChunkId([7; 32]));
    let items = (0..512).map(|index| Item::Chunk { index, data, zero, id }).collect();
    let bytes = Message::Batch(Batch { seq: 0, items }).to_bytes();
    assert!(bytes.len() <= limits::CONTROL_LEN_MAX, "{} bytes", bytes.len());
    assert!(Message::from_bytes(&bytes).is_ok());
}

fn chunks(count: u64) -> Message {
    let (data, zero, id) = (BlockMask::ALL, BlockMask::NONE, ChunkId([7; 32]));
    let items = (0..count).map(|index| Item::Chunk { index, data, zero, id }).collect();
    Message::Batch(Batch { seq: 0, items })
}

#[test]
fn a_batch_asks_for_at_most_one_mebibyte() {
    assert_eq!(Message::from_bytes(&chunks(16).to_bytes()), Ok(chunks(16)));
    let over = limit("data of a batch", 17 << 16, 1 << 20);
    assert_eq!(Message::from_bytes(&chunks(17).to_bytes()), over);
}

/// A batch of one item, through the codec.
fn through(item: Item) -> Result<Message, DecodeError> {
    Message::from_bytes(&Message::Batch(Batch { seq: 0, items: vec![item] }).to_bytes())
}

#[test]
fn items_lie_within_the_largest_volume() {
    let (data, zero, id) = (BlockMask(1), BlockMask::NONE, ChunkId([7; 32]));
    for data in [data, BlockMask::ALL] {
        assert!(through(Item::Chunk { index: CHUNKS_MAX - 1, data, zero, id }).is_ok());
        let over = through(Item::Chunk { index: CHUNKS_MAX, data, zero, id });
        assert_eq!(over, limit("chunk index", CHUNKS_MAX, CHUNKS_MAX - 1));
    }
    for index in [0, 1, CHUNKS_MAX - 1] {
        let room = CHUNKS_MAX - index;
        assert!(through(Item::Zero { index, count: room }).is_ok());
        assert!(through(Item::Span { index, count: room, digest: id }).is_ok());
        let over = limit("chunk count", room + 1, room);
        assert_eq!(through(Item::Zero { index, count: room + 1 }), over);
        assert_eq!(through(Item::Span { index, count: room + 1, digest: id }), over);
        let none = Err(DecodeError::Invalid { what: "chunk count" });
        assert_eq!(through(Item::Zero { index, count: 0 }), none);
        assert_eq!(through(Item::Span { index, count: 0, digest: id }), none);
    }
    let over = limit("chunk index", u64::MAX, CHUNKS_MAX - 1);
    assert_eq!(through(Item::Zero { index: u64::MAX, count: u64::MAX }), over);
}

#[test]
fn a_chunk_item_has_one_form() {
    let id = ChunkId([7; 32]);
    let (one, none, all) = (BlockMask(1), BlockMask::NONE, BlockMask::ALL);
    let chunk = |data, zero, id| through(Item::Chunk { index: 0, data, zero, id });
    assert!(chunk(one, BlockMask(2), id).is_ok());
    assert!(chunk(none, one, ChunkId::ZERO).is_ok());
    for (data, zero, id, why) in [
        (one, one, id, "a block cannot be both"),
        (none, none, ChunkId::ZERO, "nothing changes"),
        (one, none, ChunkId::ZERO, "data of zeros is no data"),
        (none, one, id, "a name without data"),
        (none, all, ChunkId::ZERO, "a chunk of zeros is a zero item"),
        (all, none, ChunkId::ZERO, "a whole chunk of zeros is a zero item"),
    ] {
        let invalid = Err(DecodeError::Invalid { what: "chunk item" });
        assert_eq!(chunk(data, zero, id), invalid, "{why}");
    }
    // The masks of a whole chunk in the long form: tag 1 at byte 7, then the index.
    let long = through(Item::Chunk { index: 0, data: BlockMask(u128::MAX - 1), zero: none, id });
    let bytes = patched(&long.unwrap(), 16, &[0xff; 16]);
    assert_eq!(Message::from_bytes(&bytes), Err(DecodeError::Invalid { what: "chunk item" }));
}

#[test]
fn parts_have_a_byte_at_least_and_256_kibibytes_at_most() {
    let part = |index, len| through(Item::Part { index, len, id: ChunkId([7; 32]) });
    for len in [1, PART_LEN_MAX as u32] {
        assert!(part(CHUNKS_MAX - 1, len).is_ok());
    }
    assert_eq!(part(0, 0), Err(DecodeError::Invalid { what: "part length" }));
    assert_eq!(part(0, (256 << 10) + 1), limit("part length", (256 << 10) + 1, 256 << 10));
    assert_eq!(part(0, u32::MAX), limit("part length", u32::MAX.into(), 256 << 10));
    assert_eq!(part(CHUNKS_MAX, 1), limit("chunk index", CHUNKS_MAX, CHUNKS_MAX - 1));
}

/// The state of a target that takes streams, through the codec.
fn streams(token: Option<&str>, points: Vec<Point>) -> Result<Message, DecodeError> {
    let accepts = Accepts::Stream { token: token.map(str::to_owned), points };
    let state = TargetState { accepts, ..TargetState::nothing() };
    Message::from_bytes(&Message::State(Box::new(state)).to_bytes())
}

#[test]
fn tokens_and_points_have_a_longest() {
    let point = |len: usize| Point { guid: u64::MAX, name: "n".repeat(len) };
    let longest = "t".repeat(TOKEN_LEN_MAX.into());
    let points = vec![point(POINT_NAME_LEN_MAX.into()); POINTS_MAX.into()];
    let largest = streams(Some(&longest), points).expect("both are at their limit");
    assert!(largest.to_bytes().len() <= limits::CONTROL_LEN_MAX);

    for token in ["", "-t", "1 2", "1;2", "1\n", "ü"] {
        let invalid = Err(DecodeError::Invalid { what: "resume token" });
        assert_eq!(streams(Some(token), vec![]), invalid, "{token:?}");
    }
    for name in ["", "a\u{1b}[2J", "a\nb"] {
        let invalid = Err(DecodeError::Invalid { what: "name of a point" });
        let named = Point { guid: 1, name: name.to_owned() };
        assert_eq!(streams(None, vec![named]), invalid, "{name:?}");
    }
    // The state of nothing, up to what it takes: then no token, and a count.
    let mut bytes = Message::State(Box::new(TargetState::nothing())).to_bytes();
    bytes.pop();
    bytes.extend([2, 0, 201, 0]);
    assert_eq!(Message::from_bytes(&bytes), limit("point count", 201, 200));
    bytes.truncate(bytes.len() - 3);
    bytes.extend([&[1, 1, 32], [b'1'; 8193].as_slice()].concat());
    assert_eq!(Message::from_bytes(&bytes), limit("resume token", 8193, 8192));
    for accepts in (0..=u8::MAX).filter(|accepts| !(1..3).contains(accepts)) {
        *bytes.get_mut(62).unwrap() = accepts;
        let what = "what it takes";
        let unknown = Err(DecodeError::Unknown { what, value: accepts.into() });
        assert_eq!(Message::from_bytes(&bytes), unknown);
    }
}

#[test]
fn items_of_a_batch_ascend_and_do_not_overlap() {
    let zero = |index, count| Item::Zero { index, count };
    let batch = |items: &[Item]| {
        Message::from_bytes(&Message::Batch(Batch { seq: 0, items: items.to_vec() }).to_bytes())
    };
    assert!(batch(&[zero(0, 3), zero(3, 1)]).is_ok());
    let invalid = Err(DecodeError::Invalid { what: "order of items" });
    assert_eq!(batch(&[zero(0, 3), zero(2, 1)]), invalid);
    assert_eq!(batch(&[zero(3, 1), zero(0, 1)]), invalid);
    assert_eq!(batch(&[zero(3, 1), zero(3, 1)]), invalid);
}

#[test]
fn sizes_and_watermarks_end_at_an_exbibyte() {
    let generation = Generation::zfs(1);
    let committed = |size| {
        let root = Root([0; 32]);
        Message::Committed(Committed { generation, root, size, zeroed: Some(size) })
    };
    let finish = |size| Message::Finish {
        finish: Finish { tip: generation, size: Some(size), root: None },
        transcript: [0; 32],
    };
    let over = limit("size", VOLUME_LEN_MAX + 1, VOLUME_LEN_MAX);
    assert!(Message::from_bytes(&committed(VOLUME_LEN_MAX).to_bytes()).is_ok());
    assert_eq!(Message::from_bytes(&committed(VOLUME_LEN_MAX + 1).to_bytes()), over);
    assert!(Message::from_bytes(&finish(VOLUME_LEN_MAX).to_bytes()).is_ok());
    assert_eq!(Message::from_bytes(&finish(VOLUME_LEN_MAX + 1).to_bytes()), over);

    let state = |size, from| {
        let resume = Resume { base: None, tip: None, from };
        let accepts = Accepts::Volume;
        Message::State(Box::new(TargetState {
            replica: ReplicaId([1; 16]),
            chunk_key: [2; 32],
            volume: None,
            generation: None,
            root: None,
            size,
            incomplete: false,
            damaged: false,
            resume: Some(resume),
            accepts,
        }))
    };
    assert!(Message::from_bytes(&state(VOLUME_LEN_MAX, CHUNKS_MAX).to_bytes()).is_ok());
    assert_eq!(Message::from_bytes(&state(VOLUME_LEN_MAX + 1, 0).to_bytes()), over);
    let over_mark = limit("resume watermark", CHUNKS_MAX + 1, CHUNKS_MAX);
    assert_eq!(Message::from_bytes(&state(0, CHUNKS_MAX + 1).to_bytes()), over_mark);

    // kind, no volume, no base, no tip, a size, standing, bytes expected, overwrite
    let offer = |size: u64| {
        let bytes = [&[20, 2, 0, 0, 0, 1], size.to_le_bytes().as_slice(), &[0; 11]].concat();
        Message::from_bytes(&bytes)
    };
    assert!(offer(VOLUME_LEN_MAX).is_ok());
    assert_eq!(offer(VOLUME_LEN_MAX + 1), over);

    let begin = |from| Message::from_bytes(&Message::Begin(Begin { from }).to_bytes());
    assert!(begin(CHUNKS_MAX).is_ok());
    assert_eq!(begin(CHUNKS_MAX + 1), limit("watermark", CHUNKS_MAX + 1, CHUNKS_MAX));
}

#[test]
fn flags_and_kinds_that_nobody_knows_are_refused() {
    let refused =
        |bytes: &[u8]| matches!(Message::from_bytes(bytes), Err(DecodeError::Unknown { .. }));
    for tag in (0..=u8::MAX).filter(|tag| *tag != 3 && !(16..31).contains(tag)) {
        assert!(refused(&[tag]), "message kind {tag}");
    }
    for verb in (0..=u8::MAX).filter(|verb| !(1..4).contains(verb)) {
        assert!(refused(&[16, verb, 0, 0]), "verb {verb}");
    }
    for kind in (0..=u8::MAX).filter(|kind| !(1..6).contains(kind)) {
        assert!(refused(&patched(&zeros(1), 7, &[kind])), "item kind {kind}");
    }
    let committed =
        Committed { generation: Generation::zfs(1), root: Root([0; 32]), size: 0, zeroed: None };
    let committed = Message::Committed(committed);
    for kind in (0..=u8::MAX).filter(|kind| !(1..5).contains(kind)) {
        assert!(refused(&patched(&committed, 1, &[kind])), "generation kind {kind}");
    }
    let finish = Finish { tip: Generation::zfs(1), size: None, root: None };
    let finish = Message::Finish { finish, transcript: [0; 32] };
    for flag in 2..=u8::MAX {
        assert!(refused(&patched(&finish, 10, &[flag])), "flag {flag}");
    }
}

#[test]
fn the_reasons_of_a_newer_peer_are_still_reasons() {
    let refuse = Message::from_bytes(&[18, 0xff, 0xff, 0, 0]);
    let expected = Message::Refuse { reason: Reason::Failed, detail: String::new() };
    assert_eq!(refuse, Ok(expected));
    // kind, no volume, no base, no tip, no size, standing, bytes expected, overwrite
    let offer = [&[20, 1, 0, 0, 0, 0, 0xff, 0xff], [0; 9].as_slice()].concat();
    match Message::from_bytes(&offer) {
        Ok(Message::Offer(offer)) => {
            assert_eq!(offer.plan.standing, Standing::Suspect(Reason::Failed));
        }
        other => panic!("{other:?}"),
    }
}
