//! Names for a point in time of a volume, and for the volume itself.

use std::fmt;

use crate::Root;

/// One immutable point in time of a volume, named by the storage's own identity.
///
/// Names of snapshots never decide anything: they can be reused. These cannot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Generation {
    /// The guid of a ZFS snapshot (or of the bookmark made from it).
    Zfs(u64),
    /// The manifest root of a plain file or device: its content is its identity.
    Content(Root),
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zfs(guid) => write!(f, "zfs:{guid}"),
            Self::Content(root) => write!(f, "content:{root}"),
        }
    }
}

bytes_newtype! {
    /// The identity of a source volume as far as its storage has one.
    ///
    /// For a plain file or device it is made of machine and path; a replica remembers it, so
    /// that another volume is not written over it by a slip of the command line.
    VolumeId, 16
}
