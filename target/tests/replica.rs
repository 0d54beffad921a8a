//! Replicas in real files, against the simplest model there is: a vector of bytes.

mod common;

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use driftline_chunking::{Chunked, TreeHasher};
use driftline_extent::{
    BLOCK_LEN, BlockMask, CHUNK_LEN, Change, ChunkId, Explained, Extent, Finish, GRAIN_LEN,
    Generation, GrainMask, Item, Missing, Offer, Plan, PlanKind, Reason, Root, Target, Volume,
};
use driftline_target::{FileDisk, Replica, inspect};
use proptest::prelude::*;

use common::*;
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
            Change::Part(_) => panic!("a volume has no parts"),
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
    assert_eq!(moved, GRAIN_LEN);
    let size = Some(4 * CHUNK_LEN);
    replica.commit(&Finish { tip: Generation::zfs(3), size, root }).unwrap();
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
    assert!(fs::read(&place.path).unwrap() == fresh);
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
    replica.commit(&Finish { tip: Generation::zfs(2), size: None, root: None }).unwrap();
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
    assert_eq!((resume.base, resume.tip), (Some(Generation::zfs(1)), Some(Generation::zfs(2))));
    assert_eq!(replica.begin(&offer(next)).unwrap().from, 3);
    for chunked in &all(3) {
        put(&mut replica, chunked).unwrap();
    }
    replica.commit(&Finish { tip: Generation::zfs(2), size: None, root: None }).unwrap();
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
    let finish = |root| Finish { tip: Generation::zfs(1), size: None, root };
    assert!(replica.commit(&finish(Some(Root([0; 32])))).is_err());
    let mut replica = place_again(&place, replica);
    assert_eq!(replica.state().resume, None);
    assert_eq!(begin(&mut replica, &full), 0);
    for chunked in &all(0).0[..3] {
        put(&mut replica, chunked).unwrap();
    }
    let mut replica = place_again(&place, replica);
    let other = Plan { tip: Some(Generation::zfs(9)), ..full.clone() };
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

/// A file has no name for its content, so its first copy goes on whatever became of it.
#[test]
fn a_first_copy_of_what_became_shorter_starts_over() {
    let place = place();
    let mut replica = place.open();
    replica.checkpoint_every(CHUNK_LEN);
    starts_over_when_shorter(&place, replica, &plan(PlanKind::Full, None, 1));
}

/// So it is with a scan of one that became shorter than what had come.
#[test]
fn a_scan_of_what_became_shorter_starts_over() {
    let place = place();
    let mut replica = place.open();
    let content = Generation::content(Root([8; 32]));
    let full = Plan { tip: Some(content), ..plan(PlanKind::Full, None, 1) };
    deliver(&mut replica, full, &whole(&pattern(3, 4 * CHUNK)), 4 * CHUNK_LEN).unwrap();
    starts_over_when_shorter(&place, replica, &plan(PlanKind::Scan, None, 2));
}

/// Cuts a session off after three of four chunks, and has it go on with two.
fn starts_over_when_shorter(place: &Place, mut replica: Replica<FileDisk>, plan: &Plan) {
    let volume = pattern(4, 4 * CHUNK);
    let of = |size: u64| Plan { tip: None, size: Some(size), ..plan.clone() };
    replica.begin(&offer(of(4 * CHUNK_LEN))).unwrap();
    let key = key(&replica);
    for chunked in &items(&key, PlanKind::Full, &whole(&volume), 4 * CHUNK_LEN, 0).0[..3] {
        put(&mut replica, chunked).unwrap();
    }
    replica.mark(3).unwrap();
    let mut replica = place_again(place, replica);
    assert_eq!(replica.state().resume.unwrap().from, 3);
    let size = CHUNK_LEN + 512;
    assert_eq!(replica.begin(&offer(of(size))).unwrap().from, 0);
    let short = &volume[..size as usize];
    let (items, root) = items(&key, PlanKind::Full, &whole(short), size, 0);
    for chunked in &items {
        put(&mut replica, chunked).unwrap();
    }
    let tip = Generation::content(root.unwrap());
    replica.commit(&Finish { tip, size: Some(size), root }).unwrap();
    assert!(fs::read(&place.path).unwrap() == short);
}

