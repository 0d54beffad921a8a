//! Where increments land.
//!
//! * [`Replica`]: a live target, one file or block device that is always at a generation.
//!   An increment goes to a journal, is checked whole, then applied in place, read back and
//!   committed by one atomic state record. Whatever moment the process or the machine dies
//!   at, the next [`open`] finds generation N or N + 1, never something between.
//! * [`Disk`]: the whole boundary between a replica and storage, so that a test can own it.
//! * [`FileDisk`]: real files and block devices behind that boundary.
//! * [`DeviceManager`]: makes, resizes, locks and snapshots a device that its storage manages, so that
//!   every generation is kept and nothing else can write to the newest one.
//! * [`InPlace`]: a file or device that becomes what a volume is, and [`Verified`]: what a replica
//!   holds, proven while it is read. Together they are a restore.
//! * [`Index`]: where, over all replicas of a target, a chunk of some name stands.
//! * [`Replica::scrub`]: finds damage at rest, and puts it right by hash.
//! * [`StreamTarget`] and [`Sink`]: opaque streams, into a storage that applies them itself.
//!
//! # Beside the volume
//!
//! A replica at `PATH` keeps its books in `PATH.driftline/`; for a block device the caller
//! names the directory.
//!
//! | file | holds | layout |
//! |---|---|---|
//! | `state` | which generation stands here | two checksummed slots, module `state` |
//! | `ids` | the id of every chunk of it | 32 bytes a chunk, sparse, module `ids` |
//! | `journal` | the increment being received | checksummed records, module `journal` |
//! | `overlay` | ids that the increment leads to | as `ids`; rebuilt from the journal |
//! | `repair` | the damage that a source may replace | checksummed, module `repair` |
//! | `loss-agreed` | that the next increment may lose data | text, module `loss` |
//! | `lock` | the process that has it open | flock, and its pid in decimal |
//!
//! The file of an [`Index`] is elsewhere and of all of them; module `index`.
//!
//! `state` holds the secret key under which chunks are named; the directory is for its owner
//! only.
#![forbid(unsafe_code)]

mod chunks;
mod codec;
mod device;
mod direct;
mod disk;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod ids;
mod in_place;
mod index;
mod inspect;
mod journal;
mod journaled;
mod loss;
mod manager;
mod open_path;
mod opening;
mod other_replicas;
mod own;
mod pins;
mod proven_file;
mod read_path;
mod redo;
mod repair;
mod replica;
mod restored;
mod scrub;
mod sealing;
mod sparse;
mod state;
mod stream;
mod survey;
mod through;
mod verified;
mod verify;
mod volume;
mod window;

pub use device::FileDisk;
pub use disk::{Disk, Part};
pub use error::{Problem, TargetError};
pub use in_place::InPlace;
pub use index::{Index, IndexError, Listed};
pub use inspect::{Found, Inspection, inspect, is_listed};
pub use loss::agree_to_loss;
pub use manager::{DeviceManager, Kept};
pub use open_path::{
    Options, open, open_in_place, open_kept, open_kept_to_read, open_to_read, open_to_verify,
    state_dir_of,
};
pub use other_replicas::{Entry, OtherReplicas, Take, Update};
pub use read_path::{Reading, books_of, open_read, open_read_through};
pub use replica::{Disks, Replica};
pub use restored::is_one_volume;
pub use scrub::ScrubReport;
pub use stream::{Sink, SinkState, StreamProblem, StreamTarget, StreamTargetError};
pub use survey::survey;
pub use verified::Verified;
pub use verify::VerifyReport;
