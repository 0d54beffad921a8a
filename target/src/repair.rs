//! Consent to replace damage: the chunks that a scrub found to be something else than was
//! committed, and what it found. A session may replace exactly that by what its source sends, and
//! nothing that has changed since.
//!
//! The file `repair` is written whole. All numbers are little-endian.
//!
//! | offset | bytes | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `DRIFTRP\n` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | zero |
//! | 16 | 16 | replica id |
//! | 32 | 8 | epoch: that of the state record that the damage is of |
//! | 40 | 8 | number of chunks |
//! | 48 | 72 each | index, listed id, id of what was found; the latter all `0xff` if it cannot be read |
//! | | 32 | BLAKE3 of all before |
//!
//! A file that is damaged or of another epoch is no consent to anything.

use std::{collections::BTreeMap, ops::Range};

use driftline_extent::{ChunkId, VOLUME_LEN_MAX, chunk_count};

use crate::{
    Disk, Part, Problem,
    codec::{CHECKSUM_LEN, Reader, Writer, checked},
    disk::Store,
    ids::Overlay,
    state::State,
};

pub(crate) const MAGIC: &[u8; 8] = b"DRIFTRP\n";
pub(crate) const VERSION: u32 = 1;
const HEADER_LEN: u64 = 48;
pub(crate) const ENTRY_LEN: u64 = 72;

/// How many chunks are listed at most: 4 GiB. Of more damage than that, all is copied anew.
pub(crate) const REPAIRS_MAX: usize = 1 << 16;

/// What stands in the list for a chunk that cannot be read.
const UNREADABLE: ChunkId = ChunkId([0xff; 32]);

/// A damaged chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Damage {
    /// Its name in the books.
    pub(crate) listed: ChunkId,
    /// The name of what was found; `None` if it cannot be read.
    pub(crate) found: Option<ChunkId>,
}

/// Damaged chunks, by index.
pub(crate) type Damages = BTreeMap<u64, Damage>;

/// The damage that may be replaced, and its file.
#[derive(Debug)]
pub(crate) struct Repairs<D> {
    store: Store<D>,
    chunks: Damages,
}

impl<D: Disk> Repairs<D> {
    /// Reads what may be replaced of a replica in this state.
    pub(crate) fn open(disk: D, state: Option<&State>) -> Result<Self, Problem> {
        let store = Store::new(Part::Repair, disk);
        let mut chunks = Damages::new();
        if let Some(state) = state {
            store.settle()?;
            chunks = read(&store, state)?;
        }
        Ok(Self { store, chunks })
    }

    /// As [`open`](Self::open), for storage that cannot be written.
    pub(crate) fn look(disk: D, state: &State) -> Result<Self, Problem> {
        let store = Store::new(Part::Repair, disk);
        let chunks = read(&store, state)?;
        Ok(Self { store, chunks })
    }

    /// Whether anything may be replaced. This only looks: another process may be writing.
    pub(crate) fn peek(disk: D, state: &State) -> Result<bool, Problem> {
        Ok(!read(&Store::new(Part::Repair, disk), state)?.is_empty())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        self.chunks.contains_key(&index)
    }

    /// Whether a chunk may be replaced that is listed as one thing and found to be another.
    pub(crate) fn allow(&self, index: u64, listed: ChunkId, found: Option<ChunkId>) -> bool {
        self.chunks.get(&index) == Some(&Damage { listed, found })
    }

    /// The chunks among these, ascending.
    pub(crate) fn within(&self, chunks: &Range<u64>) -> impl Iterator<Item = u64> {
        self.chunks.range(chunks.clone()).map(|(index, _)| *index)
    }

    /// Replaces the list, durably.
    pub(crate) fn set(&mut self, state: &State, chunks: Damages) -> Result<(), Problem> {
        if chunks.is_empty() {
            return self.forget();
        }
        let bytes = encode(state, &chunks);
        self.chunks = Damages::new();
        self.store.set_len(0)?;
        self.store.write_at(0, &bytes)?;
        self.store.settle()?;
        self.chunks = read(&self.store, state)?;
        if self.chunks == chunks { Ok(()) } else { Err(Problem::RepairReadBack) }
    }

    /// Allows nothing any more.
    pub(crate) fn forget(&mut self) -> Result<(), Problem> {
        self.chunks = Damages::new();
        if self.store.len()? == 0 {
            return Ok(());
        }
        self.store.set_len(0)?;
        self.store.settle()?;
        if self.store.len()? == 0 { Ok(()) } else { Err(Problem::RepairReadBack) }
    }

    /// Keeps what an increment has left alone, now that `state` is committed.
    pub(crate) fn follow(&mut self, state: &State, overlay: &Overlay<D>) -> Result<(), Problem> {
        if self.is_empty() {
            return Ok(());
        }
        let mut left = std::mem::take(&mut self.chunks);
        left.split_off(&chunk_count(state.size));
        let mut changed = Vec::new();
        for index in left.keys() {
            if overlay.get(*index)?.is_some() {
                changed.push(*index);
            }
        }
        for index in changed {
            left.remove(&index);
        }
        self.set(state, left)
    }
}

