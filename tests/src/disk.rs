//! The fake disks: in memory, and as unreliable as a test asks for.
//!
//! # Fault model
//!
//! * Every disk has a *cache*, which reads see, and a *durable* image, which a crash leaves.
//!   A write, a zeroing and a change of length go to the cache at once and are *pending*
//!   until a sync of that disk moves them to the durable image, in order.
//! * [`World::crash`] (power loss): each pending operation of each disk, independently, is
//!   kept, lost or torn. A torn write keeps any subset of its 512-byte sectors, a torn zeroing
//!   keeps a prefix of sectors, a change of length is never torn. What is kept is kept in
//!   the order in which it was done, but not because anything before it was.
//! * [`World::restart`] (the process is killed, the machine goes on): nothing is lost, but
//!   what was pending still is.
//! * [`World::stop_after`]: from the n-th operation on nothing is done any more and every
//!   call fails, as for a process that died there. Operations are writes, zeroings, changes of
//!   length and syncs, counted over all disks of the world.
//! * [`World::fail_at`]: the n-th operation fails. A write or zeroing that fails may have
//!   been done in part. A sync that fails drops each pending operation or makes it durable;
//!   either way it is pending no more, so that a later sync that succeeds says nothing about
//!   it, while the cache still shows it. That is what Linux does.
//! * [`World::drop_cache`] and [`Disk::drop_cache`]: reads show the durable image with the
//!   pending operations on top.
//! * [`World::fill_up`]: from the n-th operation on, the disks take only so many pages more. A
//!   write that needs more fails, each time, until [`World::make_room`]; nothing else does. What
//!   is made a hole, or cut off, gives its pages back.
//! * [`World::flip`]: one bit changes at rest.
//! * [`World::spoil_at`]: a write is lost or changed on its way: the cache has it right, and
//!   what is read past the cache has not.
//! * [`World::lie_on_sync`]: syncs of one disk say that they were done and do nothing. No
//!   program can be correct on such a disk; it shows that a test would notice.
//!
//! * A device with a manager ([`World::kept_device`]): each handle sees the length that the
//!   device had when the handle was opened. Calls of the manager are operations like any other,
//!   lasting at once; one that fails may have been done. Whatever no kernel would allow, or
//!   would silently lose, is counted: see [`KeptDevice::violations`].
//!
//! Not modelled: operations of one disk kept in another order than that in which they were
//! done, damage to sectors that were not written, reads that fail.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use driftline_extent::Extent;
use driftline_target::Disk;

mod manager;
mod space;
mod spoil;

pub use manager::{FakeManager, Flaw, KeptDevice};
use manager::{Keeping, Opened};
pub use spoil::{Saved, Spoil};

const PAGE_LEN: u64 = 4096;
const SECTOR_LEN: u64 = 512;

/// Deterministic random numbers: splitmix64.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end
    }
}

/// Sparse content; cheap to clone.
#[derive(Clone, Default, Debug)]
pub(crate) struct Image {
    pub(crate) len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE_LEN as usize]>>,
}

impl Image {
    /// The pages that a range touches, each with the part within it.
    fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
        let pieces = Extent::from_bounds(range.start, range.end).map(|e| e.pieces(PAGE_LEN));
        pieces.into_iter().flatten().map(|piece| {
            let start = (piece.offset() % PAGE_LEN) as usize;
            (piece.offset() / PAGE_LEN, start..start + piece.len() as usize)
        })
    }

    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut rest = buf;
        let end = offset + rest.len() as u64;
        for (page, part) in Self::parts(offset..end) {
            let (now, later) = rest.split_at_mut(part.len());
            match self.pages.get(&page) {
                Some(bytes) => now.copy_from_slice(&bytes[part]),
                None => now.fill(0),
            }
            rest = later;
        }
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        let end = offset + bytes.len() as u64;
        self.len = self.len.max(end);
        for (page, part) in Self::parts(offset..end) {
            let (now, later) = rest.split_at(part.len());
            let page = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_LEN as usize]));
            Arc::make_mut(page)[part].copy_from_slice(now);
            rest = later;
        }
    }

    pub(crate) fn zero(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let pages = range.start / PAGE_LEN..range.end.div_ceil(PAGE_LEN);
        let touched: Vec<u64> = self.pages.range(pages).map(|(page, _)| *page).collect();
        for page in touched {
            let start = range.start.saturating_sub(page * PAGE_LEN).min(PAGE_LEN) as usize;
            let end = range.end.saturating_sub(page * PAGE_LEN).min(PAGE_LEN) as usize;
            if start == 0 && end == PAGE_LEN as usize {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                Arc::make_mut(bytes)[start..end].fill(0);
            }
        }
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len..self.len.next_multiple_of(PAGE_LEN));
        }
        self.len = len;
    }

    pub(crate) fn next_data(&self, from: u64) -> Option<Extent> {
        let mut pages = self.pages.range(from / PAGE_LEN..).map(|(page, _)| *page);
        let first = pages.next()?;
        let mut end = first + 1;
        while pages.next() == Some(end) {
            end += 1;
        }
        Extent::from_bounds((first * PAGE_LEN).max(from), (end * PAGE_LEN).min(self.len))
    }
}

