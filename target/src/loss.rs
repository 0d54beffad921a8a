//! How much of a replica's data an increment makes zero or cuts off, and how much it may.
//!
//! An emptied source looks like any other change. So what would go is counted before a journal is
//! sealed, in whole chunks by the books, and beyond a share of what was there the increment is
//! refused until a person agrees. The agreement is a file beside the other books; it is of one state
//! of one replica, so it ends with the next commit.

use std::{
    fs::{self, File},
    io::{self, Write},
    iter::Peekable,
    path::{Path, PathBuf},
};

use driftline_extent::{CHUNK_LEN, ChunkId, chunk_count};

use crate::{
    Disk, Options, Problem, Replica, TargetError,
    inspect::open_book,
    open_path::dir_of,
    own::sync_dir,
    state::{Slots, State, Status},
};

/// The file with the agreement.
const AGREED: &str = "loss-agreed";

impl<D: Disk> Replica<D> {
    /// Refuses increments after which more than `percent` of the data would be gone, or all of it.
    /// From 100 on nothing is refused.
    pub const fn limit_loss(&mut self, percent: u8) {
        self.loss_max = if percent < 100 { Some(percent) } else { None };
    }

    /// Counts what the increment in the overlay, to a volume of `size` bytes, makes zero or cuts off,
    /// and refuses what may not go.
    pub(crate) fn check_loss(&self, size: u64) -> Result<u64, Problem> {
        let (old, new) = (chunk_count(self.state.size), chunk_count(size));
        let (mut before, mut gone, mut added) = (0_u64, 0_u64, 0_u64);
        let mut changes = self.overlay.entries(0..new).peekable();
        for entry in self.ids.entries(0..old) {
            let (index, _) = entry?;
            before += 1;
            while let Some((_, after)) = take_below(&mut changes, index)? {
                added += u64::from(!after.is_zero());
            }
            let after = take_below(&mut changes, index + 1)?;
            gone += u64::from(index >= new || after.is_some_and(|(_, after)| after.is_zero()));
        }
        while let Some((_, after)) = take_below(&mut changes, u64::MAX)? {
            added += u64::from(!after.is_zero());
        }
        let left = before - gone + added;
        let Some(percent) = self.loss_max.filter(|_| gone > 0 && self.had_generation()) else {
            return Ok(gone * CHUNK_LEN);
        };
        let is_much = u128::from(gone) * 100 > u128::from(before) * u128::from(percent);
        if left == 0 || is_much {
            let [gone, before] = [gone, before].map(|chunks| chunks * CHUNK_LEN);
            return Err(Problem::Emptied { gone, before, left: left * CHUNK_LEN });
        }
        Ok(gone * CHUNK_LEN)
    }

    /// Whether what stands here is, or was before a copy over it began, a generation. What is
    /// overwritten by agreement and never was one is nobody's replica.
    const fn had_generation(&self) -> bool {
        match self.state.status {
            Status::Complete { .. } => true,
            // The first epoch of a replica is its first copy, or what stood there before that.
            Status::Adopted => self.state.epoch > 1,
            Status::Direct { .. } => false,
        }
    }
}

/// The next entry, if it is of a chunk below this.
fn take_below(
    entries: &mut Peekable<impl Iterator<Item = Result<(u64, ChunkId), Problem>>>,
    index: u64,
) -> Result<Option<(u64, ChunkId)>, Problem> {
    entries.next_if(|entry| !matches!(entry, Ok((at, _)) if *at >= index)).transpose()
}

/// Agrees that the next increment of the replica at `path` may lose as much of its data as it likes.
///
/// # Errors
///
/// What is no replica.
pub fn agree_to_loss(path: &Path, options: &Options) -> Result<(), TargetError> {
    agree(path, options).map_err(|problem| problem.of(&path.display().to_string()))
}

fn agree(path: &Path, options: &Options) -> Result<(), Problem> {
    let dir = dir_of(path, options);
    let state = open_book(&dir, "state")?.map(Slots::peek).transpose()?.flatten();
    let state = state.ok_or(Problem::NoReplica)?;
    let file = dir.join(AGREED);
    let written = File::create(&file).and_then(|mut file| {
        file.write_all(agreement(&state).as_bytes())?;
        file.sync_all()
    });
    written.map_err(|source| Problem::Open { path: file, source })?;
    sync_dir(&dir)
}

/// Whether somebody has agreed to a loss of this very state.
pub(crate) fn is_agreed(dir: &Path, state: &State) -> Result<bool, Problem> {
    let path: PathBuf = dir.join(AGREED);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text == agreement(state)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Problem::Open { path, source }),
    }
}

fn agreement(state: &State) -> String {
    let State { replica, epoch, .. } = state;
    format!("driftline: the next increment may lose data\n{replica} {epoch}\n")
}
