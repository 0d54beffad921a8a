//! What `drbdmeta dump-md` prints, taken apart.

use std::collections::BTreeSet;

use driftline_drbd::{Layout, Metadata, Version, testing::SparseDisk};
use driftline_extent::{ExtentSet, Volume};

/// What was dumped.
#[derive(Debug)]
pub(crate) struct Dump {
    pub(crate) version: Version,
    pub(crate) size: u64,
    /// Bytes of a bit.
    pub(crate) block_len: u64,
    pub(crate) current: u64,
    /// Node, bitmap UUID, flags and bitmap of each peer.
    pub(crate) peers: Vec<(u32, u64, u32, Option<u32>)>,
    /// Where superblock, activity log and bitmaps are, in bytes.
    pub(crate) places: [u64; 3],
    pub(crate) al_shape: (u32, u32),
    /// The blocks that are marked in each bitmap, within the volume.
    pub(crate) bitmaps: Vec<BTreeSet<u64>>,
}

impl Dump {
    /// Takes what was printed apart.
    pub(crate) fn parse(text: &str) -> Self {
        let number = |name: &str| -> u64 {
            let rest = text.split_once(&format!("{name} ")).unwrap_or_else(|| panic!("no {name}"));
            let word = rest.1.split([';', '\n']).next().unwrap();
            word.parse().unwrap_or_else(|error| panic!("{name} is {word:?}: {error}"))
        };
        let version = match text.contains("version \"v08\"") {
            true => Version::V08,
            false => Version::V09,
        };
        let size = number("la-size-sect") * 512;
        let block_len = number("bm-byte-per-bit");
        let (current, peers) = match version {
            Version::V08 => {
                let uuids = hex_words(text.split_once("uuid {").unwrap().1);
                // The flags that this version of drbdmeta prints for v08 are not the device's.
                (uuids[0], vec![(0, uuids[1], 0, Some(0))])
            }
            Version::V09 => (hex(text, "current-uuid"), peers(text)),
        };
        let heads = ["bm {", "bitmap["];
        let sections = text.split('\n').enumerate();
        let lines: Vec<&str> = text.lines().collect();
        let starts = sections.filter(|(_, line)| heads.iter().any(|head| line.starts_with(head)));
        let bitmaps =
            starts.map(|(start, _)| marked(&lines[start + 1..], size, block_len)).collect();
        Self {
            version,
            size,
            block_len,
            current,
            peers,
            places: ["# md_offset", "# al_offset", "# bm_offset"].map(number),
            al_shape: (number("al-stripes") as u32, number("al-stripe-size-4k") as u32),
            bitmaps,
        }
    }

    /// That the superblock says the same.
    pub(crate) fn assert_same(&self, name: &str, metadata: &Metadata) {
        let Metadata { superblock, placement, .. } = metadata;
        assert_eq!(superblock.version, self.version, "{name}");
        assert_eq!(superblock.effective_size, self.size, "{name}");
        assert_eq!(superblock.current_uuid, self.current, "{name}");
        let [sb, al, bm] = [placement.superblock, placement.activity_log, placement.bitmap];
        assert_eq!([sb, al, bm].map(|part| part.offset()), self.places, "{name}");
        let geometry = &superblock.geometry;
        assert_eq!(geometry.block_len, self.block_len, "{name}");
        assert_eq!((geometry.al_stripes, geometry.al_stripe_blocks), self.al_shape, "{name}");
        assert_eq!(geometry.slots as usize, self.bitmaps.len(), "{name}");
        let node = superblock.node_id;
        let theirs: Vec<_> = self.peers.iter().filter(|p| Some(p.0) != node).copied().collect();
        let ours = superblock.peers.iter();
        let ours: Vec<_> = ours.map(|p| (p.node_id, p.bitmap_uuid, p.flags.0, p.slot)).collect();
        assert_eq!(ours, theirs, "{name}");
    }
}

fn peers(text: &str) -> Vec<(u32, u64, u32, Option<u32>)> {
    let sections = text.split("\npeer[").skip(1);
    sections
        .map(|section| {
            let (node, rest) = section.split_once(']').unwrap();
            let slot = rest.split_once("bitmap-index ").unwrap().1.split(';').next().unwrap();
            let slot = slot.parse::<i32>().unwrap();
            let flags = hex(rest, "flags") as u32;
            (node.parse().unwrap(), hex(rest, "bitmap-uuid"), flags, u32::try_from(slot).ok())
        })
        .collect()
}

fn hex(text: &str, name: &str) -> u64 {
    hex_words(text.split_once(name).unwrap_or_else(|| panic!("no {name}")).1)[0]
}

/// The words up to the closing brace.
fn hex_words(text: &str) -> Vec<u64> {
    let words = text.split('}').next().unwrap().split("0x").skip(1);
    words.map(|w| u64::from_str_radix(w.split([';', ' ']).next().unwrap(), 16).unwrap()).collect()
}

/// The blocks that the words up to the closing brace mark, within `size` bytes.
fn marked(lines: &[&str], size: u64, block_len: u64) -> BTreeSet<u64> {
    let mut blocks = BTreeSet::new();
    let mut at = 0;
    for line in lines.iter().take_while(|line| !line.starts_with('}')) {
        for entry in line.split(';').map(str::trim).filter(|entry| entry.contains("0x")) {
            let (count, word) = entry.split_once(" times ").unwrap_or(("1", entry));
            let count: u64 = count.parse().unwrap();
            let word = u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
            for index in (at..at + count).filter(|_| word != 0) {
                blocks.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|b| index * 64 + b));
            }
            at += count;
        }
    }
    blocks.retain(|block| block * block_len < size);
    blocks
}

/// The blocks of this length in a set.
pub(crate) fn blocks(set: &ExtentSet, block_len: u64) -> BTreeSet<u64> {
    set.pieces(block_len).map(|piece| piece.offset() / block_len).collect()
}

/// What the map of bitmap `slot` has.
pub(crate) fn mapped(metadata: &Metadata, disk: &dyn Volume, slot: usize) -> BTreeSet<u64> {
    let map = metadata.map(disk, slot as u32).unwrap().map;
    blocks(&map.changed, map.granularity)
}

/// Reads the metadata of a device whose data is elsewhere, if it is not internal.
pub(crate) fn read(disk: &SparseDisk, layout: Layout) -> Metadata {
    let data_len = if layout == Layout::Internal { disk.size() } else { u64::MAX };
    Metadata::read(disk, layout, data_len).unwrap()
}
