//! The changed-extent model: what a storage adapter says and what a target hears.
//!
//! This crate holds the vocabulary of Driftline and nothing else: no I/O, no
//! encoding, no hashing, no dependency beyond `std`. Everything that could decide
//! *which bytes of a volume changed* is a plain value here, so that it can be proven
//! against a naive model.
//!
//! * [`Extent`] and [`ExtentSet`]: byte ranges and their algebra.
//! * [`Change`], [`ChangeMap`], [`Standing`]: what changed, and how far that is believed.
//! * [`Generation`], [`VolumeId`]: which point in time of which volume.
//! * [`BlockMask`], [`ChunkId`], [`Item`]: the fixed aligned units that are
//!   named by hash, deduplicated, journalled and verified.
//! * [`GrainMask`], [`GrainHash`], [`Missing`]: how a changed chunk is narrowed to what differs.
//! * [`Accepts`], [`Point`], [`Ask`]: what a target can take in, if not the changes of a volume.
//! * [`Source`], [`Volume`], [`Target`]: the seams between adapters, protocol and targets.
//!
//! All offsets and lengths are in bytes unless a name says otherwise.
#![forbid(unsafe_code)]

#[macro_use]
mod bytes;
mod change;
mod chunk;
mod extent;
mod generation;
mod reason;
mod seam;
mod set;

pub use change::{Change, ChangeMap, Standing};
pub use chunk::{
    BLOCK_LEN, BLOCKS_PER_CHUNK, BlockMask, CHUNK_LEN, ChunkId, GRAIN_LEN, GRAINS_PER_CHUNK,
    GrainHash, GrainMask, Item, PART_LEN_MAX, PART_OWN_MIN, Root, VOLUME_LEN_MAX, chunk_count,
};
pub use extent::Extent;
pub use generation::{Generation, NoGeneration, Scheme, VolumeId};
pub use reason::{OVERWRITE, Reason};
pub use seam::{
    Accepts, Ask, Begin, Committed, Explained, Finish, Missing, Offer, POINT_NAME_LEN_MAX,
    POINTS_MAX, Plan, PlanKind, Point, RECORD_LEN_MAX, ReplicaId, Resume, Source, TOKEN_LEN_MAX,
    Target, TargetState, Unreadable, Volume,
};
pub use set::ExtentSet;