/// So it is with a scan of a volume that changed where something had come ahead of the rest: the run
/// that goes on is refused, and the next one starts over.
#[test]
fn a_scan_of_what_changed_ahead_of_its_watermark_starts_over() {
    let place = place();
    let mut replica = place.open();
    let full = plan(PlanKind::Full, None, 1);
    deliver(&mut replica, full, &whole(&pattern(3, 4 * CHUNK)), 4 * CHUNK_LEN).unwrap();
    let of = Plan { tip: None, size: Some(4 * CHUNK_LEN), ..plan(PlanKind::Scan, Some(1), 2) };
    replica.begin(&offer(of.clone())).unwrap();
    let key = key(&replica);
    let volume = [pattern(4, 4 * CHUNK), pattern(5, 4 * CHUNK)];
    let [then, now] =
        volume.map(|bytes| items(&key, PlanKind::Full, &whole(&bytes), 4 * CHUNK_LEN, 0).0);
    for chunked in [&then[0], &then[3]] {
        put(&mut replica, chunked).unwrap();
    }
    replica.mark(1).unwrap();
    let mut replica = place_again(&place, replica);
    assert_eq!(replica.begin(&offer(of.clone())).unwrap().from, 1);
    let error = put(&mut replica, &now[3]).unwrap_err();
    assert_eq!(error.reason(), Reason::ResumeMismatch, "{error}");
    let mut replica = place_again(&place, replica);
    assert_eq!(replica.state().resume, None);
    assert_eq!(replica.begin(&offer(of)).unwrap().from, 0);
    put(&mut replica, &now[3]).unwrap();
}

/// So it is with a first copy below whose watermark something else stands now.
#[test]
fn a_first_copy_on_another_disk_starts_over() {
    let volume = pattern(7, 2 * CHUNK);
    let place = place();
    let plan = Plan { size: Some(2 * CHUNK_LEN), ..plan(PlanKind::Full, None, 1) };
    let mut replica = place.open();
    replica.checkpoint_every(CHUNK_LEN);
    replica.begin(&offer(plan.clone())).unwrap();
    let key = key(&replica);
    let (items, root) = items(&key, PlanKind::Full, &whole(&volume), 2 * CHUNK_LEN, 0);
    for chunked in &items {
        put(&mut replica, chunked).unwrap();
    }
    drop(replica);
    fs::write(&place.path, vec![1; 2 * CHUNK]).unwrap();
    let mut replica = place.open();
    assert_eq!(replica.begin(&offer(plan.clone())).unwrap().from, 2);
    let tip = plan.tip.unwrap();
    let finish = Finish { tip, size: Some(2 * CHUNK_LEN), root };
    let error = replica.commit(&finish).unwrap_err();
    assert_eq!(error.reason(), Reason::VerifyFailed, "{error}");
    let mut replica = place_again(&place, replica);
    assert_eq!(replica.begin(&offer(plan)).unwrap().from, 0);
    for chunked in &items {
        put(&mut replica, chunked).unwrap();
    }
    replica.commit(&finish).unwrap();
    assert!(fs::read(&place.path).unwrap() == volume);
}

#[test]
fn a_scan_compares_spans_first() {
    let volume = pattern(3, 5 * CHUNK + 99);
    let place = place();
    let mut replica = place.open();
    let content = Generation::content(Root([8; 32]));
    let size = volume.len() as u64;
    let full = Plan { tip: Some(content), ..plan(PlanKind::Full, None, 1) };
    deliver(&mut replica, full, &whole(&volume), size).unwrap();
    replica.begin(&offer(plan(PlanKind::Scan, None, 2))).unwrap();
    let chunk_key = key(&replica);
    let span = |volume: &[u8], chunks: std::ops::Range<usize>| {
        let mut tree = TreeHasher::new(&chunk_key);
        let mut padded = volume.to_vec();
        padded.resize(6 * CHUNK, 0);
        let ids = padded.chunks(CHUNK).map(|chunk| chunk_key.id(chunk));
        ids.take(chunks.end).skip(chunks.start).for_each(|id| tree.push(id));
        let (index, count) = (chunks.start as u64, chunks.len() as u64);
        Item::Span { index, count, digest: tree.into_node() }
    };
    let mut other = volume.clone();
    other[3 * CHUNK] ^= 1;
    let (same, different) = (span(&volume, 0..6), span(&other, 0..6));
    let beyond = Item::Span { index: 4096, count: 4096, digest: ChunkId::ZERO };
    let asked = [same, different, beyond];
    assert_eq!(
        replica.missing(&asked).unwrap(),
        [Missing::Nothing, Missing::All, Missing::Nothing]
    );
    // Where in it they differ.
    let parts = [0..2, 2..4, 3..4, 4..6].map(|chunks| span(&other, chunks));
    let missing = replica.missing(&parts).unwrap();
    assert_eq!(missing, [Missing::Nothing, Missing::All, Missing::All, Missing::Nothing]);
    fs::OpenOptions::new()
        .write(true)
        .open(&place.path)
        .and_then(|file| file.write_all_at(b"x", CHUNK_LEN))
        .unwrap();
    assert_eq!(replica.missing(&[same]).unwrap_err().reason(), Reason::TargetModified);
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

    // It is read as it was opened: what is added does not count, what is cut off is missed.
    file.set_len(2 << 30).unwrap();
    assert_eq!(Volume::size(&disk), 1 << 30);
    assert_eq!(Volume::next_data(&disk, 1 << 29).unwrap(), None);
    file.set_len((1 << 20) + 5).unwrap();
    assert_eq!(Volume::size(&disk), 1 << 30);
    assert!(Volume::next_data(&disk, 1 << 29).is_err(), "a missing end is no hole");
    assert!(Volume::read_at(&disk, 1 << 20, &mut bytes).is_err());
}

