//! Fletcher-4, the checksum of a send stream: four running sums over 32-bit words.

#[cfg(target_arch = "x86_64")]
mod simd;

/// The order of bytes in the integers of a stream: that of the machine that sent it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

impl ByteOrder {
    /// The word that these bytes are.
    pub const fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    /// The double word that these bytes are.
    pub const fn u64(self, bytes: [u8; 8]) -> u64 {
        match self {
            Self::Little => u64::from_le_bytes(bytes),
            Self::Big => u64::from_be_bytes(bytes),
        }
    }
}

/// The running state of a Fletcher-4 checksum; all zero before the first word.
///
/// With words `w`, in this order for each: `a += w; b += a; c += b; d += c`, all modulo
/// 2^64. It is no cryptographic hash: it finds damage, not malice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Fletcher4 {
    a: u64,
    b: u64,
    c: u64,
    d: u64,
}

impl Fletcher4 {
    /// The state before the first word.
    pub const fn new() -> Self {
        Self { a: 0, b: 0, c: 0, d: 0 }
    }

    /// The state with these four sums.
    pub const fn from_sums([a, b, c, d]: [u64; 4]) -> Self {
        Self { a, b, c, d }
    }

    /// The four sums, as a stream stores them.
    pub const fn sums(&self) -> [u64; 4] {
        [self.a, self.b, self.c, self.d]
    }

    /// Adds `bytes`, whose length must be a multiple of four: the sums are over whole words.
    ///
    /// Uses the widest vector unit that this machine has.
    pub fn update(&mut self, bytes: &[u8], order: ByteOrder) {
        #[cfg(target_arch = "x86_64")]
        let bytes = simd::update(self, bytes, order);
        self.update_naive(bytes, order);
    }

    /// The same as [`update`](Self::update), word by word: the definition.
    pub fn update_naive(&mut self, bytes: &[u8], order: ByteOrder) {
        let (words, rest) = bytes.as_chunks::<4>();
        debug_assert!(rest.is_empty(), "{} bytes are not whole words", bytes.len());
        // One loop for each order, so that the choice is not made for each word.
        match order {
            ByteOrder::Little => words.iter().for_each(|word| self.add(u32::from_le_bytes(*word))),
            ByteOrder::Big => words.iter().for_each(|word| self.add(u32::from_be_bytes(*word))),
        }
    }

    fn add(&mut self, word: u32) {
        self.a = self.a.wrapping_add(u64::from(word));
        self.b = self.b.wrapping_add(self.a);
        self.c = self.c.wrapping_add(self.b);
        self.d = self.d.wrapping_add(self.c);
    }

    /// Appends `words` words whose own checksum, from zero, is `tail`.
    #[cfg(any(test, target_arch = "x86_64"))]
    fn append(&mut self, tail: &Self, words: u64) {
        // A sum that stood at `a` before the tail is added to `b` once for each of its
        // words, to `c` as often as there are pairs of words in order, and so on. These are
        // exact for any slice that fits in memory; only their low 64 bits count.
        let n = u128::from(words);
        let pairs = n * (n + 1) / 2;
        let triples = pairs * (n + 2) / 3;
        let (once, twice, thrice) = (words, pairs as u64, triples as u64);
        let [a, b, c, d] = self.sums();
        let times = u64::wrapping_mul;
        self.a = a.wrapping_add(tail.a);
        self.b = b.wrapping_add(times(once, a)).wrapping_add(tail.b);
        self.c = c.wrapping_add(times(once, b)).wrapping_add(times(twice, a)).wrapping_add(tail.c);
        self.d = d
            .wrapping_add(times(once, c))
            .wrapping_add(times(twice, b))
            .wrapping_add(times(thrice, a))
            .wrapping_add(tail.d);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn naive(bytes: &[u8], order: ByteOrder) -> Fletcher4 {
        let mut state = Fletcher4::new();
        state.update_naive(bytes, order);
        state
    }

    #[test]
    fn sums_of_small_inputs_are_those_worked_by_hand() {
        let bytes = [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0];
        assert_eq!(naive(&bytes, ByteOrder::Little).sums(), [6, 10, 15, 21]);
        let swapped = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
        assert_eq!(naive(&swapped, ByteOrder::Big).sums(), [6, 10, 15, 21]);
        assert_eq!(naive(&[], ByteOrder::Big).sums(), [0; 4]);
    }

    #[test]
    fn every_vector_length_equals_the_definition() {
        // Bytes with high bits set, so that a sign extension or a lost carry shows.
        let bytes: Vec<u8> =
            (0..6000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect();
        for order in [ByteOrder::Little, ByteOrder::Big] {
            for len in (0..bytes.len()).step_by(4) {
                let mut state = Fletcher4::new();
                state.update(&bytes[..len], order);
                assert_eq!(state, naive(&bytes[..len], order), "{len} bytes, {order:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn appending_equals_going_on(head: Vec<[u8; 4]>, tail: Vec<[u8; 4]>) {
            let (head, tail) = (head.as_flattened(), tail.as_flattened());
            let mut appended = naive(head, ByteOrder::Little);
            appended.append(&naive(tail, ByteOrder::Little), tail.len() as u64 / 4);
            let mut continued = naive(head, ByteOrder::Little);
            continued.update_naive(tail, ByteOrder::Little);
            prop_assert_eq!(appended, continued);
        }

        #[test]
        fn chunked_continuation_equals_one_pass(
            words in prop::collection::vec(any::<[u8; 4]>(), 0..6000),
            cuts in prop::collection::vec(0usize..6000, 0..6),
            big: bool,
        ) {
            let order = if big { ByteOrder::Big } else { ByteOrder::Little };
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(words.len())).collect();
            cuts.sort_unstable();
            let mut state = Fletcher4::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([words.len()]) {
                state.update(words[from..cut].as_flattened(), order);
                from = cut;
            }
            prop_assert_eq!(state, naive(words.as_flattened(), order));
        }
    }
}
