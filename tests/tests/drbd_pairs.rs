//! What is believed between any two snapshots of real DRBD 9 devices, of one node or of both nodes
//! of a pair, without any audit: what a map leaves out must not have changed. `data/drbd9` has them.

use std::{fs, path::PathBuf, sync::Arc};

use driftline_drbd::{DrbdVolume, testing::SparseDisk};
use driftline_extent::{
    Accepts, Extent, ExtentSet, Generation, Plan, PlanKind, ReplicaId, Root, Source as _,
    TargetState,
};

const GROUPS: [&str; 13] = [
    "bitmap-64k",
    "crash-pair",
    "crash-tracker",
    "pair",
    "pair-full-sync",
    "phantom",
    "phantom-cleared",
    "resize-pair",
    "resize-tracker",
    "resync",
    "tracker-never-cleared",
    "tracker-no-peer",
    "tracker-phantom",
];

const PAGE: u64 = 4096;

/// A snapshot: its metadata, and numbers in the place of its content.
struct Image {
    name: String,
    rotated: bool,
    disk: SparseDisk,
    size: u64,
    pages: Vec<u32>,
}

impl Image {
    fn open(&self) -> DrbdVolume {
        DrbdVolume::open(Arc::new(self.disk.clone()), None).unwrap().rotated(self.rotated)
    }

    /// What a target holds to which this was replicated, and what was kept of it.
    fn held(&self) -> Option<(Generation, Vec<u8>)> {
        let mut volume = self.open();
        volume.plan(None).ok()?;
        let named = !volume.is_unnamed().unwrap();
        let generation = if named {
            volume.finish().unwrap().tip
        } else {
            let mut hash = blake3::Hasher::new();
            for page in &self.pages {
                hash.update(&page.to_le_bytes());
            }
            Generation::content(Root(*hash.finalize().as_bytes()))
        };
        Some((generation, volume.record().unwrap()))
    }

    /// The pages that differ from another image.
    fn differing<'a>(&'a self, base: &'a Self) -> impl Iterator<Item = u64> + 'a {
        let page = |image: &Self, at: usize| image.pages.get(at).copied();
        let count = self.pages.len().max(base.pages.len());
        (0..count).filter(move |at| page(self, *at) != page(base, *at)).map(|at| at as u64)
    }
}

/// Cuts pieces off the front of a file.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }
}

fn group(name: &str) -> Vec<Image> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("data/drbd9/{name}.zst"));
    let bytes = zstd::decode_all(fs::File::open(path).unwrap()).unwrap();
    let mut bytes = Bytes(&bytes);
    assert_eq!(bytes.take(8), b"DRBD9S1\n");
    let count = bytes.u32();
    let images = (0..count).map(|_| {
        let name_len = bytes.take(1)[0].into();
        let name = String::from_utf8(bytes.take(name_len).to_vec()).unwrap();
        let rotated = bytes.take(1) == [1];
        let size = bytes.u64();
        let meta_len = bytes.u32() as usize;
        let mut disk = SparseDisk::new(size + meta_len as u64);
        for (at, page) in (0..).zip(bytes.take(meta_len).chunks(PAGE as usize)) {
            disk.put(size + at * PAGE, page);
        }
        let pages = (0..size / PAGE).map(|_| bytes.u32()).collect();
        Image { name, rotated, disk, size, pages }
    });
    let images = images.collect();
    assert!(bytes.0.is_empty());
    images
}

/// What a push of `tip` would do to a target that holds `base`.
fn planned(
    base: &Image,
    generation: Generation,
    record: Option<&[u8]>,
    tip: &mut DrbdVolume,
) -> Option<Plan> {
    tip.learn(&TargetState {
        replica: ReplicaId([1; 16]),
        chunk_key: [2; 32],
        volume: None,
        generation: Some(generation),
        root: None,
        size: base.size,
        incomplete: false,
        damaged: false,
        resume: None,
        accepts: Accepts::Volume,
    });
    tip.recall(record);
    tip.plan(Some(&generation)).ok()
}

/// How many pages of the tip an increment leaves as they were although they have changed.
fn missed(base: &Image, tip: &Image, volume: &mut DrbdVolume) -> usize {
    let mut sent = ExtentSet::new();
    while let Some(change) = volume.next_change(0).unwrap() {
        sent.insert(change.extent().unwrap());
    }
    let is_sent = |page: &u64| {
        Extent::new(page * PAGE, PAGE).is_some_and(|page| {
            sent.first_from(page.offset()).is_some_and(|extent| {
                extent.offset() <= page.offset() && page.end() <= extent.end()
            })
        })
    };
    tip.differing(base).filter(|page| !is_sent(page)).count()
}

#[derive(Default, PartialEq, Eq, Debug)]
struct Counts {
    pairs: usize,
    believed: usize,
    compared: usize,
    refused: usize,
}

impl Counts {
    fn note(&mut self, plan: Option<&Plan>) {
        self.pairs += 1;
        match plan.map(|plan| plan.kind) {
            Some(PlanKind::Incremental) => self.believed += 1,
            Some(PlanKind::Scan) => self.compared += 1,
            None => self.refused += 1,
            other => panic!("{other:?}"),
        }
    }
}

/// Every ordered pair of every series, and across the nodes of each pair.
#[test]
fn no_map_between_any_two_snapshots_is_wrong() {
    let (mut counts, mut wrong, mut believed) = (Counts::default(), Vec::new(), Vec::new());
    for images in GROUPS.map(group) {
        for base in &images {
            let held = base.held();
            for tip in images.iter().filter(|tip| tip.name != base.name) {
                let mut volume = tip.open();
                let plan = held.as_ref().and_then(|(generation, record)| {
                    planned(base, *generation, Some(record), &mut volume)
                });
                counts.note(plan.as_ref());
                if plan.is_some_and(|plan| plan.kind == PlanKind::Incremental) {
                    let pair = format!("{} -> {}", base.name, tip.name);
                    let missed = missed(base, tip, &mut volume);
                    if missed > 0 {
                        wrong.push(format!("{pair}: {missed} blocks"));
                    }
                    believed.push(pair);
                }
            }
        }
    }
    println!("{counts:?}, of which wrong: {}; believed: {believed:#?}", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    let expected = Counts { pairs: 1334, believed: 13, compared: 936, refused: 385 };
    assert_eq!(counts, expected, "{believed:#?}");
    // Where it is right: each rotated snapshot to the next ones under its UUID.
    for pair in [
        "tracker-phantom/S1 -> tracker-phantom/S2",
        "tracker-phantom/S2 -> tracker-phantom/S4",
        "tracker-phantom/S4 -> tracker-phantom/S6",
        "bitmap-64k/S1 -> bitmap-64k/S3",
        "crash-tracker/S1 -> crash-tracker/S5",
    ] {
        assert!(believed.iter().any(|believed| believed == pair), "{pair}: {believed:#?}");
    }
}

/// A replica that an earlier version has made, whose name is all that is known of it: it is compared
/// wherever it was before, and never believed.
#[test]
fn no_map_is_believed_by_the_name_of_its_base() {
    let mut counts = Counts::default();
    for images in GROUPS.map(group) {
        for base in &images {
            let generation = Generation::drbd(base.open().metadata().superblock.current_uuid);
            for tip in images.iter().filter(|tip| tip.name != base.name) {
                counts.note(planned(base, generation, None, &mut tip.open()).as_ref());
            }
        }
    }
    println!("{counts:?}");
    assert_eq!((counts.believed, counts.pairs), (0, counts.compared + counts.refused));
    assert!(counts.compared > counts.refused, "{counts:?}");
}
