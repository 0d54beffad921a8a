//! The codecs of blocks on disk, which `zfs send -c` and `-e` send as they are.

use flate2::{Decompress, FlushDecompress, Status};
use thiserror::Error;
use zstd::bulk::Decompressor;

use crate::record::BLOCK_MAX;

/// The numbers by which ZFS knows its codecs, as far as blocks in streams have them.
pub(crate) mod number {
    /// The stream does not say, because nothing is compressed.
    pub(crate) const UNSAID: u8 = 0;
    /// Not compressed, and the stream says so.
    pub(crate) const OFF: u8 = 2;
    pub(crate) const LZJB: u8 = 3;
    pub(crate) const GZIP_1: u8 = 5;
    pub(crate) const GZIP_9: u8 = 13;
    pub(crate) const ZLE: u8 = 14;
    pub(crate) const LZ4: u8 = 15;
    pub(crate) const ZSTD: u8 = 16;
}

/// The first bytes of every Zstandard frame, which ZFS leaves out.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Why a block cannot be decompressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// No codec has this number.
    #[error("the codec number {0} is not known")]
    Unknown(u8),
    /// The compressed bytes are damaged or end too early.
    #[error("the compressed bytes are damaged")]
    Damaged,
    /// It decompresses to another length than the block has.
    #[error("it decompresses to another length than {expected} bytes")]
    Length {
        /// The length of the block.
        expected: usize,
    },
}

/// Decompresses blocks, one after the other.
#[derive(Default)]
pub struct Decoder {
    /// Made when first needed, and kept: making it costs more than a small block.
    zstd: Option<Decompressor<'static>>,
}

impl Decoder {
    /// A decoder for any number of blocks.
    pub const fn new() -> Self {
        Self { zstd: None }
    }

    /// The block of `len` bytes that `payload` is, compressed as `compression` says.
    ///
    /// Zeros may pad the payload. Some codecs work in place and spoil it.
    pub fn decode(
        &mut self,
        compression: u8,
        payload: &mut [u8],
        len: usize,
    ) -> Result<Vec<u8>, CodecError> {
        if len as u64 > BLOCK_MAX {
            return Err(CodecError::Length { expected: len });
        }
        let block = match compression {
            number::UNSAID | number::OFF => payload.to_vec(),
            number::LZJB => lzjb(payload, len)?,
            number::GZIP_1..=number::GZIP_9 => gzip(payload, len)?,
            number::ZLE => zle(payload, len)?,
            number::LZ4 => lz4(payload, len)?,
            number::ZSTD => self.zstd(payload, len)?,
            other => return Err(CodecError::Unknown(other)),
        };
        if block.len() == len { Ok(block) } else { Err(CodecError::Length { expected: len }) }
    }

    /// ZFS puts the length of the frame and its own version and level before it, both
    /// big-endian, and leaves the frame's magic out.
    fn zstd(&mut self, payload: &mut [u8], len: usize) -> Result<Vec<u8>, CodecError> {
        let frame_len = prefixed_len(payload)?;
        // The magic goes where the version was, so that the frame need not be moved.
        let frame = payload.get_mut(4..).and_then(|rest| rest.get_mut(..frame_len.checked_add(4)?));
        let frame = frame.ok_or(CodecError::Damaged)?;
        frame.first_chunk_mut().map(|magic| *magic = ZSTD_MAGIC).ok_or(CodecError::Damaged)?;
        let decompressor = match &mut self.zstd {
            Some(decompressor) => decompressor,
            none => none.insert(Decompressor::new().map_err(|_| CodecError::Damaged)?),
        };
        decompressor.decompress(frame, len).map_err(|_| CodecError::Damaged)
    }
}

/// The big-endian length that LZ4 and Zstandard blocks start with.
fn prefixed_len(payload: &[u8]) -> Result<usize, CodecError> {
    let prefix = payload.first_chunk().ok_or(CodecError::Damaged)?;
    usize::try_from(u32::from_be_bytes(*prefix)).map_err(|_| CodecError::Damaged)
}

fn lz4(payload: &[u8], len: usize) -> Result<Vec<u8>, CodecError> {
    let inner_len = prefixed_len(payload)?;
    let inner = payload.get(4..).and_then(|rest| rest.get(..inner_len));
    let mut block = vec![0; len];
    let written = lz4_flex::block::decompress_into(inner.ok_or(CodecError::Damaged)?, &mut block)
        .map_err(|_| CodecError::Damaged)?;
    block.truncate(written);
    Ok(block)
}

fn gzip(payload: &[u8], len: usize) -> Result<Vec<u8>, CodecError> {
    let mut block = Vec::with_capacity(len);
    // Despite the name these are zlib streams.
    let status = Decompress::new(true)
        .decompress_vec(payload, &mut block, FlushDecompress::Finish)
        .map_err(|_| CodecError::Damaged)?;
    if status == Status::StreamEnd { Ok(block) } else { Err(CodecError::Damaged) }
}

