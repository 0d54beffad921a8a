//! Bodies of fuzz targets: any bytes at all must neither panic nor allocate without bound.

use std::sync::Arc;

use driftline_extent::{Change, ExtentSet, Generation, PlanKind, Source, Volume};

use crate::{
    ActivityLog, Base, DrbdVolume, Flags, Geometry, INDEXED_LEN, Layout, MAP_EXTENTS_MAX, Metadata,
    Placement, judge,
    testing::{SparseDisk, crc},
};

/// How much of a device is made of the fuzzer's bytes.
const PART_LEN: usize = 4096;

/// Reads `data` as metadata, in each of the places where it can be: as it is, and with the
/// checksums of the activity log that belong there. The first byte says where; 4 KiB of
/// superblock, then the activity log, then the bitmaps follow.
pub fn metadata(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let layout = match first % 3 {
        0 => Layout::Internal,
        1 => Layout::External,
        _ => Layout::Indexed(1),
    };
    for mended in [false, true] {
        read(device(layout, data, mended), layout);
    }
}

/// A device whose parts are where a common one has them, and hold `data`.
fn device(layout: Layout, data: &[u8], mended: bool) -> SparseDisk {
    let len = INDEXED_LEN + (16 << 20);
    let (superblock, log, bitmap) = match layout {
        Layout::Internal => (len - 4096, len - 4096 * 9, len - 4096 * 17),
        Layout::External => (0, 4096, 4096 * 9),
        Layout::Indexed(_) => (INDEXED_LEN, INDEXED_LEN + 4096, INDEXED_LEN + 4096 * 9),
    };
    let mut disk = SparseDisk::new(len);
    let (head, rest) = data.split_at(data.len().min(PART_LEN));
    let (blocks, bits) = rest.split_at(rest.len().min(8 * PART_LEN));
    disk.put(superblock, head);
    for (index, block) in (0..).zip(blocks.chunks(PART_LEN)) {
        let mut block = block.to_vec();
        if mended {
            block.resize(PART_LEN, 0xff);
            block[..4].copy_from_slice(&0x69cb_65a2_u32.to_be_bytes());
            block[8..12].fill(0);
            let crc = crc(&block);
            block[8..12].copy_from_slice(&crc.to_be_bytes());
        }
        disk.put(log + index * PART_LEN as u64, &block);
    }
    disk.put(bitmap, bits);
    disk
}

fn read(disk: SparseDisk, layout: Layout) {
    let len = disk.size();
    let Ok(metadata) = Metadata::read(&disk, layout, len) else { return };
    check(&disk, &metadata);
    let disk: Arc<dyn Volume + Send + Sync> = Arc::new(disk);
    let meta = (layout != Layout::Internal).then(|| (disk.clone(), layout));
    let Ok(mut volume) = DrbdVolume::open(disk, meta) else { return };
    let bases = metadata.superblock.peers.iter().map(|peer| Generation::drbd(peer.bitmap_uuid));
    let base = bases.into_iter().next();
    if let Ok(plan) = volume.plan(base.as_ref())
        && plan.kind != PlanKind::Scan
    {
        let mut end = 0;
        while let Ok(Some(change)) = volume.next_change(0) {
            let extent = change.extent().expect("no change is empty");
            assert!(extent.offset() >= end, "changes ascend");
            end = extent.end();
            assert!(end <= metadata.superblock.effective_size, "changes lie within the volume");
            if matches!(change, Change::Data { .. }) {
                assert!(extent.len() <= 64 << 10, "changes are bounded");
            }
        }
    }
}

/// What holds of all metadata that is accepted.
fn check(disk: &SparseDisk, metadata: &Metadata) {
    let Metadata { superblock, activity_log, placement } = metadata;
    let Placement { superblock: sb, activity_log: al, bitmap: bm } = placement;
    let parts: ExtentSet = [*sb, *al, *bm].into_iter().collect();
    assert_eq!(parts.byte_count(), sb.len() + al.len() + bm.len(), "the parts are apart");
    assert!(parts.end() <= disk.size(), "the parts lie on the device");
    let Geometry { slots, .. } = superblock.geometry;
    for slot in 0..slots.min(3) {
        let map = metadata.map(disk, slot).expect("this disk can be read");
        let changed = &map.map.changed;
        assert!(changed.end() <= superblock.effective_size, "a map lies within the volume");
        assert!(changed.extent_count() <= MAP_EXTENTS_MAX, "a map is bounded");
        assert_eq!(map.bitmap_bytes + map.activity_log_bytes, changed.byte_count());
    }
    assert!(metadata.map(disk, slots).is_err(), "there is no such bitmap");
    for peer in &superblock.peers {
        let size = Some(superblock.effective_size);
        let base = Base { uuid: peer.bitmap_uuid, size, record: None };
        if judge(&base, metadata).is_ok() {
            assert!(superblock.flags.has(Flags::CONSISTENT), "a proven tip is an image");
            assert_eq!(sound(activity_log), Ok(()));
        }
    }
}

fn sound(log: &ActivityLog) -> Result<(), String> {
    log.damage.map_or(Ok(()), |damage| Err(damage.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Spec;

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            metadata(&bytes);
        }

        /// A sound superblock with any numbers in any of its fields.
        #[test]
        fn any_numbers_never_panic(
            v09: bool,
            layout in 0_u8..3,
            fields in prop::collection::vec((0_usize..0x60, number()), 0..4),
            log in prop::collection::vec(any::<u8>(), 0..9000),
        ) {
            let mut spec = Spec::primary(v09, 10, 20);
            spec.layout = [Layout::Internal, Layout::External, Layout::Indexed(1)][layout as usize];
            spec.device_len = INDEXED_LEN + (16 << 20);
            let mut bytes = vec![layout];
            bytes.extend(spec.superblock());
            for (at, value) in fields {
                bytes[1 + at..][..4].copy_from_slice(&value.to_be_bytes());
            }
            bytes.extend(log);
            metadata(&bytes);
        }
    }

    /// Numbers at the edges of what is allowed.
    fn number() -> impl Strategy<Value = u32> {
        let edges = vec![0, 1, 2, 8, 31, 32, 4096, 1 << 20, 1 << 21, 1 << 31, u32::MAX];
        prop_oneof![prop::sample::select(edges), any::<u32>()]
    }
}
