//! A volume without a map: hashed whole, announced span by span, told in detail only where
//! the target differs.

use std::{collections::HashMap, io};

use driftline_extent::{BlockMask, CHUNK_LEN, ChunkId, Item, Root, Volume, chunk_count};
use driftline_manifest::{ChunkKey, SPAN_CHUNKS, TreeHasher};
use driftline_wire::{Announced, Payload};

/// Chunks that are read at once.
const READ_CHUNKS: u64 = 16;

/// The root over all of a volume.
pub fn root_of(volume: &dyn Volume, key: &ChunkKey) -> io::Result<Root> {
    let mut scanner = Scanner::new(volume, key, u64::MAX);
    while scanner.next_span(&mut |_, _| {})?.is_some() {}
    Ok(scanner.into_root())
}

/// Goes over a volume once, in order, and remembers the ids of spans that are not settled.
pub struct Scanner<'a> {
    volume: &'a dyn Volume,
    key: ChunkKey,
    tree: TreeHasher,
    /// Spans that were announced and not compared yet, with the ids of their chunks.
    open: HashMap<u64, Vec<ChunkId>>,
    /// Chunks below this were delivered in an earlier session.
    from: u64,
    /// End of the range known to be data (above the scan), from the volume's own map of holes.
    data: Option<(u64, u64)>,
    buffer: Vec<u8>,
    bytes_read: u64,
}

impl<'a> Scanner<'a> {
    /// A scan that announces what lies at or above chunk `from`.
    pub fn new(volume: &'a dyn Volume, key: &ChunkKey, from: u64) -> Self {
        Self {
            volume,
            key: key.clone(),
            tree: TreeHasher::new(key),
            open: HashMap::new(),
            from,
            data: None,
            buffer: vec![0; (READ_CHUNKS * CHUNK_LEN) as usize],
            bytes_read: 0,
        }
    }

    /// The next span, once all of it was read and hashed; `None` at the end of the volume. `seen`
    /// gets the first chunk and the ids of every span, also of those that are not told again.
    pub fn next_span(&mut self, seen: &mut dyn FnMut(u64, &[ChunkId])) -> io::Result<Option<Item>> {
        let chunks = chunk_count(self.volume.size());
        loop {
            let index = self.tree.chunks();
            let count = SPAN_CHUNKS.min(chunks - index);
            if count == 0 {
                return Ok(None);
            }
            let ids = self.hash(index, count)?;
            seen(index, &ids);
            let mut span = TreeHasher::new(&self.key);
            for id in &ids {
                span.push(*id);
                self.tree.push(*id);
            }
            // What an earlier session delivered is hashed for the root, and not told again.
            if index + count > self.from {
                self.open.insert(index, ids);
                return Ok(Some(Item::Span { index, count, digest: span.into_span() }));
            }
        }
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

    /// The root over the volume, after its end was reached.
    pub fn into_root(self) -> Root {
        self.tree.into_root(self.volume.size())
    }

    /// Bytes that were gone over so far, holes included: they are done as well.
    pub const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    fn hash(&mut self, first: u64, count: u64) -> io::Result<Vec<ChunkId>> {
        let mut ids = Vec::with_capacity(count as usize);
        let (mut next, end) = (first, first + count);
        while next < end {
            let hole = self.hole_chunks(next)?.min(end - next);
            if hole > 0 {
                ids.resize(ids.len() + hole as usize, ChunkId::ZERO);
                next += hole;
            } else {
                let count = READ_CHUNKS.min(end - next);
                let offset = next * CHUNK_LEN;
                let len = (count * CHUNK_LEN).min(self.volume.size() - offset) as usize;
                self.volume.read_at(offset, &mut self.buffer[..len])?;
                // The content of the last chunk is padded with zeros.
                let padded = len.next_multiple_of(CHUNK_LEN as usize);
                self.buffer[len..padded].fill(0);
                let chunks = self.buffer[..padded].chunks(CHUNK_LEN as usize);
                ids.extend(chunks.map(|chunk| self.key.id(chunk)));
                next += count;
            }
            self.bytes_read = (next * CHUNK_LEN).min(self.volume.size());
        }
        Ok(ids)
    }

    /// How many whole chunks from `index` on are a hole.
    fn hole_chunks(&mut self, index: u64) -> io::Result<u64> {
        let offset = index * CHUNK_LEN;
        if self.data.is_none_or(|(_, end)| end <= offset) {
            let data = self.volume.next_data(offset)?;
            self.data = data.map(|extent| (extent.offset(), extent.end()));
        }
        let start = self.data.map_or(u64::MAX, |(start, _)| start);
        Ok((start / CHUNK_LEN).saturating_sub(index))
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

impl std::fmt::Debug for Scanner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scanner").field("chunks", &self.tree.chunks()).finish_non_exhaustive()
    }
}
