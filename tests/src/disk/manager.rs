//! A device that its storage manages, as a zvol: resizable, locked, with snapshots.

use std::io;

use driftline_extent::{Committed, Extent, Generation};
use driftline_target::{DeviceManager, Kept};

use super::{DiskState, FakeDisk, Image, World, stopped};

/// What Linux answers where a device fails.
const EIO: i32 = 5;

/// What the storage knows of a device.
#[derive(Clone, Debug)]
pub(super) struct Keeping {
    unit: u64,
    exists: bool,
    locked: bool,
    pub(super) written: bool,
    writers: u32,
    resizes: u64,
    flaw: Option<Flaw>,
    violations: Vec<&'static str>,
    snapshots: Vec<(Generation, Image)>,
}

impl Keeping {
    fn holds(&mut self, rule: &'static str, kept: bool) {
        if !kept {
            self.violations.push(rule);
        }
    }
}

/// How a manager does not do what it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// What it adds to a device is not zeros.
    GrowsByJunk,
    /// It says that it kept a snapshot and did not.
    KeepsNothing,
    /// It says that it locked the device and did not.
    LocksNothing,
}

/// How a handle was opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    writable: bool,
    pub(super) len: u64,
}

impl DiskState {
    fn keeping(&mut self) -> io::Result<&mut Keeping> {
        self.keeping.as_mut().ok_or_else(stopped)
    }

