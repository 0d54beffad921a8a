//! Why a map was not believed or an increment was refused.

use std::fmt;

/// What messages advise where nothing but a copy over what the target holds leads on.
pub const OVERWRITE: &str =
    "run again with `--full`; over the network the target also needs `overwrite = true`";

/// Why Driftline would not do the ordinary thing. The words are an interface: they appear
/// in logs, in `--json` output and, as [`Reason::code`], on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// The increment does not start at the generation the target holds.
    BaseMismatch,
    /// The source has no change map at all (a plain file or device).
    MapMissing,
    /// The replica's size or content is not what was committed to it.
    TargetModified,
    /// Something other than a replica stands where the replica should be.
    TargetForeign,
    /// Another process is writing this replica.
    TargetBusy,
    /// The target device is too small, or the disk is full.
    TargetFull,
    /// The replica is of another source volume.
    SourceMismatch,
    /// The source changed while it was read; take a snapshot and read that.
    SourceChanged,
    /// The source's stream is damaged, truncated or out of order.
    StreamDamaged,
    /// What the source sends cannot be carried (deduplicated, redacted, raw encrypted, …).
    Unsupported,
    /// What was read back, or the root over it, is not what was sent.
    VerifyFailed,
    /// The peer may not do this with this volume, or the volume does not exist.
    Denied,
    /// Something failed that is no finding about the data: I/O, memory, configuration.
    Failed,
    /// The volume has another size than the generation that the map would start from.
    SizeChanged,
    /// The metadata that kept the map was made anew or laid out anew since.
    GeometryChanged,
    /// What recorded the changes since the base was cleared since, or may have been.
    SlotCleared,
    /// The storage itself calls everything changed, and its record of changes incomplete.
    FullSyncFlag,
    /// Writes went by the activity log, so the map may lack the newest of them.
    AlDisabled,
    /// The activity log cannot be read as one that was cut off at any instant.
    AlDamaged,
    /// A tool has applied and emptied the activity log, and some of them leave a part out.
    AlAlreadyApplied,
    /// The device did not record the changes that came to it from its peer.
    NotTracked,
    /// Base and tip have the same name, which does not say that they are the same.
    UuidUnchanged,
    /// The device has no identity yet.
    JustCreated,
    /// The device was in the middle of being overwritten: this is no image of any time.
    NotConsistent,
    /// The metadata beside the volume is missing, damaged or contradicts itself.
    MetadataDamaged,
    /// Space that the map calls unchanged is not what it was.
    AuditMismatch,
    /// The roots over the whole volume differ between source and target.
    RootMismatch,
    /// The source's manifest of what the target holds is not there, or of something else.
    ManifestMissing,
    /// The source's manifest is not what was written.
    ManifestDamaged,
    /// A scrub found that some of the replica is not what was committed to it.
    TargetDamaged,
    /// What came before a session was cut off does not go with what the source holds now.
    ResumeMismatch,
    /// Most of what the target holds, or all of it, would become zero or be cut off.
    SourceEmptied,
    /// The source cannot be read: its disk says so, or says nothing for too long.
    SourceUnreadable,
    /// What was to be encrypted at the target is there in plain text.
    NotEncrypted,
    /// The target's key would not open any more what a raw increment brings.
    KeyMismatch,
    /// The target holds nothing, though something had arrived there.
    TargetGone,
}

