//! From ascending changes to the items of an increment.

use std::{collections::VecDeque, error::Error, fmt, mem};

use driftline_extent::{
    BLOCK_LEN, BlockMask, CHUNK_LEN, Change, Extent, Item, Root, VOLUME_LEN_MAX, chunk_count,
};

use crate::{ChunkKey, TreeHasher};

/// What the changes describe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// What differs from a base: anything not mentioned is unchanged.
    Increment,
    /// A whole volume: anything not mentioned is zero. Every chunk becomes an item, and the
    /// root over all of them is known at the end.
    Whole,
    /// A whole volume from some chunk on, where the source does not repeat what lies below: as
    /// [`Whole`](Self::Whole), but the root stays unknown.
    Rest,
}

/// An item, and the bytes of its data blocks in ascending order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunked {
    /// What to announce.
    pub item: Item,
    /// What to send if it is asked for: [`Item::data_len`] bytes.
    pub data: Vec<u8>,
}

/// A change that does not fit what came before it, or the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutOfOrder {
    /// The change starts below the end of the one before.
    Overlap {
        /// Where it starts, in bytes.
        offset: u64,
        /// Where the one before ended, in bytes.
        previous_end: u64,
    },
    /// The change does not lie on multiples of [`BLOCK_LEN`] and is not the last.
    Unaligned {
        /// Where it starts, in bytes.
        offset: u64,
    },
    /// Data lies beyond the end of the volume.
    BeyondEnd {
        /// Where the data ends, in bytes.
        end: u64,
        /// The size of the volume.
        size: u64,
    },
    /// The change is a part of an opaque stream, and so none of a volume.
    Opaque,
}

impl fmt::Display for OutOfOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { offset, previous_end } => write!(
                f,
                "the change at offset {offset} starts below {previous_end}, where the one before ended"
            ),
            Self::Unaligned { offset } => {
                write!(f, "the change at offset {offset} is not a multiple of {BLOCK_LEN} bytes")
            }
            Self::BeyondEnd { end, size } => {
                write!(f, "data up to {end} lies beyond the end of the volume of {size} bytes")
            }
            Self::Opaque => f.write_str("a part of an opaque stream says nothing of a volume"),
        }
    }
}

impl Error for OutOfOrder {}

/// Gathers ascending, disjoint changes into one item per touched chunk.
#[derive(Debug)]
pub struct Chunker {
    key: ChunkKey,
    scope: Scope,
    /// Items of chunks below this are not wanted: an earlier session delivered them.
    from: u64,
    open: Option<OpenChunk>,
    /// One past the last chunk that was emitted or skipped.
    next: u64,
    /// One past the last byte that was mentioned.
    end: u64,
    /// One past the last byte of data.
    data_end: u64,
    tree: Option<TreeHasher>,
    ready: VecDeque<Chunked>,
}

/// A chunk that more changes may still touch.
#[derive(Debug)]
struct OpenChunk {
    index: u64,
    data: BlockMask,
    zero: BlockMask,
    bytes: Vec<u8>,
}

impl Chunker {
    /// A chunker that names chunks under `key` and emits items from chunk `from` on.
    pub fn new(key: &ChunkKey, scope: Scope, from: u64) -> Self {
        let tree = (scope == Scope::Whole).then(|| TreeHasher::new(key));
        Self {
            key: key.clone(),
            scope,
            from,
            open: None,
            next: if scope == Scope::Rest { from } else { 0 },
            end: 0,
            data_end: 0,
            tree,
            ready: VecDeque::new(),
        }
    }

    /// Takes the next change.
    pub fn push(&mut self, change: &Change) -> Result<(), OutOfOrder> {
        if matches!(change, Change::Part(_)) {
            return Err(OutOfOrder::Opaque);
        }
        let Some(extent) = change.extent() else { return Ok(()) };
        if extent.offset() < self.end {
            let (offset, previous_end) = (extent.offset(), self.end);
            return Err(OutOfOrder::Overlap { offset, previous_end });
        }
        // Only the end of a volume may lie within a block, and nothing can follow it there.
        if !extent.offset().is_multiple_of(BLOCK_LEN) {
            return Err(OutOfOrder::Unaligned { offset: extent.offset() });
        }
        self.end = extent.end();
        match change {
            Change::Data { bytes, .. } => {
                if extent.end() > VOLUME_LEN_MAX {
                    let (end, size) = (extent.end(), VOLUME_LEN_MAX);
                    return Err(OutOfOrder::BeyondEnd { end, size });
                }
                self.data_end = extent.end();
                self.push_data(extent, bytes);
            }
            Change::Zero(_) if self.scope != Scope::Increment => {}
            Change::Zero(_) | Change::Part(_) => {
                if let Some(extent) = extent.clamp(VOLUME_LEN_MAX) {
                    self.push_zero(extent);
                }
            }
        }
        Ok(())
    }

