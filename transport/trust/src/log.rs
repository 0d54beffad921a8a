//! What an increment makes of a manifest, written down while it is on its way.
//!
//! Frames, one after the other, ascending by chunk. Each is 64 bytes: the first chunk `u64`, how
//! many `u64`, the kind `u32` (1: an id for each follows, 2: all become zero), four zero bytes,
//! eight zero bytes, and 32 bytes of BLAKE3 over the check of the frame before, the fields, and
//! the ids. The first frame follows from a context that names what the log is of, so a log of
//! another increment has no frame here, and a torn one ends where it was torn.

use std::{io, ops::Range};

use driftline_extent::{ChunkId, VOLUME_LEN_MAX, chunk_count};

use crate::Storage;

const HEADER_LEN: usize = 64;
const FIELDS_LEN: usize = 32;
const IDS: u32 = 1;
const ZEROS: u32 = 2;

/// Ids in a frame: enough that its header counts for nothing where chunks follow one another.
const FRAME_IDS_MAX: usize = 4096;

/// What was noted of some chunks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The ids of chunks from this one on, from their content.
    Ids(u64, Vec<ChunkId>),
    /// Chunks that the map says are zero now.
    Zeros(Range<u64>),
}

impl Entry {
    pub(crate) fn chunks(&self) -> Range<u64> {
        match self {
            Self::Ids(first, ids) => *first..*first + ids.len() as u64,
            Self::Zeros(chunks) => chunks.clone(),
        }
    }

    /// What it says of chunks below `end`.
    fn below(self, end: u64) -> Option<Self> {
        let chunks = self.chunks();
        let count = end.min(chunks.end).checked_sub(chunks.start).filter(|count| *count > 0)?;
        Some(match self {
            Self::Ids(first, mut ids) => {
                ids.truncate(count as usize);
                Self::Ids(first, ids)
            }
            Self::Zeros(chunks) => Self::Zeros(chunks.start..chunks.start + count),
        })
    }
}

/// Up to where a log was read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    pub(crate) at: u64,
    pub(crate) check: [u8; 32],
}

#[derive(Debug)]
pub(crate) struct Log<S> {
    storage: S,
    position: Position,
    /// Chunks below this were noted, or are not touched.
    end: u64,
    /// Ids that are not written yet.
    open: Option<(u64, Vec<ChunkId>)>,
}

impl<S: Storage> Log<S> {
    pub(crate) const fn new(storage: S) -> Self {
        let position = Position { at: 0, check: [0; 32] };
        Self { storage, position, end: 0, open: None }
    }

    /// Begins anew, as a log of this.
    pub(crate) fn start(&mut self, context: [u8; 32]) -> io::Result<()> {
        self.position = Position { at: 0, check: context };
        (self.end, self.open) = (0, None);
        self.storage.set_len(0)
    }

    /// Goes on with what there is of this, up to chunk `from`, and tells it. `false`: it does not
    /// reach that far, and begins anew.
    pub(crate) fn resume(
        &mut self,
        context: [u8; 32],
        from: u64,
        told: &mut dyn FnMut(&Entry),
    ) -> io::Result<bool> {
        let mut frames = self.frames(context);
        let (mut last, mut end, mut cut) = (frames.position, 0, None);
        while let Some(entry) = frames.next()? {
            end = entry.chunks().end;
            let whole = end <= from;
            if let Some(kept) = entry.below(from) {
                told(&kept);
                if !whole {
                    cut = Some(kept);
                }
            }
            if !whole {
                break;
            }
            last = frames.position;
        }
        if end < from {
            self.start(context)?;
            return Ok(false);
        }
        (self.position, self.end, self.open) = (last, from, None);
        self.storage.set_len(last.at)?;
        match cut {
            Some(Entry::Ids(first, ids)) => self.open = Some((first, ids)),
            Some(Entry::Zeros(chunks)) => self.write(&Entry::Zeros(chunks))?,
            None => {}
        }
        Ok(true)
    }

    /// Notes what comes after all that was noted before.
    pub(crate) fn note(&mut self, first: u64, ids: &[ChunkId]) -> io::Result<()> {
        debug_assert!(first >= self.end, "chunk {first} was noted before");
        for (index, id) in (first..).zip(ids) {
            match &mut self.open {
                Some((start, open))
                    if *start + open.len() as u64 == index && open.len() < FRAME_IDS_MAX =>
                {
                    open.push(*id);
                }
                _ => {
                    self.flush()?;
                    self.open = Some((index, vec![*id]));
                }
            }
        }
        self.end = first + ids.len() as u64;
        Ok(())
    }

