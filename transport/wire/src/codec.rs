//! Bytes by hand: one reader that cannot overrun, one writer, little-endian throughout.

use driftline_extent::{
    Accepts, BlockMask, CHUNK_LEN, ChunkId, Generation, Item, PART_LEN_MAX, POINT_NAME_LEN_MAX,
    POINTS_MAX, Plan, PlanKind, Point, Reason, ReplicaId, Resume, Root, Scheme, Standing,
    TOKEN_LEN_MAX, VOLUME_LEN_MAX, VolumeId,
};

/// Why bytes from a peer are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the value does.
    #[error("{what} is cut short")]
    Truncated {
        /// The field that was being read.
        what: &'static str,
    },
    /// There are bytes after the value.
    #[error("{count} bytes too many")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// A number stands for nothing that this version knows.
    #[error("{what} has the unknown value {value}")]
    Unknown {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A length, count or position is above its limit.
    #[error("{what} is {value}, above the limit of {limit}")]
    Limit {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// A value contradicts itself.
    #[error("{what} makes no sense")]
    Invalid {
        /// The field.
        what: &'static str,
    },
}

/// Reads values off a slice; never past its end.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn bytes(
        &mut self,
        len: usize,
        what: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) =
            self.rest.split_at_checked(len).ok_or(DecodeError::Truncated { what })?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated { what })?;
        self.rest = rest;
        Ok(*array)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A number that may be at most `limit`.
    pub(crate) fn bounded(&mut self, limit: u64, what: &'static str) -> Result<u64, DecodeError> {
        let value = self.u64(what)?;
        if value > limit { Err(DecodeError::Limit { what, value, limit }) } else { Ok(value) }
    }

    /// A byte that is 0 or 1.
    pub(crate) fn bool(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Unknown { what, value: value.into() }),
        }
    }

    /// A value that a byte of 0 or 1 says is absent or present.
    pub(crate) fn option<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.bool(what)? { read(self).map(Some) } else { Ok(None) }
    }

    /// Text of at most `limit` bytes.
    pub(crate) fn text(&mut self, limit: usize, what: &'static str) -> Result<String, DecodeError> {
        let len = usize::from(self.u16(what)?);
        if len > limit {
            return Err(DecodeError::Limit { what, value: len as u64, limit: limit as u64 });
        }
        let bytes = self.bytes(len, what)?.to_vec();
        String::from_utf8(bytes).map_err(|_| DecodeError::Invalid { what })
    }

    /// Everything has been read.
    pub(crate) const fn end(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { count }),
        }
    }
}

/// Appends values to a buffer.
pub(crate) trait Write {
    fn put(&mut self, bytes: &[u8]);

    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }
    fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
    fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }
    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T))
    where
        Self: Sized,
    {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }
    /// Text, cut at a character boundary so that it fits in `limit` bytes.
    fn text(&mut self, text: &str, limit: u16) {
        let text = &text[..text.floor_char_boundary(limit.into())];
        self.u16(text.len() as u16);
        self.put(text.as_bytes());
    }
}

impl Write for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// A value with one encoding.
pub(crate) trait Codec: Sized {
    fn encode(&self, out: &mut Vec<u8>);
    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// Newtypes over byte arrays are those bytes.
macro_rules! array_codec {
    ($($name:ident),*) => {$(
        impl Codec for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                out.put(&self.0);
            }
            fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
                from.array(stringify!($name)).map(Self)
            }
        }
    )*};
}

array_codec!(ChunkId, ReplicaId, Root, VolumeId);

/// Behind this stand the letters of a scheme that has no number.
const OPEN_SCHEME: u8 = 4;

