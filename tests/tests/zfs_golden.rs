//! The ZFS reader against streams of a real system: the same bytes as its snapshots had.
//!
//! `data/zfs` has `zfs send` streams of volumes named COMPRESSION-VOLBLOCKSIZE, made by
//! OpenZFS 2.3.9, with the SHA-256 and the size of each snapshot's whole device.

mod zfs_support;

use std::{collections::BTreeMap, fmt::Write as _, fs};

use driftline_extent::{
    Change, Explained, ExtentSet, Finish, Generation, PlanKind, Reason, Source,
};
use driftline_tests::samples::{all_samples, data, sample};
use driftline_zfs::{
    Fault, Features, Nvlist, Record, RecordReader, StreamError, Value, ZvolStream, fuzzing,
};
use sha2::{Digest, Sha256};
use zfs_support::{Rewrite, rewritten};

/// Volumes of which each snapshot's hash is known.
const FAMILIES: [&str; 3] = ["lz4-16k", "zstd-8k", "lz4-1M"];

/// The line of a listing that has this snapshot.
fn listed(file: &str, snapshot: &str) -> Vec<String> {
    let listing = fs::read_to_string(data(file)).expect("the listing is part of the project");
    let line = listing.lines().find(|line| line.split_whitespace().any(|word| word == snapshot));
    let line = line.unwrap_or_else(|| panic!("{file} does not list {snapshot}"));
    line.split_whitespace().map(str::to_owned).collect()
}

fn size_of(snapshot: &str) -> u64 {
    listed("META", snapshot)[1].parse().expect("a size is a number")
}

fn guid_of(snapshot: &str) -> Generation {
    Generation::zfs(listed("META", snapshot)[2].parse().expect("a guid is a number"))
}

/// Numbers that look random and are the same each time.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) % end as u64) as usize
    }
}

/// A volume in memory.
#[derive(Clone, Default)]
struct Image(Vec<u8>);

impl Image {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Data { offset, bytes } => {
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                if self.0.len() < end {
                    self.0.resize(end, 0);
                }
                self.0[start..end].copy_from_slice(bytes);
            }
            Change::Zero(extent) => {
                if let Some(extent) = extent.clamp(self.0.len() as u64) {
                    self.0[extent.offset() as usize..extent.end() as usize].fill(0);
                }
            }
            Change::Part(_) => panic!("a volume has no parts"),
        }
    }

    /// Applies the increment that was planned.
    fn take<R: std::io::Read>(&mut self, stream: &mut ZvolStream<R>) -> Finish {
        while let Some(change) = stream.next_change(0).expect("the stream is sound") {
            self.apply(&change);
        }
        let finish = stream.finish().expect("the increment was read to its end");
        if let Some(size) = finish.size {
            self.0.resize(size as usize, 0);
        }
        finish
    }

    fn assert_is(&self, snapshot: &str) {
        let hash = Sha256::digest(&self.0).iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("writing to memory succeeds");
            hex
        });
        assert_eq!(hash, listed("SHA256", snapshot)[0], "{snapshot} has other bytes");
    }
}

/// The image after a stream that holds one increment from `base`.
fn applied(stream: &[u8], base: Option<&Generation>, image: &Image) -> (Image, Finish) {
    let mut stream = ZvolStream::new(stream);
    let plan = stream.plan(base).expect("the stream starts from the base");
    assert_eq!(plan.base.as_ref(), base);
    assert_eq!(plan.kind, if base.is_some() { PlanKind::Incremental } else { PlanKind::Full });
    let mut image = image.clone();
    let finish = image.take(&mut stream);
    assert_eq!(plan.tip, Some(finish.tip));
    let end = stream.plan(Some(&finish.tip)).expect("the stream ends soundly");
    assert_eq!(end.kind, PlanKind::UpToDate);
    (image, finish)
}

fn refusal(stream: &[u8], base: Option<&Generation>) -> StreamError {
    ZvolStream::new(stream).plan(base).expect_err("the stream must be refused")
}

/// Reads all records, as a check of the structure alone.
fn read_through(stream: &[u8]) -> Result<(), StreamError> {
    let mut reader = RecordReader::new(stream);
    while reader.next_record()?.is_some() {}
    Ok(())
}

