//! Opaque streams through whole sessions: the same bytes arrive, what repeats moves once, a cut
//! one goes on by its token, and nothing damaged ever reaches the end.

mod wire_support;

use std::{cell::RefCell, collections::HashSet, rc::Rc};

use driftline_extent::{Generation, PART_OWN_MIN, Reason, Source, Target};
use driftline_target::{Options, StreamTarget, open};
use driftline_tests::{
    link::{Damage, Delivery, Fault, Random},
    pool::{Blocks, DataSet, Partial, Receive, Send},
    samples::{all_samples, sample},
    session::{Outcome, Script, run},
};
use driftline_transport::TransportError;
use driftline_wire::SessionError;
use driftline_zfs::{OpaqueStream, RecordReader};
use wire_support::{full_copy, push_links};

type Shared = Rc<RefCell<DataSet>>;

fn shared(data_set: DataSet) -> Shared {
    Rc::new(RefCell::new(data_set))
}

fn target(data_set: &Shared) -> StreamTarget<Receive> {
    StreamTarget::new(Receive::into(data_set.clone()), "pool/fs", [7; 32])
        .expect("the data set says what it holds")
}

/// A session into the data set. Its sink is dropped afterwards, as a process would end.
fn push<S: Source>(source: &mut S, data_set: &Shared, seed: u64, script: &Script) -> Outcome<()> {
    let went = run(push_links(seed), source, None, target(data_set), script);
    drop(went.replica);
    Outcome {
        source: went.source,
        target: went.target,
        replica: (),
        offered: went.offered,
        committed: went.committed,
        data_packed: went.data_packed,
        data_applied: went.data_applied,
        opened: went.opened,
        to_target: went.to_target,
        to_source: went.to_source,
        elapsed_ms: went.elapsed_ms,
    }
}

fn assert_ended(went: &Outcome<()>, what: &str) {
    assert!(went.source.is_ok() && went.target.is_ok(), "{what}: {went:.300?}");
}

/// How many bytes of some streams no target needs to be sent: zeros, and what came before. And
/// where the last of them leads.
fn read(streams: &[u8]) -> (u64, Option<Generation>) {
    let (mut repeated, mut seen, mut tip) = (0, HashSet::new(), None);
    let mut source = OpaqueStream::new(streams);
    while source.open().expect("the stream is sound").is_some() {
        while let Some(part) = source.next_part().expect("the stream is sound") {
            let zero = part.iter().all(|byte| *byte == 0);
            if zero || part.len() as u64 >= PART_OWN_MIN && seen.contains(&part) {
                repeated += part.len() as u64;
            }
            seen.insert(part);
        }
        tip = source.ends().map(|ends| Generation::zfs(ends.to));
    }
    (repeated, tip)
}

fn repeated(streams: &[u8]) -> u64 {
    read(streams).0
}

#[test]
fn every_recorded_stream_arrives_as_it_was() {
    let mut saved = 0;
    for (name, bytes) in all_samples() {
        let ends = OpaqueStream::new(&bytes[..]).open().expect("it is sound").expect("it is one");
        let data_set = shared(ends.from.map_or_else(DataSet::default, DataSet::at));
        let script = Script { batch_items: 512, ..Script::default() };
        let went = push(&mut OpaqueStream::new(&bytes[..]), &data_set, 1, &script);
        assert_ended(&went, &name);
        let data_set = data_set.borrow();
        assert!(data_set.streams == [bytes.clone()], "{name} arrived as something else");
        let (repeated, tip) = read(&bytes);
        assert_eq!((data_set.generation(), went.committed.len()), (tip, 1), "{name}");
        assert_eq!(went.committed[0].size, bytes.len() as u64, "{name}");
        assert_eq!(went.data_packed, bytes.len() as u64 - repeated, "{name}");
        assert_eq!(went.data_applied, went.data_packed, "{name}");
        saved += repeated;
    }
    // Otherwise this test would not have seen what repeats.
    assert!(saved > 0);
}

/// A file system with small and large blocks, zeros, and blocks that repeat.
fn content(seed: u64) -> Blocks {
    let mut random = Random(seed);
    let mut blocks = Blocks::new();
    for object in 2..8 {
        for number in 0..4_u64 {
            let mut block = vec![0; [512, 4096, 16384, 8192][number as usize]];
            if object % 3 != 0 {
                random.fill(&mut block);
            }
            blocks.insert((object, number << 20), block);
        }
    }
    let first = blocks[&(2, 2 << 20)].clone();
    blocks.insert((9, 0), first.clone());
    blocks.insert((9, 16384), first);
    blocks
}

/// The second generation: a file that is new, and one with other blocks.
fn changes() -> Blocks {
    let mut blocks = content(5);
    blocks.retain(|(object, _), _| *object > 4);
    blocks.into_iter().map(|((object, offset), block)| ((object + 10, offset), block)).collect()
}

const ONE: u64 = 11;
const TWO: u64 = 12;

fn first() -> Send {
    Send::new(0, ONE, &content(1))
}

