//! Which chunks an increment touches, in memory that follows what it touches.

use std::{collections::BTreeMap, ops::Range};

use driftline_chunking::SPAN_CHUNKS;
use driftline_extent::{CHUNK_LEN, Change, Extent};

use crate::Entry;

const WORDS: usize = SPAN_CHUNKS as usize / 64;

/// The chunks whose ids were made from content, and those that the map says are zero.
#[derive(Debug, Default)]
pub struct Touched {
    /// A bit for each chunk of a span, for spans of which any chunk is touched.
    spans: BTreeMap<u64, Box<[u64; WORDS]>>,
    count: u64,
    /// Ascending.
    zeros: Vec<Range<u64>>,
}

impl Touched {
    /// Notes an entry of the increment.
    pub fn note(&mut self, entry: &Entry) {
        match entry {
            Entry::Ids(first, ids) => self.note_chunks(*first..*first + ids.len() as u64),
            Entry::Zeros(chunks) => match self.zeros.last_mut() {
                Some(last) if last.end == chunks.start => last.end = chunks.end,
                _ => self.zeros.push(chunks.clone()),
            },
        }
    }

    /// Notes a change that a map of a volume of `size` bytes tells of, ascending. What it says of
    /// what lies beyond the end touches nothing.
    pub fn note_change(&mut self, change: &Change, size: u64) {
        let chunks = |extent: Extent| extent.offset() / CHUNK_LEN..extent.end().div_ceil(CHUNK_LEN);
        let within = change.extent().and_then(|extent| extent.clamp(size));
        match (change, within.map(chunks)) {
            (Change::Data { .. }, Some(chunks)) => self.note_chunks(chunks),
            (Change::Zero(_), Some(chunks)) => self.zeros.push(chunks),
            (Change::Part(_), _) | (_, None) => {}
        }
    }

    fn note_chunks(&mut self, chunks: Range<u64>) {
        for index in chunks {
            let span = self.spans.entry(index / SPAN_CHUNKS).or_insert_with(|| [0; WORDS].into());
            let (word, bit) = place(index);
            self.count += u64::from(span[word] & bit == 0);
            span[word] |= bit;
        }
    }

    /// Whether the id of this chunk was made from its content.
    pub fn has(&self, index: u64) -> bool {
        let (word, bit) = place(index);
        self.spans.get(&(index / SPAN_CHUNKS)).is_some_and(|span| span[word] & bit != 0)
    }

    /// All such chunks, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let bits = |word: u64| (0..u64::BITS).filter(move |bit| word >> bit & 1 == 1);
        self.spans.iter().flat_map(move |(span, words)| {
            let first = span * SPAN_CHUNKS;
            (0..).zip(words.iter()).flat_map(move |(at, word)| {
                bits(*word).map(move |bit| first + at * u64::from(u64::BITS) + u64::from(bit))
            })
        })
    }

    /// How many such chunks there are.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Whether the map says that this chunk is zero now.
    pub fn is_zero(&self, index: u64) -> bool {
        let at = self.zeros.partition_point(|zeros| zeros.end <= index);
        self.zeros.get(at).is_some_and(|zeros| zeros.contains(&index))
    }
}

const fn place(index: u64) -> (usize, u64) {
    let within = index % SPAN_CHUNKS;
    (within as usize / 64, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use driftline_extent::ChunkId;

    use super::*;

    #[test]
    fn it_knows_what_it_was_told() {
        let mut touched = Touched::default();
        let ids = |first, count| Entry::Ids(first, vec![ChunkId::ZERO; count]);
        for entry in [ids(3, 2), Entry::Zeros(7..9), Entry::Zeros(9..20), ids(4095, 3)] {
            touched.note(&entry);
        }
        let has: Vec<u64> = (0..9000).filter(|index| touched.has(*index)).collect();
        assert_eq!((&has, touched.count()), (&vec![3, 4, 4095, 4096, 4097], 5));
        assert_eq!(touched.iter().collect::<Vec<_>>(), has);
        assert!((0..9000).all(|index| touched.is_zero(index) == (7..20).contains(&index)));
    }

    #[test]
    fn a_change_touches_all_chunks_that_it_lies_in() {
        let mut touched = Touched::default();
        let at = |offset, len| Extent::new(offset, len).unwrap();
        let size = 9 * CHUNK_LEN + 512;
        let changes = [
            Change::Data { offset: CHUNK_LEN - 512, bytes: vec![1; 1024] },
            // Both lie in chunk 4.
            Change::Zero(at(3 * CHUNK_LEN, CHUNK_LEN + 512)),
            Change::Zero(at(4 * CHUNK_LEN + 1024, 2 * CHUNK_LEN)),
            // Of the chunk in which the volume ends it says nothing.
            Change::Zero(at(size, 5 * CHUNK_LEN)),
        ];
        changes.iter().for_each(|change| touched.note_change(change, size));
        assert_eq!(touched.iter().collect::<Vec<_>>(), [0, 1]);
        assert!((0..20).all(|index| touched.is_zero(index) == (3..7).contains(&index)));
    }
}
