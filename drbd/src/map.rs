//! A change map from a bitmap and the activity log.

use driftline_extent::{ChangeMap, Extent, ExtentSet, Generation, Reason, Standing, Volume};

use crate::{
    AL_EXTENT_LEN, DrbdError, Flags, Metadata, Superblock, Version, bitmap, superblock::named,
};

/// Of how many extents a change map is made at most; beyond that it is coarsened.
pub const MAP_EXTENTS_MAX: usize = 500_000;

/// A change map, and which record of change says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Map {
    /// The map.
    pub map: ChangeMap,
    /// Bytes of it that the bitmap names.
    pub bitmap_bytes: u64,
    /// Bytes of it that only the activity log names.
    pub activity_log_bytes: u64,
}

/// See [`Metadata::map`].
pub(crate) fn gather(metadata: &Metadata, disk: &dyn Volume, slot: u32) -> Result<Map, DrbdError> {
    gather_within(metadata, disk, slot, MAP_EXTENTS_MAX)
}

fn gather_within(
    metadata: &Metadata,
    disk: &dyn Volume,
    slot: u32,
    extents_max: usize,
) -> Result<Map, DrbdError> {
    let Metadata { superblock, activity_log, placement } = metadata;
    let size = superblock.effective_size;
    let mut map = empty(metadata);
    map.base = superblock
        .peers
        .iter()
        .find(|peer| peer.slot == Some(slot) && named(peer.bitmap_uuid))
        .map(|peer| Generation::drbd(peer.bitmap_uuid));
    bitmap::marked(disk, placement, &superblock.geometry, (slot, size), |extent| {
        // What is coarse already stays so: exact extents would only make it coarser again.
        map.changed.insert(extent.align_out(map.granularity));
        // Only at twice the limit, so that the work is done once for many insertions.
        if map.changed.extent_count() > 2 * extents_max {
            map.coarsen(extents_max);
        }
    })?;
    map.coarsen(extents_max);
    let bitmap_bytes = map.changed.byte_count();
    let mut hot = activity_log.hot(size);
    if lacks_last_region(superblock, activity_log.transactions) {
        let start = size.saturating_sub(1) / AL_EXTENT_LEN * AL_EXTENT_LEN;
        hot.extend(Extent::from_bounds(start, size));
    }
    map.changed = map.changed.union(&hot);
    map.coarsen(extents_max);
    let activity_log_bytes = map.changed.byte_count().saturating_sub(bitmap_bytes);
    Ok(Map { map, bitmap_bytes, activity_log_bytes })
}

/// Whether the last region of the volume may be in neither record. After a crash some tool has
/// applied the log and emptied it, and versions of it leave out that region. DRBD 8.4 sets this
/// flag only then; DRBD 9 has it set on every Primary, so there the log has to be empty as well.
const fn lacks_last_region(superblock: &Superblock, transactions: u64) -> bool {
    let emptied = superblock.flags.has(Flags::AL_CLEAN) || transactions == 0;
    superblock.flags.has(Flags::CRASHED_PRIMARY)
        && (matches!(superblock.version, Version::V08) || emptied)
}

/// A map of everything, for where no record of change can be used.
pub(crate) fn whole(metadata: &Metadata) -> Map {
    let changed = Extent::new(0, metadata.superblock.effective_size).into_iter().collect();
    let map = ChangeMap { changed, ..empty(metadata) };
    Map { map, bitmap_bytes: 0, activity_log_bytes: 0 }
}

fn empty(metadata: &Metadata) -> ChangeMap {
    let superblock = &metadata.superblock;
    ChangeMap {
        base: None,
        tip: named(superblock.current_uuid).then(|| Generation::drbd(superblock.current_uuid)),
        size: Some(superblock.effective_size),
        granularity: superblock.geometry.block_len,
        changed: ExtentSet::new(),
        zero: ExtentSet::new(),
        standing: Standing::Suspect(Reason::MapMissing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, testing::Spec};

    /// Half of all blocks, no two of them neighbours, and little room for extents.
    #[test]
    fn many_extents_become_fewer_and_coarser() {
        let mut spec = Spec::primary(true, 10, 20);
        spec.bits[0] = (0..16_000).step_by(2).chain([16_100]).collect();
        spec.log.write(&[(0, 15)]);
        let disk = spec.to_disk();
        let metadata = Metadata::read(&disk, Layout::Internal, disk.size()).unwrap();
        let exact = gather_within(&metadata, &disk, 0, 8001).unwrap();
        assert_eq!(exact.map.granularity, 4096);
        assert_eq!(exact.bitmap_bytes, 8001 * 4096);
        for extents_max in [1, 100, 4000] {
            let coarse = gather_within(&metadata, &disk, 0, extents_max).unwrap();
            assert!(coarse.map.changed.extent_count() <= extents_max);
            assert!(coarse.map.granularity > 4096);
            assert!(exact.map.changed.subtract(&coarse.map.changed).is_empty());
            assert!(coarse.map.changed.end() <= metadata.superblock.effective_size);
        }
    }
}
