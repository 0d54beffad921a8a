//! Tests of the record reader, on streams written by `testing`.

use std::io::{self, Read};

use super::*;
use crate::{
    Begin, Free, FreeObjects, Object, ObjectRange, WriteByref,
    testing::{Header, Opening, StreamWriter},
};

const ORDERS: [ByteOrder; 2] = [ByteOrder::Little, ByteOrder::Big];

type Records = Vec<(Record, Vec<u8>)>;

/// The records up to the end or to the first error.
fn read(input: impl Read) -> (Records, Result<Summary, StreamError>) {
    let mut reader = RecordReader::new(input);
    let mut records = Vec::new();
    loop {
        match reader.next_record() {
            Ok(Some(record)) => records.push((record, reader.payload().to_vec())),
            Ok(None) => return (records, Ok(*reader.summary())),
            Err(error) => {
                let again = reader.next_record().expect_err("an error is the end");
                assert!(matches!(again.fault(), Fault::Poisoned));
                return (records, Err(error));
            }
        }
    }
}

fn fault(stream: &[u8]) -> StreamError {
    read(stream).1.expect_err("the stream is not sound")
}

fn kind(writer: &StreamWriter, kind: RecordKind) -> Header {
    writer.header(kind)
}

/// One record of each kind but BEGIN and END, with the payload it should have.
fn every_kind(order: ByteOrder) -> (Vec<u8>, Vec<(Record, Vec<u8>)>) {
    let toguid = 7;
    let mut writer = StreamWriter::new(order).begin(&Opening::volume(5, toguid));
    let block = vec![3; 512];
    let byref = kind(&writer, RecordKind::WriteByref).u64s(8, &[1, 2, 3, toguid, 4, 5, 6]);
    let spill = kind(&writer, RecordKind::Spill).u64s(8, &[9, 1024, toguid]).u64(40, 512);
    let range = kind(&writer, RecordKind::ObjectRange).u64s(8, &[32, 33, toguid]);
    let redact = kind(&writer, RecordKind::Redact).u64s(8, &[1, 2, 3, toguid]);
    let raw = kind(&writer, RecordKind::Object).u64(8, 4).u32(24, 512).u32(28, 3).u32(36, 12);
    writer = writer
        .object(9, 44, 4096, &[8; 3])
        .record(raw, &[6; 12])
        .free_objects(10, 11)
        .write(1, 4096, &block)
        .write_as(15, 1, 8192, &block)
        .free(1, 512, u64::MAX)
        .embedded(2, 1, 0, 4096, &[9; 11])
        .record(byref, &[])
        .record(spill, &block)
        .record(range, &[])
        .record(redact, &[])
        .end();
    let lz4 = crate::testing::compress(15, &block).len().next_multiple_of(512) as u64;
    let object = |object, object_type, block_len, bonus_len, raw_bonus_len, toguid| {
        Record::Object(Object { object, object_type, block_len, bonus_len, raw_bonus_len, toguid })
    };
    let write = |offset, compression, compressed_len| {
        let (object, logical_len) = (1, 512);
        Record::Write(Write { object, offset, logical_len, compression, compressed_len, toguid })
    };
    let mut compressed = crate::testing::compress(15, &block);
    compressed.resize(lz4 as usize, 0);
    let expected = vec![
        (object(9, 44, 4096, 3, 0, toguid), vec![8, 8, 8, 0, 0, 0, 0, 0]),
        (object(4, 0, 512, 3, 12, 0), vec![6; 12]),
        (Record::FreeObjects(FreeObjects { first: 10, count: 11, toguid }), vec![]),
        (write(4096, 0, 0), block.clone()),
        (write(8192, 15, lz4), compressed),
        (Record::Free(Free { object: 1, offset: 512, len: u64::MAX, toguid }), vec![]),
        (
            Record::WriteEmbedded(WriteEmbedded {
                object: 1,
                offset: 0,
                len: 4096,
                compression: 2,
                etype: 0,
                logical_len: 11,
                physical_len: 11,
                toguid,
            }),
            [vec![9; 11], vec![0; 5]].concat(),
        ),
        (
            Record::WriteByref(WriteByref {
                object: 1,
                offset: 2,
                len: 3,
                toguid,
                refguid: 4,
                refobject: 5,
                refoffset: 6,
            }),
            vec![],
        ),
        (Record::Spill(Spill { object: 9, len: 1024, compressed_len: 512, toguid }), block),
        (Record::ObjectRange(ObjectRange { first: 32, count: 33, toguid }), vec![]),
        (Record::Redact(Free { object: 1, offset: 2, len: 3, toguid }), vec![]),
    ];
    (writer.into_bytes(), expected)
}