    pub(crate) fn note_zeros(&mut self, chunks: Range<u64>) -> io::Result<()> {
        debug_assert!(chunks.start >= self.end, "chunk {} was noted before", chunks.start);
        self.flush()?;
        self.end = chunks.end;
        self.write(&Entry::Zeros(chunks))
    }

    /// Hands what was noted to the storage: it outlasts this process.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self.open.take() {
            Some((first, ids)) => self.write(&Entry::Ids(first, ids)),
            None => Ok(()),
        }
    }

    /// Makes it durable, lets it be read back, and says how far it goes.
    pub(crate) fn settle(&mut self) -> io::Result<Position> {
        self.flush()?;
        self.storage.settle()?;
        Ok(self.position)
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let chunks = entry.chunks();
        let (kind, ids) = match entry {
            Entry::Ids(_, ids) => (IDS, ids.as_slice()),
            Entry::Zeros(_) => (ZEROS, [].as_slice()),
        };
        let mut frame = Vec::with_capacity(HEADER_LEN + 32 * ids.len());
        frame.extend(chunks.start.to_le_bytes());
        frame.extend((chunks.end - chunks.start).to_le_bytes());
        frame.extend(kind.to_le_bytes());
        frame.resize(FIELDS_LEN, 0);
        let payload: Vec<u8> = ids.iter().flat_map(|id| id.0).collect();
        let check = chain(&self.position.check, &frame, &payload);
        frame.extend(check);
        frame.extend(payload);
        self.storage.write_at(self.position.at, &frame)?;
        self.position = Position { at: self.position.at + frame.len() as u64, check };
        Ok(())
    }

    /// What was written so far, from the beginning.
    pub(crate) const fn frames(&self, context: [u8; 32]) -> Frames<'_, S> {
        Frames { storage: &self.storage, position: Position { at: 0, check: context } }
    }

    pub(crate) fn into_storage(self) -> S {
        self.storage
    }

    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.start([0; 32])
    }
}

fn chain(before: &[u8; 32], fields: &[u8], payload: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(before);
    hasher.update(fields).update(payload);
    *hasher.finalize().as_bytes()
}

/// Reads a log from its beginning, as far as it proves itself.
pub(crate) struct Frames<'a, S> {
    storage: &'a S,
    pub(crate) position: Position,
}

impl<S: Storage> Frames<'_, S> {
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let at = self.position.at;
        let mut header = [0; HEADER_LEN];
        self.storage.read_below(at, &mut header)?;
        let (fields, check) = header.split_at(FIELDS_LEN);
        let Some((first, count, kind)) = parse(fields) else { return Ok(None) };
        let ids_len = if kind == IDS { count as usize } else { 0 };
        let mut payload = vec![0; 32 * ids_len];
        self.storage.read_below(at + HEADER_LEN as u64, &mut payload)?;
        if chain(&self.position.check, fields, &payload) != check {
            return Ok(None);
        }
        self.position.check.copy_from_slice(check);
        self.position.at += (HEADER_LEN + payload.len()) as u64;
        let (ids, _) = payload.as_chunks::<32>();
        Ok(Some(match kind {
            IDS => Entry::Ids(first, ids.iter().map(|id| ChunkId(*id)).collect()),
            _ => Entry::Zeros(first..first + count),
        }))
    }
}

/// First chunk, count and kind, if that is a frame.
fn parse(fields: &[u8]) -> Option<(u64, u64, u32)> {
    let first = u64::from_le_bytes(*fields.first_chunk()?);
    let count = u64::from_le_bytes(*fields.get(8..)?.first_chunk()?);
    let kind = u32::from_le_bytes(*fields.get(16..)?.first_chunk()?);
    let end = first.checked_add(count).filter(|end| *end <= chunk_count(VOLUME_LEN_MAX))?;
    let fits = match kind {
        IDS => count <= FRAME_IDS_MAX as u64,
        ZEROS => true,
        _ => false,
    };
    (fits && end > first).then_some((first, count, kind))
}
