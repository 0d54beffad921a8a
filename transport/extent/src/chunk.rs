//! Fixed aligned units of a volume: chunks that carry a name, and blocks within them.

use std::fmt;

use crate::Extent;

/// Length of a chunk: the unit that is named by hash, deduplicated, journalled and verified.
///
/// The content of a chunk is always this long: where the volume ends inside it, the rest
/// counts as zeros. So growing a volume, or cutting zeros off, renames no chunk.
pub const CHUNK_LEN: u64 = 64 * 1024;

/// Length of a block, the smallest change within a chunk: the smallest sector in use.
pub const BLOCK_LEN: u64 = 512;

/// Blocks in a chunk, one bit of a [`BlockMask`] each.
pub const BLOCKS_PER_CHUNK: u32 = (CHUNK_LEN / BLOCK_LEN) as u32;

const _: () = assert!(BLOCKS_PER_CHUNK == u128::BITS);

/// Length of a grain: the unit in which a changed chunk is compared with its old version before
/// data moves. What file systems and databases write is rarely smaller.
pub const GRAIN_LEN: u64 = 4096;

/// Grains in a chunk, one bit of a [`GrainMask`] each.
pub const GRAINS_PER_CHUNK: u32 = (CHUNK_LEN / GRAIN_LEN) as u32;

// The blocks of grain `i` are byte `i` of a mask of blocks.
const _: () = assert!(GRAIN_LEN / BLOCK_LEN == u8::BITS as u64 && GRAINS_PER_CHUNK == u16::BITS);

/// Largest volume there is: 1 EiB. Chunk indices and byte offsets below it cannot overflow.
pub const VOLUME_LEN_MAX: u64 = 1 << 60;

/// The longest part of an opaque stream. Larger blocks are cut, so that what repeats is still
/// found where only a piece of it does; smaller parts would cost more to name than to send.
pub const PART_LEN_MAX: u64 = 256 * 1024;

/// A block of a stream from here on is a part of its own, and looked for among those that came
/// before. Shorter parts are headers of records and small blocks, gathered: of those no two are
/// equal, and naming one costs more than it could save.
pub const PART_OWN_MIN: u64 = 4096;

/// How many chunks a volume of `size` bytes has; the last one may be partial.
pub const fn chunk_count(size: u64) -> u64 {
    size.div_ceil(CHUNK_LEN)
}

/// A set of blocks of one chunk: bit `i` is the block at byte `i * BLOCK_LEN` of the chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BlockMask(pub u128);

impl BlockMask {
    /// No block.
    pub const NONE: Self = Self(0);
    /// Every block of the chunk.
    pub const ALL: Self = Self(u128::MAX);

    /// The blocks that `start..end`, in bytes from the start of the chunk, touches.
    ///
    /// # Panics
    /// If `start > end` or `end > CHUNK_LEN`.
    pub fn covering(start: u64, end: u64) -> Self {
        assert!(start <= end && end <= CHUNK_LEN, "{start}..{end} is not within a chunk");
        if start == end {
            return Self::NONE;
        }
        let (first, last) = (start / BLOCK_LEN, (end - 1) / BLOCK_LEN);
        let count = (last - first + 1) as u32;
        Self((u128::MAX >> (u128::BITS - count)) << first)
    }

    /// Whether no block is in the mask.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every block is in the mask.
    pub const fn is_all(self) -> bool {
        self.0 == u128::MAX
    }

    /// Bytes of the blocks in the mask.
    pub const fn byte_count(self) -> u64 {
        self.0.count_ones() as u64 * BLOCK_LEN
    }

