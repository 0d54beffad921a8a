//! Which point an increment starts from.

use driftline_extent::{Explained, OVERWRITE, Reason};
use thiserror::Error;

use crate::{listing::Point, name::PointName};

/// What to send to a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base<'a> {
    /// The target holds nothing: send everything.
    Nothing,
    /// Send what changed since this snapshot or bookmark.
    Since(&'a Point),
    /// The target holds the tip.
    UpToDate,
}

/// Why no increment leads from what the target holds to the tip.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum BaseError {
    /// Nothing is left of it.
    #[error(
        "the target holds zfs:{held}, and the source of {tip} has neither a snapshot nor a \
         bookmark of it: the source was rolled back, both were destroyed, or another source \
         pushed to the target. To send what differs, {OVERWRITE}"
    )]
    Unknown {
        /// The guid that the target holds.
        held: u64,
        /// What was to be sent.
        tip: PointName,
    },
    /// It is newer than the tip.
    #[error(
        "the target holds {held}, which is newer than {tip}: send {held} or a newer snapshot, \
         or restore {tip} to another target"
    )]
    Ahead {
        /// What the target holds.
        held: PointName,
        /// What was to be sent.
        tip: PointName,
    },
}

impl Explained for BaseError {
    fn reason(&self) -> Reason {
        Reason::BaseMismatch
    }
}

/// What leads a target that holds the generation `held` to `tip`, among the points of the
/// data set of `tip`.
pub fn choose_base<'a>(
    points: &'a [Point],
    tip: &Point,
    held: Option<u64>,
) -> Result<Base<'a>, BaseError> {
    let Some(held) = held else { return Ok(Base::Nothing) };
    if held == tip.guid {
        return Ok(Base::UpToDate);
    }
    let base = points
        .iter()
        .filter(|point| point.guid == held && point.name.dataset() == tip.name.dataset())
        // A snapshot can be verified against; of several bookmarks any will do.
        .min_by_key(|point| (point.name.kind(), &point.name));
    match base {
        Some(base) if base.createtxg < tip.createtxg => Ok(Base::Since(base)),
        Some(base) => Err(BaseError::Ahead { held: base.name.clone(), tip: tip.name.clone() }),
        None => Err(BaseError::Unknown { held, tip: tip.name.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::testing::point;

    #[test]
    fn the_table_of_bases_holds() {
        let mut points = [
            point("p/v#a", 1, 10),
            point("p/v@a", 1, 10),
            point("p/v#b2", 2, 20),
            point("p/v#b1", 2, 20),
            point("p/v@tip", 3, 30),
            point("p/v#tip", 3, 30),
            point("p/v@newer", 4, 40),
            point("p/other@x", 5, 5),
        ];
        // The clock was set back again and again.
        for (point, creation) in points.iter_mut().zip([9, 9, 8, 8, 7, 7, 6, 10]) {
            point.creation = creation;
        }
        let tip = &points[4];
        let base = |held| choose_base(&points, tip, held);
        assert_eq!(base(None), Ok(Base::Nothing));
        assert_eq!(base(Some(1)), Ok(Base::Since(&points[1])));
        assert_eq!(base(Some(2)), Ok(Base::Since(&points[3])));
        assert_eq!(base(Some(3)), Ok(Base::UpToDate));
        let (held, name) = (points[6].name.clone(), tip.name.clone());
        assert_eq!(base(Some(4)), Err(BaseError::Ahead { held, tip: name.clone() }));
        for held in [5, 6] {
            assert_eq!(base(Some(held)), Err(BaseError::Unknown { held, tip: name.clone() }));
        }
        assert_eq!(base(Some(6)).map_err(|error| error.reason()), Err(Reason::BaseMismatch));
        // Names may change from run to run.
        points[1].name = "p/v@renamed".parse().expect("it is a name");
        let tip = &points[4];
        assert_eq!(choose_base(&points, tip, Some(1)), Ok(Base::Since(&points[1])));
    }
}