fn second() -> Send {
    Send::new(ONE, TWO, &changes())
}

#[test]
fn what_repeats_moves_once_also_from_one_increment_to_the_next() {
    let data_set = shared(DataSet::default());
    let went = push(&mut first(), &data_set, 1, &Script::default());
    assert_ended(&went, "the first");
    assert_eq!(data_set.borrow().blocks, content(1));
    let stream = data_set.borrow().streams[0].clone();
    let zeros = 2 * (512 + 4096 + 16384 + 8192) - 2 * 512;
    // A block of 512 zeros is gathered with the headers around it.
    assert_eq!(repeated(&stream), zeros + 2 * 16384);
    assert_eq!(went.data_packed, stream.len() as u64 - repeated(&stream));
    // The same bytes in a later session are known to nobody.
    let mut again = Send::new(ONE, TWO, &content(1));
    let went = push(&mut again, &data_set, 2, &Script::default());
    assert_ended(&went, "the second");
    assert_eq!(data_set.borrow().generation(), Some(Generation::zfs(TWO)));
    let stream = data_set.borrow().streams[1].clone();
    assert_eq!(went.data_packed, stream.len() as u64 - repeated(&stream));
    // In one session they are.
    let [one, two] = data_set.borrow().streams.clone().try_into().expect("two streams");
    let both = [one.clone(), two].concat();
    let data_set = shared(DataSet::default());
    let went = push(&mut OpaqueStream::new(&both[..]), &data_set, 3, &Script::default());
    assert_ended(&went, "both");
    assert_eq!(went.committed.len(), 2);
    assert_eq!(went.data_packed, both.len() as u64 - repeated(&both));
    assert!(repeated(&both) > 2 * repeated(&one), "the second is in the first");
}

#[test]
fn bytes_may_arrive_in_any_portions() {
    for delivery in (0..6).map(|seed| Delivery::Pieces(Random(seed))).chain([Delivery::Bytewise]) {
        let data_set = shared(DataSet::default());
        let script = Script { delivery: delivery.clone(), ..Script::default() };
        assert_ended(&push(&mut first(), &data_set, 1, &script), &format!("{delivery:?}"));
        assert_eq!(data_set.borrow().blocks, content(1), "{delivery:?}");
    }
}

fn damages(len: usize, random: &mut Random) -> [Damage; 9] {
    [
        Damage::Cut,
        Damage::Truncate,
        Damage::Flip(0),
        Damage::Flip(random.below(8 * len)),
        Damage::Flip(8 * len - 1),
        Damage::Duplicate,
        Damage::Swap,
        Damage::Drop,
        Damage::Insert(vec![0; 7].into()),
    ]
}

/// Spoils every frame of one direction in every way. Whatever happens, the data set is at the one
/// generation or the other, and the next session goes on from what the storage kept.
fn spoil_all(base: &DataSet, source: impl Fn() -> Send, to_target: bool) {
    let reached = shared(base.clone());
    let clean = push(&mut source(), &reached, 100, &Script::default());
    assert_ended(&clean, "clean");
    let reached = reached.borrow().clone();
    let mut random = Random(u64::from(to_target));
    let (mut resumed, mut shortened) = (0, 0);
    let sent = if to_target { &clean.to_target } else { &clean.to_source };
    for (frame, bytes) in sent.iter().enumerate() {
        for damage in damages(bytes.len(), &mut random) {
            let what =
                format!("frame {frame} of {}, to target: {to_target}: {damage:?}", sent.len());
            let harmless = damage == Damage::Duplicate && frame + 1 == sent.len();
            let fault = Some(Fault { frame, damage });
            let script = match to_target {
                true => Script { to_target: fault, ..Script::default() },
                false => Script { to_source: fault, ..Script::default() },
            };
            let data_set = shared(base.clone());
            let went = push(&mut source(), &data_set, 100, &script);
            assert_eq!(went.source.is_err() || went.target.is_err(), !harmless, "{what}");
            let after = data_set.borrow().clone();
            if after.generation() == base.generation() {
                assert_eq!(
                    (&after.blocks, &after.streams),
                    (&base.blocks, &base.streams),
                    "{what}"
                );
                assert!(went.committed.is_empty(), "{what}: a commit was made up");
            } else {
                assert_eq!(after, reached, "{what}");
            }

            let token = after.partial.as_ref().map(Partial::token);
            let mut source = source();
            let again = push(&mut source, &data_set, 103, &Script::default());
            assert_ended(&again, &what);
            let done = data_set.borrow();
            assert_eq!((&done.blocks, done.generation()), (&reached.blocks, reached.generation()));
            assert_eq!(done.partial, None, "{what}");
            if let Some(token) = token {
                // The last that the source heard was said after the commit, without the token.
                assert_eq!(source.token(), None, "{what}");
                let gone_on = done.streams.last().map_or(0, Vec::len);
                let whole = reached.streams.last().map_or(0, Vec::len);
                resumed += 1;
                shortened += u32::from(gone_on < whole && !token.ends_with("-0-0"));
            }
        }
    }
    // Otherwise this test would not have seen what it is about.
    assert!(resumed > 0 && shortened > 0, "{resumed} resumed, {shortened} with less to send");
}

