//! What of our own may be destroyed.

use std::cmp::Reverse;

use super::OwnNames;
use crate::{listing::Point, name::PointName};

/// The snapshots and bookmarks that `own` names and that are needed no more, oldest first.
///
/// `committed` is the guid of the generation that the target holds. What is older than that
/// goes, but for the newest `keep` snapshots, of which held ones stay and count, and the newest
/// `MARKS_KEPT` bookmarks: a target that goes back to an older time, or comes back under another
/// name, is gone on with from one of them, and they take no space. What is not named
/// exactly as ours stays, as do all points of the committed guid, whatever is newer, which may
/// belong to another run, and everything if nothing of that guid is among the points: then
/// what is older cannot be told. Points of other data sets stay.
pub fn prune(points: &[Point], own: &OwnNames, committed: u64, keep: usize) -> Vec<PointName> {
    let unneeded = unneeded(points, own, committed, keep, MARKS_KEPT).into_iter();
    unneeded.filter(|point| !point.is_held()).map(|point| point.name.clone()).collect()
}

/// As many bookmarks as a run every 15 minutes makes in a day.
const MARKS_KEPT: usize = 96;

/// The snapshots that [`prune`] would name, were they not held.
pub fn held_back(points: &[Point], own: &OwnNames, committed: u64, keep: usize) -> Vec<PointName> {
    let unneeded = unneeded(points, own, committed, keep, MARKS_KEPT).into_iter();
    unneeded.filter(|point| point.is_held()).map(|point| point.name.clone()).collect()
}

/// What runs have left behind whose stream never arrived, oldest first: snapshots that `own`
/// names, newer than the generation `committed`, if the target holds any, and without a bookmark
/// of ours, which is made of all that arrived.
///
/// The newest stays: another run may have taken it just now. Held ones stay, as do those whose
/// guid is `needed`, as the target keeps a part of their stream. So failing runs leave one, and
/// not one more each.
pub fn left_behind(
    points: &[Point],
    own: &OwnNames,
    committed: Option<u64>,
    needed: &[u64],
) -> Vec<PointName> {
    let last = committed.map(|guid| points.iter().find(|point| point.guid == guid));
    // Where nothing of what the target holds is left, nothing can be told.
    let after = match last {
        Some(None) => return Vec::new(),
        Some(Some(last)) => Some(last.createtxg),
        None => None,
    };
    let arrived = |guid| points.iter().any(|p| !p.is_snapshot() && p.guid == guid && own.own(p));
    let mut left: Vec<&Point> = points
        .iter()
        .filter(|point| point.is_snapshot() && own.own(point))
        .filter(|point| after.is_none_or(|txg| point.createtxg > txg))
        .filter(|point| committed != Some(point.guid) && !arrived(point.guid))
        .collect();
    left.sort_by_key(|point| (point.createtxg, &point.name));
    left.pop();
    left.retain(|point| !point.is_held() && !needed.contains(&point.guid));
    left.into_iter().map(|point| point.name.clone()).collect()
}

