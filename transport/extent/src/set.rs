//! A set of bytes as sorted, disjoint, coalesced extents.

use std::fmt;

use crate::Extent;

/// A set of bytes of a volume, kept as extents that are sorted and never touch.
///
/// Appending in ascending order is O(1), a membership test O(log n), the set
/// operations O(n + m). Inserting out of order moves the tail of a vector; whoever has
/// many unsorted extents collects them (`FromIterator`), which sorts once.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ExtentSet {
    /// Invariant: for neighbours `a`, `b`: `a.end() < b.offset()`.
    extents: Vec<Extent>,
}

impl ExtentSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self { extents: Vec::new() }
    }

    /// Adds every byte of `extent`.
    pub fn insert(&mut self, extent: Extent) {
        // Streams arrive in order: the common case touches only the last extent.
        match self.extents.last_mut() {
            None => return self.extents.push(extent),
            Some(last) if last.end() < extent.offset() => return self.extents.push(extent),
            Some(last) if last.offset() <= extent.offset() => {
                *last = span(last, &extent);
                return;
            }
            Some(_) => {}
        }
        let touched = self.touching(&extent);
        let merged = self.extents[touched.clone()].iter().fold(extent, |sum, e| span(&sum, e));
        self.extents.splice(touched, [merged]);
    }

    /// Removes every byte of `extent`.
    pub fn remove(&mut self, extent: Extent) {
        let touched = self.touching(&extent);
        let kept: Vec<Extent> = self.extents[touched.clone()]
            .iter()
            .flat_map(|e| {
                let (below, rest) = e.split_at(extent.offset());
                let above = rest.and_then(|r| r.split_at(extent.end()).1);
                [below, above]
            })
            .flatten()
            .collect();
        self.extents.splice(touched, kept);
    }

    /// The indices of extents that overlap or touch `extent`.
    fn touching(&self, extent: &Extent) -> std::ops::Range<usize> {
        let start = self.extents.partition_point(|e| e.end() < extent.offset());
        let end = self.extents.partition_point(|e| e.offset() <= extent.end());
        start..end
    }

    /// The bytes that are in either.
    pub fn union(&self, other: &Self) -> Self {
        let (mut a, mut b) = (self.iter().peekable(), other.iter().peekable());
        let mut out = Self::new();
        loop {
            let next = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) if x.offset() <= y.offset() => a.next(),
                (_, Some(_)) => b.next(),
                (Some(_), None) => a.next(),
                (None, None) => return out,
            };
            out.extend(next);
        }
    }

    /// The bytes that are in both.
    pub fn intersect(&self, other: &Self) -> Self {
        let (mut i, mut j) = (0, 0);
        let mut out = Self::new();
        while let (Some(a), Some(b)) = (self.extents.get(i), other.extents.get(j)) {
            out.extend(a.intersect(b));
            if a.end() <= b.end() {
                i += 1;
            } else {
                j += 1;
            }
        }
        out
    }

    /// The bytes of this set that are not in `other`.
    pub fn subtract(&self, other: &Self) -> Self {
        let mut j = 0;
        let mut out = Self::new();
        for extent in self {
            let mut rest = Some(extent);
            // Extents of `other` wholly below this one are below all that follow.
            while other.extents.get(j).is_some_and(|o| o.end() <= extent.offset()) {
                j += 1;
            }
            for hole in other.extents[j..].iter().take_while(|o| o.offset() < extent.end()) {
                let Some(current) = rest else { break };
                let (below, above) = current.split_at(hole.offset());
                out.extend(below);
                rest = above.and_then(|a| a.split_at(hole.end()).1);
            }
            out.extend(rest);
        }
        out
    }

    /// Every extent grown to multiples of `granularity`: a superset.
    ///
    /// # Panics
    /// If `granularity` is zero.
    pub fn align_out(&self, granularity: u64) -> Self {
        // The order of starts is kept, so coalescing while appending is enough.
        self.iter().map(|e| e.align_out(granularity)).collect()
    }

    /// Every extent shrunk to multiples of `granularity`: a subset.
    ///
    /// # Panics
    /// If `granularity` is zero.
    pub fn align_in(&self, granularity: u64) -> Self {
        self.iter().filter_map(|e| e.align_in(granularity)).collect()
    }

    /// The part of the set below `size`.
    pub fn clamp(&self, size: u64) -> Self {
        self.iter().map_while(|e| e.clamp(size)).collect()
    }

    /// The parts of the set below and from `at` on.
    pub fn split_at(&self, at: u64) -> (Self, Self) {
        let (mut below, mut above) = (Self::new(), Self::new());
        for extent in self {
            let (b, a) = extent.split_at(at);
            below.extend(b);
            above.extend(a);
        }
        (below, above)
    }

    /// The set cut at every multiple of `granularity`, in ascending order.
    ///
    /// # Panics
    /// If `granularity` is zero.
    pub fn pieces(&self, granularity: u64) -> impl Iterator<Item = Extent> + '_ {
        self.iter().flat_map(move |e| e.pieces(granularity))
    }

    /// Whether the byte at `offset` is in the set.
    pub fn contains(&self, offset: u64) -> bool {
        let i = self.extents.partition_point(|e| e.end() <= offset);
        self.extents.get(i).is_some_and(|e| e.contains(offset))
    }

    /// The first extent at or after `at`, without what it has below `at`.
    pub fn first_from(&self, at: u64) -> Option<Extent> {
        let i = self.extents.partition_point(|e| e.end() <= at);
        self.extents.get(i).and_then(|e| e.split_at(at).1)
    }

    /// Whether every byte of `extent` is in the set.
    pub fn covers(&self, extent: &Extent) -> bool {
        let i = self.extents.partition_point(|e| e.end() <= extent.offset());
        self.extents.get(i).is_some_and(|e| e.covers(extent))
    }

    /// The extents in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents.iter().copied()
    }

    /// How many extents the set is made of.
    pub fn extent_count(&self) -> usize {
        self.extents.len()
    }

    /// How many bytes the set holds.
    pub fn byte_count(&self) -> u64 {
        self.extents.iter().map(Extent::len).sum()
    }

    /// Whether the set holds no byte.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// One past the last byte of the set; zero if it is empty.
    pub fn end(&self) -> u64 {
        self.extents.last().map_or(0, Extent::end)
    }
}

/// The extent that reaches from the lower start to the higher end.
fn span(a: &Extent, b: &Extent) -> Extent {
    Extent::from_bounds(a.offset().min(b.offset()), a.end().max(b.end())).unwrap_or(*a)
}

impl Extend<Extent> for ExtentSet {
    fn extend<I: IntoIterator<Item = Extent>>(&mut self, extents: I) {
        for extent in extents {
            self.insert(extent);
        }
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut unsorted: Vec<Extent> = extents.into_iter().collect();
        unsorted.sort_unstable_by_key(Extent::offset);
        let mut set = Self::new();
        set.extend(unsorted);
        set
    }
}

impl<'a> IntoIterator for &'a ExtentSet {
    type Item = Extent;
    type IntoIter = std::iter::Copied<std::slice::Iter<'a, Extent>>;

    fn into_iter(self) -> Self::IntoIter {
        self.extents.iter().copied()
    }
}

impl fmt::Debug for ExtentSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.extents).finish()
    }
}
