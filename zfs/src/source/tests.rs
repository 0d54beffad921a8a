//! Tests of the volume in a stream, on streams written by `testing`.

use driftline_extent::{Explained, Reason};
use proptest::prelude::*;

use super::*;
use crate::{
    ByteOrder, RecordKind,
    testing::{Opening, StreamWriter, native_nvlist},
};

const ORDERS: [ByteOrder; 2] = [ByteOrder::Little, ByteOrder::Big];

/// Length of the blocks below.
const BLOCK: u64 = 4096;

fn zfs(guid: u64) -> Generation {
    Generation::zfs(guid)
}

fn zero(start: u64, end: u64) -> Change {
    Change::Zero(Extent::from_bounds(start, end).expect("no change is empty"))
}

fn data(block: u64, bytes: &[u8]) -> Change {
    Change::Data { offset: block * BLOCK, bytes: bytes.to_vec() }
}

/// A block that compresses, different for each seed.
fn block(seed: u8) -> Vec<u8> {
    (0..BLOCK).map(|i| if i % 512 < 100 { seed.wrapping_add((i / 7) as u8) } else { 0 }).collect()
}

fn begin(order: ByteOrder, from: u64, to: u64) -> StreamWriter {
    StreamWriter::new(order).begin(&Opening::volume(from, to))
}

/// The changes of the first increment after `base`, and how it ended.
fn changes(stream: &[u8], base: Option<Generation>) -> Result<(Vec<Change>, Finish), StreamError> {
    let mut stream = ZvolStream::new(stream);
    stream.plan(base.as_ref())?;
    let mut changes = Vec::new();
    while let Some(change) = stream.next_change(0)? {
        changes.push(change);
    }
    assert_eq!(stream.next_change(0)?, None, "the end stays the end");
    Ok((changes, stream.finish()?))
}

fn fault(stream: StreamWriter) -> StreamError {
    changes(&stream.into_bytes(), Some(zfs(1))).expect_err("the stream must be refused")
}

#[test]
fn blocks_of_every_codec_come_out_in_both_orders() {
    for order in ORDERS {
        let mut writer = begin(order, 0, 2).volume(BLOCK as u32, 40 * BLOCK);
        let mut expected = Vec::new();
        for (i, codec) in [0, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16].iter().enumerate() {
            let bytes = block(*codec);
            writer = writer.write_as(*codec, 1, i as u64 * BLOCK, &bytes);
            expected.push(data(i as u64, &bytes));
        }
        // Embedded blocks are short; the rest of their place is zeros.
        for (i, codec) in [2u8, 3, 9, 14, 15, 16].iter().enumerate() {
            let short: Vec<u8> = (0..64).map(|at| at / 8 + codec).collect();
            writer = writer.embedded(*codec, 1, (20 + i as u64) * BLOCK, BLOCK, &short);
            let mut bytes = short;
            bytes.resize(BLOCK as usize, 0);
            expected.push(data(20 + i as u64, &bytes));
        }
        let stream = writer.size(64 * BLOCK).free_objects(3, 29).end().into_bytes();
        expected.push(zero(40 * BLOCK, 64 * BLOCK));
        let (changes, finish) = changes(&stream, None).expect("the stream is sound");
        assert_eq!(changes, expected, "{order:?}");
        assert_eq!(finish, Finish { tip: zfs(2), size: Some(64 * BLOCK), root: None });
    }
}

