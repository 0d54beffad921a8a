//! What the pool below a volume says of two of its snapshots, held against DRBD's own map.
//!
//! A pool that shares what two snapshots have in common knows what differs between them, by
//! means of its own. DRBD's map is a superset of all that was written through DRBD. So each unit
//! of the pool that differs has to be touched by that map: one that is not was written by
//! somebody else, or DRBD has missed it.

use driftline_extent::{Extent, ExtentSet};

/// What differs between two snapshots of a backing device, as its pool tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolDelta {
    /// The length of a unit in bytes. What differs starts and ends on multiples of it, but for
    /// the end of the device.
    pub granularity: u64,
    /// Units that were written, or given back to the pool.
    pub changed: ExtentSet,
    /// Units that read as zeros now, whether they changed or not. ZFS tells of holes that were
    /// there before, so that DRBD need not know of them.
    pub holes: ExtentSet,
}

/// A pool's delta and DRBD's map, held against each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CrossCheck {
    /// What may have changed: the pool's delta within the data, and where anything is missed
    /// all of DRBD's map besides.
    pub map: ExtentSet,
    /// What of the map reads as zeros now, and need not be read.
    pub holes: ExtentSet,
    /// The units that differ and that DRBD's map does not touch.
    pub missed: ExtentSet,
    /// Bytes of the pool's delta within the data, without holes.
    pub pool_bytes: u64,
    /// Bytes of DRBD's map.
    pub map_bytes: u64,
}

/// Holds DRBD's map of a volume of `data_len` bytes against the delta of the pool below it. What
/// stands on the device behind the data is clipped: that is where DRBD writes its own metadata.
/// A unit that has both is a part of the map, and says nothing of what DRBD has missed.
pub fn cross_check(delta: &PoolDelta, drbd: &ExtentSet, data_len: u64) -> CrossCheck {
    let granularity = delta.granularity.max(1);
    let drbd = drbd.clamp(data_len);
    let changed = delta.changed.align_out(granularity);
    let judged = changed.clamp(data_len - data_len % granularity);
    let missed = judged.subtract(&drbd.align_out(granularity));
    let changed = changed.clamp(data_len);
    let holes = delta.holes.clamp(data_len).subtract(&changed);
    let pool = changed.union(&holes);
    let map = if missed.is_empty() { pool } else { pool.union(&drbd) };
    let (pool_bytes, map_bytes) = (changed.byte_count(), drbd.byte_count());
    CrossCheck { map, holes, missed, pool_bytes, map_bytes }
}

/// A delta on its way in, of any number of runs in bounded memory.
#[derive(Debug)]
pub(crate) struct Gathered {
    delta: PoolDelta,
    runs_max: usize,
}

impl Gathered {
    /// Nothing yet, of units of this length, to be kept as so many runs at most.
    pub(crate) const fn new(granularity: u64, runs_max: usize) -> Self {
        let delta = PoolDelta { granularity, changed: ExtentSet::new(), holes: ExtentSet::new() };
        Self { delta, runs_max }
    }

    /// Adds a run that changed. Coarser units hide what DRBD has missed, and leave nothing out.
    pub(crate) fn add(&mut self, run: Extent) {
        self.delta.changed.insert(run.align_out(self.delta.granularity));
        // Only at twice the limit, so that the work is done once for many insertions.
        if self.delta.changed.extent_count() > 2 * self.runs_max {
            self.coarsen();
        }
    }

    fn coarsen(&mut self) {
        let PoolDelta { granularity, changed, .. } = &mut self.delta;
        while changed.extent_count() > self.runs_max {
            let Some(coarser) = granularity.checked_mul(2) else { return };
            (*changed, *granularity) = (changed.align_out(coarser), coarser);
        }
    }

    pub(crate) fn delta(mut self) -> PoolDelta {
        self.coarsen();
        self.delta
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_runs_become_fewer_and_leave_nothing_out() {
        let runs: Vec<Extent> =
            (0..1000).filter_map(|run| Extent::new(run * (192 << 10), 64 << 10)).collect();
        for runs_max in [1, 10, 100, 1000] {
            let mut gathered = Gathered::new(64 << 10, runs_max);
            runs.iter().for_each(|run| gathered.add(*run));
            let delta = gathered.delta();
            assert!(delta.changed.extent_count() <= runs_max);
            assert!(runs.iter().all(|run| delta.changed.covers(run)));
            assert_eq!(delta.granularity == 64 << 10, runs_max == 1000);
        }
    }
}