    /// Ends the volume or the increment. `size` is the volume's, where it is known; a
    /// [`Scope::Whole`] needs it and gets its root.
    pub fn finish(&mut self, size: Option<u64>) -> Result<Option<Root>, OutOfOrder> {
        self.close();
        if let Some(size) = size.filter(|size| self.data_end > *size) {
            return Err(OutOfOrder::BeyondEnd { end: self.data_end, size });
        }
        let Some(size) = size.filter(|_| self.scope != Scope::Increment) else { return Ok(None) };
        self.skip_to(chunk_count(size));
        Ok(self.tree.take().map(|tree| tree.into_root(size)))
    }

    /// The next finished item.
    pub fn poll(&mut self) -> Option<Chunked> {
        self.ready.pop_front()
    }

    fn push_data(&mut self, extent: Extent, bytes: &[u8]) {
        for piece in extent.pieces(CHUNK_LEN) {
            let from = (piece.offset() - extent.offset()) as usize;
            let open = self.open(piece.offset() / CHUNK_LEN);
            let within = within_chunk(&piece);
            open.data = open.data.union(BlockMask::covering(within.start, within.end));
            open.bytes[within.start as usize..within.end as usize]
                .copy_from_slice(&bytes[from..from + piece.len() as usize]);
        }
    }

    fn push_zero(&mut self, extent: Extent) {
        let whole = extent.align_in(CHUNK_LEN);
        let (before, rest) = extent.split_at(whole.map_or_else(|| extent.end(), |w| w.offset()));
        let after = whole.and_then(|w| rest.and_then(|r| r.split_at(w.end()).1));
        if let Some(before) = before {
            before.pieces(CHUNK_LEN).for_each(|piece| self.zero_within(&piece));
        }
        if let Some(whole) = whole {
            self.close();
            let index = whole.offset() / CHUNK_LEN;
            let count = whole.len() / CHUNK_LEN;
            self.next = index + count;
            self.emit_zeros(index, count);
        }
        if let Some(after) = after {
            self.zero_within(&after);
        }
    }

    fn zero_within(&mut self, piece: &Extent) {
        let open = self.open(piece.offset() / CHUNK_LEN);
        let within = within_chunk(piece);
        open.zero = open.zero.union(BlockMask::covering(within.start, within.end));
    }

    /// The chunk at `index`, open for changes.
    fn open(&mut self, index: u64) -> &mut OpenChunk {
        if self.open.as_ref().is_none_or(|open| open.index != index) {
            self.close();
        }
        self.open.get_or_insert_with(|| OpenChunk {
            index,
            data: BlockMask::NONE,
            zero: BlockMask::NONE,
            bytes: vec![0; CHUNK_LEN as usize],
        })
    }

    fn close(&mut self) {
        let Some(chunk) = self.open.take() else { return };
        self.skip_to(chunk.index);
        self.next = chunk.index + 1;
        let wanted = chunk.index >= self.from;
        match self.scope {
            Scope::Whole | Scope::Rest => {
                let id = self.key.id(&chunk.bytes);
                if let Some(tree) = &mut self.tree {
                    tree.push(id);
                }
                if id.is_zero() {
                    self.emit_zeros(chunk.index, 1);
                } else if wanted {
                    let (data, zero) = (BlockMask::ALL, BlockMask::NONE);
                    let item = Item::Chunk { index: chunk.index, data, zero, id };
                    self.ready.push_back(Chunked { item, data: chunk.bytes });
                }
            }
            Scope::Increment if wanted => self.ready.push_back(partial(&self.key, chunk)),
            Scope::Increment => {}
        }
    }

    /// In a whole volume, everything below chunk `index` that was not mentioned is zero.
    fn skip_to(&mut self, index: u64) {
        let next = mem::replace(&mut self.next, index);
        let Some(count) = index.checked_sub(next) else { return };
        if let Some(tree) = &mut self.tree {
            tree.push_zeros(count);
        }
        if self.scope != Scope::Increment {
            self.emit_zeros(next, count);
        }
    }

