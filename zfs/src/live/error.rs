//! Why a data set of this machine's ZFS cannot be replicated.

use driftline_extent::{Explained, Generation, Reason};
use thiserror::Error;

use crate::{
    DatasetName, DeviceError, NameError, PointName, StreamError,
    host::ZfsError,
    select::{BaseError, Divergence, TipError},
};

/// Why it cannot.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LiveError {
    /// ZFS failed, or refused.
    #[error(transparent)]
    Zfs(#[from] ZfsError),
    /// What `zfs send` wrote cannot be used.
    #[error("{snapshot}")]
    Stream {
        /// What was sent.
        snapshot: PointName,
        /// What is wrong with it.
        #[source]
        error: Box<StreamError>,
    },
    /// There is no such volume.
    #[error("there is no {0} any more, or there never was: see `zfs list`")]
    NotFound(DatasetName),
    /// It is a file system.
    #[error(
        "{0} is a file system, of which only ZFS can make a copy: replicate it to zfs:POOL/DATASET"
    )]
    FileSystem(DatasetName),
    /// Its content cannot be read.
    #[error("the key of {0} is not loaded, so it cannot be read: `zfs load-key {0}`")]
    KeyNotLoaded(DatasetName),
    /// There is no such snapshot.
    #[error(transparent)]
    Tip(#[from] TipError),
    /// A name that is made of what the user said cannot be one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Its snapshot cannot be named.
    #[error("{0}: rename the data set, give a shorter --prefix, or, with -r, use --exclude")]
    LongName(NameError),
    /// Its snapshot cannot be taken.
    #[error("cannot take the snapshot {snapshot}: {why}; with -r, --exclude leaves a data set out")]
    NotTaken {
        /// Which.
        snapshot: PointName,
        /// Why.
        why: String,
    },
    /// There is nothing to start an increment from.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The target is a data set with a past of its own.
    #[error(transparent)]
    Diverged(#[from] Divergence),
    /// The target holds nothing, and is known to have held something.
    #[error(
        "the target holds nothing{at}, but {mark} shows that a generation had arrived there: the \
         target was destroyed, renamed or moved, or its pool is not imported. Nothing was done. If \
         it has another name now, push to that name, or rename it as at the source. To make a full \
         copy, run again with --full"
    )]
    Gone {
        /// In a tree the data set below its root that is gone, as words; empty for the root.
        at: String,
        /// The bookmark of what had arrived last.
        mark: PointName,
    },
    /// The target keeps a part of a stream that cannot be gone on with.
    #[error(
        "the target keeps a partial stream that this source cannot resume: {why}. Run `zfs receive \
         -A` there to discard it; the next run starts again"
    )]
    Token {
        /// Why.
        why: String,
    },
    /// The target holds what is no snapshot of ZFS.
    #[error("the target holds {0}, which is no generation of a ZFS volume")]
    Foreign(Generation),
    /// The device of the snapshot cannot be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device could be opened and not read.
    #[error("the device of {snapshot} cannot be read")]
    Read {
        /// Which.
        snapshot: PointName,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// What was sent is not what the snapshot holds.
    #[error(
        "at offset {offset} the stream of {snapshot} differs from its device. Nothing was \
         committed. Look at `zpool status`, and replicate the device as file:PATH"
    )]
    Differs {
        /// Which.
        snapshot: PointName,
        /// Where the extent starts.
        offset: u64,
    },
    /// A call that does not fit what came before.
    #[error("nothing was planned")]
    Unplanned,
}

impl Explained for LiveError {
    fn reason(&self) -> Reason {
        match self {
            Self::Stream { error, .. } => error.reason(),
            Self::Base(error) => error.reason(),
            Self::Tip(error) => error.reason(),
            Self::Diverged(error) => error.reason(),
            Self::Foreign(_) | Self::Token { .. } => Reason::BaseMismatch,
            Self::Gone { .. } => Reason::TargetGone,
            Self::FileSystem(_) => Reason::Unsupported,
            Self::Differs { .. } => Reason::VerifyFailed,
            _ => Reason::Failed,
        }
    }
}
