//! The two machines against a peer that does not keep to the protocol: each slip is an error,
//! and none of them ends in a commit.

use bytes::Bytes;
use driftline_extent::{
    Accepts, Begin, BlockMask, ChunkId, Committed, Finish, Generation, GrainHash, GrainMask, Item,
    Missing, Offer, Plan, PlanKind, Reason, ReplicaId, Root, Standing, TargetState,
};
use driftline_wire::{
    Announced, Arrived, Batch, Coding, Compared, DataPart, Inbound, Message, Packed, Packer,
    Payload, Piece, Receiver, ReceiverOutput, Sender, SenderOutput, SessionError, limits,
};

const TIP: Generation = Generation::zfs(2);

fn state() -> TargetState {
    TargetState {
        replica: ReplicaId([1; 16]),
        chunk_key: [2; 32],
        volume: None,
        generation: Some(Generation::zfs(1)),
        root: Some(Root([3; 32])),
        size: 1 << 30,
        incomplete: false,
        damaged: false,
        resume: None,
        accepts: Accepts::Volume,
    }
}

fn offer(kind: PlanKind) -> Offer {
    let (base, tip, standing) = (Some(Generation::zfs(1)), Some(TIP), Standing::Proven);
    let plan = Plan { kind, volume: None, base, tip, size: None, standing, bytes_expected: 0 };
    Offer { plan, overwrite: false }
}

fn finish() -> Finish {
    Finish { tip: TIP, size: Some(1 << 30), root: Some(Root([4; 32])) }
}

fn committed() -> Committed {
    Committed { generation: TIP, root: Root([4; 32]), size: 1 << 30, zeroed: Some(3 << 16) }
}

fn whole(index: u64) -> Item {
    let (data, zero, id) = (BlockMask::ALL, BlockMask::NONE, ChunkId([5; 32]));
    Item::Chunk { index, data, zero, id }
}

fn block(index: u64) -> Item {
    let (data, zero, id) = (BlockMask(1), BlockMask::NONE, ChunkId([6; 32]));
    Item::Chunk { index, data, zero, id }
}

const fn hole(index: u64) -> Item {
    Item::Zero { index, count: 1 }
}

const fn span(index: u64, count: u64) -> Item {
    Item::Span { index, count, digest: ChunkId([7; 32]) }
}

const fn piece(index: u64) -> Item {
    Item::Part { index, len: 4096, id: ChunkId([8; 32]) }
}

fn batch(seq: u32, items: impl IntoIterator<Item = Item>) -> Message {
    Message::Batch(Batch { seq, items: items.into_iter().collect() })
}

fn part(seq: u32, len: usize) -> DataPart {
    let body = Bytes::from(vec![1; len]);
    DataPart { seq, coding: Coding::Raw, raw_len: len as u32, body }
}

fn violation<T: std::fmt::Debug>(result: Result<T, SessionError>, words: &str) {
    match result {
        Err(SessionError::Violation(why)) => assert!(why.contains(words), "{why}"),
        other => panic!("{other:?} instead of a violation: {words}"),
    }
}

fn unexpected<T: std::fmt::Debug>(result: Result<T, SessionError>) {
    assert!(matches!(result, Err(SessionError::Unexpected { .. })), "{result:?}");
}

// ---- The receiver ----

fn outputs(receiver: &mut Receiver) -> Vec<ReceiverOutput> {
    std::iter::from_fn(|| receiver.poll()).collect()
}

/// A receiver in the middle of an increment.
fn receiving(kind: PlanKind, from: u64) -> Receiver {
    let mut receiver = Receiver::new(state());
    receiver.handle_message(Message::Offer(offer(kind))).unwrap();
    outputs(&mut receiver);
    receiver.handle_begun(Begin { from });
    let begin = ReceiverOutput::Send(Message::Begin(Begin { from }));
    assert_eq!(outputs(&mut receiver), [begin]);
    receiver
}