/// What was done to a disk.
#[derive(Clone, Debug)]
enum Operation {
    Write(u64, Arc<[u8]>),
    Zero(Extent),
    SetLen(u64),
}

impl Operation {
    fn apply(&self, image: &mut Image) {
        match self {
            Self::Write(offset, bytes) => image.write(*offset, bytes),
            Self::Zero(extent) => image.zero(extent.offset()..extent.end().min(image.len)),
            Self::SetLen(len) => image.set_len(*len),
        }
    }

    /// Does a part of it that a crash in the middle can leave.
    fn tear(&self, image: &mut Image, rng: &mut Rng) {
        match self {
            Self::Write(offset, bytes) => {
                let Some(whole) = Extent::new(*offset, bytes.len() as u64) else { return };
                for sector in whole.pieces(SECTOR_LEN) {
                    let start = (sector.offset() - offset) as usize;
                    if rng.below(2) == 0 {
                        image.write(sector.offset(), &bytes[start..start + sector.len() as usize]);
                    }
                }
            }
            Self::Zero(extent) => {
                let sectors = extent.len().div_ceil(SECTOR_LEN);
                let cut = extent.offset() + rng.below(sectors + 1) * SECTOR_LEN;
                image.zero(extent.offset()..cut.min(extent.end()).min(image.len));
            }
            Self::SetLen(_) => {}
        }
    }

    /// Keeps, loses or tears it.
    fn settle(&self, image: &mut Image, luck: Luck, rng: &mut Rng) {
        let fate = match luck {
            Luck::None => 0,
            Luck::All => 1,
            Luck::Mixed => rng.below(3),
        };
        match fate {
            0 => {}
            1 => self.apply(image),
            _ => self.tear(image, rng),
        }
    }
}

/// How much of what is pending survives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Luck {
    None,
    All,
    Mixed,
}

impl Luck {
    /// The two extremes are tried as well as everything between.
    const fn of(seed: u64) -> Self {
        match seed % 8 {
            0 => Self::None,
            1 => Self::All,
            _ => Self::Mixed,
        }
    }
}

#[derive(Clone, Default, Debug)]
struct DiskState {
    fixed: bool,
    cache: Image,
    durable: Image,
    pending: Vec<Operation>,
    lies: bool,
    /// Pages that were set aside; those that were written since are no other.
    aside: std::collections::BTreeSet<u64>,
    keeping: Option<Keeping>,
}

impl DiskState {
    fn drop_cache(&mut self) {
        self.cache = self.durable.clone();
        self.pending.iter().for_each(|operation| operation.apply(&mut self.cache));
    }

    fn perform(&mut self, operation: Operation, spoil: Option<Spoil>) {
        self.give_back(&operation);
        operation.apply(&mut self.cache);
        self.pending.extend(spoil::arrives(operation, spoil));
        if let Some(keeping) = &mut self.keeping {
            keeping.written = true;
        }
    }
}

#[derive(Clone, Default, Debug)]
struct Inner {
    disks: BTreeMap<&'static str, DiskState>,
    operations: u64,
    stop_at: Option<u64>,
    stopped: bool,
    fail_at: Option<(u64, io::ErrorKind)>,
    space: space::Space,
    spoil_at: Option<(u64, Spoil)>,
    spoilt: Option<&'static str>,
    faults: u64,
}