    /// The blocks in either.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The blocks in both.
    pub const fn intersect(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The blocks of this mask that are not in `other`.
    pub const fn subtract(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The grains that have any of its blocks.
    pub const fn grains(self) -> GrainMask {
        let blocks = self.0.to_le_bytes();
        let (mut grains, mut i) = (0, 0);
        while i < blocks.len() {
            if blocks[i] != 0 {
                grains |= 1 << i;
            }
            i += 1;
        }
        GrainMask(grains)
    }

    /// The blocks of this mask that lie in these grains.
    pub const fn within(self, grains: GrainMask) -> Self {
        let mut blocks = self.0.to_le_bytes();
        let mut i = 0;
        while i < blocks.len() {
            if grains.0 >> i & 1 == 0 {
                blocks[i] = 0;
            }
            i += 1;
        }
        Self(u128::from_le_bytes(blocks))
    }

    /// Each of its grains, ascending, and where the bytes of its blocks stand among those of all
    /// blocks of the mask.
    pub fn by_grain(self) -> impl Iterator<Item = (GrainMask, std::ops::Range<usize>)> {
        let mut at = 0;
        (0..).zip(self.0.to_le_bytes()).filter_map(move |(i, blocks): (u32, u8)| {
            let start = at;
            at += blocks.count_ones() as usize * BLOCK_LEN as usize;
            (at > start).then_some((GrainMask(1 << i), start..at))
        })
    }

    /// The runs of neighbouring blocks, as byte ranges within the chunk, ascending.
    pub fn runs(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let start = rest.trailing_zeros();
            let count = (!(rest >> start)).trailing_zeros().min(u128::BITS - start);
            rest &= !((u128::MAX >> (u128::BITS - count)) << start);
            let block = BLOCK_LEN as usize;
            Some(start as usize * block..(start + count) as usize * block)
        })
    }
}

impl fmt::Debug for BlockMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#034x}", self.0)
    }
}

/// A set of grains of one chunk: bit `i` is the grain at byte `i * GRAIN_LEN` of the chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct GrainMask(pub u16);

impl GrainMask {
    /// How many grains are in the mask.
    pub const fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether every grain of the mask is in `other`.
    pub const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// The grains in either.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for GrainMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018b}", self.0)
    }
}

bytes_newtype! {
    /// A short keyed hash of the bytes in one grain. It says what differs, and never what is
    /// the same: that is proven by the [`ChunkId`] over all of it.
    GrainHash, 8
}

bytes_newtype! {
    /// The name of some content: its keyed BLAKE3 hash. All zero bytes name all-zero
    /// content, so that a sparse volume has a sparse list of names.
    ChunkId, 32
}

bytes_newtype! {
    /// The name of the content of a whole volume: the root of its manifest.
    Root, 32
}

impl ChunkId {
    /// The name of content that is all zeros.
    pub const ZERO: Self = Self([0; 32]);

    /// Whether this names all-zero content.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

/// One announced change: in units of chunks, or of the parts of an opaque stream. Items of an
/// increment ascend and do not overlap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item {
    /// Some blocks of one chunk change.
    Chunk {
        /// Which chunk: its offset divided by [`CHUNK_LEN`].
        index: u64,
        /// Blocks that get data.
        data: BlockMask,
        /// Blocks that become zero. Disjoint from `data`.
        zero: BlockMask,
        /// Keyed hash of the bytes of the `data` blocks, ascending; [`ChunkId::ZERO`] only
        /// where `data` is empty. With a full `data` mask it is the chunk's own id.
        id: ChunkId,
    },
    /// Whole chunks become zero.
    Zero {
        /// The first of them.
        index: u64,
        /// How many, at least one.
        count: u64,
    },
    /// Nothing is known to change in these chunks: this is what they hold. A target whose
    /// content differs asks for them one by one.
    Span {
        /// The first of them.
        index: u64,
        /// How many, at least one.
        count: u64,
        /// The manifest node over them, the topmost of a tree just high enough: of a single chunk,
        /// its id.
        digest: ChunkId,
    },
    /// The next bytes of an opaque stream. Such an increment has no items of another kind.
    Part {
        /// Counts the parts of one session's stream from zero, without a gap.
        index: u64,
        /// How many bytes: at least one, and at most [`PART_LEN_MAX`].
        len: u32,
        /// Keyed hash of the bytes; [`ChunkId::ZERO`] if all of them are zero.
        id: ChunkId,
    },
}

impl Item {
    /// The first chunk, or the part, that the item speaks of.
    pub const fn first(&self) -> u64 {
        match self {
            Self::Chunk { index, .. }
            | Self::Zero { index, .. }
            | Self::Span { index, .. }
            | Self::Part { index, .. } => *index,
        }
    }

