//! Damage at rest: what a scrub finds, what it puts right by itself, and what it lets the source
//! replace.

mod common;

use std::{collections::BTreeSet, fs, sync::Arc};

use common::{
    CHUNK, Place, deliver, key, naive_root, offer, pattern, plan,
    power::{Power, opened},
    whole,
};
use driftline_chunking::TreeHasher;
use driftline_extent::{
    CHUNK_LEN, Change, Explained, Generation, Item, Missing, Offer, PlanKind, Reason, Target,
    TargetState, chunk_count,
};
use driftline_target::{
    Disk, Index, Options, Replica, ScrubReport, TargetError, inspect, open, state_dir_of,
};

const NOW: u64 = 1_800_000_000_000;

/// Twelve chunks: the third is zero, the fifth is the second again, the last is cut.
fn volume() -> Vec<u8> {
    let mut volume = pattern(1, 11 * CHUNK + 3000);
    volume[2 * CHUNK..3 * CHUNK].fill(0);
    volume.copy_within(CHUNK..2 * CHUNK, 4 * CHUNK);
    volume
}

fn scrub<D: Disk>(replica: &mut Replica<D>, repair: bool) -> ScrubReport {
    replica.scrub(repair, NOW, &mut |_| {}).unwrap()
}

/// Offset and length of each extent that was named.
fn named(report: &ScrubReport) -> Vec<(usize, usize)> {
    let extents = report.found.damaged.iter();
    extents.map(|extent| (extent.offset() as usize, extent.len() as usize)).collect()
}

fn change(place: &Place, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(&place.path).unwrap();
    change(&mut bytes);
    fs::write(&place.path, bytes).unwrap();
}

