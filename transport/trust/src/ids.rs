//! A list of ids in a file: 32 bytes each, that of number `i` at byte `i * 32`. All zero bytes
//! are the id of zeros, so a list of holes is a hole.

use std::{io, ops::Range};

use driftline_extent::ChunkId;

use crate::Storage;

const ENTRY_LEN: u64 = 32;

/// How many entries are read at a time.
const WINDOW: u64 = 4096;

#[derive(Debug)]
pub(crate) struct IdFile<S>(pub(crate) S);

impl<S: Storage> IdFile<S> {
    pub(crate) fn get(&self, index: u64) -> io::Result<ChunkId> {
        let mut id = ChunkId::ZERO;
        self.0.read_below(index * ENTRY_LEN, &mut id.0)?;
        Ok(id)
    }

    pub(crate) fn set(&self, index: u64, id: ChunkId) -> io::Result<()> {
        self.0.write_at(index * ENTRY_LEN, &id.0)
    }

    /// The entries in this range, zero where the list is shorter.
    pub(crate) fn load(&self, range: Range<u64>) -> io::Result<Vec<ChunkId>> {
        let mut bytes = vec![0; ((range.end - range.start) * ENTRY_LEN) as usize];
        self.0.read_below(range.start * ENTRY_LEN, &mut bytes)?;
        let (entries, _) = bytes.as_chunks::<{ ENTRY_LEN as usize }>();
        Ok(entries.iter().map(|entry| ChunkId(*entry)).collect())
    }

    /// Writes entries from `first` on.
    pub(crate) fn store(&self, first: u64, ids: &[ChunkId]) -> io::Result<()> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.0).collect();
        self.0.write_at(first * ENTRY_LEN, &bytes)
    }

    /// Calls `each` with every entry in this range that is not zero, ascending. Holes of the file
    /// cost nothing.
    pub(crate) fn each(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(u64, ChunkId) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = range.end.min(self.0.len()?.div_ceil(ENTRY_LEN));
        let mut next = range.start;
        while next < end {
            let Some(data) = self.0.next_data(next * ENTRY_LEN)? else { return Ok(()) };
            next = next.max(data.offset() / ENTRY_LEN);
            let window = next..end.min(next + WINDOW).min(data.end().div_ceil(ENTRY_LEN));
            if window.is_empty() {
                return Ok(());
            }
            for (index, id) in window.clone().zip(self.load(window.clone())?) {
                if !id.is_zero() {
                    each(index, id)?;
                }
            }
            next = window.end;
        }
        Ok(())
    }

    /// The first entry at or after this one that may not be zero.
    pub(crate) fn next(&self, index: u64) -> io::Result<Option<u64>> {
        let data = self.0.next_data(index * ENTRY_LEN)?;
        Ok(data.map(|data| index.max(data.offset() / ENTRY_LEN)))
    }

    pub(crate) fn truncate(&self, count: u64) -> io::Result<()> {
        if self.0.len()? > count * ENTRY_LEN { self.0.set_len(count * ENTRY_LEN) } else { Ok(()) }
    }
}