/// Announces a batch of which everything, or nothing, is wanted.
fn announce(receiver: &mut Receiver, seq: u32, items: &[Item], wanted: bool) {
    receiver.handle_message(batch(seq, items.iter().copied())).unwrap();
    let lack = if wanted { Missing::All } else { Missing::Nothing };
    receiver.handle_looked_up(seq, vec![lack; items.len()]);
}

fn applied(receiver: &mut Receiver) -> Vec<Arrived> {
    let outputs = outputs(receiver).into_iter();
    let arrived = outputs.filter_map(|output| match output {
        ReceiverOutput::Apply(arrived) => Some(arrived),
        _ => None,
    });
    arrived.collect()
}

#[test]
fn a_receiver_hears_only_what_is_due() {
    let everything = || {
        let finish = Message::Finish { finish: finish(), transcript: [0; 32] };
        let state = Message::State(Box::new(state()));
        let want = Message::Want { seq: 0, missing: vec![Missing::All] };
        let fixed = [Message::KeepAlive, Message::Accept, state, want, finish];
        let rest = [
            Message::Begin(Begin { from: 0 }),
            Message::Applied { seq: 0 },
            Message::Committed(committed()),
            batch(0, [hole(0)]),
        ];
        fixed.into_iter().chain(rest)
    };
    for message in everything() {
        unexpected(Receiver::new(state()).handle_message(message));
    }
    for message in everything() {
        let mut beginning = Receiver::new(state());
        beginning.handle_message(Message::Offer(offer(PlanKind::Full))).unwrap();
        unexpected(beginning.handle_message(message));
    }
    for message in [Message::Offer(offer(PlanKind::Full)), Message::Done] {
        unexpected(receiving(PlanKind::Full, 0).handle_message(message));
    }
}

#[test]
fn a_stream_is_parts_in_order_and_nothing_else() {
    let hear = |kind, items: &[Item]| {
        let mut receiver = receiving(kind, 0);
        let batches = items.iter().zip(0..);
        batches.map(|(item, seq)| receiver.handle_message(batch(seq, [*item]))).last().unwrap()
    };
    assert!(hear(PlanKind::Stream, &[piece(0), piece(1)]).is_ok());
    for items in [&[piece(1)][..], &[piece(0), piece(0)], &[piece(0), piece(2)]] {
        violation(hear(PlanKind::Stream, items), "missing or came twice");
    }
    for item in [whole(0), hole(0), span(0, 1)] {
        violation(hear(PlanKind::Stream, &[item]), "a change of a volume in a stream");
        violation(hear(PlanKind::Stream, &[piece(0), item]), "a change of a volume in a stream");
    }
    for kind in [PlanKind::Incremental, PlanKind::Full, PlanKind::Scan] {
        violation(hear(kind, &[whole(0), piece(1)]), "among changes of a volume");
    }
}

#[test]
fn parts_count_from_zero_in_each_increment() {
    let mut receiver = receiving(PlanKind::Stream, 0);
    for _ in 0..2 {
        announce(&mut receiver, 0, &[piece(0), piece(1)], false);
        let arrived = applied(&mut receiver);
        assert_eq!((arrived.len(), arrived[0].watermark), (1, 2));
        receiver.handle_applied(0);
        let transcript = transcript(&[vec![piece(0), piece(1)]]);
        let finish = finish();
        receiver.handle_message(Message::Finish { finish, transcript }).unwrap();
        receiver.handle_committed(committed());
        outputs(&mut receiver);
        receiver.handle_message(Message::Offer(offer(PlanKind::Stream))).unwrap();
        outputs(&mut receiver);
        receiver.handle_begun(Begin { from: 0 });
        outputs(&mut receiver);
    }
}

#[test]
fn batches_come_in_order_and_once() {
    for seq in [1, 7, u32::MAX] {
        let mut receiver = receiving(PlanKind::Incremental, 0);
        violation(receiver.handle_message(batch(seq, [hole(0)])), "missing or came twice");
    }
    let mut receiver = receiving(PlanKind::Incremental, 0);
    receiver.handle_message(batch(0, [hole(0)])).unwrap();
    violation(receiver.handle_message(batch(0, [hole(0)])), "missing or came twice");
}

