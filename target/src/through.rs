//! What a replica holds once its sealed journal is in place, without putting it there: reading
//! through the journal.
//!
//! Where a journal is sealed, the volume and the list of ids are somewhere between the base and the
//! tip. Each record says what a chunk becomes whatever was written of it already, so base and records
//! together are the tip. Of each record 56 bytes are kept in memory, of which the journal has at
//! least 152.

use std::{fmt, io, ops::Range, sync::Arc};

use driftline_chunking::ChunkKey;
use driftline_extent::{CHUNK_LEN, ChunkId, Extent, chunk_count};

use crate::{
    Disk, Part, Problem,
    chunks::chunk_buf,
    journal::{Journal, Record, Seal},
};

const ENTRY_LEN: u64 = 32;

/// A chunk that a record changes, in part or wholly.
struct Change {
    index: u64,
    /// Its id afterwards.
    after: ChunkId,
    /// Where its record stands.
    at: u64,
}

/// A sealed journal, as what lies over the volume and over its list of ids.
pub(crate) struct Through<D> {
    journal: Arc<Journal<D>>,
    key: ChunkKey,
    seal: Seal,
    /// By index; those of one chunk in the order of the journal.
    changes: Vec<Change>,
    /// Chunks that become zero, ascending.
    zeros: Vec<Range<u64>>,
}

impl<D: Disk> Through<D> {
    /// Reads all of a sealed journal, and proves it.
    pub(crate) fn open(
        journal: Arc<Journal<D>>,
        key: ChunkKey,
        seal: Seal,
    ) -> Result<Self, Problem> {
        let (mut changes, mut zeros) = (Vec::new(), Vec::new());
        let mut payload = Vec::new();
        let mut records = journal.read(&seal.header);
        let mut at = records.position().at;
        while let Some(record) = records.next_proven(&key, &mut payload)? {
            match record {
                Record::Chunk { patch, after } => {
                    changes.push(Change { index: patch.index, after, at });
                }
                Record::Zero { index, count } => zeros.push(index..index + count),
                Record::Mark { .. } => {}
            }
            at = records.position().at;
        }
        if records.position() != seal.end {
            return Err(Problem::JournalDamaged { at });
        }
        changes.sort_by_key(|change| change.index);
        zeros.sort_by_key(|run| run.start);
        Ok(Self { journal, key, seal, changes, zeros })
    }

    pub(crate) const fn seal(&self) -> &Seal {
        &self.seal
    }

    /// How long a disk is that this lies over.
    pub(crate) fn len(&self, part: Part, disk: &D) -> io::Result<u64> {
        match part {
            Part::Ids => Ok(chunk_count(self.seal.size) * ENTRY_LEN),
            // A device with a manager is grown only when the journal is put in place.
            _ if disk.is_fixed() => Ok(disk.len()?.max(self.seal.size)),
            _ => Ok(self.seal.size),
        }
    }

