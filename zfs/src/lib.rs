//! Reader of ZFS send streams: from bytes to the changed extents of a volume, or to checked parts
//! of a stream that is carried as it is.
//!
//! Everything here is synchronous and reads any [`std::io::Read`] once, from front to back,
//! in bounded memory. Nothing is believed before its checksum has been seen to match.
//!
//! * [`ZvolStream`]: a stream of one volume as a [`driftline_extent::Source`].
//! * [`OpaqueStream`]: any stream as it is, in parts, for a target that is ZFS itself.
//! * [`RecordReader`]: the records of any stream, checked, with their payloads.
//! * [`Record`], [`Begin`], [`Features`]: what a record says.
//! * [`Nvlist`]: the name-value lists inside BEGIN records.
//! * [`Fletcher4`]: the checksum of a stream.
//!
//! All offsets and lengths are in bytes.
#![deny(unsafe_code)]

mod checksum;
mod codec;
mod error;
mod name;
mod nvlist;
mod opaque;
mod reader;
mod record;
mod source;
mod zvol;

#[doc(hidden)]
pub mod fuzzing;
#[doc(hidden)]
pub mod testing;

pub use checksum::{ByteOrder, Fletcher4};
pub use codec::{CodecError, Decoder};
pub use error::{Fault, StreamError};
pub use name::{DatasetName, NAME_LEN_MAX, NameError, PointKind, PointName};
pub use nvlist::{Nvlist, NvlistError, Value};
pub use opaque::{Ends, OpaqueStream};
pub use reader::{BEGIN_PAYLOAD_MAX, RecordReader, Summary, Tally};
pub use record::{
    BLOCK_MAX, Begin, End, Features, Free, FreeObjects, HEADER_LEN, Object, ObjectRange, Record,
    RecordKind, Spill, Write, WriteByref, WriteEmbedded,
};
pub use source::{MAP_EXTENTS_MAX, ZvolStream};
