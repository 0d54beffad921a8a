//! Fletcher-4 with AVX2 and AVX-512: the only unsafe code of this crate.
//!
//! Each lane of a vector runs the four sums over every `L`-th word; [`Lanes::fold`] then
//! works out, from the lanes' sums, what one pass over all words would have given.
#![expect(unsafe_code, reason = "vector loads and stores go through pointers")]

use std::arch::x86_64::*;

use super::{ByteOrder, Fletcher4};

/// Below this many bytes, folding the lanes costs more than they save.
const WORTHWHILE: usize = 1024;

/// Adds as many of `bytes` to `state` as go into whole vectors; returns the rest.
pub(super) fn update<'a>(state: &mut Fletcher4, bytes: &'a [u8], order: ByteOrder) -> &'a [u8] {
    if bytes.len() < WORTHWHILE {
        return bytes;
    }
    // The order is a constant of each loop, so that no load asks for it.
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx2") {
        let (blocks, rest) = bytes.as_chunks::<32>();
        // SAFETY: both features were detected just now.
        let lanes = unsafe {
            match order {
                ByteOrder::Little => avx512::<false>(blocks),
                ByteOrder::Big => avx512::<true>(blocks),
            }
        };
        state.append(&lanes.fold(), (blocks.len() * 8) as u64);
        rest
    } else if is_x86_feature_detected!("avx2") {
        let (blocks, rest) = bytes.as_chunks::<16>();
        // SAFETY: the feature was detected just now.
        let lanes = unsafe {
            match order {
                ByteOrder::Little => avx2::<false>(blocks),
                ByteOrder::Big => avx2::<true>(blocks),
            }
        };
        state.append(&lanes.fold(), (blocks.len() * 4) as u64);
        rest
    } else {
        bytes
    }
}

/// The sums of `L` interleaved sequences of words: lane `i` has words `i`, `i + L`, ….
struct Lanes<const L: usize> {
    a: [u64; L],
    b: [u64; L],
    c: [u64; L],
    d: [u64; L],
}

impl<const L: usize> Lanes<L> {
    /// The sums over all words in their true order.
    ///
    /// With `n` words in all, word `j` counts `x`, `x(x+1)/2` and `x(x+1)(x+2)/6` times in
    /// `b`, `c` and `d`, where `x = n - j`. Its lane counted it with `m` in place of `x`,
    /// where `x = L*m - i`. Writing the polynomials in `x` as combinations of the same
    /// polynomials in `m` gives the factors below.
    fn fold(&self) -> Fletcher4 {
        let mut sums = [0u64; 4];
        let l = L as i64;
        for lane in 0..L {
            let i = lane as i64;
            let own = [self.a[lane], self.b[lane], self.c[lane], self.d[lane]];
            let factors: [[i64; 4]; 4] = [
                [1, 0, 0, 0],
                [-i, l, 0, 0],
                [i * (i - 1) / 2, -(l * l + 2 * i * l - l) / 2, l * l, 0],
                [
                    -i * (i - 1) * (i - 2) / 6,
                    (l * l * l - 3 * l * l + 3 * l * l * i + 3 * l * i * i - 6 * l * i + 2 * l) / 6,
                    -l * l * l + l * l * (1 - i),
                    l * l * l,
                ],
            ];
            for (sum, row) in sums.iter_mut().zip(factors) {
                for (factor, value) in row.into_iter().zip(own) {
                    *sum = sum.wrapping_add((factor as u64).wrapping_mul(value));
                }
            }
        }
        Fletcher4::from_sums(sums)
    }
}

#[target_feature(enable = "avx2")]
fn avx2<const SWAP: bool>(blocks: &[[u8; 16]]) -> Lanes<4> {
    let swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    let zero = _mm256_setzero_si256();
    let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
    for block in blocks {
        // SAFETY: the reference is to 16 readable bytes; the load needs no alignment.
        let mut words = unsafe { _mm_loadu_si128(block.as_ptr().cast()) };
        if SWAP {
            words = _mm_shuffle_epi8(words, swap);
        }
        a = _mm256_add_epi64(a, _mm256_cvtepu32_epi64(words));
        b = _mm256_add_epi64(b, a);
        c = _mm256_add_epi64(c, b);
        d = _mm256_add_epi64(d, c);
    }
    let [a, b, c, d] = [a, b, c, d].map(|vector| {
        let mut lanes = [0u64; 4];
        // SAFETY: the array has room for the 32 bytes; the store needs no alignment.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), vector) };
        lanes
    });
    Lanes { a, b, c, d }
}

#[target_feature(enable = "avx512f,avx2")]
fn avx512<const SWAP: bool>(blocks: &[[u8; 32]]) -> Lanes<8> {
    let swap = _mm256_broadcastsi128_si256(_mm_set_epi8(
        12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3,
    ));
    let zero = _mm512_setzero_si512();
    let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
    for block in blocks {
        // SAFETY: the reference is to 32 readable bytes; the load needs no alignment.
        let mut words = unsafe { _mm256_loadu_si256(block.as_ptr().cast()) };
        if SWAP {
            words = _mm256_shuffle_epi8(words, swap);
        }
        a = _mm512_add_epi64(a, _mm512_cvtepu32_epi64(words));
        b = _mm512_add_epi64(b, a);
        c = _mm512_add_epi64(c, b);
        d = _mm512_add_epi64(d, c);
    }
    let [a, b, c, d] = [a, b, c, d].map(|vector| {
        let mut lanes = [0u64; 8];
        // SAFETY: the array has room for the 64 bytes; the store needs no alignment.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), vector) };
        lanes
    });
    Lanes { a, b, c, d }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::naive;
    use super::*;

    proptest! {
        // Called directly: on a machine with AVX-512, `update` never takes the AVX2 way.
        #[test]
        fn lanes_of_each_width_fold_to_the_definition(
            bytes in prop::collection::vec(any::<[u8; 32]>(), 0..200),
        ) {
            let flat = bytes.as_flattened();
            let (little, big) = (naive(flat, ByteOrder::Little), naive(flat, ByteOrder::Big));
            if is_x86_feature_detected!("avx2") {
                let halves = flat.as_chunks::<16>().0;
                // SAFETY: the feature was detected just now.
                unsafe {
                    prop_assert_eq!(avx2::<false>(halves).fold(), little);
                    prop_assert_eq!(avx2::<true>(halves).fold(), big);
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: both features were detected just now.
                    unsafe {
                        prop_assert_eq!(avx512::<false>(&bytes).fold(), little);
                        prop_assert_eq!(avx512::<true>(&bytes).fold(), big);
                    }
                }
            }
        }
    }
}
