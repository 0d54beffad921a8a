//! A volume without a map: hashed whole, announced span by span, told in detail only where
//! the target differs.

use std::{collections::HashMap, io, mem};

use driftline_extent::{BlockMask, CHUNK_LEN, ChunkId, Item, Root, Volume, chunk_count};
use driftline_manifest::{ChunkKey, Runs, SPAN_CHUNKS, TreeHasher, name_chunks};
use driftline_wire::{Announced, Payload};

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
        let mut ids = vec![ChunkId::ZERO; count as usize];
        let mut runs: Runs<'_> = Vec::new();
        let (mut next, end, mut rest) = (first, first + count, ids.as_mut_slice());
        while next < end {
            let hole = self.hole_chunks(next)?.min(end - next);
            next += hole;
            let len = self.data_chunks(next).min(end - next);
            let (run, later) = mem::take(&mut rest)[hole as usize..].split_at_mut(len as usize);
            runs.extend((len > 0).then_some((next, run)));
            (next, rest) = (next + len, later);
        }
        let volume = self.volume;
        name_chunks(&self.key, volume.size(), runs, |offset, buf| volume.read_at(offset, buf))?;
        self.bytes_read = (end * CHUNK_LEN).min(volume.size());
        Ok(ids)
    }

    /// How many chunks from `index` on may hold data, once [`hole_chunks`](Self::hole_chunks)
    /// found none before.
    fn data_chunks(&self, index: u64) -> u64 {
        self.data.map_or(0, |(_, end)| end.div_ceil(CHUNK_LEN)).saturating_sub(index)
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
