//! The list of chunk ids of a volume, and the overlay of those that an increment changes.
//!
//! `ids`: 32 bytes per chunk, that of chunk `i` at byte `i * 32`. All zero bytes are the id
//! of a zero chunk, so a list of holes is a hole. There is no header: the list is proven by
//! the root that the state file holds.
//!
//! `overlay`: the same shape. All zero bytes say that the increment leaves the chunk alone,
//! all `0xff` that it becomes zero; anything else is its id afterwards. It is never relied
//! on after a restart: the journal says it all again.

use std::{iter::Peekable, ops::Range, sync::Arc};

use driftline_chunking::{ChunkKey, TreeHasher};
use driftline_extent::{ChunkId, Extent, Root, chunk_count};

use crate::{Disk, Part, Problem, disk::Store, sparse::Reserve, through::Through};

const ENTRY_LEN: u64 = 32;

/// How many entries are read at a time.
const WINDOW: u64 = 2048;

/// How many entries are written at a time: a block of common file systems, so that no hole is
/// filled for a neighbour.
const BLOCK: u64 = 128;

/// What stands in the overlay for a chunk that becomes zero.
const BECOMES_ZERO: ChunkId = ChunkId([0xff; 32]);

/// A sparse list of ids on a disk.
#[derive(Debug)]
pub(crate) struct IdList<D> {
    store: Store<D>,
}

impl<D: Disk> IdList<D> {
    pub(crate) const fn new(part: Part, disk: D) -> Self {
        Self { store: Store::new(part, disk) }
    }

    /// The entry of chunk `index`; zero where the list is shorter.
    pub(crate) fn get(&self, index: u64) -> Result<ChunkId, Problem> {
        let mut id = ChunkId::ZERO;
        self.store.read_below(self.store.len()?, index * ENTRY_LEN, &mut id.0)?;
        Ok(id)
    }

    pub(crate) fn set(&self, index: u64, id: ChunkId) -> Result<(), Problem> {
        self.store.write_at(index * ENTRY_LEN, &id.0)
    }

    /// Sets entries that come ascending, those of a block together.
    pub(crate) fn set_all(&self, entries: impl Iterator<Item = Entry>) -> Result<(), Problem> {
        let mut entries = entries.peekable();
        while let Some(entry) = entries.next() {
            let mut group = vec![entry?];
            let first = group[0].0;
            let in_block =
                |next: &Entry| !matches!(next, Ok((at, _)) if at / BLOCK > first / BLOCK);
            while let Some(next) = entries.next_if(in_block) {
                group.push(next?);
            }
            let last = group[group.len() - 1].0;
            // What lies between stays as it is.
            let mut bytes = vec![0; ((last + 1 - first) * ENTRY_LEN) as usize];
            self.store.read_below(self.store.len()?, first * ENTRY_LEN, &mut bytes)?;
            let (places, _) = bytes.as_chunks_mut::<{ ENTRY_LEN as usize }>();
            group.iter().for_each(|(index, id)| places[(index - first) as usize] = id.0);
            self.store.write_at(first * ENTRY_LEN, &bytes)?;
        }
        Ok(())
    }

    /// Reserves storage for entries of these chunks, which come ascending.
    pub(crate) fn reserve(
        &self,
        chunks: impl Iterator<Item = Result<u64, Problem>>,
    ) -> Result<u64, Problem> {
        let mut reserve = Reserve::new(&self.store);
        let mut last = None;
        for index in chunks {
            let block = index? / BLOCK;
            if last.replace(block) != Some(block)
                && let Some(range) = Extent::new(block * BLOCK * ENTRY_LEN, BLOCK * ENTRY_LEN)
            {
                reserve.add(range)?;
            }
        }
        reserve.finish()
    }

    /// See [`Store::check_in_place`].
    pub(crate) fn check_in_place(&self) -> Result<(), Problem> {
        self.store.check_in_place()
    }

    /// See [`Store::read_through`].
    pub(crate) fn read_through(&mut self, through: Arc<Through<D>>) {
        self.store.read_through(through);
    }

