//! The content of a replica, for reading: each chunk is compared with the books before it is handed
//! out.

use std::{fmt, io, sync::Arc};

use driftline_chunking::ChunkKey;
use driftline_extent::{CHUNK_LEN, Extent, TargetState, Unreadable, Volume, chunk_count};

use crate::{
    Disk, Part, Problem, Replica, TargetError,
    chunks::{chunk_buf, read_chunk},
    disk::Store,
    ids::IdList,
    own::Guard,
    state::State,
    through::Through,
};

/// A replica at a generation, for reading. Nobody else writes it meanwhile.
///
/// What is not as it was committed cannot be read: the [`io::Error`] is then [`Unreadable`].
pub struct Verified<D> {
    name: String,
    state: State,
    key: ChunkKey,
    volume: Store<D>,
    ids: IdList<D>,
    _guard: Guard,
}

impl<D: Disk> Replica<D> {
    /// Reads a chunk of what was committed.
    ///
    /// # Errors
    ///
    /// A chunk that is something else, and a replica that holds no generation.
    pub fn read_chunk(&self, index: u64) -> Result<Vec<u8>, TargetError> {
        let mut chunk = chunk_buf();
        let read = self.check_usable().and_then(|()| {
            read_chunk(&self.volume, self.state.size, index, &mut chunk)?;
            match self.key.id(&chunk) == self.ids.get(index)? {
                true => Ok(()),
                false => Err(Problem::Damaged { offset: index * CHUNK_LEN }),
            }
        });
        read.map_err(|problem| problem.of(&self.name))?;
        Ok(chunk)
    }
}

impl<D: Disk> Verified<D> {
    /// The generation that stands here.
    ///
    /// # Errors
    ///
    /// A replica that holds no generation, whose list of ids does not lead to the root that was
    /// committed, or that has another size.
    pub(crate) fn new(
        name: &str,
        state: State,
        (volume, ids): (D, D),
        through: Option<Arc<Through<D>>>,
        guard: Guard,
    ) -> Result<Self, Problem> {
        let mut this = Self {
            name: name.to_owned(),
            key: ChunkKey::new(&state.chunk_key),
            state,
            volume: Store::new(Part::Volume, volume),
            ids: IdList::new(Part::Ids, ids),
            _guard: guard,
        };
        if let Some(through) = through {
            this.volume.read_through(through.clone());
            this.ids.read_through(through);
        }
        this.check()?;
        Ok(this)
    }

    fn check(&self) -> Result<(), Problem> {
        let (size, found) = (self.state.size, self.volume.len()?);
        let Some(root) = self.state.root() else { return Err(Problem::Incomplete) };
        if found < size || (found > size && !self.volume.is_fixed()) {
            return Err(Problem::SizeModified { found, expected: size });
        }
        if self.ids.root(&self.key, size)? != root {
            return Err(Problem::ListDamaged);
        }
        self.volume.drop_cache()
    }

    /// What stands here.
    pub fn state(&self) -> TargetState {
        self.state.describe(None)
    }

    /// Reads all of it.
    ///
    /// # Errors
    ///
    /// The first chunk that is not what was committed.
    pub fn check_all(&self) -> Result<(), TargetError> {
        let mut chunk = chunk_buf();
        let mut next = 0;
        let checked = loop {
            let data = match self.next_expected(next) {
                Ok(Some(data)) => data,
                Ok(None) => break Ok(()),
                Err(problem) => break Err(problem),
            };
            let indices = data.offset() / CHUNK_LEN..data.end().div_ceil(CHUNK_LEN);
            next = indices.end * CHUNK_LEN;
            let read = indices.into_iter().try_for_each(|index| self.prove(index, &mut chunk));
            if let Err(problem) = read {
                break Err(problem);
            }
        };
        checked.map_err(|problem| problem.of(&self.name))
    }

    /// Reads a chunk, which must be as it was committed.
    fn prove(&self, index: u64, chunk: &mut [u8]) -> Result<(), Problem> {
        read_chunk(&self.volume, self.state.size, index, chunk)?;
        if self.key.id(chunk) == self.ids.get(index)? {
            Ok(())
        } else {
            Err(Problem::Damaged { offset: index * CHUNK_LEN })
        }
    }

    /// Reads from `offset` on; every chunk that this touches must be as it was committed.
    fn read_verified(&self, offset: u64, buf: &mut [u8]) -> Result<(), Problem> {
        let mut chunk = chunk_buf();
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let (index, start) = (at / CHUNK_LEN, (at % CHUNK_LEN) as usize);
            self.prove(index, &mut chunk)?;
            let len = rest.len().min(chunk.len() - start);
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&chunk[start..start + len]);
            (at, rest) = (at + len as u64, later);
        }
        Ok(())
    }

    /// What may be read as something else than zeros, or should be: both are looked at.
    fn next_expected(&self, from: u64) -> Result<Option<Extent>, Problem> {
        let size = self.state.size;
        let stands = self.volume.next_data(from)?.and_then(|data| data.clamp(size));
        let listed = self.ids.entries(from / CHUNK_LEN..chunk_count(size)).next().transpose()?;
        let listed = listed.and_then(|(index, _)| {
            let chunk = Extent::new(index * CHUNK_LEN, CHUNK_LEN)?;
            Extent::from_bounds(chunk.offset().max(from), chunk.end())?.clamp(size)
        });
        Ok([stands, listed].into_iter().flatten().min_by_key(Extent::offset))
    }

    fn told<T>(&self, read: Result<T, Problem>) -> io::Result<T> {
        read.map_err(|problem| {
            let reason = problem.reason();
            Unreadable { reason, detail: problem.of(&self.name).to_string() }.into()
        })
    }
}

impl<D: Disk> Volume for Verified<D> {
    fn size(&self) -> u64 {
        self.state.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.told(self.read_verified(offset, buf))
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.told(self.next_expected(from))
    }
}

impl<D> fmt::Debug for Verified<D> {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Verified");
        debug.field("name", &self.name).field("status", &self.state.status);
        debug.finish_non_exhaustive()
    }
}
