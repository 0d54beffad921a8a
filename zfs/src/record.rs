//! The records of a send stream: a fixed header each, in either byte order.

use std::fmt;

use crate::checksum::ByteOrder;

/// Length of every record's header; a payload may follow it.
pub const HEADER_LEN: usize = 312;

/// The largest block there is, and so the largest payload of any record but BEGIN.
pub const BLOCK_MAX: u64 = 16 << 20;

/// Where the checksum of all that precedes stands in every header but BEGIN's.
pub(crate) const CHECKSUM_AT: usize = HEADER_LEN - 32;

/// The number that every BEGIN carries at offset 8, in the order of its sender.
const MAGIC: u64 = 0x0000_0002_f5ba_cbac;

/// Object set type of a volume.
pub(crate) const OBJSET_VOLUME: u32 = 3;

/// What a record is, by the number in its header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum RecordKind {
    /// Opens a stream or a substream.
    Begin = 0,
    /// An object exists and looks like this.
    Object = 1,
    /// A range of objects does not exist.
    FreeObjects = 2,
    /// A block of an object.
    Write = 3,
    /// A range of an object is a hole.
    Free = 4,
    /// Closes a substream.
    End = 5,
    /// A block that was sent before (deduplicated streams only).
    WriteByref = 6,
    /// Attributes that did not fit in an object.
    Spill = 7,
    /// A block small enough to have stood in its block pointer.
    WriteEmbedded = 8,
    /// Keys of a range of objects (raw encrypted streams only).
    ObjectRange = 9,
    /// A range whose content is withheld (redacted streams only).
    Redact = 10,
}

impl RecordKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Begin,
        Self::Object,
        Self::FreeObjects,
        Self::Write,
        Self::Free,
        Self::End,
        Self::WriteByref,
        Self::Spill,
        Self::WriteEmbedded,
        Self::ObjectRange,
        Self::Redact,
    ];

    /// The kind with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// The name that ZFS's own tools print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Begin => "BEGIN",
            Self::Object => "OBJECT",
            Self::FreeObjects => "FREEOBJECTS",
            Self::Write => "WRITE",
            Self::Free => "FREE",
            Self::End => "END",
            Self::WriteByref => "WRITE_BYREF",
            Self::Spill => "SPILL",
            Self::WriteEmbedded => "WRITE_EMBEDDED",
            Self::ObjectRange => "OBJECT_RANGE",
            Self::Redact => "REDACT",
        }
    }
}

/// The features that a stream uses: 56 bits of its BEGIN.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features(pub u64);

impl Features {
    /// Blocks may be references to earlier ones.
    pub const DEDUP: Self = Self(1 << 0);
    /// The same, with the property that asks for it.
    pub const DEDUPPROPS: Self = Self(1 << 1);
    /// Attributes may spill.
    pub const SA_SPILL: Self = Self(1 << 2);
    /// WRITE_EMBEDDED records occur.
    pub const EMBED_DATA: Self = Self(1 << 16);
    /// Payloads may be LZ4.
    pub const LZ4: Self = Self(1 << 17);
    /// Blocks may be larger than 128 KiB.
    pub const LARGE_BLOCKS: Self = Self(1 << 19);
    /// The stream goes on where another was cut off.
    pub const RESUMING: Self = Self(1 << 20);
    /// Some content is withheld.
    pub const REDACTED: Self = Self(1 << 21);
    /// Payloads are compressed as on disk.
    pub const COMPRESSED: Self = Self(1 << 22);
    /// Objects may take several slots.
    pub const LARGE_DNODE: Self = Self(1 << 23);
    /// Payloads are encrypted as on disk.
    pub const RAW: Self = Self(1 << 24);
    /// Payloads may be Zstandard.
    pub const ZSTD: Self = Self(1 << 25);
    /// The nvlist has the snapshots' holds.
    pub const HOLDS: Self = Self(1 << 26);
    /// The receiver may switch to large blocks.
    pub const SWITCH_TO_LARGE_BLOCKS: Self = Self(1 << 27);
    /// File names may be longer than 255 bytes.
    pub const LONGNAME: Self = Self(1 << 28);
    /// Directories' first blocks may be larger than 128 KiB.
    pub const LARGE_MICROZAP: Self = Self(1 << 29);