/// Where each record starts.
fn record_starts(stream: &[u8]) -> Vec<usize> {
    let mut reader = RecordReader::new(stream);
    let mut starts = Vec::new();
    while reader.next_record().expect("the sample is sound").is_some() {
        starts.push(reader.offset() as usize);
    }
    starts
}

#[test]
fn every_generation_of_every_family_has_the_bytes_of_its_snapshot() {
    for family in FAMILIES {
        let s1 = format!("{family}@s1");
        let (mut image, mut finish) =
            applied(&sample(&format!("{family}.full")), None, &Image::default());
        image.assert_is(&s1);
        assert_eq!((finish.size, finish.tip), (Some(size_of(&s1)), guid_of(&s1)));

        let plain = sample(&format!("{family}.full-plain"));
        applied(&plain, None, &Image::default()).0.assert_is(&s1);

        for (step, snapshot) in [("1-2", "s2"), ("2-3", "s3"), ("3-4", "s4")] {
            let snapshot = format!("{family}@{snapshot}");
            let resizes = finish.size != Some(size_of(&snapshot));
            let stream = sample(&format!("{family}.{step}"));
            let base = finish.tip;
            (image, finish) = applied(&stream, Some(&base), &image);
            image.assert_is(&snapshot);
            assert_eq!(finish.tip, guid_of(&snapshot));
            assert_eq!(finish.size, resizes.then(|| size_of(&snapshot)), "{snapshot}");
            finish.size = Some(size_of(&snapshot));
        }
    }
}

#[test]
fn an_encrypted_volume_sent_with_its_key_is_an_ordinary_stream() {
    let (image, finish) = applied(&sample("enc.full"), None, &Image::default());
    image.assert_is("enc@s1");
    assert_eq!(finish.size, Some(image.0.len() as u64));
}

#[test]
fn a_stream_from_a_bookmark_is_the_one_from_its_snapshot() {
    let (s1, _) = applied(&sample("lz4-16k.full"), None, &Image::default());
    let base = guid_of("lz4-16k@s1");
    let (from_bookmark, finish) = applied(&sample("lz4-16k.b1-2"), Some(&base), &s1);
    assert_eq!(finish.tip, guid_of("lz4-16k@s2"));
    from_bookmark.assert_is("lz4-16k@s2");
}

#[test]
fn a_compound_stream_gives_one_generation_after_the_other() {
    for family in FAMILIES {
        let (s1, finish) = applied(&sample(&format!("{family}.full")), None, &Image::default());
        let compound = sample(&format!("{family}.I1-4"));

        let mut stream = ZvolStream::new(&compound[..]);
        let (mut image, mut tip) = (s1, finish.tip);
        let mut images = Vec::new();
        for snapshot in ["s2", "s3", "s4"].map(|name| format!("{family}@{name}")) {
            let plan = stream.plan(Some(&tip)).expect("the stream goes on");
            assert_eq!((plan.kind, plan.base), (PlanKind::Incremental, Some(tip)));
            tip = image.take(&mut stream).tip;
            assert_eq!(tip, guid_of(&snapshot));
            image.assert_is(&snapshot);
            images.push(image.clone());
        }
        assert_eq!(stream.plan(Some(&tip)).expect("it ends").kind, PlanKind::UpToDate);
        assert_eq!(stream.bytes_read(), compound.len() as u64);

        // A target that is ahead takes only what it lacks.
        let mut stream = ZvolStream::new(&compound[..]);
        let base = guid_of(&format!("{family}@s3"));
        assert_eq!(stream.plan(Some(&base)).expect("s3 is there").kind, PlanKind::Incremental);
        let mut image = images[1].clone();
        image.take(&mut stream);
        image.assert_is(&format!("{family}@s4"));

        let at_tip = ZvolStream::new(&compound[..]).plan(Some(&tip)).expect("s4 is there");
        assert_eq!(at_tip.kind, PlanKind::UpToDate);
    }
}