    /// How many chunks, or parts, the item speaks of.
    pub const fn count(&self) -> u64 {
        match self {
            Self::Chunk { .. } | Self::Part { .. } => 1,
            Self::Zero { count, .. } | Self::Span { count, .. } => *count,
        }
    }

    /// The bytes of the chunks the item speaks of; `None` if it is empty or beyond `u64`, and
    /// for a part of a stream.
    pub fn extent(&self) -> Option<Extent> {
        if matches!(self, Self::Part { .. }) {
            return None;
        }
        let offset = self.first().checked_mul(CHUNK_LEN)?;
        Extent::new(offset, self.count().checked_mul(CHUNK_LEN)?)
    }

    /// How many bytes of data follow if the target asks for them.
    pub const fn data_len(&self) -> u64 {
        match self {
            Self::Chunk { data, .. } => data.byte_count(),
            Self::Part { len, .. } => *len as u64,
            Self::Zero { .. } | Self::Span { .. } => 0,
        }
    }

    /// The grains with data, if a target may tell their hashes instead of asking for all of it.
    /// There are at least two of them (one differs for certain) and half of what they have room
    /// for is data, so that the hashes of a batch are as bounded as its data.
    pub const fn narrowable(&self) -> Option<GrainMask> {
        let Self::Chunk { data, .. } = self else { return None };
        let grains = data.grains();
        let count = grains.count() as u64;
        if count >= 2 && 2 * data.byte_count() >= count * GRAIN_LEN { Some(grains) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_what_is_touched() {
        assert_eq!(BlockMask::covering(0, CHUNK_LEN), BlockMask::ALL);
        assert_eq!(BlockMask::covering(0, 0), BlockMask::NONE);
        assert_eq!(BlockMask::covering(0, 1), BlockMask(1));
        assert_eq!(BlockMask::covering(511, 513), BlockMask(3));
        assert_eq!(BlockMask::covering(CHUNK_LEN - 1, CHUNK_LEN), BlockMask(1 << 127));
    }

    #[test]
    fn grains_are_the_mask_again() {
        for mask in [0, 1, 0x1ff, u128::MAX, 1 << 127, 0xff00_ff00, u128::MAX - 1] {
            let mask = BlockMask(mask);
            let (mut again, mut grains, mut end) = (BlockMask::NONE, GrainMask::default(), 0);
            for (grain, range) in mask.by_grain() {
                assert!(grain.count() == 1 && grain.is_within(mask.grains()) && range.start == end);
                assert_eq!(mask.within(grain).byte_count() as usize, range.len());
                again = again.union(mask.within(grain));
                grains = grains.union(grain);
                end = range.end;
            }
            assert_eq!((again, grains, end as u64), (mask, mask.grains(), mask.byte_count()));
        }
    }

    #[test]
    fn what_is_narrowed_pays() {
        let item = |data| Item::Chunk {
            index: 0,
            data: BlockMask(data),
            zero: BlockMask::NONE,
            id: ChunkId([1; 32]),
        };
        assert_eq!(item(u128::MAX).narrowable(), Some(GrainMask(u16::MAX)));
        assert_eq!(item(0xffff).narrowable(), Some(GrainMask(3)));
        assert_eq!(item(0x0ff0).narrowable(), Some(GrainMask(3)));
        // One grain differs, or all of its item would not.
        assert_eq!(item(0xff).narrowable(), None);
        assert_eq!(item(0x0101).narrowable(), None);
        assert_eq!(Item::Zero { index: 0, count: 9 }.narrowable(), None);
    }

    #[test]
    fn runs_are_the_mask_again() {
        for mask in [0, 1, 5, u128::MAX, 1 << 127, (1 << 127) | 1, 0xff00_ff00, u128::MAX - 1] {
            let mut again = BlockMask::NONE;
            let mut last = None;
            for run in BlockMask(mask).runs() {
                assert!(last.is_none_or(|end| run.start > end), "runs touch in {mask:#x}");
                last = Some(run.end);
                again = again.union(BlockMask::covering(run.start as u64, run.end as u64));
            }
            assert_eq!(again, BlockMask(mask));
        }
    }
}