#[test]
fn the_data_window_holds_what_it_says_and_is_free_again_once_applied() {
    let full = |receiver: &mut Receiver, seq| {
        announce(receiver, seq, &(0..16).map(whole).collect::<Vec<_>>(), false);
    };
    let mut receiver = receiving(PlanKind::Incremental, 0);
    (0..32).for_each(|seq| full(&mut receiver, seq));
    assert_eq!(applied(&mut receiver).len(), 32);
    // Thirty-two MiB are announced; one block is too much.
    let mut over = receiving(PlanKind::Incremental, 0);
    (0..32).for_each(|seq| full(&mut over, seq));
    violation(over.handle_message(batch(32, [block(0)])), "more than the window holds");
    // What has no data needs no window, and what was applied frees its share.
    receiver.handle_message(batch(32, [hole(0)])).unwrap();
    receiver.handle_applied(0);
    full(&mut receiver, 33);
    violation(receiver.handle_message(batch(34, [block(0)])), "more than the window holds");
}

#[test]
fn the_batch_window_holds_what_it_says() {
    let mut receiver = receiving(PlanKind::Incremental, 0);
    for seq in 0..limits::WINDOW_BATCHES_MAX as u32 {
        // Whether looked up or not: both take memory.
        receiver.handle_message(batch(seq, [hole(0)])).unwrap();
        if seq % 2 == 0 {
            receiver.handle_looked_up(seq, vec![Missing::Nothing]);
        }
    }
    violation(receiver.handle_message(batch(64, [hole(0)])), "more than the window holds");
}

#[test]
fn only_data_that_is_wanted_is_taken() {
    let nobody = "data that nobody wants";
    // A batch that was never announced, one that is not looked up, one that is not wanted.
    violation(receiving(PlanKind::Full, 0).handle_data(part(0, 1)), nobody);
    let mut receiver = receiving(PlanKind::Full, 0);
    receiver.handle_message(batch(0, [whole(0)])).unwrap();
    violation(receiver.handle_data(part(0, 1)), nobody);
    let mut receiver = receiving(PlanKind::Full, 0);
    announce(&mut receiver, 0, &[whole(0)], false);
    violation(receiver.handle_data(part(0, 1)), nobody);
    // One byte more than was wanted, at once or after the rest.
    let mut receiver = receiving(PlanKind::Full, 0);
    announce(&mut receiver, 0, &[block(0)], true);
    violation(receiver.handle_data(part(0, 513)), nobody);
    let mut receiver = receiving(PlanKind::Full, 0);
    announce(&mut receiver, 0, &[block(0)], true);
    receiver.handle_data(part(0, 512)).unwrap();
    assert_eq!(applied(&mut receiver).len(), 1);
    violation(receiver.handle_data(part(0, 1)), nobody);
    // Before an increment.
    violation(Receiver::new(state()).handle_data(part(0, 1)), nobody);
}

#[test]
fn data_comes_in_few_parts() {
    let mut receiver = receiving(PlanKind::Full, 0);
    announce(&mut receiver, 0, &[whole(0)], true);
    for _ in 0..limits::BATCH_PARTS_MAX {
        receiver.handle_data(part(0, 1)).unwrap();
    }
    violation(receiver.handle_data(part(0, 1)), "too many parts");
}

