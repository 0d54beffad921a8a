//! What can be wrong with a stream, where, and what to do about it.

use std::{error::Error, fmt, io};

use driftline_extent::{Explained, Generation, Reason};
use thiserror::Error;

use crate::{codec::CodecError, nvlist::NvlistError, record::Features};

/// What is wrong with a stream.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Fault {
    /// Reading failed.
    #[error("the stream cannot be read")]
    Read(#[source] io::Error),
    /// There is not a single byte.
    #[error("the stream is empty")]
    Empty,
    /// It does not begin with a BEGIN record.
    #[error("this is no ZFS send stream")]
    NotAStream,
    /// It ends too early: inside a record, or between records but without END.
    #[error("the stream ends before its END record")]
    Truncated,
    /// A checksum does not match what was read.
    #[error("a checksum does not match: the stream is damaged")]
    Checksum,
    /// A header or a block contradicts the format.
    #[error("the stream is malformed: {0}")]
    Malformed(&'static str),
    /// A payload is longer than any can be.
    #[error("the stream is malformed: a payload of {len} bytes where {max} is the most")]
    TooLong {
        /// The length stated.
        len: u64,
        /// The most there can be.
        max: u64,
    },
    /// An nvlist cannot be read.
    #[error("the list of properties in the stream is malformed")]
    Nvlist(#[source] NvlistError),
    /// A block cannot be decompressed.
    #[error("the block at offset {offset} of the volume cannot be decompressed")]
    Codec {
        /// Where in the volume.
        offset: u64,
        /// Why.
        #[source]
        source: CodecError,
    },
    /// Changes of the volume do not ascend.
    #[error("out of order: a change at offset {offset} of the volume, below {expected}")]
    OutOfOrder {
        /// Where it is.
        offset: u64,
        /// Where the one before ended.
        expected: u64,
    },
    /// A stream of a whole volume does not say how large the volume is.
    #[error("the stream has no size of the volume")]
    NoSize,
    /// Bytes follow the end.
    #[error("something follows the end of the stream")]
    Trailing,
    /// A kind of record that this version does not know.
    #[error("the stream has a record of unknown kind {0}")]
    UnknownRecord(u32),
    /// Features that this version does not know.
    #[error("the stream uses features that are not known here: {0}")]
    UnknownFeatures(Features),
    /// Made with `zfs send -D`.
    #[error("the stream is deduplicated")]
    Deduplicated,
    /// Made with `zfs send --redact`.
    #[error("the stream is redacted: some of the content is withheld")]
    Redacted,
    /// Made with `zfs send -w` of an encrypted data set.
    #[error("the stream is raw encrypted: its content cannot be read without the key")]
    RawEncrypted,
    /// The stream is of something else, such as a file system.
    #[error("the stream is of {} and not of a volume", objset_name(*.0))]
    NotAVolume(u32),
    /// The stream starts elsewhere than the target stands.
    #[error(
        "the stream leads {} to zfs:{to}, but the target holds {}",
        Start(*.from), Held(.base.as_ref())
    )]
    BaseMismatch {
        /// What the target holds.
        base: Option<Generation>,
        /// Where the nearest substream starts from; zero if it has everything.
        from: u64,
        /// Where it leads.
        to: u64,
    },
    /// A resumed stream lacks data that the target lacks too.
    #[error(
        "the stream goes on at offset {at} of the volume, but the target has no more than {from}"
    )]
    Resumed {
        /// Where the stream goes on.
        at: u64,
        /// Up to where the target has everything.
        from: u64,
    },
    /// The target holds a part of an increment, and the stream is not the rest of it.
    #[error(
        "the target holds a part of an increment that was cut off, and the stream does not go on \
         there"
    )]
    NotResumed,
    /// The stream is the rest of an increment, and the target does not hold the first part.
    #[error("the stream goes on where another was cut off, but the target holds no part of one")]
    NothingToResume,
    /// Changes were asked for and none are planned.
    #[error("no increment is planned")]
    Unplanned,
    /// The increment was not read to its end.
    #[error("the increment has not been read to its end")]
    Unfinished,
    /// An error occurred before, after which the place in the stream is not known.
    #[error("the stream failed before")]
    Poisoned,
}

