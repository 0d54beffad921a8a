//! DRBD's map against the pool's delta: a model of one byte for each block says what is right.

use driftline_drbd::{PoolDelta, cross_check};
use driftline_extent::{Extent, ExtentSet};
use proptest::prelude::*;

/// What is written below is in units of this.
const BLOCK: u64 = 512;

fn set(blocks: &[bool], unit: u64) -> ExtentSet {
    let runs = (0..).zip(blocks).filter(|(_, is)| **is);
    runs.filter_map(|(block, _)| Extent::new(block * unit, unit)).collect()
}

proptest! {
    /// Each block is looked at by itself, in the plainest way.
    #[test]
    fn each_unit_that_differs_is_touched_or_missed(
        per_unit in 1_u64..6,
        changed in prop::collection::vec(any::<bool>(), 0..40),
        holes in prop::collection::vec(prop::bool::weighted(0.1), 0..40),
        drbd in prop::collection::vec(prop::bool::weighted(0.3), 0..200),
        data_blocks in 0_u64..200,
    ) {
        let granularity = per_unit * BLOCK;
        let delta = PoolDelta {
            granularity,
            changed: set(&changed, granularity),
            holes: set(&holes, granularity),
        };
        let found = cross_check(&delta, &set(&drbd, BLOCK), data_blocks * BLOCK);

        let is = |of: &[bool], at: u64| of.get(at as usize).copied().unwrap_or(false);
        let is_drbds = |block: u64| block < data_blocks && is(&drbd, block);
        let blocks_of = |unit: u64| unit * per_unit..(unit + 1) * per_unit;
        let is_missed = |unit: u64| {
            is(&changed, unit)
                && blocks_of(unit).end <= data_blocks
                && !blocks_of(unit).any(is_drbds)
        };
        let any_missed = (0..40).any(is_missed);
        let (mut pool, mut map) = (0, 0);
        for block in 0..400 {
            let unit = block / per_unit;
            let is_pools = block < data_blocks && (is(&changed, unit) || is(&holes, unit));
            let is_changed = block < data_blocks && is(&changed, unit);
            pool += u64::from(is_changed) * BLOCK;
            map += u64::from(is_drbds(block)) * BLOCK;
            let at = block * BLOCK;
            prop_assert_eq!(found.missed.contains(at), is_missed(unit), "block {}", block);
            prop_assert_eq!(found.holes.contains(at), is_pools && !is_changed, "block {}", block);
            let expected = is_pools || (any_missed && is_drbds(block));
            prop_assert_eq!(found.map.contains(at), expected, "block {}", block);
        }
        prop_assert_eq!((found.pool_bytes, found.map_bytes), (pool, map));
        prop_assert!(found.map.end() <= data_blocks * BLOCK);
    }
}

/// The unit at the boundary is DRBD's as well, which writes its metadata there.
#[test]
fn the_metadata_behind_the_data_is_nobodys_finding() {
    let granularity = 64 << 10;
    let data_len = 10 * granularity + 4096;
    let whole: ExtentSet = Extent::new(0, 20 * granularity).into_iter().collect();
    let nothing = ExtentSet::new();
    let delta = PoolDelta { granularity, changed: whole.clone(), holes: nothing.clone() };
    let found = cross_check(&delta, &whole, data_len);
    assert_eq!((found.map, found.missed), (whole.clamp(data_len), nothing.clone()));
    // What is missed before it is told.
    let found = cross_check(&delta, &nothing, data_len);
    assert_eq!(found.missed.byte_count(), 10 * granularity);
    assert_eq!(found.map.byte_count(), data_len);
    // A hole is no change, and is a part of the map.
    let delta = PoolDelta { granularity, changed: nothing.clone(), holes: whole };
    let found = cross_check(&delta, &nothing, data_len);
    assert_eq!((found.missed.is_empty(), found.map.byte_count()), (true, data_len));
}