    const NAMES: [(Self, &'static str); 16] = [
        (Self::DEDUP, "DEDUP"),
        (Self::DEDUPPROPS, "DEDUPPROPS"),
        (Self::SA_SPILL, "SA_SPILL"),
        (Self::EMBED_DATA, "EMBED_DATA"),
        (Self::LZ4, "LZ4"),
        (Self::LARGE_BLOCKS, "LARGE_BLOCKS"),
        (Self::RESUMING, "RESUMING"),
        (Self::REDACTED, "REDACTED"),
        (Self::COMPRESSED, "COMPRESSED"),
        (Self::LARGE_DNODE, "LARGE_DNODE"),
        (Self::RAW, "RAW"),
        (Self::ZSTD, "ZSTD"),
        (Self::HOLDS, "HOLDS"),
        (Self::SWITCH_TO_LARGE_BLOCKS, "SWITCH_TO_LARGE_BLOCKS"),
        (Self::LONGNAME, "LONGNAME"),
        (Self::LARGE_MICROZAP, "LARGE_MICROZAP"),
    ];

    /// Whether any of `others` is used.
    pub const fn has_any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// The features that this version has no name for.
    pub fn unknown(self) -> Self {
        Self(Self::NAMES.iter().fold(self.0, |rest, (feature, _)| rest & !feature.0))
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (feature, name) in Self::NAMES {
            if self.has_any(feature) {
                write!(f, "{separator}{name}")?;
                separator = " ";
            }
        }
        for bit in (0..u64::BITS).filter(|bit| self.unknown().0 >> bit & 1 == 1) {
            write!(f, "{separator}bit {bit}")?;
            separator = " ";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

/// Opens a stream. Its payload is a packed nvlist, or nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begin {
    /// Whether this opens a stream of substreams (`-p`, `-R`, `-I`) and is none itself.
    pub compound: bool,
    /// The features the stream uses.
    pub features: Features,
    /// When the snapshot was made, in seconds since 1970.
    pub creation_time: u64,
    /// What was sent: 2 is a file system, 3 a volume.
    pub objset_type: u32,
    /// Flags of the data set, of no concern to a reader of volumes.
    pub flags: u32,
    /// The guid of the snapshot that was sent.
    pub toguid: u64,
    /// The guid of the snapshot or bookmark it starts from; zero if it has everything.
    pub fromguid: u64,
    /// The name of the snapshot that was sent, for people only; printed lossily.
    pub toname: String,
    /// Length of the payload.
    pub payload_len: u32,
}

/// Says that an object exists. Its payload is the bonus, of no concern here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Object {
    /// Which.
    pub object: u64,
    /// What it holds: 23 is a volume's data, 24 a volume's properties.
    pub object_type: u32,
    /// Length of its blocks.
    pub block_len: u32,
    /// Length of the bonus.
    pub bonus_len: u32,
    /// Length of the bonus in a raw stream, else zero.
    pub raw_bonus_len: u32,
    /// The snapshot.
    pub toguid: u64,
}

/// Says that a range of objects does not exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreeObjects {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// The snapshot.
    pub toguid: u64,
}

/// A block. Its payload is the block, compressed if `compression` is not zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Write {
    /// Of which object.
    pub object: u64,
    /// Where in the object.
    pub offset: u64,
    /// Length of the block.
    pub logical_len: u64,
    /// How the payload is compressed; zero if this stream does not say because it is not.
    pub compression: u8,
    /// Length of the payload if `compression` is not zero.
    pub compressed_len: u64,
    /// The snapshot.
    pub toguid: u64,
}

/// A range of an object that is a hole; also the layout of REDACT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Free {
    /// Of which object.
    pub object: u64,
    /// Where in the object.
    pub offset: u64,
    /// How long; `u64::MAX` means to the end of the object.
    pub len: u64,
    /// The snapshot.
    pub toguid: u64,
}

/// Closes a substream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// The checksum of everything from BEGIN to here.
    pub checksum: [u64; 4],
    /// The snapshot.
    pub toguid: u64,
}

/// A block that equals one sent before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteByref {
    /// Of which object.
    pub object: u64,
    /// Where in the object.
    pub offset: u64,
    /// Length of the block.
    pub len: u64,
    /// The snapshot.
    pub toguid: u64,
    /// In which snapshot the other stands.
    pub refguid: u64,
    /// In which object.
    pub refobject: u64,
    /// At which offset.
    pub refoffset: u64,
}

/// Attributes that did not fit in an object. Its payload is them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spill {
    /// Of which object.
    pub object: u64,
    /// How long.
    pub len: u64,
    /// Length of the payload if not zero.
    pub compressed_len: u64,
    /// The snapshot.
    pub toguid: u64,
}

/// A small block. Its payload is the compressed block, filled up to a multiple of eight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteEmbedded {
    /// Of which object.
    pub object: u64,
    /// Where in the object.
    pub offset: u64,
    /// Length of the block.
    pub len: u64,
    /// How the payload is compressed.
    pub compression: u8,
    /// What the payload is; zero is data.
    pub etype: u8,
    /// Length of what the payload decompresses to; zeros follow up to `len`.
    pub logical_len: u32,
    /// Length of the payload proper.
    pub physical_len: u32,
    /// The snapshot.
    pub toguid: u64,
}

