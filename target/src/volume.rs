//! The volume of a replica: its disk, and the manager of that disk where there is one.

use std::{io, ops::Deref, sync::Arc};

use driftline_extent::{CHUNK_LEN, Committed, VOLUME_LEN_MAX};

use crate::{DeviceManager, Disk, Kept, Part, Problem, disk::Store, through::Through};

/// The disk that the replica is on. Without a manager every call that is about one does nothing.
pub(crate) struct VolumeStore<D: Disk> {
    store: Store<D>,
    manager: Option<Box<dyn DeviceManager>>,
    /// Whether it has to be locked when the replica is closed.
    unlocked: bool,
}

impl<D: Disk> VolumeStore<D> {
    pub(crate) const fn new(disk: D, manager: Option<Box<dyn DeviceManager>>) -> Self {
        Self { store: Store::new(Part::Volume, disk), manager, unlocked: false }
    }

    pub(crate) const fn has_manager(&self) -> bool {
        self.manager.is_some()
    }

    /// See [`Store::read_through`].
    pub(crate) fn read_through(&mut self, through: Arc<Through<D>>) {
        self.store.read_through(through);
    }

    /// Whether the manager has still to make the device.
    fn is_absent(&self) -> Result<bool, Problem> {
        Ok(self.manager.is_some() && self.store.len()? == 0)
    }

    /// Lets the manager make the device if there is none. Where the size is not known it grows
    /// with what comes.
    pub(crate) fn make(&mut self, size: Option<u64>) -> Result<(), Problem> {
        if !self.is_absent()? {
            return Ok(());
        }
        let Some(manager) = &mut self.manager else { return Ok(()) };
        told("made", manager.create(size.unwrap_or(CHUNK_LEN)))?;
        self.store.reopen(false)
    }

    /// Makes the device writable until [`lock`](Self::lock), or until the replica is closed.
    pub(crate) fn unlock(&mut self) -> Result<(), Problem> {
        let Some(manager) = &mut self.manager else { return Ok(()) };
        if self.unlocked {
            return Ok(());
        }
        self.unlocked = true;
        told("made writable", manager.unlock())?;
        self.store.reopen(true)
    }

    /// Makes the device read-only, whoever made it writable.
    pub(crate) fn lock(&mut self) -> Result<(), Problem> {
        if self.is_absent()? {
            return Ok(());
        }
        let Some(manager) = &mut self.manager else { return Ok(()) };
        // Whoever locked it has synced it before, and ZFS fails a flush of a zvol that is read-only.
        if !self.unlocked && told("asked whether it is read-only", manager.is_locked())? {
            return Ok(());
        }
        // What the kernel still holds could not be written any more.
        self.store.sync()?;
        self.store.reopen(false)?;
        told("made read-only", manager.lock())?;
        self.unlocked = false;
        Ok(())
    }

    /// That the volume has room for `size` bytes, or can be made to have it.
    pub(crate) fn check_room(&self, size: u64) -> Result<(), Problem> {
        if self.manager.is_some() { Ok(()) } else { self.check_len(size) }
    }

    /// That the storage below a device with a manager has room for so many bytes: nothing of it can
    /// be reserved.
    pub(crate) fn check_available(&self, bytes: u64) -> Result<(), Problem> {
        let Some(manager) = &self.manager else { return Ok(()) };
        let full = |available| {
            let detail = format!("this takes {bytes} bytes, and its pool has {available}");
            io::Error::new(io::ErrorKind::StorageFull, detail)
        };
        match told("asked how much room it has", manager.available())? {
            Some(available) if available < bytes => told("written", Err(full(available))),
            _ => Ok(()),
        }
    }

    fn check_len(&self, size: u64) -> Result<(), Problem> {
        let available = self.store.len()?;
        if self.store.is_fixed() && available < size {
            return Err(Problem::TooSmall { needed: size, available });
        }
        Ok(())
    }

    /// Lets the manager grow a device that has no room for `size` bytes.
    pub(crate) fn reach(&mut self, size: u64) -> Result<(), Problem> {
        if self.store.len()? < size {
            self.resize(size)?;
        }
        self.check_len(size)
    }

    /// As [`reach`](Self::reach), for a volume whose end is not known yet: it is grown to twice
    /// its length, so that it is not grown often.
    pub(crate) fn reach_beyond(&mut self, end: u64) -> Result<(), Problem> {
        let len = self.store.len()?;
        if self.manager.is_none() || len >= end {
            return Ok(());
        }
        self.reach(end.max(len.saturating_mul(2).min(VOLUME_LEN_MAX)))
    }

    /// Lets the manager give the device this size, rounded up to a block.
    pub(crate) fn resize(&mut self, size: u64) -> Result<(), Problem> {
        let Some(manager) = &mut self.manager else { return Ok(()) };
        // A device is opened anew to see its length, and not resized under a writer.
        self.store.reopen(false)?;
        told("resized", manager.resize(size))?;
        self.store.reopen(true)
    }

    /// Lets the manager keep what stands here, which must be durable.
    pub(crate) fn keep(&mut self, committed: &Committed) -> Result<(), Problem> {
        let Some(manager) = &mut self.manager else { return Ok(()) };
        told("kept as a snapshot", manager.keep(committed))
    }

    /// What was kept last; `None` without a manager.
    pub(crate) fn kept(&self) -> Result<Option<Kept>, Problem> {
        let kept = self.manager.as_ref().map(|manager| manager.kept()).transpose();
        told("asked what was kept of it", kept)
    }
}

fn told<T>(doing: &'static str, result: io::Result<T>) -> Result<T, Problem> {
    result.map_err(|source| Problem::DeviceManager { doing, source })
}

impl<D: Disk> Deref for VolumeStore<D> {
    type Target = Store<D>;

    fn deref(&self) -> &Store<D> {
        &self.store
    }
}

impl<D: Disk> Drop for VolumeStore<D> {
    /// A session that was cut leaves a device that nobody else can write.
    fn drop(&mut self) {
        if !self.unlocked {
            return;
        }
        // What was not proven comes again, so nothing is lost if it cannot be synced; the
        // device must not stay writable for that.
        let synced = self.store.sync();
        let closed = self.store.reopen(false);
        let locked = self.manager.as_mut().map_or(Ok(()), |manager| manager.lock());
        let locked = told("made read-only", locked);
        for problem in [synced, closed, locked].into_iter().filter_map(Result::err) {
            tracing::warn!(%problem, "a volume may still be writable");
        }
    }
}