/// LZJB: a byte of eight flags, then for each flag a literal byte, or two bytes that say
/// "copy 3 to 66 bytes from up to 1023 bytes back".
fn lzjb(payload: &[u8], len: usize) -> Result<Vec<u8>, CodecError> {
    let mut block: Vec<u8> = Vec::with_capacity(len);
    let mut input = payload.iter().copied();
    let mut flags = 0;
    let mut flags_left = 0;
    while block.len() < len {
        let mut next = || input.next().ok_or(CodecError::Damaged);
        if flags_left == 0 {
            (flags, flags_left) = (next()?, 8);
        }
        let is_copy = flags & 1 == 1;
        flags >>= 1;
        flags_left -= 1;
        if !is_copy {
            block.push(next()?);
            continue;
        }
        let pair = u16::from_be_bytes([next()?, next()?]);
        let back = usize::from(pair & 0x3ff);
        let count = (usize::from(pair >> 10) + 3).min(len - block.len());
        let from = block.len().checked_sub(back).ok_or(CodecError::Damaged)?;
        if back == 0 {
            return Err(CodecError::Damaged);
        }
        // Byte by byte: what is copied may reach into what the copy itself writes.
        for at in from..from + count {
            block.push(block[at]);
        }
    }
    Ok(block)
}

/// ZLE: a byte below 64 is followed by that many literal bytes plus one; any other stands
/// for that many zeros less 63.
fn zle(payload: &[u8], len: usize) -> Result<Vec<u8>, CodecError> {
    let mut block = Vec::with_capacity(len);
    let mut rest = payload;
    while block.len() < len {
        let (&run, after) = rest.split_first().ok_or(CodecError::Damaged)?;
        let room = len - block.len();
        rest = after;
        if run < 64 {
            let literals = rest.split_at_checked(usize::from(run) + 1);
            let (literals, after) = literals.ok_or(CodecError::Damaged)?;
            if literals.len() > room {
                return Err(CodecError::Damaged);
            }
            block.extend_from_slice(literals);
            rest = after;
        } else {
            let zeros = usize::from(run) - 63;
            if zeros > room {
                return Err(CodecError::Damaged);
            }
            block.resize(block.len() + zeros, 0);
        }
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    fn decode(compression: u8, payload: &[u8], len: usize) -> Result<Vec<u8>, CodecError> {
        Decoder::new().decode(compression, &mut payload.to_vec(), len)
    }

    #[test]
    fn lzjb_copies_overlap_and_stop_at_the_end() {
        // Flags 0b10: a literal, then "66 bytes from 1 back", cut at the block's length.
        let payload = [0b10, b'x', 0xfc, 0x01];
        assert_eq!(decode(number::LZJB, &payload, 40), Ok(vec![b'x'; 40]));
        assert_eq!(decode(number::LZJB, &payload, 67), Ok(vec![b'x'; 67]));
        assert_eq!(decode(number::LZJB, &payload, 68), Err(CodecError::Damaged));
        let beyond = [0b10, b'x', 0xfc, 0x02];
        assert_eq!(decode(number::LZJB, &beyond, 40), Err(CodecError::Damaged));
        let nowhere = [0b10, b'x', 0xfc, 0x00];
        assert_eq!(decode(number::LZJB, &nowhere, 40), Err(CodecError::Damaged));
    }

    #[test]
    fn zle_runs_have_the_lengths_of_the_format() {
        assert_eq!(decode(number::ZLE, &[0, 9, 64, 65], 4), Ok(vec![9, 0, 0, 0]));
        let mut payload = vec![63];
        payload.extend(1..=64);
        payload.push(255);
        let mut expected: Vec<u8> = (1..=64).collect();
        expected.resize(64 + 192, 0);
        assert_eq!(decode(number::ZLE, &payload, 256), Ok(expected));
        assert_eq!(decode(number::ZLE, &payload, 255), Err(CodecError::Damaged));
        assert_eq!(decode(number::ZLE, &payload, 257), Err(CodecError::Damaged));
    }

    #[test]
    fn numbers_without_a_codec_are_refused() {
        for compression in [1, 4, 17, 255] {
            let refused = Err(CodecError::Unknown(compression));
            assert_eq!(decode(compression, &[0; 512], 512), refused);
        }
    }

    #[test]
    fn a_block_beyond_the_limit_is_refused_before_it_is_allocated() {
        let expected = BLOCK_MAX as usize + 1;
        assert_eq!(decode(number::ZLE, &[255], expected), Err(CodecError::Length { expected }));
    }

    proptest! {
        #[test]
        fn every_codec_gives_back_what_was_compressed(
            runs in prop::collection::vec((any::<u8>(), 1usize..200, any::<bool>()), 1..60),
            pad in 0usize..600,
        ) {
            // Runs of one byte and runs of counting bytes: both compress, differently.
            let mut block = Vec::new();
            for (byte, count, same) in runs {
                block.extend((0..count).map(|i| if same { byte & 3 } else { byte.wrapping_add(i as u8) }));
            }
            for compression in (2u8..=16).filter(|n| ![number::OFF, 4].contains(n)) {
                let mut payload = testing::compress(compression, &block);
                payload.resize(payload.len() + pad, 0);
                let again = decode(compression, &payload, block.len());
                prop_assert_eq!(again.as_deref(), Ok(&block[..]), "codec {}", compression);
                // These two have no end of their own: they stop where the block is full.
                if ![number::LZJB, number::ZLE].contains(&compression) {
                    let longer = decode(compression, &payload, block.len() + 1);
                    let shorter = decode(compression, &payload, block.len() - 1);
                    prop_assert!(longer.is_err() && shorter.is_err(), "codec {}", compression);
                }
            }
        }
    }
}
