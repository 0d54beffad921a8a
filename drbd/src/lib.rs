//! DRBD: which bytes of a volume changed since which generation, by its metadata; and the handle
//! on a real one.
//!
//! DRBD keeps two records of change beside the data: a *bitmap* for each peer it may have,
//! and the *activity log*, which names the regions whose bits may be set in memory only. What
//! changed is in one or the other, never in the bitmap alone, as long as data and metadata
//! are of the same instant: a snapshot of the backing device.
//!
//! * [`Metadata`]: superblock, activity log and bitmaps, found and checked on a device.
//! * [`Superblock`], [`ActivityLog`]: what they say.
//! * [`judge`]: whether a bitmap leads from a given base to this tip, or why it is [`Doubt`]ed.
//! * [`DrbdVolume`]: an image with its metadata as a [`driftline_extent::Source`].
//! * [`cross_check`]: its map, held against what the pool below says of two snapshots.
//! * [`LiveVolume`]: a volume of the DRBD on this machine as one, by snapshots that it takes.
//! * [`host`]: everything that is asked of a real DRBD, LVM and ZFS.
//! * [`tracker`]: a volume of which DRBD records the changes, and mirrors nothing.
//!
//! # What the caller vouches for
//!
//! A generation is named by the device's current UUID. That name stands for one instant only
//! if the UUID changes right after the snapshot, before anything else is written: suspend,
//! snapshot, `new-current-uuid --clear-bitmap`, resume. Metadata alone cannot tell whether
//! the snapshot that was replicated is the one at which the bitmap was cleared. Two snapshots
//! of the same name are never taken for equal here, and are compared byte by byte.
//!
//! All offsets and lengths are in bytes.
#![forbid(unsafe_code)]

mod activity_log;
mod bitmap;
mod crc32c;
mod error;
pub mod host;
mod layout;
mod live;
mod map;
mod metadata;
mod pool;
mod source;
mod superblock;
pub mod tracker;
mod trust;

#[doc(hidden)]
pub mod fuzzing;
#[doc(hidden)]
pub mod testing;

pub use activity_log::{AL_EXTENT_LEN, ActivityLog, Damage};
pub use error::DrbdError;
pub use layout::{Geometry, INDEXED_LEN, Layout, Placement};
pub use live::{
    CrossChecked, CrossChecks, GuardCommand, LiveError, LiveOptions, LiveVolume, Mode, NoRotation,
    SharedVolume, ZvolDelta, guard_process,
};
pub use map::{MAP_EXTENTS_MAX, Map};
pub use metadata::Metadata;
pub use pool::{CrossCheck, PoolDelta, cross_check};
pub use source::DrbdVolume;
pub use superblock::{Flags, Peer, PeerFlags, SUPERBLOCK_LEN, Superblock, Version};
pub use trust::{Base, Doubt, Proof, judge};
