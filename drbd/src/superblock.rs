//! The superblock: size, UUIDs, flags and geometry, as DRBD 8.4 and 9 write it.

use driftline_extent::VOLUME_LEN_MAX;

use crate::{DrbdError, Geometry, error::malformed};

/// Length of a superblock.
pub const SUPERBLOCK_LEN: u64 = 4096;

/// The unit in which DRBD counts.
pub(crate) const SECTOR_LEN: u64 = 512;

/// Everything in the metadata starts on a multiple of this.
pub(crate) const BLOCK_4K: u64 = 4096;

/// The largest piece of the volume that one bit can stand for.
const BLOCK_LEN_MAX: u64 = 1 << 20;

/// Where the magic number stands.
const MAGIC_AT: usize = 0x3c;
const MAGIC_V08: u32 = 0x8374_026b;
/// What DRBD 8.4 writes as long as the activity log may be needed.
const MAGIC_V08_UNCLEAN: u32 = 0x8374_026c;
const MAGIC_V09: u32 = 0x8374_026d;

/// What a device that was only initialised has as its current UUID.
pub(crate) const UUID_JUST_CREATED: u64 = 4;

/// Peers that a v09 superblock has room for, and the most bitmaps there can be: a node keeps
/// none for itself.
const PEERS: u32 = 32;
const SLOTS_MAX: u32 = PEERS - 1;

/// The format of the metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// DRBD 8.4, and 9.3 where it is told to keep to that.
    V08,
    /// DRBD 9.
    V09,
}

/// What is so about a device. The bits are those of v09 and, as far as it has them, of v08.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags(pub u32);

impl Flags {
    /// The data is of one instant.
    pub const CONSISTENT: u32 = 1;
    /// The device is Primary or, in v09, sees one that is.
    pub const PRIMARY: u32 = 2;
    /// v08: there is a connection to the peer.
    const V08_CONNECTED: u32 = 4;
    /// v08: everything counts as changed.
    const V08_FULL_SYNC: u32 = 8;
    /// It was Primary when it went down.
    pub const CRASHED_PRIMARY: u32 = 0x40;
    /// The activity log was applied to the bitmaps and emptied.
    pub const AL_CLEAN: u32 = 0x80;
    /// Writes are not recorded in the activity log.
    pub const AL_DISABLED: u32 = 0x100;

    /// Whether any of `bits` is set.
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }
}

/// What is so about a peer. The bits are those of v09.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerFlags(pub u32);

impl PeerFlags {
    /// There is a connection to it.
    pub const CONNECTED: u32 = 1;
    /// Everything counts as changed.
    pub const FULL_SYNC: u32 = 8;
    /// It was connected with a disk of its own at some time.
    pub const DEVICE_SEEN: u32 = 0x10;

    /// Whether any of `bits` is set.
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }
}

/// A peer, and which bitmap records what it lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The node.
    pub node_id: u32,
    /// The current UUID at the time the bitmap started to record; zero if it does not.
    pub bitmap_uuid: u64,
    /// What is so about it.
    pub flags: PeerFlags,
    /// Its bitmap; `None` if it was given none.
    pub slot: Option<u32>,
}

/// A superblock. UUIDs are as they stand there, with the role in bit 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Its format.
    pub version: Version,
    /// Size of the volume in bytes; zero before the device was first used.
    pub effective_size: u64,
    /// Names the data.
    pub current_uuid: u64,
    /// Names the device, where that was ever set.
    pub device_uuid: u64,
    /// What is so about the device.
    pub flags: Flags,
    /// This node; `None` before the device was first used, and in v08.
    pub node_id: Option<u32>,
    /// Every other node. In v08 there is one, with bitmap 0.
    pub peers: Vec<Peer>,
    /// Current UUIDs of the past, as far as they are remembered; zeros left out.
    pub history: Vec<u64>,
    /// Sizes and distances.
    pub geometry: Geometry,
}

impl Superblock {
    /// Takes `bytes` for a superblock that was found at offset `at`.
    ///
    /// # Errors
    /// If there is no magic number, or a number makes no sense in itself.
    pub fn parse(bytes: &[u8; SUPERBLOCK_LEN as usize], at: u64) -> Result<Self, DrbdError> {
        let fields = Fields(bytes);
        match fields.u32(MAGIC_AT) {
            MAGIC_V08 | MAGIC_V08_UNCLEAN => parse_v08(&fields),
            MAGIC_V09 => parse_v09(&fields),
            found => Err(DrbdError::NoMetadata { offset: at + MAGIC_AT as u64, found }),
        }
    }

    /// Whether the volume's history has `uuid`, wherever it is kept: then this device was at
    /// that generation once, or is now.
    pub fn descends_from(&self, uuid: u64) -> bool {
        let bitmaps = self.peers.iter().map(|peer| peer.bitmap_uuid);
        let known = bitmaps.chain(self.history.iter().copied()).chain([self.current_uuid]);
        named(uuid) && known.into_iter().any(|known| same(known, uuid))
    }
}

