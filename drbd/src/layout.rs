//! Where the parts of the metadata are.

use driftline_extent::{Extent, VOLUME_LEN_MAX};

use crate::{
    DrbdError, SUPERBLOCK_LEN, Superblock,
    error::malformed,
    superblock::{BLOCK_4K, SECTOR_LEN},
};

/// How much of an external device the metadata of one volume takes, where several share it.
pub const INDEXED_LEN: u64 = 128 << 20;

/// Blocks of an activity log that are accepted: 256 MiB of them, where DRBD makes eight.
const AL_BLOCKS_MAX: u64 = 1 << 16;

/// Where on a device the superblock is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Layout {
    /// At the end of the device that also has the data: the last aligned 4 KiB.
    #[default]
    Internal,
    /// At the start of a device of its own.
    External,
    /// On a device that several volumes share, in the part of 128 MiB with this number.
    Indexed(u32),
}

impl Layout {
    /// Where the superblock is on a device of `len` bytes.
    pub fn superblock_at(self, len: u64) -> Result<u64, DrbdError> {
        if len > VOLUME_LEN_MAX {
            return Err(malformed("the length of the device", len));
        }
        let end = len.checked_sub(SUPERBLOCK_LEN).ok_or(DrbdError::TooShort { len })?;
        match self {
            Self::Internal => Ok(end - end % BLOCK_4K),
            Self::External => Ok(0),
            Self::Indexed(index) => {
                let at = u64::from(index) * INDEXED_LEN;
                if at <= end { Ok(at) } else { Err(DrbdError::TooShort { len }) }
            }
        }
    }
}

/// Sizes and distances as a superblock states them. Two generations with different ones do
/// not have the same metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Length of all of the metadata, in sectors.
    pub md_sectors: u32,
    /// From the superblock to the activity log, in sectors.
    pub al_offset: i32,
    /// From the superblock to the bitmaps, in sectors.
    pub bm_offset: i32,
    /// Stripes of the activity log.
    pub al_stripes: u32,
    /// Blocks of 4 KiB in each stripe.
    pub al_stripe_blocks: u32,
    /// How many bitmaps there are, one in each word after the other.
    pub slots: u32,
    /// Bytes of the volume that one bit stands for.
    pub block_len: u64,
}

impl Geometry {
    /// How many blocks of 4 KiB the activity log has.
    pub const fn al_blocks(&self) -> u64 {
        self.al_stripes as u64 * self.al_stripe_blocks as u64
    }

    /// Where in the activity log, in blocks, the transaction with this number stands.
    pub const fn al_block_of(&self, number: u32) -> u64 {
        let (stripes, blocks) = (self.al_stripes as u64, self.al_stripe_blocks as u64);
        let at = number as u64 % (stripes * blocks);
        at % stripes * blocks + at / stripes
    }
}

/// Where on the device everything is. All of it lies within the device, and none of it in
/// something else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// The superblock.
    pub superblock: Extent,
    /// The activity log.
    pub activity_log: Extent,
    /// The bitmaps, as far as they are in use.
    pub bitmap: Extent,
}

impl Placement {
    /// Where the metadata of `superblock` is, found at `at` on a device of `len` bytes.
    /// Everything the superblock says of sizes is checked here, before it is used.
    pub(crate) fn of(
        superblock: &Superblock,
        layout: Layout,
        at: u64,
        len: u64,
    ) -> Result<Self, DrbdError> {
        let geometry = &superblock.geometry;
        let blocks = geometry.al_blocks();
        if blocks == 0 || blocks > AL_BLOCKS_MAX {
            return Err(malformed("the length of the activity log in blocks", blocks));
        }
        let place = |what, sectors: i32, bytes: u64| {
            let offset = i64::from(sectors).checked_mul(SECTOR_LEN.cast_signed());
            let start = offset.and_then(|offset| at.checked_add_signed(offset));
            let extent = start.and_then(|start| Extent::new(start, bytes));
            let fits = extent.filter(|e| e.end() <= len && e.offset().is_multiple_of(BLOCK_4K));
            fits.ok_or_else(|| malformed(what, u64::from(sectors.unsigned_abs())))
        };
        let this = Self {
            superblock: place("the superblock", 0, SUPERBLOCK_LEN)?,
            activity_log: place(
                "the distance to the activity log",
                geometry.al_offset,
                blocks * BLOCK_4K,
            )?,
            bitmap: place(
                "the distance to the bitmap",
                geometry.bm_offset,
                bitmap_len(superblock.effective_size, geometry),
            )?,
        };
        this.check(superblock, layout)?;
        Ok(this)
    }

    /// That the parts are apart, in their order, and within what belongs to the metadata.
    fn check(&self, superblock: &Superblock, layout: Layout) -> Result<(), DrbdError> {
        let md_len = u64::from(superblock.geometry.md_sectors) * SECTOR_LEN;
        let (al, bm) = (&self.activity_log, &self.bitmap);
        let (sb, al_at) = (&self.superblock, al.offset());
        let sound = match layout {
            Layout::Internal => {
                bm.end() <= al_at
                    && al.end() <= sb.offset()
                    && sb.end() - bm.offset() <= md_len
                    && superblock.effective_size <= bm.offset()
            }
            Layout::External | Layout::Indexed(_) => {
                sb.end() <= al_at
                    && al.end() <= bm.offset()
                    && bm.end() - sb.offset() <= md_len
                    && (layout == Layout::External || md_len <= INDEXED_LEN)
            }
        };
        if sound { Ok(()) } else { Err(DrbdError::Overlapping) }
    }
}

/// Length of all bitmaps of a volume of `size` bytes, in bytes; never zero.
pub(crate) fn bitmap_len(size: u64, geometry: &Geometry) -> u64 {
    let bits = size.div_ceil(geometry.block_len).next_multiple_of(64);
    (bits / 8 * u64::from(geometry.slots)).next_multiple_of(BLOCK_4K).max(BLOCK_4K)
}