#[test]
fn the_last_hole_comes_last_and_ends_where_the_volume_ends() {
    let writer = || {
        begin(ByteOrder::Little, 1, 2)
            .volume(BLOCK as u32, 8 * BLOCK)
            .free(1, 0, BLOCK)
            .write(1, 2 * BLOCK, &block(1))
            // A hole high in the tree reaches beyond the last block.
            .free(1, 7 * BLOCK, 64 * BLOCK)
            .free(1, 128 * BLOCK, 64 * BLOCK)
    };
    let body = [zero(0, BLOCK), data(2, &block(1)), zero(7 * BLOCK, 8 * BLOCK)];
    let with = |last: &[Change]| [&body[..], last].concat();

    let of_size = |size| {
        let stream = writer().size(size).end().into_bytes();
        changes(&stream, Some(zfs(1))).expect("the stream is sound")
    };
    let (grown, finish) = of_size(100 * BLOCK);
    assert_eq!(grown, with(&[zero(8 * BLOCK, 100 * BLOCK)]));
    assert_eq!(finish.size, Some(100 * BLOCK));
    assert_eq!(of_size(8 * BLOCK).0, with(&[]), "nothing is left of it");

    let unsaid = writer().object(2, 24, 512, &[]).end().into_bytes();
    let (changes, finish) = changes(&unsaid, Some(zfs(1))).expect("the stream is sound");
    assert_eq!(changes, with(&[zero(8 * BLOCK, u64::MAX)]));
    assert_eq!(finish.size, None);
}

#[test]
fn the_size_is_found_however_its_block_comes() {
    for (order, codec) in ORDERS.into_iter().flat_map(|o| [(o, 0), (o, 3), (o, 15), (o, 16)]) {
        let size = 48 * BLOCK;
        let properties = crate::testing::properties(order, size);
        let open = || begin(order, 1, 2).volume(BLOCK as u32, 0).object(2, 24, 512, &[]);
        let written = open().write_as(codec, 2, 0, &properties).end().into_bytes();
        let (_, finish) = changes(&written, Some(zfs(1))).expect("the stream is sound");
        assert_eq!(finish.size, Some(size), "{order:?}, codec {codec}");
        if codec != 0 {
            let embedded = open().embedded(codec, 2, 0, 512, &properties).end().into_bytes();
            let (_, finish) = changes(&embedded, Some(zfs(1))).expect("the stream is sound");
            assert_eq!(finish.size, Some(size), "{order:?}, codec {codec}, embedded");
        }
    }
    let open = || begin(ByteOrder::Little, 1, 2).volume(BLOCK as u32, 0);
    assert!(matches!(fault(open().write(2, 0, &[0; 512]).end()).fault(), Fault::NoSize));
    for size in [0, 513, (1 << 63) + 512] {
        assert!(matches!(fault(open().size(size).end()).fault(), Fault::Malformed(_)), "{size}");
    }
    let full = begin(ByteOrder::Little, 0, 2).volume(BLOCK as u32, 0).end().into_bytes();
    assert!(matches!(changes(&full, None).unwrap_err().fault(), Fault::NoSize));
}

#[test]
fn an_empty_increment_changes_nothing() {
    let stream = begin(ByteOrder::Little, 1, 2).end().into_bytes();
    assert_eq!(stream.len(), 624);
    let (changes, finish) = changes(&stream, Some(zfs(1))).expect("the stream is sound");
    assert_eq!((changes, finish.tip, finish.size), (vec![], zfs(2), None));
    let mut stream = ZvolStream::new(&stream[..]);
    stream.plan(Some(&zfs(1))).expect("it starts there");
    let map = stream.change_map().expect("the stream is sound");
    assert!(map.changed.is_empty() && map.zero.is_empty());
    assert_eq!((map.base, map.tip), (Some(zfs(1)), Some(zfs(2))));
}

