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
    /// The current UUID of a DRBD device. Its bit 0 says only whether the device was Primary
    /// and is always clear here: make it with [`Generation::drbd`].
    Drbd(u64),
}

impl Generation {
    /// The generation of a DRBD device whose current UUID is this, whatever its role was.
    pub const fn drbd(uuid: u64) -> Self {
        Self::Drbd(uuid & !1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zfs(guid) => write!(f, "zfs:{guid}"),
            Self::Content(root) => write!(f, "content:{root}"),
            Self::Drbd(uuid) => write!(f, "drbd:{uuid:016x}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_of_a_drbd_device_is_no_part_of_its_name() {
        let primary = Generation::drbd(0x057610b9_e6523719);
        assert_eq!(primary, Generation::drbd(0x057610b9_e6523718));
        assert_eq!(primary.to_string(), "drbd:057610b9e6523718");
    }
}
