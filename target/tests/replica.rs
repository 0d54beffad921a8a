//! Replicas in real files, against the simplest model there is: a vector of bytes.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use driftline_extent::{
    BLOCK_LEN, BlockMask, CHUNK_LEN, Change, ChunkId, Explained, Extent, Finish, Generation, Item,
    Offer, Plan, PlanKind, Reason, Root, Standing, Target, Volume, VolumeId, chunk_count,
};
use driftline_manifest::{ChunkKey, Chunked, Chunker, Scope, TreeHasher};
use driftline_target::{FileDisk, Options, Problem, Replica, TargetError, inspect, open};
use proptest::prelude::*;
use tempfile::TempDir;

const CHUNK: usize = CHUNK_LEN as usize;

/// A directory with a path for a replica in it.
struct Place {
    _dir: TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("replica.img");
    Place { _dir: dir, path }
}

impl Place {
    fn open(&self) -> Replica<FileDisk> {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Replica<FileDisk>, TargetError> {
        open(&self.path, &Options { create: true, state_dir: None })
    }

    fn book(&self, name: &str) -> PathBuf {
        driftline_target::state_dir_of(&self.path).join(name)
    }

    /// Every byte of the replica and its books.
    fn everything(&self) -> Vec<Option<Vec<u8>>> {
        let books = ["state", "journal", "ids", "overlay"].map(|name| self.book(name));
        std::iter::once(&self.path).chain(&books).map(|path| fs::read(path).ok()).collect()
    }

    /// A replica of `volume` at generation 1.
    fn holding(volume: &[u8]) -> Self {
        let place = place();
        let mut replica = place.open();
        let (plan, changes) = (plan(PlanKind::Full, None, 1), whole(volume));
        deliver(&mut replica, plan, &changes, volume.len() as u64).unwrap();
        place
    }
}

fn plan(kind: PlanKind, base: Option<u64>, tip: u64) -> Plan {
    Plan {
        kind,
        volume: Some(VolumeId([1; 16])),
        base: base.map(Generation::Zfs),
        tip: Some(Generation::Zfs(tip)),
        size: None,
        standing: Standing::Proven,
        bytes_expected: 0,
    }
}

fn offer(plan: Plan) -> Offer {
    Offer { plan, overwrite: false }
}

fn key(replica: &Replica<FileDisk>) -> ChunkKey {
    ChunkKey::new(&replica.state().chunk_key)
}

fn whole(volume: &[u8]) -> Vec<Change> {
    let chunks = volume.chunks(CHUNK).enumerate();
    let changes =
        chunks.map(|(i, c)| Change::Data { offset: (i * CHUNK) as u64, bytes: c.to_vec() });
    changes.collect()
}

fn items(
    key: &ChunkKey,
    kind: PlanKind,
    changes: &[Change],
    size: u64,
    from: u64,
) -> (Vec<Chunked>, Option<Root>) {
    let scope = if kind == PlanKind::Incremental { Scope::Increment } else { Scope::Whole };
    let mut chunker = Chunker::new(key, scope, from);
    changes.iter().for_each(|change| chunker.push(change).unwrap());
    let root = chunker.finish(Some(size)).unwrap();
    (std::iter::from_fn(|| chunker.poll()).collect(), root)
}

/// Delivers an increment and returns how many bytes of data moved.
fn deliver(
    replica: &mut Replica<FileDisk>,
    plan: Plan,
    changes: &[Change],
    size: u64,
) -> Result<u64, TargetError> {
    let (kind, tip) = (plan.kind, plan.tip.unwrap());
    let from = replica.begin(&offer(plan))?.from;
    let (items, root) = items(&key(replica), kind, changes, size, from);
    let mut moved = 0;
    for chunked in items {
        moved += put(replica, &chunked)?;
    }
    replica.commit(&Finish { tip, size: Some(size), root })?;
    Ok(moved)
}

fn put(replica: &mut Replica<FileDisk>, chunked: &Chunked) -> Result<u64, TargetError> {
    let lacks = replica.lacks(&[chunked.item])?[0] && !chunked.data.is_empty();
    replica.apply(&chunked.item, lacks.then_some(&chunked.data))?;
    Ok(if lacks { chunked.item.data_len() } else { 0 })
}

fn naive_root(key: &ChunkKey, volume: &[u8]) -> Root {
    let mut padded = volume.to_vec();
    padded.resize(chunk_count(volume.len() as u64) as usize * CHUNK, 0);
    let mut tree = TreeHasher::new(key);
    padded.chunks(CHUNK).for_each(|chunk| tree.push(key.id(chunk)));
    tree.into_root(volume.len() as u64)
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 251) as u8 ^ (i as u8).wrapping_mul(seed) ^ seed).collect()
}