/// What is needed no more, held or not, oldest first.
fn unneeded<'a>(
    points: &'a [Point],
    own: &OwnNames,
    committed: u64,
    keep: usize,
    marks: usize,
) -> Vec<&'a Point> {
    let Some(last) = points.iter().find(|point| point.guid == committed) else {
        return Vec::new();
    };
    let mut older: Vec<&Point> = points
        .iter()
        .filter(|point| point.name.dataset() == last.name.dataset())
        .filter(|point| point.createtxg < last.createtxg && point.guid != committed)
        .filter(|point| own.own(point))
        .collect();
    older.sort_by_key(|point| (Reverse(point.createtxg), &point.name));
    let (snapshots, bookmarks): (Vec<&Point>, Vec<&Point>) =
        older.into_iter().partition(|point| point.is_snapshot());
    let bookmarks = bookmarks.into_iter().skip(marks);
    let mut gone: Vec<&Point> = snapshots.into_iter().skip(keep).chain(bookmarks).collect();
    gone.sort_by_key(|point| (point.createtxg, &point.name));
    gone
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::select::{
        OwnPoint,
        testing::{names, point},
    };

    fn own(owner: u8) -> OwnNames {
        OwnNames::new("d", [owner; 4]).expect("it is a prefix")
    }

    fn snapshot(own: &OwnNames, taken: u64, guid: u64, createtxg: u64) -> Point {
        point(&format!("p/v@{}", own.snapshot(taken)), guid, createtxg)
    }

    fn bookmark(own: &OwnNames, guid: u64, createtxg: u64) -> Point {
        point(&format!("p/v#{}", own.bookmark(guid)), guid, createtxg)
    }

    #[test]
    fn only_what_is_ours_and_older_goes() {
        let (ours, theirs) = (own(1), own(2));
        let mut held = snapshot(&ours, 12, 12, 12);
        held.user_refs = Some(1);
        let points = [
            bookmark(&ours, 10, 10),
            snapshot(&ours, 11, 11, 11),
            held,
            snapshot(&theirs, 13, 13, 13),
            bookmark(&theirs, 10, 10),
            point("p/v@autosnap", 14, 14),
            // Named for another guid than it keeps.
            point(&format!("p/v#{}", ours.bookmark(11)), 15, 15),
            snapshot(&ours, 20, 20, 20),
            bookmark(&ours, 20, 20),
            snapshot(&ours, 30, 30, 30),
            bookmark(&ours, 30, 30),
            point(&format!("p/w@{}", ours.snapshot(1)), 1, 1),
        ];
        let expected = names(&points[..2]);
        let gone = |committed, keep| {
            let gone = prune_to(&points, &ours, committed, keep, 0);
            gone.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(gone(20, 0), expected);
        // The held one is the first that is kept.
        assert_eq!(gone(20, 1), expected);
        assert_eq!(gone(20, 2), expected[..1]);
        assert_eq!(gone(20, usize::MAX), expected[..1]);
        assert_eq!(gone(99, 0), [""; 0]);
        assert_eq!(gone(10, 0), [""; 0]);
    }

    #[test]
    fn what_failing_runs_left_goes_but_for_the_newest() {
        let (ours, theirs) = (own(1), own(2));
        let mut held = snapshot(&ours, 13, 13, 13);
        held.user_refs = Some(1);
        let points = [
            snapshot(&ours, 10, 10, 10),
            bookmark(&ours, 10, 10),
            snapshot(&ours, 11, 11, 11),
            snapshot(&ours, 12, 12, 12),
            held,
            snapshot(&theirs, 14, 14, 14),
            point("p/v@autosnap", 15, 15),
            snapshot(&ours, 16, 16, 16),
            // It arrived, though the target has gone since.
            snapshot(&ours, 17, 17, 17),
            bookmark(&ours, 17, 17),
            snapshot(&ours, 18, 18, 18),
        ];
        let left = |committed, needed: &[u64]| {
            let left = left_behind(&points, &ours, committed, needed);
            left.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let of = |numbers: &[usize]| numbers.iter().map(|i| points[*i].name.to_string()).collect();
        let expected: Vec<String> = of(&[2, 3, 7]);
        assert_eq!(left(Some(10), &[]), expected);
        assert_eq!(left(None, &[]), expected);
        assert_eq!(left(Some(10), &[12]), of(&[2, 7]) as Vec<String>);
        assert_eq!(left(Some(12), &[]), of(&[7]) as Vec<String>);
        assert_eq!(left(Some(18), &[]), [""; 0]);
        // Nothing of what it holds is left here.
        assert_eq!(left(Some(99), &[]), [""; 0]);
        assert_eq!(held_back(&points, &ours, 18, 0), [points[4].name.clone()]);
        assert_eq!(held_back(&points, &ours, 12, 0), []);
    }

    #[test]
    fn a_clock_set_back_changes_nothing() {
        let ours = own(1);
        // The newest by name is the oldest, and the other way round.
        let points: Vec<Point> =
            (1..=5u64).map(|i| snapshot(&ours, 1_000_000 - i * 1000, i, i)).collect();
        let gone = prune(&points, &ours, 4, 1);
        assert_eq!(gone, [points[0].name.clone(), points[1].name.clone()]);
    }

    #[test]
    fn a_day_of_bookmarks_stays() {
        let ours = own(1);
        let marks: Vec<Point> = (1..=100).map(|i| bookmark(&ours, i, i)).collect();
        let gone = prune(&marks, &ours, 100, 0);
        // The newest is what the target holds.
        assert_eq!(gone, marks[..3].iter().map(|mark| mark.name.clone()).collect::<Vec<_>>());
        assert_eq!(prune(&marks[3..], &ours, 100, 0), []);
    }

    /// Each point on its own: is it allowed to go, and is it beyond what is kept?
    fn naive(
        points: &[Point],
        own: &OwnNames,
        committed: u64,
        keep: usize,
        marks: usize,
    ) -> BTreeSet<PointName> {
        let Some(last) = points.iter().find(|point| point.guid == committed) else {
            return BTreeSet::new();
        };
        let old = |point: &Point| point.createtxg < last.createtxg && point.guid != committed;
        let mut gone = BTreeSet::new();
        for point in points {
            match own.parse(&point.name) {
                Some(OwnPoint::Bookmark(guid)) if guid == point.guid && old(point) => {
                    let order =
                        |point: &Point| (std::cmp::Reverse(point.createtxg), point.name.clone());
                    let newer = points.iter().filter(|other| {
                        matches!(own.parse(&other.name), Some(OwnPoint::Bookmark(g)) if g == other.guid)
                            && old(other)
                            && order(other) < order(point)
                    });
                    if newer.count() >= marks {
                        gone.insert(point.name.clone());
                    }
                }
                Some(OwnPoint::Snapshot(_)) if old(point) && point.user_refs == Some(0) => {
                    let newer = points.iter().filter(|other| {
                        matches!(own.parse(&other.name), Some(OwnPoint::Snapshot(_)))
                            && old(other)
                            && other.createtxg > point.createtxg
                    });
                    if newer.count() >= keep {
                        gone.insert(point.name.clone());
                    }
                }
                _ => {}
            }
        }
        gone
    }

    /// A listing: what each transaction made, by whom, whether it was held and whether a
    /// bookmark was made of it.
    fn history() -> impl Strategy<Value = Vec<Point>> {
        let event = (0..4u8, any::<bool>(), any::<bool>(), 0..1_000_000u64);
        prop::collection::vec(event, 0..24).prop_map(|events| {
            let mut points = Vec::new();
            for (i, (who, is_held, has_bookmark, clock)) in events.into_iter().enumerate() {
                let (guid, txg) = (1 + (i as u64 * 7) % 29, 10 + i as u64);
                let mut point = match who {
                    // The serial number keeps names apart where clocks agree.
                    0 | 1 => snapshot(&own(who), clock * 100 + i as u64, guid, txg),
                    2 => point(&format!("p/v@d-{clock}-{i}"), guid, txg),
                    _ => bookmark(&own(1), guid, txg),
                };
                if is_held && point.is_snapshot() {
                    point.user_refs = Some(1);
                }
                if has_bookmark && point.is_snapshot() {
                    points.push(bookmark(&own(who % 2), guid, txg));
                }
                points.push(point);
            }
            points
        })
    }

    fn prune_to(
        points: &[Point],
        own: &OwnNames,
        committed: u64,
        keep: usize,
        marks: usize,
    ) -> Vec<PointName> {
        let unneeded = unneeded(points, own, committed, keep, marks).into_iter();
        unneeded.filter(|point| !point.is_held()).map(|point| point.name.clone()).collect()
    }

    proptest! {
        #[test]
        fn what_goes_is_what_a_naive_model_lets_go(
            points in history().prop_shuffle(),
            committed in 0u64..32,
            keep in 0..6usize,
            marks in 0..4usize,
        ) {
            let ours = own(1);
            let gone = prune_to(&points, &ours, committed, keep, marks);
            let expected = naive(&points, &ours, committed, keep, marks);
            prop_assert_eq!(gone.len(), expected.len());
            prop_assert_eq!(gone.into_iter().collect::<BTreeSet<_>>(), expected);
        }
    }
}
