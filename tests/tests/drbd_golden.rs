//! The reader against the real `drbdmeta`: superblock, bitmaps, and bitmaps with the activity
//! log applied. `data/drbd/make` made the files.

mod drbd_support;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use drbd_support::{Dump, blocks, mapped, read};
use driftline_drbd::{Base, Doubt, Layout, Record, judge, testing::SparseDisk};
use driftline_extent::{Explained, Reason};

/// The golden files, and how many transactions are in their logs.
const CASES: [(&str, u64); 16] = [
    ("v08-flex", 8),
    ("v08-index", 3),
    ("v08-internal", 5),
    ("v08-internal-torn", 7),
    ("v09-flex-3", 8),
    ("v09-flex-striped", 16),
    ("v09-index-5", 2),
    ("v09-internal-1", 8),
    ("v09-internal-2", 7),
    ("v09-internal-2-64k", 0),
    ("v09-internal-3-1m", 0),
    ("v09-internal-31", 8),
    ("v09-internal-7", 7),
    ("v09-internal-7-16k", 0),
    ("v09-internal-striped", 32),
    ("v09-internal-unused", 0),
];

const SAMPLES: [&str; 2] = ["v84-live-s0.raw", "v84-live-s1.raw"];

fn layout(name: &str) -> Layout {
    match name {
        _ if name.contains("flex") => Layout::External,
        _ if name.contains("index") => Layout::Indexed(1),
        _ => Layout::Internal,
    }
}

/// A file of the golden data, decompressed.
fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/drbd");
    let path = folder.join(format!("{name}.zst"));
    let file = fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    zstd::decode_all(file).unwrap()
}

/// The same, as a disk.
fn golden_disk(name: &str) -> SparseDisk {
    SparseDisk::of(&golden(name))
}

fn dump(name: &str) -> Dump {
    Dump::parse(&String::from_utf8(golden(name)).unwrap())
}

#[test]
fn superblocks_say_what_drbdmeta_says() {
    for (name, transactions) in CASES {
        let metadata = read(&golden_disk(&format!("{name}.img")), layout(name));
        dump(&format!("{name}.before")).assert_same(name, &metadata);
        assert_eq!(metadata.activity_log.damage, None, "{name}");
        assert_eq!(metadata.activity_log.transactions, transactions, "{name}");
    }
}

/// What `drbdmeta apply-al` makes of the bitmaps is what we make of bitmaps and log.
#[test]
fn maps_are_what_drbdmeta_applies() {
    for (name, transactions) in CASES {
        let disk = golden_disk(&format!("{name}.img"));
        let metadata = read(&disk, layout(name));
        let before = dump(&format!("{name}.before"));
        let after = dump(&format!("{name}.after"));
        let mut added = 0;
        for (slot, expected) in after.bitmaps.iter().enumerate() {
            let found = mapped(&metadata, &disk, slot);
            assert!(found == *expected, "{name}, bitmap {slot}");
            // The last block may be cut, where the size is no multiple of one.
            let map = metadata.map(&disk, slot as u32).unwrap();
            assert_eq!(map.map.granularity, before.block_len, "{name}");
            let bits = map.bitmap_bytes.div_ceil(before.block_len);
            assert!(bits > 0, "{name}, bitmap {slot} is empty");
            assert_eq!(bits, before.bitmaps[slot].len() as u64, "{name}, bitmap {slot}");
            added += expected.len() - before.bitmaps[slot].len();
        }
        assert_eq!(added > 0, transactions > 0, "{name}: the log has something to add");
    }
}

/// Each bitmap is proven for the generation that it records from, and for no other.
#[test]
fn every_slot_is_proven_for_its_own_base() {
    for (name, transactions) in CASES {
        let before = dump(&format!("{name}.before"));
        let metadata = read(&golden_disk(&format!("{name}.img")), layout(name));
        let size = Some(metadata.superblock.effective_size);
        let judge = |uuid| {
            let rotated = Record::of(&metadata, true);
            let record = Record { current_uuid: uuid, logged: true, ..rotated };
            judge(&Base { uuid, size, record: Some(&record) }, &metadata)
        };
        for (_, uuid, _, slot) in &before.peers {
            let Some(slot) = slot else { continue };
            let judged = judge(*uuid);
            if transactions == 0 {
                // A Primary whose log was never used may keep its bits in memory.
                assert_eq!(judged, Err(Doubt::Unlogged { base: false }), "{name}");
                continue;
            }
            let proof = judged.unwrap_or_else(|doubt| panic!("{name}: {doubt}"));
            assert_eq!(proof.slot, *slot, "{name}");
        }
        let unheard_of = judge(0x1234).unwrap_err().reason();
        assert_eq!(unheard_of, Reason::BaseMismatch, "{name}");
        // Of another size than the base everything has to be compared.
        let uuid = before.peers.iter().find(|peer| peer.3.is_some()).unwrap().1;
        let base = Base { uuid, size: size.map(|size| size + 512), record: None };
        let doubt = driftline_drbd::judge(&base, &metadata).unwrap_err();
        assert_eq!(doubt.reason(), Reason::SizeChanged, "{name}");
    }
}

/// Data was written by a live Primary of DRBD 8.4 between these two snapshots.
#[test]
fn a_live_primary_is_read() {
    let [s0, s1] = SAMPLES.map(golden_disk);
    let [before, after] = [&s0, &s1].map(|disk| read(disk, Layout::Internal));
    let size = Some(before.superblock.effective_size);
    let record = Record::of(&before, true);
    let base = Base { uuid: before.superblock.current_uuid, size, record: Some(&record) };
    let proof = judge(&base, &after).unwrap();
    let written: BTreeSet<u64> = [256, 1280, 19712].into_iter().chain(10240..11008).collect();
    let map = after.map(&s1, proof.slot).unwrap();
    assert!(blocks(&map.map.changed, 4096).is_superset(&written));
    // Not one bit of all that was on disk.
    assert_eq!((map.bitmap_bytes, map.activity_log_bytes), (0, 16 << 20));
    // The other way round there is no map, nor is there from a snapshot to itself.
    let base = Base { uuid: after.superblock.current_uuid, size, record: None };
    assert_eq!(judge(&base, &before).unwrap_err().reason(), Reason::BaseMismatch);
    assert_eq!(judge(&base, &after).unwrap_err().reason(), Reason::UuidUnchanged);
}

#[test]
fn every_golden_file_is_read_by_some_test() {
    let cases = CASES
        .iter()
        .flat_map(|(name, _)| ["img", "before", "after"].map(|kind| format!("{name}.{kind}.zst")));
    let samples = SAMPLES.map(|name| format!("{name}.zst"));
    let named: BTreeSet<String> = cases.chain(samples).chain(["make".to_owned()]).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/drbd");
    let found = fs::read_dir(folder).unwrap();
    let found = found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(named, found);
}
