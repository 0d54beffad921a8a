//! What a replica does not do, and that it changes nothing by not doing it.

mod common;

use std::fs;

use driftline_chunking::{Chunked, TreeHasher};
use driftline_extent::{
    BlockMask, CHUNK_LEN, Change, ChunkId, Explained, Finish, Generation, Item, Missing, Offer,
    Plan, PlanKind, Reason, Root, Target, VolumeId,
};
use driftline_target::{Options, Problem, inspect, open};

use common::{
    power::{self, Power},
    *,
};

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
    replica.commit(&Finish { tip: Generation::zfs(2), size, root }).unwrap();
    assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
    assert!(fs::read(&place.path).unwrap() == content);
}

#[test]
fn what_was_made_for_nothing_is_taken_away() {
    let dir = tempfile::TempDir::new().unwrap();
    let listing = || fs::read_dir(dir.path()).unwrap().count();
    let path = dir.path().join("replica.img");
    let create = Options { create: true, ..Options::default() };
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
    let options = Options::default();
    let error = driftline_target::open(&linked, &options).unwrap_err();
    assert_eq!(error.reason(), Reason::TargetBusy);
    let symbolic = place.path.with_file_name("symbolic.img");
    std::os::unix::fs::symlink(&place.path, &symbolic).unwrap();
    let error = driftline_target::open(&symbolic, &options).unwrap_err();
    assert_eq!(error.reason(), Reason::TargetBusy);
    let state = first.state();
    drop(first);
    assert_eq!(driftline_target::open(&symbolic, &options).unwrap().state(), state);
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
        (plan(PlanKind::Full, Some(7), 8), Reason::BaseMismatch),
        (plan(PlanKind::Scan, None, 8), Reason::BaseMismatch),
        (plan(PlanKind::UpToDate, None, 1), Reason::StreamDamaged),
        (plan(PlanKind::Stream, Some(1), 8), Reason::Unsupported),
        (plan(PlanKind::Stream, None, 8), Reason::Unsupported),
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
    assert_eq!(replica.state().generation, Some(Generation::zfs(1)));
}

