//! Tests of the opaque source, on streams written by `testing`.

use driftline_extent::{Explained, Reason};
use proptest::prelude::*;

use super::*;
use crate::{
    ByteOrder, RecordKind,
    testing::{Opening, StreamWriter},
};

const FILE_SYSTEM: Opening<'_> =
    Opening { features: 0x43_0004, objset_type: 2, from: 0, to: 7, payload: &[] };

/// A stream of a file system from one snapshot to another, with these payloads.
fn file_system(writer: StreamWriter, from: u64, to: u64, payloads: &[Vec<u8>]) -> StreamWriter {
    let mut writer =
        writer.begin(&Opening { from, to, ..FILE_SYSTEM }).object(1, 20, 512, &[5; 168]);
    for (payload, object) in payloads.iter().zip(2..) {
        writer = match object % 4 {
            0 => writer.write(object, 0, payload),
            1 => writer.object(object, 19, 4096, &[4; 40]).write(object, 8192, payload),
            2 => {
                let header = writer.header(RecordKind::Spill);
                writer.record(header.u64s(8, &[object, payload.len() as u64, to]), payload)
            }
            _ => writer.free(object, 0, u64::MAX).embedded(0, object, 0, 512, &payload[..100]),
        };
    }
    writer.free_objects(99, 1).end()
}

fn small() -> Vec<Vec<u8>> {
    [512, 4092, 4096, 4100, 512].map(|len| vec![len as u8; len]).to_vec()
}

fn writer() -> StreamWriter {
    StreamWriter::new(ByteOrder::Little)
}

fn plain(from: u64, to: u64) -> Vec<u8> {
    file_system(writer(), from, to, &small()).into_bytes()
}

/// The parts of all streams, and the error that ended them.
fn cut(bytes: &[u8]) -> (Vec<Vec<u8>>, Result<(), StreamError>) {
    let mut stream = OpaqueStream::new(bytes);
    let mut parts = Vec::new();
    let mut read = || {
        while stream.open()?.is_some() {
            while let Some(part) = stream.next_part()? {
                parts.push(part);
            }
        }
        Ok(())
    };
    let result = read();
    (parts, result)
}

/// The parts of one stream.
fn drain<R: Read>(stream: &mut OpaqueStream<R>) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(change) = stream.next_change(0).expect("the stream is sound") {
        match change {
            Change::Part(part) => all.extend(part),
            other => panic!("{other:?} instead of a part"),
        }
    }
    all
}

fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let words = prop_oneof![
        4 => 128..2000_usize,
        2 => Just(1024),
        1 => (PART_MAX / 4 - 2)..(PART_MAX / 4 + 2),
        1 => 0..150_000_usize,
        1 => Just(3 * PART_MAX / 4),
    ];
    let payload = (any::<u8>(), words.prop_map(|words| words.max(128)))
        .prop_map(|(byte, words)| vec![byte; 4 * words]);
    prop::collection::vec(payload, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn parts_joined_are_the_stream(
        streams in prop::collection::vec(payloads(), 1..3),
        package in any::<bool>(),
        order in prop::sample::select(vec![ByteOrder::Little, ByteOrder::Big]),
        checksums in any::<bool>(),
    ) {
        let mut writer = StreamWriter::new(order);
        if package {
            writer = writer.named_head("pool/vol@9", &[3; 8200]);
        }
        if !checksums {
            writer = writer.without_record_checksums();
        }
        for (payloads, to) in streams.iter().zip(1..) {
            writer = file_system(writer, to - 1, to, payloads);
        }
        if package {
            writer = writer.compound_end();
        }
        let bytes = writer.into_bytes();
        let (parts, result) = cut(&bytes);
        prop_assert!(result.is_ok(), "{:?}", result);
        prop_assert!(parts.iter().all(|part| (1..=PART_MAX).contains(&part.len())));
        prop_assert!(parts.concat() == bytes);
    }

    #[test]
    fn a_damaged_byte_is_never_handed_out(
        payloads in payloads(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
        cut_off in any::<bool>(),
    ) {
        let sound = file_system(writer(), 0, 1, &payloads).into_bytes();
        let mut damaged = sound.clone();
        let at = at.index(sound.len());
        if cut_off {
            damaged.truncate(at);
        } else {
            damaged[at] ^= 1 << bit;
        }
        let (parts, result) = cut(&damaged);
        let parts = parts.concat();
        prop_assert!(result.is_err());
        prop_assert!(sound.starts_with(&parts));
        prop_assert!(parts.len() <= at, "{} bytes handed out, {} damaged", parts.len(), at);
    }
}

#[test]
fn large_payloads_are_parts_of_their_own() {
    let large = vec![9; PART_MAX + 4096];
    let bytes = file_system(writer(), 0, 7, &[vec![1; 4096], vec![2; 4092], large]).into_bytes();
    let (parts, result) = cut(&bytes);
    assert!(result.is_ok());
    let lens: Vec<_> = parts.iter().map(Vec::len).collect();
    // BEGIN, OBJECT and the header of a SPILL; its payload; FREE, embedded, and the header of
    // a WRITE; its payload, cut; FREEOBJECTS and END.
    let begin = 312 + (312 + 168) + 312;
    let embedded = 312 + (312 + 104) + 312;
    assert_eq!(lens, [begin, 4096, embedded, PART_MAX, 4096, 312 + 312]);
}

#[test]
fn what_is_gathered_is_bounded() {
    let mut writer = writer().begin(&FILE_SYSTEM);
    for object in 0..3000 {
        writer = writer.free(object, 0, u64::MAX).write(object, 0, &[7; 512]);
    }
    let bytes = writer.end().into_bytes();
    let (parts, _) = cut(&bytes);
    assert!(parts.concat() == bytes);
    assert_eq!(parts.len(), bytes.len().div_ceil(PART_MAX - HEADER_LEN - OWN_MIN));
}

#[test]
fn a_stream_is_planned_from_the_base_the_target_has() {
    let bytes = [plain(0, 1), plain(1, 2), plain(2, 3)].concat();
    for (held, from) in [(None, 0), (Some(1), 1), (Some(2), 2), (Some(3), 3)] {
        let mut stream = OpaqueStream::new(&bytes[..]);
        let mut held: Option<Generation> = held.map(Generation::zfs);
        for to in from + 1..=3 {
            let plan = stream.plan(held.as_ref()).unwrap();
            assert_eq!((plan.kind, plan.base), (PlanKind::Stream, held));
            assert_eq!(plan.tip, Some(Generation::zfs(to)));
            assert!(matches!(stream.finish().unwrap_err().fault(), Fault::Unfinished));
            assert_eq!(drain(&mut stream), plain(to - 1, to));
            held = Some(stream.finish().unwrap().tip);
            assert_eq!(held, plan.tip);
        }
        assert_eq!(stream.plan(held.as_ref()).unwrap().kind, PlanKind::UpToDate);
        assert_eq!(stream.bytes_read(), bytes.len() as u64);
    }
}

#[test]
fn another_base_is_a_mismatch() {
    for base in [Some(Generation::zfs(9)), Some(Generation::drbd(2)), None] {
        let bytes = [plain(1, 2), plain(2, 3)].concat();
        let mut stream = OpaqueStream::new(&bytes[..]);
        let error = stream.plan(base.as_ref()).unwrap_err();
        assert_eq!(error.reason(), Reason::BaseMismatch);
        assert!(matches!(error.fault(), Fault::BaseMismatch { from: 1, .. }), "{error}");
    }
    // A whole stream over what the target holds would need a rollback.
    let whole = plain(0, 1);
    let mut stream = OpaqueStream::new(&whole[..]);
    let error = stream.plan(Some(&Generation::zfs(9))).unwrap_err();
    assert_eq!(error.reason(), Reason::BaseMismatch);
    assert!(matches!(stream.next_part().unwrap_err().fault(), Fault::Unplanned));
}

#[test]
fn a_package_leads_where_its_first_data_set_leads() {
    let named = |writer: StreamWriter, name: &str, from, to| {
        let opening = Opening { from, to, ..FILE_SYSTEM };
        writer.begin_named(&opening, name).write(3, 0, &[1; 4096]).end()
    };
    let head = || writer().named_head("pool/tree@c", &[]);
    let tree = named(head(), "pool/tree@b", 0, 11);
    let tree = named(tree, "pool/tree@c", 11, 12);
    let tree = named(tree, "pool/tree/leaf@c", 0, 99);
    let bytes = tree.compound_end().into_bytes();
    let mut stream = OpaqueStream::new(&bytes[..]);
    let plan = stream.plan(None).unwrap();
    assert_eq!((plan.kind, plan.base, plan.tip), (PlanKind::Stream, None, None));
    assert_eq!(drain(&mut stream), bytes);
    assert_eq!(stream.finish().unwrap().tip, Generation::zfs(12));
    let tip = Generation::zfs(12);
    assert_eq!(stream.plan(Some(&tip)).unwrap().kind, PlanKind::UpToDate);
    // Read by somebody who has it already.
    let mut stream = OpaqueStream::new(&bytes[..]);
    assert_eq!(stream.plan(Some(&tip)).unwrap().kind, PlanKind::UpToDate);

    let malformed = |writer: StreamWriter| {
        let bytes = writer.compound_end().into_bytes();
        let (_, result) = cut(&bytes);
        assert!(matches!(result.unwrap_err().fault(), Fault::Malformed(_)));
    };
    malformed(head());
    malformed(named(head(), "pool/tree/leaf@c", 0, 99));
    let gap = named(head(), "pool/tree@b", 0, 11);
    malformed(named(gap, "pool/tree@c", 10, 12));
}

#[test]
fn what_was_cut_off_is_gone_on_with_and_nothing_else() {
    let told = |token: Option<&str>| {
        let accepts = Accepts::Stream { token: token.map(str::to_owned), points: Vec::new() };
        TargetState { accepts, ..TargetState::nothing() }
    };
    let resuming = Opening { features: FILE_SYSTEM.features | 1 << 20, ..FILE_SYSTEM };
    let resumed = writer().begin(&resuming).write(3, 0, &[1; 4096]).end().into_bytes();
    let planned = |bytes: &[u8], state: &TargetState| {
        let mut stream = OpaqueStream::new(bytes);
        stream.learn(state);
        stream.plan(None).map(|plan| plan.kind)
    };
    assert_eq!(planned(&resumed, &told(Some("1-a"))).unwrap(), PlanKind::Stream);
    assert_eq!(planned(&plain(0, 7), &told(None)).unwrap(), PlanKind::Stream);
    let error = planned(&resumed, &told(None)).unwrap_err();
    assert!(matches!(error.fault(), Fault::NothingToResume), "{error}");
    let error = planned(&plain(0, 7), &told(Some("1-a"))).unwrap_err();
    assert!(matches!(error.fault(), Fault::NotResumed), "{error}");
    assert!(error.to_string().contains("zfs send -t"), "{error}");
}

#[test]
fn what_does_not_lead_to_the_snapshot_is_refused() {
    let fault = |bytes: Vec<u8>| {
        let (parts, result) = cut(&bytes);
        let error = result.unwrap_err();
        assert_eq!(error.reason(), Reason::Unsupported, "{error}");
        (parts, error)
    };
    for (bit, redacted) in [(0, false), (1, false), (21, true)] {
        let opening = Opening { features: FILE_SYSTEM.features | 1 << bit, ..FILE_SYSTEM };
        let (parts, error) = fault(writer().begin(&opening).end().into_bytes());
        assert!(parts.is_empty());
        assert_eq!(matches!(error.fault(), Fault::Redacted), redacted, "{error}");
        assert_eq!(matches!(error.fault(), Fault::Deduplicated), !redacted, "{error}");
    }
    let unknown = Opening { features: 1 << 40, ..FILE_SYSTEM };
    fault(writer().begin(&unknown).end().into_bytes());
    for kind in [RecordKind::WriteByref, RecordKind::Redact] {
        let writer = writer().begin(&FILE_SYSTEM);
        let header = writer.header(kind).u64s(8, &[1, 0, 512, 7]);
        fault(writer.record(header, &[]).end().into_bytes());
    }
}

#[test]
fn a_raw_stream_is_carried() {
    let raw = Opening { features: 0x142_0000, objset_type: 3, ..FILE_SYSTEM };
    let writer = writer().begin(&raw);
    let range = writer.header(RecordKind::ObjectRange).u64s(8, &[0, 32, 7]);
    let bytes = writer.record(range, &[]).write_as(2, 1, 0, &[8; 8192]).end().into_bytes();
    let (parts, result) = cut(&bytes);
    assert!(result.is_ok() && parts.concat() == bytes);
}