    pub(crate) fn read_at(
        &self,
        part: Part,
        disk: &D,
        offset: u64,
        buf: &mut [u8],
    ) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.len(part, disk).unwrap_or(0)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match part {
            Part::Ids => self.read_ids(disk, offset, buf),
            _ => self.read_volume(disk, offset, buf),
        }
    }

    pub(crate) fn next_data(&self, part: Part, disk: &D, from: u64) -> io::Result<Option<Extent>> {
        let unit = if part == Part::Ids { ENTRY_LEN } else { CHUNK_LEN };
        let stands = disk.next_data(from)?.and_then(|data| data.clamp(self.kept(part)));
        let first = self.changes.partition_point(|change| change.index < from / unit);
        let changed = self.changes.get(first).and_then(|change| {
            let end = ((change.index + 1) * unit).min(self.len(part, disk).ok()?);
            Extent::from_bounds((change.index * unit).max(from), end)
        });
        Ok([stands, changed].into_iter().flatten().min_by_key(Extent::offset))
    }

    /// Up to where what stands on the disk counts.
    fn kept(&self, part: Part) -> u64 {
        let size = self.seal.size.min(self.seal.header.base_size);
        if part == Part::Ids { chunk_count(size) * ENTRY_LEN } else { size }
    }

    /// What stands on the disk, and zeros where that does not count.
    fn read_kept(&self, part: Part, disk: &D, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = self.kept(part).min(disk.len()?);
        let within = end.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (within, beyond) = buf.split_at_mut(within);
        beyond.fill(0);
        if within.is_empty() { Ok(()) } else { disk.read_at(offset, within) }
    }

    fn changes_of(&self, chunks: &Range<u64>) -> &[Change] {
        let place = |index| self.changes.partition_point(|change| change.index < index);
        &self.changes[place(chunks.start)..place(chunks.end)]
    }

    /// The parts of `chunks` that become zero.
    fn zeros_of(&self, chunks: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first = self.zeros.partition_point(|run| run.end <= chunks.start);
        let runs = self.zeros[first..].iter().take_while(move |run| run.start < chunks.end);
        runs.map(move |run| run.start.max(chunks.start)..run.end.min(chunks.end))
    }

    fn read_ids(&self, disk: &D, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_kept(Part::Ids, disk, offset, buf)?;
        let chunks = offset / ENTRY_LEN..(offset + buf.len() as u64).div_ceil(ENTRY_LEN);
        let mut put = |index: u64, id: &ChunkId| {
            let start = index * ENTRY_LEN;
            let from = offset.max(start);
            let end = (offset + buf.len() as u64).min(start + ENTRY_LEN);
            let id = &id.0[(from - start) as usize..(end - start) as usize];
            buf[(from - offset) as usize..(end - offset) as usize].copy_from_slice(id);
        };
        self.zeros_of(chunks.clone()).flatten().for_each(|index| put(index, &ChunkId::ZERO));
        self.changes_of(&chunks).iter().for_each(|change| put(change.index, &change.after));
        Ok(())
    }

    fn read_volume(&self, disk: &D, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_kept(Part::Volume, disk, offset, buf)?;
        let end = offset + buf.len() as u64;
        let chunks = offset / CHUNK_LEN..end.div_ceil(CHUNK_LEN);
        let place = |run: &Range<u64>| {
            let from = (run.start * CHUNK_LEN).max(offset);
            let to = (run.end * CHUNK_LEN).min(end);
            ((from - offset) as usize..(to - offset) as usize, from)
        };
        for run in self.zeros_of(chunks.clone()) {
            buf[place(&run).0].fill(0);
        }
        let changes = self.changes_of(&chunks);
        for of_one in changes.chunk_by(|one, two| one.index == two.index) {
            let index = of_one[0].index;
            let (within, from) = place(&(index..index + 1));
            let chunk = self.changed(disk, index, of_one)?;
            let start = (from - index * CHUNK_LEN) as usize;
            let len = within.len();
            buf[within].copy_from_slice(&chunk[start..start + len]);
        }
        Ok(())
    }

    /// A chunk with all its changes.
    fn changed(&self, disk: &D, index: u64, changes: &[Change]) -> io::Result<Vec<u8>> {
        let mut chunk = chunk_buf();
        self.read_kept(Part::Volume, disk, index * CHUNK_LEN, &mut chunk)?;
        for change in changes {
            let read = self.journal.record_at(change.at).and_then(|record| match record {
                Some(Record::Chunk { patch, .. }) if patch.index == index => {
                    let payload = self.journal.payload_behind(&self.key, &patch, change.at)?;
                    Ok(payload.map(|payload| patch.change(&mut chunk, &payload)))
                }
                _ => Ok(None),
            });
            let read = read.map_err(|problem| io::Error::other(problem.to_string()))?;
            read.ok_or_else(|| {
                let what = format!("the journal has changed at byte {}", change.at);
                io::Error::other(what)
            })?;
        }
        let kept = self.seal.size.saturating_sub(index * CHUNK_LEN).min(CHUNK_LEN);
        chunk[kept as usize..].fill(0);
        Ok(chunk)
    }
}

impl<D> fmt::Debug for Through<D> {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Through").field("seal", &self.seal).finish_non_exhaustive()
    }
}