#[test]
fn changes_must_ascend_and_keep_to_blocks() {
    let open = || begin(ByteOrder::Little, 1, 2).volume(BLOCK as u32, 8 * BLOCK);
    let out_of_order = |writer: StreamWriter| {
        let error = fault(writer.end());
        assert!(matches!(error.fault(), Fault::OutOfOrder { .. }), "{error}");
        assert_eq!(error.reason(), Reason::StreamDamaged);
    };
    out_of_order(open().write(1, BLOCK, &block(1)).write(1, 0, &block(2)));
    out_of_order(open().write(1, BLOCK, &block(1)).write(1, BLOCK, &block(1)));
    out_of_order(open().free(1, 0, 3 * BLOCK).write(1, 2 * BLOCK, &block(1)));
    out_of_order(open().write(1, 2 * BLOCK, &block(1)).free(1, BLOCK, 2 * BLOCK));
    out_of_order(open().write(1, 2 * BLOCK, &block(1)).free(1, BLOCK, u64::MAX));

    let malformed = |writer: StreamWriter| {
        let error = fault(writer.end());
        assert!(matches!(error.fault(), Fault::Malformed(_)), "{error}");
        assert_eq!(error.reason(), Reason::StreamDamaged);
    };
    malformed(open().write(1, 8 * BLOCK, &block(1)));
    malformed(open().write(1, 512, &block(1)));
    malformed(open().write(1, 0, &[1; 512]));
    malformed(open().free(1, 0, 512));
    malformed(open().free(1, (1 << 63) - BLOCK, 2 * BLOCK));
    malformed(open().free(1, 1 << 63, u64::MAX));
    malformed(open().free(1, 512, u64::MAX));
    malformed(open().embedded(15, 1, 0, 512, &block(1)[..512]));
    malformed(open().embedded(15, 1, 0, BLOCK, &[0; 2 * BLOCK as usize]));
    malformed(open().object(1, 23, 4096, &[]));
    malformed(open().free_objects(0, 2));
    malformed(open().free_objects(1, u64::MAX));
    let bare = || begin(ByteOrder::Little, 1, 2);
    malformed(bare().write(1, 0, &block(1)));
    malformed(bare().free(1, 0, BLOCK));
    malformed(bare().object(1, 19, 4096, &[]));
    malformed(bare().object(2, 23, 512, &[]));
    for block_len in [0, 256, 3000, 12288, 32 << 20] {
        malformed(bare().object(1, 23, block_len, &[]));
    }
    // What concerns other objects does not matter.
    let others =
        open().write(3, 1, &[1; 512]).free(7, 1, 1).free_objects(2, 9).object(3, 99, 0, &[]);
    assert!(changes(&others.end().into_bytes(), Some(zfs(1))).is_ok());
}

#[test]
fn what_cannot_be_carried_is_refused_by_name() {
    let open = |features| {
        let opening = Opening { features, ..Opening::volume(1, 2) };
        StreamWriter::new(ByteOrder::Little).begin(&opening)
    };
    let refused = |writer: StreamWriter, word: &str| {
        let error = fault(writer.end());
        assert_eq!(error.reason(), Reason::Unsupported, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.to_string().contains("pool/vol@2"), "{error}");
    };
    refused(open(1), "deduplicated");
    refused(open(2), "deduplicated");
    refused(open(1 << 21), "redacted");
    refused(open(1 << 24), "raw encrypted");
    refused(open(1 << 30), "bit 30");
    let record = |kind| {
        let writer = open(0);
        let header = writer.header(kind);
        writer.record(header, &[])
    };
    refused(record(RecordKind::WriteByref), "deduplicated");
    refused(record(RecordKind::Redact), "redacted");
    refused(record(RecordKind::ObjectRange), "raw encrypted");
    for (objset_type, word) in [(2, "file system"), (0, "type 0")] {
        let opening = Opening { objset_type, ..Opening::volume(1, 2) };
        refused(StreamWriter::new(ByteOrder::Little).begin(&opening), word);
    }
}

#[test]
fn a_block_that_does_not_decompress_is_the_end() {
    let writer = begin(ByteOrder::Little, 1, 2).volume(BLOCK as u32, 8 * BLOCK);
    let header = writer
        .header(RecordKind::Write)
        .u64s(8, &[1, 0])
        .u64s(24, &[0, BLOCK, 2])
        .u8(50, 15)
        .u64(96, 512);
    let stream = writer.record(header, &[0xff; 512]).write(1, BLOCK, &block(1)).end().into_bytes();
    let mut stream = ZvolStream::new(&stream[..]);
    stream.plan(Some(&zfs(1))).expect("it starts there");
    let error = stream.next_change(0).unwrap_err();
    assert!(matches!(error.fault(), Fault::Codec { offset: 0, .. }), "{error}");
    // Going on would leave the block out.
    for _ in 0..3 {
        assert!(matches!(stream.next_change(0).unwrap_err().fault(), Fault::Poisoned));
    }
    assert!(stream.finish().is_err());
}

