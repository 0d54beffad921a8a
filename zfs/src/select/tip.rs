//! Which snapshot is sent.

use driftline_extent::{Explained, Reason};
use thiserror::Error;

use crate::{
    listing::Point,
    name::{DatasetName, PointName},
};

/// What is asked to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// This snapshot: one that a person named, or that was just created.
    Named(&'a PointName),
    /// The newest snapshot of this data set.
    Latest(&'a DatasetName),
}

/// Why there is nothing to send.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum TipError {
    /// No snapshot has this name.
    #[error("there is no snapshot {0}: look with `zfs list -t snapshot` which there are")]
    Absent(PointName),
    /// A bookmark has no content.
    #[error("{0} is a bookmark, of which nothing can be sent: name a snapshot")]
    Bookmark(PointName),
    /// There are no snapshots.
    #[error("{0} has no snapshot: take one, or have one taken")]
    None(DatasetName),
}

impl Explained for TipError {
    fn reason(&self) -> Reason {
        Reason::Failed
    }
}

/// The snapshot among `points` to send.
pub fn choose_tip<'a>(points: &'a [Point], request: Request<'_>) -> Result<&'a Point, TipError> {
    match request {
        Request::Named(name) => match points.iter().find(|point| point.name == *name) {
            Some(point) if point.is_snapshot() => Ok(point),
            Some(_) => Err(TipError::Bookmark(name.clone())),
            None => Err(TipError::Absent(name.clone())),
        },
        Request::Latest(dataset) => points
            .iter()
            .filter(|point| point.is_snapshot() && point.name.dataset() == dataset)
            .max_by_key(|point| point.createtxg)
            .ok_or_else(|| TipError::None(dataset.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::testing::point;

    #[test]
    fn the_table_of_tips_holds() {
        let dataset: DatasetName = "p/v".parse().expect("it is a name");
        let mut points = [
            point("p/v@new", 3, 30),
            point("p/v@old", 1, 10),
            point("p/v#newer", 4, 40),
            point("p/other@newest", 5, 50),
        ];
        // The clock was set back before the newest was taken.
        points[0].creation = 5;
        let latest = choose_tip(&points, Request::Latest(&dataset));
        assert_eq!(latest.map(|point| point.guid), Ok(3));
        for point in &points {
            let named = choose_tip(&points, Request::Named(&point.name));
            if point.is_snapshot() {
                assert_eq!(named, Ok(point));
            } else {
                assert_eq!(named, Err(TipError::Bookmark(point.name.clone())));
            }
        }
        let absent = "p/v@newer".parse().expect("it is a name");
        let error = choose_tip(&points, Request::Named(&absent));
        assert_eq!(error, Err(TipError::Absent(absent)));
        for nothing in [&points[..0], &points[2..]] {
            let error = choose_tip(nothing, Request::Latest(&dataset));
            assert_eq!(error, Err(TipError::None(dataset.clone())));
        }
    }
}