/// Several disks that live and die together.
#[derive(Debug, Default)]
pub struct World(Arc<Mutex<Inner>>);

impl World {
    /// A world without disks.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy that goes its own way from here; no handle is shared.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// A handle for the file of this name, which is empty at first.
    pub fn file(&self, name: &'static str) -> FakeDisk {
        self.lock().disks.entry(name).or_default();
        FakeDisk { world: Self(self.0.clone()), name, opened: None }
    }

    /// A handle for the device of this name, of `len` zeros at first.
    pub fn device(&self, name: &'static str, len: u64) -> FakeDisk {
        let image = Image { len, ..Image::default() };
        self.lock().disks.entry(name).or_insert_with(|| DiskState {
            fixed: true,
            cache: image.clone(),
            durable: image,
            ..DiskState::default()
        });
        FakeDisk { world: Self(self.0.clone()), name, opened: None }
    }

    /// How many operations were begun so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Does `n` more operations; from then on every call fails.
    pub fn stop_after(&self, n: u64) {
        let mut inner = self.lock();
        inner.stop_at = Some(inner.operations + n);
    }

    /// Whether the world stopped.
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Lets the operation after `n` more fail with this error.
    pub fn fail_at(&self, n: u64, kind: io::ErrorKind) {
        let mut inner = self.lock();
        inner.fail_at = Some((inner.operations + n, kind));
    }

    /// Power loss. The disks work again afterwards.
    pub fn crash(&self, seed: u64) {
        let mut inner = self.lock();
        let mut rng = Rng(seed);
        for disk in inner.disks.values_mut() {
            for operation in std::mem::take(&mut disk.pending) {
                operation.settle(&mut disk.durable, Luck::of(seed), &mut rng);
            }
            disk.drop_cache();
        }
        drop(inner);
        self.restart();
    }

    /// The process is killed. The disks work again afterwards.
    pub fn restart(&self) {
        let mut inner = self.lock();
        inner.stop_at = None;
        inner.stopped = false;
        inner.fail_at = None;
        inner.spoil_at = None;
    }

    /// Evicts from the cache what is not pending, on every disk.
    pub fn drop_cache(&self) {
        self.lock().disks.values_mut().for_each(DiskState::drop_cache);
    }

    /// From now on syncs of this disk do nothing.
    pub fn lie_on_sync(&self, name: &'static str) {
        self.lock().disks.entry(name).or_default().lies = true;
    }

    /// Flips one bit at rest.
    pub fn flip(&self, name: &str, offset: u64, bit: u8) {
        let mut inner = self.lock();
        let Some(disk) = inner.disks.get_mut(name) else { return };
        for image in [&mut disk.cache, &mut disk.durable] {
            let mut byte = [0];
            image.read(offset, &mut byte);
            byte[0] ^= 1 << (bit % 8);
            image.write(offset, &byte);
        }
    }

    /// What a reader of this disk sees.
    pub fn content(&self, name: &str) -> Vec<u8> {
        let inner = self.lock();
        let Some(disk) = inner.disks.get(name) else { return Vec::new() };
        let mut bytes = vec![0; disk.cache.len as usize];
        disk.cache.read(0, &mut bytes);
        bytes
    }

    /// How many bytes this disk stores.
    pub fn stored_bytes(&self, name: &str) -> u64 {
        let inner = self.lock();
        inner.disks.get(name).map_or(0, |disk| disk.cache.pages.len() as u64 * PAGE_LEN)
    }
}

impl Inner {
    /// Begins an operation; an error if it is not to be done, and whether it may have been.
    fn begin(&mut self) -> Result<(), (io::Error, bool)> {
        let this = self.operations;
        self.operations += 1;
        self.stopped |= self.stop_at.is_some_and(|at| this >= at);
        if self.stopped {
            return Err((stopped(), false));
        }
        match self.fail_at {
            Some((at, kind)) if at == this => {
                self.fail_at = None;
                Err((io::Error::new(kind, "an injected fault"), true))
            }
            _ => Ok(()),
        }
    }

    fn rng(&mut self) -> Rng {
        self.faults += 1;
        Rng(self.operations ^ (self.faults << 32))
    }
}

fn stopped() -> io::Error {
    io::Error::other("the world has stopped")
}

