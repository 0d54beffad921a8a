//! Fixed little-endian layouts: the few shapes that the state and the journal share.
//!
//! A generation takes 40 bytes: a tag (0 none, 1 ZFS guid, 2 content root, 3 DRBD UUID), 7
//! bytes of zero, then 32 bytes of which a guid or UUID uses the first 8. An optional volume id
//! takes 24: a tag (0 none, 1 some), 7 bytes of zero, 16 of id. Unused bytes are zero.

use driftline_extent::{Generation, ReplicaId, Root, VolumeId};

use crate::Problem;

/// Bytes of a BLAKE3 checksum.
pub(crate) const CHECKSUM_LEN: usize = 32;

/// Builds a layout field by field.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u128(self, value: u128) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn generation(self, generation: Option<Generation>) -> Result<Self, Problem> {
        let (tag, bytes) = match generation {
            None => (0, [0; 32]),
            Some(Generation::Zfs(guid)) => (1, padded(guid)),
            Some(Generation::Content(root)) => (2, root.0),
            Some(Generation::Drbd(uuid)) => (3, padded(uuid)),
            Some(other) => return Err(Problem::UnknownGeneration(other)),
        };
        Ok(self.u64(tag).bytes(&bytes))
    }

    pub(crate) fn volume(self, volume: Option<VolumeId>) -> Self {
        self.u64(u64::from(volume.is_some())).bytes(&volume.map_or([0; 16], |volume| volume.0))
    }

    /// Fills with zeros up to `len`.
    pub(crate) fn pad(mut self, len: usize) -> Self {
        self.0.resize(len, 0);
        self
    }

    /// Ends the layout with the BLAKE3 hash of all of it.
    pub(crate) fn checksummed(self) -> Vec<u8> {
        let checksum = *blake3::hash(&self.0).as_bytes();
        self.bytes(&checksum).0
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// A number in the place of a generation's 32 bytes.
fn padded(number: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The part that a checksum at the end covers; `None` if it does not fit.
pub(crate) fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_LEN>()?;
    (blake3::hash(body).as_bytes() == checksum).then_some(body)
}

/// Takes a layout apart field by field; `None` where it ends or means nothing.
#[derive(Clone)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl Reader<'_> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn replica(&mut self) -> Option<ReplicaId> {
        self.array().map(ReplicaId)
    }

    /// The generation, if there is one; the outer `None` is for a tag without a meaning.
    pub(crate) fn generation(&mut self) -> Option<Option<Generation>> {
        let tag = self.u64()?;
        let bytes: [u8; 32] = self.array()?;
        match tag {
            0 => Some(None),
            1 => Reader(&bytes).u64().map(|guid| Some(Generation::Zfs(guid))),
            2 => Some(Some(Generation::Content(Root(bytes)))),
            // Bit 0 is no part of the name.
            3 => {
                Reader(&bytes).u64().filter(|uuid| uuid & 1 == 0).map(|u| Some(Generation::Drbd(u)))
            }
            _ => None,
        }
    }

    /// The volume id, if there is one; the outer `None` is for a tag without a meaning.
    pub(crate) fn volume(&mut self) -> Option<Option<VolumeId>> {
        let tag = self.u64()?;
        let id = VolumeId(self.array()?);
        match tag {
            0 => Some(None),
            1 => Some(Some(id)),
            _ => None,
        }
    }
}