#[test]
fn changes_are_asked_for_in_order() {
    let stream = begin(ByteOrder::Little, 1, 2).volume(4096, 0).end().into_bytes();
    let mut stream = ZvolStream::new(&stream[..]);
    assert!(matches!(stream.next_change(0).unwrap_err().fault(), Fault::Unplanned));
    assert!(matches!(stream.finish().unwrap_err().fault(), Fault::Unfinished));
    stream.plan(Some(&zfs(1))).expect("it starts there");
    assert!(matches!(stream.finish().unwrap_err().fault(), Fault::Unfinished));
    assert_eq!(stream.next_change(0).unwrap(), Some(zero(0, u64::MAX)));
    assert_eq!(stream.next_change(0).unwrap(), None);
    assert!(stream.finish().is_ok());
}

/// A stream of two data sets, whose substreams alternate, as `zfs send -R` makes them.
fn two_volumes() -> Vec<u8> {
    let substream = |writer: StreamWriter, from, to| {
        let writer = writer.begin(&Opening::volume(from, to)).volume(BLOCK as u32, 8 * BLOCK);
        writer.write(1, 0, &block(to as u8)).size(8 * BLOCK).end()
    };
    let mut writer = StreamWriter::new(ByteOrder::Little).compound_head(&[]);
    for (from, to) in [(0, 10), (10, 11), (0, 20), (20, 21), (11, 12)] {
        writer = substream(writer, from, to);
    }
    writer.compound_end().into_bytes()
}

#[test]
fn guids_decide_which_substream_is_next() {
    let bytes = two_volumes();
    let walk = |base: Option<u64>, allow_full: bool| {
        let mut stream = ZvolStream::new(&bytes[..]).allow_full(allow_full);
        let mut base = base.map(zfs);
        let mut steps = Vec::new();
        loop {
            let plan = stream.plan(base.as_ref())?;
            let tip = plan.tip.and_then(|tip| tip.zfs_guid()).unwrap();
            steps.push((plan.kind, tip));
            assert_eq!(plan.base, base.filter(|_| plan.kind == PlanKind::Incremental));
            if plan.kind == PlanKind::UpToDate {
                return Ok::<_, StreamError>(steps);
            }
            while stream.next_change(0)?.is_some() {}
            base = Some(stream.finish()?.tip);
        }
    };
    use PlanKind::{Full, Incremental, UpToDate};
    let all = [(Full, 10), (Incremental, 11), (Incremental, 12), (UpToDate, 12)];
    assert_eq!(walk(None, false).unwrap(), all);
    assert_eq!(walk(Some(10), false).unwrap(), all[1..]);
    assert_eq!(walk(Some(11), false).unwrap(), all[2..]);
    assert_eq!(walk(Some(12), false).unwrap(), all[3..]);
    assert_eq!(walk(Some(20), false).unwrap(), [(Incremental, 21), (UpToDate, 21)]);
    assert_eq!(walk(Some(99), true).unwrap(), all);
    let error = walk(Some(99), false).unwrap_err();
    assert!(matches!(error.fault(), Fault::BaseMismatch { from: 0, to: 12, .. }), "{error}");
    assert!(error.to_string().contains("zfs:99"), "{error}");
}

/// Sources are driven by threads of their own.
#[test]
fn a_stream_can_move_to_another_thread() {
    fn moves<T: Send + 'static>() {}
    moves::<ZvolStream<std::fs::File>>();
    moves::<StreamError>();
}

#[test]
fn content_is_no_base_of_a_stream() {
    let content = Generation::content(driftline_extent::Root([7; 32]));
    let bytes = two_volumes();
    let error = ZvolStream::new(&bytes[..]).plan(Some(&content)).unwrap_err();
    assert_eq!(error.reason(), Reason::BaseMismatch);
    let plan = ZvolStream::new(&bytes[..]).allow_full(true).plan(Some(&content));
    assert_eq!(plan.unwrap().kind, PlanKind::Full);
}

