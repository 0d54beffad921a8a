//! Writing with holes: what is zeros is not stored, and zeros that follow one another are one call.

use driftline_chunking::is_zero;
use driftline_extent::Extent;

use crate::{Disk, Problem, disk::Store};

/// The unit in which zeros are kept out of the storage: the block of common file systems.
const GRAIN_LEN: u64 = 4096;

/// Ranges that are handed to a disk together.
const BATCH: usize = 1024;

/// Tells the runs of `bytes`, aligned grains each: of data, with the data, or of zeros.
pub(crate) fn sparse_runs<'a>(
    offset: u64,
    bytes: &'a [u8],
    mut tell: impl FnMut(Extent, Option<&'a [u8]>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let Some(whole) = Extent::new(offset, bytes.len() as u64) else { return Ok(()) };
    let slice =
        |part: Extent| &bytes[(part.offset() - offset) as usize..(part.end() - offset) as usize];
    let mut run: Option<(Extent, bool)> = None;
    for grain in whole.pieces(GRAIN_LEN) {
        let zero = is_zero(slice(grain));
        run = match run {
            Some((part, of_zeros)) if of_zeros == zero => {
                Extent::from_bounds(part.offset(), grain.end()).map(|part| (part, zero))
            }
            Some((part, of_zeros)) => {
                tell(part, (!of_zeros).then(|| slice(part)))?;
                Some((grain, zero))
            }
            None => Some((grain, zero)),
        };
    }
    run.map_or(Ok(()), |(part, of_zeros)| tell(part, (!of_zeros).then(|| slice(part))))
}

/// Writes places that do not overlap. Zeros are held back until something else than their
/// continuation comes: a file system takes as long for a small hole as for a large one.
#[derive(Debug)]
pub(crate) struct Sparse<'a, D> {
    store: &'a Store<D>,
    zeros: Option<Extent>,
}

impl<'a, D: Disk> Sparse<'a, D> {
    pub(crate) const fn new(store: &'a Store<D>) -> Self {
        Self { store, zeros: None }
    }

    /// Writes `bytes`, except that aligned grains of zeros are made holes where possible.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Problem> {
        sparse_runs(offset, bytes, |part, data| match data {
            Some(data) => self.store.write_at(part.offset(), data),
            None => self.zero(part),
        })
    }

    pub(crate) fn zero(&mut self, extent: Extent) -> Result<(), Problem> {
        let before = self.zeros.replace(extent);
        let Some(before) = before else { return Ok(()) };
        if before.end() == extent.offset() {
            self.zeros = Extent::from_bounds(before.offset(), extent.end());
            return Ok(());
        }
        self.store.zero(before)
    }

    /// Writes what is held back.
    pub(crate) fn finish(mut self) -> Result<(), Problem> {
        self.zeros.take().map_or(Ok(()), |zeros| self.store.zero(zeros))
    }
}

/// Reserves storage for what will be written, joined and some at a time.
#[derive(Debug)]
pub(crate) struct Reserve<'a, D> {
    store: &'a Store<D>,
    ranges: Vec<Extent>,
    bytes: u64,
}

impl<'a, D: Disk> Reserve<'a, D> {
    pub(crate) const fn new(store: &'a Store<D>) -> Self {
        Self { store, ranges: Vec::new(), bytes: 0 }
    }

    pub(crate) fn add(&mut self, range: Extent) -> Result<(), Problem> {
        self.bytes += range.len();
        let last = self.ranges.last().copied();
        let joined = last.filter(|last| last.end() == range.offset());
        let joined = joined.and_then(|last| Extent::from_bounds(last.offset(), range.end()));
        if let Some(joined) = joined {
            self.ranges.pop();
            self.ranges.push(joined);
            return Ok(());
        }
        if self.ranges.len() >= BATCH {
            self.store.allocate(&self.ranges)?;
            self.ranges.clear();
        }
        self.ranges.push(range);
        Ok(())
    }

    /// How many bytes will be written, once storage for them is reserved.
    pub(crate) fn finish(self) -> Result<u64, Problem> {
        self.store.allocate(&self.ranges)?;
        Ok(self.bytes)
    }
}
