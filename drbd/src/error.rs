//! What can be wrong with a device and its metadata, and what to do about it.

use std::io;

use driftline_extent::{Explained, Generation, Reason};

use crate::Doubt;

/// Why a DRBD device cannot be read, or not be used as a source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrbdError {
    /// The operating system said so.
    #[error("cannot read the {what} at offset {offset}")]
    Read {
        /// What was to be read.
        what: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device ends before the metadata would.
    #[error(
        "the device of {len} bytes has no room for DRBD metadata: check the path, and whether \
         the metadata is external (meta=PATH)"
    )]
    TooShort {
        /// Length of the device in bytes.
        len: u64,
    },
    /// There is no superblock.
    #[error(
        "no DRBD metadata at offset {offset} (found {found:#010x} where its magic number would \
         be): check the path, and whether the metadata is external (meta=PATH) or indexed"
    )]
    NoMetadata {
        /// Where it was looked for, in bytes.
        offset: u64,
        /// What stands there.
        found: u32,
    },
    /// The metadata contradicts itself or the device it is on.
    #[error(
        "the DRBD metadata makes no sense: {what} is {value}; check the path and the kind of \
         metadata, and the device with drbdmeta dump-md"
    )]
    Malformed {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Superblock, activity log, bitmaps and volume are not apart.
    #[error(
        "the DRBD metadata makes no sense: its parts overlap each other or the volume; check the \
         path and the kind of metadata, and the device with drbdmeta dump-md"
    )]
    Overlapping,
    /// Two peers are said to share one bitmap.
    #[error("the DRBD metadata makes no sense: two peers share bitmap {slot}; do not use it")]
    SharedSlot {
        /// The bitmap.
        slot: u32,
    },
    /// A bitmap that does not exist was asked for.
    #[error("the DRBD metadata has no bitmap {slot}")]
    NoSuchSlot {
        /// The bitmap.
        slot: u32,
    },
    /// This is an image of nothing, or of another volume.
    #[error("{doubt}{}", advice(.holds.as_ref()))]
    Unusable {
        /// What is wrong with it.
        doubt: Doubt,
        /// What the target holds, where that matters.
        holds: Option<Generation>,
    },
    /// Something writes to the device while it is read.
    #[error(
        "the DRBD metadata changed while the device was read: take a snapshot of the backing \
         device and read that"
    )]
    Changed,
    /// Changes were asked for and none are planned.
    #[error("no increment is planned")]
    Unplanned,
}

fn advice(holds: Option<&Generation>) -> String {
    holds.map_or_else(String::new, |holds| {
        format!(
            ", and the target holds {holds}: push from the device it came from, or agree to a \
             full copy with --full"
        )
    })
}

impl Explained for DrbdError {
    fn reason(&self) -> Reason {
        match self {
            Self::Read { .. } => Reason::SourceUnreadable,
            Self::Unplanned => Reason::Failed,
            Self::TooShort { .. }
            | Self::NoMetadata { .. }
            | Self::Malformed { .. }
            | Self::Overlapping
            | Self::SharedSlot { .. }
            | Self::NoSuchSlot { .. } => Reason::MetadataDamaged,
            Self::Unusable { doubt, .. } => doubt.reason(),
            Self::Changed => Reason::SourceChanged,
        }
    }
}

/// A field of the metadata that cannot be.
pub(crate) fn malformed(what: &'static str, value: impl Into<u64>) -> DrbdError {
    DrbdError::Malformed { what, value: value.into() }
}