#[test]
fn streams_one_after_the_other_are_taken_one_after_the_other() {
    let streams = ["full", "1-2", "2-3", "3-4"].map(|step| sample(&format!("zstd-8k.{step}")));
    let joined = streams.concat();
    let mut stream = ZvolStream::new(&joined[..]);
    let mut image = Image::default();
    let mut base = None;
    for snapshot in ["s1", "s2", "s3", "s4"].map(|name| format!("zstd-8k@{name}")) {
        stream.plan(base.as_ref()).expect("the stream goes on");
        base = Some(image.take(&mut stream).tip);
        image.assert_is(&snapshot);
    }
    // A second run over the same file finds the target where the first one left it.
    for snapshot in ["s1", "s2", "s3", "s4"] {
        let base = guid_of(&format!("zstd-8k@{snapshot}"));
        let plan = ZvolStream::new(&joined[..]).plan(Some(&base)).expect("every base is there");
        let last = snapshot == "s4";
        assert_eq!(plan.kind, if last { PlanKind::UpToDate } else { PlanKind::Incremental });
    }
}

#[test]
fn the_wrong_base_is_refused_and_named() {
    let foreign = Generation::zfs(4711);
    for name in ["lz4-16k.full", "lz4-16k.1-2", "lz4-16k.I1-4"] {
        let error = refusal(&sample(name), Some(&foreign));
        assert_eq!(error.reason(), Reason::BaseMismatch, "{name}");
        let guids = ["lz4-16k@s1", "lz4-16k@s2"].map(|name| guid_of(name).zfs_guid().unwrap());
        let text = error.to_string();
        assert!(text.contains("zfs:4711"), "{text}");
        assert!(guids.iter().any(|guid| text.contains(&guid.to_string())), "{text}");
    }
    assert_eq!(refusal(&sample("lz4-16k.1-2"), None).reason(), Reason::BaseMismatch);
    assert_eq!(refusal(&sample("lz4-16k.I1-4"), None).reason(), Reason::BaseMismatch);

    let full = sample("lz4-16k.full");
    let plan = ZvolStream::new(&full[..]).allow_full(true).plan(Some(&foreign));
    assert_eq!(plan.expect("a full copy was agreed to").kind, PlanKind::Full);
}

#[test]
fn a_sparse_terabyte_moves_one_block_and_counts_one_block() {
    let mut blocks: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut base = None;
    let mut size = 0;
    for (name, offset) in [("big1T.full", 0x19_0000), ("big1T.1-2", 0x80_0000_0000)] {
        let bytes = sample(name);
        let mut stream = ZvolStream::new(&bytes[..]);
        stream.plan(base.as_ref()).expect("the stream starts from the base");
        while let Some(change) = stream.next_change(0).expect("the stream is sound") {
            match change {
                Change::Data { offset, bytes } => {
                    blocks.insert(offset, bytes);
                }
                Change::Zero(extent) => {
                    blocks.retain(|offset, _| !extent.contains(*offset));
                }
                Change::Part(_) => panic!("a volume has no parts"),
            }
        }
        let finish = stream.finish().expect("the increment was read to its end");
        size = finish.size.unwrap_or(size);

        let mut stream = ZvolStream::new(&bytes[..]);
        stream.plan(base.as_ref()).expect("the stream starts from the base");
        let map = stream.change_map().expect("the stream is sound");
        assert_eq!(map.granularity, 16384);
        assert_eq!(map.changed.byte_count(), 16384, "a hole is no change");
        assert!(map.changed.contains(offset));
        assert!(map.zero.byte_count() >= 1 << 39, "half of it is said to be a hole");
        assert_eq!((map.base, map.tip), (base, Some(finish.tip)));
        base = Some(finish.tip);
    }
    assert_eq!(size, 1 << 40);
    let held: Vec<_> = blocks.iter().map(|(offset, block)| (*offset, block.len())).collect();
    assert_eq!(held, [(0x19_0000, 16384), (0x80_0000_0000, 16384)]);
    assert!(blocks.values().all(|block| block.iter().any(|byte| *byte != 0)));
}