#[test]
fn batches_are_applied_in_order_and_whole() {
    let mut receiver = receiving(PlanKind::Full, 0);
    announce(&mut receiver, 0, &[block(0), hole(1)], true);
    announce(&mut receiver, 1, &[block(2)], true);
    receiver.handle_message(batch(2, [hole(3)])).unwrap();
    assert_eq!(applied(&mut receiver), []);
    // The second is complete first, and waits.
    receiver.handle_data(part(1, 512)).unwrap();
    receiver.handle_data(part(0, 500)).unwrap();
    assert_eq!(applied(&mut receiver), []);
    receiver.handle_data(part(0, 12)).unwrap();
    let arrived = applied(&mut receiver);
    let seqs: Vec<_> = arrived.iter().map(|a| (a.batch.seq, a.parts.len(), a.watermark)).collect();
    assert_eq!(seqs, [(0, 2, 2), (1, 1, 3)]);
    receiver.handle_looked_up(2, vec![Missing::Nothing]);
    assert_eq!(applied(&mut receiver).len(), 1);
}

#[test]
fn the_watermark_of_a_scan_passes_no_span_that_differs() {
    let mut receiver = receiving(PlanKind::Scan, 2);
    let mut watermark = |seq, item, wanted| {
        announce(&mut receiver, seq, &[item], wanted);
        if wanted && item.data_len() > 0 {
            receiver.handle_data(part(seq, item.data_len() as usize)).unwrap();
        }
        applied(&mut receiver)[0].watermark
    };
    assert_eq!(watermark(0, span(0, 4), true), 2);
    assert_eq!(watermark(1, span(4, 4), false), 2);
    assert_eq!(watermark(2, hole(2), false), 3);
    assert_eq!(watermark(3, whole(3), true), 8);
}

/// A receiver that has told hashes of the second and the third item of batch 0.
fn narrowing() -> Receiver {
    let mut receiver = receiving(PlanKind::Incremental, 0);
    receiver.handle_message(batch(0, [block(0), whole(1), whole(2), hole(3)])).unwrap();
    receiver.handle_looked_up(0, vec![Missing::All, unlike(16), unlike(16), Missing::Nothing]);
    assert_eq!(applied(&mut receiver), []);
    receiver
}

fn unlike(count: usize) -> Missing {
    Missing::Unlike(vec![GrainHash([9; 8]); count])
}

fn narrowed(seq: u32, grains: &[u16]) -> Message {
    Message::Narrowed { seq, grains: grains.iter().copied().map(GrainMask).collect() }
}

#[test]
fn only_what_was_asked_for_is_narrowed() {
    let other = "other items than it was asked to";
    for message in [
        narrowed(0, &[1]),
        narrowed(0, &[1, 1, 1]),
        narrowed(1, &[1, 1]),
        narrowed(u32::MAX, &[1, 1]),
    ] {
        violation(narrowing().handle_message(message), other);
    }
    // Not of a batch that was not looked up, and not twice.
    let mut receiver = receiving(PlanKind::Incremental, 0);
    receiver.handle_message(batch(0, [whole(1)])).unwrap();
    violation(receiver.handle_message(narrowed(0, &[1])), other);
    let mut receiver = narrowing();
    receiver.handle_message(narrowed(0, &[1, 2])).unwrap();
    violation(receiver.handle_message(narrowed(0, &[1, 2])), other);
    // Not to grains that have no data.
    let (zero, id) = (BlockMask::NONE, ChunkId([5; 32]));
    let some = Item::Chunk { index: 0, data: BlockMask(0xffff), zero, id };
    let mut receiver = receiving(PlanKind::Incremental, 0);
    receiver.handle_message(batch(0, [some])).unwrap();
    receiver.handle_looked_up(0, vec![unlike(2)]);
    violation(receiver.handle_message(narrowed(0, &[5])), "what is not in it");
    // No data of the batch before.
    violation(narrowing().handle_data(part(0, 512)), "nobody wants");
}

#[test]
fn what_was_narrowed_is_awaited_and_no_more() {
    let mut receiver = narrowing();
    receiver.handle_message(narrowed(0, &[0x8001, 0])).unwrap();
    receiver.handle_data(part(0, 512 + 4096)).unwrap();
    assert_eq!(applied(&mut receiver), []);
    violation(narrowing_done(&mut receiver, 4097), "nobody wants");
    let mut receiver = narrowing();
    receiver.handle_message(narrowed(0, &[0x8001, 0])).unwrap();
    narrowing_done(&mut receiver, 512 + 2 * 4096).unwrap();
    let arrived = applied(&mut receiver).remove(0);
    let grains = |mask| Inbound::Grains(GrainMask(mask));
    assert_eq!(arrived.inbound, [Inbound::All, grains(0x8001), grains(0), Inbound::Nothing]);
    assert_eq!(arrived.watermark, 4);
}

