//! What is kept of the instant that a target holds: a map is believed only from there.
//!
//! # On disk
//!
//! Bytes, numbers in little endian: `DBR` and the version 1; the format (8 or 9); whether the
//! bitmap was started anew at that instant (1) or not (0); whether the activity log had recorded
//! anything (1) or not (0); 0; node id (u32, all ones for none); flags (u32); size, current UUID and
//! device UUID (u64 each); `md_sectors`, `al_offset`, `bm_offset`, `al_stripes`, `al_stripe_blocks`,
//! `slots` and `block_len` (32 bits each); and for each slot that was allocated, ascending: the slot
//! and the node (u8 each). What is anything else is no record.

use driftline_extent::RECORD_LEN_MAX;

use crate::{Flags, Geometry, Metadata, Superblock, Version};

const MAGIC: [u8; 4] = *b"DBR\x01";

/// Everything but the slots.
const FIXED_LEN: usize = 68;

/// The node id where there is none.
const NO_NODE: u32 = u32::MAX;

/// An instant of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The format of its metadata.
    pub version: Version,
    /// Whether the bitmap was started anew at that instant, under a new current UUID.
    pub rotated: bool,
    /// Whether the activity log had recorded anything.
    pub logged: bool,
    /// Which node it is of.
    pub node_id: Option<u32>,
    /// What was so about the device.
    pub flags: Flags,
    /// The volume's size in bytes.
    pub size: u64,
    /// What it was named.
    pub current_uuid: u64,
    /// Names the device, where that was ever set.
    pub device_uuid: u64,
    /// Sizes and distances.
    pub geometry: Geometry,
    /// The slots that were allocated, and the nodes that they belonged to.
    pub slots: Vec<(u32, u32)>,
}

impl Record {
    /// That of the instant that this is the metadata of.
    pub fn of(metadata: &Metadata, rotated: bool) -> Self {
        let Superblock { version, effective_size, current_uuid, device_uuid, .. } =
            metadata.superblock;
        let Superblock { flags, node_id, geometry, ref peers, .. } = metadata.superblock;
        let slots = peers.iter().filter_map(|peer| Some((peer.slot?, peer.node_id)));
        let mut slots: Vec<(u32, u32)> = slots.collect();
        slots.sort_unstable();
        Self {
            version,
            rotated,
            logged: metadata.activity_log.transactions > 0,
            node_id,
            flags,
            size: effective_size,
            current_uuid,
            device_uuid,
            geometry,
            slots,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let Geometry { md_sectors, al_offset, bm_offset, al_stripes, .. } = self.geometry;
        let Geometry { al_stripe_blocks, slots, block_len, .. } = self.geometry;
        let format = match self.version {
            Version::V08 => 8,
            Version::V09 => 9,
        };
        let mut out = MAGIC.to_vec();
        out.extend([format, self.rotated.into(), self.logged.into(), 0]);
        for number in [self.node_id.unwrap_or(NO_NODE), self.flags.0] {
            out.extend(number.to_le_bytes());
        }
        for number in [self.size, self.current_uuid, self.device_uuid] {
            out.extend(number.to_le_bytes());
        }
        let offsets = [md_sectors, al_offset.cast_unsigned(), bm_offset.cast_unsigned()];
        for number in offsets.into_iter().chain([al_stripes, al_stripe_blocks, slots]) {
            out.extend(number.to_le_bytes());
        }
        // At most 1 MiB, as the superblock was read.
        out.extend((block_len as u32).to_le_bytes());
        out.extend(self.slots.iter().flat_map(|(slot, node)| [*slot as u8, *node as u8]));
        out
    }

    /// The record that these bytes are; `None` if they are none that this version knows.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > RECORD_LEN_MAX || !bytes.starts_with(&MAGIC) {
            return None;
        }
        let (fixed, slots) = bytes.split_at_checked(FIXED_LEN)?;
        let u32_at = |at: usize| fixed.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b));
        let u64_at = |at: usize| fixed.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b));
        let flag = |at: usize| match fixed[at] {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        let version = match fixed[4] {
            8 => Version::V08,
            9 => Version::V09,
            _ => return None,
        };
        if !slots.len().is_multiple_of(2) || fixed[7] != 0 {
            return None;
        }
        let geometry = Geometry {
            md_sectors: u32_at(40)?,
            al_offset: u32_at(44)?.cast_signed(),
            bm_offset: u32_at(48)?.cast_signed(),
            al_stripes: u32_at(52)?,
            al_stripe_blocks: u32_at(56)?,
            slots: u32_at(60)?,
            block_len: u32_at(64)?.into(),
        };
        Some(Self {
            version,
            rotated: flag(5)?,
            logged: flag(6)?,
            node_id: Some(u32_at(8)?).filter(|node| *node != NO_NODE),
            flags: Flags(u32_at(12)?),
            size: u64_at(16)?,
            current_uuid: u64_at(24)?,
            device_uuid: u64_at(32)?,
            geometry,
            slots: slots.chunks(2).map(|pair| (pair[0].into(), pair[1].into())).collect(),
        })
    }

    /// Whether this is the metadata that the record is of, at whatever instant.
    pub(crate) fn is_of_same(&self, now: &Superblock) -> bool {
        (self.version, self.geometry, self.device_uuid)
            == (now.version, now.geometry, now.device_uuid)
    }

    /// Whether the device was written to while neither its bitmap on disk nor its activity log
    /// said so.
    pub(crate) const fn is_unlogged(&self) -> bool {
        is_unlogged(self.flags, self.logged)
    }
}