#[test]
fn every_kind_of_record_is_read_in_both_orders() {
    for order in ORDERS {
        let (stream, expected) = every_kind(order);
        let (mut records, summary) = read(&stream[..]);
        let summary = summary.expect("the stream is sound");
        let Some((Record::End(end), _)) = records.pop() else { panic!("the last is END") };
        assert_eq!(end.toguid, 7);
        let begin = Begin {
            compound: false,
            features: Features(0x243_0000),
            creation_time: 1_700_000_000,
            objset_type: 3,
            flags: 12,
            toguid: 7,
            fromguid: 5,
            toname: "pool/vol@7".to_owned(),
            payload_len: 0,
        };
        assert_eq!(records.remove(0), (Record::Begin(begin), vec![]));
        assert_eq!(records, expected, "{order:?}");

        for kind in RecordKind::ALL {
            let twice = [RecordKind::Object, RecordKind::Write].contains(&kind);
            assert_eq!(summary.of(kind).records, 1 + u64::from(twice), "{kind:?}");
        }
        let total = summary.total();
        assert_eq!(total.records, 13);
        assert_eq!(total.payload_bytes + 312 * total.records, stream.len() as u64);
    }
}

/// Yields a byte or two at a time, with interruptions.
struct Trickle<'a>(&'a [u8], u8);

impl Read for Trickle<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1.wrapping_add(1);
        if self.1.is_multiple_of(7) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = buf.len().min(1 + usize::from(self.1 % 2));
        self.0.read(&mut buf[..len])
    }
}

#[test]
fn a_slow_and_interrupted_input_reads_the_same() {
    let (stream, _) = every_kind(ByteOrder::Little);
    let (whole, pieces) = (read(&stream[..]), read(Trickle(&stream, 0)));
    assert_eq!(whole.0, pieces.0);
    assert_eq!(whole.1.unwrap(), pieces.1.unwrap());
}

#[test]
fn a_failing_input_is_an_error_with_its_place() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the cable is out"))
        }
    }
    let (stream, _) = every_kind(ByteOrder::Little);
    for cut in [0, 100, 312, 1000, stream.len() - 1] {
        let error = read((&stream[..cut]).chain(Broken)).1.unwrap_err();
        let Fault::Read(source) = error.fault() else { panic!("{error}") };
        assert_eq!(source.to_string(), "the cable is out");
        assert_eq!(error.offset(), cut as u64);
    }
}

#[test]
fn a_payload_is_not_handed_out_before_it_is_verified() {
    let writer = StreamWriter::new(ByteOrder::Little)
        .begin(&Opening::volume(0, 1))
        .volume(512, 4096)
        .write(1, 0, &[1; 512])
        .write(1, 512, &[2; 512])
        .free(1, 1024, 512)
        .end();
    let second = writer.starts()[4];
    let mut stream = writer.clone().into_bytes();
    stream[second + 312 + 100] ^= 1;
    let (records, error) = read(&stream[..]);
    assert_eq!(records.len(), 4, "BEGIN, OBJECT, FREE and the first WRITE");
    let error = error.unwrap_err();
    assert!(matches!(error.fault(), Fault::Checksum));
    assert_eq!(error.offset(), writer.starts()[5] as u64, "the header behind the damage");
}

#[test]
fn records_without_checksums_are_vouched_for_by_end() {
    for order in ORDERS {
        let stream = StreamWriter::new(order)
            .without_record_checksums()
            .begin(&Opening::volume(0, 1))
            .volume(512, 512)
            .write(1, 0, &[1; 512])
            .end()
            .into_bytes();
        assert_eq!(read(&stream[..]).0.len(), 5);
        for at in 312..stream.len() {
            let mut damaged = stream.clone();
            damaged[at] ^= 1;
            assert!(read(&damaged[..]).1.is_err(), "byte {at}");
        }
    }
    // Either all of a substream's records have checksums or none has.
    let stream = StreamWriter::new(ByteOrder::Little)
        .begin(&Opening::volume(0, 1))
        .volume(512, 512)
        .without_record_checksums()
        .write(1, 0, &[1; 512])
        .end()
        .into_bytes();
    assert!(matches!(fault(&stream).fault(), Fault::Checksum));
}

#[test]
fn lying_lengths_are_refused_or_cost_nothing() {
    let writer = StreamWriter::new(ByteOrder::Little).begin(&Opening::volume(0, 1));
    let write = |logical: u64, compression: u8, compressed: u64| {
        let header = kind(&writer, RecordKind::Write)
            .u64s(24, &[0, logical, 1])
            .u8(50, compression)
            .u64(96, compressed);
        fault(&writer.clone().record(header, &[]).into_bytes())
    };
    let too_long = |error: StreamError, len: u64, max: u64| {
        let Fault::TooLong { len: l, max: m } = *error.fault() else { panic!("{error}") };
        assert_eq!((l, m), (len, max));
        assert_eq!(error.offset(), 312);
    };
    // The record's own header is read ahead of BEGIN, and so is its error: at its start.
    too_long(write(BLOCK_MAX + 512, 0, 0), BLOCK_MAX + 512, BLOCK_MAX);
    too_long(write(u64::MAX, 0, 0), u64::MAX, BLOCK_MAX);
    too_long(write(4096, 15, 4100), 4100, 4096);
    assert!(matches!(write(4098, 0, 0).fault(), Fault::Malformed(_)));
    assert!(matches!(write(BLOCK_MAX, 0, 0).fault(), Fault::Truncated));
    let embedded = kind(&writer, RecordKind::WriteEmbedded).u32(52, 113);
    too_long(fault(&writer.clone().record(embedded, &[]).into_bytes()), 120, 112);
    let object = kind(&writer, RecordKind::Object).u32(28, u32::MAX);
    too_long(fault(&writer.clone().record(object, &[]).into_bytes()), 1 << 32, BONUS_MAX);

    for (len, truncated) in [(64 << 20, true), ((64 << 20) + 4, false), (u32::MAX, false)] {
        let mut begin = writer.clone().into_bytes();
        begin[4..8].copy_from_slice(&len.to_le_bytes());
        let mut reader = RecordReader::new(&begin[..]);
        let error = reader.next_record().unwrap_err();
        assert_eq!(matches!(error.fault(), Fault::Truncated), truncated, "{error}");
        assert!(reader.payload.capacity() as u64 <= TRUSTED_LEN, "{len} was believed");
    }
}

