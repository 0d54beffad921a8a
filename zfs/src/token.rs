//! Resume tokens: where an interrupted send goes on, as `zfs send -t` takes it.
//!
//! A token is text, `1-CHECKSUM-LENGTH-DATA`, all but the first in hexadecimal digits: the
//! data is a packed name-value list under zlib, the length is that of the list, and the
//! checksum is the first sum of Fletcher-4 over the data. ZFS itself believes a token of any
//! origin, so one can be made here for whatever a target has durably.

use std::{fmt, num::NonZeroU64, str::FromStr};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use thiserror::Error;

use crate::{
    checksum::{ByteOrder, Fletcher4},
    name::{NameError, PointName},
    nvlist::{Nvlist, NvlistError, Value},
};

/// Longest token that is read, in bytes.
pub const TOKEN_LEN_MAX: usize = 64 << 10;

/// Longest name-value list in a token, in bytes.
const LIST_LEN_MAX: usize = 1 << 20;

/// The object that holds the content of a volume.
const VOLUME_OBJECT: u64 = 1;

/// The order in which the `zfs` of this machine adds up and packs.
const HOST: ByteOrder =
    if cfg!(target_endian = "big") { ByteOrder::Big } else { ByteOrder::Little };

/// Why a text is no resume token.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It is longer than any token.
    #[error("the resume token has {0} bytes, and none has more than {TOKEN_LEN_MAX}{ADVICE}")]
    TooLong(usize),
    /// It is not of the form that tokens have.
    #[error("this is no resume token: {0}{ADVICE}")]
    Malformed(&'static str),
    /// It is of a form that this version does not know.
    #[error("the resume token has version {0:?}, and only 1 is known: use a newer version")]
    Version(String),
    /// Its checksum does not match.
    #[error("the resume token is damaged: its checksum does not match{ADVICE}")]
    Checksum,
    /// Its data is no zlib stream of the stated length.
    #[error("the resume token is damaged: it cannot be decompressed{ADVICE}")]
    Compression,
    /// The list in it cannot be read.
    #[error("the list in the resume token is malformed{ADVICE}")]
    Nvlist(#[from] NvlistError),
    /// A value is missing, or is of the wrong type.
    #[error("the resume token does not say {0}{ADVICE}")]
    Missing(&'static str),
    /// The snapshot in it has no name that ZFS would take.
    #[error("the resume token names no snapshot{ADVICE}")]
    Name(#[from] NameError),
}

/// What to do about a token that is none.
const ADVICE: &str = "; read it again with `zfs get -H -o value receive_resume_token`";

/// Where a send goes on, of what, and in which form.
#[derive(Clone, PartialEq, Debug)]
pub struct ResumeToken {
    /// The object to go on with; 0, together with `offset`, to begin from the start.
    pub object: u64,
    /// Where in the object, in bytes.
    pub offset: u64,
    /// How much was received before, in bytes; only estimates of the rest use it.
    pub bytes: u64,
    /// The guid of the snapshot that is sent.
    pub toguid: u64,
    /// Its name when the send began. ZFS looks here first, and goes by the guid.
    pub toname: PointName,
    /// The guid of the snapshot or bookmark that the increment starts from.
    pub fromguid: Option<u64>,
    /// Blocks of more than 128 KiB may be sent as they are (`-L`).
    pub large_blocks: bool,
    /// Blocks that are embedded in their pointers may be sent as they are (`-e`).
    pub embedded: bool,
    /// Compressed blocks may be sent as they are (`-c`).
    pub compressed: bool,
    /// Everything is sent as it is on disk (`-w`).
    pub raw: bool,
    others: Vec<(String, Value)>,
}

impl ResumeToken {
    /// The token that goes on with the content of a volume, sent with `-L -c`.
    ///
    /// `offset` is up to where the target has everything durably, in bytes of the volume. It is
    /// floored to `block_len`, the volume's block size, as ZFS resumes at blocks. Below the
    /// first whole block the token begins from the start, with an ordinary stream.
    pub fn for_volume(
        toguid: u64,
        toname: PointName,
        fromguid: Option<u64>,
        offset: u64,
        block_len: NonZeroU64,
    ) -> Self {
        let offset = offset - offset % block_len;
        Self {
            object: if offset == 0 { 0 } else { VOLUME_OBJECT },
            offset,
            // ZFS subtracts this from its estimate of the whole, which may be less.
            bytes: 0,
            toguid,
            toname,
            fromguid,
            large_blocks: true,
            embedded: false,
            compressed: true,
            raw: false,
            others: Vec::new(),
        }
    }

    /// What else the token says, as it was read. It is kept, as it may change what is sent.
    pub fn others(&self) -> &[(String, Value)] {
        &self.others
    }

    /// The list in the token, in the order of the kernel.
    fn to_list(&self) -> Nvlist {
        let numbers = [
            ("fromguid", self.fromguid),
            ("object", Some(self.object)),
            ("offset", Some(self.offset)),
            ("bytes", Some(self.bytes)),
            ("toguid", Some(self.toguid)),
        ];
        let flags = [
            (LARGE_BLOCKS, self.large_blocks),
            (EMBEDDED, self.embedded),
            (COMPRESSED, self.compressed),
            (RAW, self.raw),
        ];
        let mut pairs: Vec<(String, Value)> = Vec::new();
        for (name, number) in numbers {
            pairs.extend(number.map(|number| (name.to_owned(), Value::Uint64(number))));
        }
        pairs.push(("toname".to_owned(), Value::String(self.toname.to_string())));
        for (name, _) in flags.into_iter().filter(|flag| flag.1) {
            pairs.push((name.to_owned(), Value::Boolean));
        }
        pairs.extend(self.others.iter().cloned());
        Nvlist(pairs)
    }

    fn from_list(list: Nvlist) -> Result<Self, TokenError> {
        let number = |name| list.get_u64(name).ok_or(TokenError::Missing(name));
        // As ZFS has it: a flag is set if it is there at all.
        let flag = |name| list.get(name).is_some();
        let Some(Value::String(toname)) = list.get("toname") else {
            return Err(TokenError::Missing("toname"));
        };
        let mut token = Self {
            object: number("object")?,
            offset: number("offset")?,
            bytes: number("bytes")?,
            toguid: number("toguid")?,
            toname: toname.parse()?,
            fromguid: match list.get("fromguid") {
                Some(_) => Some(number("fromguid")?).filter(|guid| *guid != 0),
                None => None,
            },
            large_blocks: flag(LARGE_BLOCKS),
            embedded: flag(EMBEDDED),
            compressed: flag(COMPRESSED),
            raw: flag(RAW),
            others: Vec::new(),
        };
        token.others = list.0;
        token.others.retain(|(name, _)| !KNOWN.contains(&name.as_str()));
        Ok(token)
    }
}

const LARGE_BLOCKS: &str = "largeblockok";
const EMBEDDED: &str = "embedok";
const COMPRESSED: &str = "compressok";
const RAW: &str = "rawok";

/// The names that have a field here.
const KNOWN: [&str; 10] = [
    "fromguid",
    "object",
    "offset",
    "bytes",
    "toguid",
    "toname",
    LARGE_BLOCKS,
    EMBEDDED,
    COMPRESSED,
    RAW,
];

impl fmt::Display for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What was read can be packed, which reading has seen to; the rest is short.
        let list = self.to_list().encode(HOST).map_err(|_| fmt::Error)?;
        let data = deflate(&list).ok_or(fmt::Error)?;
        write!(f, "1-{:x}-{:x}-", sum(&data, HOST), list.len())?;
        data.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ResumeToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() > TOKEN_LEN_MAX {
            return Err(TokenError::TooLong(text.len()));
        }
        let mut parts = text.split('-');
        let mut part = || parts.next().ok_or(TokenError::Malformed("it has not four parts"));
        let (version, checksum, len, data) = (part()?, part()?, part()?, part()?);
        if version != "1" {
            return Err(TokenError::Version(version.chars().take(16).collect()));
        }
        if parts.next().is_some() {
            return Err(TokenError::Malformed("it has more than four parts"));
        }
        let checksum = hex(checksum)?;
        let len = usize::try_from(hex(len)?).ok().filter(|len| *len <= LIST_LEN_MAX);
        let len = len.ok_or(TokenError::Malformed("its list is too long"))?;
        let data = bytes(data)?;
        // A token comes from the target, whose order of bytes may be another.
        if ![ByteOrder::Little, ByteOrder::Big].iter().any(|order| sum(&data, *order) == checksum) {
            return Err(TokenError::Checksum);
        }
        let list = Nvlist::decode(&inflate(&data, len).ok_or(TokenError::Compression)?)?;
        let token = Self::from_list(list)?;
        token.to_list().encode(HOST)?;
        Ok(token)
    }
}

/// A number of one to sixteen hexadecimal digits.
fn hex(digits: &str) -> Result<u64, TokenError> {
    // The library would take a sign.
    let number = u64::from_str_radix(digits, 16).ok();
    number
        .filter(|_| !digits.starts_with('+'))
        .ok_or(TokenError::Malformed("one of its numbers is none"))
}

/// The bytes that pairs of hexadecimal digits stand for.
fn bytes(digits: &str) -> Result<Vec<u8>, TokenError> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8; 2]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    let bytes = pairs.iter().map(byte).collect::<Option<_>>();
    bytes.filter(|_| rest.is_empty()).ok_or(TokenError::Malformed("its data is not hexadecimal"))
}

