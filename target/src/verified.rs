//! The content of a replica, for reading: each chunk is compared with the books before it is handed
//! out.

use std::{
    fmt, io,
    sync::{Mutex, PoisonError},
};

use driftline_extent::{CHUNK_LEN, Extent, TargetState, Volume, chunk_count};

use crate::{
    Disk, Problem, Replica, TargetError,
    chunks::{chunk_buf, read_chunk},
};

/// A replica at a generation, for reading. Nobody else writes it meanwhile.
///
/// What is not as it was committed cannot be read: the [`io::Error`] is then a [`TargetError`].
pub struct Verified<D: Disk> {
    size: u64,
    state: TargetState,
    replica: Mutex<Replica<D>>,
}

impl<D: Disk> Replica<D> {
    /// The generation that stands here, for reading.
    ///
    /// # Errors
    ///
    /// A replica that holds no generation, whose list of ids does not lead to the root that was
    /// committed, or that has another size.
    pub fn into_verified(self) -> Result<Verified<D>, TargetError> {
        self.check_verifiable().map_err(|problem| problem.of(&self.name))?;
        let state = self.state.describe(None);
        Ok(Verified { size: state.size, state, replica: Mutex::new(self) })
    }

    fn check_verifiable(&self) -> Result<(), Problem> {
        let Some(root) = self.state.root() else { return Err(Problem::NoGeneration) };
        self.check_size()?;
        if self.ids.root(&self.key, self.state.size)? != root {
            return Err(Problem::ListDamaged);
        }
        self.volume.drop_cache()
    }

    /// Reads from `offset` on; every chunk that this touches must be as it was committed.
    fn read_verified(&self, offset: u64, buf: &mut [u8]) -> Result<(), Problem> {
        let mut chunk = chunk_buf();
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let (index, start) = (at / CHUNK_LEN, (at % CHUNK_LEN) as usize);
            read_chunk(&self.volume, self.state.size, index, &mut chunk)?;
            if self.key.id(&chunk) != self.ids.get(index)? {
                return Err(Problem::Damaged { offset: index * CHUNK_LEN });
            }
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
}

impl<D: Disk> Verified<D> {
    /// What stands here.
    pub const fn state(&self) -> &TargetState {
        &self.state
    }

    fn run<T>(&self, call: impl FnOnce(&Replica<D>) -> Result<T, Problem>) -> io::Result<T> {
        // Nothing in here panics half way, and nothing is changed.
        let replica = self.replica.lock().unwrap_or_else(PoisonError::into_inner);
        call(&replica).map_err(|problem| io::Error::other(problem.of(&replica.name)))
    }
}

impl<D: Disk> Volume for Verified<D> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.run(|replica| replica.read_verified(offset, buf))
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.run(|replica| replica.next_expected(from))
    }
}

impl<D: Disk> fmt::Debug for Verified<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified").field("state", &self.state).finish_non_exhaustive()
    }
}