fn encode(state: &State, chunks: &Damages) -> Vec<u8> {
    let header = Writer::default()
        .bytes(MAGIC)
        .u32(VERSION)
        .u32(0)
        .bytes(&state.replica.0)
        .u64(state.epoch)
        .u64(chunks.len() as u64);
    let entry = |writer: Writer, (index, damage): (&u64, &Damage)| {
        let found = damage.found.unwrap_or(UNREADABLE);
        writer.u64(*index).bytes(&damage.listed.0).bytes(&found.0)
    };
    chunks.iter().fold(header, entry).checksummed()
}

fn read<D: Disk>(store: &Store<D>, state: &State) -> Result<Damages, Problem> {
    let len = store.len()?;
    let longest = HEADER_LEN + ENTRY_LEN * REPAIRS_MAX as u64 + CHECKSUM_LEN as u64;
    if len < HEADER_LEN || len > longest {
        return Ok(Damages::new());
    }
    let mut bytes = vec![0; len as usize];
    store.read_at(0, &mut bytes)?;
    Ok(decode(&bytes, state).unwrap_or_default())
}

fn decode(bytes: &[u8], state: &State) -> Option<Damages> {
    let mut fields = Reader(checked(bytes)?);
    if &fields.array()? != MAGIC || fields.u32()? != VERSION || fields.u32()? != 0 {
        return None;
    }
    if fields.replica()? != state.replica || fields.u64()? != state.epoch {
        return None;
    }
    let count = fields.u64()?;
    let mut chunks = Damages::new();
    for _ in 0..count {
        let index = fields.u64().filter(|index| *index < chunk_count(VOLUME_LEN_MAX))?;
        let (listed, found) = (ChunkId(fields.array()?), ChunkId(fields.array()?));
        let found = (found != UNREADABLE).then_some(found);
        chunks.insert(index, Damage { listed, found });
    }
    Some(chunks)
}

#[cfg(test)]
mod tests {
    use driftline_extent::ReplicaId;

    use super::*;
    use crate::fuzzing::Memory;

    fn state(epoch: u64) -> State {
        State { epoch, ..State::of_nothing(ReplicaId([1; 16]), [2; 32], 5 << 20) }
    }

    fn damages() -> Damages {
        let damage = |listed, found| Damage { listed: ChunkId([listed; 32]), found };
        [(3, damage(4, Some(ChunkId([5; 32])))), (70, damage(0, None))].into()
    }

    #[test]
    fn the_layout_is_pinned() {
        let bytes = encode(&state(0x0203), &damages());
        let mut expected = b"DRIFTRP\n\x01\0\0\0\0\0\0\0".to_vec();
        expected.extend([1; 16]);
        expected.extend([3, 2, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([4; 32]);
        expected.extend([5; 32]);
        expected.extend([70, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([0; 32]);
        expected.extend([0xff; 32]);
        assert_eq!(bytes[..expected.len()], expected);
        assert_eq!(bytes.len(), expected.len() + CHECKSUM_LEN);
        assert_eq!(decode(&bytes, &state(0x0203)), Some(damages()));
    }

    #[test]
    fn what_is_damaged_or_of_another_time_allows_nothing() {
        let mut repairs = Repairs::open(Memory::default(), Some(&state(1))).unwrap();
        repairs.set(&state(1), damages()).unwrap();
        let Damage { listed, found } = damages()[&3];
        assert!(repairs.allow(3, listed, found) && repairs.allow(70, ChunkId::ZERO, None));
        assert!(!repairs.allow(3, listed, None) && !repairs.allow(4, listed, found));
        assert!(!repairs.allow(3, found.unwrap(), Some(listed)));
        assert_eq!(repairs.within(&(3..70)).collect::<Vec<_>>(), [3]);
        let bytes = encode(&state(1), &damages());
        assert_eq!(decode(&bytes, &state(2)), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(decode(&damaged, &state(1)), None, "byte {at}");
            assert_eq!(decode(&bytes[..at], &state(1)), None, "cut at {at}");
        }
        repairs.forget().unwrap();
        assert!(repairs.is_empty() && repairs.store.len().unwrap() == 0);
    }

    #[test]
    fn what_an_increment_left_alone_stays() {
        let mut repairs = Repairs::open(Memory::default(), Some(&state(1))).unwrap();
        repairs.set(&state(1), damages()).unwrap();
        let overlay = Overlay(crate::ids::IdList::new(Part::Overlay, Memory::default()));
        overlay.set(3, ChunkId::ZERO).unwrap();
        repairs.follow(&state(2), &overlay).unwrap();
        assert!(!repairs.contains(3) && repairs.contains(70));
        assert!(read(&repairs.store, &state(1)).unwrap().is_empty());
        assert_eq!(read(&repairs.store, &state(2)).unwrap().len(), 1);
        // Its chunk is cut off.
        let cut = State { size: 1 << 20, ..state(3) };
        repairs.follow(&cut, &overlay).unwrap();
        assert!(repairs.is_empty());
    }
}
