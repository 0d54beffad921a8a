//! All metadata of one volume, found and checked.

use driftline_extent::Volume;

use crate::{
    ActivityLog, DrbdError, Layout, Map, Placement, SUPERBLOCK_LEN, Superblock, error::malformed,
    map,
};

/// Superblock and activity log of a volume, and where its bitmaps are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// The superblock.
    pub superblock: Superblock,
    /// The activity log.
    pub activity_log: ActivityLog,
    /// Where everything is.
    pub placement: Placement,
}

impl Metadata {
    /// Reads the metadata on `disk`, which is where `layout` says. `data_len` is the length of
    /// the device that has the data, in bytes; for internal metadata it is the same device.
    ///
    /// # Errors
    /// If something cannot be read, or a size or distance makes no sense. What may be wrong
    /// with the activity log is no error.
    pub fn read(disk: &dyn Volume, layout: Layout, data_len: u64) -> Result<Self, DrbdError> {
        let len = disk.size();
        let at = layout.superblock_at(len)?;
        let mut bytes = [0; SUPERBLOCK_LEN as usize];
        let read = disk.read_at(at, &mut bytes);
        let what = "superblock";
        read.map_err(|source| DrbdError::Read { what, offset: at, source })?;
        let superblock = Superblock::parse(&bytes, at)?;
        if superblock.effective_size > data_len {
            return Err(malformed("the size in bytes", superblock.effective_size));
        }
        let placement = Placement::of(&superblock, layout, at, len)?;
        let activity_log = ActivityLog::read(disk, &placement, &superblock.geometry)?;
        Ok(Self { superblock, activity_log, placement })
    }

    /// What bitmap `slot` and the activity log say has changed. Whether that is to be believed
    /// says [`judge`](crate::judge); the map's standing does not.
    pub fn map(&self, disk: &dyn Volume, slot: u32) -> Result<Map, DrbdError> {
        map::gather(self, disk, slot)
    }
}
