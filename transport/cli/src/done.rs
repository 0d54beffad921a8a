//! What came of a replication, of many, and of a restore.

use std::time::Duration;

use driftline_drbd::CrossChecked;
use driftline_extent::{Generation, Reason};
use driftline_transport::{Snapshot, Summary};
use driftline_zfs::DatasetName;

use crate::{exit::code, place::Place};

/// What a replication did, and what moved.
pub(crate) struct Done {
    pub(crate) summary: Summary,
    pub(crate) moved: Snapshot,
    pub(crate) took: Duration,
    /// Why more was done than should have been needed, if so.
    pub(crate) degraded: Option<Reason>,
    /// What was found where maps were held against others.
    pub(crate) cross_checks: Vec<CrossChecked>,
}

impl Done {
    pub(crate) const fn exit_code(&self) -> u8 {
        if self.degraded.is_some() { code::DEGRADED } else { code::DONE }
    }
}

/// What a restore did.
pub(crate) struct Restored {
    /// Which generation it is, if FROM says that.
    pub(crate) of: Option<Generation>,
    pub(crate) size: u64,
    /// How many bytes differed.
    pub(crate) written: u64,
    /// Whether each chunk was compared with the books of a replica.
    pub(crate) verified: bool,
    pub(crate) done: Done,
}

/// One data set of the tree.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: DatasetName,
    pub(crate) target: Place,
    /// The member that it is in, by its number.
    pub(crate) parent: Option<usize>,
}

impl Member {
    pub(crate) fn source(&self) -> Place {
        Place::Zfs(self.name.clone())
    }
}

/// How it went with a member.
pub(crate) type Outcome = (Member, anyhow::Result<Done>);
