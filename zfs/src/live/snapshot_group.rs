//! The instant of a run: one snapshot of every data set that takes part, all taken at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::LiveError;
use crate::{
    DatasetName, NameError, PointName,
    host::{Stays, Zfs, ZfsError},
};

/// What the sources of one run share. Nothing is taken before the first of them needs its
/// snapshot, and then those of all, at one instant. One that cannot be taken fails alone: the
/// others are taken without it, still at one instant. Whoever finds that it needs none
/// withdraws: its snapshot is not taken, or not kept. A timer whose job is refused would leave
/// one behind each time.
#[derive(Clone)]
pub struct SnapshotGroup(Arc<Inner>);

struct Inner {
    zfs: Zfs,
    /// What the snapshots are called after the `@`.
    name: String,
    /// Whether every data set below takes part as well, whichever there are at that instant.
    is_tree: bool,
    state: Mutex<State>,
}

struct State {
    /// Those that take part.
    snapshots: BTreeSet<PointName>,
    /// Those that could not be taken, and why.
    failed: BTreeMap<PointName, String>,
    taken: bool,
}

impl SnapshotGroup {
    /// Of these data sets, which are of one pool, with snapshots of this name. One whose
    /// snapshot would have too long a name hears that when it needs it.
    pub fn new<'a>(
        zfs: Zfs,
        name: String,
        datasets: impl IntoIterator<Item = &'a DatasetName>,
    ) -> Self {
        Self::of(zfs, name, datasets, false)
    }

    /// Of this data set and all below it, with snapshots of this name.
    pub fn of_tree(zfs: Zfs, name: String, root: &DatasetName) -> Self {
        Self::of(zfs, name, [root], true)
    }

    fn of<'a>(
        zfs: Zfs,
        name: String,
        datasets: impl IntoIterator<Item = &'a DatasetName>,
        is_tree: bool,
    ) -> Self {
        let snapshots = datasets.into_iter().filter_map(|dataset| dataset.snapshot(&name).ok());
        let snapshots = snapshots.collect();
        let state = State { snapshots, failed: BTreeMap::new(), taken: false };
        Self(Arc::new(Inner { zfs, name, is_tree, state: Mutex::new(state) }))
    }

    /// The name of this data set's snapshot.
    pub(super) fn snapshot_of(&self, dataset: &DatasetName) -> Result<PointName, NameError> {
        dataset.snapshot(&self.0.name)
    }

    /// Takes all of them, if that was not done yet.
    ///
    /// # Errors
    ///
    /// Why that of this data set was not taken.
    pub(super) fn take(&self, snapshot: &PointName) -> Result<(), LiveError> {
        let mut state = self.state();
        if !state.taken {
            self.take_all(&mut state)?;
            state.taken = true;
        }
        match state.failed.get(snapshot) {
            Some(why) => Err(LiveError::NotTaken { snapshot: snapshot.clone(), why: why.clone() }),
            None => Ok(()),
        }
    }

    /// ZFS takes all or none: those that it cannot take are left out, until the rest is taken.
    fn take_all(&self, state: &mut State) -> Result<(), ZfsError> {
        let zfs = &self.0.zfs;
        while !state.snapshots.is_empty() {
            let all: Vec<PointName> = state.snapshots.iter().cloned().collect();
            let taken = match &all[..] {
                [root] if self.0.is_tree => zfs.snapshot_tree(root),
                all => zfs.snapshot(all),
            };
            let Err(error) = taken else { break };
            let mut blamed = error.blamed(&all);
            if blamed.is_empty() && all.len() > 1 {
                for snapshot in &all {
                    if !zfs.exists(snapshot.dataset().clone())? {
                        blamed.push((snapshot.clone(), "the data set is gone".to_owned()));
                    }
                }
            }
            if blamed.is_empty() || all.len() == 1 && self.0.is_tree {
                return Err(error);
            }
            for (snapshot, why) in blamed {
                tracing::warn!(
                    %snapshot, why,
                    "cannot take this snapshot: taking the others without it"
                );
                state.snapshots.remove(&snapshot);
                state.failed.insert(snapshot, why);
            }
        }
        Ok(())
    }

    /// Leaves the snapshot of this data set out, or destroys it if it was taken. A source that
    /// sent nothing does this when it is dropped.
    pub fn withdraw(&self, dataset: &DatasetName) {
        let mut state = self.state();
        let Ok(snapshot) = self.snapshot_of(dataset) else { return };
        if !state.snapshots.remove(&snapshot) || !state.taken {
            return;
        }
        let mut snapshots = vec![snapshot];
        if self.0.is_tree {
            match self.0.zfs.tree(dataset) {
                Ok(tree) => {
                    let below = tree.iter().filter(|member| member.name != *dataset);
                    snapshots.extend(below.filter_map(|m| self.snapshot_of(&m.name).ok()));
                }
                Err(error) => {
                    tracing::warn!(%dataset, %error, "snapshots below this data set may remain")
                }
            }
        }
        match self.0.zfs.destroy(&snapshots) {
            Ok(stay) => {
                for Stays { point, why } in stay {
                    tracing::warn!(snapshot = %point, why, "not needed, but cannot be destroyed");
                }
            }
            Err(error) => {
                tracing::warn!(
                    %dataset, %error,
                    "its snapshot is not needed, but cannot be destroyed"
                );
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SnapshotGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Moment").field(&self.0.name).finish()
    }
}
