//! What may befall a history, and which rung of the trust ladder has to catch it. The checks of
//! [`history`](super::history) ask here what they may let pass.

use std::fmt;

/// The rung that keeps a fault from doing harm, or finds the harm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rung {
    /// Base and tip are named by identities: what does not fit is refused, or compared whole.
    Continuity,
    /// The stream proves itself whole and undamaged.
    Structure,
    /// Frames are sealed and numbered; a cut increment goes on.
    Link,
    /// The replica is at N or N + 1.
    Journal,
    /// What was written is read back past the cache before it is committed.
    ReadBack,
    /// Nothing is written over what is not in the books, and verifying finds it.
    Scrub,
    /// Only what a map calls unchanged, read again and compared at the source, shows it.
    Audit,
}

/// Something that goes wrong in a history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// The source's storage goes back to an older snapshot.
    SourceRolledBack,
    /// A clone of the source with the same identity takes its place.
    SourceCloned,
    /// A snapshot that an increment would start from is destroyed.
    SnapshotDestroyed,
    /// The source's machine dies between writes.
    SourceCrashed,
    /// Volume and books of the replica are both put back to an earlier time.
    TargetRolledBack,
    /// A stream has a bit that is the other one.
    StreamFlipped,
    /// A stream ends early, or the source cannot be read any more.
    StreamCut,
    /// A frame is cut, lost, doubled, moved or changed.
    FrameDamaged,
    /// The clock jumps.
    ClockJumped,
    /// The target loses power, or its process is killed.
    TargetDied,
    /// A write, zeroing or sync of the target fails.
    DiskFailed,
    /// The target's disk is full.
    DiskFull,
    /// A write to volume or journal is lost, or arrives with another bit.
    DataSpoilt,
    /// The same, of a write to state, ids or overlay.
    BooksSpoilt,
    /// Something else writes to the replica.
    WrittenLocally,
    /// A bit of the replica or its books changes at rest.
    FlippedAtRest,
    /// Another volume stands in the replica's place.
    Swapped,
    /// The volume alone, or the books alone, are put back to an earlier time.
    TornApart,
    /// The storage's record of change misses a write.
    StaleMap,
    /// Two instants of a DRBD device have one UUID, or two devices do.
    SameName,
    /// A snapshot of a DRBD device after which its UUID stays as it is.
    PlainSnapshot,
    /// The source is the other node of a pair from now on.
    OtherNode,
    /// The target is destroyed, or has another name for a while.
    TargetVanished,
    /// One side is busy for minutes before a session.
    PeerBusy,
    /// The target's disk is full from some moment on.
    DiskFilled,
}

/// Every fault with the rung that catches it and how it is named.
const TABLE: &[(Fault, Rung, &str)] = &[
    (Fault::SourceRolledBack, Rung::Continuity, "source rolled back"),
    (Fault::SourceCloned, Rung::Continuity, "source cloned with its ids"),
    (Fault::SnapshotDestroyed, Rung::Continuity, "snapshot destroyed"),
    (Fault::SourceCrashed, Rung::Continuity, "source crashed"),
    (Fault::TargetRolledBack, Rung::Continuity, "target rolled back whole"),
    (Fault::StreamFlipped, Rung::Structure, "bit flip in a stream"),
    (Fault::StreamCut, Rung::Structure, "stream cut"),
    (Fault::FrameDamaged, Rung::Link, "frame damaged or link cut"),
    (Fault::ClockJumped, Rung::Link, "clock jump"),
    (Fault::TargetDied, Rung::Journal, "target killed or without power"),
    (Fault::DiskFailed, Rung::Journal, "I/O error"),
    (Fault::DiskFull, Rung::Journal, "disk full"),
    (Fault::DataSpoilt, Rung::ReadBack, "data lost or flipped on its way to the disk"),
    (Fault::BooksSpoilt, Rung::Scrub, "books lost or flipped on their way to the disk"),
    (Fault::WrittenLocally, Rung::Scrub, "local write to the replica"),
    (Fault::FlippedAtRest, Rung::Scrub, "bit flip at rest"),
    (Fault::Swapped, Rung::Scrub, "swapped disk"),
    (Fault::TornApart, Rung::Scrub, "volume or books rolled back alone"),
    (Fault::StaleMap, Rung::Audit, "stale map"),
    (Fault::SameName, Rung::Audit, "two instants of one name"),
    (Fault::PlainSnapshot, Rung::Continuity, "snapshot whose name another will have"),
    (Fault::OtherNode, Rung::Continuity, "other node of a pair"),
    (Fault::TargetVanished, Rung::Continuity, "target vanished"),
    (Fault::PeerBusy, Rung::Link, "peer busy for minutes"),
    (Fault::DiskFilled, Rung::Journal, "disk full and stays so"),
];

impl Fault {
    fn row(self) -> &'static (Self, Rung, &'static str) {
        TABLE.iter().find(|row| row.0 == self).expect("every fault has a row; a test says so")
    }

    /// What has to catch it.
    pub fn rung(self) -> Rung {
        self.row().1
    }

    /// Every fault there is.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}