    /// Announces a run of zero chunks, joined to the one before where they touch.
    fn emit_zeros(&mut self, index: u64, count: u64) {
        let (first, end) = (index.max(self.from), index + count);
        if first >= end {
            return;
        }
        if let Some(Chunked { item: Item::Zero { index, count }, .. }) = self.ready.back_mut()
            && *index + *count == first
        {
            *count += end - first;
            return;
        }
        let item = Item::Zero { index: first, count: end - first };
        self.ready.push_back(Chunked { item, data: Vec::new() });
    }
}

/// The item for a chunk of which only some blocks are known.
fn partial(key: &ChunkKey, chunk: OpenChunk) -> Chunked {
    let OpenChunk { index, mut data, mut zero, mut bytes } = chunk;
    if !data.is_all() {
        let mut packed = Vec::with_capacity(data.byte_count() as usize);
        data.runs().for_each(|run| packed.extend_from_slice(&bytes[run]));
        bytes = packed;
    }
    let id = key.id(&bytes);
    if id.is_zero() {
        zero = zero.union(mem::take(&mut data));
        bytes.clear();
    }
    if zero.is_all() {
        return Chunked { item: Item::Zero { index, count: 1 }, data: bytes };
    }
    Chunked { item: Item::Chunk { index, data, zero, id }, data: bytes }
}

