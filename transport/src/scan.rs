//! A volume without a map: hashed whole, announced span by span, told in detail only where
//! the target differs.

use std::{collections::HashMap, io};

use driftline_extent::{BlockMask, CHUNK_LEN, ChunkId, Item, Root, Volume, chunk_count};
use driftline_manifest::{ChunkKey, DataRuns, SPAN_CHUNKS, TreeHasher, name_range};
use driftline_wire::{Announced, Payload};

/// The root over all of a volume.
pub fn root_of(volume: &dyn Volume, key: &ChunkKey) -> io::Result<Root> {
    let mut tree = TreeHasher::new(key);
    for span in Spans::new(volume, key) {
        span?.ids.into_iter().for_each(|id| tree.push(id));
    }
    Ok(tree.into_root(volume.size()))
}

/// What stands in a span of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hashed {
    /// The first chunk.
    pub first: u64,
    /// The ids of all its chunks.
    pub ids: Vec<ChunkId>,
}

/// Reads and hashes a volume once, in order, span by span.
pub struct Spans<'a> {
    volume: &'a dyn Volume,
    key: ChunkKey,
    next: u64,
    data: DataRuns,
}

impl<'a> Spans<'a> {
    /// All spans of this volume.
    pub fn new(volume: &'a dyn Volume, key: &ChunkKey) -> Self {
        Self { volume, key: key.clone(), next: 0, data: DataRuns::default() }
    }
}

impl Iterator for Spans<'_> {
    type Item = io::Result<Hashed>;

    fn next(&mut self) -> Option<io::Result<Hashed>> {
        let (first, size) = (self.next, self.volume.size());
        let end = chunk_count(size).min(first + SPAN_CHUNKS);
        if first == end {
            return None;
        }
        self.next = end;
        let ids = name_range(&self.key, self.volume, size, first..end, &mut self.data);
        Some(ids.map(|ids| Hashed { first, ids }))
    }
}

impl std::fmt::Debug for Spans<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spans").field("next", &self.next).finish_non_exhaustive()
    }
}

/// Folds the spans of a volume to its root, and remembers the ids of those that are not settled.
#[derive(Debug)]
pub struct Scanner {
    key: ChunkKey,
    tree: TreeHasher,
    /// Spans that were announced and not compared yet, with the ids of their chunks.
    open: HashMap<u64, Vec<ChunkId>>,
    /// Chunks below this were delivered in an earlier session.
    from: u64,
}

impl Scanner {
    /// A scan that announces what lies at or above chunk `from`.
    pub fn new(key: &ChunkKey, from: u64) -> Self {
        Self { key: key.clone(), tree: TreeHasher::new(key), open: HashMap::new(), from }
    }

    /// Takes the next span, and says what to announce. What an earlier session delivered is hashed
    /// for the root, and not told again.
    pub fn announce(&mut self, span: Hashed) -> Option<Item> {
        let Hashed { first: index, ids } = span;
        let mut digest = TreeHasher::new(&self.key);
        for id in &ids {
            digest.push(*id);
            self.tree.push(*id);
        }
        let count = ids.len() as u64;
        if index + count <= self.from {
            return None;
        }
        self.open.insert(index, ids);
        Some(Item::Span { index, count, digest: digest.into_span() })
    }

    /// Spans that were announced and not settled.
    pub fn open_spans(&self) -> usize {
        self.open.len()
    }

    /// The span is settled. If the target differs, these are its chunks.
    pub fn settle(&mut self, span: &Item, differs: bool) -> Vec<Announced> {
        let ids = self.open.remove(&span.first()).unwrap_or_default();
        if !differs {
            return Vec::new();
        }
        let chunks = (span.first()..).zip(ids).filter(|(index, _)| *index >= self.from);
        chunks.map(|(index, id)| announce(index, id)).collect()
    }

    /// The bytes of the spans that were taken, holes included: they are done as well.
    pub const fn bytes_done(&self) -> u64 {
        self.tree.chunks() * CHUNK_LEN
    }

    /// The root over a volume of `size` bytes, after its last span.
    pub fn into_root(self, size: u64) -> Root {
        self.tree.into_root(size)
    }
}

/// The item for a whole chunk with this id.
fn announce(index: u64, id: ChunkId) -> Announced {
    let item = if id.is_zero() {
        Item::Zero { index, count: 1 }
    } else {
        Item::Chunk { index, data: BlockMask::ALL, zero: BlockMask::NONE, id }
    };
    Announced { item, payload: Payload::InVolume }
}