/// Every reason with its wire code and its word. Codes are never reused.
const TABLE: &[(Reason, u16, &str)] = &[
    (Reason::BaseMismatch, 1, "base-mismatch"),
    (Reason::MapMissing, 2, "map-missing"),
    (Reason::TargetModified, 3, "target-modified"),
    (Reason::TargetForeign, 4, "target-foreign"),
    (Reason::TargetBusy, 5, "target-busy"),
    (Reason::TargetFull, 6, "target-full"),
    (Reason::SourceMismatch, 7, "source-mismatch"),
    (Reason::SourceChanged, 8, "source-changed"),
    (Reason::StreamDamaged, 9, "stream-damaged"),
    (Reason::Unsupported, 10, "unsupported"),
    (Reason::VerifyFailed, 11, "verify-failed"),
    (Reason::Denied, 12, "denied"),
    (Reason::Failed, 13, "failed"),
    (Reason::SizeChanged, 14, "size-changed"),
    (Reason::GeometryChanged, 15, "geometry-changed"),
    (Reason::SlotCleared, 16, "slot-cleared"),
    (Reason::FullSyncFlag, 17, "full-sync-flag"),
    (Reason::AlDisabled, 18, "al-disabled"),
    (Reason::AlDamaged, 19, "al-damaged"),
    (Reason::AlAlreadyApplied, 20, "al-already-applied"),
    (Reason::NotTracked, 21, "not-tracked"),
    (Reason::UuidUnchanged, 22, "uuid-unchanged"),
    (Reason::JustCreated, 23, "just-created"),
    (Reason::NotConsistent, 24, "not-consistent"),
    (Reason::MetadataDamaged, 25, "metadata-damaged"),
    (Reason::AuditMismatch, 26, "audit-mismatch"),
    (Reason::RootMismatch, 27, "root-mismatch"),
    (Reason::ManifestMissing, 28, "manifest-missing"),
    (Reason::ManifestDamaged, 29, "manifest-damaged"),
    (Reason::TargetDamaged, 30, "target-damaged"),
    (Reason::ResumeMismatch, 31, "resume-mismatch"),
    (Reason::SourceEmptied, 32, "source-emptied"),
    (Reason::SourceUnreadable, 33, "source-unreadable"),
    (Reason::NotEncrypted, 34, "not-encrypted"),
    (Reason::KeyMismatch, 35, "key-mismatch"),
    (Reason::TargetGone, 36, "target-gone"),
];

impl Reason {
    /// The number that stands for this reason on the wire.
    pub fn code(self) -> u16 {
        self.row().1
    }

    /// The reason with this wire code, if this version knows it.
    pub fn from_code(code: u16) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    /// The word for this reason, as printed.
    pub fn as_str(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> &'static (Self, u16, &'static str) {
        TABLE.iter().find(|row| row.0 == self).expect("every reason has a row; a test says so")
    }

    /// Every reason there is, in the order of their codes.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_words_are_pinned_and_unique() {
        // A new variant without a row fails to compile here, a changed code fails below.
        for reason in Reason::all() {
            match reason {
                Reason::BaseMismatch | Reason::MapMissing | Reason::TargetModified => {}
                Reason::TargetForeign | Reason::TargetBusy | Reason::TargetFull => {}
                Reason::SourceMismatch | Reason::SourceChanged | Reason::StreamDamaged => {}
                Reason::Unsupported | Reason::VerifyFailed | Reason::Denied | Reason::Failed => {}
                Reason::SizeChanged | Reason::GeometryChanged | Reason::SlotCleared => {}
                Reason::FullSyncFlag | Reason::AlDisabled | Reason::AlDamaged => {}
                Reason::AlAlreadyApplied | Reason::NotTracked | Reason::UuidUnchanged => {}
                Reason::JustCreated | Reason::NotConsistent | Reason::MetadataDamaged => {}
                Reason::AuditMismatch | Reason::RootMismatch | Reason::ResumeMismatch => {}
                Reason::ManifestMissing | Reason::ManifestDamaged | Reason::TargetDamaged => {}
                Reason::SourceEmptied => {}
                Reason::SourceUnreadable => {}
                Reason::NotEncrypted | Reason::KeyMismatch | Reason::TargetGone => {}
            }
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
        }
        assert_eq!(TABLE.len(), 36);
        let codes: Vec<u16> = Reason::all().map(Reason::code).collect();
        assert_eq!(codes, (1..=36).collect::<Vec<_>>());
        assert_eq!(Reason::from_code(0), None);
        assert_eq!(Reason::BaseMismatch.to_string(), "base-mismatch");
    }
}
