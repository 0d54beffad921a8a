//! Writes send streams, for tests: every kind of record, either byte order, every codec.
//!
//! It shares the table of offsets with no other part of the crate, so that a mistake there
//! does not cancel itself out. Nothing here is meant for production.

use std::io::Write as _;

use crate::{ByteOrder, Fletcher4, HEADER_LEN, RecordKind};

/// A header being filled in, in one byte order.
#[derive(Clone, Debug)]
pub struct Header {
    bytes: [u8; HEADER_LEN],
    order: ByteOrder,
}

impl Header {
    /// An empty header of this kind.
    pub fn new(kind: RecordKind, order: ByteOrder) -> Self {
        Self { bytes: [0; HEADER_LEN], order }.u32(0, kind as u32)
    }

    /// Puts one byte.
    pub fn u8(mut self, at: usize, value: u8) -> Self {
        self.bytes[at] = value;
        self
    }

    /// Puts a word.
    pub fn u32(mut self, at: usize, value: u32) -> Self {
        let bytes = match self.order {
            ByteOrder::Little => value.to_le_bytes(),
            ByteOrder::Big => value.to_be_bytes(),
        };
        self.bytes[at..at + 4].copy_from_slice(&bytes);
        self
    }

    /// Puts a double word.
    pub fn u64(mut self, at: usize, value: u64) -> Self {
        let bytes = match self.order {
            ByteOrder::Little => value.to_le_bytes(),
            ByteOrder::Big => value.to_be_bytes(),
        };
        self.bytes[at..at + 8].copy_from_slice(&bytes);
        self
    }

    /// Puts several double words.
    pub fn u64s(self, at: usize, values: &[u64]) -> Self {
        values.iter().enumerate().fold(self, |header, (i, value)| header.u64(at + 8 * i, *value))
    }

    /// The bytes.
    pub const fn bytes(&self) -> &[u8; HEADER_LEN] {
        &self.bytes
    }
}

/// How a substream begins.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The feature bits.
    pub features: u64,
    /// 2 for a file system, 3 for a volume.
    pub objset_type: u32,
    /// Where it starts from, zero for nothing.
    pub from: u64,
    /// Where it leads.
    pub to: u64,
    /// The packed nvlist.
    pub payload: &'a [u8],
}

impl Opening<'_> {
    /// A volume's stream from one snapshot to another, as `zfs send -Lec` makes them.
    pub const fn volume(from: u64, to: u64) -> Self {
        Self { features: 0x243_0000, objset_type: 3, from, to, payload: &[] }
    }
}

/// Writes a stream into memory, with its checksums.
#[derive(Clone, Debug)]
pub struct StreamWriter {
    order: ByteOrder,
    out: Vec<u8>,
    state: Fletcher4,
    to: u64,
    /// Whether records carry checksums.
    checksums: bool,
    /// Where each record starts.
    starts: Vec<usize>,
}

impl StreamWriter {
    /// A writer of an empty stream.
    pub const fn new(order: ByteOrder) -> Self {
        Self {
            order,
            out: Vec::new(),
            state: Fletcher4::new(),
            to: 0,
            checksums: true,
            starts: Vec::new(),
        }
    }

    /// Leaves the checksums out of all records to come, as old senders did.
    pub const fn without_record_checksums(mut self) -> Self {
        self.checksums = false;
        self
    }

    /// The stream so far.
    pub fn into_bytes(self) -> Vec<u8> {
        self.out
    }

    /// Where each record starts.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// An empty header in the stream's byte order.
    pub fn header(&self, kind: RecordKind) -> Header {
        Header::new(kind, self.order)
    }

    /// A record as it is, without a checksum and without being counted in one.
    pub fn unchecked(mut self, header: &Header) -> Self {
        self.starts.push(self.out.len());
        self.out.extend_from_slice(header.bytes());
        self
    }

    /// Any record but BEGIN.
    pub fn record(mut self, header: Header, payload: &[u8]) -> Self {
        self.state.update_naive(&header.bytes[..280], self.order);
        let sums = if self.checksums { self.state.sums() } else { [0; 4] };
        let header = header.u64s(280, &sums);
        self.state.update_naive(&header.bytes[280..], self.order);
        self.state.update_naive(payload, self.order);
        self.starts.push(self.out.len());
        self.out.extend_from_slice(&header.bytes);
        self.out.extend_from_slice(payload);
        self
    }

    fn open(mut self, header: Header, to: u64, payload: &[u8]) -> Self {
        self.to = to;
        self.state = Fletcher4::new();
        self.state.update_naive(&header.bytes, self.order);
        self.state.update_naive(payload, self.order);
        self = self.unchecked(&header);
        self.out.extend_from_slice(payload);
        self
    }