fn narrowing_done(receiver: &mut Receiver, len: usize) -> Result<(), SessionError> {
    receiver.handle_data(part(0, len))
}

#[test]
fn what_does_not_fit_comes_whole_before_anything_else_is_applied() {
    let mut receiver = narrowing();
    receiver.handle_message(batch(1, [hole(9)])).unwrap();
    receiver.handle_looked_up(1, vec![Missing::Nothing]);
    receiver.handle_message(narrowed(0, &[1, 2])).unwrap();
    receiver.handle_data(part(0, 512 + 2 * 4096)).unwrap();
    let first = applied(&mut receiver);
    assert_eq!(first.iter().map(|arrived| arrived.batch.seq).collect::<Vec<_>>(), [0]);
    receiver.handle_misfits(0, vec![2]);
    let said = outputs(&mut receiver);
    assert_eq!(said, [ReceiverOutput::Send(Message::Again { seq: 0, items: vec![2] })]);
    violation(receiver.handle_message(narrowed(0, &[1])), "other items");
    receiver.handle_data(part(0, 65536)).unwrap();
    let second = applied(&mut receiver);
    assert_eq!(second.len(), 2, "the batch behind it is free as well");
    assert_eq!(second[0].batch, Batch { seq: 0, items: vec![whole(2)] });
    assert_eq!((second[0].inbound.as_slice(), second[0].watermark), (&[Inbound::All][..], 4));
    receiver.handle_applied(0);
    receiver.handle_applied(1);
    let said = outputs(&mut receiver);
    assert_eq!(said, [0, 1].map(|seq| ReceiverOutput::Send(Message::Applied { seq })));
    // The window is free again, all of it.
    for seq in 2..34 {
        announce(&mut receiver, seq, &(0..16).map(whole).collect::<Vec<_>>(), false);
    }
}

/// The transcript of some batches, from a sender that announces them.
fn transcript(batches: &[Vec<Item>]) -> [u8; 32] {
    let mut sender = delivering();
    for (seq, items) in (0..).zip(batches) {
        let count = items.len();
        sender.handle_batch(items.iter().map(|item| held(*item)).collect());
        let missing = vec![Missing::Nothing; count];
        sender.handle_message(Message::Want { seq, missing }).unwrap();
        sender.handle_message(Message::Applied { seq }).unwrap();
    }
    sender.handle_end(finish());
    let sent = std::iter::from_fn(|| sender.poll()).filter_map(|output| match output {
        SenderOutput::Send(Message::Finish { transcript, .. }) => Some(transcript),
        _ => None,
    });
    sent.last().unwrap()
}