#[test]
fn a_change_map_is_what_the_changes_cover() {
    for (name, base) in [
        ("lz4-16k.full", None),
        ("lz4-16k.1-2", Some("lz4-16k@s1")),
        ("zstd-8k.2-3", Some("zstd-8k@s2")),
        ("lz4-1M.3-4", Some("lz4-1M@s3")),
        ("lz4-1M.full-plain", None),
    ] {
        let bytes = sample(name);
        let base = base.map(guid_of);
        let (mut changed, mut zero) = (ExtentSet::new(), ExtentSet::new());
        let mut stream = ZvolStream::new(&bytes[..]);
        stream.plan(base.as_ref()).expect("the stream starts from the base");
        while let Some(change) = stream.next_change(0).expect("the stream is sound") {
            let extent = change.extent().expect("no change is empty");
            match change {
                Change::Data { .. } => changed.insert(extent),
                Change::Zero(_) => zero.insert(extent),
                Change::Part(_) => panic!("a volume has no parts"),
            }
        }
        let size = stream.finish().expect("it was read to its end").size;

        let mut stream = ZvolStream::new(&bytes[..]);
        stream.plan(base.as_ref()).expect("the stream starts from the base");
        let map = stream.change_map().expect("the stream is sound");
        assert_eq!(map.size, size, "{name}");
        let end = size.unwrap_or(1 << 63);
        assert_eq!(map.changed, changed.clamp(end), "{name}");
        assert_eq!(map.zero, zero.clamp(end), "{name}");
        assert!(map.changed.intersect(&map.zero).is_empty(), "{name}");
        for extent in map.changed.iter().chain(map.zero.iter()) {
            assert!(extent.offset().is_multiple_of(map.granularity), "{name}");
            let aligned = extent.end().is_multiple_of(map.granularity);
            assert!(aligned || Some(extent.end()) == map.size, "{name}");
        }
    }
}

#[test]
fn a_restart_delivers_exactly_what_ends_above() {
    let bytes = sample("lz4-16k.full");
    let mut stream = ZvolStream::new(&bytes[..]);
    stream.plan(None).expect("it is a full stream");
    let mut all = Vec::new();
    while let Some(change) = stream.next_change(0).expect("the stream is sound") {
        all.push(change);
    }
    for from in [1, 16384, 16385, 3 << 20, 1 << 24, u64::MAX] {
        let mut stream = ZvolStream::new(&bytes[..]);
        stream.plan(None).expect("it is a full stream");
        let mut rest = Vec::new();
        while let Some(change) = stream.next_change(from).expect("the stream is sound") {
            rest.push(change);
        }
        let above = |change: &&Change| change.extent().is_some_and(|e| e.end() > from);
        let expected: Vec<_> = all.iter().filter(above).cloned().collect();
        assert_eq!(rest, expected, "from {from}");
        assert!(stream.finish().is_ok());
    }
}

#[test]
fn what_is_no_volume_in_clear_is_refused_by_name() {
    for name in ["fs.full", "fs.1-2"] {
        let bytes = sample(name);
        let Some(Record::Begin(begin)) = RecordReader::new(&bytes[..]).next_record().unwrap()
        else {
            panic!("{name} begins with BEGIN");
        };
        let base = (begin.fromguid != 0).then_some(Generation::zfs(begin.fromguid));
        let error = refusal(&bytes, base.as_ref());
        assert!(matches!(error.fault(), Fault::NotAVolume(2)), "{error}");
        assert_eq!(error.reason(), Reason::Unsupported);
        assert!(error.to_string().contains("tank/fs@s"), "{error}");
        read_through(&bytes).expect("its records can be read all the same");
    }
    let error = refusal(&sample("encraw.full"), None);
    assert!(matches!(error.fault(), Fault::RawEncrypted), "{error}");
    assert_eq!(error.reason(), Reason::Unsupported);
    assert_eq!(error.snapshot(), Some("tank/enc@s1"));
}