impl Fault {
    /// What to do about it.
    fn advice(&self) -> &'static str {
        match self {
            Self::Read(_) => "check the device or the pipe that it comes from",
            Self::Empty => "check that `zfs send` succeeded",
            Self::NotAStream => {
                "give the output of `zfs send` as it is, neither compressed nor wrapped"
            }
            Self::Truncated => {
                "it was cut off, or is the saved part of an interrupted receive \
                 (`zfs send -S`): send it again and check the exit status of `zfs send`"
            }
            Self::Checksum
            | Self::Malformed(_)
            | Self::TooLong { .. }
            | Self::Nvlist(_)
            | Self::Codec { .. }
            | Self::OutOfOrder { .. }
            | Self::NoSize
            | Self::Trailing => "send it again with `zfs send`",
            Self::UnknownRecord(_) | Self::UnknownFeatures(_) => {
                "it comes from a newer ZFS: use a newer version of this program"
            }
            Self::Deduplicated => "send it again without -D",
            Self::Redacted => "send the snapshot itself, without --redact",
            Self::RawEncrypted => {
                "load the key and send it again without -w, or push it as it is to zfs:POOL/DATASET"
            }
            Self::NotAVolume(_) => "send a volume, or push it as it is to zfs:POOL/DATASET",
            Self::BaseMismatch { base: None, .. } => {
                "send the snapshot as a whole first, without -i or -I"
            }
            Self::BaseMismatch { .. } => {
                "send an increment that starts from what the target holds, or run again with `--full`"
            }
            Self::Resumed { .. } => "resume at or below that, or send the whole increment again",
            Self::NotResumed => {
                "send what `zfs send -t` makes of the target's receive_resume_token, or have that \
                 part given up there with `zfs receive -A`"
            }
            Self::NothingToResume => "send the whole increment again, without -t",
            Self::Unplanned => "plan one first",
            Self::Unfinished => "read all its changes first",
            Self::Poisoned => "open it anew",
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Empty
            | Self::NotAStream
            | Self::Truncated
            | Self::Checksum
            | Self::Malformed(_)
            | Self::TooLong { .. }
            | Self::Nvlist(_)
            | Self::Codec { .. }
            | Self::OutOfOrder { .. }
            | Self::NoSize
            | Self::Trailing => Reason::StreamDamaged,
            Self::UnknownRecord(_)
            | Self::UnknownFeatures(_)
            | Self::Deduplicated
            | Self::Redacted
            | Self::RawEncrypted
            | Self::NotAVolume(_) => Reason::Unsupported,
            Self::BaseMismatch { .. }
            | Self::Resumed { .. }
            | Self::NotResumed
            | Self::NothingToResume => Reason::BaseMismatch,
            Self::Read(_) => Reason::SourceUnreadable,
            Self::Unplanned | Self::Unfinished | Self::Poisoned => Reason::Failed,
        }
    }
}

fn objset_name(number: u32) -> String {
    match number {
        2 => "a file system".to_owned(),
        other => format!("an object set of type {other}"),
    }
}

/// Where a stream starts, in words.
struct Start(u64);

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("from nothing"),
            guid => write!(f, "from zfs:{guid}"),
        }
    }
}

/// What a target holds, in words.
struct Held<'a>(Option<&'a Generation>);

impl fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("nothing"),
            Some(generation) => generation.fmt(f),
        }
    }
}

/// A [`Fault`] and where it was found.
#[derive(Debug)]
pub struct StreamError {
    fault: Fault,
    offset: u64,
    snapshot: Option<Box<str>>,
}

impl StreamError {
    pub(crate) fn new(fault: Fault, offset: u64, snapshot: Option<&str>) -> Self {
        Self { fault, offset, snapshot: snapshot.map(Box::from) }
    }

    /// What is wrong.
    pub const fn fault(&self) -> &Fault {
        &self.fault
    }

    /// At which byte of the stream it was found: where the record starts that shows it, or,
    /// for a stream that ends early, where it ends.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The snapshot that was sent, as the BEGIN record names it.
    pub fn snapshot(&self) -> Option<&str> {
        self.snapshot.as_deref()
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at byte {} of the stream", self.fault, self.offset)?;
        if let Some(snapshot) = &self.snapshot {
            // Quoted and escaped: a name from outside does not get to drive a terminal.
            write!(f, " of {snapshot:?}")?;
        }
        write!(f, "): {}", self.fault.advice())
    }
}

impl Error for StreamError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.fault.source()
    }
}

impl StreamError {
    /// Whether it is only that there was no more to read: whoever wrote it may know why.
    pub const fn is_about_the_end(&self) -> bool {
        matches!(self.fault, Fault::Empty | Fault::Truncated | Fault::Read(_))
    }
}

impl Explained for StreamError {
    fn reason(&self) -> Reason {
        self.fault.reason()
    }
}
