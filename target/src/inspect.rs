//! Looking at a replica without locking, recovering or changing it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use driftline_chunking::ChunkKey;
use driftline_extent::TargetState;

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    Disk, FileDisk, Part, Problem, TargetError,
    ids::IdList,
    journal::Journal,
    journaled::{Unsealed, find_unsealed},
    open_path::{LOCK, is_gone, state_dir_of},
    own::resolved,
    read_path::has_books,
    repair::Repairs,
    state::{Slots, State, Status},
};

/// What [`inspect`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// What the replica held when it was looked at. Of one that was stopped while a sealed
    /// increment was put in place that is the increment's end, which is what reading it gives.
    pub state: TargetState,
    /// Whether a sealed increment is not in place yet: the next open does that.
    pub applying: bool,
    /// When a scrub last found no damage, in milliseconds since 1970.
    pub scrubbed_ms: Option<u64>,
    /// The process that last opened it; it may have ended since.
    pub opened_by: Option<u32>,
    /// Whether a process has it open for writing now.
    pub is_written: bool,
    /// Whether its file or device is there, as it should be.
    pub volume: Found,
}

/// What [`inspect`] found of a replica's file or device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// It is there, or need not be there yet.
    Fitting,
    /// It is not there.
    Nothing,
    /// Something else is there than a file or a block device.
    Other,
    /// It has this many bytes, which are not those of its generation.
    Resized(u64),
}

/// Looks at the replica at `path` without locking, recovering or changing it; `None` if
/// nothing was ever begun there.
pub fn inspect(path: &Path, state_dir: Option<&Path>) -> Result<Option<Inspection>, TargetError> {
    let dir = state_dir.map_or_else(|| state_dir_of(&resolved(path)), Path::to_owned);
    inspect_dir(path, &dir).map_err(|problem| problem.of(&path.display().to_string()))
}

fn inspect_dir(path: &Path, dir: &Path) -> Result<Option<Inspection>, Problem> {
    let state = open_book(dir, "state")?.map(Slots::peek).transpose()?.flatten();
    let Some(mut state) = state else {
        let lost =
            has_books(dir).map_err(|source| Problem::Open { path: dir.to_owned(), source })?;
        return if lost { Err(Problem::StateDamaged) } else { Ok(None) };
    };
    let (mut unsealed, mut applying) = (None, false);
    if let Some(journal) = open_book(dir, "journal")? {
        let journal = Journal::new(journal);
        match journal.seal()?.filter(|seal| seal.header.starts_from(&state)) {
            Some(seal) => {
                (state, applying) = (seal.state_after(&state), true);
            }
            None => unsealed = find_unsealed(&journal, &state)?,
        }
    }
    let damaged = match open_book(dir, "repair")? {
        Some(repair) => Repairs::peek(repair, &state)?,
        None => false,
    };
    let opened_by = fs::read_to_string(dir.join("lock")).ok();
    let opened_by = opened_by.and_then(|pid| pid.trim().parse().ok());
    Ok(Some(Inspection {
        state: TargetState { damaged, ..state.describe(unsealed.as_ref().map(Unsealed::resume)) },
        applying,
        scrubbed_ms: state.scrubbed_ms,
        opened_by,
        is_written: is_written(dir),
        volume: find_volume(path, dir, &state, applying)?,
    }))
}

/// Whether the list of chunk ids of the replica at `path`, which was `found` so, leads to the
/// committed root. It is read whole, so that this takes a second for some TiB. Nothing is said of one
/// that is not complete, or that is being written.
///
/// # Errors
///
/// A list that cannot be read.
pub fn is_listed(
    path: &Path,
    state_dir: Option<&Path>,
    found: &Inspection,
) -> Result<bool, TargetError> {
    let Some(root) = found.state.root.filter(|_| !found.applying) else { return Ok(true) };
    let dir = state_dir.map_or_else(|| state_dir_of(&resolved(path)), Path::to_owned);
    let leads = || {
        let ids = open_book(&dir, "ids")?.ok_or(Problem::ListDamaged)?;
        let (ids, key) = (IdList::new(Part::Ids, ids), ChunkKey::new(&found.state.chunk_key));
        if ids.root(&key, found.state.size)? == root {
            return Ok(true);
        }
        // A commit may have come in between.
        let now = inspect_dir(path, &dir)?;
        Ok(now.is_none_or(|now| now.is_written || now.state.root != Some(root)))
    };
    leads().map_err(|problem: Problem| problem.of(&path.display().to_string()))
}

/// Whether somebody has the lock that a writer has alone.
fn is_written(dir: &Path) -> bool {
    let lock = File::open(dir.join(LOCK));
    lock.is_ok_and(|lock| {
        flock(&lock, FlockOperation::NonBlockingLockShared).is_err_and(|e| e == Errno::WOULDBLOCK)
    })
}

fn find_volume(path: &Path, dir: &Path, state: &State, applying: bool) -> Result<Found, Problem> {
    let at = |source| Problem::Open { path: path.to_owned(), source };
    let disk = match FileDisk::open_read(path) {
        Ok(disk) => disk,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let gone = is_gone(dir, true)?;
            return Ok(if gone { Found::Nothing } else { Found::Fitting });
        }
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(Found::Other),
        Err(source) => return Err(at(source)),
    };
    let len = Disk::len(&disk).map_err(at)?;
    let fits = match state.status {
        // It is between the size of the base and that of the tip.
        _ if applying => true,
        Status::Complete { .. } if disk.is_fixed() => len >= state.size,
        Status::Complete { .. } => len == state.size,
        Status::Direct { .. } | Status::Adopted => true,
    };
    Ok(if fits { Found::Fitting } else { Found::Resized(len) })
}

/// Opens one of the books for reading; `None` if it is not there.
pub(crate) fn open_book(dir: &Path, name: &str) -> Result<Option<FileDisk>, Problem> {
    let path: PathBuf = dir.join(name);
    match FileDisk::open_read(&path) {
        Ok(book) => Ok(Some(book)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Problem::Open { path, source }),
    }
}