#[test]
fn an_increment_ends_when_all_is_applied_and_nothing_is_missing() {
    let end = |transcript| Message::Finish { finish: finish(), transcript };
    let items = vec![block(0), hole(1)];
    let right = transcript(std::slice::from_ref(&items));
    let early = "finished before everything was applied";

    let mut receiver = receiving(PlanKind::Full, 0);
    receiver.handle_message(batch(0, items.clone())).unwrap();
    violation(receiver.handle_message(end(right)), early);

    let mut receiver = receiving(PlanKind::Full, 0);
    announce(&mut receiver, 0, &items, true);
    violation(receiver.handle_message(end(right)), early);

    let mut receiver = receiving(PlanKind::Full, 0);
    announce(&mut receiver, 0, &items, false);
    violation(receiver.handle_message(end(right)), early);

    let applied = || {
        let mut receiver = receiving(PlanKind::Full, 0);
        announce(&mut receiver, 0, &items, false);
        receiver.handle_applied(0);
        outputs(&mut receiver);
        receiver
    };
    for wrong in [transcript(&[]), transcript(&[vec![block(0)]]), [0; 32]] {
        let mut receiver = applied();
        assert_eq!(receiver.handle_message(end(wrong)), Err(SessionError::Transcript));
        assert_eq!(outputs(&mut receiver), [], "nothing is committed");
    }
    let mut receiver = applied();
    receiver.handle_message(end(right)).unwrap();
    assert_eq!(outputs(&mut receiver), [ReceiverOutput::Commit(finish())]);
    unexpected(receiver.handle_message(batch(1, [hole(5)])));
    receiver.handle_committed(committed());
    receiver.handle_message(Message::Done).unwrap();
    let last = [Message::Committed(committed()), Message::Done].map(ReceiverOutput::Send);
    assert_eq!(outputs(&mut receiver), [last.as_slice(), &[ReceiverOutput::Ended]].concat());
}

// ---- The sender ----

fn held(item: Item) -> Announced {
    Announced { item, payload: Payload::Held(vec![1; item.data_len() as usize].into()) }
}

/// A sender that has offered an increment.
fn offering(kind: PlanKind) -> Sender {
    let mut sender = Sender::new();
    sender.handle_message(Message::State(Box::new(state()))).unwrap();
    sender.handle_plan(offer(kind));
    sender
}

/// A sender in the middle of an increment.
fn delivering_of(kind: PlanKind) -> Sender {
    let mut sender = offering(kind);
    sender.handle_message(Message::Begin(Begin { from: 0 })).unwrap();
    while sender.poll().is_some() {}
    sender
}

fn delivering() -> Sender {
    delivering_of(PlanKind::Incremental)
}

#[test]
fn a_stream_is_wanted_from_its_start_and_only_by_part() {
    let from = |from| offering(PlanKind::Stream).handle_message(Message::Begin(Begin { from }));
    violation(from(1), "from its middle on");
    assert!(from(0).is_ok());
    let mut sender = delivering_of(PlanKind::Stream);
    sender.handle_batch(vec![held(piece(0)), held(piece(1)), held(piece(2))]);
    let missing = vec![Missing::All, Missing::Nothing, Missing::All];
    sender.handle_message(Message::Want { seq: 0, missing }).unwrap();
    let outputs: Vec<_> = std::iter::from_fn(|| sender.poll()).collect();
    let pieces = [0, 2].map(|index| Piece { announced: held(piece(index)), theirs: None }).to_vec();
    assert_eq!(outputs.last(), Some(&SenderOutput::Pack { seq: 0, pieces }));
    // Not before what was wanted is packed.
    violation(sender.handle_message(Message::Applied { seq: 0 }), "cannot have");
}

#[test]
fn a_sender_hears_only_what_is_due() {
    let everything = || {
        let want = Message::Want { seq: 0, missing: vec![Missing::All] };
        let finish = Message::Finish { finish: finish(), transcript: [0; 32] };
        let offer = Message::Offer(offer(PlanKind::Full));
        [Message::KeepAlive, Message::Done, want, finish, offer, Message::Committed(committed())]
    };
    for message in everything() {
        unexpected(Sender::new().handle_message(message));
    }
    unexpected(delivering().handle_message(Message::State(Box::new(state()))));
    unexpected(delivering().handle_message(Message::Committed(committed())));
    unexpected(delivering().handle_message(Message::Done));
}

