//! When a bitmap and the activity log lead from a base to this tip, and when they may not.
//!
//! Nothing here reads anything: what is known of the base and what the tip's metadata says
//! decides.

use driftline_extent::{Explained, Generation, Reason, Standing};

use crate::{
    ActivityLog, Damage, Flags, Metadata, Peer, PeerFlags, Record, Superblock, Version,
    record::is_unlogged,
    superblock::{named, same},
};

/// What is known of the generation that a target holds.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// Its name: the device's current UUID then.
    pub uuid: u64,
    /// The volume's size then, in bytes; `None` if that is not known.
    pub size: Option<u64>,
    /// What was kept of the very instant that the target holds; `None` if nothing was.
    pub record: Option<&'a Record>,
}

/// That a map leads from the base to the tip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proof {
    /// The bitmap that has recorded everything since the base, but for the activity log.
    pub slot: u32,
}

/// Why there is no such map, or not even an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Doubt {
    /// The image has no identity.
    #[error("the device is just created: make it Primary once, so that it gets a current UUID")]
    JustCreated,
    /// The image is of no instant.
    #[error(
        "the device is inconsistent, as while it is being overwritten from its peer: wait until \
         it is up to date, and take a snapshot then"
    )]
    NotConsistent,
    /// The tip does not descend from the base.
    #[error("the device is at {tip} and has never been at the base", tip = Generation::drbd(*.tip))]
    BaseMismatch {
        /// The tip's current UUID.
        tip: u64,
    },
    /// The size is another, or not known.
    #[error("the volume has {now} bytes, and the base had {}", Size(*.then))]
    SizeChanged {
        /// Bytes at the base.
        then: Option<u64>,
        /// Bytes at the tip.
        now: u64,
    },
    /// The metadata is not that of the base.
    #[error("the metadata was made or laid out anew since the base")]
    GeometryChanged,
    /// The base is another node's.
    #[error(
        "the base is a snapshot of node {then}, and this is node {now}: what they are called they \
         have in common, and their bitmaps they have not",
        then = Node(*.then), now = Node(*.now)
    )]
    OtherNode {
        /// The node that the base is of.
        then: Option<u32>,
        /// The node that the tip is of.
        now: Option<u32>,
    },
    /// Nothing was kept of the base.
    #[error(
        "what the target holds is not known from within: it was replicated by an earlier version, \
         from another machine, or with another trust folder"
    )]
    NoRecord,
    /// The bitmap was not started anew at the base.
    #[error("the bitmap was not started anew at the snapshot that the target holds")]
    NotRotated,
    /// Base and tip have the same name.
    #[error(
        "the current UUID is still the base's: it has to change right after each snapshot, as \
         with new-current-uuid --clear-bitmap"
    )]
    UuidUnchanged,
    /// The device is an 8.4 Secondary.
    #[error("the device was a connected Secondary of DRBD 8.4, which records no changes")]
    NotTracked,
    /// No bitmap records since the base.
    #[error("no bitmap has recorded every change since the base")]
    SlotCleared,
    /// A peer was there: a resync clears its bitmap bit by bit, and DRBD clears those of others by
    /// itself, when a role changes.
    #[error(
        "a peer was connected, and DRBD then clears and copies the bitmaps of its peers by itself"
    )]
    PeerSeen,
    /// It is not recorded when the bitmap was last cleared.
    #[error(
        "the bitmap since the base is allocated to no peer, and does not tell when it was last \
         cleared"
    )]
    Unallocated,
    /// The bitmap is not complete.
    #[error("the bitmap since the base has its full-sync flag set")]
    FullSyncFlag,
    /// Writes are not logged.
    #[error("the activity log is disabled (al-updates no)")]
    AlDisabled,
    /// Nothing on disk tells of writes.
    #[error(
        "the {} was in use and its activity log was not, as long as DRBD keeps all bits set in \
         memory: nothing on disk tells what was written",
        if *.base { "base" } else { "device" }
    )]
    Unlogged {
        /// Whether that is so of the base, and not of the tip.
        base: bool,
    },
    /// The log cannot be read.
    #[error("the activity log is damaged: {0}")]
    AlDamaged(Damage),
    /// The log was applied by a tool that may have left a part out.
    #[error("the activity log was applied and emptied by drbdmeta apply-al")]
    AlAlreadyApplied,
}

impl Explained for Doubt {
    fn reason(&self) -> Reason {
        match self {
            Self::JustCreated => Reason::JustCreated,
            Self::NotConsistent => Reason::NotConsistent,
            Self::BaseMismatch { .. } => Reason::BaseMismatch,
            Self::SizeChanged { .. } => Reason::SizeChanged,
            Self::GeometryChanged | Self::OtherNode { .. } => Reason::GeometryChanged,
            Self::NoRecord => Reason::ManifestMissing,
            Self::UuidUnchanged => Reason::UuidUnchanged,
            Self::NotTracked => Reason::NotTracked,
            Self::SlotCleared | Self::PeerSeen | Self::Unallocated | Self::NotRotated => {
                Reason::SlotCleared
            }
            Self::FullSyncFlag => Reason::FullSyncFlag,
            Self::AlDisabled | Self::Unlogged { .. } => Reason::AlDisabled,
            Self::AlDamaged(_) => Reason::AlDamaged,
            Self::AlAlreadyApplied => Reason::AlAlreadyApplied,
        }
    }
}

