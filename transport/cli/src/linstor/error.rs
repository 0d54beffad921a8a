//! Why a volume of LINSTOR cannot be replicated.

use std::{io, path::PathBuf};

use driftline_drbd::DrbdError;
use driftline_extent::{Explained, Reason, Unreadable};
use driftline_linstor::{LinstorError, PlaceError};
use driftline_zfs::{LiveError, host::ZfsError};

use crate::plain::PlainError;

/// Why it cannot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinstorSourceError {
    #[error(transparent)]
    Linstor(#[from] LinstorError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error(transparent)]
    Zfs(#[from] ZfsError),
    #[error(transparent)]
    Drbd(#[from] DrbdError),
    #[error(transparent)]
    Plain(#[from] PlainError),
    /// What the node has is of no instant, or of an old one.
    #[error(
        "{name} is {state} on the node {node}, and not UpToDate: run driftline on a node where it \
         is, or wait until it is here"
    )]
    NotUpToDate { name: String, node: String, state: String },
    /// LINSTOR took a snapshot on other nodes alone.
    #[error("LINSTOR took the snapshot {snapshot} without the node {node}: see linstor node list")]
    OtherReplicas { snapshot: String, node: String },
    /// The device of a snapshot cannot be opened.
    #[error("the snapshot's device {} cannot be opened: is it active? see lvs", device.display())]
    Open {
        device: PathBuf,
        #[source]
        error: io::Error,
    },
    /// A snapshot cannot be read.
    #[error("the snapshot of {name} cannot be read")]
    Read {
        name: String,
        #[source]
        error: io::Error,
    },
    /// Of ZFS the map is in the stream.
    #[error(
        "the map of a volume on ZFS is in its stream: `zfs send -Lce … | driftline map zstream:-`"
    )]
    NoMap,
    /// It is used in another order than that of [`Source`](driftline_extent::Source).
    #[error("nothing was planned; this is a defect in Driftline")]
    Unplanned,
}

impl LinstorSourceError {
    /// Whether all that failed is the connection to the controller.
    pub(crate) const fn is_connection(&self) -> bool {
        let Self::Linstor(error) = self else { return false };
        matches!(error, LinstorError::Unreachable { .. } | LinstorError::Lost { .. })
    }
}

impl Explained for LinstorSourceError {
    fn reason(&self) -> Reason {
        match self {
            Self::Linstor(error) => error.reason(),
            Self::Place(error) => error.reason(),
            Self::Live(error) => error.reason(),
            Self::Zfs(error) => error.reason(),
            Self::Drbd(error) => error.reason(),
            Self::Plain(error) => error.reason(),
            Self::NotUpToDate { .. } => Reason::NotConsistent,
            Self::NoMap => Reason::Unsupported,
            Self::Read { error, .. } => Unreadable::explain(error),
            Self::OtherReplicas { .. } | Self::Open { .. } | Self::Unplanned => Reason::Failed,
        }
    }
}
