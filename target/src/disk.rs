//! The whole boundary between a replica and storage.

use std::{fmt, io, ops::Range};

use driftline_extent::{CHUNK_LEN, ChunkId, Extent, Volume};
use driftline_manifest::{ChunkKey, DataRuns, is_zero, name_listed, name_range};

use crate::Problem;

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

    /// Opens a device that a [`Keeper`](crate::Keeper) keeps anew, to see what the keeper made
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

/// The unit in which zeros are kept out of the storage: the block of common file systems.
const GRAIN_LEN: u64 = 4096;

/// A disk that knows which part it is, so that its errors say so.
#[derive(Debug)]
pub(crate) struct Store<D> {
    part: Part,
    disk: D,
}

impl<D: Disk> Store<D> {
    pub(crate) const fn new(part: Part, disk: D) -> Self {
        Self { part, disk }
    }

    pub(crate) fn into_disk(self) -> D {
        self.disk
    }

    fn say<T>(&self, result: io::Result<T>) -> Result<T, Problem> {
        result.map_err(|source| Problem::Io { part: self.part, source })
    }

    pub(crate) fn len(&self) -> Result<u64, Problem> {
        self.say(self.disk.len())
    }

    pub(crate) fn is_fixed(&self) -> bool {
        self.disk.is_fixed()
    }

    pub(crate) fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Problem> {
        self.say(self.disk.read_at(offset, buf))
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

    /// Writes `bytes`, except that aligned grains of zeros are made holes where possible.
    pub(crate) fn write_sparse(&self, offset: u64, bytes: &[u8]) -> Result<(), Problem> {
        let Some(whole) = Extent::new(offset, bytes.len() as u64) else { return Ok(()) };
        let slice = |part: Extent| {
            &bytes[(part.offset() - offset) as usize..(part.end() - offset) as usize]
        };
        let mut run: Option<(Extent, bool)> = None;
        for grain in whole.pieces(GRAIN_LEN) {
            let zero = is_zero(slice(grain));
            run = match run {
                Some((part, of_zeros)) if of_zeros == zero => {
                    Extent::from_bounds(part.offset(), grain.end()).map(|part| (part, zero))
                }
                Some((part, of_zeros)) => {
                    self.write_run(part, of_zeros, slice(part))?;
                    Some((grain, zero))
                }
                None => Some((grain, zero)),
            };
        }
        run.map_or(Ok(()), |(part, of_zeros)| self.write_run(part, of_zeros, slice(part)))
    }

    fn write_run(&self, part: Extent, of_zeros: bool, bytes: &[u8]) -> Result<(), Problem> {
        if of_zeros { self.zero(part) } else { self.write_at(part.offset(), bytes) }
    }

    pub(crate) fn zero(&self, extent: Extent) -> Result<(), Problem> {
        self.say(self.disk.zero(extent))
    }

    pub(crate) fn set_len(&self, len: u64) -> Result<(), Problem> {
        self.say(self.disk.set_len(len))
    }

    pub(crate) fn next_data(&self, from: u64) -> Result<Option<Extent>, Problem> {
        self.say(self.disk.next_data(from))
    }

    pub(crate) fn sync(&self) -> Result<(), Problem> {
        self.say(self.disk.sync())
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
        Stored { disk: &self.disk, size }
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
    disk: &'a D,
    size: u64,
}

impl<D: Disk> Volume for Stored<'_, D> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buf)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.disk.next_data(from)
    }
}