#[test]
fn nvlists_of_both_layouts_are_read() {
    let bytes = sample("encraw.full");
    let mut reader = RecordReader::new(&bytes[..]);
    let Some(Record::Begin(begin)) = reader.next_record().unwrap() else {
        panic!("a stream begins with BEGIN");
    };
    assert!(begin.features.has_any(Features::RAW));
    let native = Nvlist::decode(reader.payload()).expect("the kernel's own layout is read");
    let Some(Value::Nvlist(keys)) = native.get("crypt_keydata") else {
        panic!("a raw stream has wrapped keys, not {native:?}");
    };
    assert!(keys.get_u64("DSL_CRYPTO_SUITE").is_some(), "{keys:?}");
    assert!(
        matches!(keys.get("DSL_CRYPTO_MASTER_KEY_1"), Some(Value::Uint8Array(key)) if key.len() == 32),
        "{keys:?}"
    );

    let bytes = sample("lz4-16k.I1-4");
    let mut reader = RecordReader::new(&bytes[..]);
    reader.next_record().unwrap();
    let xdr = Nvlist::decode(reader.payload()).expect("the tools' layout is read");
    assert_eq!(xdr.get("fromsnap"), Some(&Value::String("s1".to_owned())));
    assert_eq!(xdr.get("tosnap"), Some(&Value::String("s4".to_owned())));
    let Some(Value::Nvlist(sets)) = xdr.get("fss") else {
        panic!("a compound stream lists its data sets, not {xdr:?}");
    };
    let Some((_, Value::Nvlist(set))) = sets.0.first() else {
        panic!("there is one data set, not {sets:?}");
    };
    assert_eq!(set.get("name"), Some(&Value::String("tank/lz4-16k".to_owned())));
    let Some(Value::Nvlist(snapshots)) = set.get("snaps") else {
        panic!("it lists its snapshots, not {set:?}");
    };
    let guid = snapshots.get_u64("s4").map(Generation::zfs);
    assert_eq!(guid, Some(guid_of("lz4-16k@s4")));
}

#[test]
fn a_stream_cut_off_anywhere_is_an_error_that_says_where() {
    let mut rng = Rng(20);
    for (name, bytes) in all_samples() {
        let starts = record_starts(&bytes);
        let random: Vec<usize> = (0..200).map(|_| rng.below(bytes.len())).collect();
        for cut in starts.into_iter().chain(random) {
            let error = read_through(&bytes[..cut]).expect_err("it has no END");
            let named = matches!(error.fault(), Fault::Truncated | Fault::Empty);
            assert!(named, "{name} cut at {cut}: {error}");
            assert_eq!(error.offset(), cut as u64, "{name}: {error}");
            assert_eq!(error.reason(), Reason::StreamDamaged);
        }
    }
}

#[test]
fn anything_behind_the_end_is_an_error() {
    for name in ["lz4-16k.1-2", "lz4-16k.I1-4"] {
        let sound = sample(name);
        for tail in [&[0; 1][..], &[0; 312], &[0; 4096], &[0xff; 311], &[5; 312]] {
            let bytes = [&sound[..], tail].concat();
            let error = read_through(&bytes).expect_err("something follows");
            assert!(matches!(error.fault(), Fault::Trailing), "{name}: {error}");
            assert_eq!(error.offset(), sound.len() as u64);
        }
    }
    // Behind a compound stream not even another stream may follow.
    let joined = [sample("lz4-16k.I1-4"), sample("lz4-16k.1-2")].concat();
    assert!(matches!(read_through(&joined).unwrap_err().fault(), Fault::Trailing));
}

