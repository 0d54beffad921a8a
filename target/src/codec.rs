//! Fixed little-endian layouts: the few shapes that the state and the journal share.
//!
//! A generation takes 40 bytes: a tag, then 32 bytes of which the name uses the first. The tag is
//! `u64` 0 for none, 1 for a ZFS guid, 2 for a content root, 3 for a DRBD UUID; of any other kind it
//! is one byte, 64 and the length of the name, and 7 bytes with the letters of its scheme. An
//! optional volume id takes 24: a tag (0 none, 1 some), 7 bytes of zero, 16 of id. Unused bytes are
//! zero.

use driftline_extent::{Generation, ReplicaId, Scheme, VolumeId};

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

    pub(crate) fn generation(self, generation: Option<Generation>) -> Self {
        let Some(generation) = generation else { return self.bytes(&[0; 40]) };
        let (scheme, name) = (generation.scheme(), generation.name());
        let tagged = match scheme.code() {
            Some(code) => self.u64(code.into()),
            None => {
                let padded = array_of::<{ Scheme::LEN_MAX }>(scheme.as_str().as_bytes());
                self.bytes(&[OPEN_TAG + name.len() as u8]).bytes(&padded)
            }
        };
        tagged.bytes(&array_of::<{ Generation::LEN_MAX }>(name))
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

/// What the length of a name is added to, where the scheme follows in letters.
const OPEN_TAG: u8 = 64;

/// The bytes, and zeros behind them.
fn array_of<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut padded = [0; N];
    padded[..bytes.len()].copy_from_slice(bytes);
    padded
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
        let tag: [u8; 8] = self.array()?;
        let name: [u8; Generation::LEN_MAX] = self.array()?;
        let number = u64::from_le_bytes(tag);
        if number == 0 {
            return Some(None);
        }
        let coded = u8::try_from(number).ok().and_then(Scheme::of_code);
        let (scheme, len) = match coded {
            Some(coded) => coded,
            None => {
                let [len, letters @ ..] = tag;
                let letters = str::from_utf8(&letters).ok()?.trim_end_matches('\0');
                // One generation is written in one way.
                let scheme = Scheme::new(letters).filter(|scheme| scheme.code().is_none())?;
                (scheme, len.checked_sub(OPEN_TAG)?.into())
            }
        };
        let (name, rest) = name.split_at_checked(len)?;
        let is_padded = rest.iter().all(|byte| *byte == 0);
        Generation::new(scheme, name).filter(|_| is_padded).map(Some)
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
