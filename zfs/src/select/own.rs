//! The names of snapshots and bookmarks that are made here.
//!
//! A snapshot is named `PREFIX-OWNER-TIME`, a bookmark `PREFIX-OWNER-GUID`: the owner, which is
//! whatever tells one replication of a data set from another, in eight digits, the time in UTC,
//! the guid in sixteen digits. What follows the prefix has a fixed length, so that no name is of two
//! prefixes, whatever they contain.

use thiserror::Error;

use super::time;
use crate::{
    listing::Point,
    name::{PointKind, PointName},
};

/// Longest prefix, in bytes.
const PREFIX_MAX: usize = 64;

/// Digits of the guid in a bookmark's name.
const GUID_LEN: usize = 16;

/// Why a text cannot begin the names that are made here.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "{0:?} is no prefix of names: give letters, digits and any of -_.: of which the first is a \
     letter or digit, {PREFIX_MAX} at most"
)]
pub struct PrefixError(String);

/// What the name of one of ours says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OwnPoint {
    /// When it was taken by the clock, in milliseconds since 1970.
    Snapshot(u64),
    /// The guid that it keeps, which is that of a snapshot that a target committed.
    Bookmark(u64),
}

/// Makes and knows the names of one owner.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnNames {
    /// All of a name but its end, with the `-` before that.
    start: String,
}

impl OwnNames {
    /// The names of this owner, which begin with `prefix`.
    pub fn new(prefix: &str, owner: [u8; 4]) -> Result<Self, PrefixError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        let begins = prefix.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || prefix.len() > PREFIX_MAX || !prefix.chars().all(legal) {
            return Err(PrefixError(prefix.chars().take(2 * PREFIX_MAX).collect()));
        }
        Ok(Self { start: format!("{prefix}-{:08x}-", u32::from_be_bytes(owner)) })
    }

    /// The name of a snapshot taken at this time, in milliseconds since 1970: what stands
    /// behind the `@`. It is for people; nothing goes by it.
    pub fn snapshot(&self, unix_ms: u64) -> String {
        format!("{}{}", self.start, time::format(unix_ms))
    }

    /// The name of the bookmark that keeps this guid: what stands behind the `#`.
    pub fn bookmark(&self, guid: u64) -> String {
        format!("{}{guid:0GUID_LEN$x}", self.start)
    }

    /// What the name says if it is exactly one that is made here for this owner.
    pub fn parse(&self, name: &PointName) -> Option<OwnPoint> {
        let end = name.short().strip_prefix(&self.start)?;
        let own = match name.kind() {
            PointKind::Snapshot => OwnPoint::Snapshot(time::parse(end)?),
            PointKind::Bookmark => OwnPoint::Bookmark(u64::from_str_radix(end, 16).ok()?),
        };
        let again = match own {
            OwnPoint::Snapshot(unix_ms) => self.snapshot(unix_ms),
            OwnPoint::Bookmark(guid) => self.bookmark(guid),
        };
        (again == name.short()).then_some(own)
    }

    /// Whether it was made here for this owner. A bookmark that keeps another guid than its
    /// name says was not.
    pub(super) fn own(&self, point: &Point) -> bool {
        match self.parse(&point.name) {
            Some(OwnPoint::Bookmark(guid)) => guid == point.guid,
            Some(OwnPoint::Snapshot(_)) => true,
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(prefix: &str, id: u32) -> OwnNames {
        OwnNames::new(prefix, id.to_be_bytes()).expect("it is a prefix")
    }

    fn name(text: &str) -> PointName {
        text.parse().expect("it is a name")
    }

    #[test]
    fn names_are_as_documented_and_parse_back_exactly() {
        let ours = names("driftline", 0x48c3_a63f);
        let (snapshot, bookmark) = (ours.snapshot(1_795_380_000_123), ours.bookmark(0xbeef));
        assert_eq!(snapshot, "driftline-48c3a63f-2026-11-22T20:40:00.123Z");
        assert_eq!(bookmark, "driftline-48c3a63f-000000000000beef");
        let parse = |text: &str| ours.parse(&name(text));
        let taken = Some(OwnPoint::Snapshot(1_795_380_000_123));
        assert_eq!(parse(&format!("p/v@{snapshot}")), taken);
        assert_eq!(parse(&format!("p/v#{bookmark}")), Some(OwnPoint::Bookmark(0xbeef)));
        for foreign in [
            "p/v@driftline-48c3a63f-000000000000beef",
            "p/v#driftline-48c3a63f-2026-11-22T20:40:00.123Z",
            "p/v@driftline-48c3a63e-2026-11-22T20:40:00.123Z",
            "p/v@driftline-48c3a63f-2026-11-22T20:40:00.123Zx",
            "p/v@driftline-48c3a63f-2026-11-22T20:40:00Z",
            "p/v@driftline-48c3a63f-2026-02-30T20:40:00.123Z",
            "p/v@Driftline-48c3a63f-2026-11-22T20:40:00.123Z",
            "p/v@xdriftline-48c3a63f-2026-11-22T20:40:00.123Z",
            "p/v#driftline-48c3a63f-beef",
            "p/v#driftline-48c3a63f-000000000000BEEF",
            "p/v#driftline-48c3a63f-0000000000000beef",
            "p/v@autosnap_2026-11-22_20:40:00_hourly",
            "p/driftline-48c3a63f-2026-11-22T20:40:00.123Z@x",
        ] {
            assert_eq!(parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn prefixes_that_could_go_wrong_are_refused() {
        let long = "x".repeat(PREFIX_MAX + 1);
        for bad in ["", "-a", "_a", "a b", "a/b", "a@b", "a#b", "a%b", "\u{e4}", &long] {
            let error = OwnNames::new(bad, [0; 4]).expect_err(bad).to_string();
            assert!(error.contains("is no prefix"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_of_one_prefix_and_one_owner(
            prefixes in prop::array::uniform2("[ab0](-|[ab0]|-00000000){0,4}"),
            ids in prop::array::uniform2(0u32..2),
            unix_ms in 0u64..253_402_300_800_000,
            guid: u64,
        ) {
            let [ours, theirs] = [0, 1].map(|i| names(&prefixes[i], ids[i]));
            let snapshot = name(&format!("p/v@{}", ours.snapshot(unix_ms)));
            let bookmark = name(&format!("p/v#{}", ours.bookmark(guid)));
            prop_assert_eq!(ours.parse(&snapshot), Some(OwnPoint::Snapshot(unix_ms)));
            prop_assert_eq!(ours.parse(&bookmark), Some(OwnPoint::Bookmark(guid)));
            let same = ours == theirs;
            prop_assert_eq!(same, prefixes[0] == prefixes[1] && ids[0] == ids[1]);
            prop_assert_eq!(theirs.parse(&snapshot).is_some(), same);
            prop_assert_eq!(theirs.parse(&bookmark).is_some(), same);
        }
    }
}