#[test]
fn an_increment_that_is_passed_over_is_checked_all_the_same() {
    let mut bytes = two_volumes();
    bytes[312 * 5 + 20] ^= 1;
    let error = ZvolStream::new(&bytes[..]).plan(Some(&zfs(20))).unwrap_err();
    assert!(matches!(error.fault(), Fault::Checksum), "{error}");
    let bytes = two_volumes();
    let cut = ZvolStream::new(&bytes[..bytes.len() - 312]).plan(Some(&zfs(12))).unwrap_err();
    assert!(matches!(cut.fault(), Fault::Truncated), "not up to date: {cut}");
}

fn resumed(order: ByteOrder, from: u64, pairs: &[(&str, u64)]) -> StreamWriter {
    let payload = native_nvlist(order, pairs);
    let opening = Opening { features: 1 << 20, payload: &payload, ..Opening::volume(from, 2) };
    StreamWriter::new(order).begin(&opening)
}

#[test]
fn a_resumed_stream_goes_on_where_the_target_stands_and_nowhere_below() {
    for (order, from) in ORDERS.into_iter().flat_map(|order| [(order, 0), (order, 1)]) {
        let at = 4 * BLOCK;
        let pairs = [("resume_object", 1), ("resume_offset", at)];
        let bytes = resumed(order, from, &pairs)
            .volume(BLOCK as u32, 8 * BLOCK)
            .write(1, at, &block(1))
            .write(1, at + BLOCK, &block(2))
            .size(8 * BLOCK)
            .end()
            .into_bytes();
        let mut stream = ZvolStream::new(&bytes[..]);
        let plan = stream.plan((from != 0).then_some(&zfs(from))).expect("it starts there");
        assert_eq!(plan.kind, if from == 0 { PlanKind::Full } else { PlanKind::Incremental });
        assert_eq!(stream.resumed_at(), Some(at));
        let error = stream.next_change(at - 1).unwrap_err();
        assert!(matches!(error.fault(), Fault::Resumed { .. }), "{error}");
        assert!(stream.change_map().is_err(), "it would be a part of the map");
        // A refusal reads nothing, so the right question still gets the answer.
        assert_eq!(stream.next_change(at).unwrap(), Some(data(4, &block(1))));
        assert_eq!(stream.next_change(at).unwrap(), Some(data(5, &block(2))));
        assert_eq!(stream.next_change(at).unwrap(), None);
        assert_eq!(stream.finish().unwrap().size, Some(8 * BLOCK));
    }
}

#[test]
fn a_resumed_stream_must_say_where_it_goes_on() {
    let plan = |writer: StreamWriter| {
        let bytes = writer.end().into_bytes();
        let mut stream = ZvolStream::new(&bytes[..]);
        stream.plan(Some(&zfs(1))).map(|_| stream.resumed_at())
    };
    let order = ByteOrder::Little;
    let at =
        |object, offset| resumed(order, 1, &[("resume_object", object), ("resume_offset", offset)]);
    assert_eq!(plan(at(0, 9)).unwrap(), Some(0));
    assert_eq!(plan(at(1, 0)).unwrap(), Some(0));
    assert_eq!(plan(at(2, 0)).unwrap(), Some(u64::MAX), "the data was in the other stream");
    let missing = plan(resumed(order, 1, &[("resume_object", 1)])).unwrap_err();
    assert!(matches!(missing.fault(), Fault::Malformed(_)), "{missing}");
    let opening = Opening { features: 1 << 20, payload: &[0; 8], ..Opening::volume(1, 2) };
    let garbled = plan(StreamWriter::new(order).begin(&opening)).unwrap_err();
    assert!(matches!(garbled.fault(), Fault::Nvlist(_)), "{garbled}");
    assert_eq!(plan(begin(order, 1, 2)).unwrap(), None);
}

/// What happens to a run of blocks.
#[derive(Clone, Copy, Debug)]
enum Op {
    Skip,
    Write(u8),
    Free,
}

