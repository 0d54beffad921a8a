//! Reading a volume chunk by chunk, and changing chunks in memory and in place.

use std::{borrow::Cow, ops::Range};

use driftline_chunking::{ChunkKey, DataRuns, SPAN_CHUNKS, is_zero};
use driftline_extent::{
    BlockMask, CHUNK_LEN, ChunkId, Extent, GrainMask, Item, VOLUME_LEN_MAX, chunk_count,
};

use crate::{
    Disk, Problem,
    disk::Store,
    ids::IdList,
    sparse::{Reserve, Sparse, sparse_runs},
};

/// Chunks that are read together, on all cores, where a volume is gone over.
const WALK_CHUNKS: usize = 256;

/// The blocks that one item changes in one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Patch {
    pub(crate) index: u64,
    pub(crate) data: BlockMask,
    pub(crate) zero: BlockMask,
    /// Names the bytes of the data blocks.
    pub(crate) id: ChunkId,
}

/// An item that holds to the rules.
#[derive(Clone, Debug)]
pub(crate) enum Valid {
    Patch(Patch),
    Zero(Range<u64>),
    Span(Range<u64>, ChunkId),
}

/// Checks an item from outside: within the largest volume, not empty, not contradictory.
pub(crate) fn validate(item: &Item) -> Result<Valid, Problem> {
    let chunks_max = chunk_count(VOLUME_LEN_MAX);
    let end = item.first().checked_add(item.count()).filter(|_| item.first() < chunks_max);
    let Some(end) = end else {
        return Err(Problem::Malformed("an item lies beyond the largest volume there is"));
    };
    if item.count() == 0 {
        return Err(Problem::Malformed("an item is empty"));
    }
    let chunks = item.first()..end.min(chunks_max);
    match *item {
        Item::Part { .. } => Err(Problem::Malformed("a part of a stream is no change of a volume")),
        Item::Zero { .. } => Ok(Valid::Zero(chunks)),
        Item::Span { count, .. } if count > SPAN_CHUNKS => {
            Err(Problem::Malformed("a span is longer than a span can be"))
        }
        Item::Span { digest, .. } => Ok(Valid::Span(chunks, digest)),
        Item::Chunk { data, zero, .. } if !data.intersect(zero).is_empty() => {
            Err(Problem::Malformed("a block is said to hold data and to be zero"))
        }
        Item::Chunk { index, data, zero, id } if id.is_zero() => {
            let (data, zero) = (BlockMask::NONE, data.union(zero));
            Ok(Valid::Patch(Patch { index, data, zero, id }))
        }
        Item::Chunk { data, .. } if data.is_empty() => {
            Err(Problem::Malformed("an item names data but has no block for it"))
        }
        Item::Chunk { index, data, zero, id } => Ok(Valid::Patch(Patch { index, data, zero, id })),
    }
}

impl Patch {
    /// The first byte of the chunk.
    pub(crate) const fn offset(&self) -> u64 {
        self.index * CHUNK_LEN
    }

    /// The bytes of the data blocks in `chunk`.
    pub(crate) fn blocks_of(&self, chunk: Vec<u8>) -> Vec<u8> {
        if self.data.is_all() {
            return chunk;
        }
        self.gather(&chunk)
    }

    /// The same, of a chunk that is still needed.
    fn gather(&self, chunk: &[u8]) -> Vec<u8> {
        self.data.runs().map(|run| &chunk[run]).collect::<Vec<_>>().concat()
    }

    /// What is left of the patch if only these grains of it change; `bytes` are those of the
    /// data blocks.
    pub(crate) fn narrowed(
        &self,
        key: &ChunkKey,
        grains: GrainMask,
        bytes: &[u8],
    ) -> (Self, Vec<u8>) {
        let within = self.data.by_grain().filter(|(grain, _)| grain.is_within(grains));
        let kept = within.map(|(_, range)| &bytes[range]).collect::<Vec<_>>().concat();
        (Self { data: self.data.within(grains), id: key.id(&kept), ..*self }, kept)
    }

    /// Whether it says all of its chunk, so that nothing of what stands there remains.
    pub(crate) const fn is_whole(&self) -> bool {
        self.data.union(self.zero).is_all()
    }

    /// Whether `bytes` are those of the data blocks.
    pub(crate) fn is_named(&self, key: &ChunkKey, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.data.byte_count() && key.id(bytes) == self.id
    }

    /// Whether `chunk`, named `listed`, is already what the patch makes of it.
    pub(crate) fn is_in(&self, key: &ChunkKey, chunk: &[u8], listed: ChunkId) -> bool {
        if self.data.is_all() {
            return listed == self.id;
        }
        if !self.zero.runs().all(|run| is_zero(&chunk[run])) {
            return false;
        }
        key.id(&self.gather(chunk)) == self.id
    }