fn holds(place: &Place, expected: &[u8]) {
    assert!(fs::read(&place.path).unwrap() == expected, "the replica has other bytes");
    assert!(place.open().verify(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn a_clean_replica_is_told_and_dated() {
    let place = Place::holding(&volume());
    let at = |place: &Place| inspect(&place.path, None).unwrap().unwrap().scrubbed_ms;
    assert_eq!(at(&place), None);
    let mut replica = place.open();
    let mut read = Vec::new();
    let report = replica.scrub(true, NOW, &mut |offset| read.push(offset)).unwrap();
    assert!(report.is_clean() && report.is_whole());
    assert_eq!(read.last(), Some(&(volume().len() as u64)));
    assert_eq!((at(&place), replica.scrubbed_ms()), (Some(NOW), Some(NOW)));
    // The time stays when the next generation comes.
    let changes = [Change::Data { offset: 0, bytes: pattern(9, CHUNK) }];
    let size = volume().len() as u64;
    deliver(&mut replica, plan(PlanKind::Incremental, Some(1), 2), &changes, size).unwrap();
    drop(replica);
    assert_eq!(at(&place), Some(NOW));
}

#[test]
fn a_replica_that_is_not_complete_has_nothing_to_be_compared_with() {
    let place = common::place();
    let error = place.open().scrub(true, NOW, &mut |_| {}).unwrap_err();
    assert_eq!(error.reason(), Reason::NotConsistent, "{error}");
}

#[test]
fn every_flipped_bit_is_found_and_named() {
    let volume = volume();
    for at in (0..volume.len()).step_by(9973).chain([volume.len() - 1]) {
        let place = Place::holding(&volume);
        change(&place, |bytes| bytes[at] ^= 0x10);
        let before = place.everything();
        let report = scrub(&mut place.open(), false);
        let chunk = at / CHUNK * CHUNK;
        assert_eq!(named(&report), [(chunk, CHUNK.min(volume.len() - chunk))]);
        assert_eq!((report.left(), report.repaired, report.awaited), (1, 0, 0));
        assert!(!report.is_clean() && !report.is_whole() && report.found.root_matches);
        // Nothing was agreed to: nothing is changed, and nothing is remembered in the books.
        assert!(place.everything()[..] == before[..], "byte {at}");
        assert!(!place.open().state().damaged);
    }
}

#[test]
fn outside_writes_are_found_and_named() {
    let place = Place::holding(&volume());
    change(&place, |bytes| bytes[3 * CHUNK - 700..6 * CHUNK + 9].fill(0xee));
    let report = scrub(&mut place.open(), false);
    assert_eq!(named(&report), [(2 * CHUNK, 5 * CHUNK)]);
    assert_eq!(report.found.damaged_chunks, 5);
}

#[test]
fn another_length_is_found_named_and_put_right() {
    let volume = volume();
    let cut = 10 * CHUNK + 17;
    let place = Place::holding(&volume);
    change(&place, |bytes| bytes.truncate(cut));
    let report = scrub(&mut place.open(), false);
    assert!(!report.found.size_matches && report.found.size_found == cut as u64);
    assert_eq!(named(&report), [(10 * CHUNK, CHUNK + 3000)]);
    // Of what was cut off nothing is elsewhere: it has to come from the source.
    let report = scrub(&mut place.open(), true);
    assert!(report.size_repaired && !report.is_whole());
    assert_eq!((report.repaired, report.awaited), (0, 2));
    replaced(&place, &volume, 1);
    // What was added is not part of the volume.
    change(&place, |bytes| bytes.extend([7; 100_000]));
    assert!(!scrub(&mut place.open(), false).is_clean());
    let report = scrub(&mut place.open(), true);
    assert!(report.is_whole() && !report.is_clean() && report.size_repaired);
    holds(&place, &volume);
}

#[test]
fn a_damaged_list_is_told_apart_and_written_anew() {
    let volume = volume();
    for (at, flip) in [(5, 1), (2 * 32 + 9, 0x80), (11 * 32 + 31, 4)] {
        let place = Place::holding(&volume);
        let ids = place.book("ids");
        let damage = |ids: &std::path::Path| {
            let mut bytes = fs::read(ids).unwrap();
            bytes.resize(12 * 32, 0);
            bytes[at] ^= flip;
            fs::write(ids, bytes).unwrap();
        };
        damage(&ids);
        let report = scrub(&mut place.open(), false);
        assert!(!report.found.root_matches && report.only_list && !report.is_whole());
        assert_eq!(named(&report)[0].0, at / 32 * CHUNK, "the entry that is damaged");
        let report = scrub(&mut place.open(), true);
        assert!(report.list_repaired && report.is_whole() && report.left() == 0);
        holds(&place, &volume);
        // With damage in both, nothing says which is which: nothing is touched.
        damage(&ids);
        change(&place, |bytes| bytes[7 * CHUNK] ^= 1);
        let before = fs::read(&place.path).unwrap();
        let report = scrub(&mut place.open(), true);
        assert!(!report.only_list && !report.is_whole());
        assert_eq!((report.repaired, report.awaited, report.left()), (0, 0, 2));
        assert!(fs::read(&place.path).unwrap() == before);
    }
    // A list that is gone.
    let place = Place::holding(&volume);
    fs::write(place.book("ids"), []).unwrap();
    assert!(scrub(&mut place.open(), true).is_whole());
    holds(&place, &volume);
}

#[test]
fn what_the_replica_has_twice_and_zeros_are_put_right_here() {
    let volume = volume();
    let place = Place::holding(&volume);
    change(&place, |bytes| {
        bytes[4 * CHUNK + 5] ^= 1;
        bytes[2 * CHUNK + 5] ^= 1;
    });
    let mut replica = place.open();
    let before = replica.state();
    let report = scrub(&mut replica, true);
    assert_eq!((report.repaired, report.awaited, report.left()), (2, 0, 0));
    assert!(report.is_whole() && !report.is_clean());
    assert_eq!(replica.state(), before, "it is at the same generation");
    assert_eq!(replica.scrubbed_ms(), None);
    drop(replica);
    holds(&place, &volume);
    assert!(scrub(&mut place.open(), true).is_clean());
}

/// An index over replicas in a folder.
fn indexed(
    dir: &std::path::Path,
    name: &str,
    index: &Arc<Index>,
) -> Replica<driftline_target::FileDisk> {
    let options = Options { create: true, index: Some(index.clone()), ..Options::default() };
    open(&dir.join(name), &options).unwrap()
}

#[test]
fn what_another_replica_has_is_put_right_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let volume = volume();
    let index = Arc::new(Index::open(&dir.join("index"), &[]).unwrap());
    let size = volume.len() as u64;
    for name in ["first", "second"] {
        let mut replica = indexed(dir, name, &index);
        deliver(&mut replica, plan(PlanKind::Full, None, 1), &whole(&volume), size).unwrap();
    }
    // Whichever of them the index names first.
    for name in ["first", "second", "first"] {
        let path = dir.join(name);
        let mut bytes = volume.clone();
        bytes[7 * CHUNK..9 * CHUNK].fill(3);
        bytes[size as usize - 1] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let mut replica = indexed(dir, name, &index);
        let report = scrub(&mut replica, true);
        assert_eq!((report.repaired, report.awaited), (3, 0), "{name}");
        assert!(report.is_whole());
        drop(replica);
        assert!(fs::read(&path).unwrap() == volume);
    }
    // What is damaged in both is found in neither.
    for name in ["first", "second"] {
        let mut bytes = volume.clone();
        bytes[8 * CHUNK] ^= 1;
        fs::write(dir.join(name), &bytes).unwrap();
    }
    let mut replica = indexed(dir, "second", &index);
    let report = scrub(&mut replica, true);
    assert_eq!((report.repaired, report.awaited), (0, 1));
    assert!(replica.state().damaged);
    assert!(inspect(&dir.join("second"), None).unwrap().unwrap().state.damaged);
    assert!(state_dir_of(&dir.join("second")).join("repair").metadata().unwrap().len() > 0);
}

/// What a source sends that compares all: a scan by spans, or a whole copy of what the target
/// holds.
fn send_all<D: Disk>(
    replica: &mut Replica<D>,
    kind: PlanKind,
    volume: &[u8],
    tip: u64,
) -> Result<u64, TargetError> {
    let plan = plan(kind, Some(1), tip);
    if kind == PlanKind::Scan {
        // The digest of what the list says, which a source that has the same would send.
        replica.begin(&offer(plan.clone()))?;
        let key = key(replica);
        let mut tree = TreeHasher::new(&key);
        let mut padded = volume.to_vec();
        padded.resize(chunk_count(volume.len() as u64) as usize * CHUNK, 0);
        padded.chunks(CHUNK).for_each(|chunk| tree.push(key.id(chunk)));
        let count = tree.chunks();
        let span = Item::Span { index: 0, count, digest: tree.into_node() };
        let missing = replica.missing(&[span])?;
        assert_eq!(missing, [Missing::All], "a span with damage in it is never equal");
    }
    deliver(replica, plan, &whole(volume), volume.len() as u64)
}

/// The source's bytes come, and nothing is noted any more.
fn replaced(place: &Place, volume: &[u8], tip: u64) {
    let mut replica = place.open();
    assert!(replica.state().damaged);
    send_all(&mut replica, PlanKind::Scan, volume, tip).unwrap();
    let TargetState { generation, damaged, .. } = replica.state();
    assert_eq!((generation, damaged), (Some(Generation::zfs(tip)), false));
    drop(replica);
    assert_eq!(fs::read(place.book("repair")).unwrap(), b"");
    holds(place, volume);
}

fn damage(bytes: &mut [u8]) {
    bytes[CHUNK - 1] ^= 1;
    bytes[7 * CHUNK..8 * CHUNK].fill(0);
    bytes[11 * CHUNK + 2999] ^= 1;
}

#[test]
fn the_source_replaces_what_a_scrub_has_found() {
    let volume = volume();
    // As it was, with changes besides, with changes to what is damaged, and with the very bytes
    // that the damage has made.
    let mut next = volume.clone();
    next[5 * CHUNK..6 * CHUNK].fill(0x44);
    let mut over = next.clone();
    over[7 * CHUNK + 9..11 * CHUNK + 500].fill(0x55);
    let mut same = volume.clone();
    damage(&mut same);
    let mut zero = volume.clone();
    zero[6 * CHUNK..].fill(0);
    for (tip, content) in [(1, &volume), (2, &next), (2, &over), (2, &same), (2, &zero)] {
        for kind in [PlanKind::Scan, PlanKind::Full] {
            let place = Place::holding(&volume);
            change(&place, |bytes| damage(bytes));
            let report = scrub(&mut place.open(), true);
            assert_eq!((report.repaired, report.awaited, report.left()), (0, 3, 3));
            let mut replica = place.open();
            assert!(replica.state().damaged);
            let moved = send_all(&mut replica, kind, content, tip).unwrap();
            assert!(moved <= 8 * CHUNK_LEN, "{moved} bytes moved");
            let state = replica.state();
            assert_eq!((state.generation, state.damaged), (Some(Generation::zfs(tip)), false));
            assert_eq!(state.root, Some(naive_root(&key(&replica), content)));
            drop(replica);
            holds(&place, content);
        }
    }
}

#[test]
fn a_volume_that_became_shorter_leaves_its_damage_behind() {
    let volume = volume();
    for len in [11 * CHUNK + 1000, 7 * CHUNK + 300, 7 * CHUNK] {
        let place = Place::holding(&volume);
        change(&place, |bytes| damage(bytes));
        scrub(&mut place.open(), true);
        let mut replica = place.open();
        deliver(&mut replica, plan(PlanKind::Scan, Some(1), 2), &whole(&volume[..len]), len as u64)
            .unwrap();
        assert!(!replica.state().damaged);
        drop(replica);
        holds(&place, &volume[..len]);
    }
}

#[test]
fn what_nobody_has_agreed_to_is_refused_as_ever() {
    let volume = volume();
    // No scrub, and one that may not repair.
    for scrubbed in [false, true] {
        let place = Place::holding(&volume);
        change(&place, |bytes| damage(bytes));
        if scrubbed {
            scrub(&mut place.open(), false);
        }
        let before = fs::read(&place.path).unwrap();
        for kind in [PlanKind::Scan, PlanKind::Full] {
            let (mut replica, plan) = (place.open(), plan(kind, Some(1), 2));
            let done = deliver(&mut replica, plan, &whole(&volume), volume.len() as u64);
            assert_eq!(done.unwrap_err().reason(), Reason::TargetModified);
        }
        assert!(fs::read(&place.path).unwrap() == before);
    }
}

#[test]
fn what_changed_after_the_scrub_is_refused() {
    let volume = volume();
    // What was damaged changes again, or something else does.
    for at in [7 * CHUNK + 5, 9 * CHUNK] {
        let place = Place::holding(&volume);
        change(&place, |bytes| damage(bytes));
        scrub(&mut place.open(), true);
        change(&place, |bytes| bytes[at] ^= 1);
        let before = fs::read(&place.path).unwrap();
        let mut replica = place.open();
        let scan = plan(PlanKind::Scan, Some(1), 2);
        let error = deliver(&mut replica, scan, &whole(&volume), volume.len() as u64).unwrap_err();
        assert_eq!(error.reason(), Reason::TargetModified, "byte {at}: {error}");
        drop(replica);
        assert!(fs::read(&place.path).unwrap() == before);
    }
    // What was put right by somebody else is as good.
    let place = Place::holding(&volume);
    change(&place, |bytes| damage(bytes));
    scrub(&mut place.open(), true);
    fs::write(&place.path, &volume).unwrap();
    replaced(&place, &volume, 1);
}

/// An increment moves on over damage that it does not touch, and may replace what it tells whole.
#[test]
fn an_increment_leaves_the_rest_of_the_damage_noted() {
    let volume = volume();
    let place = Place::holding(&volume);
    change(&place, |bytes| damage(bytes));
    scrub(&mut place.open(), true);
    let changes = [
        Change::Data { offset: 5 * CHUNK_LEN, bytes: pattern(5, CHUNK) },
        Change::Data { offset: 7 * CHUNK_LEN, bytes: pattern(6, CHUNK) },
    ];
    let size = volume.len() as u64;
    let mut next = volume.clone();
    next[5 * CHUNK..6 * CHUNK].copy_from_slice(&pattern(5, CHUNK));
    next[7 * CHUNK..8 * CHUNK].copy_from_slice(&pattern(6, CHUNK));
    let mut replica = place.open();
    deliver(&mut replica, plan(PlanKind::Incremental, Some(1), 2), &changes, size).unwrap();
    assert!(replica.state().damaged);
    drop(replica);
    assert_eq!(named(&scrub(&mut place.open(), false)).len(), 2);
    // A part of a damaged chunk has no base.
    let changes = [Change::Data { offset: 512, bytes: vec![1; 512] }];
    let mut replica = place.open();
    let error = deliver(&mut replica, plan(PlanKind::Incremental, Some(2), 3), &changes, size);
    assert_eq!(error.unwrap_err().reason(), Reason::TargetModified);
    drop(replica);
    let mut replica = place.open();
    let scan = plan(PlanKind::Scan, Some(2), 3);
    deliver(&mut replica, scan, &whole(&next), size).unwrap();
    drop(replica);
    holds(&place, &next);
}

/// A world with a replica of [`volume`], some of it damaged.
fn damaged_world() -> Power {
    let power = Power::default();
    let mut replica = opened(&power).unwrap();
    let size = volume().len() as u64;
    deliver(&mut replica, plan(PlanKind::Full, None, 1), &whole(&volume()), size).unwrap();
    drop(replica);
    power.crash(0);
    power.change("volume", |bytes| {
        damage(bytes);
        bytes[4 * CHUNK] ^= 1;
        bytes[2 * CHUNK] ^= 1;
    });
    power
}

fn damages(power: &Power) -> u64 {
    opened(power).unwrap().verify(&mut |_| {}).unwrap().damaged_chunks
}

/// Whatever was cut off: the generation stands, no chunk became damaged that was not, and the scrub
/// can be done again.
#[test]
fn power_loss_at_every_operation_of_a_repair() {
    let start = damaged_world();
    let whole_run = start.fork();
    let before = whole_run.operations();
    assert_eq!(scrub(&mut opened(&whole_run).unwrap(), true).repaired, 2);
    let operations = whole_run.operations() - before;
    let mut kinds = BTreeSet::new();
    for stop in 0..=operations {
        for seed in 0..6 {
            let power = start.fork();
            power.stop_after(stop);
            let run = opened(&power).and_then(|mut r| r.scrub(true, NOW, &mut |_| {}));
            drop(run);
            power.crash(stop * 16 + seed);
            let found = damages(&power);
            assert!(found == 5 || found == 3, "stop {stop}, seed {seed}: {found} are damaged");
            kinds.insert(found);
            let state = opened(&power).unwrap().state();
            assert_eq!(state.generation, Some(Generation::zfs(1)));
            let again = scrub(&mut opened(&power).unwrap(), true);
            assert_eq!((again.repaired + 3, again.awaited), (found, 3), "stop {stop}, seed {seed}");
            power.crash(seed);
            let mut replica = opened(&power).unwrap();
            send_all(&mut replica, PlanKind::Scan, &volume(), 1).unwrap();
            drop(replica);
            power.crash(seed);
            assert!(power.content("volume") == volume(), "stop {stop}, seed {seed}");
        }
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [3, 5]);
}

#[test]
fn power_loss_at_every_operation_of_what_replaces_damage() {
    let start = damaged_world();
    scrub(&mut opened(&start).unwrap(), true);
    start.crash(0);
    let mut next = volume();
    next[5 * CHUNK..8 * CHUNK].fill(0x66);
    let whole_run = start.fork();
    let before = whole_run.operations();
    send_all(&mut opened(&whole_run).unwrap(), PlanKind::Scan, &next, 2).unwrap();
    for stop in 0..=whole_run.operations() - before {
        for seed in 0..4 {
            let power = start.fork();
            power.stop_after(stop);
            let run = opened(&power)
                .and_then(|mut replica| send_all(&mut replica, PlanKind::Scan, &next, 2));
            drop(run);
            power.crash(stop * 16 + seed);
            let mut replica = opened(&power).unwrap();
            let state = replica.state();
            if state.generation == Some(Generation::zfs(1)) {
                // The consent stands until something was committed.
                assert!(state.damaged, "stop {stop}, seed {seed}");
                send_all(&mut replica, PlanKind::Scan, &next, 2).unwrap();
            }
            assert!(!replica.state().damaged);
            drop(replica);
            power.crash(seed);
            assert!(power.content("volume") == next, "stop {stop}, seed {seed}");
            assert_eq!(damages(&power), 0);
        }
    }
}

/// An overwrite that was agreed to and cut off leaves either nothing that damage could be of, or the
/// list of it.
#[test]
fn power_loss_at_every_operation_of_taking_stock_of_damage() {
    let start = damaged_world();
    scrub(&mut opened(&start).unwrap(), true);
    start.crash(0);
    let consented = Offer { overwrite: true, ..offer(plan(PlanKind::Full, Some(1), 2)) };
    let whole_run = start.fork();
    let before = whole_run.operations();
    opened(&whole_run).unwrap().begin(&consented).unwrap();
    let mut kinds = BTreeSet::new();
    for stop in 0..=whole_run.operations() - before {
        for seed in 0..4 {
            let power = start.fork();
            power.stop_after(stop);
            let run = opened(&power).and_then(|mut replica| replica.begin(&consented));
            drop(run);
            power.crash(stop * 16 + seed);
            let mut replica = opened(&power).unwrap();
            let state = replica.state();
            let stands = state.generation.is_some();
            kinds.insert(stands);
            assert_eq!(state.damaged, stands, "stop {stop}, seed {seed}");
            if stands {
                send_all(&mut replica, PlanKind::Scan, &volume(), 2).unwrap();
                drop(replica);
                assert!(power.content("volume") == volume(), "stop {stop}, seed {seed}");
            }
        }
    }
    assert_eq!(kinds.len(), 2);
}

#[test]
fn what_cannot_be_read_is_damage_and_is_written_again() {
    let power = damaged_world();
    power.spoil(9 * CHUNK_LEN + 512..9 * CHUNK_LEN + 1024);
    let found = scrub(&mut opened(&power).unwrap(), false);
    assert_eq!(found.found.damaged_chunks, 6);
    assert!(found.found.damaged.contains(9 * CHUNK_LEN));
    let report = scrub(&mut opened(&power).unwrap(), true);
    assert_eq!((report.repaired, report.awaited), (2, 4));
    let mut replica = opened(&power).unwrap();
    send_all(&mut replica, PlanKind::Scan, &volume(), 1).unwrap();
    drop(replica);
    assert!(power.content("volume") == volume());
    assert!(scrub(&mut opened(&power).unwrap(), false).is_clean());
}