/// A source that shows only streams compares by one of all of it, from what the target holds.
#[test]
fn a_whole_copy_of_the_same_volume_is_a_comparison() {
    let mut volume = pattern(3, 4 * CHUNK + 700);
    let place = Place::holding(&volume);
    volume[2 * CHUNK + 5] ^= 1;
    let size = volume.len() as u64;
    let mut replica = place.open();
    let moved = deliver(&mut replica, plan(PlanKind::Full, Some(1), 2), &whole(&volume), size);
    // The grain that differs, and nothing else.
    assert_eq!(moved.unwrap(), 4096);
    drop(replica);
    assert_eq!(fs::read(&place.path).unwrap(), volume);
    // What is not as it was committed is nobody's to overwrite.
    volume[9] ^= 1;
    fs::write(&place.path, &volume).unwrap();
    let mut replica = place.open();
    let error = deliver(&mut replica, plan(PlanKind::Full, Some(2), 3), &whole(&volume), size);
    assert_eq!(error.unwrap_err().reason(), Reason::TargetModified);
    assert_eq!(fs::read(&place.path).unwrap(), volume);
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

/// The newer state rots away while an increment waits in the journal to be completed. The replica is
/// copied anew then, and its epochs come a second time: what waited is of another base.
#[test]
fn a_journal_of_a_state_that_was_lost_is_not_completed() {
    let (base, other) = (pattern(3, 3 * CHUNK), pattern(7, 3 * CHUNK));
    let size = base.len() as u64;
    let opened = |power: &Power| power::opened(power).unwrap();
    let start = Power::default();
    deliver(&mut opened(&start), plan(PlanKind::Full, None, 1), &whole(&base), size).unwrap();
    start.crash(0);
    let changes = [Change::Data { offset: CHUNK_LEN, bytes: pattern(5, CHUNK) }];
    let next = plan(PlanKind::Incremental, Some(1), 2);
    let whole_run = start.fork();
    let before = whole_run.operations();
    deliver(&mut opened(&whole_run), next.clone(), &changes, size).unwrap();
    let mut waited = 0;
    for stop in 0..=whole_run.operations() - before {
        let power = start.fork();
        let mut replica = opened(&power);
        power.stop_after(stop);
        let _ = deliver(&mut replica, next.clone(), &changes, size);
        drop(replica);
        power.crash(0);
        let sealed = power.content("journal").get(4096..4104) == Some(b"DRIFTSL\n");
        // The state that the first copy was begun with is the other one.
        power.change("state", |bytes| bytes[200] ^= 1);
        let mut replica = opened(&power);
        if replica.state().generation.is_some() {
            // The increment was committed to that other slot.
            continue;
        }
        waited += u32::from(sealed);
        deliver(&mut replica, plan(PlanKind::Full, None, 9), &whole(&other), size).unwrap();
        drop(replica);
        power.crash(0);
        let mut replica = opened(&power);
        assert_eq!(replica.state().generation, Some(Generation::zfs(9)), "stop {stop}");
        assert!(replica.verify(&mut |_| {}).unwrap().is_clean(), "stop {stop}");
        drop(replica);
        assert!(power.content("volume") == other, "stop {stop}");
    }
    assert!(waited > 0);
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
    assert_eq!(replica.state().generation, Some(Generation::zfs(1)));
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
    assert_eq!(seen.state.generation, Some(Generation::zfs(1)));
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
    assert_eq!(replica.missing(&[item]).unwrap(), [Missing::All]);
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
    let finish = Finish { tip: Generation::zfs(2), size: None, root: Some(Root([1; 32])) };
    let error = replica.commit(&finish).unwrap_err();
    assert_eq!(error.reason(), Reason::RootMismatch);
    drop(replica);
    assert!(fs::read(&place.path).unwrap() == volume);
    let replica = place.open();
    assert_eq!(replica.state().generation, Some(Generation::zfs(1)));
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
        assert_eq!(replica.missing(&[item]).unwrap_err().reason(), Reason::StreamDamaged);
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
    let finish = Finish { tip: Generation::zfs(2), size: None, root: None };
    assert_eq!(replica.commit(&finish).unwrap_err().reason(), Reason::StreamDamaged);
}

/// What descends from what the replica holds is scanned over it without consent; nothing else.
#[test]
fn a_scan_from_the_generation_held_is_admitted() {
    let volume = pattern(3, 2 * CHUNK);
    let place = Place::holding(&volume);
    let before = place.everything();
    for base in [None, Some(2)] {
        let mut replica = place.open();
        let error = replica.begin(&offer(plan(PlanKind::Scan, base, 3))).unwrap_err();
        assert_eq!(error.reason(), Reason::BaseMismatch, "{base:?}");
    }
    assert!(place.everything() == before);
    let mut replica = place.open();
    replica.begin(&offer(plan(PlanKind::Scan, Some(1), 3))).unwrap();
    let other = pattern(4, 2 * CHUNK);
    let mut tree = TreeHasher::new(&key(&replica));
    for (index, bytes) in (0..).zip(other.chunks(CHUNK)) {
        let id = key(&replica).id(bytes);
        tree.push(id);
        let (data, zero) = (BlockMask::ALL, BlockMask::NONE);
        let item = Item::Chunk { index, data, zero, id };
        assert!(matches!(replica.missing(&[item]).unwrap()[..], [Missing::Unlike(_)]));
        replica.apply(&item, Some(bytes)).unwrap();
    }
    let size = other.len() as u64;
    let root = tree.into_root(size);
    let tip = Generation::zfs(3);
    let finish = Finish { tip, size: Some(size), root: Some(root) };
    assert_eq!(replica.commit(&finish).unwrap().generation, tip);
    assert!(fs::read(&place.path).unwrap() == other);
}

/// Writes over some bytes of the replica, behind its back.
fn meddle(place: &Place, offset: u64) {
    let file = fs::OpenOptions::new().write(true).open(&place.path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"somebody else's", offset).unwrap();
}

#[test]
fn what_a_new_end_would_cut_off_is_compared_first() {
    let mut content = pattern(3, 5 * CHUNK);
    content[3 * CHUNK..4 * CHUNK].fill(0);
    for chunk in [3, 4] {
        let place = Place::holding(&content);
        meddle(&place, chunk * CHUNK_LEN + 99);
        let before = fs::read(&place.path).unwrap();
        let shrunk = Plan { size: Some(2 * CHUNK_LEN), ..plan(PlanKind::Incremental, Some(1), 2) };
        let error = deliver(&mut place.open(), shrunk, &[], 2 * CHUNK_LEN).unwrap_err();
        assert!(matches!(error.problem, Problem::Modified { .. }), "{error}");
        assert!(fs::read(&place.path).unwrap() == before);
        assert_eq!(place.open().state().generation, Some(Generation::zfs(1)));
    }
}

#[test]
fn what_was_written_between_two_sessions_of_an_increment_is_noticed() {
    let place = Place::holding(&pattern(3, 3 * CHUNK));
    let next = plan(PlanKind::Incremental, Some(1), 2);
    let data = Change::Data { offset: 0, bytes: pattern(9, CHUNK) };
    let zeros = Change::Zero(driftline_extent::Extent::new(CHUNK_LEN, CHUNK_LEN).unwrap());
    for offset in [7, CHUNK_LEN + 7] {
        let mut replica = place.open();
        let held = fs::read(&place.path).unwrap();
        assert_eq!(replica.begin(&offer(next.clone())).unwrap().from, 0);
        let changes = [data.clone(), zeros.clone()];
        for chunked in &items(&key(&replica), PlanKind::Incremental, &changes, 3 * CHUNK_LEN, 0).0 {
            put(&mut replica, chunked).unwrap();
        }
        replica.mark(2).unwrap();
        drop(replica);
        meddle(&place, offset);
        let before = fs::read(&place.path).unwrap();
        let error = place.open().begin(&offer(next.clone())).unwrap_err();
        assert!(matches!(error.problem, Problem::Modified { .. }), "{error}");
        assert!(fs::read(&place.path).unwrap() == before);
        fs::write(&place.path, held).unwrap();
    }
    // Put back, the increment starts over and is completed.
    let moved = deliver(&mut place.open(), next, &[data], 3 * CHUNK_LEN).unwrap();
    assert_eq!(moved, CHUNK_LEN);
}