    /// BEGIN of a substream.
    pub fn begin(self, opening: &Opening<'_>) -> Self {
        self.begin_named(opening, &format!("pool/vol@{}", opening.to))
    }

    /// BEGIN of a substream of the snapshot with this name.
    pub fn begin_named(self, opening: &Opening<'_>, name: &str) -> Self {
        let mut header = self
            .header(RecordKind::Begin)
            .u32(4, opening.payload.len() as u32)
            .u64(8, 0x2_f5ba_cbac)
            .u64(16, 1 | opening.features << 2)
            .u64(24, 1_700_000_000)
            .u32(32, opening.objset_type)
            .u32(36, 12)
            .u64(40, opening.to)
            .u64(48, opening.from);
        for (i, byte) in name.bytes().enumerate() {
            header = header.u8(56 + i, byte);
        }
        self.open(header, opening.to, opening.payload)
    }

    /// BEGIN and END of a compound stream's head.
    pub fn compound_head(self, payload: &[u8]) -> Self {
        self.named_head("", payload)
    }

    /// The same, of a package that is named after this snapshot.
    pub fn named_head(mut self, name: &str, payload: &[u8]) -> Self {
        let mut header = self
            .header(RecordKind::Begin)
            .u32(4, payload.len() as u32)
            .u64(8, 0x2_f5ba_cbac)
            .u64(16, 2);
        for (i, byte) in name.bytes().enumerate() {
            header = header.u8(56 + i, byte);
        }
        self = self.open(header, 0, payload);
        let end = self.header(RecordKind::End).u64s(8, &self.state.sums());
        self.unchecked(&end)
    }

    /// The END of a whole compound stream.
    pub fn compound_end(self) -> Self {
        let end = self.header(RecordKind::End);
        self.unchecked(&end)
    }

    /// END of a substream.
    pub fn end(self) -> Self {
        let end = self.header(RecordKind::End).u64s(8, &self.state.sums()).u64(40, self.to);
        self.record(end, &[])
    }

    /// OBJECT.
    pub fn object(self, object: u64, object_type: u32, block_len: u32, bonus: &[u8]) -> Self {
        let header = self
            .header(RecordKind::Object)
            .u64(8, object)
            .u32(16, object_type)
            .u32(24, block_len)
            .u32(28, bonus.len() as u32)
            .u64(40, self.to);
        let mut payload = bonus.to_vec();
        payload.resize(bonus.len().next_multiple_of(8), 0);
        self.record(header, &payload)
    }

    /// OBJECT of a volume's data and FREE from there on, as senders begin.
    pub fn volume(self, block_len: u32, tail: u64) -> Self {
        self.object(1, 23, block_len, &[]).free(1, tail, u64::MAX)
    }

    /// FREE.
    pub fn free(self, object: u64, offset: u64, len: u64) -> Self {
        let header = self.header(RecordKind::Free).u64s(8, &[object, offset, len]).u64(32, self.to);
        self.record(header, &[])
    }

    /// WRITE, uncompressed.
    pub fn write(self, object: u64, offset: u64, block: &[u8]) -> Self {
        self.write_as(0, object, offset, block)
    }

    /// WRITE, compressed and padded to 512 bytes.
    pub fn write_as(self, compression: u8, object: u64, offset: u64, block: &[u8]) -> Self {
        let mut payload = compress(compression, block);
        if compression != 0 {
            payload.resize(payload.len().next_multiple_of(512).min(block.len()), 0);
        }
        let header = self
            .header(RecordKind::Write)
            .u64(8, object)
            .u32(16, 23)
            .u64s(24, &[offset, block.len() as u64, self.to])
            .u8(50, compression)
            .u64(96, if compression == 0 { 0 } else { payload.len() as u64 });
        self.record(header, &payload)
    }

    /// WRITE_EMBEDDED of `block`, in a place of `len` bytes.
    pub fn embedded(
        self,
        compression: u8,
        object: u64,
        offset: u64,
        len: u64,
        block: &[u8],
    ) -> Self {
        let mut payload = compress(compression, block);
        let header = self
            .header(RecordKind::WriteEmbedded)
            .u64s(8, &[object, offset, len, self.to])
            .u8(40, compression)
            .u32(48, block.len() as u32)
            .u32(52, payload.len() as u32);
        payload.resize(payload.len().next_multiple_of(8), 0);
        self.record(header, &payload)
    }