impl Codec for Generation {
    fn encode(&self, out: &mut Vec<u8>) {
        match self.scheme().code() {
            Some(code) => out.u8(code),
            None => {
                out.u8(OPEN_SCHEME);
                out.text(self.scheme().as_str(), Scheme::LEN_MAX as u16);
                out.u8(self.name().len() as u8);
            }
        }
        out.put(self.name());
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (scheme, len) = match from.u8("generation kind")? {
            OPEN_SCHEME => {
                let letters = from.text(Scheme::LEN_MAX, "generation scheme")?;
                // One generation has one encoding.
                let scheme = Scheme::new(&letters).filter(|scheme| scheme.code().is_none());
                let scheme = scheme.ok_or(DecodeError::Invalid { what: "generation scheme" })?;
                (scheme, from.u8("generation length")?.into())
            }
            code => Scheme::of_code(code).ok_or_else(|| DecodeError::Unknown {
                what: "generation kind",
                value: code.into(),
            })?,
        };
        let name = from.bytes(len, "generation")?;
        Self::new(scheme, name).ok_or(DecodeError::Invalid { what: "generation" })
    }
}

impl Codec for Resume {
    fn encode(&self, out: &mut Vec<u8>) {
        out.option(self.base.as_ref(), |out, base| base.encode(out));
        out.option(self.tip.as_ref(), |out, tip| tip.encode(out));
        out.u64(self.from);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            base: from.option("resume base", Generation::decode)?,
            tip: from.option("resume tip", Generation::decode)?,
            from: from.bounded(CHUNKS_MAX, "resume watermark")?,
        })
    }
}

/// Chunk indices are below this.
pub(crate) const CHUNKS_MAX: u64 = VOLUME_LEN_MAX / CHUNK_LEN;

const TAKES_VOLUME: u8 = 1;
const TAKES_STREAM: u8 = 2;

impl Codec for Accepts {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Volume => out.u8(TAKES_VOLUME),
            Self::Stream { token, points } => {
                out.u8(TAKES_STREAM);
                out.option(token.as_ref(), |out, token| out.text(token, TOKEN_LEN_MAX));
                let points = &points[..points.len().min(POINTS_MAX.into())];
                out.u16(points.len() as u16);
                points.iter().for_each(|point| point.encode(out));
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match from.u8("what it takes")? {
            TAKES_VOLUME => Ok(Self::Volume),
            TAKES_STREAM => {
                let token = from.option("resume token", resume_token)?;
                let count = from.u16("point count")?;
                if count > POINTS_MAX {
                    let (value, limit) = (count.into(), POINTS_MAX.into());
                    return Err(DecodeError::Limit { what: "point count", value, limit });
                }
                let points = (0..count).map(|_| Point::decode(from)).collect::<Result<_, _>>()?;
                Ok(Self::Stream { token, points })
            }
            value => Err(DecodeError::Unknown { what: "what it takes", value: value.into() }),
        }
    }
}

/// A token becomes an argument of a command, so nothing is let in that could be another one.
fn resume_token(from: &mut Reader<'_>) -> Result<String, DecodeError> {
    let token = from.text(TOKEN_LEN_MAX.into(), "resume token")?;
    let first = token.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if first && rest { Ok(token) } else { Err(DecodeError::Invalid { what: "resume token" }) }
}

impl Codec for Point {
    fn encode(&self, out: &mut Vec<u8>) {
        out.u64(self.guid);
        out.text(&self.name, POINT_NAME_LEN_MAX);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let guid = from.u64("guid of a point")?;
        let name = from.text(POINT_NAME_LEN_MAX.into(), "name of a point")?;
        // It will be printed.
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(DecodeError::Invalid { what: "name of a point" });
        }
        Ok(Self { guid, name })
    }
}

const PLAN_KINDS: [(PlanKind, u8); 4] =
    [(PlanKind::Incremental, 1), (PlanKind::Full, 2), (PlanKind::Scan, 3), (PlanKind::Stream, 4)];

impl Codec for Plan {
    fn encode(&self, out: &mut Vec<u8>) {
        // A plan that has nothing to offer is never offered.
        let kind = PLAN_KINDS.iter().find(|row| row.0 == self.kind).map_or(0, |row| row.1);
        out.u8(kind);
        out.option(self.volume.as_ref(), |out, volume| volume.encode(out));
        out.option(self.base.as_ref(), |out, base| base.encode(out));
        out.option(self.tip.as_ref(), |out, tip| tip.encode(out));
        out.option(self.size, Write::u64);
        out.u16(self.standing.reason().map_or(0, Reason::code));
        out.u64(self.bytes_expected);
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let kind = from.u8("plan kind")?;
        let unknown = DecodeError::Unknown { what: "plan kind", value: kind.into() };
        let kind = PLAN_KINDS.iter().find(|row| row.1 == kind).map(|row| row.0).ok_or(unknown)?;
        Ok(Self {
            kind,
            volume: from.option("volume", VolumeId::decode)?,
            base: from.option("base", Generation::decode)?,
            tip: from.option("tip", Generation::decode)?,
            size: from.option("size", |from| from.bounded(VOLUME_LEN_MAX, "size"))?,
            standing: match from.u16("standing")? {
                0 => Standing::Proven,
                // A newer peer's reason is still a reason not to believe.
                code => Standing::Suspect(Reason::from_code(code).unwrap_or(Reason::Failed)),
            },
            bytes_expected: from.u64("bytes expected")?,
        })
    }
}