/// The checksum in a token. It is over whole words: what remains behind them is left out.
fn sum(data: &[u8], order: ByteOrder) -> u64 {
    let mut state = Fletcher4::new();
    state.update(data.as_chunks::<4>().0.as_flattened(), order);
    state.sums()[0]
}

fn deflate(list: &[u8]) -> Option<Vec<u8>> {
    // A bound on what zlib makes of it, for incompressible data: it stores that in blocks.
    let mut data = Vec::with_capacity(list.len() + list.len() / 8 + 64);
    let status = Compress::new(Compression::new(6), true)
        .compress_vec(list, &mut data, FlushCompress::Finish)
        .ok()?;
    (status == Status::StreamEnd).then_some(data)
}

/// The `len` bytes that `data` is the whole of, compressed.
fn inflate(data: &[u8], len: usize) -> Option<Vec<u8>> {
    let mut list = Vec::with_capacity(len);
    let mut zlib = Decompress::new(true);
    let status = zlib.decompress_vec(data, &mut list, FlushDecompress::Finish).ok()?;
    let whole = status == Status::StreamEnd && zlib.total_in() == data.len() as u64;
    (whole && list.len() == len).then_some(list)
}

/// The same token with the checksum that belongs there, as far as there is one.
pub(crate) fn mended(text: &str) -> String {
    let parts: Vec<&str> = text.splitn(4, '-').collect();
    match (&parts[..], parts.get(3).map(|data| bytes(data))) {
        ([version, _, len, data], Some(Ok(bytes))) => {
            format!("{version}-{:x}-{len}-{data}", sum(&bytes, HOST))
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
