//! The ZFS reader against ZFS's own `zstream dump`: both must find the same records.
//!
//! `DRIFTLINE_ZSTREAM` names the program; `tests/real/fetch-zstream` fetches one.

mod zfs_support;

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
    thread,
};

use driftline_tests::samples::all_samples;
use driftline_zfs::{
    ByteOrder, RecordKind, RecordReader, Tally,
    testing::{Opening, StreamWriter},
};
use zfs_support::{Rewrite, rewritten};

/// Kinds that `zstream dump` counts in its totals only.
const NOT_LISTED: [RecordKind; 2] = [RecordKind::ObjectRange, RecordKind::Redact];

/// What `zstream dump` says of a stream: its own numbers by their labels.
fn dumped(stream: &[u8]) -> Result<BTreeMap<String, (u64, Option<u64>)>, String> {
    let program = std::env::var_os("DRIFTLINE_ZSTREAM").expect(
        "DRIFTLINE_ZSTREAM must name the program zstream: \
         run tests/real/fetch-zstream CACHE-FOLDER and set it to the path that it prints",
    );
    let mut child = Command::new(&program)
        .arg("dump")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{} cannot be run: {error}", program.display()));
    let mut input = child.stdin.take().expect("it was piped");
    let output = thread::scope(|scope| {
        // It may stop reading at an error, which shows in what it prints.
        scope.spawn(move || input.write_all(stream));
        child.wait_with_output().expect("it was started")
    });
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() || !errors.is_empty() {
        return Err(errors);
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("differs from checksum") {
        return Err(text);
    }
    let (_, summary) = text.split_once("SUMMARY:").expect("it ends with a summary");
    Ok(summary
        .lines()
        .filter_map(|line| {
            let (label, numbers) = line.trim().strip_prefix("Total ")?.split_once(" = ")?;
            let mut numbers = numbers.split([' ', '(', ')']).filter_map(|word| word.parse().ok());
            Some((label.to_owned(), (numbers.next()?, numbers.next())))
        })
        .collect())
}

fn assert_agrees(name: &str, stream: &[u8]) {
    let mut reader = RecordReader::new(stream);
    while reader.next_record().unwrap_or_else(|error| panic!("{name}: {error}")).is_some() {}
    let summary = reader.summary();
    let dumped = dumped(stream).unwrap_or_else(|error| panic!("{name}: zstream says {error}"));

    for kind in RecordKind::ALL.into_iter().filter(|kind| !NOT_LISTED.contains(kind)) {
        let Tally { records, payload_bytes } = summary.of(kind);
        let theirs = dumped.get(&format!("DRR_{} records", kind.name()));
        assert_eq!(theirs, Some(&(records, Some(payload_bytes))), "{name}: {}", kind.name());
    }
    let Tally { records, payload_bytes } = summary.total();
    let total = |label: &str| dumped.get(label).map(|numbers| numbers.0);
    assert_eq!(total("records"), Some(records), "{name}");
    assert_eq!(total("payload size"), Some(payload_bytes), "{name}");
    assert_eq!(total("header overhead"), Some(records * 312), "{name}");
    assert_eq!(total("stream length"), Some(reader.bytes_read()), "{name}");
    assert_eq!(reader.bytes_read(), stream.len() as u64, "{name}");
}

#[test]
fn both_find_the_same_records_in_every_sample() {
    for (name, stream) in all_samples() {
        assert_agrees(&name, &stream);
    }
}

/// `zstream dump` compares the checksums in a swapped stream's records without swapping them,
/// unlike `zfs receive`. So they are left out here, and END's checksum vouches for the rest.
#[test]
fn both_read_the_other_byte_order() {
    let twin = Rewrite { checksums: false, ..Rewrite::TWIN };
    for (name, stream) in all_samples() {
        assert_agrees(&name, &rewritten(&stream, twin, |_, _, _| {}));
    }
}

#[test]
fn both_read_what_our_own_writer_writes() {
    let block: Vec<u8> = (0..16384u32).map(|i| (i / 64) as u8).collect();
    for order in [ByteOrder::Little, ByteOrder::Big] {
        let mut writer = StreamWriter::new(order);
        if order == ByteOrder::Big {
            writer = writer.without_record_checksums();
        }
        writer = writer
            .begin(&Opening::volume(0, 7))
            .volume(16384, 20 << 14)
            .write(1, 0, &block)
            .free(1, 16384, 16384);
        for (i, compression) in (2..=16u8).filter(|number| *number != 4).enumerate() {
            writer = writer.write_as(compression, 1, (i as u64 + 2) << 14, &block);
        }
        let spill = writer.header(RecordKind::Spill).u64s(8, &[3, 512, 7]);
        let stream = writer
            .embedded(15, 1, 18 << 14, 16384, &block[..512])
            .size(20 << 14)
            .object(3, 19, 512, &[1; 169])
            .record(spill, &block[..512])
            .free_objects(4, 28)
            .end()
            .into_bytes();
        assert_agrees(&format!("{order:?}"), &stream);
    }
}

#[test]
fn both_refuse_a_damaged_payload() {
    let (_, mut stream) = all_samples().swap_remove(0);
    let middle = stream.len() / 2;
    stream[middle] ^= 1;
    let mut reader = RecordReader::new(&stream[..]);
    let ours = loop {
        match reader.next_record() {
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    assert!(ours.is_some(), "byte {middle} is covered by a checksum");
    assert!(dumped(&stream).is_err(), "zstream must agree");
}
