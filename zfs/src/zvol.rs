//! What the records of one substream mean for the volume that was sent.

use driftline_extent::Extent;

use crate::{
    codec::number,
    error::Fault,
    record::{BLOCK_MAX, Begin, Features, Free, OBJSET_VOLUME, Record},
};

/// The object that holds a volume's data, and its type.
const DATA: (u64, u32) = (1, 23);

/// The object that holds a volume's properties, and its type.
const PROPERTIES: (u64, u32) = (2, 24);

/// The smallest block there is.
const BLOCK_MIN: u64 = 512;

/// No volume is larger: ZFS counts its bytes in a signed integer.
pub(crate) const VOLUME_MAX: u64 = 1 << 63;

/// The first word of a block that is a small table of names and numbers (a micro-ZAP).
const MICRO_ZAP: u64 = 0x8000_0000_0000_0003;

/// Length of such a block's head, and of each of its entries.
const MICRO_ZAP_ENTRY: usize = 64;

/// A block of an object, as a payload carries it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Block {
    /// Where it stands.
    pub(crate) extent: Extent,
    /// How the payload is compressed.
    pub(crate) compression: u8,
    /// How much of the payload is the compressed block.
    pub(crate) payload_len: usize,
    /// What that decompresses to; zeros follow up to the end of the extent.
    pub(crate) decoded_len: usize,
}

/// What one record means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Meaning {
    /// A block of the volume.
    Data(Block),
    /// A hole of the volume.
    Zero(Extent),
    /// The block that has the volume's size.
    Properties(Block),
    /// The end of the substream.
    End,
    /// Nothing for a volume.
    Nothing,
}

/// The state of one substream of a volume, from its BEGIN to its END.
#[derive(Debug)]
pub(crate) struct View {
    /// The snapshot it leads to.
    pub(crate) toguid: u64,
    /// The snapshot it starts from; zero if none.
    pub(crate) fromguid: u64,
    /// Length of the volume's blocks, once its object was announced.
    pub(crate) block_len: Option<u64>,
    /// Size of the volume, if the substream has said it.
    pub(crate) size: Option<u64>,
    /// Where the hole starts that reaches to the end of the object. It is announced first
    /// and delivered last, so that changes ascend.
    pub(crate) tail: Option<u64>,
    /// Where the last change ended.
    cursor: u64,
    /// Whether END was reached.
    pub(crate) ended: bool,
}

impl View {
    /// The view of a substream that begins so, unless it is none of a volume that can be read.
    pub(crate) fn new(begin: &Begin) -> Result<Self, Fault> {
        let features = begin.features;
        if features.has_any(Features(Features::DEDUP.0 | Features::DEDUPPROPS.0)) {
            return Err(Fault::Deduplicated);
        }
        if features.has_any(Features::REDACTED) {
            return Err(Fault::Redacted);
        }
        if begin.objset_type != OBJSET_VOLUME {
            return Err(Fault::NotAVolume(begin.objset_type));
        }
        if features.has_any(Features::RAW) {
            return Err(Fault::RawEncrypted);
        }
        Ok(Self {
            toguid: begin.toguid,
            fromguid: begin.fromguid,
            block_len: None,
            size: None,
            tail: None,
            cursor: 0,
            ended: false,
        })
    }

    /// What the next record means. Records must be shown in order, each once.
    pub(crate) fn interpret(&mut self, record: &Record) -> Result<Meaning, Fault> {
        match record {
            Record::Object(object) => {
                for (number, kind) in [DATA, PROPERTIES] {
                    if object.object == number && object.object_type != kind {
                        return Err(Fault::Malformed("an object of a type that no volume has"));
                    }
                }
                if object.object == DATA.0 {
                    self.announce(u64::from(object.block_len))?;
                }
                Ok(Meaning::Nothing)
            }
            Record::Write(write) => {
                let extent = Extent::new(write.offset, write.logical_len);
                self.block(write.object, extent, |extent| Block {
                    extent,
                    compression: write.compression,
                    payload_len: record.payload_len() as usize,
                    decoded_len: extent.len() as usize,
                })
            }
            Record::WriteEmbedded(write) => {
                let mine = [DATA.0, PROPERTIES.0].contains(&write.object);
                if mine && write.etype != 0 {
                    return Err(Fault::Malformed("an embedded block that is no data"));
                }
                if mine && u64::from(write.logical_len) > write.len {
                    return Err(Fault::Malformed("an embedded block longer than its place"));
                }
                let extent = Extent::new(write.offset, write.len);
                self.block(write.object, extent, |extent| Block {
                    extent,
                    compression: write.compression,
                    payload_len: write.physical_len as usize,
                    decoded_len: write.logical_len as usize,
                })
            }
            Record::Free(free) if free.object == DATA.0 => self.hole(free),
            Record::FreeObjects(range)
                if range.first <= DATA.0 && DATA.0 - range.first < range.count =>
            {
                Err(Fault::Malformed("the volume's data does not exist"))
            }
            Record::WriteByref(_) => Err(Fault::Deduplicated),
            Record::Redact(_) => Err(Fault::Redacted),
            Record::ObjectRange(_) => Err(Fault::RawEncrypted),
            Record::End(_) => {
                self.ended = true;
                Ok(Meaning::End)
            }
            Record::Free(_) | Record::FreeObjects(_) | Record::Spill(_) | Record::Begin(_) => {
                Ok(Meaning::Nothing)
            }
        }
    }