/// A new size, and runs of gap, length and fill, all in blocks. A fill of 0 is a zero extent,
/// of 1 zeros that are sent as data.
type Step = (u64, Vec<(u64, u64, u8)>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let run = (0..200_u64, 1..300_u64, 0..6_u8);
    let step = (0..9 * CHUNK_LEN, prop::collection::vec(run, 0..8));
    prop::collection::vec(step, 1..5)
}

fn changes_of(step: &Step) -> Vec<Change> {
    let (size, runs) = step;
    let mut at = 0;
    let mut changes = Vec::new();
    for (gap, len, fill) in runs {
        let offset = at + gap * BLOCK_LEN;
        let wanted = Extent::new(offset, len * BLOCK_LEN).unwrap();
        // Only zeros may reach beyond the end.
        let Some(extent) = (if *fill == 0 { Some(wanted) } else { wanted.clamp(*size) }) else {
            break;
        };
        at = extent.end().next_multiple_of(BLOCK_LEN);
        changes.push(match fill {
            0 => Change::Zero(extent),
            1 => Change::Data { offset, bytes: vec![0; extent.len() as usize] },
            fill => Change::Data { offset, bytes: pattern(*fill, extent.len() as usize) },
        });
    }
    changes
}

fn apply(volume: &mut Vec<u8>, changes: &[Change], size: u64) {
    volume.resize(volume.len().max(size as usize), 0);
    for change in changes {
        let extent = change.extent().unwrap();
        let end = (extent.end() as usize).min(volume.len());
        let start = (extent.offset() as usize).min(end);
        match change {
            Change::Data { bytes, .. } => volume[start..end].copy_from_slice(bytes),
            Change::Zero(_) => volume[start..end].fill(0),
        }
    }
    volume.truncate(size as usize);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn increments_make_what_a_vector_makes(steps in steps(), reopen in any::<bool>()) {
        let mut model = pattern(3, 5 * CHUNK + 900);
        let place = Place::holding(&model);
        let mut replica = place.open();
        for (tip, step) in (2..).zip(&steps) {
            let changes = changes_of(step);
            apply(&mut model, &changes, step.0);
            let plan = plan(PlanKind::Incremental, Some(tip - 1), tip);
            deliver(&mut replica, plan, &changes, step.0).unwrap();
            prop_assert!(fs::read(&place.path).unwrap() == model);
            prop_assert_eq!(replica.state().root, Some(naive_root(&key(&replica), &model)));
            if reopen {
                drop(replica);
                replica = place.open();
            }
            let report = replica.verify(&mut |_| {}).unwrap();
            prop_assert!(report.is_clean());
        }
    }
}

fn allocated(path: &Path) -> u64 {
    path.metadata().unwrap().blocks() * 512
}

#[test]
fn a_terabyte_of_holes_costs_nothing() {
    let place = place();
    let mut replica = place.open();
    let (size, middle) = (1_u64 << 40, 1_u64 << 39);
    let data = |offset, seed| Change::Data { offset, bytes: pattern(seed, CHUNK) };
    let changes = [data(0, 3), data(middle, 5)];
    deliver(&mut replica, plan(PlanKind::Full, None, 1), &changes, size).unwrap();
    // ZFS says that nearly everything is free around a small write.
    let free = |start, end| Change::Zero(Extent::from_bounds(start, end).unwrap());
    let changes = [free(CHUNK_LEN, middle), data(middle, 7), free(middle + CHUNK_LEN, 1 << 60)];
    deliver(&mut replica, plan(PlanKind::Incremental, Some(1), 2), &changes, size).unwrap();
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
    // In the end nothing is left but the first chunk.
    let changes = [free(CHUNK_LEN, 1 << 60)];
    deliver(&mut replica, plan(PlanKind::Incremental, Some(2), 3), &changes, size).unwrap();
    drop(replica);
    assert!(place.open().verify(&mut |_| {}).unwrap().is_clean());
    assert_eq!(place.path.metadata().unwrap().len(), size);
    assert_eq!(allocated(&place.path), CHUNK_LEN);
    assert!(allocated(&place.book("ids")) <= 3 * 4096);
    assert_eq!(allocated(&place.book("journal")), 0);
}

