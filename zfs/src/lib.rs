//! ZFS: from the bytes of a send stream to the changed extents of a volume, or to checked parts
//! of a stream that is carried as it is; and the handle on a real ZFS.
//!
//! Everything here is synchronous. Streams are read once, from front to back, in bounded
//! memory, from any [`std::io::Read`]. Nothing is believed before its checksum has been seen
//! to match.
//!
//! * [`ZvolStream`]: a stream of one volume as a [`driftline_extent::Source`].
//! * [`LiveSource`]: a data set of the ZFS on this machine as one.
//! * [`OpaqueStream`]: any stream as it is, in parts, for a target that is ZFS itself.
//! * [`SendStream`]: whichever of the two the target takes.
//! * [`RecordReader`]: the records of any stream, checked, with their payloads.
//! * [`Record`], [`Begin`], [`Features`]: what a record says.
//! * [`Head`]: what the beginning of a stream says of all of it.
//! * [`Nvlist`]: the name-value lists inside BEGIN records.
//! * [`Fletcher4`]: the checksum of a stream.
//! * [`host::Zfs`]: snapshots, bookmarks, holds and streams of a ZFS that is there.
//! * [`DatasetName`], [`PointName`]: names, as ZFS allows them.
//! * [`Point`], [`Dataset`]: what `zfs list` and `zfs get` tell of snapshots and data sets.
//! * [`select`]: what to send, from where, and what may go.
//! * [`ResumeToken`]: where an interrupted send goes on.
//! * [`warnings`]: what is known to be wrong with a version of ZFS.
//!
//! All offsets and lengths are in bytes.
#![deny(unsafe_code)]

mod checksum;
mod codec;
mod device;
mod error;
mod head;
pub mod host;
mod listing;
mod live;
mod name;
mod nvlist;
mod opaque;
mod reader;
mod record;
pub mod select;
mod source;
mod stream;
mod token;
mod version;
mod zvol;

#[doc(hidden)]
pub mod fuzzing;
#[doc(hidden)]
pub mod testing;

pub use checksum::{ByteOrder, Fletcher4};
pub use codec::{CodecError, Decoder};
pub use device::{DeviceError, SnapshotDevice, device_of, wait_for_device};
pub use error::{Fault, StreamError};
pub use head::{Head, Member};
pub use listing::{
    DATASET_COLUMNS, DATASET_PROPERTIES, DATASET_PROPERTIES_V23, Dataset, DatasetKind, KeyStatus,
    ListingError, POINT_COLUMNS, POINT_PROPERTIES, Point, parse_datasets, parse_datasets_got,
    parse_points, parse_points_got,
};
pub use live::{LiveError, LiveOptions, LiveSource, Pick, ReadBack, SnapshotGroup};
pub use name::{DatasetName, NAME_LEN_MAX, NameError, PointKind, PointName};
pub use nvlist::{Nvlist, NvlistError, Value};
pub use opaque::{Ends, OpaqueStream};
pub use reader::{BEGIN_PAYLOAD_MAX, RecordReader, Summary, Tally};
pub use record::{
    BLOCK_MAX, Begin, End, Features, Free, FreeObjects, HEADER_LEN, Object, ObjectRange, Record,
    RecordKind, Spill, Write, WriteByref, WriteEmbedded,
};
pub use source::{MAP_EXTENTS_MAX, ZvolStream};
pub use stream::SendStream;
pub use token::{ResumeToken, TOKEN_LEN_MAX, TokenError};
pub use version::{Version, VersionError, Warning, parse_versions, warnings};
