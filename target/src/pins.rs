//! What a target has told of and keeps, between its answer and the item's turn.
//!
//! A hash that was told is of bytes that stay in memory, and so is content that was found
//! somewhere else: whatever is done meanwhile to the place that they were read from, what an item
//! is made of is what the answer was about.

use std::collections::HashMap;

use driftline_chunking::ChunkKey;
use driftline_extent::{GrainMask, Item};

use crate::{
    Problem,
    chunks::{Patch, Valid, validate},
};

/// Bytes that are kept at most: as much as may be announced and not applied. Whoever announces
/// more gets the answer that all is lacking.
const PINNED_MAX: usize = 32 << 20;

/// What is known of the data of an item.
#[derive(Debug)]
pub(crate) enum Pin {
    /// Its old version, whose hashes were told: that of its own place, or of another.
    Old { bytes: Vec<u8>, own: bool },
    /// All of it. `changed`: the grains in which it is not what stands at its own place, if the
    /// others are known to be that.
    New { bytes: Vec<u8>, changed: Option<GrainMask> },
}

impl Pin {
    const fn len(&self) -> usize {
        match self {
            Self::Old { bytes, .. } | Self::New { bytes, .. } => bytes.len(),
        }
    }
}

/// The promises, by chunk.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    chunks: HashMap<u64, Pin>,
    len: usize,
}

impl Pins {
    /// Keeps one, if there is room.
    pub(crate) fn keep(&mut self, patch: &Patch, promise: Pin) -> bool {
        self.take(patch);
        if self.len + promise.len() > PINNED_MAX {
            return false;
        }
        self.len += promise.len();
        self.chunks.insert(patch.index, promise);
        true
    }

    /// Takes the one for this item away.
    pub(crate) fn take(&mut self, patch: &Patch) -> Option<Pin> {
        let promise = self.chunks.remove(&patch.index)?;
        self.len -= promise.len();
        (promise.len() as u64 == patch.data.byte_count()).then_some(promise)
    }

    /// All of the item's data, if it was promised.
    pub(crate) fn take_new(&mut self, patch: &Patch) -> Option<(Vec<u8>, Option<GrainMask>)> {
        match self.take(patch) {
            Some(Pin::New { bytes, changed }) => Some((bytes, changed)),
            Some(Pin::Old { .. }) | None => None,
        }
    }

    /// Puts the grains that came into the old version, and says whether that is what the item
    /// names.
    pub(crate) fn patch_item(
        &mut self,
        key: &ChunkKey,
        item: &Item,
        grains: GrainMask,
        data: &[u8],
    ) -> Result<bool, Problem> {
        let (Valid::Patch(patch), Some(_)) = (validate(item)?, item.narrowable()) else {
            return Err(Problem::Malformed("an item is narrowed that cannot be"));
        };
        let made = self.patch(&patch, grains, data, |bytes| patch.is_named(key, bytes));
        made.ok_or(Problem::Malformed("other grains came than were announced"))
    }

    /// The same of what was validated. `None`: they are not the grains of the item.
    fn patch(
        &mut self,
        patch: &Patch,
        grains: GrainMask,
        mut data: &[u8],
        is_named: impl FnOnce(&[u8]) -> bool,
    ) -> Option<bool> {
        let Some(Pin::Old { mut bytes, own }) = self.take(patch) else { return Some(false) };
        for (_, range) in patch.data.by_grain().filter(|(grain, _)| grain.is_within(grains)) {
            let (now, later) = data.split_at_checked(range.len())?;
            bytes[range].copy_from_slice(now);
            data = later;
        }
        if !data.is_empty() {
            return None;
        }
        let changed = own.then_some(grains);
        Some(is_named(&bytes) && self.keep(patch, Pin::New { bytes, changed }))
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use driftline_extent::{BlockMask, ChunkId};

    use super::*;

    const fn patch(index: u64) -> Patch {
        Patch { index, data: BlockMask::ALL, zero: BlockMask::NONE, id: ChunkId([1; 32]) }
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut pins = Pins::default();
        let old = || Pin::Old { bytes: vec![0; 65536], own: true };
        for index in 0..512 {
            assert!(pins.keep(&patch(index), old()));
        }
        assert!(!pins.keep(&patch(512), old()));
        // The same item again takes the place of the first.
        assert!(pins.keep(&patch(3), old()));
        assert!(pins.take(&patch(7)).is_some() && pins.take(&patch(7)).is_none());
        assert!(pins.keep(&patch(512), old()));
        (0..=512).for_each(|index| drop(pins.take(&patch(index))));
        assert_eq!((pins.len, pins.chunks.len()), (0, 0));
    }

    #[test]
    fn an_old_version_is_no_data() {
        let mut pins = Pins::default();
        pins.keep(&patch(0), Pin::Old { bytes: vec![3; 65536], own: true });
        assert!(pins.take_new(&patch(0)).is_none());
        // Nor is what was kept for an item of another length.
        pins.keep(&patch(0), Pin::New { bytes: vec![3; 65536], changed: None });
        let other = Patch { data: BlockMask(0xffff), ..patch(0) };
        assert!(pins.take_new(&other).is_none());
    }

    #[test]
    fn grains_make_an_item_or_nothing() {
        let (first, last) = (GrainMask(1), GrainMask(1 << 15));
        for (grains, data, made) in [
            (first.union(last), 8192, Some(true)),
            (first, 4096, Some(false)),
            (first, 4095, None),
            (first, 4097, None),
        ] {
            let mut pins = Pins::default();
            pins.keep(&patch(0), Pin::Old { bytes: vec![3; 65536], own: true });
            let is_new = |bytes: &[u8]| bytes[0] == 4 && bytes[4096] == 3 && bytes[65535] == 4;
            assert_eq!(pins.patch(&patch(0), grains, &vec![4; data], is_new), made);
            let new = pins.take_new(&patch(0));
            assert_eq!(
                new.map(|(_, changed)| changed),
                (made == Some(true)).then_some(Some(grains))
            );
        }
    }
}
