//! Reading all of a replica while others may write it.
//!
//! Nothing is locked: a scrub of hours would hold off replication for as long. What is read as it is
//! listed is right, whichever generation it is of. What is not may have been written in between, so
//! it is looked at again, with the replica locked for that moment ([`Replica::scrub_doubtful`]).
//!
//! [`Replica::scrub_doubtful`]: crate::Replica::scrub_doubtful

use std::{collections::BTreeSet, path::Path};

use driftline_chunking::ChunkKey;
use driftline_extent::{CHUNK_LEN, chunk_count};

use crate::{
    Disk, FileDisk, Options, Part, Problem, TargetError,
    chunks::walk_any,
    disk::Store,
    ids::IdList,
    inspect::open_book,
    open_path::dir_of,
    own::resolved,
    repair::REPAIRS_MAX,
    state::{Slots, State, Status},
};

/// Chunks that are read before the state is looked at again.
const STEP: u64 = 1024;

/// Reads the replica at `path`, and returns the chunks that have to be looked at again; `None` if it
/// is as well to look at all of them. `progress` is called with the offset of each chunk that was
/// read.
///
/// # Errors
///
/// A replica that holds no generation, or cannot be read.
pub fn survey(
    path: &Path,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Option<BTreeSet<u64>>, TargetError> {
    let surveyed = survey_steps(&resolved(path), &dir_of(path, options), progress);
    surveyed.map_err(|problem| problem.of(&path.display().to_string()))
}

fn survey_steps(
    path: &Path,
    dir: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Option<BTreeSet<u64>>, Problem> {
    let open = || {
        let disk = FileDisk::open_read(path);
        let disk = disk.map_err(|source| Problem::Open { path: path.to_owned(), source })?;
        Ok::<_, Problem>(Store::new(Part::Volume, disk))
    };
    let mut volume = open()?;
    volume.drop_cache()?;
    let ids = IdList::new(Part::Ids, open_book(dir, "ids")?.ok_or(Problem::NoReplica)?);
    let first = holds(dir)?.replica;
    let (mut doubtful, mut next) = (BTreeSet::new(), 0);
    loop {
        let state = holds(dir)?;
        let (size, end) = (state.size, chunk_count(state.size));
        if state.replica != first {
            return Ok(None);
        }
        if next >= end {
            return Ok(Some(doubtful));
        }
        if volume.is_fixed() && volume.len()? < size {
            // It was grown, and shows that to those who open it now.
            volume = open()?;
        }
        let step = next..(next + STEP).min(end);
        step_over(&volume, &ids, &state, step.clone(), &mut doubtful, progress)?;
        if doubtful.len() > REPAIRS_MAX {
            return Ok(None);
        }
        next = step.end;
    }
}

/// What the replica holds now.
fn holds(dir: &Path) -> Result<State, Problem> {
    let state = open_book(dir, "state")?.map(Slots::peek).transpose()?.flatten();
    let state = state.ok_or(Problem::NoReplica)?;
    match state.status {
        Status::Complete { .. } => Ok(state),
        Status::Direct { .. } | Status::Adopted => Err(Problem::Incomplete),
    }
}

fn step_over<D: Disk>(
    volume: &Store<D>,
    ids: &IdList<D>,
    state: &State,
    step: std::ops::Range<u64>,
    doubtful: &mut BTreeSet<u64>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Problem> {
    let (key, readable) = (ChunkKey::new(&state.chunk_key), state.size.min(volume.len()?));
    // What is cut off, or is about to be.
    doubtful.extend(
        step.clone()
            .skip_while(|index| (index + 1) * CHUNK_LEN <= readable)
            .filter(|index| (index + 1) * CHUNK_LEN > readable && readable < state.size),
    );
    walk_any(&key, volume, readable, ids, step, |index, found, listed| {
        if found.ok() != Some(listed) {
            doubtful.insert(index);
        }
        progress(index * CHUNK_LEN);
        Ok(())
    })
}