impl Doubt {
    /// The standing of a map that this was said of.
    pub fn standing(&self) -> Standing {
        Standing::Suspect(self.reason())
    }
}

struct Node(Option<u32>);

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(node) => write!(f, "{node}"),
            None => f.write_str("of no number"),
        }
    }
}

struct Size(Option<u64>);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(size) => write!(f, "{size}"),
            None => f.write_str("a number that is not known"),
        }
    }
}

/// That the tip is an image of one instant, with a name.
pub(crate) fn check_image(tip: &Superblock) -> Result<(), Doubt> {
    if !named(tip.current_uuid) || tip.effective_size == 0 {
        return Err(Doubt::JustCreated);
    }
    if !tip.flags.has(Flags::CONSISTENT) { Err(Doubt::NotConsistent) } else { Ok(()) }
}

/// Which bitmap of the tip, together with its activity log, has everything that changed since
/// the base.
///
/// # Errors
/// [`Doubt::JustCreated`] and [`Doubt::NotConsistent`] if the tip is no image at all,
/// [`Doubt::BaseMismatch`] if it is one of another history; any other if the map cannot be
/// proven and everything has to be compared.
pub fn judge(base: &Base<'_>, tip: &Metadata) -> Result<Proof, Doubt> {
    let Metadata { superblock, activity_log, .. } = tip;
    check_image(superblock)?;
    if !superblock.descends_from(base.uuid) {
        return Err(Doubt::BaseMismatch { tip: superblock.current_uuid });
    }
    let now = superblock.effective_size;
    if base.size != Some(now) {
        return Err(Doubt::SizeChanged { then: base.size, now });
    }
    if let Some(record) = base.record {
        check_device(record, superblock)?;
    }
    if same(superblock.current_uuid, base.uuid) {
        return Err(Doubt::UuidUnchanged);
    }
    let (slot, node) = find_slot(base.uuid, superblock)?;
    check_log(superblock, activity_log)?;
    let record = base.record.ok_or(Doubt::NoRecord)?;
    check_record(record, base.uuid, (slot, node))?;
    Ok(Proof { slot })
}

/// That the base is of this node and this metadata.
fn check_device(then: &Record, now: &Superblock) -> Result<(), Doubt> {
    if !then.is_of_same(now) {
        return Err(Doubt::GeometryChanged);
    }
    if then.node_id != now.node_id {
        return Err(Doubt::OtherNode { then: then.node_id, now: now.node_id });
    }
    Ok(())
}

/// That the bitmap in this slot was started anew for this node at the instant of the base.
fn check_record(record: &Record, base: u64, slot: (u32, u32)) -> Result<(), Doubt> {
    if !same(record.current_uuid, base) {
        return Err(Doubt::NoRecord);
    }
    if !record.rotated {
        return Err(Doubt::NotRotated);
    }
    if record.is_unlogged() {
        return Err(Doubt::Unlogged { base: true });
    }
    // What was allocated since has the bits of a slot that was allocated to no peer.
    if record.slots.contains(&slot) { Ok(()) } else { Err(Doubt::Unallocated) }
}

/// The bitmap that records since `base`, and whose it is. The others may record since earlier or
/// later.
fn find_slot(base: u64, superblock: &Superblock) -> Result<(u32, u32), Doubt> {
    let connected = |peer: &Peer| peer.flags.has(PeerFlags::CONNECTED);
    let seen = |peer: &Peer| peer.flags.has(PeerFlags::CONNECTED | PeerFlags::DEVICE_SEEN);
    // What its Primary sends comes to it without a bit or a log entry.
    if superblock.version == Version::V08
        && !superblock.flags.has(Flags::PRIMARY)
        && superblock.peers.iter().any(connected)
    {
        return Err(Doubt::NotTracked);
    }
    let mut doubt = Doubt::SlotCleared;
    for peer in superblock.peers.iter().filter(|peer| same(peer.bitmap_uuid, base)) {
        doubt = match peer.slot {
            _ if peer.flags.has(PeerFlags::FULL_SYNC) => Doubt::FullSyncFlag,
            Some(_) if superblock.peers.iter().any(seen) => Doubt::PeerSeen,
            Some(slot) => return Ok((slot, peer.node_id)),
            // What is wrong with a bitmap that is there says more.
            None if doubt == Doubt::SlotCleared => Doubt::Unallocated,
            None => doubt,
        };
    }
    Err(doubt)
}

/// That the activity log has everything that is not in the bitmaps.
fn check_log(superblock: &Superblock, log: &ActivityLog) -> Result<(), Doubt> {
    let flags = superblock.flags;
    let wrote = flags.has(Flags::PRIMARY | Flags::CRASHED_PRIMARY);
    if wrote && flags.has(Flags::AL_DISABLED) {
        return Err(Doubt::AlDisabled);
    }
    if let Some(damage) = log.damage {
        return Err(Doubt::AlDamaged(damage));
    }
    if is_unlogged(flags, log.transactions > 0) {
        return Err(Doubt::Unlogged { base: false });
    }
    // DRBD itself never calls the log of a device that is written to clean.
    if wrote && flags.has(Flags::AL_CLEAN) && log.transactions == 0 {
        return Err(Doubt::AlAlreadyApplied);
    }
    Ok(())
}