#[test]
fn zeros_within_a_chunk_become_holes() {
    let mut volume = pattern(3, 2 * CHUNK);
    volume[8192..16384].fill(0);
    let place = Place::holding(&volume);
    assert_eq!(allocated(&place.path), 2 * CHUNK_LEN - 8192);
    let changes = [Change::Data { offset: CHUNK_LEN, bytes: vec![0; 4096] }];
    let plan = plan(PlanKind::Incremental, Some(1), 2);
    deliver(&mut place.open(), plan, &changes, 2 * CHUNK_LEN).unwrap();
    assert_eq!(allocated(&place.path), 2 * CHUNK_LEN - 8192 - 4096);
}

#[test]
fn what_stands_there_is_checked_before_anything_changes() {
    let volume = pattern(3, 4 * CHUNK);
    let place = Place::holding(&volume);
    let file = fs::OpenOptions::new().write(true).open(&place.path).unwrap();
    file.write_all_at(b"x", 2 * CHUNK_LEN + 77).unwrap();
    let modified = fs::read(&place.path).unwrap();
    let mut replica = place.open();

    let report = replica.verify(&mut |_| {}).unwrap();
    assert!(!report.is_clean() && report.damaged_chunks == 1 && report.root_matches);
    let damaged: Vec<Extent> = report.damaged.iter().collect();
    assert_eq!(damaged, [Extent::new(2 * CHUNK_LEN, CHUNK_LEN).unwrap()]);

    for change in [
        Change::Data { offset: 2 * CHUNK_LEN, bytes: pattern(5, 512) },
        Change::Data { offset: 2 * CHUNK_LEN, bytes: pattern(5, CHUNK) },
        Change::Zero(Extent::new(0, 4 * CHUNK_LEN).unwrap()),
    ] {
        let plan = plan(PlanKind::Incremental, Some(1), 2);
        let error = deliver(&mut place_again(&place, replica), plan, &[change], 4 * CHUNK_LEN);
        let error = error.unwrap_err();
        assert_eq!(error.reason(), Reason::TargetModified);
        assert!(error.to_string().contains("byte 131072"), "{error}");
        assert!(fs::read(&place.path).unwrap() == modified);
        replica = place.open();
    }
    // What does not touch it goes through, and does not hide it.
    let changes = [Change::Data { offset: 0, bytes: pattern(5, 512) }];
    let next = plan(PlanKind::Incremental, Some(1), 2);
    deliver(&mut replica, next, &changes, 4 * CHUNK_LEN).unwrap();
    assert_eq!(replica.verify(&mut |_| {}).unwrap().damaged_chunks, 1);
    // A copy over it heals it, and moves only what differs.
    let mut fresh = pattern(3, 4 * CHUNK);
    fresh[..512].copy_from_slice(&pattern(5, 512));
    let full = plan(PlanKind::Full, None, 3);
    let error = replica.begin(&offer(full.clone())).unwrap_err();
    assert_eq!(error.reason(), Reason::BaseMismatch);
    replica.begin(&Offer { plan: full, overwrite: true }).unwrap();
    let (items, root) = items(&key(&replica), PlanKind::Full, &whole(&fresh), 4 * CHUNK_LEN, 0);
    let moved: u64 = items.iter().map(|chunked| put(&mut replica, chunked).unwrap()).sum();
    assert_eq!(moved, CHUNK_LEN);
    let size = Some(4 * CHUNK_LEN);
    replica.commit(&Finish { tip: Generation::Zfs(3), size, root }).unwrap();
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
    assert!(fs::read(&place.path).unwrap() == fresh);
}

fn place_again(place: &Place, replica: Replica<FileDisk>) -> Replica<FileDisk> {
    drop(replica);
    place.open()
}

#[test]
fn another_size_is_refused_and_mended_only_by_consent() {
    let content = pattern(3, 3 * CHUNK);
    let place = Place::holding(&content);
    for size in [3 * CHUNK_LEN - 1, 3 * CHUNK_LEN + 1, 0] {
        fs::OpenOptions::new().write(true).open(&place.path).unwrap().set_len(size).unwrap();
        let before = place.everything();
        let mut replica = place.open();
        assert!(!replica.verify(&mut |_| {}).unwrap().size_matches);
        for (kind, base) in [(PlanKind::Incremental, Some(1)), (PlanKind::Full, None)] {
            let error = replica.begin(&offer(plan(kind, base, 2))).unwrap_err();
            assert_eq!(error.reason(), Reason::TargetModified);
            assert!(error.to_string().contains("196608"), "{error}");
        }
        drop(replica);
        assert!(place.everything() == before);
    }
    // The last size was zero: a copy over it brings everything back.
    let mut replica = place.open();
    let full = Offer { plan: plan(PlanKind::Full, None, 2), overwrite: true };
    replica.begin(&full).unwrap();
    let (items, root) = items(&key(&replica), PlanKind::Full, &whole(&content), 3 * CHUNK_LEN, 0);
    let moved: u64 = items.iter().map(|chunked| put(&mut replica, chunked).unwrap()).sum();
    assert_eq!(moved, 3 * CHUNK_LEN);
    let size = Some(3 * CHUNK_LEN);
    replica.commit(&Finish { tip: Generation::Zfs(2), size, root }).unwrap();
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
    assert!(fs::read(&place.path).unwrap() == content);
}

