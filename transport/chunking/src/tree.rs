//! The tree over a volume's chunk ids, folded as the ids go by.

use driftline_extent::{CHUNK_LEN, ChunkId, Root};

use crate::ChunkKey;

/// Children of a node.
pub const FANOUT: usize = 16;

/// The level whose nodes are compared first when two volumes are scanned.
pub const SPAN_LEVEL: u32 = 3;

/// Chunks below a node of [`SPAN_LEVEL`]: 256 MiB of volume.
pub const SPAN_CHUNKS: u64 = (FANOUT as u64).pow(SPAN_LEVEL);

const _: () = assert!(SPAN_CHUNKS * CHUNK_LEN == 256 << 20);

/// Folds the ids of consecutive chunks into nodes, keeping only the unfinished ones: at
/// most [`FANOUT`] per level.
#[derive(Clone, Debug)]
pub struct TreeHasher {
    key: ChunkKey,
    /// For each level, the finished nodes whose parent is not.
    pending: Vec<Vec<ChunkId>>,
    chunks: u64,
}

impl TreeHasher {
    /// A tree with no chunk yet.
    pub fn new(key: &ChunkKey) -> Self {
        Self { key: key.clone(), pending: vec![Vec::new()], chunks: 0 }
    }

    /// How many chunks have gone by.
    pub const fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Takes the id of the next chunk.
    pub fn push(&mut self, id: ChunkId) {
        self.chunks += 1;
        self.push_node(0, id);
    }

    /// Takes `count` chunks of zeros, in time proportional to the height of the tree.
    pub fn push_zeros(&mut self, count: u64) {
        self.chunks += count;
        self.push_zero_nodes(0, count);
    }

    /// Takes the node over the next [`SPAN_CHUNKS`] chunks, or over all that are left at the end
    /// of the volume. What went by before must be whole spans, and the volume has several.
    pub fn push_span(&mut self, node: ChunkId, chunks: u64) {
        debug_assert!(
            self.chunks.is_multiple_of(SPAN_CHUNKS) && (1..=SPAN_CHUNKS).contains(&chunks)
        );
        self.chunks += chunks;
        let level = SPAN_LEVEL as usize;
        let levels = self.pending.len().max(level);
        self.pending.resize(levels, Vec::new());
        self.push_node(level, node);
    }

    fn push_node(&mut self, level: usize, node: ChunkId) {
        if self.pending.len() == level {
            self.pending.push(Vec::new());
        }
        let siblings = &mut self.pending[level];
        siblings.push(node);
        if siblings.len() == FANOUT {
            let parent = self.key.node(siblings);
            siblings.clear();
            self.push_node(level + 1, parent);
        }
    }

    fn push_zero_nodes(&mut self, level: usize, mut count: u64) {
        let unaligned = match self.pending.get(level).map(Vec::len) {
            None | Some(0) => 0,
            Some(siblings) => (FANOUT - siblings) as u64,
        };
        let before = count.min(unaligned);
        (0..before).for_each(|_| self.push_node(level, ChunkId::ZERO));
        count -= before;
        if count >= FANOUT as u64 {
            if self.pending.len() == level + 1 {
                self.pending.push(Vec::new());
            }
            self.push_zero_nodes(level + 1, count / FANOUT as u64);
        }
        (0..count % FANOUT as u64).for_each(|_| self.push_node(level, ChunkId::ZERO));
    }

    /// The node over everything that went by, the topmost of a tree just high enough: of a single
    /// chunk, its id.
    pub fn into_node(mut self) -> ChunkId {
        let mut level = 0;
        loop {
            let siblings = &self.pending[level];
            let above = self.pending[level + 1..].iter().any(|nodes| !nodes.is_empty());
            match (siblings.as_slice(), above) {
                ([], false) => return ChunkId::ZERO,
                ([top], false) => return *top,
                ([], true) => {}
                (some, _) => {
                    let parent = self.key.node(some);
                    self.push_node(level + 1, parent);
                }
            }
            level += 1;
        }
    }

    /// The node over everything that went by since `new`, at [`SPAN_LEVEL`]: at most
    /// [`SPAN_CHUNKS`] chunks. The missing ones count as zero.
    pub fn into_span(mut self) -> ChunkId {
        debug_assert!(self.chunks <= SPAN_CHUNKS);
        self.push_zeros(SPAN_CHUNKS - self.chunks);
        self.pending
            .get(SPAN_LEVEL as usize)
            .and_then(|n| n.first())
            .copied()
            .unwrap_or(ChunkId::ZERO)
    }

