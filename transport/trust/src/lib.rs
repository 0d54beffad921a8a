//! What the side of a source remembers of a replica, and checks against what its storage says.
//!
//! * [`Manifest`]: the ids of all chunks of the generation that a replica holds, on the source's
//!   own disk, and of the one that is on its way. Its root is what the target must come to.
//! * [`Pass`], [`sample_size`], [`draw`]: how much of the space that a map calls unchanged is read
//!   again in a run, and which part of it.
//! * [`Incidents`]: what was found, kept until a person has acknowledged it.
//! * [`Pushes`]: which source each target is a replica of.
//!
//! Nothing in here knows a clock or makes randomness; files are reached through [`Storage`]. All
//! of a manifest can be made again from data, so whatever is wrong with its files costs time and
//! never a wrong byte: each file is proven before it is believed, and started anew if it cannot be.
#![forbid(unsafe_code)]

mod audit;
#[doc(hidden)]
pub mod fuzzing;
mod ids;
mod incident;
mod log;
mod manifest;
mod pushed;
mod record;
mod state;
mod storage;
mod touched;

pub use audit::{
    CONFIDENCE, Pass, SAMPLE_MAX, SAMPLE_MIN, draw, find_probability, is_due, sample_size,
    stale_bound,
};
pub use incident::{EXTENTS_MAX, Incident, IncidentError, Incidents};
pub use log::Entry;
pub use manifest::{Base, Files, Manifest, ManifestError};
pub use pushed::{Pushed, PushedError, Pushes};
pub use state::Held;
pub use storage::{FileStorage, Storage};
pub use touched::Touched;