    /// Forgets the entries from `count` on; the list is that long then.
    pub(crate) fn truncate(&self, count: u64) -> Result<(), Problem> {
        self.store.set_len(count * ENTRY_LEN)
    }

    /// Makes the list durable, and lets the next reads come from the storage.
    pub(crate) fn settle(&self) -> Result<(), Problem> {
        self.store.settle()
    }

    /// The entries within `chunks` that are not zero, ascending; holes cost nothing.
    pub(crate) fn entries(&self, chunks: Range<u64>) -> Entries<'_, D> {
        let (next, end) = (chunks.start, chunks.end);
        Entries { list: self, next, end, data: 0..0, window: 0..0, bytes: Vec::new() }
    }

    /// The root over a volume of `size` bytes with these ids.
    pub(crate) fn root(&self, key: &ChunkKey, size: u64) -> Result<Root, Problem> {
        root_of(key, size, self.entries(0..chunk_count(size)))
    }
}

/// The overlay of an increment over the list of its base.
#[derive(Debug)]
pub(crate) struct Overlay<D>(pub(crate) IdList<D>);

impl<D: Disk> Overlay<D> {
    /// What the increment makes of chunk `index`; `None` if it leaves it alone.
    pub(crate) fn get(&self, index: u64) -> Result<Option<ChunkId>, Problem> {
        let entry = self.0.get(index)?;
        Ok((!entry.is_zero()).then(|| meaning(entry)))
    }

    pub(crate) fn set(&self, index: u64, id: ChunkId) -> Result<(), Problem> {
        self.0.set(index, if id.is_zero() { BECOMES_ZERO } else { id })
    }

    pub(crate) fn clear(&self) -> Result<(), Problem> {
        self.0.truncate(0)
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> Result<bool, Problem> {
        Ok(self.0.store.len()? == 0)
    }

    /// Whether all of these chunks become zero.
    pub(crate) fn are_zeroed(&self, chunks: Range<u64>) -> Result<bool, Problem> {
        let mut missing = chunks.end - chunks.start;
        for entry in self.entries(chunks) {
            missing -= u64::from(entry?.1.is_zero());
        }
        Ok(missing == 0)
    }

    /// What the increment changes within `chunks`, ascending.
    pub(crate) fn entries(
        &self,
        chunks: Range<u64>,
    ) -> impl Iterator<Item = Result<(u64, ChunkId), Problem>> {
        self.0.entries(chunks).map(|entry| entry.map(|(index, id)| (index, meaning(id))))
    }

    /// The root over a volume of `size` bytes with the ids of `base`, changed by this.
    pub(crate) fn root(
        &self,
        key: &ChunkKey,
        size: u64,
        base: &IdList<D>,
    ) -> Result<Root, Problem> {
        let chunks = 0..chunk_count(size);
        let base = base.entries(chunks.clone()).peekable();
        root_of(key, size, Merged { base, changes: self.entries(chunks).peekable() })
    }
}

/// The id that an entry of an overlay stands for.
fn meaning(entry: ChunkId) -> ChunkId {
    if entry == BECOMES_ZERO { ChunkId::ZERO } else { entry }
}

fn root_of(
    key: &ChunkKey,
    size: u64,
    ids: impl Iterator<Item = Result<(u64, ChunkId), Problem>>,
) -> Result<Root, Problem> {
    let mut tree = TreeHasher::new(key);
    for entry in ids {
        let (index, id) = entry?;
        tree.push_zeros(index - tree.chunks());
        tree.push(id);
    }
    tree.push_zeros(chunk_count(size) - tree.chunks());
    Ok(tree.into_root(size))
}

/// The ids of a base with some of them replaced.
struct Merged<A: Iterator, B: Iterator> {
    base: Peekable<A>,
    changes: Peekable<B>,
}

type Entry = Result<(u64, ChunkId), Problem>;

impl<A: Iterator<Item = Entry>, B: Iterator<Item = Entry>> Iterator for Merged<A, B> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        match (self.base.peek(), self.changes.peek()) {
            (Some(Ok((old, _))), Some(Ok((new, _)))) if old < new => self.base.next(),
            (Some(Ok((old, _))), Some(Ok((new, _)))) if old == new => {
                self.base.next();
                self.changes.next()
            }
            (Some(Err(_)), _) | (_, None) => self.base.next(),
            (_, Some(_)) => self.changes.next(),
        }
    }
}