#[test]
fn of_a_narrowed_item_only_what_differs_is_journaled() {
    let mut volume = pattern(3, 4 * CHUNK);
    let place = Place::holding(&volume);
    volume[CHUNK + 5000] ^= 1;
    let changes = [Change::Data { offset: CHUNK_LEN, bytes: volume[CHUNK..2 * CHUNK].to_vec() }];
    let next = plan(PlanKind::Incremental, Some(1), 2);
    let mut replica = place.open();
    replica.begin(&offer(next.clone())).unwrap();
    let (items, _) = items(&key(&replica), PlanKind::Incremental, &changes, 4 * CHUNK_LEN, 0);
    assert_eq!(put(&mut replica, &items[0]).unwrap(), GRAIN_LEN);
    assert_eq!(fs::metadata(place.book("journal")).unwrap().len(), 8192 + 152 + GRAIN_LEN);
    replica.mark(2).unwrap();
    // A session that was cut off goes on with it.
    let mut replica = place_again(&place, replica);
    assert_eq!(replica.begin(&offer(next)).unwrap().from, 2);
    replica.commit(&Finish { tip: Generation::zfs(2), size: None, root: None }).unwrap();
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
    assert!(fs::read(&place.path).unwrap() == volume);
}

#[test]
fn grains_that_do_not_make_an_item_are_no_harm() {
    let mut volume = pattern(3, 2 * CHUNK);
    let place = Place::holding(&volume);
    volume[7] ^= 1;
    volume[CHUNK - 7] ^= 1;
    let changes = [Change::Data { offset: 0, bytes: volume[..CHUNK].to_vec() }];
    let next = plan(PlanKind::Incremental, Some(1), 2);
    let mut replica = place.open();
    replica.begin(&offer(next)).unwrap();
    let (items, _) = items(&key(&replica), PlanKind::Incremental, &changes, 2 * CHUNK_LEN, 0);
    let Chunked { item, data } = &items[0];
    assert!(matches!(replica.missing(&[*item]).unwrap()[..], [Missing::Unlike(_)]));
    // As if the hashes of the last grain were the same.
    assert!(!replica.patch(item, GrainMask(1), &data[..4096]).unwrap());
    // Nothing is kept of it: it does not come twice, and nothing is made of it.
    assert!(!replica.patch(item, GrainMask(1 << 15), &data[CHUNK - 4096..]).unwrap());
    replica.apply(item, Some(data)).unwrap();
    replica.commit(&Finish { tip: Generation::zfs(2), size: None, root: None }).unwrap();
    assert!(fs::read(&place.path).unwrap() == volume);
    drop(replica);
    // More or less than the grains have is no mistake of a hash.
    for len in [4095, 4097] {
        let mut replica = place.open();
        replica.begin(&offer(plan(PlanKind::Incremental, Some(2), 3))).unwrap();
        let (data, zero, id) = (BlockMask::ALL, BlockMask::NONE, ChunkId([5; 32]));
        let whole = Item::Chunk { index: 0, data, zero, id };
        replica.missing(&[whole]).unwrap();
        let error = replica.patch(&whole, GrainMask(1), &vec![0; len]).unwrap_err();
        assert_eq!(error.reason(), Reason::StreamDamaged);
    }
}

/// It is the volume that something else has changed, and no disk that fails.
#[test]
fn a_volume_that_is_cut_short_while_it_is_open_is_modified() {
    let base = pattern(3, 4 * CHUNK);
    let place = Place::holding(&base);
    let mut replica = place.open();
    let volume = std::fs::File::options().write(true).open(&place.path).unwrap();
    volume.set_len(CHUNK as u64 / 2).unwrap();
    let changes = [Change::Data { offset: 2 * CHUNK as u64, bytes: pattern(9, CHUNK) }];
    let plan = plan(PlanKind::Incremental, Some(1), 2);
    let error = deliver(&mut replica, plan, &changes, base.len() as u64).unwrap_err();
    assert_eq!(error.reason(), Reason::TargetModified, "{error}");
}