/// Keys of a range of objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectRange {
    /// The first object.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// The snapshot.
    pub toguid: u64,
}

/// One record, without its payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// Opens a stream or a substream.
    Begin(Begin),
    /// An object exists and looks like this.
    Object(Object),
    /// A range of objects does not exist.
    FreeObjects(FreeObjects),
    /// A block of an object.
    Write(Write),
    /// A range of an object is a hole.
    Free(Free),
    /// Closes a substream.
    End(End),
    /// A block that was sent before.
    WriteByref(WriteByref),
    /// Attributes that did not fit in an object.
    Spill(Spill),
    /// A block small enough to have stood in its block pointer.
    WriteEmbedded(WriteEmbedded),
    /// Keys of a range of objects.
    ObjectRange(ObjectRange),
    /// A range whose content is withheld.
    Redact(Free),
}

/// The integers of a header, in the order of its sender.
struct Fields<'a> {
    header: &'a [u8; HEADER_LEN],
    order: ByteOrder,
}

impl Fields<'_> {
    /// The `N` bytes at a fixed offset, which each caller below states as a constant.
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.header[at..at + N]);
        bytes
    }

    fn u8(&self, at: usize) -> u8 {
        self.header[at]
    }

    fn u32(&self, at: usize) -> u32 {
        self.order.u32(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        self.order.u64(self.bytes(at))
    }

    fn sums(&self, at: usize) -> [u64; 4] {
        [self.u64(at), self.u64(at + 8), self.u64(at + 16), self.u64(at + 24)]
    }
}

/// The byte order of a BEGIN header, if it is one.
pub(crate) fn order_of_begin(header: &[u8; HEADER_LEN]) -> Option<ByteOrder> {
    [ByteOrder::Little, ByteOrder::Big].into_iter().find(|&order| {
        let fields = Fields { header, order };
        fields.u32(0) == RecordKind::Begin as u32 && fields.u64(8) == MAGIC
    })
}

/// The number of the header's kind, known or not.
pub(crate) fn kind_number(header: &[u8; HEADER_LEN], order: ByteOrder) -> u32 {
    Fields { header, order }.u32(0)
}

/// The checksum that every header but BEGIN's carries; all zero if it carries none.
pub(crate) fn checksum_of(header: &[u8; HEADER_LEN], order: ByteOrder) -> [u64; 4] {
    Fields { header, order }.sums(CHECKSUM_AT)
}

impl Record {
    /// Reads a header; `None` if no kind has its number. Values are taken as they are.
    pub fn parse(header: &[u8; HEADER_LEN], order: ByteOrder) -> Option<Self> {
        let f = Fields { header, order };
        let free = |f: &Fields<'_>| Free {
            object: f.u64(8),
            offset: f.u64(16),
            len: f.u64(24),
            toguid: f.u64(32),
        };
        Some(match RecordKind::from_number(f.u32(0))? {
            RecordKind::Begin => Self::Begin(parse_begin(&f)),
            RecordKind::Object => Self::Object(Object {
                object: f.u64(8),
                object_type: f.u32(16),
                block_len: f.u32(24),
                bonus_len: f.u32(28),
                raw_bonus_len: f.u32(36),
                toguid: f.u64(40),
            }),
            RecordKind::FreeObjects => Self::FreeObjects(FreeObjects {
                first: f.u64(8),
                count: f.u64(16),
                toguid: f.u64(24),
            }),
            RecordKind::Write => Self::Write(Write {
                object: f.u64(8),
                offset: f.u64(24),
                logical_len: f.u64(32),
                toguid: f.u64(40),
                compression: f.u8(50),
                compressed_len: f.u64(96),
            }),
            RecordKind::Free => Self::Free(free(&f)),
            RecordKind::End => Self::End(End { checksum: f.sums(8), toguid: f.u64(40) }),
            RecordKind::WriteByref => Self::WriteByref(WriteByref {
                object: f.u64(8),
                offset: f.u64(16),
                len: f.u64(24),
                toguid: f.u64(32),
                refguid: f.u64(40),
                refobject: f.u64(48),
                refoffset: f.u64(56),
            }),
            RecordKind::Spill => Self::Spill(Spill {
                object: f.u64(8),
                len: f.u64(16),
                toguid: f.u64(24),
                compressed_len: f.u64(40),
            }),
            RecordKind::WriteEmbedded => Self::WriteEmbedded(WriteEmbedded {
                object: f.u64(8),
                offset: f.u64(16),
                len: f.u64(24),
                toguid: f.u64(32),
                compression: f.u8(40),
                etype: f.u8(41),
                logical_len: f.u32(48),
                physical_len: f.u32(52),
            }),
            RecordKind::ObjectRange => Self::ObjectRange(ObjectRange {
                first: f.u64(8),
                count: f.u64(16),
                toguid: f.u64(24),
            }),
            RecordKind::Redact => Self::Redact(free(&f)),
        })
    }

    /// Which kind of record this is.
    pub const fn kind(&self) -> RecordKind {
        match self {
            Self::Begin(_) => RecordKind::Begin,
            Self::Object(_) => RecordKind::Object,
            Self::FreeObjects(_) => RecordKind::FreeObjects,
            Self::Write(_) => RecordKind::Write,
            Self::Free(_) => RecordKind::Free,
            Self::End(_) => RecordKind::End,
            Self::WriteByref(_) => RecordKind::WriteByref,
            Self::Spill(_) => RecordKind::Spill,
            Self::WriteEmbedded(_) => RecordKind::WriteEmbedded,
            Self::ObjectRange(_) => RecordKind::ObjectRange,
            Self::Redact(_) => RecordKind::Redact,
        }
    }

    /// How many bytes of payload follow, as the header has it: nobody checked it yet.
    pub const fn payload_len(&self) -> u64 {
        match self {
            Self::Begin(begin) => begin.payload_len as u64,
            Self::Object(object) if object.raw_bonus_len != 0 => object.raw_bonus_len as u64,
            Self::Object(object) => (object.bonus_len as u64).next_multiple_of(8),
            Self::Write(write) if write.compression != 0 => write.compressed_len,
            Self::Write(write) => write.logical_len,
            Self::Spill(spill) if spill.compressed_len != 0 => spill.compressed_len,
            Self::Spill(spill) => spill.len,
            Self::WriteEmbedded(write) => (write.physical_len as u64).next_multiple_of(8),
            Self::FreeObjects(_)
            | Self::Free(_)
            | Self::End(_)
            | Self::WriteByref(_)
            | Self::ObjectRange(_)
            | Self::Redact(_) => 0,
        }
    }
}