/// See [`IdList::entries`].
pub(crate) struct Entries<'a, D> {
    list: &'a IdList<D>,
    next: u64,
    end: u64,
    /// Entries that may not be zero, the next after which was looked for.
    data: Range<u64>,
    /// The entries that `bytes` holds.
    window: Range<u64>,
    bytes: Vec<u8>,
}

impl<D: Disk> Entries<'_, D> {
    /// Reads the window that the next entry which may not be zero starts; `false` if there
    /// is none.
    fn refill(&mut self) -> Result<bool, Problem> {
        let store = &self.list.store;
        if self.next >= self.data.end {
            let Some(data) = store.next_data(self.next * ENTRY_LEN)? else { return Ok(false) };
            self.data = data.offset() / ENTRY_LEN..data.end().div_ceil(ENTRY_LEN);
        }
        let start = self.next.max(self.data.start);
        let len = store.len()?;
        let end = self.end.min(start + WINDOW).min(len.div_ceil(ENTRY_LEN));
        if start >= end {
            return Ok(false);
        }
        self.bytes.resize(((end - start) * ENTRY_LEN) as usize, 0);
        store.read_below(len, start * ENTRY_LEN, &mut self.bytes)?;
        self.next = start;
        self.window = start..end;
        Ok(true)
    }

    fn step(&mut self) -> Result<Option<(u64, ChunkId)>, Problem> {
        while self.next < self.end {
            if !self.window.contains(&self.next) && !self.refill()? {
                self.next = self.end;
                break;
            }
            let within = (self.next - self.window.start) as usize;
            let (entries, _) = self.bytes.as_chunks::<{ ENTRY_LEN as usize }>();
            let from = entries.get(within..).unwrap_or_default();
            let skip = from.iter().position(|entry| *entry != [0; 32]);
            let Some(skip) = skip else {
                self.next = self.window.end;
                continue;
            };
            let index = self.next + skip as u64;
            self.next = index + 1;
            return Ok(Some((index, ChunkId(from[skip]))));
        }
        Ok(None)
    }
}

impl<D: Disk> Iterator for Entries<'_, D> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let step = self.step();
        if step.is_err() {
            self.next = self.end;
        }
        step.transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing::Memory;

    proptest! {
        #[test]
        fn entries_that_are_set_together_are_set_as_one_by_one(
            before in prop::collection::btree_map(0..1000_u64, 0..4_u8, 0..200),
            set in prop::collection::btree_map(0..1000_u64, 0..4_u8, 0..200),
        ) {
            let list = IdList::new(Part::Ids, Memory::default());
            let id = |byte: u8| ChunkId([byte; 32]);
            for (index, byte) in &before {
                list.set(*index, id(*byte)).unwrap();
            }
            list.set_all(set.iter().map(|(index, byte)| Ok((*index, id(*byte))))).unwrap();
            let mut expected: BTreeMap<u64, u8> = before;
            expected.extend(&set);
            expected.retain(|_, byte| *byte != 0);
            let found: Result<BTreeMap<u64, ChunkId>, Problem> = list.entries(0..1000).collect();
            let expected: BTreeMap<_, _> =
                expected.into_iter().map(|(index, byte)| (index, id(byte))).collect();
            prop_assert_eq!(found.unwrap(), expected);
        }
    }

    #[test]
    fn what_cannot_be_known_is_not_set() {
        let list = IdList::new(Part::Ids, Memory::default());
        let entries = [Ok((1, ChunkId([1; 32]))), Err(Problem::NoSession)];
        assert!(list.set_all(entries.into_iter()).is_err());
        assert!(list.get(1).unwrap().is_zero());
    }
}