/// One disk of a [`World`].
#[derive(Debug)]
pub struct FakeDisk {
    world: World,
    name: &'static str,
    /// How it was opened, if the device has a manager.
    opened: Option<Opened>,
}

impl FakeDisk {
    /// How long the disk is through this handle.
    fn len_of(&self, disk: &DiskState) -> u64 {
        self.opened.map_or(disk.cache.len, |opened| opened.len)
    }

    fn look<T>(&self, look: impl FnOnce(&mut DiskState) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.world.lock();
        if inner.stopped {
            return Err(stopped());
        }
        inner.disks.get_mut(self.name).map_or_else(|| Err(stopped()), look)
    }

    fn operate(&self, operation: Operation) -> io::Result<()> {
        let mut inner = self.world.lock();
        let begun = inner.begin().and_then(|()| inner.room_for(self.name, &operation));
        let mut rng = inner.rng();
        let spoil = if begun.is_ok() { inner.spoil_of(self.name, &operation) } else { None };
        let Some(disk) = inner.disks.get_mut(self.name) else { return Err(stopped()) };
        let len = self.len_of(disk);
        if let (Some(opened), Ok(())) = (self.opened, &begun) {
            disk.check_writable(opened)?;
        }
        let beyond = match &operation {
            Operation::Write(offset, bytes) => offset + bytes.len() as u64 > len,
            Operation::Zero(_) => false,
            Operation::SetLen(_) => true,
        };
        match begun {
            Ok(()) if disk.fixed && beyond => {
                Err(io::Error::new(io::ErrorKind::StorageFull, "beyond the end of the device"))
            }
            Ok(()) => {
                disk.perform(operation, spoil);
                Ok(())
            }
            Err((error, true)) => {
                // Some sectors of it may have been done, each of them for good or for now.
                if let Operation::Write(offset, bytes) = &operation {
                    let done = rng.below(bytes.len() as u64 + 1) as usize / 512 * 512;
                    if done > 0 {
                        disk.perform(Operation::Write(*offset, bytes[..done].into()), None);
                    }
                }
                Err(error)
            }
            Err((error, false)) => Err(error),
        }
    }
}

impl Disk for FakeDisk {
    fn len(&self) -> io::Result<u64> {
        self.look(|disk| Ok(self.len_of(disk)))
    }

    fn is_fixed(&self) -> bool {
        self.world.lock().disks.get(self.name).is_some_and(|disk| disk.fixed)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.look(|disk| {
            let end = offset.checked_add(buf.len() as u64);
            if end.is_none_or(|end| end > self.len_of(disk)) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            disk.cache.read(offset, buf);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.operate(Operation::Write(offset, bytes.into()))
    }

    fn zero(&self, extent: Extent) -> io::Result<()> {
        self.operate(Operation::Zero(extent))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate(Operation::SetLen(len))
    }

    fn allocate(&self, ranges: &[Extent]) -> io::Result<()> {
        self.set_aside(ranges)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.look(|disk| {
            if disk.fixed {
                return Ok(Extent::from_bounds(from, self.len_of(disk)));
            }
            Ok(disk.cache.next_data(from))
        })
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.world.lock();
        let begun = inner.begin();
        let mut rng = inner.rng();
        let Some(disk) = inner.disks.get_mut(self.name) else { return Err(stopped()) };
        if let (Some(_), Ok(())) = (self.opened, &begun) {
            disk.check_flush()?;
        }
        match begun {
            Ok(()) if disk.lies => Ok(()),
            Ok(()) => {
                let pending = std::mem::take(&mut disk.pending);
                pending.iter().for_each(|operation| operation.apply(&mut disk.durable));
                Ok(())
            }
            Err((error, true)) => {
                let pending = std::mem::take(&mut disk.pending);
                pending.iter().for_each(|op| op.settle(&mut disk.durable, Luck::Mixed, &mut rng));
                Err(error)
            }
            Err((error, false)) => Err(error),
        }
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.look(|disk| {
            disk.drop_cache();
            Ok(())
        })
    }

    fn reopen(&mut self, writable: bool) -> io::Result<()> {
        self.close();
        self.opened = Some(self.look(|disk| disk.open(writable))?);
        Ok(())
    }
}