    /// That data that was sent is what the patch names. Data that is all zeros is no data, but it
    /// may have been sent.
    pub(crate) fn check_data(&self, key: &ChunkKey, data: &[u8]) -> Result<(), Problem> {
        if self.is_named(key, data) || (self.id.is_zero() && key.id(data).is_zero()) {
            return Ok(());
        }
        Err(Problem::WrongData { offset: self.offset() })
    }

    /// The bytes of the data blocks: those that were sent, or else those the target has.
    pub(crate) fn take_data<'a>(
        &self,
        sent: Option<&'a [u8]>,
        had: impl FnOnce() -> Result<Option<Vec<u8>>, Problem>,
    ) -> Result<Cow<'a, [u8]>, Problem> {
        match sent {
            _ if self.data.is_empty() => Ok(Cow::default()),
            Some(bytes) => Ok(Cow::from(bytes)),
            None => match had()? {
                Some(bytes) => Ok(Cow::from(bytes)),
                None => Err(Problem::Malformed("data that the target lacks was not sent")),
            },
        }
    }

    /// Changes `chunk` in memory; `bytes` are those of the data blocks.
    pub(crate) fn change(&self, chunk: &mut [u8], mut bytes: &[u8]) {
        for run in self.data.runs() {
            let (now, rest) = bytes.split_at(run.len());
            chunk[run].copy_from_slice(now);
            bytes = rest;
        }
        self.zero.runs().for_each(|run| chunk[run].fill(0));
    }

    /// Changes the chunk in place, as far as it lies below `size`.
    pub(crate) fn write<D: Disk>(
        &self,
        volume: &mut Sparse<'_, D>,
        size: u64,
        bytes: &[u8],
    ) -> Result<(), Problem> {
        self.data_places(size, bytes, |place, bytes| volume.write(place.offset(), bytes))?;
        self.zero.runs().filter_map(|run| self.place(&run, size)).try_for_each(|e| volume.zero(e))
    }

    /// Reserves storage for what [`write`](Self::write) will write.
    pub(crate) fn reserve<D: Disk>(
        &self,
        volume: &mut Reserve<'_, D>,
        size: u64,
        bytes: &[u8],
    ) -> Result<(), Problem> {
        self.data_places(size, bytes, |place, bytes| {
            sparse_runs(place.offset(), bytes, |part, data| {
                data.map_or(Ok(()), |_| volume.add(part))
            })
        })
    }

    /// Tells where the data blocks stand below `size`, with their bytes.
    fn data_places(
        &self,
        size: u64,
        mut bytes: &[u8],
        mut tell: impl FnMut(Extent, &[u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        for run in self.data.runs() {
            let (now, rest) = bytes.split_at(run.len());
            bytes = rest;
            if let Some(place) = self.place(&run, size) {
                tell(place, &now[..place.len() as usize])?;
            }
        }
        Ok(())
    }

    /// Where a run of blocks stands in a volume of `size` bytes.
    fn place(&self, run: &Range<usize>, size: u64) -> Option<Extent> {
        Extent::new(self.offset() + run.start as u64, run.len() as u64)?.clamp(size)
    }
}

/// The bytes of some chunks, as far as they lie below `size`.
pub(crate) fn bytes_of(chunks: &Range<u64>, size: u64) -> Option<Extent> {
    Extent::from_bounds(chunks.start * CHUNK_LEN, chunks.end * CHUNK_LEN)?.clamp(size)
}

/// Reads chunk `index` of a volume of `size` bytes. What lies beyond counts as zeros.
pub(crate) fn read_chunk<D: Disk>(
    volume: &Store<D>,
    size: u64,
    index: u64,
    buf: &mut [u8],
) -> Result<(), Problem> {
    volume.read_below(size, index * CHUNK_LEN, buf)
}

/// How many bytes of the chunk at `offset` lie within a volume of this size, or where that is not
/// known within what can be; the others must be zero.
pub(crate) fn room_in<D: Disk>(
    volume: &Store<D>,
    size: Option<u64>,
    offset: u64,
    chunk: &[u8],
) -> Result<usize, Problem> {
    let limit = match size {
        Some(size) => size,
        None if volume.is_fixed() => volume.len()?,
        None => VOLUME_LEN_MAX,
    };
    let kept = limit.saturating_sub(offset).min(chunk.len() as u64) as usize;
    if is_zero(&chunk[kept..]) {
        return Ok(kept);
    }
    Err(match size {
        Some(size) => Problem::BeyondEnd { size },
        None => Problem::TooSmall { needed: offset + CHUNK_LEN, available: limit },
    })
}

/// An empty buffer for [`read_chunk`].
pub(crate) fn chunk_buf() -> Vec<u8> {
    vec![0; CHUNK_LEN as usize]
}

/// Checks that a chunk reads as `expected`, once written.
pub(crate) fn read_back<D: Disk>(
    key: &ChunkKey,
    volume: &Store<D>,
    size: u64,
    index: u64,
    expected: ChunkId,
    buf: &mut [u8],
) -> Result<(), Problem> {
    read_chunk(volume, size, index, buf)?;
    if key.id(buf) == expected {
        return Ok(());
    }
    Err(Problem::ReadBack { offset: index * CHUNK_LEN })
}

/// Names what stands in `chunks`, a span of a volume of `size` bytes, on all cores, and proves
/// that it is what a list of ids says. Returns the ids.
pub(crate) fn prove_span<D: Disk>(
    key: &ChunkKey,
    volume: &Store<D>,
    size: u64,
    list: &IdList<D>,
    chunks: &Range<u64>,
    data: &mut DataRuns,
) -> Result<Vec<ChunkId>, Problem> {
    let end = chunks.end.min(chunk_count(size)).max(chunks.start);
    let ids = volume.name_range(key, size, chunks.start..end, data)?;
    let mut listed = list.entries(chunks.start..end);
    let mut expected = listed.next().transpose()?;
    for (index, found) in (chunks.start..).zip(&ids) {
        let id = match expected {
            Some((at, id)) if at == index => {
                expected = listed.next().transpose()?;
                id
            }
            _ => ChunkId::ZERO,
        };
        if *found != id {
            return Err(Problem::Modified { offset: index * CHUNK_LEN });
        }
    }
    Ok(ids)
}

/// Reads `chunks` of a volume of `size` bytes beside a list of ids, ascending: `visit` gets
/// the index, the id of what stands there, and the listed one. Chunks that are a hole and
/// listed as zero are passed over, so that holes cost nothing.
pub(crate) fn walk<D: Disk>(
    key: &ChunkKey,
    volume: &Store<D>,
    size: u64,
    list: &IdList<D>,
    chunks: Range<u64>,
    mut visit: impl FnMut(u64, ChunkId, ChunkId) -> Result<(), Problem>,
) -> Result<(), Problem> {
    walk_any(key, volume, size, list, chunks, |index, found, listed| visit(index, found?, listed))
}

/// As [`walk`]; `visit` hears as well of what cannot be read.
pub(crate) fn walk_any<D: Disk>(
    key: &ChunkKey,
    volume: &Store<D>,
    size: u64,
    list: &IdList<D>,
    chunks: Range<u64>,
    mut visit: impl FnMut(u64, Result<ChunkId, Problem>, ChunkId) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let end = chunks.end.min(chunk_count(size));
    let mut listed = list.entries(chunks.start..end).peekable();
    let mut data = DataRuns::default();
    let mut at = chunks.start;
    loop {
        // What is listed as something, or may hold data: with its listed id, in order.
        let (mut together, mut there) = (Vec::new(), Vec::new());
        while together.len() < WALK_CHUNKS && at < end {
            let run = volume.data_run(size, at, &mut data)?;
            let entry = listed.peek().and_then(|entry| entry.as_ref().ok()).copied();
            if entry.is_none() {
                // The list cannot be read, or has come to its end.
                listed.next().transpose()?;
            }
            at = run.start.min(entry.map_or(end, |(index, _)| index)).min(end);
            if at == end {
                break;
            }
            if run.contains(&at) {
                there.push(at);
            }
            let id = entry.filter(|(index, _)| *index == at).map(|(_, id)| id);
            if id.is_some() {
                listed.next();
            }
            together.push((at, id.unwrap_or(ChunkId::ZERO)));
            at += 1;
        }
        if together.is_empty() {
            return Ok(());
        }
        let mut found = names_of(key, volume, size, &there).peekable();
        for (index, listed) in together {
            let read = found.next_if(|(read, _)| *read == index);
            visit(index, read.map_or(Ok(ChunkId::ZERO), |(_, id)| id), listed)?;
        }
    }
}

/// What stands in these chunks, each with its index. If they cannot all be read together, each is
/// read by itself.
fn names_of<D: Disk>(
    key: &ChunkKey,
    volume: &Store<D>,
    size: u64,
    indices: &[u64],
) -> impl Iterator<Item = (u64, Result<ChunkId, Problem>)> {
    let together = volume.name_listed(key, size, indices).ok();
    let mut buf = chunk_buf();
    indices.iter().enumerate().map(move |(place, index)| {
        let id = match &together {
            Some(ids) => Ok(ids[place]),
            None => read_chunk(volume, size, *index, &mut buf).map(|()| key.id(&buf)),
        };
        (*index, id)
    })
}