/// Changes one bit at a time. No byte of a stream is outside its checksums or checks.
#[test]
fn no_bit_can_change_unnoticed() {
    for name in ["lz4-16k.3-4", "zstd-8k.3-4"] {
        let mut bytes = sample(name);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read_through(&bytes).is_err(), "{name}: bit {bit} may change");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
    // The head and the end of a compound stream are written by another program.
    let sound = sample("lz4-1M.I1-4");
    let substreams: Vec<usize> = record_starts(&sound);
    let body = substreams[2]..sound.len() - 312;
    let mut bytes = [&sound[..body.start], &sample("lz4-1M.3-4"), &sound[body.end..]].concat();
    read_through(&bytes).expect("a shorter compound stream is sound");
    for at in (0..body.start).chain(bytes.len() - 624..bytes.len()) {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            assert!(read_through(&bytes).is_err(), "bit {bit} of byte {at} may change");
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn a_changed_byte_in_any_sample_is_an_error() {
    let seed = 60;
    let mut rng = Rng(seed);
    for (name, mut bytes) in all_samples() {
        for _ in 0..60 {
            let (at, flip) = (rng.below(bytes.len()), 1 + rng.below(255) as u8);
            bytes[at] ^= flip;
            assert!(read_through(&bytes).is_err(), "{name}: byte {at} ^ {flip}, seed {seed}");
            bytes[at] ^= flip;
        }
    }
}

#[test]
fn mutated_streams_never_panic() {
    let seed = 17;
    let mut rng = Rng(seed);
    let samples: Vec<_> =
        all_samples().into_iter().filter(|(_, bytes)| bytes.len() < 120_000).collect();
    for round in 0..600 {
        println!("seed {seed}, round {round}");
        let mut bytes = samples[rng.below(samples.len())].1.clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(bytes.len());
            match rng.below(4) {
                0 => bytes[at] ^= 1 << rng.below(8),
                1 => bytes.truncate(at + 1),
                2 => {
                    let other = &samples[rng.below(samples.len())].1;
                    let from = rng.below(other.len());
                    bytes.splice(at.., other[from..].iter().copied());
                }
                _ => {
                    let end = (at + rng.below(64)).min(bytes.len());
                    bytes[at..end].fill(rng.below(256) as u8);
                }
            }
        }
        fuzzing::stream(&bytes);
        let at = rng.below(bytes.len());
        fuzzing::codec(&bytes[at..]);
        fuzzing::nvlist(&bytes[at..]);
    }
}

/// Checksums keep damage out; this asks what would happen without them. Nonsense that an
/// honest checksum covers reaches every check behind it.
#[test]
fn nonsense_under_sound_checksums_never_panics() {
    let seed = 18;
    let mut rng = Rng(seed);
    let samples: Vec<_> =
        all_samples().into_iter().filter(|(_, bytes)| bytes.len() < 120_000).collect();
    let (mut sound, mut refused) = (0, 0);
    for round in 0..1500 {
        println!("seed {seed}, round {round}");
        let (_, original) = &samples[rng.below(samples.len())];
        let victim = rng.below(record_starts(original).len());
        let mut index = 0;
        let same = Rewrite { swap: false, ..Rewrite::TWIN };
        let bytes = rewritten(original, same, |_, header, payload| {
            if index == victim {
                let words = [0, 1, 2, 3, 8, 15, 16, 24, 128, 255];
                for _ in 0..=rng.below(2) {
                    match payload.len() {
                        len if len > 0 && rng.below(2) == 0 => {
                            payload[rng.below(len)] ^= 1 << rng.below(8);
                        }
                        _ => header[rng.below(104)] = words[rng.below(words.len())],
                    }
                }
            }
            index += 1;
        });
        fuzzing::stream(&bytes);
        if read_through(&bytes).is_ok() { sound += 1 } else { refused += 1 }
    }
    assert!(sound > 300 && refused > 100, "{sound} sound, {refused} refused: it tests little");
}

#[test]
fn a_sender_of_the_other_byte_order_sends_the_same_image() {
    for family in FAMILIES {
        let full = sample(&format!("{family}.full"));
        let twin = rewritten(&full, Rewrite::TWIN, |_, _, _| {});
        assert_ne!(full, twin);
        let (mut image, finish) = applied(&twin, None, &Image::default());
        image.assert_is(&format!("{family}@s1"));
        assert_eq!(finish.size, Some(size_of(&format!("{family}@s1"))));

        let twin = rewritten(&sample(&format!("{family}.I1-4")), Rewrite::TWIN, |_, _, _| {});
        let mut stream = ZvolStream::new(&twin[..]);
        let mut tip = finish.tip;
        for snapshot in ["s2", "s3", "s4"] {
            stream.plan(Some(&tip)).expect("the stream goes on");
            tip = image.take(&mut stream).tip;
            image.assert_is(&format!("{family}@{snapshot}"));
        }
    }
    for (name, bytes) in all_samples() {
        let twin = rewritten(&bytes, Rewrite::TWIN, |_, _, _| {});
        read_through(&twin).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(record_starts(&twin), record_starts(&bytes), "{name}");
    }
}
