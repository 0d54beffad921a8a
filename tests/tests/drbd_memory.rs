//! Maps of the largest volumes take no more memory than their extents, which are bounded.
//!
//! A binary of its own with a single test, as it asks what the whole process takes.

use std::{fs, io};

use driftline_drbd::{
    Layout, MAP_EXTENTS_MAX, Metadata,
    testing::{SparseDisk, Spec},
};
use driftline_extent::{Extent, Volume};

/// What the process may take at its peak, in KiB: a million extents of 16 bytes in a vector
/// that has just doubled, the next coarser ones beside it, and all else.
const PEAK_MAX_KIB: u64 = 96 << 10;

const SIZE: u64 = 16 << 40;

/// A device whose metadata has a superblock and an activity log, and bitmaps made of one word.
struct Patterned {
    disk: SparseDisk,
    bitmap: Extent,
    /// The word again and again, as much as is read at once.
    words: Vec<u8>,
}

impl Volume for Patterned {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if !self.bitmap.contains(offset) {
            return self.disk.read_at(offset, buf);
        }
        for part in buf.chunks_mut(self.words.len()) {
            part.copy_from_slice(&self.words[..part.len()]);
        }
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.disk.next_data(from)
    }
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn sixteen_tebibytes_fit() {
    let mut spec = Spec::primary(true, 10, 20);
    spec.layout = Layout::External;
    spec.device_len = 1 << 30;
    spec.sectors = SIZE / 512;
    spec.log.write(&[(0, 77)]);
    let disk = spec.to_disk();
    let metadata = Metadata::read(&disk, spec.layout, SIZE).unwrap();
    let bitmap = metadata.placement.bitmap;
    assert_eq!(bitmap.len(), 512 << 20);
    // Nothing marked; and one block in each 128 KiB, which makes 134 million extents.
    for (word, extents, granularity) in [(0, 1..2, 4096), (1, 1..MAP_EXTENTS_MAX + 1, 1 << 17)] {
        let words = u32::to_le_bytes(word).repeat(1 << 16);
        let device = Patterned { disk: disk.clone(), bitmap, words };
        let map = metadata.map(&device, 0).unwrap();
        let peak = peak_kib();
        println!(
            "{word:#010x}: {} extents of {} bytes, peak {peak} KiB",
            map.map.changed.extent_count(),
            map.map.granularity
        );
        assert!(extents.contains(&map.map.changed.extent_count()), "{word:#x}");
        assert_eq!(map.map.granularity, granularity, "{word:#x}");
        assert!(peak < PEAK_MAX_KIB, "{word:#x} takes {peak} KiB");
    }
}