    pub(super) fn open(&mut self, writable: bool) -> io::Result<Opened> {
        let len = self.cache.len;
        let keeping = self.keeping()?;
        if !keeping.exists {
            return Err(io::ErrorKind::NotFound.into());
        }
        if writable && keeping.locked {
            keeping.violations.push("a locked device is not opened for writing");
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        keeping.writers += u32::from(writable);
        Ok(Opened { writable, len })
    }

    pub(super) fn check_writable(&mut self, opened: Opened) -> io::Result<()> {
        let keeping = self.keeping()?;
        if opened.writable && !keeping.locked {
            return Ok(());
        }
        keeping.violations.push("nothing is written to what is locked or open for reading");
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    /// ZFS fails the flush of a zvol that is read-only.
    pub(super) fn check_flush(&mut self) -> io::Result<()> {
        if self.keeping()?.locked { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }

    fn set_device_len(&mut self, len: u64) {
        self.cache.set_len(len);
        self.durable.set_len(len);
    }
}

impl FakeDisk {
    pub(super) fn close(&mut self) {
        if self.opened.take().is_some_and(|opened| opened.writable)
            && let Some(disk) = self.world.lock().disks.get_mut(self.name)
            && let Some(keeping) = &mut disk.keeping
        {
            keeping.writers -= 1;
        }
        // A device that is not open has no bytes.
        self.opened = Some(Opened { writable: false, len: 0 });
    }
}

impl Drop for FakeDisk {
    fn drop(&mut self) {
        if self.opened.is_some() {
            self.close();
        }
    }
}

/// What a test sees of a device with a manager.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptDevice {
    /// Whether it was made.
    pub exists: bool,
    /// Whether it is read-only.
    pub locked: bool,
    /// Whether it was written since the newest snapshot.
    pub written: bool,
    /// How often its length changed.
    pub resizes: u64,
    /// Generation and content of each snapshot, oldest first.
    pub snapshots: Vec<(Generation, Vec<u8>)>,
    /// Every rule that was broken: written while locked, locked or resized under a writer, …
    pub violations: Vec<&'static str>,
}

impl World {
    /// A handle, open for reading, for a device that does not exist before its manager makes it,
    /// and the manager. Its length is always a multiple of `unit` bytes.
    pub fn kept_device(&self, name: &'static str, unit: u64) -> (FakeDisk, FakeManager) {
        let keeping = Keeping {
            unit,
            exists: false,
            locked: false,
            written: false,
            writers: 0,
            resizes: 0,
            flaw: None,
            violations: Vec::new(),
            snapshots: Vec::new(),
        };
        let opened = {
            let mut inner = self.lock();
            let disk = inner.disks.entry(name).or_insert_with(|| DiskState {
                fixed: true,
                keeping: Some(keeping),
                ..DiskState::default()
            });
            disk.open(false).unwrap_or(Opened { writable: false, len: 0 })
        };
        let disk = FakeDisk { world: Self(self.0.clone()), name, opened: Some(opened) };
        (disk, FakeManager { world: Self(self.0.clone()), name })
    }

    /// What became of a device with a manager; `None` if there is none of this name.
    pub fn kept(&self, name: &str) -> Option<KeptDevice> {
        let inner = self.lock();
        let keeping = inner.disks.get(name)?.keeping.as_ref()?;
        let content = |image: &Image| {
            let mut bytes = vec![0; image.len as usize];
            image.read(0, &mut bytes);
            bytes
        };
        let snapshots = keeping.snapshots.iter();
        Some(KeptDevice {
            exists: keeping.exists,
            locked: keeping.locked,
            written: keeping.written,
            resizes: keeping.resizes,
            snapshots: snapshots.map(|(generation, image)| (*generation, content(image))).collect(),
            violations: keeping.violations.clone(),
        })
    }

    /// From now on the manager of this device has a flaw.
    pub fn spoil_manager(&self, name: &str, flaw: Flaw) {
        let mut inner = self.lock();
        if let Some(keeping) = inner.disks.get_mut(name).and_then(|disk| disk.keeping.as_mut()) {
            keeping.flaw = Some(flaw);
        }
    }

    /// Somebody else unlocks a device with a manager, if it is locked, and writes to it.
    pub fn intrude(&self, name: &str, offset: u64, bytes: &[u8]) {
        let mut inner = self.lock();
        let Some(disk) = inner.disks.get_mut(name) else { return };
        disk.cache.write(offset, bytes);
        disk.durable.write(offset, bytes);
        if let Some(keeping) = &mut disk.keeping {
            keeping.locked = false;
            keeping.written = true;
        }
    }

    /// Somebody else rolls a device with a manager back to the snapshot before the newest.
    pub fn roll_back(&self, name: &str) {
        let mut inner = self.lock();
        let Some(disk) = inner.disks.get_mut(name) else { return };
        let Some(keeping) = &mut disk.keeping else { return };
        keeping.snapshots.pop();
        if let Some((_, image)) = keeping.snapshots.last() {
            disk.cache = image.clone();
            disk.durable = image.clone();
        }
        keeping.written = false;
    }
}

/// The manager of one device of a [`World`].
#[derive(Debug)]
pub struct FakeManager {
    world: World,
    name: &'static str,
}

impl FakeManager {
    fn operate(&self, change: impl FnOnce(&mut DiskState) -> io::Result<()>) -> io::Result<()> {
        let mut inner = self.world.lock();
        let begun = inner.begin();
        let mut rng = inner.rng();
        let Some(disk) = inner.disks.get_mut(self.name) else { return Err(stopped()) };
        match begun {
            Ok(()) => change(disk),
            Err((error, may_be_done)) => {
                if may_be_done && rng.below(2) == 0 {
                    change(disk)?;
                }
                Err(error)
            }
        }
    }
}

impl DeviceManager for FakeManager {
    fn available(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn create(&mut self, size: u64) -> io::Result<()> {
        self.operate(|disk| {
            let keeping = disk.keeping()?;
            if keeping.exists {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            keeping.exists = true;
            keeping.locked = true;
            let len = size.max(1).next_multiple_of(keeping.unit);
            disk.set_device_len(len);
            Ok(())
        })
    }

    fn resize(&mut self, size: u64) -> io::Result<()> {
        self.operate(|disk| {
            let was = disk.cache.len;
            let keeping = disk.keeping()?;
            keeping.holds("a device is not resized under a writer", keeping.writers == 0);
            if keeping.locked {
                keeping.violations.push("a locked device is not resized");
                return Err(io::ErrorKind::ReadOnlyFilesystem.into());
            }
            let len = size.max(1).next_multiple_of(keeping.unit);
            if len != was {
                keeping.written = true;
                keeping.resizes += 1;
                let junk = keeping.flaw == Some(Flaw::GrowsByJunk);
                disk.set_device_len(len);
                if let Some(grown) = Extent::from_bounds(was, len).filter(|_| junk) {
                    let junk = vec![0xa5; grown.len() as usize];
                    disk.cache.write(was, &junk);
                    disk.durable.write(was, &junk);
                }
            }
            Ok(())
        })
    }

    fn unlock(&mut self) -> io::Result<()> {
        self.operate(|disk| {
            disk.keeping()?.locked = false;
            Ok(())
        })
    }

    fn lock(&mut self) -> io::Result<()> {
        self.operate(|disk| {
            let synced = disk.pending.is_empty();
            // The kernel cannot write it any more.
            disk.pending.clear();
            let keeping = disk.keeping()?;
            keeping.holds("a device is not locked under a writer", keeping.writers == 0);
            keeping.holds("nothing is locked out that was not synced", synced);
            keeping.locked = keeping.flaw != Some(Flaw::LocksNothing);
            Ok(())
        })
    }

    fn is_locked(&self) -> io::Result<bool> {
        let mut inner = self.world.lock();
        if inner.stopped {
            return Err(stopped());
        }
        let disk = inner.disks.get_mut(self.name).ok_or_else(stopped)?;
        Ok(disk.keeping()?.locked)
    }

    fn keep(&mut self, committed: &Committed) -> io::Result<()> {
        self.operate(|disk| {
            let image = disk.durable.clone();
            let keeping = disk.keeping()?;
            keeping.holds("only what is locked is kept", keeping.locked);
            let newest = keeping.snapshots.last().map(|(generation, _)| *generation);
            let needed = newest != Some(committed.generation) || keeping.written;
            if needed && keeping.flaw != Some(Flaw::KeepsNothing) {
                keeping.snapshots.push((committed.generation, image));
                keeping.written = false;
            }
            Ok(())
        })
    }

    fn kept(&self) -> io::Result<Kept> {
        let mut inner = self.world.lock();
        if inner.stopped {
            return Err(stopped());
        }
        let disk = inner.disks.get_mut(self.name).ok_or_else(stopped)?;
        let keeping = disk.keeping()?;
        let generation = keeping.snapshots.last().map(|(generation, _)| *generation);
        Ok(Kept { generation, written: keeping.written })
    }
}
