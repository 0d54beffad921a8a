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
//! * [`Record`]: what is kept of the base for that.
//! * [`DrbdVolume`]: an image with its metadata as a [`driftline_extent::Source`].
//! * [`cross_check`]: its map, held against what the pool below says of two snapshots.
//! * [`LiveVolume`]: a volume of the DRBD on this machine as one, by snapshots that it takes.
//! * [`host`]: everything that is asked of a real DRBD, LVM and ZFS.
//! * [`tracker`]: a volume of which DRBD records the changes, and mirrors nothing.
//!
//! # What the caller vouches for
//!
//! A current UUID names a time, and not an instant: until it changes, every snapshot has it, and so
//! has every node of a pair. It names a generation only where the caller vouches for a *rotation*:
//! the UUID changed and the bitmap was cleared right after the snapshot, before anything else was
//! written (suspend, snapshot, `new-current-uuid --clear-bitmap`, resume). Whatever else is
//! replicated is named by its content.
//!
//! No map is believed without the [`Record`] of the very content that the target holds: which node
//! and which metadata it was of, that it was rotated, and whose the bitmaps were. A target of which
//! no record was kept is compared byte by byte, and so are two snapshots of one name.
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
mod record;
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
pub use record::Record;
pub use source::DrbdVolume;
pub use superblock::{Flags, Peer, PeerFlags, SUPERBLOCK_LEN, Superblock, Version};
pub use trust::{Base, Doubt, Proof, judge};