#[test]
fn only_what_was_announced_is_wanted_and_applied() {
    let lack = |wanted: &bool| if *wanted { Missing::All } else { Missing::Nothing };
    let want = |seq, wants: &[bool]| {
        let missing = wants.iter().map(lack).collect();
        Message::Want { seq, missing }
    };
    let announced = || {
        let mut sender = delivering();
        sender.handle_batch(vec![held(block(0)), held(hole(1))]);
        sender
    };
    let (open, other) = ("a batch that is not open", "other items than were announced");
    violation(delivering().handle_message(want(0, &[true])), open);
    violation(announced().handle_message(want(1, &[true, true])), open);
    violation(announced().handle_message(want(0, &[true])), other);
    violation(announced().handle_message(want(0, &[true; 3])), other);
    let mut sender = announced();
    sender.handle_message(want(0, &[true, false])).unwrap();
    violation(sender.handle_message(want(0, &[true, false])), open);

    // Applied before it was wanted, before its data was sent, twice, and never announced.
    let cannot = "a batch that it cannot have";
    violation(announced().handle_message(Message::Applied { seq: 0 }), cannot);
    violation(announced().handle_message(Message::Applied { seq: 1 }), cannot);
    let mut sender = announced();
    sender.handle_message(want(0, &[true, false])).unwrap();
    violation(sender.handle_message(Message::Applied { seq: 0 }), cannot);
    let mut sender = announced();
    sender.handle_message(want(0, &[false, false])).unwrap();
    sender.handle_message(Message::Applied { seq: 0 }).unwrap();
    violation(sender.handle_message(Message::Applied { seq: 0 }), cannot);
}

#[test]
fn a_sender_keeps_within_the_window() {
    let mut sender = delivering();
    let full = || (0..16).map(|index| held(whole(index))).collect::<Vec<_>>();
    for _ in 0..32 {
        assert!(sender.wants_batch());
        sender.handle_batch(full());
    }
    assert!(!sender.wants_batch());
    sender.handle_message(Message::Want { seq: 0, missing: vec![Missing::Nothing; 16] }).unwrap();
    assert!(!sender.wants_batch());
    sender.handle_message(Message::Applied { seq: 0 }).unwrap();
    assert!(sender.wants_batch());

    let mut sender = delivering();
    for index in 0..limits::WINDOW_BATCHES_MAX as u64 {
        assert!(sender.wants_batch());
        sender.handle_batch(vec![held(hole(index))]);
    }
    assert!(!sender.wants_batch());
}

#[test]
fn pieces_are_packed_in_order_and_counted() {
    let mut sender = delivering();
    let in_volume = Announced { item: whole(2), payload: Payload::InVolume };
    sender.handle_batch(vec![held(block(0)), held(span(1, 1)), in_volume.clone()]);
    sender.handle_message(Message::Want { seq: 0, missing: vec![Missing::All; 3] }).unwrap();
    let mut outputs: Vec<_> = std::iter::from_fn(|| sender.poll()).skip(1).collect();
    let pieces = [held(block(0)), in_volume].map(|announced| Piece { announced, theirs: None });
    let pieces = pieces.to_vec();
    assert_eq!(outputs.pop(), Some(SenderOutput::Pack { seq: 0, pieces }));
    assert_eq!(
        outputs,
        [SenderOutput::Compared(vec![Compared { span: span(1, 1), differs: true }])]
    );
    let mut packer = Packer::new(None).unwrap();
    let parts = packer.pack(0, [vec![1; 512].as_slice(), &[2; 65536]]);
    sender.handle_packed(0, Packed { narrowed: Vec::new(), parts });
    sender.handle_message(Message::Applied { seq: 0 }).unwrap();
}

