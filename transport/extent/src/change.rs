//! What a source says has changed, and how far that is believed.

use crate::{Extent, ExtentSet, Generation, Reason};

/// One change of a volume, as a source yields it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// These bytes stand at `offset` now. Never empty.
    Data {
        /// Where the bytes stand in the volume.
        offset: u64,
        /// The bytes, uncompressed.
        bytes: Vec<u8>,
    },
    /// This range reads as zeros now. It may have been zero before: a source that knows
    /// only holes (ZFS) says so of every hole near a change.
    Zero(Extent),
    /// The next bytes of an opaque stream ([`PlanKind::Stream`](crate::PlanKind::Stream)): at
    /// least one, and at most [`PART_LEN_MAX`](crate::PART_LEN_MAX). All parts of an increment,
    /// joined, are the stream.
    Part(Vec<u8>),
}

impl Change {
    /// The range of the volume that the change covers; `None` for a part of a stream, which
    /// covers none that is known, and for malformed, empty data.
    pub fn extent(&self) -> Option<Extent> {
        match self {
            Self::Data { offset, bytes } => Extent::new(*offset, bytes.len() as u64),
            Self::Zero(extent) => Some(*extent),
            Self::Part(_) => None,
        }
    }
}

/// How far a change map is believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Its continuity from base to tip is proven by the storage's own identities.
    Proven,
    /// It is not, for this reason.
    Suspect(Reason),
}

impl Standing {
    /// The word for the standing, as printed.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Suspect(_) => "suspect",
        }
    }

    /// Why the map is not believed, if it is not.
    pub const fn reason(&self) -> Option<Reason> {
        match self {
            Self::Proven => None,
            Self::Suspect(reason) => Some(*reason),
        }
    }
}

/// Which bytes differ between two generations of a volume, according to its storage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangeMap {
    /// The generation that the map starts from; `None` for a map of a whole volume.
    pub base: Option<Generation>,
    /// The generation that the map leads to, where the storage names it.
    pub tip: Option<Generation>,
    /// Size of the volume at the tip; `None` where the storage did not say (a ZFS
    /// increment that does not resize).
    pub size: Option<u64>,
    /// Every changed or zero extent starts and ends on a multiple of this, except at the
    /// end of the volume.
    pub granularity: u64,
    /// Ranges whose content may differ. Disjoint from `zero`.
    pub changed: ExtentSet,
    /// Ranges that read as zeros at the tip, changed or not: never to be counted as delta.
    pub zero: ExtentSet,
    /// How far all this is believed.
    pub standing: Standing,
}

impl ChangeMap {
    /// Coarsens the map until it is made of at most `extents_max` extents, so that its
    /// memory is bounded for any volume. The result claims no less changed and no more zero.
    pub fn coarsen(&mut self, extents_max: usize) {
        while self.changed.extent_count() + self.zero.extent_count() > extents_max {
            let Some(granularity) = self.granularity.checked_mul(2) else { return };
            // What is no longer claimed zero must be claimed changed instead.
            let zero = self.zero.align_in(granularity);
            let unclaimed = self.zero.subtract(&zero);
            self.changed = self.changed.union(&unclaimed).align_out(granularity);
            self.zero = zero.subtract(&self.changed);
            self.granularity = granularity;
        }
        if let Some(size) = self.size {
            self.changed = self.changed.clamp(size);
            self.zero = self.zero.clamp(size);
        }
    }
}
