//! What an increment may make zero or cut off, of every kind of plan.

mod common;

use common::{CHUNK, Place, deliver, deliver_all, pattern, plan};
use driftline_extent::{Change, Explained, Extent, Finish, PlanKind, Reason, Target};

/// All of a small volume, by an increment and by a whole copy over what it starts from.
#[test]
fn a_volume_is_not_emptied_by_any_plan() {
    let base = pattern(3, 3 * CHUNK);
    let size = base.len() as u64;
    let zeros = [Change::Zero(Extent::new(0, size).unwrap())];
    for kind in [PlanKind::Incremental, PlanKind::Full] {
        for new_size in [size, 0] {
            let place = Place::holding(&base);
            let changes = if new_size == 0 { &[][..] } else { &zeros };
            let mut replica = place.open();
            replica.limit_loss(50);
            let error = deliver(&mut replica, plan(kind, Some(1), 2), changes, new_size);
            let error = error.unwrap_err();
            assert_eq!(error.reason(), Reason::SourceEmptied, "{kind:?} {new_size}: {error}");
            drop(replica);
            let mut replica = place.open();
            assert!(replica.verify(&mut |_| {}).unwrap().is_clean());
            assert!(std::fs::read(&place.path).unwrap() == base);
            // With another limit, or none, the same is taken, and counted.
            replica.limit_loss(100);
            let (_, committed) =
                deliver_all(&mut replica, plan(kind, Some(1), 2), changes, new_size).unwrap();
            assert_eq!(committed.zeroed, Some(size), "{kind:?} {new_size}");
        }
    }
}

/// The share counts, however small the volume is, and what comes makes up for nothing that goes.
#[test]
fn no_more_than_the_share_may_go() {
    let base = pattern(3, 4 * CHUNK);
    let size = base.len() as u64;
    let place = Place::holding(&base);
    let zero = |chunks: u64| Change::Zero(Extent::new(0, chunks * CHUNK as u64).unwrap());
    let mut replica = place.open();
    replica.limit_loss(50);
    let next = plan(PlanKind::Incremental, Some(1), 2);
    let (_, committed) = deliver_all(&mut replica, next, &[zero(2)], size).unwrap();
    assert_eq!(committed.zeroed, Some(2 * CHUNK as u64));
    drop(replica);
    // Both chunks that are left, and one that is new.
    let moved = [
        Change::Data { offset: 0, bytes: pattern(9, CHUNK) },
        Change::Zero(Extent::new(2 * CHUNK as u64, 2 * CHUNK as u64).unwrap()),
    ];
    for (limit, done) in [(99, false), (100, true)] {
        let mut replica = place.open();
        replica.limit_loss(limit);
        let moved = deliver(&mut replica, plan(PlanKind::Incremental, Some(2), 3), &moved, size);
        assert_eq!(moved.is_ok(), done, "{limit}: {moved:?}");
    }
}

/// What was refused is still there to be gone on with, and is refused again.
#[test]
fn what_was_refused_is_refused_when_it_goes_on() {
    let base = pattern(3, 3 * CHUNK);
    let size = base.len() as u64;
    let place = Place::holding(&base);
    let zeros = [Change::Zero(Extent::new(0, size).unwrap())];
    let next = || plan(PlanKind::Incremental, Some(1), 2);
    let mut replica = place.open();
    replica.limit_loss(50);
    replica.begin(&common::offer(next())).unwrap();
    let (items, _) = common::items(&common::key(&replica), PlanKind::Incremental, &zeros, size, 0);
    for chunked in &items {
        common::put(&mut replica, chunked).unwrap();
    }
    replica.mark(3).unwrap();
    drop(replica);
    for _ in 0..2 {
        let mut replica = place.open();
        replica.limit_loss(50);
        let begun = replica.begin(&common::offer(next())).unwrap();
        assert_eq!(begun.from, 3, "all of it has come");
        let tip = next().tip.unwrap();
        let error = replica.commit(&Finish { tip, size: Some(size), root: None }).unwrap_err();
        assert_eq!(error.reason(), Reason::SourceEmptied, "{error}");
    }
    assert!(std::fs::read(&place.path).unwrap() == base);
}