fn parse_begin(f: &Fields<'_>) -> Begin {
    let version = f.u64(16);
    let name: [u8; 256] = f.bytes(56);
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Begin {
        compound: version & 3 == 2,
        features: Features(version >> 2 & ((1 << 56) - 1)),
        creation_time: f.u64(24),
        objset_type: f.u32(32),
        flags: f.u32(36),
        toguid: f.u64(40),
        fromguid: f.u64(48),
        toname: String::from_utf8_lossy(name).into_owned(),
        payload_len: f.u32(4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_of_kinds_are_pinned() {
        for (number, kind) in (0u32..).zip(RecordKind::ALL) {
            assert_eq!(kind as u32, number);
            assert_eq!(RecordKind::from_number(number), Some(kind));
        }
        assert_eq!(RecordKind::from_number(11), None);
        assert_eq!(RecordKind::WriteEmbedded.name(), "WRITE_EMBEDDED");
    }

    #[test]
    fn features_print_by_name_and_unknown_ones_by_bit() {
        // The version words of the real samples, without the two lowest bits.
        assert_eq!(Features(0x43_0000).to_string(), "EMBED_DATA LZ4 COMPRESSED");
        assert_eq!(Features(0x142_0000).to_string(), "LZ4 COMPRESSED RAW");
        assert_eq!(Features(0).to_string(), "none");
        assert_eq!(Features(1 << 40 | 1).to_string(), "DEDUP bit 40");
        assert_eq!(Features(1 << 40 | 1 << 18 | 1).unknown(), Features(1 << 40 | 1 << 18));
    }

    #[test]
    fn payload_lengths_follow_the_kind() {
        let write = |compression, compressed_len| {
            let (object, offset, logical_len, toguid) = (1, 0, 16384, 7);
            Record::Write(Write {
                object,
                offset,
                logical_len,
                compression,
                compressed_len,
                toguid,
            })
        };
        assert_eq!(write(0, 0).payload_len(), 16384);
        assert_eq!(write(0, 4096).payload_len(), 16384, "the field means nothing without -c");
        assert_eq!(write(15, 4096).payload_len(), 4096);
        let object = |bonus_len, raw_bonus_len| {
            let (object, object_type, block_len, toguid) = (1, 23, 512, 7);
            Record::Object(Object {
                object,
                object_type,
                block_len,
                bonus_len,
                raw_bonus_len,
                toguid,
            })
        };
        assert_eq!(object(0, 0).payload_len(), 0);
        assert_eq!(object(169, 0).payload_len(), 176);
        assert_eq!(object(169, 192).payload_len(), 192);
    }
}