    /// OBJECT of a volume's properties, and the block that has its size.
    pub fn size(self, size: u64) -> Self {
        let block = properties(self.order, size);
        self.object(2, 24, 512, &[]).free(2, 512, u64::MAX).write(2, 0, &block)
    }

    /// FREEOBJECTS.
    pub fn free_objects(self, first: u64, count: u64) -> Self {
        let header = self.header(RecordKind::FreeObjects).u64s(8, &[first, count, self.to]);
        self.record(header, &[])
    }
}

/// The block of a volume's properties, with its size.
pub fn properties(order: ByteOrder, size: u64) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, value: u64| {
        let bytes = match order {
            ByteOrder::Little => value.to_le_bytes(),
            ByteOrder::Big => value.to_be_bytes(),
        };
        block[at..at + 8].copy_from_slice(&bytes);
    };
    put(0, 0x8000_0000_0000_0003);
    put(64, size);
    block[78..82].copy_from_slice(b"size");
    block
}

/// A packed nvlist of unsigned integers, in the native layout.
pub fn native_nvlist(order: ByteOrder, pairs: &[(&str, u64)]) -> Vec<u8> {
    let u32 = |value: u32| match order {
        ByteOrder::Little => value.to_le_bytes(),
        ByteOrder::Big => value.to_be_bytes(),
    };
    let mut out = vec![0, u8::from(order == ByteOrder::Little), 0, 0];
    out.extend([u32(0), u32(1)].as_flattened());
    for (name, value) in pairs {
        let head = (16 + name.len() + 1).next_multiple_of(8);
        let name_len = name.len() as u16 + 1;
        out.extend(u32(head as u32 + 8));
        out.extend(
            match order {
                ByteOrder::Little => [name_len.to_le_bytes(), [0; 2]],
                ByteOrder::Big => [name_len.to_be_bytes(), [0; 2]],
            }
            .as_flattened(),
        );
        out.extend([u32(1), u32(8)].as_flattened());
        out.extend(name.as_bytes());
        out.resize(out.len() + head - 16 - name.len(), 0);
        out.extend(match order {
            ByteOrder::Little => value.to_le_bytes(),
            ByteOrder::Big => value.to_be_bytes(),
        });
    }
    out.extend(u32(0));
    // Streams pad it to whole words.
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

/// Compresses a block the way ZFS stores it, without padding.
///
/// # Panics
/// If no codec has this number, or a codec fails.
pub fn compress(compression: u8, block: &[u8]) -> Vec<u8> {
    match compression {
        0 | 2 => block.to_vec(),
        3 => lzjb(block),
        5..=13 => {
            let level = flate2::Compression::new(u32::from(compression) - 4);
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(block).expect("writing to memory succeeds");
            encoder.finish().expect("writing to memory succeeds")
        }
        14 => zle(block),
        15 => {
            let inner = lz4_flex::block::compress(block);
            [&(inner.len() as u32).to_be_bytes()[..], &inner].concat()
        }
        16 => {
            let frame = zstd::bulk::compress(block, 3).expect("a block compresses");
            let inner = &frame[4..];
            [&(inner.len() as u32).to_be_bytes()[..], &[0, 1, 5, 3], inner].concat()
        }
        other => panic!("no codec has the number {other}"),
    }
}

/// LZJB by brute force: the longest match nearby, or a literal.
fn lzjb(block: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut flags_at = 0;
    let mut at = 0;
    for item in 0.. {
        if at == block.len() {
            break;
        }
        if item % 8 == 0 {
            flags_at = out.len();
            out.push(0);
        }
        let best = (1..=at.min(1023))
            .map(|back| {
                let same = |i: &usize| block[at + i] == block[at + i - back];
                ((0..66.min(block.len() - at)).take_while(same).count(), back)
            })
            .max()
            .unwrap_or_default();
        if best.0 >= 3 {
            out[flags_at] |= 1 << (item % 8);
            let pair = ((best.0 as u16 - 3) << 10) | best.1 as u16;
            out.extend(pair.to_be_bytes());
            at += best.0;
        } else {
            out.push(block[at]);
            at += 1;
        }
    }
    out
}

/// ZLE: runs of zeros, and literals between them.
fn zle(block: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = block;
    while !rest.is_empty() {
        let zeros = rest.iter().take(192).take_while(|byte| **byte == 0).count();
        if zeros > 0 {
            out.push(zeros as u8 + 63);
            rest = &rest[zeros..];
        } else {
            let literals = rest.iter().take(64).take_while(|byte| **byte != 0).count();
            out.push(literals as u8 - 1);
            out.extend(&rest[..literals]);
            rest = &rest[literals..];
        }
    }
    out
}
