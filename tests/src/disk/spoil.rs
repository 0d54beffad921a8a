//! What befalls a disk besides a crash: writes that do not arrive, and disks that are put back.

use std::{collections::BTreeSet, io, sync::Arc};

use driftline_extent::{Extent, Volume};

use super::{DiskState, Image, Inner, Operation, PAGE_LEN, World};

/// What becomes of a write on its way from memory to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spoil {
    /// It never arrives, and the disk says that it did.
    Lose,
    /// This bit of it, modulo its length, arrives as the other one.
    Flip(u64),
}

/// What arrives of an operation.
pub(super) fn arrives(operation: Operation, spoil: Option<Spoil>) -> Option<Operation> {
    match (operation, spoil) {
        (Operation::Write(..), Some(Spoil::Lose)) => None,
        (Operation::Write(offset, bytes), Some(Spoil::Flip(bit))) if !bytes.is_empty() => {
            let mut bytes = bytes.to_vec();
            let bit = bit % (8 * bytes.len() as u64);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
            Some(Operation::Write(offset, bytes.into()))
        }
        (operation, _) => Some(operation),
    }
}

impl Inner {
    /// What is to befall this operation of this disk.
    pub(super) fn spoil_of(&mut self, name: &'static str, operation: &Operation) -> Option<Spoil> {
        // The operation has begun, and so was counted.
        let due = self.spoil_at.is_some_and(|(at, _)| at < self.operations);
        if !due || !matches!(operation, Operation::Write(..)) {
            return None;
        }
        self.spoilt = Some(name);
        self.spoil_at.take().map(|(_, spoil)| spoil)
    }
}

/// Some disks of a [`World`] as they were at some time.
#[derive(Clone, Debug)]
pub struct Saved(Vec<(&'static str, DiskState)>);

impl World {
    /// Spoils the first write that comes after `n` more operations.
    pub fn spoil_at(&self, n: u64, spoil: Spoil) {
        let mut inner = self.lock();
        inner.spoilt = None;
        inner.spoil_at = Some((inner.operations + n, spoil));
    }

    /// The disk whose write was spoilt, if one was since [`spoil_at`](Self::spoil_at).
    pub fn spoilt(&self) -> Option<&'static str> {
        self.lock().spoilt
    }

    /// Remembers what these disks hold.
    pub fn save(&self, names: &[&'static str]) -> Saved {
        let inner = self.lock();
        let disk = |name: &&'static str| Some((*name, inner.disks.get(name)?.clone()));
        Saved(names.iter().filter_map(disk).collect())
    }

    /// Puts back those of the remembered disks that `which` names: a backup is restored.
    pub fn put_back(&self, saved: &Saved, which: impl Fn(&str) -> bool) {
        let mut inner = self.lock();
        for (name, disk) in saved.0.iter().filter(|(name, _)| which(name)) {
            inner.disks.insert(name, disk.clone());
        }
    }

    /// Something else stands in a disk's place.
    pub(crate) fn replace(&self, name: &'static str, image: &Image) {
        let mut inner = self.lock();
        let disk = inner.disks.entry(name).or_default();
        (disk.cache, disk.durable) = (image.clone(), image.clone());
        disk.pending.clear();
    }

    /// Empties a file, as if it had been removed.
    pub fn remove(&self, name: &str) {
        if let Some(disk) = self.lock().disks.get_mut(name) {
            *disk = DiskState::default();
        }
    }

    /// How long a disk is after a loss of power, if nothing lasts that was not synced.
    pub(crate) fn lasting_len(&self, name: &str) -> u64 {
        self.lock().disks.get(name).map_or(0, |disk| disk.durable.len)
    }

    /// What a reader of this disk sees.
    pub(crate) fn image(&self, name: &str) -> Image {
        self.lock().disks.get(name).map_or_else(Image::default, |disk| disk.cache.clone())
    }
}

impl Image {
    /// Whether the first `len` bytes of a page are these of the other one; pages that are absent
    /// are zeros.
    pub(crate) fn same_page(&self, other: &Self, page: u64, len: usize) -> bool {
        match (self.pages.get(&page), other.pages.get(&page)) {
            (None, None) => true,
            (Some(one), Some(two)) => Arc::ptr_eq(one, two) || one[..len] == two[..len],
            (Some(one), None) | (None, Some(one)) => one[..len].iter().all(|byte| *byte == 0),
        }
    }

    /// The pages, below the smaller of both ends, in which two images differ.
    pub(crate) fn differing(&self, other: &Self) -> Vec<u64> {
        let end = self.len.min(other.len);
        let pages: BTreeSet<u64> = self.pages.keys().chain(other.pages.keys()).copied().collect();
        let within = |page: &u64| end.saturating_sub(page * PAGE_LEN).min(PAGE_LEN) as usize;
        pages.into_iter().filter(|page| !self.same_page(other, *page, within(page))).collect()
    }

    /// Whether both have the same length and the same bytes.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.len == other.len && self.differing(other).is_empty()
    }

    /// Makes these bytes those of `other`.
    pub(crate) fn take(&mut self, other: &Self, extent: Extent) {
        if let Some(extent) = extent.clamp(self.len.min(other.len)) {
            for piece in extent.pieces(PAGE_LEN) {
                let mut bytes = vec![0; piece.len() as usize];
                other.read(piece.offset(), &mut bytes);
                if bytes.iter().all(|byte| *byte == 0) {
                    self.zero(piece.offset()..piece.end());
                } else {
                    self.write(piece.offset(), &bytes);
                }
            }
        }
    }
}

impl Volume for Image {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read(offset, buf);
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        Ok(Self::next_data(self, from))
    }
}
