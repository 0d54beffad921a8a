//! How much the disks of a world may store.

use std::{collections::BTreeSet, io};

use driftline_extent::Extent;

use super::{DiskState, FakeDisk, Image, Inner, Operation, PAGE_LEN, World};

/// The room that there is.
#[derive(Clone, Default, Debug)]
pub(super) struct Space {
    /// From this operation on, so many pages more than are stored then.
    due: Option<(u64, u64)>,
    /// Pages that may be stored.
    limit: Option<u64>,
    /// Whether a write failed for lack of room.
    lacked: bool,
}

impl World {
    /// After `n` more operations there is room for `pages` more pages on all disks together.
    pub fn fill_up(&self, n: u64, pages: u64) {
        let mut inner = self.lock();
        inner.space = Space { due: Some((inner.operations + n, pages)), ..Space::default() };
    }

    /// There is as much room again as anybody wants.
    pub fn make_room(&self) {
        self.lock().space = Space::default();
    }

    /// Whether a write failed for lack of room since [`fill_up`](Self::fill_up).
    pub fn lacked_room(&self) -> bool {
        self.lock().space.lacked
    }
}

impl FakeDisk {
    /// Sets pages aside that are written later.
    pub(super) fn set_aside(&self, ranges: &[Extent]) -> io::Result<()> {
        let mut inner = self.world.lock();
        let Some(disk) = inner.disks.get(self.name).filter(|disk| disk.is_stored()) else {
            return Ok(());
        };
        let wanted: BTreeSet<u64> = ranges
            .iter()
            .flat_map(|range| range.offset() / PAGE_LEN..range.end().div_ceil(PAGE_LEN))
            .filter(|page| !disk.cache.pages.contains_key(page) && !disk.aside.contains(page))
            .collect();
        inner.check_room(wanted.len() as u64).map_err(|(error, _)| error)?;
        if let Some(disk) = inner.disks.get_mut(self.name) {
            disk.aside.extend(wanted);
        }
        Ok(())
    }
}

impl Image {
    /// How many pages would be stored after a write that are not now.
    fn new_pages(&self, offset: u64, len: usize, aside: &BTreeSet<u64>) -> u64 {
        let parts = Self::parts(offset..offset + len as u64);
        let is_new = |page: &u64| !self.pages.contains_key(page) && !aside.contains(page);
        parts.filter(|(page, _)| is_new(page)).count() as u64
    }
}

impl Inner {
    fn stored(&self) -> u64 {
        self.disks.values().map(DiskState::stored).sum()
    }

    /// Whether there is room for what an operation stores; otherwise a part of it may be done.
    pub(super) fn room_for(
        &mut self,
        name: &str,
        operation: &Operation,
    ) -> Result<(), (io::Error, bool)> {
        // The operation has begun, and so was counted.
        if let Some((_, pages)) = self.space.due.take_if(|(at, _)| *at < self.operations) {
            self.space.limit = Some(self.stored() + pages);
        }
        let Operation::Write(offset, bytes) = operation else { return Ok(()) };
        let disk = self.disks.get(name).filter(|disk| disk.is_stored());
        let wanted = disk.map_or(0, |disk| disk.cache.new_pages(*offset, bytes.len(), &disk.aside));
        self.check_room(wanted)
    }

    fn check_room(&mut self, wanted: u64) -> Result<(), (io::Error, bool)> {
        let Some(limit) = self.space.limit.filter(|_| wanted > 0) else { return Ok(()) };
        if self.stored() + wanted <= limit {
            return Ok(());
        }
        self.space.lacked = true;
        Err((io::Error::new(io::ErrorKind::StorageFull, "the disk is full"), false))
    }
}

impl DiskState {
    /// Pages that it has of its file system.
    fn stored(&self) -> u64 {
        if !self.is_stored() {
            return 0;
        }
        let unwritten = self.aside.iter().filter(|page| !self.cache.pages.contains_key(page));
        self.cache.pages.len() as u64 + unwritten.count() as u64
    }

    fn is_stored(&self) -> bool {
        !self.fixed && self.keeping.is_none()
    }

    /// What is made a hole, or cut off, is not set aside any more.
    pub(super) fn give_back(&mut self, operation: &Operation) {
        let range = match operation {
            Operation::Write(..) => return,
            Operation::Zero(extent) => extent.offset().div_ceil(PAGE_LEN)..extent.end() / PAGE_LEN,
            // What lies beyond the end may be set aside for what grows.
            Operation::SetLen(len) if *len >= self.cache.len => return,
            Operation::SetLen(len) => len.div_ceil(PAGE_LEN)..u64::MAX,
        };
        self.aside.retain(|page| !range.contains(page));
    }
}
