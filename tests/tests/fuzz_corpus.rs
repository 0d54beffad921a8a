//! Every seed of the fuzz corpus through the bodies of the fuzz targets, with the ordinary
//! compiler. What a fuzzer finds is fixed and put there.

use std::{collections::BTreeSet, fs, path::Path};

use driftline_tests::fuzz_extent;

/// A fuzz target's name, and what it runs.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 16] = [
    ("drbd_metadata", driftline_drbd::fuzzing::metadata),
    ("extent_set", fuzz_extent::extent_set),
    ("journal", driftline_target::fuzzing::journal),
    ("repair", driftline_target::fuzzing::repair),
    ("state", driftline_target::fuzzing::state),
    ("trust_manifest", driftline_trust::fuzzing::manifest),
    ("trust_records", driftline_trust::fuzzing::records),
    ("wire_frame", driftline_wire::fuzzing::frames),
    ("wire_hello", driftline_wire::fuzzing::hello),
    ("wire_message", driftline_wire::fuzzing::message),
    ("wire_session", driftline_wire::fuzzing::session),
    ("zfs_codec", driftline_zfs::fuzzing::codec),
    ("zfs_nvlist", driftline_zfs::fuzzing::nvlist),
    ("zfs_stream", driftline_zfs::fuzzing::stream),
    ("zfs_stream_mended", driftline_zfs::fuzzing::stream_mended),
    ("zfs_token", driftline_zfs::fuzzing::token),
];

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz");

/// The names in a folder of the fuzz workspace, without what follows a dot.
fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(Path::new(FOLDER).join(folder)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_seed_is_survived() {
    for (name, body) in TARGETS {
        let folder = Path::new(FOLDER).join("corpus").join(name);
        let mut seeds: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        seeds.sort();
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for seed in seeds {
            // A panic below names its body; this names its bytes.
            eprintln!("{}", seed.display());
            let bytes = fs::read(&seed).unwrap();
            body(&bytes);
            // Cut short, and with one bit wrong: a corpus of well-formed seeds is all in vain
            // if the first check refuses whatever is not.
            body(&bytes[..bytes.len() / 2]);
            for at in 0..bytes.len().min(64) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (at % 8);
                body(&damaged);
            }
        }
    }
}

#[test]
fn targets_and_corpus_are_the_same() {
    let here: BTreeSet<String> = TARGETS.iter().map(|row| row.0.to_owned()).collect();
    assert_eq!(names("fuzz_targets"), here);
    assert_eq!(names("corpus"), here);
    let manifest = fs::read_to_string(Path::new(FOLDER).join("Cargo.toml")).unwrap();
    for name in here {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
}
