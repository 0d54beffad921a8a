//! A volume without a map: hashed whole, announced span by span, told in detail only where
//! the target differs, from the nodes of the tree down to the chunks.

use std::{collections::HashMap, io};

use bytes::Bytes;
use driftline_chunking::{
    ChunkKey, DataRuns, FANOUT, SPAN_CHUNKS, SPAN_LEVEL, TreeHasher, name_range,
};
use driftline_extent::{BlockMask, CHUNK_LEN, ChunkId, Item, Root, Volume, chunk_count};
use driftline_wire::{Announced, Compared, Payload};

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

/// Folds the spans of a volume to its root, and finds the chunks that differ: of a span that does,
/// the nodes below it in the tree are compared, and so on, where that is worth it.
#[derive(Debug)]
pub struct Scanner {
    key: ChunkKey,
    tree: TreeHasher,
    /// What was announced and not compared yet, by the first chunk.
    open: HashMap<u64, Open>,
    /// Whole spans among these.
    whole: usize,
    /// How often the nodes of each level below a span have differed.
    density: [Density; SPAN_LEVEL as usize],
    /// Chunks below this were delivered in an earlier session.
    from: u64,
}

/// The ids of the chunks below a node that was announced.
#[derive(Debug)]
struct Open {
    ids: Vec<ChunkId>,
    level: u32,
}

impl Scanner {
    /// A scan that announces what lies at or above chunk `from`.
    pub fn new(key: &ChunkKey, from: u64) -> Self {
        let (tree, density) = (TreeHasher::new(key), Default::default());
        Self { key: key.clone(), tree, open: HashMap::new(), whole: 0, density, from }
    }

    /// Takes the next span, and says what to announce. What an earlier session delivered is hashed
    /// for the root, and not told again.
    pub fn announce(&mut self, span: Hashed) -> Option<Item> {
        let Hashed { first, ids } = span;
        ids.iter().for_each(|id| self.tree.push(*id));
        let item = self.open(first, Open { ids, level: SPAN_LEVEL });
        self.whole += usize::from(item.is_some());
        item
    }

    fn open(&mut self, index: u64, open: Open) -> Option<Item> {
        let count = open.ids.len() as u64;
        if index + count <= self.from {
            return None;
        }
        let mut digest = TreeHasher::new(&self.key);
        open.ids.iter().for_each(|id| digest.push(*id));
        self.open.insert(index, open);
        Some(Item::Span { index, count, digest: digest.into_node() })
    }

    /// Whether nothing was announced that is not compared.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// Whole spans that were announced and not compared.
    pub const fn whole_spans(&self) -> usize {
        self.whole
    }

