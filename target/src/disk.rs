//! The whole boundary between a replica and storage.

use std::{fmt, io, ops::Range, sync::Arc};

use driftline_chunking::{ChunkKey, DataRuns, is_zero, name_listed, name_range};
use driftline_extent::{CHUNK_LEN, ChunkId, Extent, Volume};

use crate::{Problem, sparse::sparse_runs, through::Through};

/// One file or block device, as a replica uses it.
///
/// What was written is read back by every later call, but lasts only once [`sync`](Self::sync)
/// returned: until then a crash may keep, lose or tear each operation on its own. After an
/// operation failed, nothing is assumed of what it was to do. Several may read at a time.
#[expect(clippy::len_without_is_empty, reason = "an empty disk is no special case")]
pub trait Disk: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length is the device's and cannot be set.
    fn is_fixed(&self) -> bool;

    /// Fills `buf` from `offset`; an error if that lies beyond the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, growing a disk that is not fixed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes a range read as zeros, without storing them where that is possible. Never grows
    /// the disk.
    fn zero(&self, extent: Extent) -> io::Result<()>;

    /// Cuts the disk, or grows it by zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The first range at or after `from` that may hold anything but zeros; `None` if all
    /// that follows is known to be a hole.
    fn next_data(&self, from: u64) -> io::Result<Option<Extent>>;

    /// Returns once everything done so far will survive a crash.
    fn sync(&self) -> io::Result<()>;

    /// Lets later reads come from the storage itself, as far as that is possible.
    fn drop_cache(&self) -> io::Result<()>;

    /// Reserves storage for ranges that are about to be written, as far as that is possible. They
    /// may lie beyond the end, which stays where it is, and what is read stays the same.
    fn allocate(&self, _ranges: &[Extent]) -> io::Result<()> {
        Ok(())
    }

    /// Whether so many bytes can be written where writing needs new storage even over what is
    /// stored already: a file system that copies on write. Nothing is reserved.
    fn has_space_for(&self, _bytes: u64) -> io::Result<bool> {
        Ok(true)
    }

    /// Whether the name that this was opened by still leads to it.
    fn is_in_place(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Opens a device that a [`DeviceManager`](crate::DeviceManager) keeps anew, to see what the manager made
    /// of it: for reading only, or for writing as well. A device that does not exist yet has
    /// no bytes. Nothing else is ever opened anew.
    fn reopen(&mut self, writable: bool) -> io::Result<()>;
}

/// Which of a replica's files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The replica itself.
    Volume,
    /// Its state slots.
    State,
    /// Its journal.
    Journal,
    /// The ids of its chunks.
    Ids,
    /// The ids that the current increment leads to.
    Overlay,
    /// The damage that a source may replace.
    Repair,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volume => "volume",
            Self::State => "state file",
            Self::Journal => "journal",
            Self::Ids => "list of chunk ids",
            Self::Overlay => "overlay of chunk ids",
            Self::Repair => "list of damage",
        })
    }
}

/// A disk that knows which part it is, so that its errors say so.
#[derive(Debug)]
pub(crate) struct Store<D> {
    part: Part,
    disk: D,
    /// A sealed journal that is read through; nothing is written then.
    through: Option<Arc<Through<D>>>,
}

impl<D: Disk> Store<D> {
    pub(crate) const fn new(part: Part, disk: D) -> Self {
        Self { part, disk, through: None }
    }

    /// Reads through a sealed journal from now on.
    pub(crate) fn read_through(&mut self, through: Arc<Through<D>>) {
        self.through = Some(through);
    }

    fn len_now(&self) -> io::Result<u64> {
        match &self.through {
            Some(through) => through.len(self.part, &self.disk),
            None => self.disk.len(),
        }
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match &self.through {
            Some(through) => through.read_at(self.part, &self.disk, offset, buf),
            None => self.disk.read_at(offset, buf),
        }
    }

    fn next_data_now(&self, from: u64) -> io::Result<Option<Extent>> {
        match &self.through {
            Some(through) => through.next_data(self.part, &self.disk, from),
            None => self.disk.next_data(from),
        }
    }

    pub(crate) fn into_disk(self) -> D {
        self.disk
    }

    fn say<T>(&self, result: io::Result<T>) -> Result<T, Problem> {
        result.map_err(|source| Problem::Io { part: self.part, source })
    }

    pub(crate) fn len(&self) -> Result<u64, Problem> {
        self.say(self.len_now())
    }

    pub(crate) fn is_fixed(&self) -> bool {
        self.disk.is_fixed()
    }

    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Problem> {
        self.say(self.read_now(offset, buf))
    }

