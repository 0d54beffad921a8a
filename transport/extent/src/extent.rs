//! A non-empty range of bytes of a volume.

use std::fmt;

/// A non-empty byte range `offset..offset + len` that does not overflow `u64`.
///
/// Both properties hold by construction, so no user of an extent checks them again.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    offset: u64,
    /// Exclusive; always greater than `offset`.
    end: u64,
}

impl Extent {
    /// The extent of `len` bytes at `offset`; `None` if it is empty or ends beyond `u64::MAX`.
    pub const fn new(offset: u64, len: u64) -> Option<Self> {
        match offset.checked_add(len) {
            Some(end) => Self::from_bounds(offset, end),
            None => None,
        }
    }

    /// The extent from `start` up to, but not including, `end`; `None` if that is empty.
    pub const fn from_bounds(start: u64, end: u64) -> Option<Self> {
        if start < end { Some(Self { offset: start, end }) } else { None }
    }

    /// First byte.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// One past the last byte.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Length in bytes, never zero.
    #[expect(clippy::len_without_is_empty, reason = "an extent is never empty")]
    pub const fn len(&self) -> u64 {
        self.end - self.offset
    }

    /// Whether the byte at `offset` lies inside.
    pub const fn contains(&self, offset: u64) -> bool {
        self.offset <= offset && offset < self.end
    }

    /// Whether every byte of `other` lies inside.
    pub const fn covers(&self, other: &Self) -> bool {
        self.offset <= other.offset && other.end <= self.end
    }

    /// The bytes that both have.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        Self::from_bounds(self.offset.max(other.offset), self.end.min(other.end))
    }

    /// The part that lies below `size`, as of a volume of that size.
    pub fn clamp(&self, size: u64) -> Option<Self> {
        Self::from_bounds(self.offset, self.end.min(size))
    }

    /// The smallest extent on multiples of `granularity` that covers this one.
    ///
    /// An end that would not fit in `u64` becomes `u64::MAX`: nothing is lost.
    ///
    /// # Panics
    /// If `granularity` is zero.
    pub fn align_out(&self, granularity: u64) -> Self {
        let offset = self.offset - self.offset % granularity;
        let end = self.end.checked_next_multiple_of(granularity).unwrap_or(u64::MAX);
        Self { offset, end }
    }

    /// The largest extent on multiples of `granularity` inside this one, if there is any.
    ///
    /// # Panics
    /// If `granularity` is zero.
    pub fn align_in(&self, granularity: u64) -> Option<Self> {
        let start = self.offset.checked_next_multiple_of(granularity)?;
        Self::from_bounds(start, self.end - self.end % granularity)
    }

    /// The parts below and from `at` on.
    pub fn split_at(&self, at: u64) -> (Option<Self>, Option<Self>) {
        let at = at.clamp(self.offset, self.end);
        (Self::from_bounds(self.offset, at), Self::from_bounds(at, self.end))
    }

    /// The extent cut at every multiple of `granularity`, in order.
    ///
    /// # Panics
    /// If `granularity` is zero.
    pub fn pieces(&self, granularity: u64) -> impl Iterator<Item = Self> + use<> {
        assert!(granularity > 0, "an extent cannot be cut into pieces of no length");
        let end = self.end;
        let mut next = self.offset;
        std::iter::from_fn(move || {
            let boundary = (next - next % granularity).saturating_add(granularity);
            let piece = Self::from_bounds(next, boundary.min(end))?;
            next = piece.end;
            Some(piece)
        })
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len())
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at offset {}", self.len(), self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, len: u64) -> Extent {
        Extent::new(offset, len).unwrap()
    }

    #[test]
    fn empty_and_overflowing_extents_cannot_be_made() {
        assert_eq!(Extent::new(5, 0), None);
        assert_eq!(Extent::new(u64::MAX, 1), None);
        assert_eq!(Extent::new(u64::MAX - 1, 1).map(|e| e.end()), Some(u64::MAX));
        assert_eq!(Extent::from_bounds(7, 7), None);
        assert_eq!(Extent::from_bounds(8, 7), None);
    }

    #[test]
    fn alignment_outwards_covers_and_inwards_is_covered() {
        assert_eq!(extent(5, 10).align_out(8), extent(0, 16));
        assert_eq!(extent(5, 11).align_in(8), Some(extent(8, 8)));
        assert_eq!(extent(9, 6).align_in(8), None);
        assert_eq!(extent(u64::MAX - 2, 1).align_out(4096).end(), u64::MAX);
        assert_eq!(extent(u64::MAX - 2, 1).align_in(4096), None);
    }

    #[test]
    fn pieces_end_on_every_multiple() {
        let pieces: Vec<_> = extent(5, 20).pieces(8).collect();
        assert_eq!(pieces, [extent(5, 3), extent(8, 8), extent(16, 8), extent(24, 1)]);
        let last = Extent::from_bounds(u64::MAX - 3, u64::MAX).unwrap();
        assert_eq!(last.pieces(8).collect::<Vec<_>>(), [last]);
    }

    #[test]
    fn split_outside_gives_one_side_only() {
        assert_eq!(extent(4, 4).split_at(2), (None, Some(extent(4, 4))));
        assert_eq!(extent(4, 4).split_at(9), (Some(extent(4, 4)), None));
        assert_eq!(extent(4, 4).split_at(6), (Some(extent(4, 2)), Some(extent(6, 2))));
    }
}
