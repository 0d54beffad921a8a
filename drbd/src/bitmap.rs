//! The bitmaps: a bit for each block of the volume, in words of one bitmap after the other.

use driftline_extent::{Extent, Volume};

use crate::{DrbdError, Geometry, Placement};

/// Words of 32 bits that are read of one bitmap at once.
const WORDS_AT_ONCE: u64 = 64 << 10;

const WORD_BITS: u64 = 32;
const WORD_LEN: u64 = 4;

/// Calls `each` with every run of blocks that are marked in bitmap `slot`, ascending, as bytes
/// of a volume of `size` bytes. A run may be told in pieces.
pub(crate) fn marked(
    disk: &dyn Volume,
    placement: &Placement,
    geometry: &Geometry,
    (slot, size): (u32, u64),
    mut each: impl FnMut(Extent),
) -> Result<(), DrbdError> {
    if slot >= geometry.slots {
        return Err(DrbdError::NoSuchSlot { slot });
    }
    let words = size.div_ceil(geometry.block_len).div_ceil(WORD_BITS);
    let stride = u64::from(geometry.slots) * WORD_LEN;
    let at_once = (WORDS_AT_ONCE / u64::from(geometry.slots)).max(1);
    let mut buffer = vec![0; (at_once * stride) as usize];
    let mut first = 0;
    while first < words {
        let count = at_once.min(words - first);
        let offset = placement.bitmap.offset() + first * stride;
        let buffer = &mut buffer[..(count * stride) as usize];
        let what = "bitmap";
        let read = disk.read_at(offset, buffer);
        read.map_err(|source| DrbdError::Read { what, offset, source })?;
        let own = buffer[(u64::from(slot) * WORD_LEN) as usize..].chunks(stride as usize);
        for (index, word) in (first..).zip(own) {
            let word = word.first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
            for run in runs(word) {
                let bits = (run.start + index * WORD_BITS, run.end + index * WORD_BITS);
                let bytes = (bits.0 * geometry.block_len, bits.1 * geometry.block_len);
                // What is marked beyond the end is only filling.
                let extent = Extent::from_bounds(bytes.0, bytes.1);
                extent.and_then(|extent| extent.clamp(size)).into_iter().for_each(&mut each);
            }
        }
        first += count;
    }
    Ok(())
}

/// The runs of ones in a word, lowest first.
fn runs(word: u32) -> impl Iterator<Item = std::ops::Range<u64>> {
    let mut rest = word;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let start = rest.trailing_zeros();
        let count = (!(rest >> start)).trailing_zeros().min(u32::BITS - start);
        rest &= !((u32::MAX >> (u32::BITS - count)) << start);
        Some(start.into()..(start + count).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_the_word_again() {
        for word in [0, 1, 5, u32::MAX, 1 << 31, (1 << 31) | 1, 0xff00_ff00, u32::MAX - 1] {
            let bits = runs(word).flatten().fold(0, |sum, bit| sum | (1_u32 << bit));
            assert_eq!(bits, word);
        }
    }
}