/// Whether two UUIDs name the same generation: the role in bit 0 is no part of the name.
pub(crate) const fn same(a: u64, b: u64) -> bool {
    a & !1 == b & !1
}

/// Whether a UUID names anything.
pub(crate) const fn named(uuid: u64) -> bool {
    !same(uuid, 0) && !same(uuid, UUID_JUST_CREATED)
}

fn parse_v08(fields: &Fields<'_>) -> Result<Superblock, DrbdError> {
    let flags = Flags(fields.u32(0x38));
    let peer_flags = [
        (Flags::V08_CONNECTED, PeerFlags::CONNECTED),
        (Flags::V08_FULL_SYNC, PeerFlags::FULL_SYNC),
    ];
    let peer_flags = peer_flags.iter().filter(|row| flags.has(row.0)).map(|row| row.1).sum();
    let slot = Some(0);
    let peer =
        Peer { node_id: 0, bitmap_uuid: fields.u64(0x10), flags: PeerFlags(peer_flags), slot };
    Ok(Superblock {
        version: Version::V08,
        effective_size: size(fields)?,
        current_uuid: fields.u64(0x08),
        device_uuid: fields.u64(0x28),
        flags,
        node_id: None,
        peers: vec![peer],
        history: history(&[fields.u64(0x18), fields.u64(0x20)]),
        // Where there are no stripes, they were not yet invented.
        geometry: geometry(fields, 1, or(fields.u32(0x58), 1), or(fields.u32(0x5c), 8))?,
    })
}

fn parse_v09(fields: &Fields<'_>) -> Result<Superblock, DrbdError> {
    let slots = fields.u32(0x58);
    if slots == 0 || slots > SLOTS_MAX {
        return Err(malformed("the number of bitmaps", slots));
    }
    let node_id = index(fields.i32(0x5c), PEERS, "the node id")?;
    let mut peers: Vec<Peer> = Vec::new();
    for id in (0..PEERS).filter(|id| Some(*id) != node_id) {
        let at = 0x70 + id as usize * 32;
        let slot = index(fields.i32(at + 20), slots, "the bitmap of a peer")?;
        if let Some(slot) = slot.filter(|slot| peers.iter().any(|peer| peer.slot == Some(*slot))) {
            return Err(DrbdError::SharedSlot { slot });
        }
        let flags = PeerFlags(fields.u32(at + 16));
        peers.push(Peer { node_id: id, bitmap_uuid: fields.u64(at), flags, slot });
    }
    let past: Vec<u64> = (0..32).map(|i| fields.u64(0x470 + i * 8)).collect();
    Ok(Superblock {
        version: Version::V09,
        effective_size: size(fields)?,
        current_uuid: fields.u64(0x08),
        device_uuid: fields.u64(0x30),
        flags: Flags(fields.u32(0x38)),
        node_id,
        peers,
        history: history(&past),
        geometry: geometry(fields, slots, fields.u32(0x60), fields.u32(0x64))?,
    })
}

/// A number below `count`; -1 stands for none.
fn index(value: i32, count: u32, what: &'static str) -> Result<Option<u32>, DrbdError> {
    match u32::try_from(value) {
        Ok(index) if index < count => Ok(Some(index)),
        Err(_) if value == -1 => Ok(None),
        _ => Err(malformed(what, value.unsigned_abs())),
    }
}

fn size(fields: &Fields<'_>) -> Result<u64, DrbdError> {
    let sectors = fields.u64(0);
    let size = sectors.checked_mul(SECTOR_LEN).filter(|size| *size <= VOLUME_LEN_MAX);
    size.ok_or_else(|| malformed("the size in sectors", sectors))
}

/// These stand at the same places in both formats.
fn geometry(
    fields: &Fields<'_>,
    slots: u32,
    al_stripes: u32,
    al_stripe_blocks: u32,
) -> Result<Geometry, DrbdError> {
    let block_len = u64::from(fields.u32(0x50));
    if !block_len.is_power_of_two() || !(BLOCK_4K..=BLOCK_LEN_MAX).contains(&block_len) {
        return Err(malformed("the length of a bitmap block", block_len));
    }
    let [md_sectors, al_offset, bm_offset] = [fields.u32(0x40), fields.u32(0x44), fields.u32(0x4c)];
    Ok(Geometry {
        md_sectors,
        al_offset: al_offset.cast_signed(),
        bm_offset: bm_offset.cast_signed(),
        al_stripes,
        al_stripe_blocks,
        slots,
        block_len,
    })
}

fn history(uuids: &[u64]) -> Vec<u64> {
    uuids.iter().copied().filter(|uuid| *uuid != 0).collect()
}

const fn or(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

/// Big-endian numbers at fixed places.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8; SUPERBLOCK_LEN as usize]);

impl Fields<'_> {
    /// The bytes at `at`; zeros beyond the end, which no caller asks for.
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        bytes.copied().unwrap_or([0; N])
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.array(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.array(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.array(at))
    }

    fn i32(&self, at: usize) -> i32 {
        i32::from_be_bytes(self.array(at))
    }
}
