//! What is kept of a data set for its target, and what goes.

use super::{LiveError, LiveOptions, LiveSource, Pick};
use crate::{
    Point, PointName,
    host::{Abilities, Stays},
    select::{held_back, left_behind, prune},
};

impl LiveSource {
    /// Sees to what the target holds by now: it is bookmarked, and what is older goes.
    pub(super) fn arrived(&self, points: &[Point], guid: u64, abilities: Abilities) {
        let Some(held) = points.iter().find(|point| point.guid == guid) else { return };
        // Where there are no bookmarks, the snapshot is what the next increment starts from.
        if abilities.bookmarks
            && let Err(error) = self.mark(points, held)
        {
            // The snapshot stays what the next increment starts from.
            tracing::warn!(
                snapshot = %held.name, %error,
                "cannot bookmark this snapshot: keeping it"
            );
            return;
        }
        let (names, keep) = (&self.options.names, self.options.keep);
        self.destroy(&prune(points, names, guid, keep));
        for point in held_back(points, names, guid, keep) {
            let why = self.zfs.managers(&point).unwrap_or_else(|| "it is held".to_owned());
            tell(&Stays { point, why });
        }
    }

    /// Removes what failing runs have left of this data set.
    pub(super) fn tidy(&self, points: &[Point], abilities: Abilities, needed: &[u64]) {
        let Pick::New(group) = &self.options.pick else { return };
        let LiveOptions { names, keep, .. } = &self.options;
        let mut left = left_behind(points, names, self.held, needed);
        // Where no bookmark tells that a snapshot arrived, those that did are the oldest, and a
        // target that holds nothing may come back with one of them.
        if !abilities.bookmarks && self.held.is_none() {
            left.drain(..left.len().min(keep + 1));
        }
        let new = group.snapshot_of(&self.name);
        left.retain(|name| new.as_ref() != Ok(name));
        if !left.is_empty() {
            let (dataset, count) = (&self.name, left.len());
            tracing::info!(%dataset, count, "removing snapshots of runs that failed");
            self.destroy(&left);
        }
    }

    fn destroy(&self, points: &[PointName]) {
        match self.zfs.destroy(points) {
            Ok(stay) => stay.iter().for_each(tell),
            Err(error) => {
                tracing::warn!(
                    dataset = %self.name, %error,
                    "cannot remove snapshots that are no longer needed"
                );
            }
        }
    }

    /// Bookmarks what the target holds. Another owner's bookmark of it is not enough: it goes
    /// when that one needs it no more.
    fn mark(&self, points: &[Point], held: &Point) -> Result<(), LiveError> {
        let bookmark = self.name.bookmark(&self.options.names.bookmark(held.guid))?;
        if points.iter().any(|point| point.name == bookmark && point.guid == held.guid) {
            return Ok(());
        }
        Ok(self.zfs.bookmark(&held.name, &bookmark)?)
    }
}

/// One more with each run would fill the pool without a word.
fn tell(Stays { point, why }: &Stays) {
    tracing::warn!(kept = %point, why, "no longer needed, but cannot be destroyed");
}