/// DRBD writes no activity log as long as all bits are set, and sets them in memory only when it
/// attaches fresh metadata: then nothing on disk tells of a write. A log that a tool has applied
/// and emptied is another matter.
pub(crate) const fn is_unlogged(flags: Flags, logged: bool) -> bool {
    flags.has(Flags::PRIMARY | Flags::CRASHED_PRIMARY) && !flags.has(Flags::AL_CLEAN) && !logged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            version: Version::V09,
            rotated: true,
            logged: true,
            node_id: Some(1),
            flags: Flags(0x453),
            size: 0x0102_0304_0506_0000,
            current_uuid: 0x1112_1314_1516_1718,
            device_uuid: 0x2122_2324_2526_2728,
            geometry: Geometry {
                md_sectors: 0x3132_3334,
                al_offset: -64,
                bm_offset: -0x0102,
                al_stripes: 2,
                al_stripe_blocks: 8,
                slots: 3,
                block_len: 65536,
            },
            slots: vec![(0, 2), (1, 31)],
        }
    }

    /// The bytes are in the trust folders of others: they never change.
    #[test]
    fn the_bytes_are_pinned() {
        let bytes = record().encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = concat!(
            "44425201",
            "09010100",
            "01000000",
            "53040000",
            "0000060504030201",
            "1817161514131211",
            "2827262524232221",
            "34333231",
            "c0ffffff",
            "fefeffff",
            "02000000",
            "08000000",
            "03000000",
            "00000100",
            "0002",
            "011f"
        );
        assert_eq!(hex, expected);
        assert_eq!(Record::decode(&bytes), Some(record()));
        let without = Record {
            version: Version::V08,
            rotated: false,
            logged: false,
            node_id: None,
            slots: Vec::new(),
            ..record()
        };
        assert_eq!(Record::decode(&without.encode()), Some(without));
    }

    #[test]
    fn what_is_no_record_is_none() {
        let bytes = record().encode();
        for len in 0..FIXED_LEN {
            assert_eq!(Record::decode(&bytes[..len]), None, "{len}");
        }
        // Half a slot; another version; a format, a flag and filling that there are not.
        assert_eq!(Record::decode(&bytes[..bytes.len() - 1]), None);
        for (at, value) in [(0, b'X'), (3, 2), (4, 7), (5, 2), (6, 2), (7, 1)] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            assert_eq!(Record::decode(&bytes), None, "byte {at}");
        }
        let long = [&bytes[..], &[0; RECORD_LEN_MAX]].concat();
        assert_eq!(Record::decode(&long), None);
        // The fullest one fits.
        let all = (0..31).map(|slot| (slot, slot + 1)).collect();
        assert!(Record { slots: all, ..record() }.encode().len() <= RECORD_LEN_MAX);
    }
}