fn op() -> impl Strategy<Value = (Op, u64)> {
    let codec = prop::sample::select(vec![0u8, 3, 5, 14, 15, 16]);
    (prop_oneof![Just(Op::Skip), codec.prop_map(Op::Write), Just(Op::Free)], 1u64..5)
}

/// The stream of these operations, and the volume they make of one that is all `0xaa`.
fn model(order: ByteOrder, ops: &[(Op, u64)], tail: u64) -> (Vec<u8>, Vec<u8>) {
    let used: u64 = ops.iter().map(|(_, count)| count).sum();
    let size = (used + tail) * BLOCK;
    let mut volume = vec![0xaa; size as usize];
    let mut writer = begin(order, 1, 2).volume(BLOCK as u32, used * BLOCK);
    let mut at = 0;
    for (op, count) in ops {
        let range = at as usize..(at + count * BLOCK) as usize;
        match op {
            Op::Skip => {}
            Op::Free => {
                writer = writer.free(1, at, count * BLOCK);
                volume[range].fill(0);
            }
            Op::Write(codec) => {
                for i in 0..*count {
                    let (offset, bytes) = (at + i * BLOCK, block(at as u8 ^ i as u8));
                    writer = writer.write_as(*codec, 1, offset, &bytes);
                    volume[offset as usize..(offset + BLOCK) as usize].copy_from_slice(&bytes);
                }
            }
        }
        at += count * BLOCK;
    }
    volume[at as usize..].fill(0);
    (writer.size(size).end().into_bytes(), volume)
}

proptest! {
    #[test]
    fn any_stream_makes_the_volume_it_was_written_from(
        ops in prop::collection::vec(op(), 0..20),
        tail in 1u64..4,
        big: bool,
    ) {
        let order = if big { ByteOrder::Big } else { ByteOrder::Little };
        let (stream, expected) = model(order, &ops, tail);
        let (changes, finish) = changes(&stream, Some(zfs(1))).expect("the stream is sound");
        let mut volume = vec![0xaa; finish.size.expect("it was said") as usize];
        for change in changes {
            let extent = change.extent().expect("no change is empty");
            let range = extent.offset() as usize..extent.end() as usize;
            match change {
                Change::Data { bytes, .. } => volume[range].copy_from_slice(&bytes),
                Change::Zero(_) => volume[range].fill(0),
                Change::Part(_) => panic!("a volume has no parts"),
            }
        }
        prop_assert!(volume == expected);
    }

    #[test]
    fn a_coarse_map_claims_no_less_changed_and_no_more_zero(
        ops in prop::collection::vec(op(), 0..40),
        tail in 1u64..4,
        extents_max in 1usize..20,
    ) {
        let (stream, _) = model(ByteOrder::Little, &ops, tail);
        let map = |extents_max| {
            let mut stream = ZvolStream::new(&stream[..]);
            stream.plan(Some(&zfs(1))).expect("it starts there");
            stream.change_map_of(extents_max).expect("the stream is sound")
        };
        let (exact, coarse) = (map(usize::MAX / 2), map(extents_max));
        prop_assert_eq!(exact.granularity, BLOCK);
        prop_assert!(coarse.changed.extent_count() + coarse.zero.extent_count() <= extents_max);
        prop_assert!(exact.changed.subtract(&coarse.changed).is_empty());
        prop_assert!(coarse.zero.subtract(&exact.zero).is_empty());
        let (said, known) =
            (exact.changed.union(&exact.zero), coarse.changed.union(&coarse.zero));
        prop_assert!(said.subtract(&known).is_empty());
        prop_assert!(coarse.changed.intersect(&coarse.zero).is_empty());
        let size = coarse.size.expect("it was said");
        for extent in coarse.changed.iter().chain(coarse.zero.iter()) {
            prop_assert!(extent.offset().is_multiple_of(coarse.granularity));
            prop_assert!(extent.end().is_multiple_of(coarse.granularity) || extent.end() == size);
        }
    }
}
