//! What a source and a target that is a data set itself have in common.

use std::fmt;

use driftline_extent::{Explained, Reason};

use crate::{
    listing::Point,
    name::{DatasetName, PointName},
};

/// The newest point that both have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Common<'a> {
    /// At the source: a snapshot, or a bookmark where that is all there is.
    pub source: &'a Point,
    /// At the target: its newest snapshot.
    pub target: &'a Point,
}

/// A target that `zfs receive` would add nothing to without force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Divergence {
    /// The target.
    pub dataset: DatasetName,
    /// Its newest snapshot that the source has as well.
    pub common: Option<PointName>,
    /// Its snapshots after that, oldest first.
    pub beyond: Vec<PointName>,
    /// Whether it was written since its newest snapshot.
    pub written: bool,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dataset, common, beyond, written } = self;
        match (common, beyond.last()) {
            (None, _) => write!(f, "{dataset} has no snapshot in common with the source")?,
            (Some(common), Some(last)) => write!(
                f,
                "{dataset} has {} snapshots that the source lacks after {common}, up to {last}",
                beyond.len()
            )?,
            (Some(common), None) => write!(f, "{dataset} was written since {common}")?,
        }
        if *written && !beyond.is_empty() {
            f.write_str(", and was written since")?;
        }
        f.write_str("; nothing was done to it. One of these may be what you want:")?;
        ways_out(self).iter().try_for_each(|way| write!(f, "\n  {way}"))
    }
}

impl std::error::Error for Divergence {}

impl Explained for Divergence {
    fn reason(&self) -> Reason {
        Reason::BaseMismatch
    }
}

/// The newest snapshot of the target `dataset` that the source has a snapshot or bookmark of;
/// `None` if the target has no snapshot and nothing was written to it, which `zfs receive`
/// takes only with a resume token.
///
/// `source` and `target` are the points of either data set; bookmarks of the target count for
/// nothing. `written` says whether the target was written since its newest snapshot. Whatever
/// the target has beyond what they have in common is a divergence.
pub fn newest_common<'a>(
    source: &'a [Point],
    target: &'a [Point],
    dataset: &DatasetName,
    written: bool,
) -> Result<Option<Common<'a>>, Divergence> {
    let mut snapshots: Vec<&Point> = target
        .iter()
        .filter(|point| point.is_snapshot() && point.name.dataset() == dataset)
        .collect();
    snapshots.sort_by_key(|point| point.createtxg);
    let at_source = |guid| {
        let same = source.iter().filter(move |point| point.guid == guid);
        same.min_by_key(|point| (point.name.kind(), &point.name))
    };
    let found = snapshots
        .iter()
        .enumerate()
        .rev()
        .find_map(|(i, target)| Some((i, Common { source: at_source(target.guid)?, target })));
    let first_beyond = found.map_or(0, |(i, _)| i + 1);
    let beyond = &snapshots[first_beyond..];
    // Without a snapshot it may be empty, or hold what nobody ever took one of.
    if beyond.is_empty() && !written {
        return Ok(found.map(|(_, common)| common));
    }
    Err(Divergence {
        dataset: dataset.clone(),
        common: found.map(|(_, common)| common.target.name.clone()),
        beyond: beyond.iter().map(|point| point.name.clone()).collect(),
        written,
    })
}

/// What a person may do about a divergence: commands as a shell takes them, each with what it
/// does behind a `#`. None of them is ever run from here.
pub fn ways_out(divergence: &Divergence) -> Vec<String> {
    let Divergence { dataset, common, beyond, .. } = divergence;
    let mut ways = Vec::new();
    if let Some(common) = common {
        let (flag, loses) = match beyond.len() {
            0 => ("", "what was written there since".to_owned()),
            1 => ("-r ", "the snapshot after it, and all written since".to_owned()),
            count => ("-r ", format!("the {count} snapshots after it, and all written since")),
        };
        let common = quote(&common.to_string());
        ways.push(format!("zfs rollback {flag}{common}  # destroys {loses}"));
    }
    let other = |suffix| format!("{dataset}-{suffix}").parse::<DatasetName>().ok();
    // A pool cannot be renamed while it is imported.
    if let Some(kept) = other("diverged").filter(|_| dataset.parent().is_some()) {
        let (from, to) = (quote(dataset.as_str()), quote(kept.as_str()));
        ways.push(format!("zfs rename {from} {to}  # keeps it, and makes room for a full copy"));
    }
    let new = other("new").filter(|_| dataset.parent().is_some());
    let new = new.map_or_else(String::new, |name| format!(", such as {name}"));
    ways.push(format!("# or name another target{new}: it begins with a full copy"));
    ways
}

