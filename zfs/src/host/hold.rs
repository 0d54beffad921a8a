//! Snapshots that nobody can destroy while they are needed.

use std::{
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use libzetta_zfs_core_sys::Holds;

use super::{Zfs, ZfsError, all_snapshots, library, words};
use crate::PointName;

/// Holds on snapshots, released when it is dropped.
///
/// With the library they end with the process as well, however it ends. With the command a
/// process that is killed leaves them behind: `zfs holds` shows them, with the process's id in
/// the tag, and `zfs release` removes them.
#[derive(Debug)]
#[must_use = "the snapshots are released when it is dropped"]
pub struct Hold(Kind);

#[derive(Debug)]
enum Kind {
    /// Released by the kernel when this is closed.
    Library {
        _holds: Holds,
    },
    Command {
        zfs: Zfs,
        tag: String,
        snapshots: Vec<PointName>,
    },
    Nothing,
}

impl Zfs {
    /// Holds these snapshots, of one pool, so that they cannot be destroyed.
    ///
    /// # Errors
    ///
    /// A name that is a bookmark's, and what ZFS refuses; none of them is held then.
    pub fn hold(&self, snapshots: &[PointName]) -> Result<Hold, ZfsError> {
        all_snapshots("hold", snapshots)?;
        if snapshots.is_empty() {
            return Ok(Hold(Kind::Nothing));
        }
        let tag = new_tag();
        if self.library.is_ok() {
            let (dataset, all) = (snapshots[0].dataset(), snapshots.to_vec());
            let _holds = self.apart(dataset, "hold", move || library::hold(&tag, &all))?;
            return Ok(Hold(Kind::Library { _holds }));
        }
        let held = self.run(words(&["hold", &tag], snapshots));
        // Made before its result is looked at: some may be held when one is refused.
        let hold = Hold(Kind::Command { zfs: self.clone(), tag, snapshots: snapshots.to_vec() });
        held.map(|_| hold)
    }
}

impl Hold {
    /// Releases them, and tells whether that worked.
    ///
    /// # Errors
    ///
    /// Those of the command; the library has none.
    pub fn release(mut self) -> Result<(), ZfsError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), ZfsError> {
        match std::mem::replace(&mut self.0, Kind::Nothing) {
            Kind::Library { .. } | Kind::Nothing => Ok(()),
            Kind::Command { zfs, tag, snapshots } => {
                zfs.run(words(&["release", &tag], &snapshots)).map(drop)
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // A hold that stays behind harms nobody but the space that its snapshot takes.
        let _ = self.end();
    }
}

/// A tag that no other process, and no earlier hold of this one, has used.
fn new_tag() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Process ids come again, so the time is in it. No decision rests on it.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("driftline-{}-{:x}-{count}", process::id(), now.as_nanos())
}
