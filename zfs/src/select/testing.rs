//! Points for tests.

use crate::listing::Point;

/// A point that nobody holds, made at the time that its number says.
pub(super) fn point(name: &str, guid: u64, createtxg: u64) -> Point {
    let name: crate::name::PointName = name.parse().expect("it is a name");
    let mut point = Point { name, guid, createtxg, creation: createtxg, user_refs: None };
    point.user_refs = point.is_snapshot().then_some(0);
    point
}

/// The names of points.
pub(super) fn names<'a>(points: impl IntoIterator<Item = &'a Point>) -> Vec<String> {
    points.into_iter().map(|point| point.name.to_string()).collect()
}