/// A name as a POSIX shell takes it.
fn quote(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@#%".contains(c);
    if name.chars().all(plain) { name.to_owned() } else { format!("'{name}'") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::testing::point;

    fn dataset(name: &str) -> DatasetName {
        name.parse().expect("it is a name")
    }

    #[test]
    fn guids_find_what_is_common() {
        let source = [point("s/v@a", 1, 10), point("s/v#b", 2, 20), point("s/v@c", 3, 30)];
        // Listed in no order, under other names, in another pool's transactions.
        let target = [point("t/v@x", 2, 700), point("t/v@y", 1, 600), point("t/v#c", 3, 800)];
        let common = newest_common(&source, &target, &dataset("t/v"), false);
        let expected = Common { source: &source[1], target: &target[0] };
        assert_eq!(common, Ok(Some(expected)));
        let both = [point("s/v#b", 2, 20), point("s/v@b", 2, 20)];
        let common = newest_common(&both, &target, &dataset("t/v"), false);
        assert_eq!(common, Ok(Some(Common { source: &both[1], target: &target[0] })));
        assert_eq!(newest_common(&source, &target, &dataset("t/w"), false), Ok(None));
        assert_eq!(newest_common(&[], &[], &dataset("t/v"), false), Ok(None));
    }

    #[test]
    fn what_the_target_has_beyond_is_named_with_ways_out() {
        let source = [point("s/v@a", 1, 10), point("s/v@c", 3, 30)];
        let target = [
            point("t/v 1@c:d e", 9, 95),
            point("t/v 1@a", 1, 90),
            point("t/v 1@b", 8, 94),
            point("t/v 1@first", 7, 80),
        ];
        let error = newest_common(&source, &target, &dataset("t/v 1"), true);
        let error = error.expect_err("it diverged");
        assert_eq!(error.reason(), Reason::BaseMismatch);
        assert_eq!(
            error.to_string(),
            "t/v 1 has 2 snapshots that the source lacks after t/v 1@a, up to t/v 1@c:d e, and \
             was written since; nothing was done to it. One of these may be what you want:\n  \
             zfs rollback -r 't/v 1@a'  # destroys the 2 snapshots after it, and all written \
             since\n  \
             zfs rename 't/v 1' 't/v 1-diverged'  # keeps it, and makes room for a full copy\n  \
             # or name another target, such as t/v 1-new: it begins with a full copy"
        );
    }

    #[test]
    fn what_was_written_without_a_snapshot_is_no_secret() {
        let (source, target) = ([point("s/v@a", 1, 10)], [point("t/v@a", 1, 10)]);
        let error = newest_common(&source, &target, &dataset("t/v"), true);
        let error = error.expect_err("it was written");
        assert!(error.to_string().starts_with("t/v was written since t/v@a; nothing"), "{error}");
        let ways = ways_out(&error);
        assert_eq!(ways[0], "zfs rollback t/v@a  # destroys what was written there since");
        // A pool can neither be renamed nor stand beside another by a name of ours.
        let error = newest_common(&source, &[], &dataset("t"), true);
        let error = error.expect_err("it was written");
        assert!(error.to_string().starts_with("t has no snapshot in common"), "{error}");
        assert_eq!(ways_out(&error), ["# or name another target: it begins with a full copy"]);
        let long = dataset(&format!("t/{}", "v".repeat(253)));
        let divergence = Divergence { dataset: long, ..error };
        assert_eq!(ways_out(&divergence).len(), 1);
    }
}
