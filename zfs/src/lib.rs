//! Reader of ZFS send streams: from bytes to the changed extents of a volume.
//!
//! Everything here is synchronous and reads any [`std::io::Read`] once, from front to back,
//! in bounded memory. Nothing is believed before its checksum has been seen to match.
//! What live ZFS prints is read here as well, and what to do with it is decided; nothing is
//! run.
//!
//! * [`ZvolStream`]: a stream of one volume as a [`driftline_extent::Source`].
//! * [`RecordReader`]: the records of any stream, checked, with their payloads.
//! * [`Record`], [`Begin`], [`Features`]: what a record says.
//! * [`Nvlist`]: the name-value lists inside BEGIN records.
//! * [`Fletcher4`]: the checksum of a stream.
//! * [`DatasetName`], [`PointName`]: names, as ZFS allows them.
//! * [`Point`], [`Dataset`]: what `zfs list` and `zfs get` tell of snapshots and data sets.
//! * [`ResumeToken`]: where an interrupted send goes on.
//! * [`choose_tip`], [`choose_base`], [`newest_common`], [`prune`], [`Patterns`]: what to send,
//!   from where, and what may go.
//! * [`warnings`]: what is known to be wrong with a version of ZFS.
//!
//! All offsets and lengths are in bytes.
#![deny(unsafe_code)]

mod checksum;
mod codec;
mod error;
mod listing;
mod name;
mod nvlist;
mod reader;
mod record;
mod select;
mod source;
mod token;
mod version;
mod zvol;

#[doc(hidden)]
pub mod fuzzing;
#[doc(hidden)]
pub mod testing;

pub use checksum::{ByteOrder, Fletcher4};
pub use codec::{CodecError, Decoder};
pub use error::{Fault, StreamError};
pub use listing::{
    DATASET_COLUMNS, DATASET_PROPERTIES, DATASET_PROPERTIES_V23, Dataset, DatasetKind, KeyStatus,
    ListingError, POINT_COLUMNS, POINT_PROPERTIES, Point, parse_datasets, parse_datasets_got,
    parse_points, parse_points_got,
};
pub use name::{DatasetName, NAME_LEN_MAX, NameError, PointKind, PointName};
pub use nvlist::{Nvlist, NvlistError, Value};
pub use reader::{BEGIN_PAYLOAD_MAX, RecordReader, Summary, Tally};
pub use record::{
    BLOCK_MAX, Begin, End, Features, Free, FreeObjects, HEADER_LEN, Object, ObjectRange, Record,
    RecordKind, Spill, Write, WriteByref, WriteEmbedded,
};
pub use select::{
    Base, BaseError, Common, Divergence, OwnNames, OwnPoint, PatternError, Patterns, PrefixError,
    Request, TipError, choose_base, choose_tip, newest_common, prune, ways_out,
};
pub use source::{MAP_EXTENTS_MAX, ZvolStream};
pub use token::{ResumeToken, TOKEN_LEN_MAX, TokenError};
pub use version::{Version, VersionError, Warning, parse_versions, warnings};
