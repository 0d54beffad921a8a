//! Reading a whole replica again.

use std::collections::BTreeSet;

use driftline_extent::{CHUNK_LEN, ChunkId, Extent, ExtentSet, Generation, chunk_count};

use crate::{
    Disk, Problem, Replica,
    chunks::{bytes_of, walk_any},
};

/// How many extents of damage a report lists.
const DAMAGE_MAX: usize = 1024;

/// Says whether a chunk is damaged, by its index, what was found, and what is listed.
pub(crate) type IsDamaged<'a> =
    &'a mut dyn FnMut(u64, Result<ChunkId, Problem>, ChunkId) -> Result<bool, Problem>;

/// What [`Replica::verify`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifyReport {
    /// The generation that should stand there.
    pub generation: Generation,
    /// The size that was committed, in bytes.
    pub size: u64,
    /// The size that was found: a device may be larger, a file not.
    pub size_found: u64,
    /// Whether that is as it should be.
    pub size_matches: bool,
    /// Whether the list of chunk ids leads to the root that was committed.
    pub root_matches: bool,
    /// How many chunks are not what was committed.
    pub damaged_chunks: u64,
    /// Where they are, neighbours joined; the first 1024 such extents.
    pub damaged: ExtentSet,
}

impl VerifyReport {
    /// Whether the replica is exactly what was committed.
    pub const fn is_clean(&self) -> bool {
        self.size_matches && self.root_matches && self.damaged_chunks == 0
    }
}

impl<D: Disk> Replica<D> {
    pub(crate) fn verify_all(
        &self,
        progress: &mut dyn FnMut(u64),
    ) -> Result<VerifyReport, Problem> {
        self.survey(None, progress, &mut |_, found, listed| Ok(found? != listed))
    }

    /// Whether all is as it was committed, or with `repairs` may be replaced.
    pub(crate) fn is_as_known(&self, repairs: bool) -> Result<bool, Problem> {
        if !repairs || self.repairs.is_empty() {
            return Ok(self.verify_all(&mut |_| {})?.is_clean());
        }
        let report = self.survey(None, &mut |_| {}, &mut |index, found, listed| match found {
            Ok(found) => Ok(found != listed && !self.repairs.allow(index, listed, Some(found))),
            Err(_) if self.repairs.allow(index, listed, None) => Ok(false),
            Err(problem) => Err(problem),
        })?;
        Ok(report.is_clean())
    }

    /// Reads all of it, or `only` these chunks; `is_damaged` is told each chunk that is not a hole, what was found, and
    /// what is listed.
    pub(crate) fn survey(
        &self,
        only: Option<&BTreeSet<u64>>,
        progress: &mut dyn FnMut(u64),
        is_damaged: IsDamaged<'_>,
    ) -> Result<VerifyReport, Problem> {
        let (Some(generation), Some(root)) = (self.state.generation(), self.state.root()) else {
            return Err(self.holds_nothing());
        };
        let (size, size_found) = (self.state.size, self.volume.len()?);
        let fixed = self.volume.is_fixed();
        let mut report = VerifyReport {
            generation,
            size,
            size_found,
            size_matches: size_found == size || (fixed && size_found > size),
            root_matches: self.ids.root(&self.key, size)? == root,
            damaged_chunks: 0,
            damaged: ExtentSet::new(),
        };
        self.volume.drop_cache()?;
        let (chunks, readable) = (0..chunk_count(size), size.min(size_found));
        let (key, volume, ids) = (&self.key, &self.volume, &self.ids);
        let mut visit = |index, found, listed| {
            if is_damaged(index, found, listed)? {
                report.damaged_chunks += 1;
                let full = report.damaged.extent_count() >= DAMAGE_MAX;
                report.damaged.extend(bytes_of(&(index..index + 1), size).filter(|_| !full));
            }
            progress(index * CHUNK_LEN);
            Ok(())
        };
        match only {
            None => walk_any(key, volume, readable, ids, chunks, &mut visit)?,
            Some(only) => only.iter().try_for_each(|index| {
                walk_any(key, volume, readable, ids, *index..index + 1, &mut visit)
            })?,
        }
        if let Some(cut) = Extent::from_bounds(readable, size) {
            report.damaged_chunks += cut.align_out(CHUNK_LEN).len() / CHUNK_LEN;
            report.damaged.insert(cut);
        }
        progress(size);
        Ok(report)
    }
}
