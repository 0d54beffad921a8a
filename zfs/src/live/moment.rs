//! The instant of a run: one snapshot of every data set that takes part, all taken at once.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    DatasetName, NameError, PointName,
    host::{Zfs, ZfsError},
};

/// What the sources of one run share. Nothing is taken before the first of them needs its
/// snapshot, and then those of all, at one instant, or none. Whoever finds that it needs none
/// withdraws: its snapshot is not taken, or not kept. A timer whose job is refused would leave
/// one behind each time.
#[derive(Clone)]
pub struct Moment(Arc<Inner>);

struct Inner {
    zfs: Zfs,
    /// What the snapshots are called after the `@`.
    name: String,
    state: Mutex<State>,
}

struct State {
    /// Those that take part.
    snapshots: BTreeSet<PointName>,
    taken: bool,
}

impl Moment {
    /// Of these data sets, which are of one pool, with snapshots of this name.
    ///
    /// # Errors
    ///
    /// A name that is none, or too long behind that of one of the data sets.
    pub fn new<'a>(
        zfs: Zfs,
        name: String,
        datasets: impl IntoIterator<Item = &'a DatasetName>,
    ) -> Result<Self, NameError> {
        let snapshots = datasets.into_iter().map(|dataset| dataset.snapshot(&name));
        let snapshots = snapshots.collect::<Result<_, _>>()?;
        let state = Mutex::new(State { snapshots, taken: false });
        Ok(Self(Arc::new(Inner { zfs, name, state })))
    }

    /// The name of this data set's snapshot.
    pub(super) fn snapshot_of(&self, dataset: &DatasetName) -> Result<PointName, NameError> {
        dataset.snapshot(&self.0.name)
    }

    /// Takes all of them, if that was not done yet.
    pub(super) fn take(&self) -> Result<(), ZfsError> {
        let mut state = self.state();
        if !state.taken {
            let snapshots: Vec<PointName> = state.snapshots.iter().cloned().collect();
            self.0.zfs.snapshot(&snapshots)?;
            state.taken = true;
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
        if let Err(error) = self.0.zfs.destroy(std::slice::from_ref(&snapshot)) {
            tracing::warn!(%snapshot, %error, "it is not needed, and stays");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half way.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Moment").field(&self.0.name).finish()
    }
}