#[test]
fn a_first_stream_with_any_frame_to_the_target_spoilt() {
    spoil_all(&DataSet::default(), first, true);
}

#[test]
fn a_first_stream_with_any_frame_to_the_source_spoilt() {
    spoil_all(&DataSet::default(), first, false);
}

#[test]
fn an_increment_with_any_frame_to_the_target_spoilt() {
    spoil_all(&held(), second, true);
}

#[test]
fn an_increment_with_any_frame_to_the_source_spoilt() {
    spoil_all(&held(), second, false);
}

/// A data set at the first generation.
fn held() -> DataSet {
    let data_set = shared(DataSet::default());
    assert_ended(&push(&mut first(), &data_set, 1, &Script::default()), "the first");
    data_set.take()
}

#[test]
fn the_source_hears_of_the_token_and_the_snapshots() {
    let data_set = shared(held());
    let fault = Some(Fault { frame: 20, damage: Damage::Cut });
    let script = Script { to_target: fault, ..Script::default() };
    let went = push(&mut second(), &data_set, 1, &script);
    assert!(went.target.is_err());
    let partial = data_set.borrow().partial.clone().expect("some of it arrived");
    // The offer never arrives, so the state is the last that the source hears.
    let mut source = second();
    let fault = Some(Fault { frame: 4, damage: Damage::Cut });
    let script = Script { to_target: fault, ..Script::default() };
    push(&mut source, &data_set, 2, &script);
    assert_eq!(source.token(), Some(&partial.token()));
    let state = target(&data_set).state();
    assert_eq!(state.generation, Some(Generation::zfs(ONE)));
    assert!(state.resume.is_none(), "only the storage knows where to go on");
}

#[test]
fn a_stream_that_ends_early_or_is_damaged_never_reaches_the_end() {
    let bytes = sample("fs.full");
    let starts: Vec<usize> = {
        let mut reader = RecordReader::new(&bytes[..]);
        let mut starts = Vec::new();
        while reader.next_record().expect("it is sound").is_some() {
            starts.push(reader.offset() as usize);
        }
        starts
    };
    let mut random = Random(1);
    let places = starts.iter().step_by(starts.len() / 12).chain(starts.last());
    for at in places.flat_map(|start| [*start, start + 8 + random.below(270)]) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        for damaged in [&bytes[..at], &flipped] {
            let data_set = shared(DataSet::default());
            let went = push(&mut OpaqueStream::new(damaged), &data_set, 1, &Script::default());
            let reason = match &went.source {
                Err(TransportError::Local(failure)) => failure.reason,
                other => panic!("byte {at}: {other:?}"),
            };
            assert!(matches!(reason, Reason::StreamDamaged | Reason::Unsupported), "byte {at}");
            assert!(data_set.borrow().streams.is_empty(), "byte {at}");
        }
    }
}

fn refusal(result: &Result<(), TransportError>) -> (Reason, String) {
    match result {
        Err(TransportError::Session(SessionError::Refused { reason, detail })) => {
            (*reason, detail.clone())
        }
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn a_target_of_volumes_refuses_a_stream_and_changes_nothing() {
    for overwrite in [false, true] {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("replica.img");
        let options = Options { create: true, ..Options::default() };
        let script = Script { overwrite, ..Script::default() };
        let replica = open(&path, &options).expect("a replica");
        let went = run(push_links(1), &mut first(), None, replica, &script);
        let (reason, detail) = refusal(&went.source);
        assert_eq!(reason, Reason::Unsupported);
        assert!(detail.contains("push it to zfs:POOL/DATASET"), "{detail}");
        drop(went.replica);
        assert_eq!(dir.path().read_dir().expect("a folder").count(), 0, "something was made");
    }
    // The one in memory, which other tests are made of, keeps to the same.
    let memory = wire_support::target(1);
    let went = run(push_links(1), &mut first(), None, memory, &Script::default());
    assert_eq!(refusal(&went.source).0, Reason::Unsupported);
}

#[test]
fn a_target_of_streams_refuses_a_volume_and_changes_nothing() {
    let data_set = shared(DataSet::default());
    let went = push(&mut full_copy(), &data_set, 1, &Script::default());
    let (reason, detail) = refusal(&went.source);
    assert_eq!(reason, Reason::Unsupported);
    assert!(detail.contains("takes whole streams"), "{detail}");
    assert_eq!(*data_set.borrow(), DataSet::default());
}

#[test]
fn a_diverged_data_set_is_refused() {
    let data_set = shared(DataSet::at(99));
    for source in [first(), second()] {
        let mut source = source;
        let went =
            push(&mut source, &data_set, 1, &Script { overwrite: true, ..Script::default() });
        let error = went.source.expect_err("it holds something else");
        assert_eq!(error.reason(), Some(Reason::BaseMismatch), "{error}");
        assert_eq!(*data_set.borrow(), DataSet::at(99));
    }
}
