//! Why a DRBD volume of this machine cannot be replicated.

use std::{io, time::Duration};

use driftline_extent::{Explained, Generation, Reason};

use crate::{DrbdError, host::HostError};

/// Why it cannot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// DRBD or its backing storage failed, or refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// What the snapshot holds cannot be used.
    #[error(transparent)]
    Drbd(#[from] DrbdError),
    /// The bitmap must not be cleared.
    #[error("{name} cannot be rotated: {why}; use --mode cumulative")]
    NoRotation {
        /// Resource and volume.
        name: String,
        /// Why.
        why: NoRotation,
    },
    /// Its storage does not know what differs between two snapshots.
    #[error(
        "{name} cannot be cross-checked: {store} is a thick logical volume, of which nobody but \
         DRBD knows what changed; leave --cross-check out"
    )]
    Thick {
        /// Resource and volume.
        name: String,
        /// The logical volume.
        store: String,
    },
    /// Somebody else suspended it.
    #[error(
        "the I/O of {name} is suspended already, by somebody who would not notice that it is \
         resumed: `drbdsetup resume-io {minor}`, if nobody needs that"
    )]
    Suspended {
        /// Resource and volume.
        name: String,
        /// The minor of its device.
        minor: u32,
    },
    /// Somebody else is taking snapshots of it.
    #[error("another run replicates {name}: it holds {path}")]
    Busy {
        /// Resource and volume.
        name: String,
        /// The lock.
        path: String,
    },
    /// The lock cannot be made.
    #[error("{path} cannot be locked")]
    Lock {
        /// The lock.
        path: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The guard failed.
    #[error("what holds the device suspended failed: {why}")]
    Guard {
        /// Why.
        why: String,
    },
    /// It may be suspended, and nobody resumes it.
    #[error(
        "the I/O of /dev/drbd{minor} may be suspended: {why}. Look with `drbdsetup events2 --now`, \
         and run `drbdsetup resume-io {minor}`"
    )]
    MaybeSuspended {
        /// The minor of its device.
        minor: u32,
        /// Why that is not known.
        why: String,
    },
    /// The snapshot took too long.
    #[error(
        "the snapshot was not taken within {limit:?}, and I/O goes on without it: see what LVM or \
         ZFS waits for, or allow more with --freeze-max"
    )]
    TooSlow {
        /// How long it was frozen at most.
        limit: Duration,
    },
    /// A device cannot be opened.
    #[error("the snapshot {name} cannot be opened")]
    Open {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The snapshot holds nothing any more.
    #[error(
        "the snapshot {name} ran out of space while it was read, and holds nothing any more: give \
         it more with --cow-size"
    )]
    Spoilt {
        /// Its name.
        name: String,
    },
    /// The target holds what is no generation of DRBD.
    #[error(
        "the target holds {0}, which is no generation of a DRBD volume: push from the source it \
         came from, or agree to a full copy with --full"
    )]
    Foreign(Generation),
    /// A call that does not fit what came before.
    #[error("nothing was planned")]
    Unplanned,
}

/// Why the bitmap of a volume must not be cleared.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoRotation {
    /// It is DRBD 9.
    #[error("it is a volume of DRBD 9, of which clearing would clear the bitmap of every peer")]
    Nine,
    /// It has a connection.
    #[error("it is connected to {peer} ({state}), which would lack what the bitmap says it lacks")]
    Connected {
        /// The peer.
        peer: String,
        /// The connection's state.
        state: String,
    },
    /// Its configuration has a peer.
    #[error(
        "its configuration has the peer {peer}, which would have to copy everything when it comes \
         back"
    )]
    Configured {
        /// The peer.
        peer: String,
    },
    /// It has no configuration.
    #[error("drbdadm has no configuration of it, and so it may have a peer")]
    Unknown,
    /// Its disk is not good.
    #[error("its disk is {disk}, and not UpToDate")]
    Disk {
        /// The disk's state.
        disk: String,
    },
}

impl Explained for LiveError {
    fn reason(&self) -> Reason {
        match self {
            Self::Host(error) => error.reason(),
            Self::Drbd(error) => error.reason(),
            Self::NoRotation { .. } | Self::Suspended { .. } | Self::Thick { .. } => {
                Reason::Unsupported
            }
            Self::Foreign(_) => Reason::BaseMismatch,
            _ => Reason::Failed,
        }
    }
}