const ITEM_CHUNK: u8 = 1;
const ITEM_WHOLE_CHUNK: u8 = 2;
const ITEM_ZERO: u8 = 3;
const ITEM_SPAN: u8 = 4;
const ITEM_PART: u8 = 5;

impl Codec for Item {
    fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Chunk { index, data, zero: _, id } if data.is_all() => {
                out.u8(ITEM_WHOLE_CHUNK);
                out.u64(index);
                id.encode(out);
            }
            Self::Chunk { index, data, zero, id } => {
                out.u8(ITEM_CHUNK);
                out.u64(index);
                out.put(&data.0.to_le_bytes());
                out.put(&zero.0.to_le_bytes());
                id.encode(out);
            }
            Self::Zero { index, count } => {
                out.u8(ITEM_ZERO);
                out.u64(index);
                out.u64(count);
            }
            Self::Span { index, count, digest } => {
                out.u8(ITEM_SPAN);
                out.u64(index);
                out.u64(count);
                digest.encode(out);
            }
            Self::Part { index, len, id } => {
                out.u8(ITEM_PART);
                out.u64(index);
                out.u32(len);
                id.encode(out);
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let tag = from.u8("item kind")?;
        let index = from.bounded(CHUNKS_MAX - 1, "chunk index")?;
        match tag {
            ITEM_WHOLE_CHUNK => {
                let (data, zero) = (BlockMask::ALL, BlockMask::NONE);
                let id = ChunkId::decode(from)?;
                if id.is_zero() {
                    return Err(DecodeError::Invalid { what: "chunk item" });
                }
                Ok(Self::Chunk { index, data, zero, id })
            }
            ITEM_CHUNK => {
                let data = BlockMask(u128::from_le_bytes(from.array("data mask")?));
                let zero = BlockMask(u128::from_le_bytes(from.array("zero mask")?));
                let id = ChunkId::decode(from)?;
                let overlap = !data.intersect(zero).is_empty();
                // One change has one encoding: the others are not made by any sender.
                let other = data.is_all() || zero.is_all() || data.union(zero).is_empty();
                if overlap || other || data.is_empty() != id.is_zero() {
                    return Err(DecodeError::Invalid { what: "chunk item" });
                }
                Ok(Self::Chunk { index, data, zero, id })
            }
            ITEM_ZERO => Ok(Self::Zero { index, count: count(from, index)? }),
            ITEM_SPAN => {
                let count = count(from, index)?;
                Ok(Self::Span { index, count, digest: ChunkId::decode(from)? })
            }
            ITEM_PART => {
                let (len, id) = (from.u32("part length")?, ChunkId::decode(from)?);
                match u64::from(len) {
                    0 => Err(DecodeError::Invalid { what: "part length" }),
                    1..=PART_LEN_MAX => Ok(Self::Part { index, len, id }),
                    value => {
                        let limit = PART_LEN_MAX;
                        Err(DecodeError::Limit { what: "part length", value, limit })
                    }
                }
            }
            value => Err(DecodeError::Unknown { what: "item kind", value: value.into() }),
        }
    }
}

/// A count of chunks from `index` on: at least one, and within the largest volume.
fn count(from: &mut Reader<'_>, index: u64) -> Result<u64, DecodeError> {
    match from.bounded(CHUNKS_MAX - index, "chunk count")? {
        0 => Err(DecodeError::Invalid { what: "chunk count" }),
        count => Ok(count),
    }
}