/// A piece that does not cross a chunk, as byte positions within its chunk.
fn within_chunk(piece: &Extent) -> std::ops::Range<u64> {
    let start = piece.offset() % CHUNK_LEN;
    start..start + piece.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftline_extent::ChunkId;
    use proptest::prelude::*;

    const SIZE: u64 = 6 * CHUNK_LEN + 3 * BLOCK_LEN;

    fn key() -> ChunkKey {
        ChunkKey::new(&[3; 32])
    }

    /// Ascending runs of blocks: gap, length, and whether it is zero, random or zero data.
    fn changes() -> impl Strategy<Value = Vec<Change>> {
        prop::collection::vec((0..150_u64, 1..300_u64, 0..4_u8), 0..12).prop_map(|runs| {
            let mut at = 0;
            let mut changes = Vec::new();
            for (i, (gap, len, kind)) in runs.into_iter().enumerate() {
                let offset = at + gap * BLOCK_LEN;
                let Some(extent) = Extent::new(offset, len * BLOCK_LEN).and_then(|e| e.clamp(SIZE))
                else {
                    break;
                };
                at = extent.end();
                let fill = |byte| Change::Data { offset, bytes: vec![byte; extent.len() as usize] };
                changes.push(match kind {
                    0 => Change::Zero(extent),
                    1 => fill(0),
                    _ => fill(i as u8 + 1),
                });
            }
            changes
        })
    }

    fn write(volume: &mut [u8], change: &Change) {
        let extent = change.extent().unwrap();
        let range = extent.offset() as usize..extent.end() as usize;
        match change {
            Change::Data { bytes, .. } => volume[range].copy_from_slice(bytes),
            Change::Zero(_) => volume[range].fill(0),
            Change::Part(_) => unreachable!("a volume has no parts"),
        }
    }

    fn apply(volume: &mut [u8], chunked: &Chunked) {
        match chunked.item {
            Item::Chunk { index, data, zero, id } => {
                assert!(data.intersect(zero).is_empty());
                assert_eq!(chunked.data.len() as u64, data.byte_count());
                assert_eq!(key().id(&chunked.data), id);
                let chunk = &mut volume[(index * CHUNK_LEN) as usize..][..CHUNK_LEN as usize];
                let mut rest = chunked.data.as_slice();
                for run in data.runs() {
                    let (now, later) = rest.split_at(run.len());
                    chunk[run].copy_from_slice(now);
                    rest = later;
                }
                zero.runs().for_each(|run| chunk[run].fill(0));
            }
            Item::Zero { index, count } => {
                let range = index * CHUNK_LEN..(index + count) * CHUNK_LEN;
                volume[range.start as usize..range.end as usize].fill(0);
            }
            Item::Span { .. } | Item::Part { .. } => unreachable!("a chunker announces no such"),
        }
    }

    fn run(scope: Scope, changes: &[Change], from: u64) -> (Vec<Chunked>, Option<Root>) {
        let mut chunker = Chunker::new(&key(), scope, from);
        changes.iter().for_each(|change| chunker.push(change).unwrap());
        let root = chunker.finish(Some(SIZE)).unwrap();
        (std::iter::from_fn(|| chunker.poll()).collect(), root)
    }

    fn padded() -> Vec<u8> {
        vec![0; (chunk_count(SIZE) * CHUNK_LEN) as usize]
    }

    proptest! {
        #[test]
        fn items_do_what_the_changes_say(changes in changes(), from in 0..7_u64) {
            let base: Vec<u8> = padded().iter().enumerate().map(|(i, _)| (i / 700) as u8).collect();
            let mut expected = base.clone();
            changes.iter().for_each(|change| write(&mut expected, change));
            let (items, root) = run(Scope::Increment, &changes, 0);
            prop_assert_eq!(root, None);
            let mut volume = base.clone();
            items.iter().for_each(|chunked| apply(&mut volume, chunked));
            prop_assert!(volume == expected);

            let firsts: Vec<_> = items.iter().map(|c| c.item.extent().unwrap()).collect();
            prop_assert!(firsts.windows(2).all(|pair| pair[0].end() <= pair[1].offset()));

            // Started later, it delivers exactly what lies above.
            let cut = (from * CHUNK_LEN) as usize;
            let mut resumed = base;
            resumed[..cut].copy_from_slice(&expected[..cut]);
            let (items, _) = run(Scope::Increment, &changes, from);
            prop_assert!(items.iter().all(|chunked| chunked.item.first() >= from));
            items.iter().for_each(|chunked| apply(&mut resumed, chunked));
            prop_assert!(resumed == expected);
        }

        #[test]
        fn a_whole_volume_is_tiled_and_named(changes in changes(), from in 0..7_u64) {
            let mut expected = padded();
            changes.iter().for_each(|change| write(&mut expected, change));
            let (items, root) = run(Scope::Whole, &changes, from);
            let mut volume = expected.clone();
            volume[(from * CHUNK_LEN) as usize..].fill(0xee);
            let mut next = from;
            for chunked in &items {
                prop_assert_eq!(chunked.item.first(), next);
                next += chunked.item.count();
                apply(&mut volume, chunked);
            }
            prop_assert_eq!(next, chunk_count(SIZE));
            prop_assert!(volume == expected);

            let mut tree = TreeHasher::new(&key());
            expected.chunks(CHUNK_LEN as usize).for_each(|chunk| tree.push(key().id(chunk)));
            prop_assert_eq!(root, Some(tree.into_root(SIZE)));

            // A source that repeats nothing below announces the same.
            let rest: Vec<_> = changes
                .iter()
                .filter(|change| change.extent().unwrap().end() > from * CHUNK_LEN)
                .cloned()
                .collect();
            prop_assert_eq!(run(Scope::Rest, &rest, from), (items, None));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let data = |offset, len| Change::Data { offset, bytes: vec![1; len] };
        let mut chunker = Chunker::new(&key(), Scope::Increment, 0);
        chunker.push(&data(1024, 512)).unwrap();
        let overlap = OutOfOrder::Overlap { offset: 1024, previous_end: 1536 };
        assert_eq!(chunker.push(&data(1024, 512)), Err(overlap));
        assert_eq!(chunker.push(&data(1600, 5)), Err(OutOfOrder::Unaligned { offset: 1600 }));
        // The end of a volume may lie within a block, but then nothing follows in that block.
        chunker.push(&data(2048, 5)).unwrap();
        assert_eq!(chunker.push(&data(2053, 5)), Err(OutOfOrder::Unaligned { offset: 2053 }));
        assert_eq!(chunker.push(&Change::Part(vec![1])), Err(OutOfOrder::Opaque));
        let beyond = OutOfOrder::BeyondEnd { end: 2053, size: 2052 };
        assert_eq!(chunker.finish(Some(2052)), Err(beyond));
        let huge = data(VOLUME_LEN_MAX, 512);
        assert!(Chunker::new(&key(), Scope::Whole, 0).push(&huge).is_err());
    }

    #[test]
    fn zeros_to_the_end_of_everything_are_one_item() {
        let mut chunker = Chunker::new(&key(), Scope::Increment, 0);
        let tail = Extent::from_bounds(CHUNK_LEN + BLOCK_LEN, u64::MAX).unwrap();
        chunker.push(&Change::Zero(tail)).unwrap();
        chunker.finish(None).unwrap();
        let items: Vec<Item> = std::iter::from_fn(|| chunker.poll()).map(|c| c.item).collect();
        let zero = BlockMask::ALL.subtract(BlockMask::covering(0, BLOCK_LEN));
        let (data, id) = (BlockMask::NONE, ChunkId::ZERO);
        let count = VOLUME_LEN_MAX / CHUNK_LEN - 2;
        assert_eq!(
            items,
            [Item::Chunk { index: 1, data, zero, id }, Item::Zero { index: 2, count }]
        );
    }
}