    /// The root over a volume of `size` bytes whose chunks have all gone by.
    pub fn into_root(self, size: u64) -> Root {
        debug_assert_eq!(self.chunks, driftline_extent::chunk_count(size));
        let key = self.key.clone();
        key.root(size, self.into_node())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> ChunkKey {
        ChunkKey::new(&[7; 32])
    }

    /// The definition, literally: levels as whole vectors.
    fn naive_top(key: &ChunkKey, ids: &[ChunkId]) -> ChunkId {
        let mut level = ids.to_vec();
        while level.len() > 1 {
            level = level.chunks(FANOUT).map(|children| key.node(children)).collect();
        }
        level.first().copied().unwrap_or(ChunkId::ZERO)
    }

    fn ids(runs: &[(bool, u16)]) -> Vec<ChunkId> {
        let ids = runs.iter().flat_map(|(zero, n)| (0..*n).map(move |i| (*zero, i)));
        ids.map(
            |(zero, i)| {
                if zero { ChunkId::ZERO } else { key().id(&[1, i as u8, (i >> 8) as u8]) }
            },
        )
        .collect()
    }

    proptest! {
        #[test]
        fn streaming_equals_the_definition(
            runs in prop::collection::vec((any::<bool>(), 0..600_u16), 0..8),
        ) {
            let ids = ids(&runs);
            let mut tree = TreeHasher::new(&key());
            let mut at = 0;
            for (zero, n) in runs {
                if zero { tree.push_zeros(u64::from(n)) }
                else { ids[at..at + n as usize].iter().for_each(|id| tree.push(*id)) }
                at += n as usize;
            }
            prop_assert_eq!(tree.chunks(), ids.len() as u64);
            prop_assert_eq!(tree.into_node(), naive_top(&key(), &ids));
        }
    }

    #[test]
    fn a_span_is_the_node_the_volume_tree_has() {
        let ids = ids(&[(false, 4096), (true, 3000), (false, 1500), (false, 10)]);
        let spans: Vec<ChunkId> = ids
            .chunks(SPAN_CHUNKS as usize)
            .map(|chunks| {
                let mut tree = TreeHasher::new(&key());
                chunks.iter().for_each(|id| tree.push(*id));
                tree.into_span()
            })
            .collect();
        assert_eq!(naive_top(&key(), &ids), key().node(&spans));
    }

    #[test]
    fn a_root_is_the_same_from_spans_as_from_chunks() {
        let span = SPAN_CHUNKS as u16;
        for runs in [
            &[(false, span + 1)][..],
            &[(false, span), (false, span), (false, 17)],
            &[(true, span), (true, span), (true, span), (false, 3)],
            &[(false, 1), (true, 9 * span), (true, 8 * span), (false, 9)],
        ] {
            let ids = ids(runs);
            let size = ids.len() as u64 * CHUNK_LEN;
            let (mut whole, mut folded) = (TreeHasher::new(&key()), TreeHasher::new(&key()));
            ids.iter().for_each(|id| whole.push(*id));
            for chunks in ids.chunks(SPAN_CHUNKS as usize) {
                let mut tree = TreeHasher::new(&key());
                chunks.iter().for_each(|id| tree.push(*id));
                match tree.into_span() {
                    // As a hole in a list of spans is passed over.
                    ChunkId::ZERO if chunks.len() as u64 == SPAN_CHUNKS => {
                        folded.push_zeros(SPAN_CHUNKS);
                    }
                    node => folded.push_span(node, chunks.len() as u64),
                }
            }
            assert_eq!(whole.into_root(size), folded.into_root(size), "{runs:?}");
        }
    }

    #[test]
    fn an_exbibyte_of_zeros_is_quick_and_size_still_counts() {
        let root = |size: u64| {
            let mut tree = TreeHasher::new(&key());
            tree.push_zeros(driftline_extent::chunk_count(size));
            tree.into_root(size)
        };
        assert_ne!(root(1 << 60), root(1 << 59));
        assert_ne!(root(0), root(1));
    }

    #[test]
    fn names_are_pinned() {
        let id = key().id(b"driftline");
        assert_eq!(
            id.to_string(),
            "bda4041cd7ac1d9329f771af29a6e73123e9559d262ded64d573b0836bc96794"
        );
        let mut tree = TreeHasher::new(&key());
        tree.push(id);
        tree.push(ChunkId::ZERO);
        assert_eq!(
            tree.into_root(CHUNK_LEN + 1).to_string(),
            "d6a9df6c85282068e35d39f731497c7e5a3f5d17fa645cc13c9f572ca1a7a8ac"
        );
        assert_eq!(key().id(&[0; 100]), ChunkId::ZERO);
    }
}