/// A sender that was told hashes of the second of three items, and what it is to pack.
fn told() -> (Sender, Vec<Piece>) {
    let mut sender = delivering();
    sender.handle_batch(vec![held(block(0)), held(whole(1)), held(whole(2))]);
    let missing = vec![Missing::Nothing, unlike(16), Missing::All];
    sender.handle_message(Message::Want { seq: 0, missing }).unwrap();
    match std::iter::from_fn(|| sender.poll()).last() {
        Some(SenderOutput::Pack { seq: 0, pieces }) => (sender, pieces),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hashes_are_taken_of_what_can_be_narrowed_only() {
    for (item, count) in [(whole(0), 15), (whole(0), 2), (block(0), 2), (hole(0), 2)] {
        let mut sender = delivering();
        sender.handle_batch(vec![held(item)]);
        let want = Message::Want { seq: 0, missing: vec![unlike(count)] };
        violation(sender.handle_message(want), "hashes of something else");
    }
}

#[test]
fn what_was_narrowed_may_be_wanted_whole_once() {
    let again = |items: &[u16]| Message::Again { seq: 0, items: items.to_vec() };
    let not = "again what was not narrowed";
    let (mut sender, pieces) = told();
    let theirs = Some(vec![GrainHash([9; 8]); 16]);
    let narrowed = Piece { announced: held(whole(1)), theirs };
    assert_eq!(pieces, [narrowed, Piece { announced: held(whole(2)), theirs: None }]);
    // Not before it was sent.
    violation(sender.handle_message(again(&[1])), not);

    let parts = || Packer::new(None).unwrap().pack(0, [[1; 4096].as_slice()]);
    let packed = || Packed { narrowed: vec![GrainMask(2)], parts: parts() };
    let sent = || {
        let (mut sender, _) = told();
        sender.handle_packed(0, packed());
        let said: Vec<_> = std::iter::from_fn(|| sender.poll()).collect();
        let message = Message::Narrowed { seq: 0, grains: vec![GrainMask(2)] };
        assert_eq!(said[0], SenderOutput::Send(message), "it comes before the data");
        sender
    };
    for items in [&[0][..], &[2], &[1, 2], &[3]] {
        violation(sent().handle_message(again(items)), not);
    }
    let mut sender = sent();
    sender.handle_message(again(&[1])).unwrap();
    let whole_again = vec![Piece { announced: held(whole(1)), theirs: None }];
    assert_eq!(sender.poll(), Some(SenderOutput::Pack { seq: 0, pieces: whole_again }));
    violation(sender.handle_message(Message::Applied { seq: 0 }), "cannot have");
    let mut sender = sent();
    sender.handle_message(again(&[1])).unwrap();
    sender.handle_packed(0, Packed { narrowed: Vec::new(), parts: parts() });
    violation(sender.handle_message(again(&[1])), not);
    let mut sender = sent();
    sender.handle_message(Message::Applied { seq: 0 }).unwrap();
    violation(sender.handle_message(again(&[1])), not);
}

#[test]
fn a_commit_of_something_else_is_no_commit() {
    let committing = || {
        let mut sender = delivering();
        sender.handle_end(finish());
        while sender.poll().is_some() {}
        sender
    };
    let mut sender = committing();
    sender.handle_message(Message::Committed(committed())).unwrap();
    assert_eq!(sender.poll(), Some(SenderOutput::Committed(committed())));
    match sender.poll() {
        Some(SenderOutput::Plan(state)) => {
            let Committed { generation, root, size, .. } = committed();
            assert_eq!(
                (state.generation, state.root, state.size),
                (Some(generation), Some(root), size)
            );
        }
        other => panic!("{other:?}"),
    }
    for wrong in [
        Committed { generation: Generation::zfs(1), ..committed() },
        Committed { root: Root([9; 32]), ..committed() },
        Committed { size: 1, ..committed() },
    ] {
        let mut sender = committing();
        violation(sender.handle_message(Message::Committed(wrong)), "something else");
        assert_eq!(sender.poll(), None);
    }
}

#[test]
fn a_refusal_ends_either_side_at_any_time() {
    let refuse = || Message::Refuse { reason: Reason::Denied, detail: "no".to_owned() };
    let refused = Err(SessionError::Refused { reason: Reason::Denied, detail: "no".to_owned() });
    for mut sender in [Sender::new(), delivering()] {
        assert_eq!(sender.handle_message(refuse()), refused);
        unexpected(sender.handle_message(Message::State(Box::new(state()))));
    }
    for mut receiver in [Receiver::new(state()), receiving(PlanKind::Full, 0)] {
        assert_eq!(receiver.handle_message(refuse()), refused);
        unexpected(receiver.handle_message(Message::Done));
    }
}