    /// What was announced is compared. If the target differs, this is to be announced next: nodes
    /// below it, or its chunks.
    pub fn settle(&mut self, Compared { span, differs }: &Compared) -> Vec<Announced> {
        let (first, differs) = (span.first(), *differs);
        let Some(Open { ids, level }) = self.open.remove(&first) else { return Vec::new() };
        if level == SPAN_LEVEL {
            self.whole -= 1;
        } else {
            self.density[level as usize].note(differs);
        }
        if !differs {
            return Vec::new();
        }
        let worth = |level: &u32| {
            ids.len() > chunks_below(*level) && self.density[*level as usize].is_worth_asking()
        };
        let Some(level) = (0..level).rev().find(worth) else {
            let chunks = (first..).zip(ids).filter(|(index, _)| *index >= self.from);
            return chunks.map(|(index, id)| announce(index, id)).collect();
        };
        let nodes = (first..).step_by(chunks_below(level)).zip(ids.chunks(chunks_below(level)));
        let below = nodes.filter_map(|(index, ids)| {
            let item = self.open(index, Open { ids: ids.to_vec(), level })?;
            Some(Announced { item, payload: Payload::Held(Bytes::new()) })
        });
        below.collect()
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

/// Chunks below a node of this level.
const fn chunks_below(level: u32) -> usize {
    FANOUT.pow(level)
}

/// How many of the nodes of a level that were compared have differed, of late.
#[derive(Clone, Copy, Debug, Default)]
struct Density {
    compared: u32,
    differed: u32,
    /// How often they were not asked for, since they were last.
    passed: u32,
}

/// So many nodes say how it is, and older ones count less.
const NODES_ENOUGH: u32 = 64;

/// Where nearly all nodes differ, to ask for them costs more than it saves: one time in so many
/// it is looked whether that is still so.
const LOOK_EVERY: u32 = 16;

impl Density {
    const fn note(&mut self, differs: bool) {
        if self.compared == 4 * NODES_ENOUGH {
            (self.compared, self.differed) = (self.compared / 2, self.differed / 2);
        }
        self.compared += 1;
        self.differed += differs as u32;
    }

    /// Whether more than one in eight is likely to be equal, or that is not known.
    const fn is_worth_asking(&mut self) -> bool {
        let is_dense = self.compared >= NODES_ENOUGH && self.differed * 8 >= self.compared * 7;
        self.passed = if is_dense { (self.passed + 1) % LOOK_EVERY } else { 0 };
        self.passed == 0
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const SPAN: usize = SPAN_CHUNKS as usize;

    /// Lets a source that has `tip` find where a target that has `base` differs, and returns the
    /// chunks that were told, and how many nodes were.
    fn scan(base: &[u8], tip: &[u8], from: u64) -> (Vec<u64>, usize) {
        let id = |byte: &u8| ChunkId([*byte; 32]);
        let key = ChunkKey::new(&[1; 32]);
        let mut scanner = Scanner::new(&key, from);
        let mut spans = (0..).step_by(SPAN).zip(tip.chunks(SPAN));
        let mut queue = VecDeque::new();
        let (mut told, mut nodes, mut whole) = (Vec::new(), 0, 0);
        loop {
            while scanner.whole_spans() < 2
                && let Some((first, tip)) = spans.next()
            {
                let hashed = Hashed { first, ids: tip.iter().map(id).collect() };
                queue.extend(scanner.announce(hashed));
                whole = whole.max(scanner.whole_spans());
            }
            let Some(item) = queue.pop_front() else { break };
            let (first, end) = (item.first(), item.first() + item.count());
            let Item::Span { digest, .. } = item else {
                told.extend(first..end);
                continue;
            };
            nodes += 1;
            let mut theirs = TreeHasher::new(&key);
            base[first as usize..end as usize].iter().for_each(|byte| theirs.push(id(byte)));
            let differs = theirs.into_node() != digest;
            let next = scanner.settle(&Compared { span: item, differs });
            queue.extend(next.into_iter().map(|announced| announced.item));
        }
        assert!(scanner.is_settled() && spans.next().is_none() && whole <= 2);
        let mut tree = TreeHasher::new(&key);
        tip.iter().for_each(|byte| tree.push(id(byte)));
        let size = tip.len() as u64 * CHUNK_LEN;
        assert_eq!(scanner.into_root(size), tree.into_root(size));
        told.sort_unstable();
        (told, nodes)
    }

    /// The chunks that differ, from `from` on.
    fn differing(base: &[u8], tip: &[u8], from: u64) -> Vec<u64> {
        let pairs = (0..).zip(base.iter().zip(tip)).skip(from as usize);
        pairs.filter(|(_, (base, tip))| base != tip).map(|(index, _)| index).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_differs_is_told_once(
            len in 1..3 * SPAN,
            runs in prop::collection::vec((0..3 * SPAN, 1..600_usize, 1..40_usize), 0..6),
            from in 0..2 * SPAN as u64,
        ) {
            let base: Vec<u8> = (0..len).map(|index| (index % 7) as u8).collect();
            let mut tip = base.clone();
            // Runs of chunks of which every so many has changed.
            for (start, count, step) in runs {
                tip.iter_mut().skip(start).step_by(step).take(count).for_each(|byte| *byte ^= 1);
            }
            let (told, _) = scan(&base, &tip, from);
            prop_assert!(told.is_sorted_by(|one, next| one < next), "something was told twice");
            prop_assert!(told.first().is_none_or(|first| *first >= from));
            let missed: Vec<u64> = differing(&base, &tip, from)
                .into_iter()
                .filter(|index| told.binary_search(index).is_err())
                .collect();
            prop_assert_eq!(missed, [0_u64; 0]);
        }
    }

    /// How much is told of `spans` spans of which every `step`th chunk differs.
    fn scattered(spans: usize, step: usize) -> (usize, usize) {
        let base = vec![1; spans * SPAN];
        let mut tip = base.clone();
        tip.iter_mut().step_by(step).for_each(|byte| *byte = 2);
        let (told, nodes) = scan(&base, &tip, 0);
        (told.len(), nodes)
    }

    #[test]
    fn little_is_told_of_little_and_nothing_is_asked_in_vain_of_much() {
        // One chunk of a span: three times 16 nodes below it.
        let (told, nodes) = scattered(64, SPAN);
        assert_eq!((told, nodes), (64, 64 * (1 + 3 * 16)));
        // Every group of 16 has one that differs: chunks are asked for, and what is between is soon
        // not.
        let (told, nodes) = scattered(64, 16);
        assert_eq!(told, 64 * SPAN / 16);
        assert!(nodes < 64 * (SPAN + 32), "{nodes} nodes were told");
        let (told, nodes) = scattered(64, 1);
        assert_eq!(told, 64 * SPAN);
        assert!(nodes < told / 4, "{nodes} nodes were told");
        assert_eq!(scan(&[1; 3 * SPAN], &[1; 3 * SPAN], 0), (vec![], 3));
    }
}