    /// Fills `buf` from `offset`; what lies at or beyond `end` counts as zeros.
    pub(crate) fn read_below(&self, end: u64, offset: u64, buf: &mut [u8]) -> Result<(), Problem> {
        let within = end.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (within, beyond) = buf.split_at_mut(within);
        beyond.fill(0);
        if within.is_empty() { Ok(()) } else { self.read_at(offset, within) }
    }

    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Problem> {
        self.say(self.disk.write_at(offset, bytes))
    }

    /// Writes `bytes`, except that nothing is written for aligned grains of zeros, where zeros
    /// stand already.
    pub(crate) fn write_over_zeros(&self, offset: u64, bytes: &[u8]) -> Result<(), Problem> {
        sparse_runs(offset, bytes, |part, data| {
            data.map_or(Ok(()), |data| self.write_at(part.offset(), data))
        })
    }

    pub(crate) fn zero(&self, extent: Extent) -> Result<(), Problem> {
        self.say(self.disk.zero(extent))
    }

    pub(crate) fn set_len(&self, len: u64) -> Result<(), Problem> {
        self.say(self.disk.set_len(len))
    }

    pub(crate) fn next_data(&self, from: u64) -> Result<Option<Extent>, Problem> {
        self.say(self.next_data_now(from))
    }

    pub(crate) fn sync(&self) -> Result<(), Problem> {
        self.say(self.disk.sync())
    }

    /// See [`Disk::allocate`].
    pub(crate) fn allocate(&self, ranges: &[Extent]) -> Result<(), Problem> {
        self.say(self.disk.allocate(ranges))
    }

    /// See [`Disk::has_space_for`].
    pub(crate) fn check_space_for(&self, bytes: u64) -> Result<(), Problem> {
        if self.say(self.disk.has_space_for(bytes))? {
            return Ok(());
        }
        self.say(Err(io::ErrorKind::StorageFull.into()))
    }

    /// That the name it was opened by still leads to it.
    pub(crate) fn check_in_place(&self) -> Result<(), Problem> {
        if self.say(self.disk.is_in_place())? {
            return Ok(());
        }
        Err(Problem::Replaced { part: self.part })
    }

    pub(crate) fn drop_cache(&self) -> Result<(), Problem> {
        self.say(self.disk.drop_cache())
    }

    pub(crate) fn reopen(&mut self, writable: bool) -> Result<(), Problem> {
        let reopened = self.disk.reopen(writable);
        if reopened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy) {
            return Err(Problem::InUse);
        }
        self.say(reopened)
    }

    const fn as_volume(&self, size: u64) -> Stored<'_, D> {
        Stored { store: self, size }
    }

    /// The first run of chunks at or after `index` that may hold anything but zeros.
    pub(crate) fn data_run(
        &self,
        size: u64,
        index: u64,
        data: &mut DataRuns,
    ) -> Result<Range<u64>, Problem> {
        self.say(data.next(&self.as_volume(size), index))
    }

    /// Names chunks that are listed, ascending, of the first `size` bytes.
    pub(crate) fn name_listed(
        &self,
        key: &ChunkKey,
        size: u64,
        indices: &[u64],
    ) -> Result<Vec<ChunkId>, Problem> {
        self.say(name_listed(key, &self.as_volume(size), size, indices))
    }

    /// Names a range of the chunks of the first `size` bytes.
    pub(crate) fn name_range(
        &self,
        key: &ChunkKey,
        size: u64,
        chunks: Range<u64>,
        data: &mut DataRuns,
    ) -> Result<Vec<ChunkId>, Problem> {
        self.say(name_range(key, &self.as_volume(size), size, chunks, data))
    }

    /// Makes sure that what is read next is what would be read after a crash: a process
    /// that was killed, or a flush that failed, leaves things in the cache that are not on disk.
    pub(crate) fn settle(&self) -> Result<(), Problem> {
        self.sync()?;
        self.drop_cache()
    }

    /// Whether every byte is zero.
    pub(crate) fn is_all_zero(&self) -> Result<bool, Problem> {
        let mut buf = vec![0; CHUNK_LEN as usize];
        let mut at = 0;
        while let Some(data) = self.next_data(at)? {
            for piece in data.pieces(CHUNK_LEN) {
                let buf = &mut buf[..piece.len() as usize];
                self.read_at(piece.offset(), buf)?;
                if !is_zero(buf) {
                    return Ok(false);
                }
            }
            at = data.end();
        }
        Ok(true)
    }
}

/// A disk as a volume that can be read.
struct Stored<'a, D> {
    store: &'a Store<D>,
    size: u64,
}

impl<D: Disk> Volume for Stored<'_, D> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.store.read_now(offset, buf)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.store.next_data_now(from)
    }
}
