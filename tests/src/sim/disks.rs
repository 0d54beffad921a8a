//! The target's disks, and the bugs that can be planted between them and the replica.

use std::io;

use driftline_extent::Extent;
use driftline_target::{Disk, Disks, Part, Replica, TargetError};

use super::Bug;
use crate::disk::{FakeDisk, World};

/// Block size of a device that a manager keeps.
pub(super) const UNIT: u64 = 16 * 1024;

/// What the books of a replica are called.
pub(super) const BOOKS: [&str; 5] = ["state", "journal", "ids", "overlay", "repair"];

/// A disk as a replica with a bug would use it.
#[derive(Debug)]
pub(super) struct SimDisk {
    disk: FakeDisk,
    part: Part,
    bug: Option<Bug>,
}

impl Disk for SimDisk {
    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn is_fixed(&self) -> bool {
        self.disk.is_fixed()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(offset, bytes)
    }

    fn zero(&self, extent: Extent) -> io::Result<()> {
        self.disk.zero(extent)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len)
    }

    fn allocate(&self, ranges: &[Extent]) -> io::Result<()> {
        if self.bug == Some(Bug::FullDiskWhileApplying) {
            Ok(())
        } else {
            self.disk.allocate(ranges)
        }
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Extent>> {
        self.disk.next_data(from)
    }

    fn sync(&self) -> io::Result<()> {
        if self.bug == Some(Bug::SkipSync(self.part)) { Ok(()) } else { self.disk.sync() }
    }

    fn drop_cache(&self) -> io::Result<()> {
        // To read back from the cache is to verify nothing.
        if self.bug == Some(Bug::CommitUnverified) { Ok(()) } else { self.disk.drop_cache() }
    }

    fn reopen(&mut self, writable: bool) -> io::Result<()> {
        self.disk.reopen(writable)
    }
}

/// Opens the replica in this world, on a file or on a device with a manager.
pub(super) fn open(
    world: &World,
    kept: bool,
    bug: Option<Bug>,
) -> Result<Replica<SimDisk>, TargetError> {
    let book = |name, part| SimDisk { disk: world.file(name), part, bug };
    let (volume, manager) = if kept {
        let (volume, manager) = world.kept_device("volume", UNIT);
        (volume, Some(manager))
    } else {
        (world.file("volume"), None)
    };
    let disks = Disks {
        volume: SimDisk { disk: volume, part: Part::Volume, bug },
        state: book("state", Part::State),
        journal: book("journal", Part::Journal),
        ids: book("ids", Part::Ids),
        overlay: book("overlay", Part::Overlay),
        repair: book("repair", Part::Repair),
    };
    // No two opens may draw the same nonce.
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&world.operations().to_le_bytes());
    let mut replica = match manager {
        None => Replica::open("the replica", disks, seed)?,
        Some(manager) => Replica::open_kept("the replica", disks, Box::new(manager), seed)?,
    };
    replica.checkpoint_every(2 * driftline_extent::CHUNK_LEN);
    Ok(replica)
}