#[test]
fn what_was_made_for_nothing_is_taken_away() {
    let dir = tempfile::TempDir::new().unwrap();
    let listing = || fs::read_dir(dir.path()).unwrap().count();
    let path = dir.path().join("replica.img");
    let create = Options { create: true, state_dir: None };
    let mut replica = driftline_target::open(&path, &create).unwrap();
    let increment = plan(PlanKind::Incremental, Some(1), 2);
    assert_eq!(replica.begin(&offer(increment)).unwrap_err().reason(), Reason::BaseMismatch);
    drop(replica);
    assert_eq!(listing(), 0, "a refused increment left something behind");
    // Another's file stays, without books beside it.
    fs::write(&path, pattern(1, CHUNK)).unwrap();
    let mut replica = driftline_target::open(&path, &create).unwrap();
    let full = offer(plan(PlanKind::Full, None, 2));
    assert_eq!(replica.begin(&full).unwrap_err().reason(), Reason::TargetForeign);
    drop(replica);
    assert_eq!(listing(), 1);
    assert_eq!(fs::read(&path).unwrap(), pattern(1, CHUNK));
    fs::remove_file(&path).unwrap();
    let mut replica = driftline_target::open(&path, &create).unwrap();
    replica.begin(&full).unwrap();
    drop(replica);
    assert_eq!(listing(), 2, "what was begun stays");
}

#[test]
fn another_name_of_the_same_file_is_the_same_file() {
    let place = Place::holding(&pattern(3, CHUNK));
    let linked = place.path.with_file_name("linked.img");
    fs::hard_link(&place.path, &linked).unwrap();
    let first = place.open();
    let options = Options { create: false, state_dir: None };
    let error = driftline_target::open(&linked, &options).unwrap_err();
    assert_eq!(error.reason(), Reason::TargetBusy);
    drop(first);
}

#[test]
fn one_process_at_a_time() {
    let place = Place::holding(&pattern(3, CHUNK));
    let first = place.open();
    let error = place.try_open().unwrap_err();
    assert_eq!(error.reason(), Reason::TargetBusy);
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    assert!(text.contains("replica.img"), "{text}");
    drop(first);
    place.open();
}

#[test]
fn a_refusal_changes_nothing() {
    let place = Place::holding(&pattern(3, 2 * CHUNK));
    let before = place.everything();
    let other = VolumeId([2; 16]);
    let cases = [
        (plan(PlanKind::Incremental, Some(7), 8), Reason::BaseMismatch),
        (plan(PlanKind::Incremental, None, 8), Reason::BaseMismatch),
        (plan(PlanKind::Full, None, 8), Reason::BaseMismatch),
        (plan(PlanKind::Scan, None, 8), Reason::BaseMismatch),
        (plan(PlanKind::UpToDate, None, 1), Reason::StreamDamaged),
        (
            Plan { volume: Some(other), ..plan(PlanKind::Incremental, Some(1), 2) },
            Reason::SourceMismatch,
        ),
        (
            Plan { size: Some(u64::MAX), ..plan(PlanKind::Incremental, Some(1), 2) },
            Reason::StreamDamaged,
        ),
    ];
    let mut replica = place.open();
    for (plan, reason) in cases {
        let error = replica.begin(&offer(plan.clone())).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        if reason == Reason::BaseMismatch {
            assert!(error.to_string().contains("zfs:1"), "{error}");
        }
        assert!(place.everything() == before, "{plan:?}");
    }
    // It is not poisoned by that.
    let mut ok = offer(Plan { volume: Some(other), ..plan(PlanKind::Incremental, Some(1), 2) });
    ok.overwrite = true;
    replica.begin(&ok).unwrap();
    assert_eq!(replica.state().generation, Some(Generation::Zfs(1)));
}