    fn announce(&mut self, block_len: u64) -> Result<(), Fault> {
        if self.block_len.is_some() {
            return Err(Fault::Malformed("the volume's data is announced twice"));
        }
        if !block_len.is_power_of_two() || !(BLOCK_MIN..=BLOCK_MAX).contains(&block_len) {
            return Err(Fault::Malformed("a block length that no volume has"));
        }
        self.block_len = Some(block_len);
        Ok(())
    }

    fn block(
        &mut self,
        object: u64,
        extent: Option<Extent>,
        block: impl FnOnce(Extent) -> Block,
    ) -> Result<Meaning, Fault> {
        if ![DATA.0, PROPERTIES.0].contains(&object) {
            return Ok(Meaning::Nothing);
        }
        let extent = extent.ok_or(Fault::Malformed("a block that is empty or has no end"))?;
        if extent.len() > BLOCK_MAX {
            return Err(Fault::Malformed("a block longer than any can be"));
        }
        if object == PROPERTIES.0 {
            // The size stands in the first block; there is no other in practice.
            let first = extent.offset() == 0;
            return Ok(if first { Meaning::Properties(block(extent)) } else { Meaning::Nothing });
        }
        self.step(extent)?;
        if self.tail.is_some_and(|tail| tail < extent.end()) {
            return Err(Fault::Malformed("a block in what is a hole to the end"));
        }
        Ok(Meaning::Data(block(extent)))
    }

    fn hole(&mut self, free: &Free) -> Result<Meaning, Fault> {
        let end = free.offset.saturating_add(free.len);
        if end == u64::MAX {
            self.check(free.offset)?;
            self.tail = Some(self.tail.map_or(free.offset, |tail| tail.min(free.offset)));
            return Ok(Meaning::Nothing);
        }
        let Some(extent) = Extent::from_bounds(free.offset, end) else {
            return Ok(Meaning::Nothing);
        };
        self.step(extent)?;
        // A hole high in the block tree may reach beyond the last block, where the tail is.
        Ok(match self.tail.map_or(Some(extent), |tail| extent.clamp(tail)) {
            Some(extent) => Meaning::Zero(extent),
            None => Meaning::Nothing,
        })
    }

    /// Checks that a change may start at `offset`.
    fn check(&self, offset: u64) -> Result<(), Fault> {
        let block_len = self.block_len.ok_or(Fault::Malformed("data of an unannounced object"))?;
        if !offset.is_multiple_of(block_len) {
            return Err(Fault::Malformed("a change within a block"));
        }
        if offset >= VOLUME_MAX {
            return Err(Fault::Malformed("a change beyond the end of any volume"));
        }
        if offset < self.cursor {
            return Err(Fault::OutOfOrder { offset, expected: self.cursor });
        }
        Ok(())
    }

    /// Goes on to the end of `extent`.
    fn step(&mut self, extent: Extent) -> Result<(), Fault> {
        self.check(extent.offset())?;
        if !extent.len().is_multiple_of(self.block_len.unwrap_or(1)) {
            return Err(Fault::Malformed("a change within a block"));
        }
        if extent.end() > VOLUME_MAX {
            return Err(Fault::Malformed("a change beyond the end of any volume"));
        }
        self.cursor = extent.end();
        Ok(())
    }

    /// Takes the volume's size from the block that has it.
    pub(crate) fn take_size(&mut self, properties: &[u8]) -> Result<(), Fault> {
        let size = micro_zap(properties, b"size").ok_or(Fault::NoSize)?;
        if size == 0 || size > VOLUME_MAX || !size.is_multiple_of(BLOCK_MIN) {
            return Err(Fault::Malformed("a size that no volume has"));
        }
        self.size = Some(size);
        Ok(())
    }
}

/// The length of a plain payload that is the block itself, if it is one.
pub(crate) fn is_plain(block: &Block) -> bool {
    [number::UNSAID, number::OFF].contains(&block.compression)
        && block.payload_len as u64 == block.extent.len()
        && block.decoded_len == block.payload_len
}

/// The number of this name in a micro-ZAP, whose own first word tells its byte order.
fn micro_zap(block: &[u8], name: &[u8]) -> Option<u64> {
    let (entries, _) = block.as_chunks::<MICRO_ZAP_ENTRY>();
    let (head, entries) = entries.split_first()?;
    let word: [u8; 8] = *head.first_chunk()?;
    let read =
        [u64::from_le_bytes, u64::from_be_bytes].into_iter().find(|f| f(word) == MICRO_ZAP)?;
    entries.iter().find_map(|entry| {
        let value: [u8; 8] = *entry.first_chunk()?;
        (entry[14..].split(|byte| *byte == 0).next()? == name).then(|| read(value))
    })
}
