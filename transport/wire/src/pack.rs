//! Wanted data on its way into bulk parts and out of them: joining, zstd, cutting.

use bytes::Bytes;
use driftline_extent::Item;
use zstd::bulk::{Compressor, Decompressor};

use crate::{
    codec::DecodeError,
    frame::BULK_ROOM,
    limits::BULK_LEN_MAX,
    message::{Coding, DataPart},
    receiver::Inbound,
};

/// Compresses wanted data into parts, where samples of them say that it pays.
pub struct Packer {
    compressor: Option<Compressor<'static>>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

/// Raw bytes in a part. Blocks of memory from 128 KiB on are fetched from the system and given
/// back each time by common allocators: with parts of 1 MiB a third of a sender's CPU time went
/// into that. Larger parts would compress a few percent better. A part has room for its frame, so
/// that it is sealed where it is.
const PART_LEN: usize = 112 << 10;
const _: () = assert!(PART_LEN <= BULK_LEN_MAX);

/// A part is sent as it is unless compression saves at least this fraction of it: below,
/// decompressing costs the target more than the link gains.
const SAVING_MIN_DENOMINATOR: usize = 16;
/// Samples that are tried before a part is. A part may hold data of several kinds.
const SAMPLES: usize = 8;
/// Length of each.
const SAMPLE_LEN: usize = 512;

impl Packer {
    /// A packer that compresses at this zstd level; `None` never compresses.
    pub fn new(level: Option<i32>) -> std::io::Result<Self> {
        let compressor = level.map(Compressor::new).transpose()?;
        Ok(Self { compressor })
    }

    /// The parts for the wanted pieces of batch `seq`, in order.
    pub fn pack<'a>(
        &mut self,
        seq: u32,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Vec<DataPart> {
        let mut parts = Vec::new();
        let mut raw: Vec<u8> = Vec::new();
        for piece in pieces {
            let mut rest = piece;
            while !rest.is_empty() {
                if raw.is_empty() {
                    raw.reserve_exact(PART_LEN + BULK_ROOM);
                }
                let (now, later) = rest.split_at(rest.len().min(PART_LEN - raw.len()));
                raw.extend_from_slice(now);
                rest = later;
                if raw.len() == PART_LEN {
                    parts.push(self.part(seq, std::mem::take(&mut raw)));
                }
            }
        }
        if !raw.is_empty() {
            parts.push(self.part(seq, raw));
        }
        parts
    }

    fn part(&mut self, seq: u32, raw: Vec<u8>) -> DataPart {
        let raw_len = raw.len() as u32;
        let (coding, body) = match self.compress(&raw) {
            Some(body) => (Coding::Zstd, body),
            None => (Coding::Raw, raw),
        };
        DataPart { seq, coding, raw_len, body: Bytes::from(body) }
    }

    /// The compressed bytes, if that pays.
    fn compress(&mut self, raw: &[u8]) -> Option<Vec<u8>> {
        let compressor = self.compressor.as_mut()?;
        if raw.len() > 2 * SAMPLES * SAMPLE_LEN {
            let step = raw.len() / SAMPLES;
            let samples = raw.chunks_exact(step).flat_map(|chunk| &chunk[..SAMPLE_LEN]);
            shrink(compressor, &samples.copied().collect::<Vec<u8>>())?;
        }
        shrink(compressor, raw)
    }
}

fn shrink(compressor: &mut Compressor<'_>, raw: &[u8]) -> Option<Vec<u8>> {
    let mut body = vec![0; raw.len() - raw.len().div_ceil(SAVING_MIN_DENOMINATOR)];
    // Failure means that the result did not fit in what would pay.
    let len = compressor.compress_to_buffer(raw, &mut body).ok()?;
    body.truncate(len);
    Some(body)
}

/// Turns parts back into data.
pub struct Unpacker {
    decompressor: Decompressor<'static>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unpacker")
    }
}

impl Unpacker {
    /// An unpacker.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { decompressor: Decompressor::new()? })
    }

    /// The data of all parts of a batch, in order. Memory is bounded by what the parts
    /// announce, and the receiver has bounded that.
    pub fn unpack(&mut self, parts: &[DataPart]) -> Result<Vec<u8>, DecodeError> {
        let total = parts.iter().map(|part| part.raw_len as usize).sum();
        let mut data = vec![0; total];
        let mut rest = data.as_mut_slice();
        for part in parts {
            let (now, later) = rest.split_at_mut(part.raw_len as usize);
            match part.coding {
                Coding::Raw => now.copy_from_slice(&part.body),
                Coding::Zstd => {
                    let len = self.decompressor.decompress_to_buffer(&part.body, now);
                    if len.ok() != Some(now.len()) {
                        return Err(DecodeError::Invalid { what: "compressed data" });
                    }
                }
            }
            rest = later;
        }
        Ok(data)
    }
}

/// Each item of a batch with what came of it, and the data of that.
pub fn split_data<'a>(
    items: &'a [Item],
    inbound: &'a [Inbound],
    data: &'a [u8],
) -> impl Iterator<Item = (&'a Item, Inbound, &'a [u8])> {
    let mut rest = data;
    items.iter().zip(inbound).map(move |(item, inbound)| {
        let len = inbound.data_len(item) as usize;
        let (now, later) = rest.split_at(len.min(rest.len()));
        rest = later;
        (item, *inbound, now)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..3000),
                    (any::<u8>(), 0..600_000_usize).prop_map(|(byte, len)| vec![byte; len]),
                ],
                0..8,
            ),
            level in prop::option::of(-3..4),
        ) {
            let mut packer = Packer::new(level).unwrap();
            let parts = packer.pack(7, pieces.iter().map(Vec::as_slice));
            prop_assert!(parts.iter().all(|p| p.raw_len as usize <= PART_LEN));
            prop_assert_eq!(Unpacker::new().unwrap().unpack(&parts).unwrap(), pieces.concat());
        }
    }

    #[test]
    fn compression_is_skipped_where_it_does_not_pay() {
        let mut noise = vec![0; PART_LEN];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let text = vec![b'a'; PART_LEN];
        let half = [&noise[..PART_LEN / 2], &text[..PART_LEN / 2]].concat();
        let mut packer = Packer::new(Some(1)).unwrap();
        // What one part was like says nothing of the next.
        for _ in 0..3 {
            for (raw, coding) in
                [(&noise, Coding::Raw), (&text, Coding::Zstd), (&half, Coding::Zstd)]
            {
                let parts = packer.pack(0, [raw.as_slice()]);
                assert_eq!((parts.len(), parts[0].coding), (1, coding));
            }
        }
        let parts = packer.pack(0, [&noise[..600]]);
        assert_eq!(parts[0].coding, Coding::Raw);
        let parts = Packer::new(None).unwrap().pack(0, [text.as_slice()]);
        assert_eq!(parts[0].coding, Coding::Raw);
    }

    #[test]
    fn a_bomb_or_a_lie_about_length_is_an_error() {
        let parts = Packer::new(Some(3)).unwrap().pack(0, [[0; 1 << 20].as_slice()]);
        for raw_len in [parts[0].raw_len - 1, parts[0].body.len() as u32 + 1] {
            let lie = DataPart { raw_len, ..parts[0].clone() };
            assert!(Unpacker::new().unwrap().unpack(&[lie]).is_err());
        }
    }
}