#[test]
fn damaged_slots() {
    let volume = pattern(3, CHUNK);
    let place = Place::holding(&volume);
    let good = fs::read(place.book("state")).unwrap();
    assert_eq!(good.len(), 8192);
    // The newer slot is the first: the second sequence number is even.
    let mut bad = good.clone();
    bad[200] ^= 1;
    fs::write(place.book("state"), &bad).unwrap();
    let replica = place.open();
    assert!(replica.state().incomplete, "the first slot was the newer");
    drop(replica);
    bad[4096 + 200] ^= 1;
    fs::write(place.book("state"), &bad).unwrap();
    let error = place.try_open().unwrap_err();
    assert!(error.to_string().contains("state file"), "{error}");
    assert!(matches!(error.problem, Problem::StateDamaged));
    // A version of the future is not damage.
    let mut newer = good.clone();
    newer[8] = 2;
    let checksum = *blake3::hash(&newer[..4064]).as_bytes();
    newer[4064..4096].copy_from_slice(&checksum);
    fs::write(place.book("state"), &newer).unwrap();
    assert!(matches!(place.try_open().unwrap_err().problem, Problem::Newer { version: 2, .. }));
    fs::write(place.book("state"), &good).unwrap();
    assert!(!place.open().state().incomplete);
}

/// A slot that rots makes the replica look older than it is: that is noticed.
#[test]
fn an_older_state_over_a_newer_volume_is_noticed() {
    let place = Place::holding(&pattern(3, 2 * CHUNK));
    let changes = [Change::Data { offset: 0, bytes: pattern(5, 512) }];
    let next = plan(PlanKind::Incremental, Some(1), 2);
    deliver(&mut place.open(), next.clone(), &changes, 2 * CHUNK_LEN).unwrap();
    let mut state = fs::read(place.book("state")).unwrap();
    state[4096 + 20] ^= 1;
    fs::write(place.book("state"), &state).unwrap();
    let mut replica = place.open();
    assert_eq!(replica.state().generation, Some(Generation::Zfs(1)));
    assert!(!replica.verify(&mut |_| {}).unwrap().root_matches);
    let error = deliver(&mut replica, next, &changes, 2 * CHUNK_LEN).unwrap_err();
    assert!(matches!(error.problem, Problem::ListDamaged), "{error}");
}