#[test]
fn the_grammar_of_streams_is_enforced() {
    let new = || StreamWriter::new(ByteOrder::Little);
    let open = || new().begin(&Opening::volume(0, 1));

    let compound = new().compound_head(&[0; 8]);
    let sound = compound.clone().begin(&Opening::volume(1, 2)).end().compound_end();
    assert_eq!(read(&sound.clone().into_bytes()[..]).0.len(), 5);
    let empty = compound.clone().compound_end().into_bytes();
    assert_eq!(read(&empty[..]).0.len(), 3, "a compound stream may have no substreams");

    let open_end = compound.clone().begin(&Opening::volume(1, 2)).end().into_bytes();
    assert!(matches!(fault(&open_end).fault(), Fault::Truncated), "the last END is missing");
    let nested = compound.clone().compound_head(&[]).compound_end().into_bytes();
    assert!(matches!(fault(&nested).fault(), Fault::Malformed(_)));
    let no_begin = compound.clone().free(1, 0, 512).into_bytes();
    assert!(matches!(fault(&no_begin).fault(), Fault::Malformed(_)));
    let goes_on = sound.begin(&Opening::volume(2, 3)).end().into_bytes();
    assert!(matches!(fault(&goes_on).fault(), Fault::Trailing));
    let final_end_of_plain = open().end().compound_end().into_bytes();
    assert!(matches!(fault(&final_end_of_plain).fault(), Fault::Trailing));

    let writer = open();
    let begin_within = writer.header(RecordKind::Begin);
    let begin_within = writer.record(begin_within, &[]).into_bytes();
    assert!(matches!(fault(&begin_within).fault(), Fault::Malformed(_)));
    let unknown = open();
    let header = unknown.header(RecordKind::Free).u32(0, 11);
    let unknown = unknown.record(header, &[]).into_bytes();
    assert!(matches!(fault(&unknown).fault(), Fault::UnknownRecord(11)));

    let newer = Opening { features: 1 << 55 | 1 << 17, ..Opening::volume(0, 1) };
    let error = fault(&new().begin(&newer).end().into_bytes());
    assert!(matches!(error.fault(), Fault::UnknownFeatures(Features(bits)) if *bits == 1 << 55));
    assert!(error.to_string().contains("bit 55"), "{error}");

    assert!(matches!(fault(&[]).fault(), Fault::Empty));
    assert!(matches!(fault(&[0x1f, 0x8b, 8, 0]).fault(), Fault::NotAStream));
    assert!(matches!(fault(&[0; 400]).fault(), Fault::NotAStream));
    assert!(matches!(fault(&[0; 100]).fault(), Fault::Truncated));
}

#[test]
fn an_end_must_belong_to_its_begin() {
    let begin = StreamWriter::new(ByteOrder::Little).begin(&Opening::volume(0, 1));
    let sums = |writer: &StreamWriter| {
        let mut state = Fletcher4::new();
        state.update_naive(&writer.clone().into_bytes(), ByteOrder::Little);
        state.sums()
    };
    let end = begin.header(RecordKind::End).u64s(8, &sums(&begin));
    let right = begin.clone().record(end.clone().u64(40, 1), &[]).into_bytes();
    assert!(read(&right[..]).1.is_ok());
    let other_snapshot = begin.clone().record(end.clone().u64(40, 2), &[]).into_bytes();
    assert!(matches!(fault(&other_snapshot).fault(), Fault::Malformed(_)));
    let other_sum = begin.clone().record(end.u64(40, 1).u64(8, 4), &[]).into_bytes();
    assert!(matches!(fault(&other_sum).fault(), Fault::Checksum));
}

#[test]
fn names_from_outside_are_quoted() {
    let writer = StreamWriter::new(ByteOrder::Little);
    let mut stream = writer.begin(&Opening::volume(0, 1)).into_bytes();
    stream[56..60].copy_from_slice(b"\x1b[2J");
    let text = fault(&stream).to_string();
    assert!(text.contains(r#""\u{1b}[2J"#), "{text}");
    assert!(text.contains("at byte 312"), "{text}");
    assert!(text.contains("send it again"), "{text}");
}