#[test]
fn files_that_are_missing_or_foreign() {
    let place = place();
    let closed = Options::default();
    assert!(matches!(open(&place.path, &closed).unwrap_err().problem, Problem::NotFound));
    assert!(place.everything().iter().all(Option::is_none));
    assert_eq!(inspect(&place.path, None).unwrap(), None);

    let foreign = pattern(3, CHUNK + 5);
    fs::write(&place.path, &foreign).unwrap();
    let mut replica = open(&place.path, &closed).unwrap();
    assert!(replica.state().incomplete);
    let before = place.everything();
    let full = plan(PlanKind::Full, None, 1);
    let error = replica.begin(&offer(full.clone())).unwrap_err();
    assert_eq!(error.reason(), Reason::TargetForeign);
    assert!(replica.verify(&mut |_| {}).is_err());
    assert!(place.everything() == before);
    drop(replica);
    assert_eq!(inspect(&place.path, None).unwrap(), None);

    // A file of zeros is as good as none.
    fs::write(&place.path, vec![0; 3 * CHUNK]).unwrap();
    let mut replica = place.open();
    deliver(&mut replica, full, &whole(&foreign), foreign.len() as u64).unwrap();
    assert!(fs::read(&place.path).unwrap() == foreign);
    drop(replica);
    let seen = inspect(&place.path, None).unwrap().unwrap();
    assert_eq!(seen.state.generation, Some(Generation::Zfs(1)));
    assert_eq!(seen.opened_by, Some(std::process::id()));

    fs::remove_file(&place.path).unwrap();
    let error = place.try_open().unwrap_err();
    assert_eq!(error.reason(), Reason::TargetModified);
    assert!(error.to_string().contains("replica.img.driftline"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(open(dir.path(), &closed).unwrap_err().problem, Problem::NotAVolume));
}

#[test]
fn what_does_not_fit_its_name_or_root_is_not_committed() {
    let volume = pattern(3, 3 * CHUNK);
    let place = Place::holding(&volume);
    let size = 3 * CHUNK_LEN;
    let next = plan(PlanKind::Incremental, Some(1), 2);
    let changes = [Change::Data { offset: 512, bytes: pattern(9, 1024) }];

    let mut replica = place.open();
    replica.begin(&offer(next.clone())).unwrap();
    let (items, _) = items(&key(&replica), PlanKind::Incremental, &changes, size, 0);
    let Chunked { item, mut data } = items[0].clone();
    data[700] ^= 1;
    assert_eq!(replica.lacks(&[item]).unwrap(), [true]);
    let error = replica.apply(&item, Some(&data)).unwrap_err();
    assert_eq!(error.reason(), Reason::VerifyFailed);
    // From here on it has to be opened again.
    let error = replica.apply(&item, Some(&items[0].data)).unwrap_err();
    assert!(matches!(error.problem, Problem::Poisoned));
    assert!(replica.begin(&offer(next.clone())).is_err());
    drop(replica);

    let mut replica = place.open();
    replica.begin(&offer(next.clone())).unwrap();
    put(&mut replica, &items[0]).unwrap();
    replica.mark(1).unwrap();
    let finish = Finish { tip: Generation::Zfs(2), size: None, root: Some(Root([1; 32])) };
    let error = replica.commit(&finish).unwrap_err();
    assert_eq!(error.reason(), Reason::VerifyFailed);
    drop(replica);
    assert!(fs::read(&place.path).unwrap() == volume);
    let replica = place.open();
    assert_eq!(replica.state().generation, Some(Generation::Zfs(1)));
    assert_eq!(replica.state().resume, None);
}

#[test]
fn malformed_items_are_refused() {
    let place = Place::holding(&pattern(3, 2 * CHUNK));
    let (none, one) = (BlockMask::NONE, BlockMask(1));
    let id = ChunkId([1; 32]);
    for item in [
        Item::Chunk { index: 1 << 44, data: one, zero: none, id },
        Item::Chunk { index: u64::MAX, data: one, zero: none, id },
        Item::Chunk { index: 0, data: one, zero: one, id },
        Item::Chunk { index: 0, data: none, zero: one, id },
        Item::Zero { index: 0, count: 0 },
        Item::Zero { index: u64::MAX, count: 2 },
        Item::Span { index: 0, count: 5000, digest: id },
    ] {
        let mut replica = place.open();
        replica.begin(&offer(plan(PlanKind::Incremental, Some(1), 2))).unwrap();
        assert_eq!(replica.lacks(&[item]).unwrap_err().reason(), Reason::StreamDamaged);
        let mut replica = place_again(&place, replica);
        replica.begin(&offer(plan(PlanKind::Incremental, Some(1), 2))).unwrap();
        assert_eq!(replica.apply(&item, None).unwrap_err().reason(), Reason::StreamDamaged);
    }
    // Data beyond the end is found out at the end.
    let changes = [Change::Data { offset: 9 * CHUNK_LEN, bytes: pattern(5, 512) }];
    let mut replica = place.open();
    replica.begin(&offer(plan(PlanKind::Incremental, Some(1), 2))).unwrap();
    let (items, _) = items(&key(&replica), PlanKind::Incremental, &changes, 10 * CHUNK_LEN, 0);
    put(&mut replica, &items[0]).unwrap();
    let finish = Finish { tip: Generation::Zfs(2), size: None, root: None };
    assert_eq!(replica.commit(&finish).unwrap_err().reason(), Reason::StreamDamaged);
}

#[test]
fn equal_data_moves_once_and_the_same_item_may_come_twice() {
    let place = Place::holding(&pattern(3, 4 * CHUNK));
    let mut replica = place.open();
    let twice = pattern(5, CHUNK);
    let at = |chunk: u64, bytes: &[u8]| Change::Data {
        offset: chunk * CHUNK_LEN,
        bytes: bytes.to_vec(),
    };
    let old = pattern(3, 4 * CHUNK);
    let changes = [at(0, &twice), at(1, &twice), at(2, &old[2 * CHUNK..3 * CHUNK]), at(3, &twice)];
    replica.begin(&offer(plan(PlanKind::Incremental, Some(1), 2))).unwrap();
    let (items, _) = items(&key(&replica), PlanKind::Incremental, &changes, 4 * CHUNK_LEN, 0);
    let moved: u64 = items.iter().map(|chunked| put(&mut replica, chunked).unwrap()).sum();
    assert_eq!(moved, CHUNK_LEN);
    for chunked in &items {
        replica.apply(&chunked.item, Some(&chunked.data)).unwrap();
    }
    let zero = Item::Zero { index: 4, count: 10 };
    replica.apply(&zero, None).unwrap();
    replica.apply(&zero, None).unwrap();
    replica.commit(&Finish { tip: Generation::Zfs(2), size: None, root: None }).unwrap();
    let expected = [&twice[..], &twice, &old[2 * CHUNK..3 * CHUNK], &twice].concat();
    assert!(fs::read(&place.path).unwrap() == expected);
    // Two items that disagree are an error, not a choice.
    replica.begin(&offer(plan(PlanKind::Incremental, Some(2), 3))).unwrap();
    replica.apply(&Item::Zero { index: 0, count: 1 }, None).unwrap();
    let mut item = items[0].clone();
    item.data = pattern(7, CHUNK);
    let id = key(&replica).id(&item.data);
    item.item = Item::Chunk { index: 0, data: BlockMask::ALL, zero: BlockMask::NONE, id };
    let error = replica.apply(&item.item, Some(&item.data)).unwrap_err();
    assert_eq!(error.reason(), Reason::StreamDamaged);
}

#[test]
fn an_increment_goes_on_where_it_was_cut_off() {
    let place = Place::holding(&pattern(3, 6 * CHUNK));
    let next = plan(PlanKind::Incremental, Some(1), 2);
    let changes: Vec<Change> = (0..6)
        .map(|i| Change::Data { offset: i * CHUNK_LEN + 512, bytes: pattern(i as u8 + 20, 4096) })
        .collect();
    let mut replica = place.open();
    let key = key(&replica);
    replica.begin(&offer(next.clone())).unwrap();
    let all = |from| items(&key, PlanKind::Incremental, &changes, 6 * CHUNK_LEN, from).0;
    for chunked in &all(0)[..4] {
        put(&mut replica, chunked).unwrap();
        if chunked.item.first() == 2 {
            replica.mark(3).unwrap();
        }
    }
    drop(replica);
    let seen = inspect(&place.path, None).unwrap().unwrap().state;
    let mut replica = place.open();
    assert_eq!(replica.state(), seen);
    let resume = replica.state().resume.unwrap();
    assert_eq!(resume.from, 3);
    assert_eq!((resume.base, resume.tip), (Some(Generation::Zfs(1)), Some(Generation::Zfs(2))));
    assert_eq!(replica.begin(&offer(next)).unwrap().from, 3);
    for chunked in &all(3) {
        put(&mut replica, chunked).unwrap();
    }
    replica.commit(&Finish { tip: Generation::Zfs(2), size: None, root: None }).unwrap();
    let mut expected = pattern(3, 6 * CHUNK);
    apply(&mut expected, &changes, 6 * CHUNK_LEN);
    assert!(fs::read(&place.path).unwrap() == expected);

    // Another tip is another increment.
    replica.begin(&offer(plan(PlanKind::Incremental, Some(2), 3))).unwrap();
    put(&mut replica, &all(0)[1]).unwrap();
    replica.mark(2).unwrap();
    let mut replica = place_again(&place, replica);
    assert_eq!(replica.begin(&offer(plan(PlanKind::Incremental, Some(2), 4))).unwrap().from, 0);
}

#[test]
fn a_first_copy_goes_on_only_towards_the_same_tip() {
    let place = place();
    let volume = pattern(3, 5 * CHUNK + 99);
    let full = Plan { size: Some(volume.len() as u64), ..plan(PlanKind::Full, None, 1) };
    let begin = |replica: &mut Replica<FileDisk>, plan: &Plan| {
        replica.checkpoint_every(2 * CHUNK_LEN);
        replica.begin(&offer(plan.clone())).unwrap().from
    };
    let mut replica = place.open();
    assert_eq!(begin(&mut replica, &full), 0);
    let key = key(&replica);
    let all = |from| items(&key, PlanKind::Full, &whole(&volume), volume.len() as u64, from);
    for chunked in &all(0).0[..3] {
        put(&mut replica, chunked).unwrap();
    }
    let mut replica = place_again(&place, replica);
    assert!(replica.state().incomplete);
    assert_eq!(replica.state().resume.unwrap().from, 2);
    assert_eq!(begin(&mut replica, &full), 2);
    // A gap is no whole copy.
    let (rest, root) = all(2);
    assert!(replica.apply(&rest[1].item, Some(&rest[1].data)).is_err());
    let mut replica = place_again(&place, replica);
    assert_eq!(begin(&mut replica, &full), 2);
    for chunked in &rest {
        put(&mut replica, chunked).unwrap();
    }
    // A root that does not fit sends it back to the start.
    let finish = |root| Finish { tip: Generation::Zfs(1), size: None, root };
    assert!(replica.commit(&finish(Some(Root([0; 32])))).is_err());
    let mut replica = place_again(&place, replica);
    assert_eq!(replica.state().resume, None);
    assert_eq!(begin(&mut replica, &full), 0);
    for chunked in &all(0).0[..3] {
        put(&mut replica, chunked).unwrap();
    }
    let mut replica = place_again(&place, replica);
    let other = Plan { tip: Some(Generation::Zfs(9)), ..full.clone() };
    assert_eq!(begin(&mut replica, &other), 0);
    assert_eq!(fs::read(&place.path).unwrap(), vec![0; volume.len()]);
    assert!(replica.commit(&finish(None)).is_err(), "a whole copy without a root");
    let mut replica = place_again(&place, replica);
    assert_eq!(begin(&mut replica, &full), 0);
    for chunked in &all(0).0 {
        put(&mut replica, chunked).unwrap();
    }
    replica.commit(&finish(root)).unwrap();
    assert!(fs::read(&place.path).unwrap() == volume);
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn a_first_copy_that_starts_over_may_be_shorter() {
    let place = place();
    let long = pattern(3, 5 * CHUNK);
    let mut replica = place.open();
    replica.begin(&offer(plan(PlanKind::Full, None, 1))).unwrap();
    let (items, _) = items(&key(&replica), PlanKind::Full, &whole(&long), 5 * CHUNK_LEN, 0);
    for chunked in &items {
        put(&mut replica, chunked).unwrap();
    }
    let mut replica = place_again(&place, replica);
    let short = pattern(5, CHUNK + 7);
    let size = short.len() as u64;
    deliver(&mut replica, plan(PlanKind::Full, None, 2), &whole(&short), size).unwrap();
    assert!(fs::read(&place.path).unwrap() == short);
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn a_scan_compares_spans_first() {
    let volume = pattern(3, 5 * CHUNK + 99);
    let place = place();
    let mut replica = place.open();
    let content = Generation::Content(Root([8; 32]));
    let size = volume.len() as u64;
    let full = Plan { tip: Some(content), ..plan(PlanKind::Full, None, 1) };
    deliver(&mut replica, full, &whole(&volume), size).unwrap();
    replica.begin(&offer(plan(PlanKind::Scan, None, 2))).unwrap();
    let digest = |volume: &[u8]| {
        let mut tree = TreeHasher::new(&key(&replica));
        let mut padded = volume.to_vec();
        padded.resize(6 * CHUNK, 0);
        padded.chunks(CHUNK).for_each(|chunk| tree.push(key(&replica).id(chunk)));
        tree.into_span()
    };
    let (same, mut other) = (digest(&volume), volume.clone());
    other[3 * CHUNK] ^= 1;
    let different = digest(&other);
    let span = |digest| Item::Span { index: 0, count: 6, digest };
    let beyond = Item::Span { index: 4096, count: 4096, digest: ChunkId::ZERO };
    let asked = [span(same), span(different), beyond];
    assert_eq!(replica.lacks(&asked).unwrap(), [false, true, false]);
    fs::OpenOptions::new()
        .write(true)
        .open(&place.path)
        .and_then(|file| file.write_all_at(b"x", CHUNK_LEN))
        .unwrap();
    assert_eq!(replica.lacks(&[span(same)]).unwrap_err().reason(), Reason::TargetModified);
}

#[test]
fn a_file_can_be_read_as_a_volume() {
    let place = place();
    let file = fs::File::create(&place.path).unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_all_at(&pattern(3, 4096), 1 << 20).unwrap();
    let disk = FileDisk::open_read(&place.path).unwrap();
    assert_eq!(Volume::size(&disk), 1 << 30);
    assert_eq!(Volume::next_data(&disk, 0).unwrap(), Extent::new(1 << 20, 4096));
    assert_eq!(Volume::next_data(&disk, (1 << 20) + 9).unwrap(), Extent::new((1 << 20) + 9, 4087));
    assert_eq!(Volume::next_data(&disk, 1 << 29).unwrap(), None);
    assert_eq!(Volume::next_data(&disk, 1 << 30).unwrap(), None);
    let mut bytes = [0; 4096];
    Volume::read_at(&disk, 1 << 20, &mut bytes).unwrap();
    assert!(bytes[..] == pattern(3, 4096));
    assert!(Volume::read_at(&disk, (1 << 30) - 1, &mut bytes).is_err());
}
